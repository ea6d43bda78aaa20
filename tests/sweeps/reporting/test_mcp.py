"""The server for agents: what it tells is what the commands tell, it changes nothing, and wrong names come back in one line."""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from mcp import StdioServerParameters
from mcp.client import Client

from sweeps.ledger.folder import Ledger
from sweeps.ledger.opening import open_sweep
from sweeps.reporting.leaderboard import leaderboard
from sweeps.reporting.mcp import server
from trainables.evaluation.record import MeasuredEvaluation
from trainables.storage.checkpoints import CHECKPOINT, begin_attempt, write_evaluation
from trainables.storage.records import to_json

ROOT = Path(__file__).resolve().parents[3]
NAME = "quick-20260101-120000"
SWEEP = """
name: quick
task: classification
model: {name: tiny}
data: {train: rows.csv}
search: {space: {method: lora, learning_rate: {log_uniform: [1e-5, 1e-2]}, batch_size: 8, epochs: 1}, trials: 3}
"""


def trial(ledger: Ledger, name: str, *losses: float) -> None:
    def save(folder: Path) -> None:
        (folder / CHECKPOINT).mkdir()
        (folder / CHECKPOINT / "adapter_model.safetensors").write_bytes(b"weights")

    ledger.begin(name, {"method": "lora", "learning_rate": 1e-3})
    begin_attempt(ledger.store, name)
    for step, loss in enumerate(losses, start=1):
        made = MeasuredEvaluation(
            step=step,
            samples_seen=10 * step,
            epoch=step / 2,
            val_loss=loss,
            probe_loss=loss,
            metrics={"accuracy": 0.5},
            trainable_parameters=100,
            losses=np.array([[loss, 1]] * 4, np.float32),
        )
        ledger.record(name, write_evaluation(ledger.store, name, 1, made, save))
    ledger.finish(name, "complete", None)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    ledger = Ledger(str(tmp_path / NAME))
    ledger.store.write_bytes("sweep.yaml", SWEEP.encode())
    trial(ledger, "t0001", 3.0, 2.0)
    trial(ledger, "t0002", 3.0, 1.0)
    ledger.set_status("finished", 1.0)
    (tmp_path / "no sweep").mkdir()
    return tmp_path


def asked(of, tool: str, **arguments: object):
    """What a tool answers, and whether that is an error."""

    async def call():
        async with Client(of) as client:
            return await client.call_tool(tool, arguments)

    found = asyncio.run(call())
    text = found.content[0].text
    return text if found.is_error or tool == "explain" else json.loads(text), bool(found.is_error)


def test_what_is_told_is_the_board(storage):
    of = server(str(storage))
    listed, _ = asked(of, "list_sweeps")
    (only,) = listed["sweeps"]
    assert (only["sweep"], only["status"], only["task"]) == (NAME, "finished", "classification")
    ledger, config = open_sweep(str(storage / NAME))
    board = to_json(leaderboard(ledger.load(), config.name, config.selection))
    told, _ = asked(of, "board", sweep=NAME, trials=1)
    assert told["winner"] == board["winner"] and told["winner"]["trial"] == "t0002"
    assert [row["id"] for row in told["trials"]] == ["t0002"] and told["trials_in_all"] == 2
    assert asked(of, "trial", sweep=NAME, trial="t0001")[0] == board["trials"][1]
    assert asked(of, "explain", sweep=NAME)[0].startswith(f"t0002: {board['winner']['reason']}")
    assert "number 2" in asked(of, "explain", sweep=NAME, trial="t0001")[0]


def test_a_damaged_sweep_does_not_hide_the_others(storage):
    (storage / "broken").mkdir()
    (storage / "broken" / "sweep.yaml").write_text("name: [")
    listed, _ = asked(server(str(storage)), "list_sweeps")
    assert [row["sweep"] for row in listed["sweeps"]] == ["broken", NAME]
    assert "broken/sweep.yaml: damaged" in listed["sweeps"][0]["error"]


def test_nothing_is_changed_and_every_tool_says_so(storage):
    before = {file: file.stat().st_mtime_ns for file in storage.rglob("*")}
    of = server(str(storage))

    async def tools():
        async with Client(of) as client:
            return (await client.list_tools()).tools

    found = asyncio.run(tools())
    assert {tool.name for tool in found} == {"list_sweeps", "board", "trial", "explain", "doctor"}
    said = {tool.name for tool in found if tool.annotations and tool.annotations.read_only_hint}
    assert said == {tool.name for tool in found} - {"doctor"}
    for tool in ("board", "explain"):
        asked(of, tool, sweep=NAME)
    assert {file: file.stat().st_mtime_ns for file in storage.rglob("*")} == before


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("board", {"sweep": "other"}, "no such folder"),
        ("board", {"sweep": f"../{NAME}"}, "must be a name that list_sweeps gives"),
        ("trial", {"sweep": NAME, "trial": "t9"}, "must be one of t0002, t0001, got 't9'"),
        ("doctor", {"file": "none.yaml"}, "none.yaml: no such file"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(storage, tool, arguments, said):
    text, is_error = asked(server(str(storage)), tool, **arguments)
    assert is_error and said in text and len(text.splitlines()) == 1


def test_as_a_process(storage):
    of = StdioServerParameters(
        command=sys.executable, args=["-m", "sweeps", "mcp", str(storage)], cwd=ROOT
    )
    assert asked(of, "board", sweep=NAME)[0]["winner"]["trial"] == "t0002"
