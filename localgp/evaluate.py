"""Decodes every task of a trained run and scores it: WER, BLEU, frames kept, GFLOPs.

python -m localgp.evaluate conf=row05
python -m localgp.evaluate exp/mini/mini/row05/seed1 decode.beam=1
"""

from __future__ import annotations

from omegaconf import DictConfig

from localgp.cli import entry_point
from localgp.evaluation.evaluate_run import evaluate_run
from localgp.evaluation.results import comparable
from localgp.evaluation.summary import describe_evaluation, scores_table
from localgp.stored import read_metrics


def main(cfg: DictConfig) -> None:

    metrics, objects = evaluate_run(cfg)
    if not metrics:  # another process of this run scores
        return
    path, tag = objects["run"].path, metrics["evaluation"]["tag"]
    print(describe_evaluation(metrics))
    name = path.parent.name  # a variant's own, such as row05-target0.5
    print(scores_table([m | {"name": name} for m in comparable(path, metrics) or [metrics]]))
    print(f"written: {path / 'evaluations' / tag / 'metrics.json'}")
    lead = read_metrics(path / "metrics.json")
    leads = (lead.get("evaluation") or {}).get("tag") == tag
    print(f"{path / 'metrics.json'} is {'its copy' if leads else 'still of ' + describe_evaluation(lead)}")


if __name__ == "__main__":
    entry_point(main, "evaluate", "decode", "device", "threads", "exp_dir")()
