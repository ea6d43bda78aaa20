"""Sweeps for agents, by the Model Context Protocol (https://modelcontextprotocol.io): what there is
can be read, and nothing changed.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

from cluster import ClusterError
from search_spaces import SpaceError
from sweeps.config.loading import load
from sweeps.ledger.leaderboard import Leaderboard
from sweeps.ledger.opening import open_sweep
from sweeps.reporting.leaderboard import leaderboard
from trainables.errors import InputError
from trainables.storage.records import to_json
from trainables.storage.store import Store

WRONG = (InputError, SpaceError, ClusterError, OSError)
READ_ONLY = ToolAnnotations(read_only_hint=True)
INSTRUCTIONS = (
    "Hyperparameter sweeps of fine-tuning. What won and why is the sweep's own choice, by"
    " validation loss or the metric of its file: report it, and choose no other checkpoint. Sweeps"
    " are run and resumed with `python -m sweeps` in a shell."
)


@dataclass(frozen=True, kw_only=True)
class Sweeps:
    """Those that lie below one folder or URL."""

    storage: str

    def list_sweeps(self) -> dict[str, Any]:
        """Name, task, base model and status of every sweep."""
        with _told():
            store = Store(self.storage)
            found = [name for name in store.folders() if store.exists(f"{name}/sweep.yaml")]
            return {"storage": self.storage, "sweeps": [self._listed(name) for name in found]}

    def board(self, sweep: str, trials: int = 20) -> dict[str, Any]:
        """Winner and reason, baselines, test, whether fine-tuning was worth it, and the first so
        many trials in their order, without their curves.
        """
        with _told():
            found = to_json(self._board(sweep))
        rows = found["trials"]
        assert isinstance(rows, list)
        shown = [_without(row, "evaluations") for row in rows[:trials]]
        return {**found, "trials": shown, "trials_in_all": len(rows)}

    def trial(self, sweep: str, trial: str) -> dict[str, Any]:
        """One trial: configuration, verdict, and each of its evaluations."""
        with _told():
            rows = {row.id: row for row in self._board(sweep).trials}
            if trial not in rows:
                raise InputError(f"trial: must be one of {', '.join(rows)}, got {trial!r}")
            return to_json(rows[trial])

    def explain(self, sweep: str, trial: str | None = None) -> str:
        """Why the winner has won, or why a trial has not, in words."""
        with _told():
            board = self._board(sweep)
            return _of_winner(board) if trial is None else _of_trial(board, trial)

    def doctor(self, file: str) -> dict[str, Any]:
        """What is odd about the data of a sweep file, and the plan of its sweep: `check`, which
        reads all rows, fetches the model where it is not there, and tries every method at a size of
        seconds. Give it before a sweep is run.
        """
        from sweeps.run.plan import make_plan

        with _told():
            config = load(Path(file))
            if config.model.trust_remote_code:
                raise InputError(f"{file}: model.trust_remote_code: `check` it in a shell")
            return to_json(make_plan(config))

    def _listed(self, name: str) -> dict[str, Any]:
        try:
            ledger, config = open_sweep(f"{self.storage}/{name}")
            return {
                "sweep": name,
                "task": config.task,
                "model": config.model.words,
                "status": ledger.status()[0],
                "has_winner": ledger.store.exists("winner/winner.json"),
            }
        except WRONG as error:  # one that is damaged must not hide the others
            return {"sweep": name, "error": " ".join(str(error).split())}

    def _board(self, sweep: str) -> Leaderboard:
        if sweep in ("", ".", "..") or "/" in sweep or "\\" in sweep:
            raise InputError(f"sweep: must be a name that list_sweeps gives, got {sweep!r}")
        ledger, config = open_sweep(f"{self.storage}/{sweep}")
        return leaderboard(ledger.load(), config.name, config.selection)


def server(storage: str) -> MCPServer:
    """Of the sweeps below `storage`, a folder or a URL. Raises InputError for a folder that is not
    there.
    """
    if (local := Store(storage).local) is not None and not local.is_dir():
        raise InputError(f"STORAGE: {storage}: no such folder")
    sweeps = Sweeps(storage=storage)
    found = MCPServer("sweeps", instructions=INSTRUCTIONS)
    for tool in (sweeps.list_sweeps, sweeps.board, sweeps.trial, sweeps.explain):
        found.tool(annotations=READ_ONLY)(tool)
    found.tool()(sweeps.doctor)  # runs what the sweep file names
    return found


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong reaches the agent in one line; stdout belongs to the protocol."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except WRONG as error:
        raise ToolError(" ".join(str(error).split())) from None


def _of_winner(board: Leaderboard) -> str:
    if board.winner is None:
        return board.reason or "There is no winner yet."
    told = [f"{board.winner.trial}: {board.winner.reason}"]
    if board.worth is not None:
        told.append(board.worth.words)
    return "\n".join(told)


def _of_trial(board: Leaderboard, trial: str) -> str:
    rows = {row.trial.id: row for row in board.rows}
    if trial not in rows:
        raise InputError(f"trial: must be one of {', '.join(rows)}, got {trial!r}")
    row = rows[trial]
    said = [
        f"{trial} is {row.trial.status}" + _because(row.trial.status_reason),
        f"its verdict is {row.trial.verdict}" + _because(row.trial.verdict_reason),
    ]
    if row.wins:
        said.append("it has won" + _because(board.winner.reason if board.winner else None))
    elif row.excluded:
        said.append(f"it may not win: {row.excluded}")
    elif row.rank is not None:
        tied = ", within one standard error of the best" if row.tied else ""
        said.append(f"it is number {row.rank}{tied}")
    return "; ".join(said)


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def _without(row: object, key: str) -> dict[str, Any]:
    assert isinstance(row, dict), "a trial is an object"
    return {name: value for name, value in row.items() if name != key}
