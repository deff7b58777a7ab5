"""Extracts what the gates of several experiments see besides the speech, for all splits, before any training.

    python recipes/europarl_st/contexts.py row06,row07,row09 [overrides]

Training extracts what is missing by itself; here a wrong path or a lacking model shows in minutes and not in row 7.
"""

from __future__ import annotations

import sys

from hydra import compose, initialize_config_dir

from localgp.build import build_languages
from localgp.cli import CONF_DIR
from localgp.contexts.extract import needed_contexts, row_contexts
from localgp.corpora.prepared import load_prepared
from localgp.errors import LocalGPError


def extract(confs: list[str], overrides: list[str]) -> None:
    """Args:
    confs: Experiments.
    overrides: As the entry points take them.
    """
    for conf in confs:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose("config", overrides=[f"conf={conf}", *overrides])
        names = needed_contexts(cfg)
        if names:
            splits = load_prepared(cfg)
            row_contexts(cfg, *((rows, rows) for rows in splits.values()))
        languages = build_languages(cfg)
        if languages is not None:
            for source in cfg.corpus.languages:
                languages.of([source, *(f"{source}-{t}" for t in cfg.corpus.languages if t != source)])
            names = [*names, f"lang2vec ({languages.size} values)"]
        print(f"{conf}: {', '.join(names) or 'nothing to extract'}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        extract(sys.argv[1].split(","), sys.argv[2:])
    except LocalGPError as error:
        sys.exit(f"error: {error}")
