"""A training that is asked to end saves between two steps, and goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import tempfile

import pytest

from localgp.errors import BusyError
from localgp.evaluation.evaluate_run import evaluate_run
from localgp.hub.load import base_config
from localgp.locks import held
from localgp.signals import Stopped
from localgp.training.fit import fit
from localgp.training.module import TrainingModule
from tests.scripts_as_modules import script

pytestmark = pytest.mark.recipe


BATCH_JOB = {
    "SLURM_JOB_ID": "5",
    "SLURM_JOB_NAME": "run.sh",
    "SLURM_NTASKS": "2",
    "SLURM_NNODES": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("stop")


def configured(place, name):
    kill_resume = script("kill_resume")
    options = ["training.val_every=2", "training.checkpoint_every=100", "training.batch_size=1"]
    return base_config(*kill_resume.overrides(place, name, 4, place / "data"), *options)


def train(place, name):
    return fit(configured(place, name))


@pytest.fixture
def send(monkeypatch):
    """Sends this process signals at moments of its training: (name of the step, its number or batch) to a signal."""
    planned = {}

    def sending(name):
        method = getattr(TrainingModule, name)

        def step(self, batch, index):
            moment = (name, self.global_step, index if name == "validation_step" else None)
            if moment in planned:
                os.kill(os.getpid(), planned.pop(moment))
            return method(self, batch, index)

        monkeypatch.setattr(TrainingModule, name, step)

    sending("training_step")
    sending("validation_step")
    return planned


def test_a_stopped_training_ends_in_the_weights_of_the_unbroken_one(place, send, monkeypatch):
    """Stopped within a dev scoring, within it once more where it is done again, in a step, and in the last scoring,
    which is finished and the training with it.

    All of it in a batch job without srun, and with no room for temporary files: Lightning by itself would refuse the
    first, and stage checkpoints in the second.
    """
    for name, value in BATCH_JOB.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(place / "no such directory"))
    train(place, "unbroken")
    moments = [
        (("validation_step", 2, 1), signal.SIGTERM, "from step 2 of 4"),
        (("validation_step", 2, 1), signal.SIGINT, "from step 2 of 4"),
        (("training_step", 2, None), signal.SIGUSR1, "from step 3 of 4"),
        (("validation_step", 4, 1), signal.SIGINT, "is finished"),
    ]
    for moment, signum, said in moments:
        send[moment] = signum
        with pytest.raises(Stopped, match=said) as stopped:
            train(place, "stopped")
        assert not send, "it came to that moment"
        assert stopped.value.status == 128 + signum
    kill_resume = script("kill_resume")
    runs = [kill_resume.run_directory(place, name) for name in ("unbroken", "stopped")]
    assert kill_resume.differences(*runs) == []
    assert not list(runs[1].rglob("*.tmp*"))
    steps = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["kind"]) for line in steps if line["kind"] == "valid"] == [
        (2, "valid"),
        (4, "valid"),
    ]


def test_a_run_that_is_being_trained_is_refused(place):
    run = script("kill_resume").run_directory(place, "twice")
    with (
        held(run / ".train.lock", f"training {run}"),
        pytest.raises(BusyError, match=f"process {os.getpid()}"),
    ):
        train(place, "twice")
    assert [path.name for path in run.iterdir()] == [".train.lock"]


def test_an_evaluation_that_another_process_is_at_is_refused(place):
    train(place, "unbroken")
    run = script("kill_resume").run_directory(place, "unbroken")
    lock = held(run / "evaluations" / ".test.lock", f"evaluating {run} (test)")
    with lock, pytest.raises(BusyError, match=rf"evaluating .* \(test\): process {os.getpid()}"):
        evaluate_run(configured(place, "unbroken"))
    assert not list(run.rglob("metrics.json"))
