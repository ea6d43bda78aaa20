"""A sweep whose processes are killed at random, held against one that nobody disturbs.

.venv/bin/python -m tests.sweeps.run.chaos --folder /tmp/chaos --trials 48 --minutes 10 --seed 0
"""

import argparse
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.sweeps.conftest import ROOT
from tests.sweeps.run.failing import Running, folder_of

# how often each is killed, of every 34 kills
BAG = {"worker": 14, "coordinator": 10, "controller": 6, "driver": 2, "raylet": 1, "gcs": 1}
PAUSE_S = (2.0, 12.0)  # between kills
# of which a trial is taken to be the cause where it dies again and again with no evaluation in
# between: one is killed only when something has been evaluated since the last
BLAMED = ("worker", "controller")
# of an evaluation and of an outcome: in which attempt it came, and when
NOT_COMPARED = ("attempt", "folder", "ended")

DATA = ROOT.parent / "shared" / "data"
FILE = """
name: chaos
task: causal_lm
storage: {storage}
model: {{name: {data}/models/stories260K}}
data: {{train: {data}/text/tinyshakespeare.txt, validation: 0.004, max_length: 64, rows: 128}}
rehearse: false
train: {{method: lora, batch_size: 8, evaluate_every: 32, probe_rows: 16, epochs: 1}}
cluster: {{slots: 2, trials_per_slot: 1, resources_per_worker: {{CPU: 1}}}}
tracking: {{wandb: "off"}}
selection: {{baselines: false, general_text: {general}}}
search:
  trials: {trials}
  sampler: random
  scheduler: none
  early_stopping: {{overfit: false, diverged: false}}
  space:
    learning_rate: {{log_uniform: [1.0e-4, 1.0e-2]}}
    rank: {{choice: [2, 4, 8]}}
    alpha: 2 * rank
"""


def write_file(folder: Path, trials: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    general, file = folder / "general.txt", folder / "chaos.yaml"
    general.write_text("The manual says what each word of the language does. " * 40)
    file.write_text(FILE.format(storage=folder / "runs", data=DATA, general=general, trials=trials))
    return file


@dataclass(kw_only=True)
class Kill:
    kind: str
    at: float  # seconds since the epoch, as of files


@dataclass(kw_only=True)
class Run:
    """One sweep, from its start through every `resume` to its end."""

    folder: Path
    seconds: float = 0.0
    kills: list[Kill] = field(default_factory=list)
    resumed: int = 0


def victims(driver: psutil.Process) -> dict[str, list[psutil.Process]]:
    """What can be killed now, by its kind."""
    found: dict[str, list[psutil.Process]] = {kind: [] for kind in BAG}
    found["driver"] = [driver]
    with suppress(psutil.NoSuchProcess):
        for child in driver.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if (kind := _kind(child)) is not None:
                    found[kind].append(child)
    return found


def _kind(process: psutil.Process) -> str | None:
    names = {"gcs_server": "gcs", "raylet": "raylet"}
    if (name := process.name()) in names:
        return names[name]
    title = " ".join(process.cmdline())
    titles = {"Slot": "worker", "TrainController": "controller", "Coordinator": "coordinator"}
    return next((kind for word, kind in titles.items() if title.startswith(f"ray::{word}")), None)


def shuffled(drawn: random.Random) -> Iterator[str]:
    """Kinds, each as often as the bag has it."""
    while True:
        bag = [kind for kind, count in BAG.items() for _ in range(count)]
        drawn.shuffle(bag)
        yield from bag


class Chaos:
    """Kills of a seed: what is killed next, and when."""

    def __init__(self, seed: int, *, seconds: float, most: int | None = None) -> None:
        """seconds: for how long from the first kill; most: kills."""
        self._drawn = random.Random(seed)
        self._kinds, self._next = shuffled(self._drawn), 0.0
        self._seconds, self._most, self._began = seconds, most, 0.0
        self.kills: list[Kill] = []
        self._evaluated = 0  # when the last of BLAMED was killed

    def act(self, process: Running, evaluated: int) -> None:
        """Kill something, when it is time for it. evaluated: how much has been so far."""
        now = time.monotonic()
        self._began = self._began or now
        ended = now - self._began > self._seconds
        if ended or now < self._next or len(self.kills) == self._most:
            return
        found = victims(psutil.Process(process.process.pid))
        if not found["worker"]:  # nothing trains, so there is nothing to disturb
            return
        kind = next(self._kinds)
        too_soon = kind in BLAMED and evaluated == self._evaluated
        if (there := found[kind]) and not too_soon:
            self._evaluated = evaluated if kind in BLAMED else self._evaluated
            with suppress(psutil.NoSuchProcess):
                self._drawn.choice(there).kill()
                self.kills.append(Kill(kind=kind, at=time.time()))
                print(f"{time.strftime('%H:%M:%S')} killed: {kind}", flush=True)
        self._next = time.monotonic() + self._drawn.uniform(*PAUSE_S)


def nothing(process: Running, evaluated: int) -> None:
    """Of a sweep that nobody disturbs."""


def run(file: Path, tmp: Path, act: Callable[[Running, int], None] = nothing) -> Run:
    """A sweep to its end. act: is called again and again once something has been evaluated."""
    storage, began, ran = file.parent / "runs", time.monotonic(), 0
    command: tuple[object, ...] = ("run", file)
    while True:
        process = Running(tmp, file.parent / f"log-{ran}", *command)
        try:
            while process.process.poll() is None:
                if evaluated := len([*storage.glob("*/trials/*/*/*/evaluation.json")]):
                    act(process, evaluated)
                time.sleep(0.1)
            folder = folder_of(storage)
            assert folder is not None, process.log
            if process.process.returncode == 0:
                process.gone(within_s=120)
                return Run(folder=folder, seconds=time.monotonic() - began, resumed=ran)
            assert "Traceback" not in process.log, process.log
            # ended by a kill, or in order, and then it says how to go on
            assert process.process.returncode in (-9, 1), process.log
        finally:
            if process.process.poll() is None:
                process.kill()
        command, ran = ("resume", folder), ran + 1


def results(folder: Path) -> dict[str, Any]:
    """All that must be the same, however often the sweep was disturbed."""
    trials = {}
    for trial in sorted(folder.glob("trials/*")):
        trials[trial.name] = {
            "params": _read(trial / "trial.json")["params"],
            "outcome": _comparable(_read(trial / "outcome.json")),
            "evaluations": {
                path.parent.name: _comparable(_read(path))
                for path in sorted(trial.glob("*/*/evaluation.json"))
            },
            "checkpoints": sorted(each.parent.name for each in trial.glob("*/*/checkpoint")),
        }
    return trials


def _comparable(written: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in written.items() if key not in NOT_COMPARED}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def weights(folder: Path) -> dict[str, bytes]:
    """Of all checkpoints that are kept, by trial and step."""
    return {
        f"{path.parents[3].name}/{path.parents[1].name}/{path.name}": path.read_bytes()
        for path in sorted(folder.glob("trials/*/*/*/checkpoint/*.safetensors"))
    }


def twice(folder: Path) -> int:
    """Evaluations of a step that was evaluated before."""
    steps = Counter(
        (path.parents[2].name, path.parent.name)
        for path in folder.glob("trials/*/*/*/evaluation.json")
    )
    return sum(count - 1 for count in steps.values())


def lost_work(folder: Path, kills: list[Kill]) -> list[float]:
    """Seconds, of each attempt that was cut short: from its last evaluation, or its beginning, to
    the kill that another attempt came after.
    """
    found = []
    for trial in folder.glob("trials/*"):
        attempts = sorted(trial.glob("attempt-*"), key=lambda path: int(path.name[8:]))
        for one, following in zip(attempts, attempts[1:], strict=False):
            written = [one / "attempt.json", *one.glob("step-*/evaluation.json")]
            last = max(os.path.getmtime(path) for path in written)
            until = os.path.getmtime(following / "attempt.json")
            between = [kill.at for kill in kills if last <= kill.at <= until]
            found.append(min(between, default=last) - last)
    return found


def differences(one: Run, other: Run) -> list[str]:
    ours, theirs = results(one.folder), results(other.folder)
    found = [f"{name}: only in one" for name in ours.keys() ^ theirs.keys()]
    for name in sorted(ours.keys() & theirs.keys()):
        found += [
            f"{name} {what}: {ours[name][what]} / {theirs[name][what]}"
            for what in ours[name]
            if ours[name][what] != theirs[name][what]
        ]
    kept, there = weights(one.folder), weights(other.folder)
    if kept != there:
        unlike = [name for name in kept.keys() | there.keys() if kept.get(name) != there.get(name)]
        found.append(f"weights: {sorted(unlike)[:5]}")
    winners = [_winner(each.folder) for each in (one, other)]
    return found + ([] if winners[0] == winners[1] else [f"winner: {winners}"])


def _winner(folder: Path) -> dict[str, Any]:
    told = _read(folder / "winner" / "winner.json")
    return {name: told.get(name) for name in ("trial", "step", "val_loss", "metrics", "params")}


def table(run: Run, undisturbed: Run, found: list[str]) -> str:
    """What came of it, as the documents have it."""
    ours, theirs = results(run.folder), results(undisturbed.folder)
    count = sum(len(each["evaluations"]) for each in ours.values())
    should = sum(len(each["evaluations"]) for each in theirs.values())
    work = lost_work(run.folder, run.kills)
    kinds = Counter(kill.kind for kill in run.kills)
    span = run.kills[-1].at - run.kills[0].at if run.kills else 0
    rows = {
        "kills": f"{len(run.kills)} in {span:.0f} s:"
        f" {', '.join(f'{kinds[kind]} {kind}' for kind in BAG)}",
        "`resume`": str(run.resumed),
        "trials": f"{len(ours)} of {len(theirs)}",
        "evaluations": f"{count} of {should}",
        "checkpoints kept": f"{sum(len(each['checkpoints']) for each in ours.values())}",
        "lost": str(len(theirs.keys() - ours.keys()) + max(0, should - count)),
        "run twice": str(twice(run.folder)),
        "results changed": str(len(found)),
        "attempts cut short": f"{len(work)}, {sum(work):.0f} s of work lost",
        "took": f"{run.seconds:.0f} s, undisturbed {undisturbed.seconds:.0f} s",
    }
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="that does not exist yet")
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chaos = Chaos(given.seed, seconds=given.minutes * 60)
    disturbed = run(write_file(given.folder / "chaos", given.trials), given.folder, chaos.act)
    disturbed.kills = chaos.kills
    undisturbed = run(write_file(given.folder / "undisturbed", given.trials), given.folder)
    found = differences(disturbed, undisturbed)
    print("\n".join(found))
    print(table(disturbed, undisturbed, found))
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
