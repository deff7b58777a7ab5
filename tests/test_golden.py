"""Nothing that a refactoring touches changes a result: the commands against their golden files (`tests.golden`)."""

from __future__ import annotations

import json

import pytest

from tests.golden import FOLDER, machine, record

pytestmark = pytest.mark.recipe


def compare(which, tmp_path):
    golden = json.loads((FOLDER / f"{which}.json").read_text(encoding="utf-8"))
    found = json.loads(json.dumps(record(which, tmp_path)))
    if golden["machine"] == machine():
        assert found == golden
        return
    # Another CPU rounds its products otherwise, which a training then carries on.
    assert found.get("gflops") == golden.get("gflops")
    assert found.get("bench") == golden.get("bench")
    for row, lines in golden["losses"].items():
        first, expected = found["losses"][row][0], lines[0]
        numbers = {key: value for key, value in expected.items() if not isinstance(value, str)}
        assert {key: first[key] for key in numbers} == pytest.approx(numbers, rel=0.02, abs=0.02), row
    for row, files in golden["hypotheses"].items():
        pairs = [
            (ours, theirs)
            for name, lines in files.items()
            for ours, theirs in zip(found["hypotheses"][row][name], lines, strict=True)
        ]
        assert sum(ours == theirs for ours, theirs in pairs) >= 0.7 * len(pairs), row


def test_short(tmp_path):
    compare("short", tmp_path)


@pytest.mark.slow
def test_trained(tmp_path):
    compare("trained", tmp_path)
