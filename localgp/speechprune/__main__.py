"""``python -m localgp.speechprune rate=0.2 method=both model=tiny``: SpeechPrune's table; the last line is JSON."""

from __future__ import annotations

from omegaconf import DictConfig

from localgp.cli import entry_point


def main(cfg: DictConfig) -> None:
    from localgp.speechprune.reports import report

    report(cfg)


if __name__ == "__main__":
    entry_point(main, config_name="speechprune")()
