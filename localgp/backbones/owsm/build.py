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

from localgp.backbones.owsm.components import component_class, quiet_espnet
from localgp.backbones.owsm.files import ModelFiles
from localgp.errors import BackboneError
from localgp.weights import mismatches

log = logging.getLogger(__name__)


def build_model(config: Mapping[str, Any]) -> Any:
    """ESPnet's S2T model of a configuration, randomly initialised as ESPnet's own task does it: the parts are built
    in its order, so that a seed gives the same weights.

    Published configurations carry arguments that not every ESPnet accepts; those are left out with a log line.
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
        if config.get("init") is not None:
            from espnet2.torch_utils.initialize import initialize

            initialize(model, config["init"])
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise BackboneError(f"ESPnet cannot build a model from this config.yaml: {error}") from error
    return model


def _optional(kind: str, config: Mapping[str, Any], **arguments: Any) -> Any:
    """A component that a configuration may leave out, or None."""
    name = config.get(kind)
    return None if name is None else component(kind, name, config, **arguments)


def component(kind: str, name: Any, config: Mapping[str, Any], **arguments: Any) -> Any:
    """A component as the configuration describes it; ``arguments`` are what the other components decide."""
    with quiet_espnet():
        made = component_class(kind, name)
    return made(**arguments, **_accepted(made, config, kind))


def _accepted(kind: type, config: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The arguments of one component that this ESPnet's class takes."""
    given = dict(config.get(f"{component}_conf") or {})
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return given
    ignored = sorted(set(given) - set(parameters))
    if ignored:
        log.warning(
            "config.yaml: %s_conf: ignored %s, which this ESPnet does not know", component, ", ".join(ignored)
        )
    accepted = {key: value for key, value in given.items() if key in parameters}
    if accepted.get("use_flash_attn"):
        accepted["use_flash_attn"] = False  # another kernel for the same result, CUDA and fp16 only
    return accepted


def load_weights(model: Any, files: ModelFiles) -> None:
    """Loads a checkpoint into a model that must have exactly its parameters; half precision is widened.

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
    if isinstance(state, dict) and isinstance(state.get("module"), dict):
        state = state["module"]  # DeepSpeed's wrapping
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise BackboneError(
            f"{files.weights}: not a state dictionary of tensors; give a model, not a trainer's state"
        )
    own = model.state_dict()
    problems = mismatches(own, state)
    if problems:
        shown = "\n  ".join(problems[:6])
        more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise BackboneError(
            f"{files.weights} does not fit {files.config} ({len(own)} tensors expected, {len(state)} given):\n"
            f"  {shown}{more}\n  Use the config.yaml that lies beside the checkpoint."
        )
    model.load_state_dict(state)
