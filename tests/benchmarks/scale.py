"""What a sweep takes of time, memory and disk as its trials become more: nothing may grow faster than they do.

    .venv/bin/python tests/benchmarks/scale.py --trials 100 1000 10000 --at-once 1000

Sweeps whose slots train nothing (tests/standing_in.py): losses come from a formula, at once, and Tune, Optuna, the
coordinator, the ledger and all that writes and reads a sweep's folder are what they always are. So a trial's time is
what the platform adds to it, on a machine that has nothing else to do than that.

Each number is of a whole sweep; `per trial` tells what became of the number of one trial from the size before: 1.00
grows as the trials do, less grows slower. `at once`: no trial is evaluated before all are on their slots.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from arms import MEMORY, ROOT, environment, machine, run_arm

sys.path.insert(0, str(ROOT))

from sweeps.reporting.page_server import PageServer
from sweeps.reporting.watched import Watched
from tests.standing_in import ON_BOARD, write_sweep

SWEEPS = "from tests.standing_in import main; main()"
TIMEOUT_S = 4 * 3600.0
SLOTS, SHARE = 4, 8
FASTER = 1.1  # times the number of trials: what grows more is named
MB = 1e6

Numbers = Mapping[str, float]
OF_A_TRIAL = "a trial after the first tenth, ms"
LATE = "one of the last tenth, times one of the second"
NOT_OF_ALL = (OF_A_TRIAL, LATE)  # the other numbers are of all trials together


# --- one sweep ---


def measure(work: Path, trials: int, sampler: str, *, at_once: bool = False) -> Numbers:
    """at_once: all trials, on as many slots as hold them."""
    slots = -(-trials // SHARE) if at_once else SLOTS
    more = f"  sampler: {sampler}"
    file = write_sweep(work, trials, slots=slots, share=SHARE, more=more)
    env = environment(work, {ON_BOARD: str(trials)} if at_once else {})
    clock, _ = run_arm(["-c", SWEEPS, "run", str(file)], work / "log", env, TIMEOUT_S)
    (folder,) = (work / "runs").iterdir()
    found = dict(moments(folder))
    held = {"the sweep's process": "standing_in", "the coordinator": "ray::Coordinator"}
    for name, words in held.items():
        found[f"{name}, CPU s"] = clock.cpu(words)
        found[f"{name}, MiB"] = clock.most(words) / 2**20
    found["all processes, MiB"] = clock.peak / 2**20
    for command in ("best", "report"):
        own, found[f"`{command}`, s"] = run_arm(
            ["-m", "sweeps", command, str(folder)], work / command, env
        )
        found[f"`{command}`, CPU s"] = own.cpu(command)
    return found | of_the_page(folder) | of_the_study(folder) | of_the_disk(folder)


def moments(folder: Path) -> Numbers:
    """From when its trials began and ended."""

    def read(name: str, field: str) -> list[float]:
        files = folder.glob(f"trials/*/{name}")
        return sorted(json.loads(file.read_text())[field] for file in files)

    began, ended = read("trial.json", "started"), read("outcome.json", "ended")
    tenth = max(1, len(ended) // 10)  # of which the first has the start of all slots in it
    early, late = ended[2 * tenth - 1] - ended[tenth - 1], ended[-1] - ended[-tenth - 1]
    after_first = (ended[-1] - ended[tenth - 1]) / (len(ended) - tenth)
    concluded = json.loads((folder / "status.json").read_text())["time"]
    return {
        "searching, s": ended[-1] - began[0],
        OF_A_TRIAL: 1000 * after_first,
        LATE: late / early,
        "concluding, s": concluded - ended[-1],
    }


def of_the_page(folder: Path) -> Numbers:
    """As a browser gets it that asks for the first time."""
    began = time.perf_counter()
    server = PageServer(Watched(str(folder)))
    try:
        with urllib.request.urlopen(server.url) as answer:
            page = answer.read()
        took = time.perf_counter() - began
    finally:
        server.close()
    written = (folder / "report.html").stat().st_size
    return {"the page, s": took, "the page, MB": len(page) / MB, "report.html, MB": written / MB}


def of_the_study(folder: Path) -> Numbers:
    """As `resume` opens it."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from sweeps.search.study import STUDY

    began = time.perf_counter()
    storage = JournalStorage(JournalFileBackend(str(folder / STUDY)))
    assert optuna.load_study(study_name=None, storage=storage).trials
    took = time.perf_counter() - began
    return {"reading the study, s": took, "the study, MB": (folder / STUDY).stat().st_size / MB}


def of_the_disk(folder: Path) -> Numbers:
    sizes = [each.lstat().st_size for each in folder.rglob("*") if each.is_file()]
    return {"its folder, MB": sum(sizes) / MB, "its folder, files": len(sizes)}


# --- the table ---


def growth(trials: int, found: Numbers, fewer: int, before: Numbers) -> dict[str, float]:
    """What became of each number of one trial, from `fewer` trials to `trials`."""
    return {
        name: (found[name] / before[name]) * (1.0 if name in NOT_OF_ALL else fewer / trials)
        for name in found
        if name != LATE and before.get(name)
    }


def table(sizes: Mapping[int, Numbers], at_once: Mapping[int, Numbers]) -> str:
    """Markdown, with a column for each size, and one of what one trial takes, times the size before."""
    ordered = sorted(sizes)
    grown = {
        trials: growth(trials, sizes[trials], fewer, sizes[fewer])
        for fewer, trials in zip(ordered, ordered[1:], strict=False)
    }
    names = list(
        dict.fromkeys(name for each in (*sizes.values(), *at_once.values()) for name in each)
    )
    head, lines = ["trials"], {name: [name] for name in names}
    columns: list[tuple[str, Callable[[str], str]]] = []
    for trials in ordered:
        columns.append((f"{trials:,}", lambda name, t=trials: shown(sizes[t].get(name))))
        if trials in grown:
            columns.append(("per trial", lambda name, t=trials: times(grown[t].get(name))))
    for trials in sorted(at_once):
        found = at_once[trials]
        columns.append((f"{trials:,} at once", lambda name, f=found: shown(f.get(name))))
    for title, cell in columns:
        head.append(title)
        for name, cells in lines.items():
            cells.append(cell(name))
    rows = [head, ["---"] * len(head), *lines.values()]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{text}\n\n{verdict(grown)}"


def verdict(grown: Mapping[int, Mapping[str, float]]) -> str:
    faster = [
        f"{name} ({times:.2f} a trial, up to {trials:,})"
        for trials, of_it in grown.items()
        for name, times in of_it.items()
        if times > FASTER
    ]
    return f"Grows faster than the trials: {'; '.join(faster) or 'nothing'}."


def shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--at-once", type=int, nargs="*", default=[1000])
    parser.add_argument("--sampler", choices=["random", "tpe"], default="random")
    parser.add_argument("--keep", type=Path, help="copy the sweeps' folders here")
    given = parser.parse_args(arguments)
    print(f"{machine()}; memory is {MEMORY}, the most of each process", flush=True)
    sizes: dict[int, Numbers] = {}
    at_once: dict[int, Numbers] = {}
    for number in (*given.trials, *given.at_once):
        into = sizes if number in given.trials and number not in sizes else at_once
        work = Path(tempfile.mkdtemp(prefix="scl", dir="/tmp"))  # short: Ray's sockets
        try:
            into[number] = measure(work, number, given.sampler, at_once=into is at_once)
            if given.keep:
                shutil.copytree(work / "runs", given.keep, dirs_exist_ok=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        print(
            json.dumps({f"{number}{' at once' * (into is at_once)}": into[number]}),
            file=sys.stderr,
            flush=True,
        )
    print(f"\n{table(sizes, at_once)}")


if __name__ == "__main__":
    main()
