"""Memory that a training step needs at full size, from what autograd really keeps.

    python scripts/memory_table.py --backbone owsm_v3.1_medium --batch 4

Nothing of full size is built but single layers: what autograd saves is measured on an encoder layer, a decoder layer
and the stem by `torch.autograd.graph.saved_tensors_hooks`, every storage counted once, and multiplied by
the number of layers; parameters, gradients and optimizer states are counted. Activations are linear in layers and in
utterances, so this is exact but for workspaces, fragmentation and the front end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from localgp.backbones.owsm.shapes import DIMENSIONS as OWSM
from localgp.backbones.whisper.shapes import DIMENSIONS as WHISPER
from localgp.backbones.whisper.shapes import arguments
from localgp.tables import every_key

GIB = 2**30
# Bytes per parameter: weights and gradients in fp32, as under autocast, and the optimizer's states.
STATES = {"adam": 8, "adam8bit": 2}


def saved_bytes(function: Callable[[], Tensor], parameters: list[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of a call, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    seen: dict[int, int] = {}
    alive: list[Tensor] = []  # else a storage could be freed, and its address used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(seen.values())


def of_one_layer(name: str) -> Any:
    """A backbone of full width with one layer a side."""
    if name in OWSM:
        from localgp.backbones.owsm.build import build_espnet_model
        from localgp.backbones.owsm.components import quiet_espnet
        from localgp.backbones.owsm.files import read_train_config
        from localgp.backbones.owsm.model import assemble

        config = read_train_config({"name": name, "path": name})
        config["encoder_conf"]["num_blocks"] = config["decoder_conf"]["num_blocks"] = 1
        with quiet_espnet():
            backbone: Any = assemble(build_espnet_model(config), config, name, "")
    else:
        from localgp.backbones.whisper.files import WhisperFiles, build_whisper
        from localgp.backbones.whisper.model import WhisperBackbone

        config = arguments(WHISPER[name]) | {"encoder_layers": 1, "decoder_layers": 1}
        files = WhisperFiles(None, config, False, name)
        backbone = WhisperBackbone(build_whisper(files), files.tokens(), name=name, source="")
    backbone.use_fast_kernels()
    backbone.net.train()
    return backbone


def measure(name: str, tokens: int, dtype: torch.dtype) -> dict[str, float]:
    """Bytes of one utterance with one decoder sequence: per layer, checkpointed or not, and outside of layers."""
    from localgp.decoder.train import MaskedTokens
    from localgp.encoder.run import Masked

    backbone = of_one_layer(name)
    size, vocabulary = backbone.shape.size, backbone.shape.vocabulary
    features = backbone.timeline.feature_frames(backbone.samples)
    frames = backbone.timeline.frames(features)
    feats = torch.randn(1, features, backbone.shape.mels)
    x = torch.randn(1, frames, size, requires_grad=True)
    text = torch.randn(1, tokens, size, requires_grad=True)
    mask = torch.ones(1, 1, frames, dtype=torch.bool)
    text_mask = torch.ones(1, tokens, tokens, dtype=torch.bool).tril()
    element = torch.finfo(dtype).bits // 8
    every = list(backbone.net.parameters())

    def kept(call: Callable[[], Tensor], parameters: list[Tensor]) -> int:
        """What autograd saves of a call, without what is left of its weights."""
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
            saved = saved_bytes(call, every)
        return max(0, saved - cast_weights * sum(p.numel() for p in parameters))

    def layer(run: Masked, side: Any) -> int:
        parts = backbone.branches(side, 0).values()
        modules = [m for part in parts for m in (part.norm, part.module, *part.linears) if m is not None]
        own = {id(p): p for module in modules for p in module.parameters()}
        if side == "decoder":
            return kept(lambda: backbone.decoder_layer(0, text, text_mask, x, mask, run), list(own.values()))
        return kept(lambda: backbone.encoder_layer(0, x, mask, run), list(own.values()))

    cast_weights = element if dtype != torch.float32 else 0  # autocast saves its copy of each weight
    hidden = size * 4
    return {
        "encoder layer": layer(Masked({}), "encoder"),
        "decoder layer": layer(MaskedTokens({}), "decoder"),
        # Besides what autograd saves between the parts, checkpointing keeps their inputs: of cgMLP it is attention's.
        "encoder layer, checkpointed": layer(Masked({}, forget=True), "encoder")
        + len(backbone.frame_parts()) * frames * hidden,
        "decoder layer, checkpointed": layer(MaskedTokens({}, forget=True), "decoder") + 3 * tokens * hidden,
        "stem": kept(lambda: backbone.front(feats, torch.tensor([features])).x, []),
        # The outputs over the vocabulary with log-softmax and gradient
        "ctc output": 0 if backbone.ctc is None else frames * vocabulary * (element + 2 * 4),
        "decoder output": tokens * vocabulary * (element + 2 * 4),
    }


def parameters_of(backbone: Any) -> int:
    return sum(p.numel() for p in backbone.net.parameters())


def whole(name: str) -> Any:
    """The whole model, on the meta device."""
    from localgp.backbones import open_backbone

    with torch.device("meta"):
        return open_backbone({"name": name, "path": name, "weights": "random"})


def table(name: str, batch: int, sequences: int, tokens: int) -> list[dict[str, Any]]:
    """One row per setting, in GiB."""
    model = whole(name)
    weights, shape = parameters_of(model), model.shape
    rows = []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        m = measure(name, tokens, dtype)
        for checkpointed in (False, True):
            kind = ", checkpointed" if checkpointed else ""
            activations = batch * (
                shape.encoder_layers * m[f"encoder layer{kind}"] + m["stem"] + m["ctc output"]
            )
            activations += sequences * (
                shape.decoder_layers * m[f"decoder layer{kind}"] + m["decoder output"]
            )
            if checkpointed:
                activations += batch * m["encoder layer"]  # the layer being computed again
            copies = (
                2 if precision == "bf16" else 0
            )  # autocast's copy of the weights, which lives for the step
            for optimizer, states in STATES.items():
                fixed = weights * (4 + 4 + copies + states)
                rows.append(
                    {
                        "precision": precision,
                        "checkpointing": checkpointed,
                        "optimizer": optimizer,
                        "weights, gradients, states GiB": round(fixed / GIB, 2),
                        "activations GiB": round(activations / GIB, 2),
                        "total GiB": round((fixed + activations) / GIB, 2),
                    }
                )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="owsm_v3.1_medium", choices=[*OWSM, *WHISPER], metavar="NAME")
    parser.add_argument(
        "--batch", type=int, default=4, help="utterances, each padded to the backbone's length"
    )
    parser.add_argument(
        "--sequences", type=int, help="decoder sequences in a batch; default: one per utterance"
    )
    parser.add_argument("--tokens", type=int, default=80, help="of a sequence")
    args = parser.parse_args()
    rows = table(args.backbone, args.batch, args.sequences or args.batch, args.tokens)
    print(f"{args.backbone}, batch {args.batch} x padded length, {args.tokens} tokens a sequence\n")
    print(every_key(rows).markdown())
    print(json.dumps({"backbone": args.backbone, "batch": args.batch, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
