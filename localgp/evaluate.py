"""``python -m localgp.evaluate conf=row05``: decode every task of a trained run and score it."""

from __future__ import annotations

from omegaconf import DictConfig

from localgp.cli import entry_point


def main(cfg: DictConfig) -> None:
    from localgp.evaluation.evaluate import evaluate
    from localgp.evaluation.table import scores_table

    metrics, objects = evaluate(cfg)
    if not metrics:  # another process of this run scores
        return
    data = metrics["data"]
    part = (
        "the whole" if data["whole_split"] else f"the first {cfg.evaluate.limit} segments per language of the"
    )
    print(f"{data['corpus']}: {part} {data['split']} set, {data['utterances']} utterances")
    path = objects["run"].path
    print(scores_table([metrics | {"name": path.parent.name}]))  # a variant's own, such as row05-target0.5
    print(f"written: {path / 'metrics.json'}")


if __name__ == "__main__":
    entry_point(main)()
