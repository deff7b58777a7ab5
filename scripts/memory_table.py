"""Memory that a training step needs at full size, from what autograd really keeps.

    python scripts/memory_table.py --backbone owsm_v3.1_medium --batch 4

Nothing of full size is built but single layers: what autograd saves is measured on an encoder layer, a decoder layer
and each output layer by `torch.autograd.graph.saved_tensors_hooks`, every storage counted once, and multiplied by
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
from torch import Tensor, nn

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


def encoder_layer(dimensions: Any, seconds: float) -> tuple[nn.Module, int]:
    """One E-Branchformer layer, and its frames for an utterance."""
    from localgp.backbones.owsm.build import component
    from localgp.backbones.owsm.shapes import train_config

    config = train_config(dimensions, [], None, None)
    config["encoder_conf"]["num_blocks"] = 1
    encoder = component("encoder", config["encoder"], config, input_size=80)
    frames = ((round(seconds * 100) - 1) // 2 - 1) // 2
    return encoder.encoders[0].train(), frames


def decoder_layer(dimensions: Any) -> nn.Module:
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder

    decoder = TransformerDecoder(
        10,
        dimensions.size,
        attention_heads=dimensions.heads,
        linear_units=dimensions.units,
        num_blocks=1,
        use_flash_attn=False,
    )
    return decoder.decoders[0].train()


def measure(name: str, tokens: int, dtype: torch.dtype) -> dict[str, float]:
    """Bytes of one utterance with one decoder sequence: per layer, checkpointed or not, and outside of layers."""
    from localgp.backbones.owsm.components import quiet_espnet
    from localgp.backbones.owsm.layers import run_decoder_layer, run_encoder_layer
    from localgp.backbones.owsm.shapes import DIMENSIONS
    from localgp.decoder.train import MaskedTokens
    from localgp.encoder.run import Masked

    d = DIMENSIONS[name]
    with quiet_espnet():
        layer, frames = encoder_layer(d, d.padded_seconds)
        decoder = decoder_layer(d)
    for module in [*layer.modules(), *decoder.modules()]:
        if hasattr(module, "use_sdpa"):
            module.use_sdpa = True
    x = torch.randn(1, frames, d.size, requires_grad=True)
    text = torch.randn(1, tokens, d.size, requires_grad=True)
    mask = torch.ones(1, 1, frames, dtype=torch.bool)
    text_mask = torch.ones(1, tokens, tokens, dtype=torch.bool).tril()
    element = torch.finfo(dtype).bits // 8

    def autocast(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
                return call()

        return run

    def kept(run: Masked, decoding: bool) -> int:
        """What autograd saves of a layer, without what is left of its weights."""
        if decoding:
            call = autocast(lambda: run_decoder_layer(decoder, text, text_mask, x, mask, run))
        else:
            call = autocast(lambda: run_encoder_layer(layer, x, mask, run))
        parameters = list((decoder if decoding else layer).parameters())
        return max(0, saved_bytes(call, parameters) - cast_weights * sum(p.numel() for p in parameters))

    cast_weights = element if dtype != torch.float32 else 0  # autocast saves its copy of each weight
    hidden = d.size * 4
    return {
        "encoder layer": kept(Masked({}), False),
        "decoder layer": kept(MaskedTokens({}), True),
        # Besides what autograd saves between the parts, checkpointing keeps their inputs: of cgMLP it is attention's.
        "encoder layer, checkpointed": kept(Masked({}, forget=True), False) + 3 * frames * hidden,
        "decoder layer, checkpointed": kept(MaskedTokens({}, forget=True), True) + 3 * tokens * hidden,
        # The subsampling's two convolutions with their ReLUs, the 50,002-way outputs with log-softmax and gradient.
        "subsampling": 2 * element * d.size * (1499 * 39 + frames * 19) * d.padded_seconds / 30,
        "ctc output": frames * d.vocabulary * (element + 2 * 4),
        "decoder output": tokens * d.vocabulary * (element + 2 * 4),
        "encoder layers": d.encoder_layers,
        "decoder layers": d.decoder_layers,
        "largest layer": kept(Masked({}), False),
    }


def parameters_of(name: str) -> int:
    """Parameters of the whole model, counted on the meta device."""
    from localgp.backbones.owsm.build import build_model
    from localgp.backbones.owsm.files import read_train_config

    with torch.device("meta"):
        model = build_model(read_train_config({"name": name, "path": name}))
    return sum(p.numel() for p in model.parameters())


def table(name: str, batch: int, sequences: int, tokens: int) -> list[dict[str, Any]]:
    """One row per setting, in GiB."""
    weights = parameters_of(name)
    rows = []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        m = measure(name, tokens, dtype)
        for checkpointed in (False, True):
            kind = ", checkpointed" if checkpointed else ""
            activations = batch * (
                m["encoder layers"] * m[f"encoder layer{kind}"] + m["subsampling"] + m["ctc output"]
            )
            activations += sequences * (m["decoder layers"] * m[f"decoder layer{kind}"] + m["decoder output"])
            if checkpointed:
                activations += batch * m["largest layer"]  # the layer being computed again
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
    parser.add_argument("--backbone", default="owsm_v3.1_medium")
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
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    print(json.dumps({"backbone": args.backbone, "batch": args.batch, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
