"""Everything under ``exp_dir`` to one HTML page and tables.

python -m localgp.report
python -m localgp.report exp report.results=RESULTS.md
python -m localgp.report report.gpu=gpu_check.json
"""

from __future__ import annotations

from omegaconf import DictConfig

from localgp.cli import entry_point


def main(cfg: DictConfig) -> None:
    from pathlib import Path

    from localgp.evaluation.summary import scores_table
    from localgp.report.build import add_gpu_section, build_report
    from localgp.report.runs import collect, group

    if cfg.report.gpu:
        results = Path(cfg.report.results or "RESULTS.md")
        add_gpu_section(Path(cfg.report.gpu), results)
        print(f"tables: {results}")
        return
    page, results, _ = build_report(cfg)
    for (label, backbone), groups in group(collect(Path(cfg.exp_dir))).items():
        print(f"\n{label}; backbone {backbone}")
        runs = [run for found in groups for run in found.runs]
        print(scores_table([run.metrics | {"name": f"{run.name}, seed {run.seed}"} for run in runs]))
    print(f"\nreport: {page}\ntables: {results}")


if __name__ == "__main__":
    entry_point(main, "report", "exp_dir")()
