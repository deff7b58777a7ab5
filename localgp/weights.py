"""Weights in safetensors: written whole or not at all, read only into the very model they are of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from localgp.errors import CheckpointError
from localgp.io import written
from localgp.stored import short

if TYPE_CHECKING:
    import torch

# What the names of gates' tensors begin with; those of the backbone's begin with its family.
GATES = ("policy.", "decoder_policy.")


def save_weights(state: dict[str, torch.Tensor], path: Path) -> None:
    """Safetensors, written aside and renamed."""
    from safetensors.torch import save_file

    with written(path) as temporary:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, temporary)


def mismatches(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> list[str]:
    """What keeps ``given`` tensors from being a model's ``own``: names and shapes."""
    problems = [f"{name}: not in the checkpoint" for name in own if name not in given]
    problems += [f"{name}: not in the model" for name in given if name not in own]
    problems += [
        f"{name}: {tuple(given[name].shape)} in the checkpoint, {tuple(own[name].shape)} in the model"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    return problems


def load_state(
    model: torch.nn.Module,
    path: Path,
    gates: str = "trained",
    *,
    only_gates: bool = False,
    remedy: str = "Copy the whole model again.",
) -> None:
    """Loads safetensors that must be exactly the model's.

    Args:
        gates: With ``open``, tensors of the gates are left out.
        only_gates: The backbone has its weights, the file holds the rest.
        remedy: What to do where the file is missing, damaged or of another model.

    Raises:
        CheckpointError: Missing, damaged, of another model, or with NaN or infinity.
    """
    from safetensors.torch import load_file

    try:
        with path.open("rb"):  # safetensors calls every file missing that it cannot open
            state = load_file(path)
    except PermissionError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing. {remedy}") from error
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged or not safetensors ({short(error)}). {remedy}") from error
    if gates == "open":
        state = {name: value for name, value in state.items() if not name.startswith(GATES)}
    own = {
        name: value for name, value in model.state_dict().items() if name.startswith(GATES) or not only_gates
    }
    problems = mismatches(own, state)
    if problems:
        raise CheckpointError(
            f"{path} is of another model than its configuration: {'; '.join(problems[:4])}"
            f"{f' and {len(problems) - 4} more' if len(problems) > 4 else ''}. {remedy}"
        )
    broken = [
        name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise CheckpointError(
            f"{path}: {broken[0]} and {len(broken) - 1} others hold NaN or infinity; train again"
        )
    model.load_state_dict(state, strict=not only_gates)
