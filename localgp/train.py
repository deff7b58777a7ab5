"""Fine-tunes a backbone with the gates of an experiment; resumes by itself, and skips what is finished.

python -m localgp.train conf=row05
python -m localgp.train -m conf=row01,row05 seed=1,2,3
python -m localgp.train exp/mini/mini/row05/seed1     (goes on with that run)
"""

from __future__ import annotations

from omegaconf import DictConfig

from localgp.cli import entry_point


def main(cfg: DictConfig) -> None:
    from localgp.training.fit import fit

    fit(cfg)


if __name__ == "__main__":
    entry_point(main, "training", "trainer", "pruning", "window", "seed", "device", "threads", "exp_dir")()
