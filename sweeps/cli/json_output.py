"""`--json`: what a command found, as one JSON object on stdout and nothing beside it. Its schema is
what `python -m sweeps schema NAME` prints.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated

import typer

from trainables.storage.records import schema_of, to_json

AsJson = Annotated[bool, typer.Option("--json", help="print what was found as JSON")]

RESULTS: Mapping[str, str] = {
    "board": "sweeps.ledger.leaderboard:Leaderboard",
    "check": "sweeps.run.plan:Plan",
    "ctl": "sweeps.ledger.control:Steered",
    "compare": "sweeps.reporting.compare:Compared",
    "samples": "sweeps.reporting.samples:Samples",
    "verify": "sweeps.reporting.verify:Verified",
    "report": "sweeps.reporting.publish:Published",
    "pick": "sweeps.use.pick:Picked",
    "export": "sweeps.use.export:Exported",
    "predict": "sweeps.use.predict:Counted",
    "gate": "sweeps.use.verdict:Decided",
    "monitor": "sweeps.use.monitor:Monitored",
    "evaluate": "sweeps.use.evaluate:Evaluated",
    "diagnose": "sweeps.selection.diagnose:Diagnosed",
    "submit": "cluster.submit:JobOutcome",
    "status": "sweeps.run.submitted:Submitted",
    "cancel": "sweeps.run.submitted:Submitted",
}
"""Where the record of each result is; that of `run`, `resume` and `best` is the board."""


def print_json(record: object) -> None:
    print(json.dumps(to_json(record), indent=1, ensure_ascii=False, allow_nan=False))


def result_schema(name: str) -> dict[str, object]:
    """Of one of RESULTS."""
    module, _, kind = RESULTS[name].partition(":")
    return schema_of(getattr(import_module(module), kind))
