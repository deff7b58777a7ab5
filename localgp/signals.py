"""Being asked to end: Ctrl-C, SIGTERM, and the warning that SLURM sends before it takes a node away.

A command stops with `Stopped`, which is no `Exception`, so that what is being written is taken away on the way out
and nothing takes it for a failure of a file or a model. Training puts it off to the end of a step
(`localgp.training.stop`). A second signal ends the process at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any, ClassVar

# torchrun and srun pass on what the terminal or the scheduler has sent to their processes already.
_TWICE = 2.0  # seconds in which the same request may come twice
_LAUNCHED = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID")


class Stopped(BaseException):
    """A signal ended the work.

    Args:
        signum: Which.
        said: What there is to go on from; nothing where another process of the run says it.
    """

    def __init__(
        self, signum: int, said: str = "what is written is whole, and the same command goes on from it"
    ) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {said}" if said else "")
        self.signum = signum

    @property
    def status(self) -> int:
        """The exit status that shells and schedulers know it by."""
        return 128 + self.signum


class Signals:
    """Takes the signals that ask a process to end, as a context; nested ones share the first signal.

    Args:
        defer: The first signal is kept in ``asked`` instead of being raised.
        environment: SLURM's, which says whether it warns with SIGUSR1.
    """

    asked: ClassVar[int | None] = None
    _when: ClassVar[float] = 0.0

    def __init__(self, *, defer: bool = False, environment: Mapping[str, str] = os.environ) -> None:
        self.defer, self.environment = defer, environment
        self._before: dict[int, Any] = {}
        self._outermost = False

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():  # Python lets no other thread take any
            return self
        wanted = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in self.environment:
            wanted.append(signal.SIGUSR1)
        handlers = {signum: signal.getsignal(signum) for signum in wanted}
        free = (signal.SIG_DFL, signal.default_int_handler)
        # Ignored (nohup, a job in the background) or taken (submitit requeues by itself): it stays so.
        self._before = {s: handler for s, handler in handlers.items() if handler in free or _ours(handler)}
        self._outermost = not any(_ours(handler) for handler in handlers.values())
        self.take()
        return self

    def take(self) -> None:
        """Takes the signals again, after a library has."""
        for signum in self._before:
            signal.signal(signum, self._handle)

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._outermost:
            Signals.asked = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if Signals.asked is not None:
            launched = any(name in self.environment for name in _LAUNCHED)
            if not launched or time.monotonic() - Signals._when > _TWICE:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        Signals.asked, Signals._when = signum, time.monotonic()
        if not self.defer:
            raise Stopped(signum)
        notice = f"\n{signal.Signals(signum).name}: ends after this step; once more ends it at once\n"
        os.write(2, notice.encode())  # print may be what the signal came into


def heed() -> None:
    """Ends the work if a signal has come. Libraries let what is raised in their callbacks go by.

    Raises:
        Stopped: One has.
    """
    if Signals.asked is not None:
        raise Stopped(Signals.asked)


def _ours(handler: Any) -> bool:
    return isinstance(getattr(handler, "__self__", None), Signals)


def leave_to_parent(*_: Any) -> None:
    """For processes that load data: who ends a whole group, a terminal or a scheduler, ends them too, and the step
    in hand with them. Their parent ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def requeue(environment: Mapping[str, str] = os.environ) -> str:
    """Puts this SLURM job back into its queue, as Lightning does at SIGUSR1; says what came of it."""
    job = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        return f"job {job} could not be put back into the queue (scontrol: {error.strerror})"
    if done.returncode:
        return f"job {job} could not be put back into the queue ({done.stderr.strip()})"
    return f"job {job} is back in the queue"
