"""What `localgp.analyze` found for a run and the report reads back."""

from __future__ import annotations

import json
from typing import Any

from localgp.analysis.collect import Evaluated
from localgp.errors import CheckpointError


def stored_analysis(run: Evaluated, key: str) -> dict[str, Any] | None:
    """An entry of the run's analysis.json; None where there is none, or it is of older gates.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = run.path / "analysis" / run.metrics["data"]["split"] / "analysis.json"
    try:
        if path.stat().st_mtime < run.gates.stat().st_mtime:
            return None
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")).get(key)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); analyze that run again") from error
    return found
