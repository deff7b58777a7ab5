"""What the gates of an evaluated run do: figures, statistics, agreement with true speech.

python -m localgp.analyze conf=row05
python -m localgp.analyze exp/mini/mini/row05/seed1 analyze.format=pdf
"""

from __future__ import annotations

from omegaconf import DictConfig

from localgp.cli import entry_point


def main(cfg: DictConfig) -> None:
    from localgp.report.analyze import analyze

    text, files = analyze(cfg)
    print(text)
    print("\nwritten:", *files, sep="\n  ")


if __name__ == "__main__":
    entry_point(main, "analyze", "exp_dir")()
