"""``python -m localgp.train conf=row05``: fine-tune; resumes by itself, and skips what is finished."""

from __future__ import annotations

from omegaconf import DictConfig

from localgp.cli import entry_point


def main(cfg: DictConfig) -> None:
    from localgp.training.fit import fit

    fit(cfg)


if __name__ == "__main__":
    entry_point(main)()
