"""What the recipes of the two context extractors share: their options, and weights in fp16."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch


def parse_arguments(
    description: str | None,
    arguments: Sequence[str] | None,
    *,
    per: str,
    utterances: int,
    test_utterances: int,
    steps: int,
    batch_size: int,
    lr: float,
) -> argparse.Namespace:
    """Args:
    description: Of the recipe.
    arguments: Of the command line; None for the process's own.
    per: What utterances are counted by.
    utterances, test_utterances, steps, batch_size, lr: Defaults.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--export", type=Path, required=True, help="where the model directory is written")
    parser.add_argument("--seed", type=int, default=1999, help="of speech, order and initialisation")
    parser.add_argument("--utterances", type=int, default=utterances, help=f"per {per}, for training")
    parser.add_argument(
        "--test-utterances", type=int, default=test_utterances, help=f"per {per}, of unseen speakers"
    )
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--lr", type=float, default=lr, help="peak")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights in fp16."""
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
