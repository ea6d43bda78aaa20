"""Score a model that is loaded again in a fresh process, by the code that its user would write."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainables.errors import NotExported
from trainables.evaluation.record import Score
from trainables.storage.records import from_json, to_json
from trainables.tasks import TASKS, Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from trainables.data.arrow import Split
    from trainables.engine.scoring import RowResults

MAX_TOKENS = 16384  # of a micro-batch
ROOT = Path(__file__).resolve().parents[2]  # where this project is imported from
MARK = "score: "  # before what a process answers with; libraries print, too


@dataclass(frozen=True, kw_only=True)
class Rows:
    """On what a model is scored."""

    task: str
    data: str
    """A folder of prepared data."""
    split: str = "validation"
    pad_token_id: int
    reference: str | None = None
    """File of what a reference gives pairs, float64 [N, 2]; None of rows that are no pairs."""

    def open(self) -> "Split":
        from trainables.data.prepare import open_split

        split = open_split(Path(self.data), self.split)
        if self.reference is None:
            return split
        return split.beside(reference=np.load(self.reference))


def score_in_fresh_process(code: Sequence[str], rows: Rows) -> Score:
    """What `rows` give the `model` that the Python in `code` loads. Raises NotExported."""
    answer = [
        "from trainables.evaluation.reloaded import print_score",
        f"print_score(model, {json.dumps(to_json(rows))!r})",
    ]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*code, *answer])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise NotExported(last[:500])
    return from_json(Score, json.loads(found[-1].removeprefix(MARK)), "a fresh process")


def print_score(model: "PreTrainedModel", rows: str) -> None:
    """Score `model` on `rows` (the JSON of `Rows`), and print what comes of it."""
    import torch

    on = from_json(Rows, json.loads(rows), "rows")
    device = next(model.parameters()).device
    # what is quantised has its place
    if torch.cuda.is_available() and getattr(model, "quantization_method", None) is None:
        device = torch.device("cuda")
        model.to(device)  # pyright: ignore[reportArgumentType]  its stub lacks self
    task = TASKS[on.task]
    found = measured(model, task, on.open(), on.pad_token_id, device)
    score = Score(loss=found.loss, metrics=found.metrics(task))
    print(MARK + json.dumps(to_json(score)), flush=True)


def measured(
    model: "PreTrainedModel",
    task: Task,
    split: "Split",
    pad_token_id: int,
    device: "torch.device",
    rows: np.ndarray | None = None,
) -> "RowResults":
    """What `model` makes of each of `rows` of `split`; None: of all."""
    from trainables.engine.scoring import evaluate_model

    chosen = np.arange(len(split)) if rows is None else rows
    return evaluate_model(model, task, split, chosen, pad_token_id, MAX_TOKENS, device)
