"""SpeechPrune, training-free token pruning of speech language models, on SPIRAL; the last line is JSON.

python -m localgp.speechprune rate=0.2 method=both model=tiny
python -m localgp.speechprune model=qwen2_audio_7b report=flops
"""

from __future__ import annotations

from omegaconf import DictConfig

from localgp.cli import entry_point

OPTIONS: tuple[str, ...] = (
    "report",
    "model",
    "method",
    "rate",
    "spiral",
    "speak",
    "limit",
    "shuffle",
    "answer",
    "query",
    "batch",
)
OPTIONS += (
    "chat",
    "pruner",
    "positions",
    "prefill",
    "planted",
    "seed",
    "device",
    "precision",
    "threads",
    "data_dir",
)


def main(cfg: DictConfig) -> None:
    from localgp.speechprune.reports import report

    report(cfg)


if __name__ == "__main__":
    entry_point(main, *OPTIONS, config_name="speechprune")()
