"""Parts of a check, each in a process of its own: one that hangs, crashes or spoils the device ends alone."""

from __future__ import annotations

import math
import multiprocessing
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

LABELS = (
    "check",
    "figure",
    "ok",
    "measure",
    "model",
    "batch",
    "run",
)  # of a row: what stands before its figures


@dataclass
class Found:
    """What a part found, sent to the parent as it is found.

    Attributes:
        send: Called with every row.
    """

    send: Callable[[dict[str, Any]], None]
    failed: bool = field(default=False)

    def near(self, check: str, value: float, limit: float) -> None:
        """A figure that must not be above its limit, nor NaN."""
        self.true(check, math.isfinite(value) and value <= limit, value=float(f"{value:.3g}"), limit=limit)

    def true(self, check: str, ok: bool, **more: Any) -> None:
        self.failed |= not ok
        self.send({"check": check, **more, "ok": bool(ok)})

    def say(self, what: str, **figures: Any) -> None:
        """Figures that nothing is decided by."""
        self.send({"figure": what, **figures})

    def time(self, measure: str, model: str, batch: int, run: str, **figures: Any) -> None:
        """The same of a run that is timed; `localgp.report.gpu` makes tables of these."""
        self.say(
            f"{measure} {model} x{batch} {run}",
            measure=measure,
            model=model,
            batch=batch,
            run=run,
            **figures,
        )


@dataclass(frozen=True)
class Part:
    """Attributes:
    name: In the report, and what ``--only`` takes.
    run: What to do.
    seconds: It is ended after these.
    needs_card: Left out where there is no GPU.
    """

    name: str
    run: Callable[[Found], None]
    seconds: float
    needs_card: bool = True


def run_part(part: Part, progress: Callable[[str], None], limit: float = math.inf) -> dict[str, Any]:
    """Args:
        limit: Seconds, in place of the part's where those are more.

    Returns:
    ``part``, ``status`` (``passed``, ``failed`` or ``timed out``), ``seconds``, ``rows``, and the traceback as
    ``error`` if there was one. Rows that were found before a crash are kept.
    """
    # A fork keeps what the parent imported; the parent never touches the device, which a child could not use then.
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(part, theirs), daemon=True)
    began = time.monotonic()
    child.start()
    theirs.close()
    result: dict[str, Any] = {"part": part.name, "status": "failed", "rows": []}
    ended = False
    while not ended:
        left = min(part.seconds, limit) - (time.monotonic() - began)
        if left <= 0 or not ours.poll(left):
            result["status"] = "timed out"
            break
        try:
            message = ours.recv()
        except EOFError:  # the process died without a word
            child.join()
            result["error"] = f"the process ended with exit code {child.exitcode}"
            break
        ended = "status" in message
        if ended:
            result |= message
        else:
            result["rows"].append(message)
            progress(_line(message))
    child.join(5 if ended else 0)
    if child.is_alive():
        child.kill()
        child.join()
    return result | {"seconds": round(time.monotonic() - began, 1)}


def _child(part: Part, pipe: Connection) -> None:
    found = Found(pipe.send)
    try:
        if part.needs_card:
            from localgp.precision import prepare_cuda

            prepare_cuda()
        part.run(found)
        pipe.send({"status": "failed" if found.failed else "passed"})
    except BaseException:
        pipe.send({"status": "failed", "error": traceback.format_exc(limit=-12)})


def _line(row: dict[str, Any]) -> str:
    mark = {True: "  ok   ", False: "  FAIL "}.get(row.get("ok"), "       ")  # type: ignore[arg-type]
    shown = {key: value for key, value in row.items() if key not in LABELS}
    named = row.get("check") or row.get("figure")
    return f"{mark}{named}: " + ", ".join(f"{key} {value}" for key, value in shown.items())
