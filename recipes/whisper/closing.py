#!/usr/bin/env python3
"""What closing gates costs a Whisper model that has never had any, by part and by layer.

    python recipes/whisper/closing.py DIR data/prompts/manifest.jsonl [--share 0.3] [--fill pair]

Frames are closed at random in one part of one layer, or of all; what is printed is the distance of the encoder's output
from the dense one's, as a part of its variance (1 is as far as an output that has nothing to do with it). DIR is a
Whisper model as `transformers` saves it, at best one that knows short windows (`run.sh`, stage 3).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

import localgp
from localgp.corpora.audio import read_audio
from localgp.gates import SimilarGates
from localgp.gates.base import GatePolicy, Gates
from localgp.gates.gumbel import Gate
from localgp.model import GatedS2T
from localgp.pruning import FILLS
from localgp.training.distil import relative_distance
from localgp.window import Window


class Closed(GatePolicy):
    """Closes a share of the frames at random, in some parts of some layers; with ``fill`` pair of the second frames of
    pairs alone.

    Args:
        tied: The same frames everywhere.
    """

    framewise = True
    needs = ()

    def __init__(
        self, parts: tuple[str, ...], layers: tuple[int, ...], share: float, fill: str, *, tied: bool = False
    ) -> None:
        super().__init__()
        self.modules_gated, self.layers, self.share, self.tied = parts, layers, share, tied
        self.fill = fill

    def begin(self, contexts: dict[str, Tensor]) -> torch.Generator:
        return torch.Generator().manual_seed(1)

    def gate(self, layer: int, x_BTD: Tensor, state: torch.Generator) -> Gates:
        made = {}
        for part in self.modules_gated:
            if self.tied:
                state.manual_seed(1)
            share = self.share if layer in self.layers else 0.0
            if self.fill == "pair":  # half of the frames can go
                share *= 2
            kept = torch.rand(x_BTD.shape[:2], generator=state) >= share
            made[part] = Gate(kept.float(), kept.float())
        return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a directory of transformers'")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--share", type=float, default=0.05, help="of frames closed (default: %(default)s)")
    parser.add_argument(
        "--fill", choices=FILLS, default="zero", help="see pruning.fill (default: %(default)s)"
    )
    parser.add_argument("--recordings", type=int, default=8, help="of the dev part (default: %(default)s)")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.manifest.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "dev"]
    rows = rows[:: max(1, len(rows) // args.recordings)][: args.recordings]
    backbone = localgp.load(args.model, device="cpu").model.backbone
    signals = [
        torch.as_tensor(read_audio(args.manifest.parent / r["audio"], sample_rate=backbone.sample_rate))
        for r in rows
    ]
    ends_B = torch.tensor([len(signal) for signal in signals])
    speech_BN = torch.nn.utils.rnn.pad_sequence([s.float() for s in signals], batch_first=True)

    @torch.no_grad()
    def encoded(policy: GatePolicy | None) -> tuple[Tensor, Tensor]:
        output = GatedS2T(backbone, policy, window=Window("utterance", 0.5)).eval().encode(speech_BN, ends_B)
        return output.x, output.own()

    dense_BTD, own_BT = encoded(None)

    def off(policy: GatePolicy) -> float:
        return float(relative_distance(encoded(policy)[0], dense_BTD, own_BT))

    def far(parts: tuple[str, ...], layers: tuple[int, ...], *, tied: bool = False) -> float:
        return off(Closed(parts, layers, args.share, args.fill, tied=tied))

    names, every = tuple(backbone.part_names("encoder")), tuple(range(backbone.shape.encoder_layers))
    print(
        f"{len(rows)} recordings, {args.share:.0%} of their frames closed; distance by layer, and in all layers"
    )
    for part in names:
        by_layer = "  ".join(f"{far((part,), (layer,)):.3f}" for layer in every)
        print(f"{part:12} {by_layer}   {far((part,), every):.3f}")
    print(f"all parts, each frames of its own: {far(names, every):.3f}")
    print(f"all parts, the same frames:        {far(names, every, tied=True):.3f}")
    if args.fill == "pair":
        similar = SimilarGates(names, args.share, backbone.shape.size)
        similar.fill = args.fill
        print(f"all parts, frames that sound most like the one before: {off(similar):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
