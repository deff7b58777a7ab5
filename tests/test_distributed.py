"""Two processes are one process with twice the batch; what cannot work is refused with the command that does."""

from __future__ import annotations

import json
import signal
import socket
import time

import pytest
import torch
from hydra import compose, initialize_config_dir

from localgp.cli import CONF_DIR
from localgp.errors import ConfigError
from localgp.evaluation.decode import Decoded
from localgp.evaluation.gates_file import GateRecord
from localgp.evaluation.share import merge_decoded, share_of
from localgp.training.data import StepBatches, Task
from localgp.world import World, check_launch, world_from
from tests.scripts_as_modules import script


def composed(*overrides: str):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=list(overrides))


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "5"}


def test_the_place_of_a_process():
    assert world_from({}) == World()
    assert world_from(TORCHRUN) == World(1, 2, 2, 1)
    assert world_from(SLURM) == World(5, 8, 4, 2)
    assert world_from({**SLURM, "SLURM_JOB_NAME": "interactive"}) == World()
    assert world_from({k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"}) == World(), (
        "an allocation alone"
    )


def test_what_the_launcher_started_stands_in_the_configuration():
    cfg = composed()
    assert check_launch(cfg, TORCHRUN, multirun=True) == World(1, 2, 2, 1)
    assert (cfg.trainer.devices, cfg.trainer.num_nodes) == (2, 1)


@pytest.mark.parametrize(
    ("overrides", "environment", "multirun", "message"),
    [
        (["trainer.devices=2"], {}, False, "torchrun --nproc_per_node 2 -m localgp.train"),
        (["trainer.devices=2"], {}, True, r"(?s)a sweep \(-m\).*torchrun --nproc_per_node 2"),
        (["trainer.num_nodes=2"], {}, False, "--nnodes 2"),
        (["trainer.devices=4"], TORCHRUN, False, "the launcher started 2"),
    ],
)
def test_other_launches_are_refused_with_the_right_command(overrides, environment, multirun, message):
    with pytest.raises(ConfigError, match=message):
        check_launch(composed(*overrides), environment, multirun=multirun)


def test_fsdp_needs_gpus():
    from localgp.training.fit import build_strategy

    with pytest.raises(ConfigError, match="use trainer.strategy=ddp"):
        build_strategy(composed("trainer.strategy=fsdp"), World(0, 2, 2, 1), torch.device("cpu"), None)


def test_ranks_share_every_batch():
    whole = list(StepBatches(20, 4, 7, seed=5))
    shares = [list(StepBatches(20, 2, 7, seed=5, rank=rank, ranks=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole


class Rows:
    """As much of a dataset as sharing needs."""

    def __init__(self, seconds):
        self.columns = {"seconds": seconds, "utt_id": [f"u{i}" for i in range(len(seconds))]}

    def select_columns(self, names):
        return {name: self.columns[name] for name in names}


def test_shared_decoding_merges_to_the_same():
    import numpy as np

    rows = Rows([3.0, 1.0, 2.0, 5.0, 4.0])
    tasks = [Task(row, "de", target) for row in range(5) for target in ("de", "fr")]
    shares = [share_of(World(rank, 2, 2, 1), tasks, rows) for rank in (0, 1)]
    assert sorted(shares[0] + shares[1], key=tasks.index) == tasks
    assert not {t.row for t in shares[0]} & {t.row for t in shares[1]}

    def decoded(part):
        result = Decoded(seconds={"encoder": float(len(part)), "decoder": 1.0})
        for task in part:
            result.text.setdefault(task.name, {})[f"u{task.row}"] = f"{task.row} {task.name}"
        numbers = sorted({task.row for task in part})
        opened = np.zeros((len(numbers), 1, 1, 4), dtype=bool)
        opened[:, 0, 0, 0] = [n % 2 for n in numbers]
        real = np.array([(0, n) for n in numbers])
        result.gates = GateRecord([f"u{n}" for n in numbers], ["ffn1"], opened, real, 0.04)
        return result

    merged = merge_decoded([decoded(share) for share in shares], tasks, rows)
    alone = decoded(tasks)
    assert merged.text == alone.text
    assert {k: list(v) for k, v in merged.text.items()} == {k: list(v) for k, v in alone.text.items()}
    assert merged.gates.utt_ids == alone.gates.utt_ids
    assert (merged.gates.open == alone.gates.open).all()
    assert (merged.gates.real == alone.gates.real).all()


def _sparsity(rank, port, out):
    """In a process: the sparsity loss of a half of a batch, and its gradient as DDP would average it."""
    from localgp.gates.gumbel import Gate
    from localgp.world import sum_over_ranks
    from tests.conftest import distance

    if port is not None:
        torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    weight = torch.tensor(0.3, requires_grad=True)
    values = torch.tensor([[0.1, 0.9, 0.4], [0.8, 0.7, 0.2]])
    frames = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    if port is not None:
        values, frames = values[rank : rank + 1], frames[rank : rank + 1]
    gate = torch.sigmoid(values * weight)
    loss = distance(0.3, [{"ffn1": Gate(gate, gate)}], frames, total=sum_over_ranks)
    loss.backward()
    if port is None:
        return float(loss), float(weight.grad)
    torch.distributed.all_reduce(weight.grad)
    if rank == 0:
        out.put((float(loss), float(weight.grad) / 2))
    torch.distributed.destroy_process_group()
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.recipe
def test_two_processes_have_the_losses_of_one_with_twice_the_batch(tmp_path):
    kill_resume = script("kill_resume")
    log = tmp_path / "log"
    common = [
        f"data_dir={tmp_path / 'data'}",
        *kill_resume.TINY,
        "training.max_steps=4",
        "training.val_every=2",
    ]
    common += ["training.val_limit=2", "conf=row01"]
    alone = kill_resume.Training(
        [*common, f"exp_dir={tmp_path / 'one'}", "training.batch_size=4"], log, fork=True
    )
    assert alone.wait(200) == 0, log.read_text()

    def two():
        port = str(free_port())
        return [
            kill_resume.Training(
                [*common, f"exp_dir={tmp_path / 'two'}", "training.batch_size=2"],
                tmp_path / f"log{rank}",
                fork=True,
                environment={
                    **TORCHRUN,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "GROUP_RANK": "0",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                },
            )
            for rank in (0, 1)
        ]

    # A signal to the second of them stops both, at the same step.
    ranks = two()
    first, second = (tmp_path / "log0", tmp_path / "log1")
    while not (first.exists() and "step      1/4" in first.read_text()):
        assert ranks[0].code is None, first.read_text()
        time.sleep(0.05)
    assert ranks[1].kill(signal.SIGTERM) == 143, second.read_text()
    assert ranks[0].wait(100) == 143, first.read_text()
    assert "stopped by SIGTERM; the same command goes on from step" in first.read_text()
    assert "stopped by" not in second.read_text()
    ranks = two()
    for rank, process in enumerate(ranks):
        assert process.wait(200) == 0, (tmp_path / f"log{rank}").read_text()
    assert "resuming from" in first.read_text()
    logs = [
        [json.loads(line) for line in (tmp_path / name / "mini/mini/row01/seed1/metrics.jsonl").open()]
        for name in ("one", "two")
    ]
    assert [(line["step"], line["kind"]) for line in logs[0]] == [
        (line["step"], line["kind"]) for line in logs[1]
    ]
    for one, two in zip(*logs, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        if one["kind"] == "train":
            assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    assert "step " not in (tmp_path / "log1").read_text(), "the first process alone reports"


def test_the_sparsity_loss_is_that_of_the_whole_batch():
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    out, port = context.Queue(), free_port()
    processes = [context.Process(target=_sparsity, args=(rank, port, out)) for rank in (0, 1)]
    for process in processes:
        process.start()
    together = out.get(timeout=120)
    for process in processes:
        process.join()
    assert together == pytest.approx(_sparsity(0, None, None))
