"""Runs preparation jobs over processes, with a progress bar; finished ones are never done again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from tqdm import tqdm

from localgp.corpora.shards import ShardJob, run_job
from localgp.errors import CorpusError
from localgp.io import sweep
from localgp.signals import Stopped


def run_jobs(jobs: list[ShardJob], schema: Any, workers: int, name: str) -> None:
    """Runs those of ``jobs`` that are not done yet.

    Args:
        jobs: The whole corpus.
        schema: Arrow schema of the rows.
        workers: Processes; with 1 the work is done in this one.
        name: The corpus's, for the bar.

    Raises:
        CorpusError: The first job's error, or a process that died.
    """

    for folder in {job.folder for job in jobs}:
        sweep(folder)  # of a process that was killed
    open_jobs = [job for job in jobs if not job.is_done()]
    if len(open_jobs) < len(jobs):
        done = len(jobs) - len(open_jobs)
        print(f"corpus {name}: going on, {done} of {len(jobs)} parts were done before", file=sys.stderr)
    total = sum(len(job.segments) for job in jobs)
    initial = total - sum(len(job.segments) for job in open_jobs)
    workers = min(workers, len(open_jobs))
    interval = 0.1 if sys.stderr.isatty() else 10.0  # a log file gets few lines
    with tqdm(
        total=total, initial=initial, desc=f"prepare {name}", unit="segment", mininterval=interval
    ) as bar:
        if workers <= 1:
            for job in open_jobs:
                bar.update(run_job(job, schema))
        else:
            try:
                _run_in_pool(open_jobs, schema, workers, bar)
            finally:
                sweep(open_jobs[0].folder)


def _run_in_pool(jobs: list[ShardJob], schema: Any, workers: int, bar: Any) -> None:
    try:
        with processes(workers) as executor:
            with no_main_module():
                futures = [executor.submit(run_job, job, schema) for job in jobs]
            for future in as_completed(futures):
                bar.update(future.result())
    except BrokenProcessPool as error:
        raise CorpusError(
            "a preparation process died, most likely for want of memory\n"
            "  Run the same command again: it goes on from the parts that are done. corpus.workers=1 needs least."
        ) from error


@contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, and at once where it is stopped."""
    # spawn: the caller may hold threads (PyTorch, Arrow) that a fork would copy in an undefined state.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    try:
        yield executor
    except Stopped:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def no_main_module() -> Iterator[None]:
    """Keeps new processes from importing the caller's main module, of which they need nothing.

    It may be a script without ``if __name__ == "__main__"``, a notebook, or standard input; importing it again
    would run it again, or fail. Processes are started while jobs are submitted.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with it: a killed parent would otherwise leave idle processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
