"""A corpus to a validated, cached dataset; says what was dropped and why.

python -m localgp.prepare corpus=mini
python -m localgp.prepare corpus=manifest corpus.manifest=my.jsonl corpus.name=my
"""

from __future__ import annotations

from omegaconf import DictConfig

from localgp.backbones import family_of
from localgp.cli import entry_point
from localgp.corpora.fits import too_long
from localgp.corpora.prepared import PreparedCorpus, prepare
from localgp.corpora.report import format_report
from localgp.paths import expanded


def run(cfg: DictConfig) -> PreparedCorpus:
    """Prepares the configured corpus and prints what it holds and what was left out."""
    prepared = prepare(cfg)
    print(format_report(prepared.report))
    print(f"prepared in {prepared.report['seconds']} s" if prepared.fresh else "it was prepared before")
    for line in _unheard(cfg, prepared):
        print(f"warning: {line}")
    return prepared


def _unheard(cfg: DictConfig, prepared: PreparedCorpus) -> list[str]:
    """What training on these data with the backbone at hand will refuse; nothing of one that is not on this machine."""

    path, name = str(cfg.backbone.path), str(cfg.backbone.name)
    if path != "embedded" and not expanded(path).exists():
        return []
    _, window = family_of(path, name).read_vocabulary(cfg.backbone)
    splits = prepared.load().values()
    return too_long(
        [one for rows in splits for one in rows.select_columns(["seconds"])["seconds"]], window, name
    )


main = entry_point(run, "corpus", "data_dir")

if __name__ == "__main__":
    main()
