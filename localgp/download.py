"""Fetching a repository of the Hugging Face hub, and what to say where that fails."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from localgp.errors import HubError, LocalGPError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+\Z")


def download(
    repo_id: str,
    patterns: Sequence[str],
    *,
    option: str = "",
    instead: str = "",
    error: type[LocalGPError] = HubError,
) -> Path:
    """The local copy of a repository, fetched if it is not there yet.

    Args:
        patterns: Names of the files that are wanted.
        option: What a local copy is given as, such as ``backbone.path=``, for the message.
        instead: What does without the download, for the message.
        error: Class of the error.

    Raises:
        LocalGPError: Of the class given, with the remedy.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(patterns)))
    except Exception as problem:  # the hub client raises its own, its HTTP library's and OS errors alike
        details = str(problem).splitlines()[0] if str(problem) else "no details"
        place = f"models/{repo_id.split('/')[1]}"
        raise error(
            f"cannot fetch {repo_id} from the Hugging Face hub, and no complete copy is in its cache "
            f"({type(problem).__name__}: {details}).\n"
            f"  With a network:  hf download {repo_id} --local-dir {place}\n"
            f"  then here:       {option}{place}" + (f"\n  {instead}" if instead else "")
        ) from problem
