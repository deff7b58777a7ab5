"""Commands that are asked to end say so, with the status that shells and schedulers know."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from localgp import io
from localgp.cli import reported
from localgp.corpora.parallel import no_main_module, processes
from localgp.signals import Signals, Stopped, requeue


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_ends_with_one_line_and_the_signals_status(tmp_path, capsys, signum, status, debug):
    def command():
        with reported(debug), io.written(tmp_path / "result") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signum)
            raise AssertionError("it goes on")

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == status
    said = capsys.readouterr().err
    assert f"stopped by {signum.name}; what is written is whole" in said
    assert debug == ("Traceback" in said)
    assert debug or said.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_signal_is_no_failure_of_a_file():
    def read():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            pytest.fail("taken for a file that cannot be read")

    with pytest.raises(Stopped), Signals():
        read()


@pytest.mark.parametrize("method", ["seek", "read"])
def test_a_signal_while_a_library_calls_back_is_not_lost(tmp_path, monkeypatch, method):
    """PyAV asks our file object for bytes, and lets what is raised there go by."""
    import numpy as np

    from localgp.corpora import stream
    from localgp.corpora.audio import decode, write_audio

    write_audio(tmp_path / "a.m4a", np.zeros(16_000, dtype=np.float32))
    real, check, asked = getattr(stream._File, method), stream.check_length, []

    def checked(*arguments):  # the last thing before PyAV is given the file
        asked.append(signal.SIGTERM)
        return check(*arguments)

    def signalled(self, *arguments):
        result = real(self, *arguments)
        if asked and sys._getframe(1).f_code.co_name != "check_length":
            os.kill(os.getpid(), asked.pop())
        return result

    monkeypatch.setattr(stream, "check_length", checked)
    monkeypatch.setattr(stream._File, method, signalled, raising=False)
    with pytest.raises(Stopped), Signals():
        decode(tmp_path / "a.m4a")
    assert not asked


def test_a_deferred_signal_is_kept_and_forgotten_with_its_command():
    with Signals():
        with Signals(defer=True):
            os.kill(os.getpid(), signal.SIGTERM)
            assert Signals.asked == signal.SIGTERM
        assert Signals.asked == signal.SIGTERM
    assert Signals.asked is None


def test_signals_that_another_has_taken_stay_its(monkeypatch):
    mine = []
    monkeypatch.setattr(Signals, "_handle", lambda *_: pytest.fail("it was not free"))
    for other in (signal.SIG_IGN, lambda *_: mine.append(1)):
        before = signal.signal(signal.SIGTERM, other)
        try:
            with Signals():
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            signal.signal(signal.SIGTERM, before)
    assert mine == [1]


def test_slurms_warning_is_taken_under_slurm_alone():
    for environment, taken in (({}, False), ({"SLURM_JOB_ID": "7"}, True)):
        with Signals(environment=environment):
            assert (signal.getsignal(signal.SIGUSR1) != signal.SIG_DFL) == taken
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_slurms_warning_puts_the_job_back_into_the_queue(monkeypatch, capsys):
    monkeypatch.setattr("localgp.cli.requeue", lambda: "job 7 is back in the queue")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(SystemExit) as ended, reported():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert ended.value.code == 128 + signal.SIGUSR1
    assert capsys.readouterr().err.endswith("; job 7 is back in the queue\n")


def test_a_job_is_put_back_into_the_queue(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    job = {"SLURM_JOB_ID": "7"}
    assert "could not be put back" in requeue(job)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "calls"}\n')
    scontrol.chmod(0o755)
    assert requeue(job) == "job 7 is back in the queue"
    requeue({**job, "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"})
    assert (tmp_path / "calls").read_text() == "requeue 7\nrequeue 5_2\n"
    scontrol.write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    assert requeue(job) == "job 7 could not be put back into the queue (no such job)"


def test_a_second_signal_ends_at_once_unless_the_launcher_repeats_the_first():
    code = """
import os, signal, time
from localgp.signals import Signals
with Signals(defer=True, environment={}):
    print(flush=True)
    time.sleep(60)
"""
    for environment, status in (("{}", -signal.SIGTERM), ("{'TORCHELASTIC_RUN_ID': 'x'}", 0)):
        script = code.replace("{}", environment)
        if status == 0:
            script = script.replace("time.sleep(60)", "time.sleep(1)")
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.readline() + process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == status
        assert b"SIGINT: ends after this step; once more ends it at once" in said


def test_preparing_processes_end_at_once_with_a_stopped_parent():
    def prepare():
        with Signals(), processes(1) as pool:
            with no_main_module():
                future = pool.submit(time.sleep, 60)
            while not future.running():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

    began = time.monotonic()
    with pytest.raises(Stopped):
        prepare()
    assert time.monotonic() - began < 30
