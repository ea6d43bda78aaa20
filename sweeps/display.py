"""What a person sees while a sweep runs: a live table in a terminal, plain lines everywhere else."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeps.leaderboard import leaderboard as ranked
from sweeps.selection import Curve, SelectionConfig, best_point

LOST = ("forgetting", "kl")  # what is measured of a language model where it has a limit
BEHIND = "above the best (95%)"
NO_INTERVAL = "too few for an interval"
WIDE = 150  # columns that the whole leaderboard needs
LIVE = 100  # columns that the whole live table needs
MOST_CLASSES = 12  # of the winner's, in a terminal
STATES = {"running": "yellow", "complete": "green", "pruned": "cyan", "failed": "red"}


def format_params(params: Mapping[str, Any]) -> str:
    """One configuration in one line: the method first, rates in short."""
    rest = [f"{name}={_short(value)}" for name, value in params.items() if name != "method"]
    return " ".join([str(params.get("method", "")), *rest]).strip()


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def leaderboard(board: Mapping[str, Any], width: int = WIDE) -> Table:
    """The trials of a board in their order (sweeps.leaderboard).

    Trials that are tied with the winner have a `=` before them. Below WIDE columns only what decides is shown: id, loss,
    first metric, verdict, configuration.
    """
    metrics = sorted({name for trial in board["trials"] for e in trial["evaluations"] for name in e["metrics"]})
    compared = [BEHIND] if any(trial.get("difference") for trial in board["trials"]) else []
    lost = [name for name in LOST if any(e.get(name) is not None for t in board["trials"] for e in t["evaluations"])]
    numbers = ["val loss", *compared, "probe", *metrics, *lost, "epoch"]
    columns = ["", "trial", *numbers, "state", "verdict", "configuration"]
    if width < WIDE:
        columns = ["", "trial", "val loss", *metrics[:1], "verdict", "configuration"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=name != "configuration")

    def add(cells: dict[str, Any], style: str | None) -> None:
        table.add_row(*(cells.get(name, "-") for name in columns), style=style)

    for row in ranked(board):
        trial, best = row.trial, row.shown
        cells: dict[str, Any] = {
            "": "*" if row.wins else "=" if row.tied else "",
            BEHIND: interval(trial.get("difference")),
            "trial": trial["id"],
            "state": Text(trial["status"], style=STATES[trial["status"]]),
            "verdict": verdict_words(trial),
            "configuration": Text(format_params(trial["params"]) + _again(trial)),
        }
        if best is not None:
            cells |= {name: _number(best["metrics"].get(name)) for name in metrics}
            cells |= {name: _number(best.get(name)) for name in lost}
            cells |= {
                "val loss": _number(best["val_loss"]),
                "probe": _number(best["probe_loss"]),
                "epoch": f"{best['epoch']:g}",
            }
        add(cells, "bold" if row.wins else None)
    for name, baseline in board["baselines"].items():
        words = baseline.get("words", name)
        if name == "prior":
            words = f"always {baseline['class']}, at train's label shares"
        words += f" ({cost})" if (cost := baseline_cost(baseline)) else ""
        cells = {name: _number(baseline["metrics"].get(name)) for name in metrics}
        cells[BEHIND] = interval(baseline.get("difference"))
        cells |= {"val loss": _number(baseline["val_loss"]), "probe": _number(baseline.get("probe_loss"))}
        add(
            {**cells, "": "", "state": "", "epoch": "0", "verdict": "baseline", "configuration": Text(words)},
            "dim",
        )
    return table


class Display:
    """Prints events as lines; in a terminal keeps a table of the running sweep below them."""

    def __init__(
        self, console: Console, *, name: str, trials: int, selection: SelectionConfig, time_budget_s: float | None
    ) -> None:
        self.console = console
        self._name, self._trials, self._selection, self._budget = name, trials, selection, time_budget_s
        self._began = time.monotonic()
        self._live: Live | None = None
        self._done_before: float | None = None

    def say(self, line: str) -> None:
        """One event; with the time since the start where lines are all there is."""
        if self._live is not None:
            self._live.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            self.console.print(
                f"[{duration(time.monotonic() - self._began):>6}] {line}", highlight=False, markup=False, soft_wrap=True
            )

    def start(self) -> None:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def refresh(self, curves: list[Curve], snapshot: Mapping[str, Any], totals: Callable[[Curve], int]) -> None:
        """Draw the table anew. `totals(curve)`: the samples that a trial sees when it trains to its end."""
        if self._live is None:
            return
        narrow = self.console.width < LIVE
        columns = ["trial", "state", "best val loss", "progress", "rows/s", "slot", "configuration"]
        if narrow:  # what is left of the width is the configuration's
            columns = ["trial", "val loss", "progress", "slot", "configuration"]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            table.add_column(
                name,
                no_wrap=name != "configuration",
                justify="right" if name in ("val loss", "best val loss", "rows/s") else "left",
            )
        done = 0.0
        slots = {slot.removeprefix(f"{self._name}-"): trials for slot, trials in snapshot["slots"].items()}
        where = {trial: slot for slot, trials in slots.items() for trial in trials}
        for curve in curves:
            progress = snapshot["progress"].get(curve.id, {"samples_seen": 0, "samples_per_s": 0.0})
            share = 1.0 if curve.status != "running" else min(1.0, progress["samples_seen"] / max(1, totals(curve)))
            done += share
            best = best_point(curve, self._selection)
            if curve.status == "running" or len(curves) <= 20 or curve is curves[-1]:
                bar = "█" * round(10 * share) + "·" * (10 - round(10 * share))
                runs, state = curve.status == "running", Text(curve.status, style=STATES[curve.status])
                cells = {
                    "trial": curve.id,
                    "state": state,
                    "best val loss": _number(best.val_loss) if best else "-",
                    "progress": f"{bar} {share:4.0%}" if runs else state if narrow else "",
                    "rows/s": f"{progress['samples_per_s']:.0f}" if runs and progress["samples_per_s"] else "",
                    "slot": where.get(curve.id, "waits") if runs else "",
                    "configuration": Text(format_params(curve.params)),
                }
                cells["val loss"] = cells["best val loss"]
                table.add_row(*(cells[name] for name in columns))
        elapsed = time.monotonic() - self._began
        self._done_before = done if self._done_before is None else self._done_before  # by an earlier process
        fresh = done - self._done_before
        left = elapsed * (self._trials - done) / fresh if fresh > 0.2 else None
        if self._budget is not None:
            left = max(0.0, self._budget - elapsed) if left is None else min(left, max(0.0, self._budget - elapsed))
        finished = sum(curve.status != "running" for curve in curves)
        rest = f"about {duration(left)} left" if left is not None else "time left not known yet"
        head = f"{self._name}: {finished} of {self._trials} trials ended, {duration(elapsed)} so far, {rest}"
        self._live.update(Group(Text(head, style="bold"), table), refresh=True)


def verdict_words(trial: Mapping[str, Any]) -> str:
    """The verdict of the checkpoint that stands for a trial, and what befell the trial after it."""
    later = f", later {trial['verdict_later']}" if trial.get("verdict_later") else ""
    return f"{trial['verdict'] or ''}{later}"


def expected_words(expected: Mapping[str, Any]) -> str:
    """What new seeds of the winner's configuration say of it."""
    seeds = len(expected["seeds"])
    spread = "" if expected["spread"] is None else f" ± {expected['spread']:.4f}"
    of_failed = f"; {len(expected['failed'])} more gave no checkpoint that may win" if expected["failed"] else ""
    return f"expected {expected['mean']:.4f}{spread}, the mean of {seeds} new seed{'s' if seeds > 1 else ''}{of_failed}"


def test_words(test: Mapping[str, Any]) -> str:
    """What the sealed test split gave the winner."""
    score = test["scores"]["winner"]
    words = (
        f"loss {score['loss']:.4f} ({_interval_words(score)}) on {test['split']['rows']} rows, "
        f"{abs(test['optimism']):.4f} {'above' if test['optimism'] > 0 else 'below'} that on validation"
    )
    words += "".join(f", {name} {value:.4f}" for name, value in score["metrics"].items())
    if (default := test["scores"].get("default")) is not None:
        words += f"; the default configuration has {default['loss']:.4f} ({_interval_words(default, short=True)})"
    if before := test["scored_before"]:
        names = list(dict.fromkeys(each["sweep"] for each in before))
        others = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        words += (
            f"; CAREFUL: this test split has now been scored {len(before) + 1} times (before by {others}), "
            "so it is no longer unseen"
        )
    return words


def _interval_words(score: Mapping[str, Any], *, short: bool = False) -> str:
    if score.get("low") is None:
        return NO_INTERVAL
    return f"{'' if short else '95% interval '}{score['low']:.4f} to {score['high']:.4f}"


def forgetting_words(found: Mapping[str, Any]) -> str:
    """What the winner has lost of what its base knew."""
    change = found["after"] - found["before"]
    low_high = "" if found["interval"] is None else " (95% interval {:+.4f} to {:+.4f})".format(*found["interval"])
    return (
        f"loss on general text {found['before']:.4f} before and {found['after']:.4f} after, {change:+.4f}{low_high}; on the "
        f"task's own prompts its predictions are {found['kl']:.4f} nats (KL) from the base's"
    )


def slices_words(slices: Mapping[str, Any]) -> str:
    """The winner's loss for each value of a column, the worst first, on the last split that was scored."""
    split = "test" if "test" in slices else "validation"
    found = slices[split]
    shown = [_slice_words(each) for each in found]
    if len(shown) > 8:
        shown = [*shown[:5], f"{len(shown) - 7} more", *shown[-2:]]
    gap = ""
    if len(found) > 1 and found[0]["loss"] is not None and found[-1]["loss"] is not None:
        gap = f"; worst {found[0]['value'] or 'empty'}, {found[0]['loss'] - found[-1]['loss']:.4f} above the best"
    return f"{split} loss by {slices['column']}: {'; '.join(shown)}{gap}"


def _slice_words(part: Mapping[str, Any]) -> str:
    bounds = f"{NO_INTERVAL}, " if part["low"] is None else f"{part['low']:.4f} to {part['high']:.4f}, "
    accuracy = "" if part.get("accuracy") is None else f", accuracy {part['accuracy']:.4f}"
    return f"{part['value'] or 'empty'} {_number(part['loss'])} ({bounds}{part['rows']} rows{accuracy})"


def alternatives_table(metrics: Mapping[str, Any]) -> Table:
    """Loss and metrics of the winner and of all that it is compared with, on each split that was measured."""
    splits = [split for split in ("validation", "test") if any(each[split] for each in metrics["alternatives"])]
    columns = alternatives_columns(metrics)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("\nway")
    for split in splits:
        for name in columns:
            table.add_column(f"{split}\n{name}", justify="right", no_wrap=True)
    for each in metrics["alternatives"]:
        measured = [each[split] or {} for split in splits]
        numbers = [
            {"loss": found.get("loss"), **found.get("metrics", {})}.get(name) for found in measured for name in columns
        ]
        table.add_row(Text(each["words"]), *map(_number, numbers), style="bold" if each["name"] == "winner" else None)
    return table


def alternatives_columns(metrics: Mapping[str, Any]) -> list[str]:
    """`loss` and the metrics that any alternative has."""
    measured = [each[split] for each in metrics["alternatives"] for split in ("validation", "test") if each[split]]
    return list(dict.fromkeys(["loss", *(name for found in measured for name in found["metrics"])]))


def classes_table(found: Mapping[str, Any]) -> Table:
    """What the winner answers, by class; where there are many the ones that it finds least."""
    classes = found["classes"]
    if len(classes) > MOST_CLASSES:
        classes = sorted(classes, key=lambda each: (each["recall"] is None, each["recall"]))[:MOST_CLASSES]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("class", "rows", "answered", "recall", "precision", "its rows are answered"):
        table.add_column(name, justify="right" if name in ("rows", "answered", "recall", "precision") else "left")
    for each in classes:
        table.add_row(
            Text(each["label"], style="yellow" if each["label"] in found["hardly"] else ""),
            str(each["rows"]),
            str(each["answered"]),
            _share(each["recall"]),
            _share(each["precision"]),
            Text(answered_words(each)),
        )
    return table


def answered_words(of_class: Mapping[str, Any]) -> str:
    """The answers that the rows of a class got, the commonest first: a row of the confusion matrix in words."""
    answers = list(of_class["answered_as"].items())
    more = f", {sum(count for _, count in answers[4:])} other" if len(answers) > 4 else ""
    return ", ".join(f"{label} {count}" for label, count in answers[:4]) + more


def interval(difference: Mapping[str, float] | None) -> str:
    """How far a trial's loss lies above the lowest, and between which bounds."""
    if difference is None:
        return "-"
    if difference["low"] is None:
        return f"{difference['mean']:+.4f} ({NO_INTERVAL})"
    return f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"


def baseline_cost(baseline: Mapping[str, Any]) -> str:
    """What a baseline took to measure, and how long its requests are."""
    parts = []
    if (seconds := baseline.get("seconds")) is not None:
        parts.append(f"{seconds:.1f} s" if seconds < 60 else duration(seconds))
    if (tokens := baseline.get("tokens_per_request")) is not None:
        parts.append(f"{tokens:.0f} tokens a request")
    return ", ".join(parts)


def pareto_table(pareto: Mapping[str, Any]) -> Table:
    """The trials that none beats in validation loss and in a cost at once."""
    cost = pareto["cost"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("trial", "val loss", cost.replace("_", " ")):
        table.add_column(name, justify="left" if name == "trial" else "right")
    for point in pareto["front"]:
        table.add_row(point["trial"], _number(point["val_loss"]), cost_words(point[cost]))
    return table


def cost_words(cost: float) -> str:
    """Parameters as they are; arithmetic as a multiple of the untuned model's."""
    return f"{cost:,}" if isinstance(cost, int) else f"{cost:.3f} times"


def _again(trial: Mapping[str, Any]) -> str:
    if trial.get("finalist_of"):
        return f" (again: {trial['finalist_of']})"
    return " (the default)" if trial.get("default") else ""


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
