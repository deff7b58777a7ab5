"""A corpus to a validated, cached dataset; says what was dropped and why.

python -m localgp.prepare corpus=mini
python -m localgp.prepare corpus=manifest corpus.manifest=my.jsonl corpus.name=my
"""

from __future__ import annotations

from omegaconf import DictConfig

from localgp.cli import entry_point
from localgp.corpora.prepared import PreparedCorpus, prepare
from localgp.corpora.report import format_report


def run(cfg: DictConfig) -> PreparedCorpus:
    """Prepares the configured corpus and prints what it holds and what was left out."""
    prepared = prepare(cfg)
    print(format_report(prepared.report))
    print(f"prepared in {prepared.report['seconds']} s" if prepared.fresh else "it was prepared before")
    return prepared


main = entry_point(run, "corpus", "data_dir")

if __name__ == "__main__":
    main()
