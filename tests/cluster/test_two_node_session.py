"""The session on two nodes that docs/cluster.md shows, held again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.two_node_session import hold

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]


def test_a_sweep_on_two_nodes_is_steered_cancelled_and_gone_on_with(
    shared_data: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    folder = hold(shared_data, tmp_path, lines.append)
    told = "\n".join(lines)
    assert "2 slots: 1 CPU per worker; the cluster has 2 CPU" in told, told
    assert "done: " in told and f"submit {folder}" in told, told
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    best = [sys.executable, "-m", "sweeps", "best", str(folder), "--json"]
    board = json.loads(subprocess.run(best, check=True, capture_output=True, text=True).stdout)
    assert [trial["status"] for trial in board["trials"]] == ["complete"] * 3
    for trial in board["trials"]:
        steps = [each["step"] for each in trial["evaluations"]]
        assert len(steps) == 30 and steps == sorted(set(steps)), steps
    assert board["winner"] is not None
