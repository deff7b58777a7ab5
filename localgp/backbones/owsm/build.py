"""ESPnet S2T models from their configurations and checkpoints.

What is built is ESPnet's own `ESPnetS2TModel`, untouched.
"""

from __future__ import annotations

import inspect
import logging
import pickle
from collections.abc import Mapping
from typing import Any

import torch

from localgp.backbones.owsm.components import COMPONENTS, component_class, quiet_espnet
from localgp.backbones.owsm.files import ModelFiles
from localgp.backbones.owsm.supported import is_ctc
from localgp.errors import BackboneError
from localgp.weights import mismatches

log = logging.getLogger(__name__)

QK_NORM = "qk_norm"  # whether attention has norms of its queries and keys; attention_qk_norm before it was published
WRAPPINGS = ("module", "model")  # DeepSpeed's, and a trainer's state, of which the rest is its optimizer's


def build_espnet_model(config: Mapping[str, Any]) -> Any:
    """ESPnet's S2T model of a configuration, randomly initialised as ESPnet's own task does it: the parts are built
    in its order, so that a seed gives the same weights.

    Args:
        config: Without arguments that this ESPnet does not know (`accepted`).
    """
    tokens = list(config["token_list"])
    try:
        frontend, bins = None, config.get("input_size")
        if bins is None:  # else the inputs are features
            frontend = component("frontend", config.get("frontend") or "default", config)
            bins = frontend.output_size()
        specaug = _optional("specaug", config)
        normalize = _optional("normalize", config)
        preencoder = _optional("preencoder", config)
        if preencoder is not None:
            bins = preencoder.output_size()
        encoder = component("encoder", config["encoder"], config, input_size=bins)
        size = encoder.output_size()
        if is_ctc(config):
            given = frontend, specaug, normalize, encoder
            return _initialised(_ctc_model(config, tokens, *given), config)
        postencoder = _optional("postencoder", config, input_size=size)
        if postencoder is not None:
            size = postencoder.output_size()
        decoder = _optional("decoder", config, vocab_size=len(tokens), encoder_output_size=size)
        ctc = component("ctc", "ctc", config, odim=len(tokens), encoder_output_size=size)
        model = component(
            "model",
            config.get("model", "espnet"),
            config,
            vocab_size=len(tokens),
            token_list=tokens,
            frontend=frontend,
            specaug=specaug,
            normalize=normalize,
            preencoder=preencoder,
            encoder=encoder,
            postencoder=postencoder,
            decoder=decoder,
            ctc=ctc,
        )
        return _initialised(model, config)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise BackboneError(f"ESPnet cannot build a model from this config.yaml: {error}") from error


def _ctc_model(
    config: Mapping[str, Any], tokens: list[str], frontend: Any, specaug: Any, normalize: Any, encoder: Any
) -> Any:
    """Of OWSM-CTC, as ESPnet's task for it builds one."""
    size = (config.get("promptencoder_conf") or {})["output_size"]
    name = config.get("promptencoder") or "transformer"
    prompt_encoder = component("promptencoder", name, config, input_size=size, input_layer=None)
    ctc = component("ctc", "ctc", config, odim=len(tokens), encoder_output_size=encoder.output_size())
    return component(
        "model",
        "espnet_ctc",
        config,
        vocab_size=len(tokens),
        token_list=tokens,
        frontend=frontend,
        specaug=specaug,
        normalize=normalize,
        encoder=encoder,
        prompt_encoder=prompt_encoder,
        ctc=ctc,
    )


def _initialised(model: Any, config: Mapping[str, Any]) -> Any:
    if config.get("init") is not None:
        from espnet2.torch_utils.initialize import initialize

        initialize(model, config["init"])
    return model


def _optional(kind: str, config: Mapping[str, Any], **arguments: Any) -> Any:
    """A component that a configuration may leave out, or None."""
    name = config.get(kind)
    return None if name is None else component(kind, name, config, **arguments)


def component(kind: str, name: Any, config: Mapping[str, Any], **arguments: Any) -> Any:
    """A component as the configuration describes it; ``arguments`` are what the other components decide."""
    with quiet_espnet():
        made = component_class(kind, name)
    return made(**arguments, **(config.get(f"{kind}_conf") or {}))


def accepted(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as this ESPnet takes it: published ones carry arguments that not every version knows. One that
    it has under another name is renamed, the others are left out with a log line."""
    names = {kind: config.get(kind) for kind in COMPONENTS}
    names |= {"ctc": "ctc", "model": "espnet_ctc" if is_ctc(config) else config.get("model", "espnet")}
    if config.get("input_size") is None:
        names["frontend"] = config.get("frontend") or "default"
    result = dict(config)
    for kind, name in names.items():
        if name is not None and result.get(f"{kind}_conf"):
            with quiet_espnet():
                made = component_class(kind, name)
            result[f"{kind}_conf"] = _accepted(made, result[f"{kind}_conf"], kind)
    return result


def _accepted(made: type, given: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The arguments of one component."""
    known = inspect.signature(made.__init__).parameters  # type: ignore[misc]
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return dict(given)
    kept = {key: value for key, value in given.items() if key in known}
    normed = [key for key in given if key.endswith(QK_NORM) and key not in known]
    if normed and QK_NORM in known:
        kept.setdefault(QK_NORM, any(given[key] for key in normed))
    ignored = sorted(set(given) - set(kept) - set(normed))
    if ignored:
        log.warning(
            "config.yaml: %s_conf: ignored %s, which this ESPnet does not know", kind, ", ".join(ignored)
        )
    if kept.get("use_flash_attn"):
        kept["use_flash_attn"] = False  # another kernel for the same result, CUDA and fp16 only
    return kept


def load_espnet_weights(model: Any, files: ModelFiles) -> None:
    """Loads a checkpoint into a model that must have all of its parameters; half precision is widened, and tensors
    that the model has no place for are left out with a log line.

    Raises:
        BackboneError: A file that is damaged, holds anything but tensors, or does not fit.
    """
    assert files.weights is not None
    try:
        with files.weights.open("rb") as file:  # one that may not be read is not a damaged one
            state = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{files.weights}: refused, since loading it would run code of the file's author "
            f"({str(error).splitlines()[0]}); get a checkpoint that holds only tensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise BackboneError(
            f"{files.weights}: damaged or not a checkpoint ({error}); copy it again"
        ) from error
    if isinstance(state, dict):
        state = next((state[key] for key in WRAPPINGS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise BackboneError(
            f"{files.weights}: not a state dictionary of tensors; give a checkpoint of ESPnet's"
        )
    own = model.state_dict()
    problems = mismatches(own, state)
    extra = sorted(set(state) - set(own))
    if len(problems) > len(extra):
        shown = "\n  ".join(problems[:6])
        more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise BackboneError(
            f"{files.weights} does not fit {files.config} ({len(own)} tensors expected, {len(state)} given):\n"
            f"  {shown}{more}\n  Use the config.yaml that lies beside the checkpoint."
        )
    if extra:
        shown = ", ".join(extra[:6]) + (f" and {len(extra) - 6} more" if len(extra) > 6 else "")
        log.warning("%s: left out %s, which the model does not have", files.weights, shown)
    model.load_state_dict(state, strict=False)
