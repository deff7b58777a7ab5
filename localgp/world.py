"""The processes of one training or evaluation, whoever started them: torchrun, SLURM, or nobody.

torchrun and SLURM tell a process its place through the environment; everything here is the identity for a single
process, so that there is one code path.
"""

from __future__ import annotations

import atexit
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from omegaconf import DictConfig, open_dict

from localgp.errors import ConfigError

# The first rank prepares corpus and contexts while the others wait for it.
_PATIENCE = timedelta(hours=6)


@dataclass(frozen=True)
class World:
    """The processes of a distributed run.

    Attributes:
        rank: Of this process, among all.
        ranks: Processes of the run.
        devices: Processes of this node.
        nodes: Machines.
    """

    rank: int = 0
    ranks: int = 1
    devices: int = 1
    nodes: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def world_from(environment: Mapping[str, str]) -> World:
    """The place that torchrun or SLURM gave to this process.

    Examples:
        >>> world_from({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"})
        World(rank=3, ranks=4, devices=2, nodes=2)
        >>> world_from({})
        World(rank=0, ranks=1, devices=1, nodes=1)
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        ranks, devices = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        return World(int(environment["RANK"]), ranks, devices, ranks // devices)
    # In an interactive allocation or a batch script without srun, SLURM names tasks that it did not start.
    started = "SLURM_STEP_ID" in environment and environment.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    )
    if started and int(environment.get("SLURM_NTASKS", "1")) > 1:
        ranks, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES", "1"))
        return World(int(environment["SLURM_PROCID"]), ranks, ranks // nodes, nodes)
    return World()


def check_launch(cfg: DictConfig, environment: Mapping[str, str] = os.environ, *, multirun: bool) -> World:
    """Compares ``cfg.trainer`` with how the process was started, and writes what holds into it.

    Raises:
        ConfigError: Several devices that nobody started, in this process tree or in a sweep; or other numbers
            than the launcher's.
    """
    trainer = cfg.trainer
    world = world_from(environment)
    for key, actual in (("devices", world.devices), ("num_nodes", world.nodes)):
        asked = trainer[key]
        if world.ranks > 1 and asked not in ("auto", actual):
            raise ConfigError(
                f"trainer.{key} is {asked}, but the launcher started {actual}; leave trainer.{key} out, or change "
                "the launcher's number"
            )
    asked_devices = 1 if trainer.devices == "auto" else trainer.devices
    asked_nodes = 1 if trainer.num_nodes == "auto" else trainer.num_nodes
    if world.ranks == 1 and asked_devices * asked_nodes > 1:
        command = launch_command(asked_devices, asked_nodes)
        if multirun:
            raise ConfigError(
                f"a sweep (-m) with trainer.devices={asked_devices} would start processes inside of processes. Start "
                f"them once, and the sweep in each:\n  {command}\n  On a cluster, one job per run: "
                "hydra/launcher=submitit_slurm (recipes/cluster)."
            )
        raise ConfigError(
            f"trainer.devices={asked_devices}, trainer.num_nodes={asked_nodes}: several processes are started by "
            f"torchrun:\n  {command}\n  Under SLURM: recipes/cluster."
        )
    with open_dict(cfg):
        trainer.devices, trainer.num_nodes = world.devices, world.nodes
    return world


def launch_command(devices: int, nodes: int) -> str:
    """The command of this process, through torchrun."""
    arguments = [a for a in sys.argv[1:] if not a.startswith(("trainer.devices=", "trainer.num_nodes="))]
    several = f"--nnodes {nodes} --rdzv_backend c10d --rdzv_endpoint HOST:29500 " if nodes > 1 else ""
    return f"torchrun {several}--nproc_per_node {devices} -m localgp.train {shlex.join(arguments)}".rstrip()


def connect(world: World, device_type: str) -> None:
    """Joins the other processes; Lightning then uses this group too."""
    import torch

    if world.ranks == 1 or torch.distributed.is_initialized():
        return

    atexit.register(disconnect)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment()
        os.environ |= {
            "MASTER_ADDR": slurm.main_address,
            "MASTER_PORT": str(slurm.main_port),
            "RANK": str(world.rank),
            "WORLD_SIZE": str(world.ranks),
            "LOCAL_RANK": str(slurm.local_rank()),
        }
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=_PATIENCE)


def disconnect() -> None:
    """Leaves the group, so that the process ends without a warning."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def first_then_others(world: World, work: Any) -> Any:
    """What ``work()`` returns, done by the first rank before all others: they find it done."""
    if world.is_first:
        result = work()
    if world.ranks > 1:
        import torch

        torch.distributed.barrier()
    if not world.is_first:
        result = work()
    return result


def from_first(world: World, value: Any) -> Any:
    """The first rank's value, a picklable one, in all ranks."""
    import torch

    if world.ranks == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def gather_to_first(world: World, value: Any) -> list[Any] | None:
    """All ranks' values in the first, in rank order; None in the others."""
    import torch

    if world.ranks == 1:
        return [value]
    box: list[Any] | None = [None] * world.ranks if world.is_first else None
    torch.distributed.gather_object(value, box, dst=0)
    return box


def mean_over_ranks(terms: dict[str, float]) -> dict[str, float]:
    """The mean of each term over all ranks, which all have to call this with the same terms."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return terms
    names = sorted(terms)
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    values = torch.tensor([terms[name] for name in names], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values)
    values /= torch.distributed.get_world_size()
    return dict(zip(names, values.tolist(), strict=True))


def sum_over_ranks(value: Any) -> Any:
    """The sum of a tensor over all ranks, through which gradients flow; itself for a single process."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(value)


def highest_over_ranks(value: float) -> float:
    """The highest of all ranks' values, which all have to call this."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    highest = torch.tensor(float(value), device=device)
    torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    return float(highest)


def weight_among_ranks(count: int) -> float:
    """What this rank's mean over ``count`` items has to be multiplied with, so that the mean over ranks, which is
    what becomes of losses and gradients, is the mean over all items; 1 for a single process."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1.0
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    counted = torch.tensor(float(count), device=device)
    torch.distributed.all_reduce(counted)
    return count * torch.distributed.get_world_size() / float(counted)
