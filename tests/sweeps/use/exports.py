"""What exports of every family and method give when they are loaded again, beside what was reported.

    .venv/bin/python -m tests.sweeps.use.exports              # of all families, in about half an hour
    .venv/bin/python -m tests.sweeps.use.exports gpt2 t5      # of some

Families and methods are those of docs/architectures.md; the models are drawn, at the size that a rehearsal gives them, with
the tokenizer of the zoo whose special tokens are theirs. Every checkpoint is trained for a few steps, exported in all ways
that there are, and loaded by the exports' own code in one process that does nothing else. Prints a table for docs/export.md,
and ends with 1 where something was not what was reported.
"""

import math
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sweeps.use.export
from sweeps.reporting.verify import LOW_PRECISION_TOLERANCE, TOLERANCE
from sweeps.use.export import export
from sweeps.use.export_formats import Request
from tests.sweeps.use.tiny_sweep import tiny_sweep
from tests.trainables import architectures, zoo
from trainables.errors import InputError, NotExported
from trainables.evaluation.record import Score
from trainables.evaluation.reloaded import Rows, measured
from trainables.models.files import quiet
from trainables.rehearsal import miniature
from trainables.tasks import TASKS

FAMILIES = architectures.FAMILIES
METHODS = architectures.METHODS | {
    "dora": {"method": "lora", "use_dora": True},
    "experts": {"method": "lora", "target_parameters": ["gate_up_proj", "down_proj"]},
}
EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v3")  # families with fused ones
RATES = {"full": 1e-3, "partial": 1e-3}  # of learning; of others 2e-2


@dataclass(frozen=True)
class Way:
    """A way to export, and how far the loss may then drift."""

    name: str
    request: Request
    limit: float = TOLERANCE


WHOLE = Way("whole", Request(format="transformers"))
MERGED = Way("merged", Request(merge=True))
ADAPTER = Way("adapter", Request(format="peft"))
DEQUANTISED = Way("merged, dequantised", Request(merge=True))
FULL = Way(  # another model than was measured
    "merged, full base", Request(merge=True, merge_onto="full", limit=0.2), 0.2
)
QUANTISED = Way("adapter, quantised base", Request(format="peft"), LOW_PRECISION_TOLERANCE)
WAYS = (WHOLE, MERGED, ADAPTER, DEQUANTISED, FULL, QUANTISED)


def ways(method: str) -> tuple[Way, ...]:
    """Those that there are for what it trains."""
    match METHODS[method]["method"]:
        case "full" | "partial":
            return (WHOLE,)
        case "qlora":
            return DEQUANTISED, FULL, QUANTISED
        case "prompt" | "prefix":
            return (ADAPTER,)
        case "adapter":  # its format is this project's own
            return ()
    return MERGED, ADAPTER


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of one way to export one checkpoint."""

    method: str
    way: Way
    drift: float = math.inf
    """Relative to the loss that was reported."""
    problem: str | None = None

    def __str__(self) -> str:
        words = self.problem or f"drift {self.drift:+.2g}, limit {self.way.limit:g}"
        return f"{self.method}, {self.way.name}: {words}"

    @property
    def holds(self) -> bool:
        return self.problem is None and abs(self.drift) <= self.way.limit


def loaded(code: Sequence[str], rows: Rows) -> Score:
    """What `rows` give the model that `code` loads, in this process: one of its own takes seconds to import."""
    names: dict[str, Any] = {}
    exec("\n".join(code), names)
    found = measured(
        names["model"], TASKS[rows.task], rows.open(), rows.pad_token_id, torch.device("cpu")
    )
    return Score(loss=found.loss, metrics=found.metrics(TASKS[rows.task]))


def drawn_family(name: str, task: str, folder: Path) -> Path:
    """A small model of drawn weights in `folder`, without a head for this task's labels."""

    def works(model: Any) -> None:
        ids = torch.arange(8, 24).reshape(2, 8)
        ids[:, -1] = architectures.END
        more = {"labels": ids} if task == "seq2seq" else {}
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **more)

    model, size = miniature.draw(FAMILIES[name].config(), TASKS[task].auto_class, False, works)
    assert model is not None, f"{name} cannot be made small: {size}"
    model.save_pretrained(folder)
    zoo.tokenizer("t5").save_pretrained(folder)
    return folder


def checkpoint(folder: Path, task: str, model: Path, method: str) -> Path:
    """The folder of a sweep whose winner the method trained."""
    options = {"learning_rate": RATES.get(method, 2e-2), **METHODS[method]}
    return tiny_sweep(folder, task, model, options.pop("method"), **options)


def exports(sweep: Path, method: str, out: Path) -> Iterator[Found]:
    """Of all ways that there are."""
    for way in ways(method):
        try:
            request = way.request
            (only,) = export(str(sweep), str(out / way.name), None, request).measured
            yield Found(method=method, way=way, drift=only.drift)
        except (InputError, NotExported) as error:
            yield Found(method=method, way=way, problem=str(error))


def trained_by(name: str, task: str) -> Iterator[str]:
    """The methods that train a family, by docs/architectures.md; of DoRA as of LoRA, of experts where there are some."""
    lines = architectures.DOCUMENT.read_text(encoding="utf-8").splitlines()
    (line,) = (each for each in lines if f"| `{name}` | {task} |" in each)
    signs = line.strip("| ").split(" | ")[-len(architectures.METHODS) :]
    for method, sign in zip(architectures.METHODS, signs, strict=True):
        if sign != architectures.REFUSED:
            yield method
    yield "dora"
    if name in EXPERTS:
        yield "experts"


def of_family(name: str, task: str) -> Iterator[Found]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = drawn_family(name, task, folder / "model")
        for method in trained_by(name, task):
            sweep = checkpoint(folder / method, task, model, method)
            yield from exports(sweep, method, folder / method)


def line(name: str, task: str, found: Sequence[Found]) -> str:
    """A family's line of the table: the worst drift of every way, and of which method it is."""
    cells = []
    for way in WAYS:
        of_way = [each for each in found if each.way is way]
        worst = max(of_way, key=lambda each: abs(each.drift), default=None)
        cells.append("" if worst is None else f"{abs(worst.drift):.1e} ({worst.method})")
    return f"| `{name}` | {task} | {' | '.join(cells)} |"


def main(names: Sequence[str]) -> int:
    quiet()
    torch.set_num_threads(1)
    failed: list[Found] = []
    print(f"| architecture | task | {' | '.join(way.name for way in WAYS)} |")
    print(f"|---|---|{'---|' * len(WAYS)}")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=quiet) as fresh:

        def score(code: Sequence[str], rows: Rows) -> Score:
            try:
                return fresh.submit(loaded, code, rows).result()
            except Exception as error:  # whatever the libraries raise
                raise NotExported(f"{type(error).__name__}: {error}") from error

        sweeps.use.export.score_in_fresh_process = score
        for name in names or FAMILIES:
            for task in FAMILIES[name].tasks:
                found = list(of_family(name, task))
                print(line(name, task, found), flush=True)
                failed += [each for each in found if not each.holds]
                for each in found:
                    if not each.holds:
                        print(f"{name} ({task}), {each}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
