"""What a person reads: the leaderboard, the live table, the lines."""

import io
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from boards import board_of, record
from rich.console import Console

from sweeps.ledger.leaderboard import (
    AnswersByClass,
    BaselineRow,
    Front,
    TestScores,
    WinnerSlices,
)
from sweeps.reporting import console, metrics, words
from sweeps.reporting.console import STATES
from sweeps.reporting.live import Display
from sweeps.reporting.words import cost_words, duration, format_params
from sweeps.run.pace import Pace
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve
from trainables.evaluation.record import Evaluation
from trainables.runtime.protocol import Snapshot, TrialProgress
from trainables.storage.records import to_json
from trainables.tasks import TASKS


def leaderboard(made):
    return console.leaderboard(board_of(made))


def ranked(made):
    return board_of(made).rows


def print_board(shown, made):
    console.print_board(shown, board_of(made))


def pareto_table(made):
    return console.pareto_table(record(Front, made))


def by_class(outcomes, labels):
    return to_json(metrics.by_class(TASKS["classification"].by_class(outcomes, labels)))


def classes_table(found):
    return console.classes_table(record(AnswersByClass, found))


def slices_words(found):
    return words.slices_words(record(WinnerSlices, found))


def baseline_cost(baseline):
    return words.baseline_cost(record(BaselineRow, baseline))


def words_of_the_test(test):
    return words.test_words(record(TestScores, test))


def evaluation(step, val, probe=None, *, checkpoint=True, excluded=None, **metrics):
    return {
        "step": step,
        "samples_seen": 10 * step,
        "epoch": step / 2,
        "val_loss": val,
        "probe_loss": val if probe is None else probe,
        "metrics": metrics,
        "trainable_parameters": 100,
        "checkpoint": f"trials/step-{step}" if checkpoint else None,
        "excluded": excluded,
    }


def trial(id, *evaluations, status="complete", verdict="healthy", **params):
    return {
        "id": id,
        "status": status,
        "status_reason": None,
        "verdict": verdict,
        "verdict_reason": "why",
        "params": params or {"method": "lora"},
        "evaluations": list(evaluations),
    }


def board(*trials, winner=None, **baselines):
    """`winner`: the id of a trial; it wins with its first evaluation."""
    made = {
        "sweep": "quick",
        "folder": "runs/quick",
        "status": "finished",
        "metric": "val_loss",
        "winner": None,
        "baselines": baselines,
        "trials": list(trials),
    }
    if winner is None:
        return made | {"reason": "Nothing may win: no trial has started."}
    won = next(one for one in trials if one["id"] == winner)
    return made | {
        "winner": {
            "trial": winner,
            **won["evaluations"][0],
            "params": won["params"],
            "reason": "It is.",
            "tied": [],
        }
    }


def printed(what, **console):
    file = io.StringIO()
    made = Console(file=file, width=200, **console)
    what(made) if callable(what) else made.print(what)
    return [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]


def rows(made):
    """The words of each row, without header and rule."""
    return [line.split() for line in printed(leaderboard(made))[2:]]


# --- the leaderboard ---


def test_the_winner_comes_first_and_is_marked_though_another_has_a_lower_loss():
    table = rows(
        board(
            trial("t0001", evaluation(1, 1.0)),
            trial("t0002", evaluation(1, 1.01)),
            trial("t0003", evaluation(1, 0.9)),
            winner="t0002",
        )
    )
    assert [row[:2] for row in table] == [["*", "t0002"], ["t0003", "0.9000"], ["t0001", "1.0000"]]


def test_what_may_not_win_stands_below_what_may():
    memorised = trial(
        "t0001",
        evaluation(1, 0.1, 0.001, checkpoint=False, excluded="memorised"),
        verdict="overfit",
    )
    table = rows(
        board(
            memorised,
            trial("t0002", status="failed", verdict="failed"),
            trial("t0003", evaluation(1, 2.0)),
            trial("t0004", evaluation(1, 1.0)),
            winner="t0004",
        )
    )
    assert [row[0] for row in table] == ["*", "t0003", "t0001", "t0002"]


def test_a_failed_trial_is_shown_with_its_state_and_configuration():
    (row,) = rows(
        board(trial("t0001", status="failed", verdict="failed", method="full", learning_rate=3e-4))
    )
    assert row == ["t0001", "-", "-", "-", "failed", "failed", "full", "learning_rate=0.0003"]


def test_baselines_stand_at_the_bottom():
    table = printed(
        leaderboard(
            board(
                trial("t0001", evaluation(1, 1.5, accuracy=0.8)),
                winner="t0001",
                untuned={
                    "val_loss": 1.1,
                    "probe_loss": 1.2,
                    "metrics": {"accuracy": 0.3},
                    "words": "the untuned model",
                },
                prior={"val_loss": 0.5, "metrics": {"accuracy": 0.6}, "class": "[good]"},
            )
        )
    )
    assert "accuracy" in table[0]
    assert table[2].split()[:5] == ["*", "t0001", "1.5000", "1.5000", "0.8000"]
    assert table[3].split() == "- 1.1000 1.2000 0.3000 0 baseline the untuned model".split()
    assert (
        table[4].split()
        == "- 0.5000 - 0.6000 0 baseline always [good], at train's label shares".split()
    )
    assert len(table) == 5


def test_a_trial_stands_with_the_checkpoint_that_is_kept():
    """Its lowest loss was excluded and its checkpoint deleted: the row shows the one that could win."""
    made = board(
        trial(
            "t0001",
            evaluation(1, 2.0),
            evaluation(2, 1.0, 0.01, checkpoint=False, excluded="memorised"),
            verdict="overfit",
        ),
        winner="t0001",
    )
    assert rows(made)[0][:5] == ["*", "t0001", "2.0000", "2.0000", "0.5"]


def test_a_running_trial_stands_with_what_could_win_and_not_with_what_it_goes_on_from():
    """While it runs, its last checkpoint is kept too, even an excluded one."""
    last = evaluation(2, 1.0, 0.01, excluded="memorised")
    (row,) = ranked(board(trial("t0001", evaluation(1, 2.0), last, status="running")))
    assert row.shown.val_loss == 2.0
    (row,) = ranked(board(trial("t0001", evaluation(1, 1.0), evaluation(2, 1.5), status="running")))
    assert row.shown.val_loss == 1.0


def test_what_befell_a_trial_after_its_checkpoint_stands_beside_the_verdict():
    made = board(trial("t0001", evaluation(1, 1.0)) | {"verdict_later": "overfit"}, winner="t0001")
    assert "healthy, later overfit" in printed(leaderboard(made))[-1]


def test_what_to_expect_of_the_winner_is_printed_with_its_own_number():
    made = board(trial("t0002", evaluation(1, 0.99)), winner="t0002")
    made["winner"]["expected"] = {
        "seeds": {"t0002": 0.99, "t0003": 1.01},
        "failed": (),
        "mean": 1.0,
        "spread": 0.0141,
    }
    lines = printed(lambda console: print_board(console, made))
    assert "Validation loss: 0.9900, expected 1.0000 ± 0.0141, the mean of 2 new seeds" in lines
    made["winner"]["expected"] |= {
        "seeds": {"t0002": 0.99},
        "failed": ("t0003",),
        "spread": None,
        "mean": 0.99,
    }
    lines = printed(lambda console: print_board(console, made))
    assert (
        "Validation loss: 0.9900, expected 0.9900, the mean of 1 new seed; 1 more gave no checkpoint that may win"
        in lines
    )


def test_where_there_are_too_few_groups_no_interval_is_shown_and_that_is_said():
    second = trial("t0002", evaluation(1, 1.1)) | {
        "difference": {"mean": 0.1, "low": None, "high": None}
    }
    made = board(trial("t0001", evaluation(1, 1.0)), second, winner="t0001")
    assert "+0.1000 (too few for an interval)" in printed(leaderboard(made))[-1]
    test = {"optimism": 0.1, "split": {"rows": 90}, "scored_before": []}
    test["scores"] = {"winner": {"loss": 1.1, "low": None, "high": None, "metrics": {}}}
    assert (
        words_of_the_test(test)
        == "loss 1.1000 (too few for an interval) on 90 rows, 0.1000 above that on validation"
    )


def test_losses_that_are_not_finite_and_metrics_that_are_missing_are_dashes():
    table = rows(
        board(
            trial("t0001", evaluation(1, None), verdict="diverged", status="pruned"),
            trial("t0002", evaluation(1, 1.0, accuracy=None)),
            trial("t0003", evaluation(1, 1.1, accuracy=0.5)),
        )
    )
    assert table[0][:4] == ["t0002", "1.0000", "1.0000", "-"]
    assert table[2][:6] == ["t0001", "-", "-", "-", "-", "pruned"]


def test_lists_in_a_configuration_are_shown_and_not_taken_for_markup():
    (row,) = rows(
        board(trial("t0001", method="lora", targets=["q_proj", "v_proj"], patterns=["/x"]))
    )
    assert row[-3:] == ["lora", "targets=[q_proj,v_proj]", "patterns=[/x]"]


@pytest.mark.parametrize("names", [(), ("forgetting",), ("kl",), ("forgetting", "kl")])
def test_what_is_forgotten_has_columns_only_where_it_was_measured(names):
    first, second = evaluation(1, 1.0), evaluation(1, 2.0)
    for each in (first, second):
        each |= {"forgetting": None, "kl": None}
    first |= {
        name: value for name, value in (("forgetting", -0.125), ("kl", 0.25)) if name in names
    }
    table = leaderboard(board(trial("t0001", first), trial("t0002", second), winner="t0001"))
    head, _, *lines = [line.split() for line in printed(table)]
    assert [name for name in head if name in ("forgetting", "kl")] == list(names)
    values = [
        value for name, value in (("forgetting", "-0.1250"), ("kl", "0.2500")) if name in names
    ]
    assert lines[0][: 4 + len(values)] == ["*", "t0001", "1.0000", "1.0000", *values]
    assert lines[1][: 3 + len(values)] == ["t0002", "2.0000", "2.0000", *["-"] * len(values)]


def test_evaluations_of_before_it_was_measured_have_no_such_columns():
    head = printed(leaderboard(board(trial("t0001", evaluation(1, 1.0)))))[0]
    assert "forgetting" not in head and "kl" not in head


def test_baselines_stand_with_what_they_cost_and_how_far_behind_they_are():
    behind = {"mean": 0.5, "standard_error": 0.1, "low": 0.25, "high": 0.75, "tied": False}
    way = {"val_loss": 1.5, "metrics": {}, "words": "prompt with [4] examples"}
    of_trial = trial("t0002", evaluation(1, 1.2)) | {"difference": behind | {"mean": 0.2}}
    made = board(
        trial("t0001", evaluation(1, 1.0)),
        of_trial,
        winner="t0001",
        few_shot=way | {"seconds": 61.0, "tokens_per_request": 420.4, "difference": behind},
        prior={
            "val_loss": 0.7,
            "metrics": {},
            "class": "good",
            "difference": None,
            "seconds": 0.04,
        },
    )
    lines = printed(leaderboard(made))
    assert (
        lines[4].split("  ")[-1].strip() == "prompt with [4] examples (1m01s, 420 tokens a request)"
    )
    assert "+0.5000 (+0.2500 to +0.7500)" in lines[4]
    assert lines[5].split("  ")[-1].strip() == "always good, at train's label shares (0.0 s)"
    assert "+" not in lines[5]


def test_the_default_configuration_and_what_ran_again_are_named():
    made = board(
        trial("t0001", evaluation(1, 1.0), method="lora", rank=8)
        | {"default": True, "finalist_of": None},
        trial("t0002", evaluation(1, 1.1), method="lora", rank=4)
        | {"default": False, "finalist_of": None},
        trial("t0003", evaluation(1, 1.2), method="lora", rank=8, seed=1)
        | {"default": False, "finalist_of": "t0001"},
    )
    ends = [line.split("  ")[-1].strip() for line in printed(leaderboard(made))[2:]]
    assert ends == ["lora rank=8 (the default)", "lora rank=4", "lora rank=8 seed=1 (again: t0001)"]


def test_every_configuration_can_be_read_whole_in_a_narrow_terminal():
    params = {
        name: 1
        for name in (
            "method",
            "learning_rate",
            "batch_size",
            "epochs",
            "weight_decay",
            "rank",
            "alpha",
        )
    }
    file = io.StringIO()
    Console(file=file, width=90).print(
        leaderboard(board(trial("t0001", evaluation(1, 1.0), **params)))
    )
    for name in params:
        assert name == "method" or f"{name}=1" in file.getvalue()


def test_the_board_ends_with_winner_and_reason():
    lines = printed(
        lambda console: print_board(
            console, board(trial("t0001", evaluation(1, 1.0)), winner="t0001")
        )
    )
    assert lines[-2:] == ["Winner: t0001, step 1 (epoch 0.5): lora", "Reason: It is."]
    assert (
        printed(lambda console: print_board(console, board()))[-1]
        == "Nothing may win: no trial has started."
    )


PARETO = {
    "front": [
        {"trial": "t0001", "val_loss": 1.0, "trainable_parameters": 294912, "inference_cost": 1.0},
        {"trial": "t0002", "val_loss": 1.5, "trainable_parameters": 900, "inference_cost": 1.02345},
    ]
}


@pytest.mark.parametrize(
    ("cost", "values"),
    [
        ("trainable_parameters", ["294,912", "900"]),
        ("inference_cost", ["1.000 times", "1.023 times"]),
    ],
)
def test_the_pareto_front(cost, values):
    head, _, *lines = printed(pareto_table(PARETO | {"cost": cost}))
    assert head.split() == ["trial", "val", "loss", *cost.split("_")]
    assert [line.split() for line in lines] == [
        ["t0001", "1.0000", *values[0].split()],
        ["t0002", "1.5000", *values[1].split()],
    ]
    made = board(trial("t0001", evaluation(1, 1.0)), winner="t0001")
    assert not any("Pareto" in line for line in printed(lambda console: print_board(console, made)))
    made["pareto"] = PARETO | {"cost": cost}
    said = printed(lambda console: print_board(console, made))
    assert said[-5] == f"Pareto front of validation loss and {cost.replace('_', ' ')}:"
    assert [line.split() for line in said[-4:]] == [
        line.split() for line in printed(pareto_table(made["pareto"]))
    ]


def part(value, loss, rows=40, *, low=None, high=None, **more):
    return {"value": value, "loss": loss, "rows": rows, "low": low, "high": high, **more}


def test_slices_in_words():
    found = {
        "column": "language",
        "validation": [
            part("de", 2.0, 1200, low=1.75, high=2.25, accuracy=0.5),
            part("", 1.5),
            part("fr", 0.75, 7, accuracy=None),
        ],
    }
    words = (
        "validation loss by language: de 2.0000 (1.7500 to 2.2500, 1200 rows, accuracy 0.5000); empty 1.5000 "
        "(too few for an interval, 40 rows); fr 0.7500 (too few for an interval, 7 rows); worst de, 1.2500 above the best"
    )
    assert slices_words(found) == words
    tested = slices_words(found | {"test": [part("", 3.0), part("de", 2.5)]})
    assert tested == (
        "test loss by language: empty 3.0000 (too few for an interval, 40 rows); "
        "de 2.5000 (too few for an interval, 40 rows); worst empty, 0.5000 above the best"
    )
    made = board(trial("t0001", evaluation(1, 1.0)), winner="t0001") | {"slices": found}
    assert f"Slices: {words}" in printed(lambda console: print_board(console, made))


def test_one_slice_alone_is_not_compared_and_one_without_a_loss_neither():
    few = "too few for an interval, 40 rows"
    assert (
        slices_words({"column": "x", "validation": [part("a", 1.0)]})
        == f"validation loss by x: a 1.0000 ({few})"
    )
    found = {"column": "x", "validation": [part("b", None), part("a", 1.0)]}
    assert slices_words(found) == f"validation loss by x: b - ({few}); a 1.0000 ({few})"


def test_of_many_slices_the_worst_and_the_best_are_said():
    def said(count):
        found = [part(f"s{i}", 10.0 - i, 1) for i in range(count)]
        return re.findall(r"s\d+|\d+ more", slices_words({"column": "x", "validation": found}))

    assert said(8) == [f"s{i}" for i in range(8)] + ["s0"]
    assert said(9) == ["s0", "s1", "s2", "s3", "s4", "2 more", "s7", "s8", "s0"]
    assert said(12) == ["s0", "s1", "s2", "s3", "s4", "5 more", "s10", "s11", "s0"]


def measured(name, words, *losses):
    """An alternative with the loss of each split and a metric that is half of it."""
    found = [
        None if loss is None else {"loss": loss, "metrics": {"macro_f1": loss / 2}}
        for loss in losses
    ]
    return {"name": name, "words": words, **dict(zip(("validation", "test"), found, strict=True))}


METRICS = {
    "alternatives": [
        measured("winner", "the winner, t0001", 0.5, 0.6),
        measured("few_shot", "prompt with 4 examples (2.3 fitted)", 0.9, None),
    ],
    "classes": {
        "test": by_class(
            np.repeat([[0, 0], [1, 0], [1, 1]], [3, 25, 40], axis=0), ["[rare]", "joy"]
        )
    },
    "compared": {},
}


def test_all_that_is_compared_stands_below_the_winner_with_its_metrics_on_both_splits():
    made = board(trial("t0001", evaluation(1, 1.0)), winner="t0001") | {"metrics": METRICS}
    left_out = {"split": "test", "words": "prompt with 4 examples", "error": "no example fits"}
    lines = printed(lambda console: print_board(console, made | {"not_measured": [left_out]}))
    at = lines.index("Not measured on test: prompt with 4 examples: no example fits")
    cells = [line.split() for line in lines[at + 1 :]]
    assert cells[0] == ["validation", "validation", "test", "test"]
    assert cells[1] == ["way", "loss", "macro_f1", "loss", "macro_f1"]
    assert cells[3] == ["the", "winner,", "t0001", "0.5000", "0.2500", "0.6000", "0.3000"]
    assert cells[4][-6:] == ["(2.3", "fitted)", "0.9000", "0.4500", "-", "-"]
    assert "The winner's answers on test, by class:" in lines
    assert cells[-2] == ["[rare]", "28", "3", "0.107", "1.000", "joy", "25,", "[rare]", "3"]
    assert cells[-1] == ["joy", "40", "65", "1.000", "0.615", "joy", "40"]


def test_of_many_classes_those_that_are_found_least_are_shown():
    pairs = np.array(
        [[i if i < k else (i + 1) % 20, i] for i in range(20) for k in (i, i + 1, 20, 5)]
    )
    lines = printed(classes_table(by_class(pairs, [f"c{i}" for i in range(20)])))
    assert len(lines) == 2 + 12
    recalls = [float(line.split()[3]) for line in lines[2:]]
    assert recalls == sorted(recalls)


# --- words and numbers ---


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        ({}, ""),
        ({"seconds": None, "tokens_per_request": None}, ""),
        ({"seconds": 0.0}, "0.0 s"),
        ({"seconds": 12.345}, "12.3 s"),
        ({"seconds": 60.0}, "1m00s"),
        ({"seconds": 4000}, "1h06m"),
        ({"tokens_per_request": 419.6}, "420 tokens a request"),
        ({"seconds": 2, "tokens_per_request": 31.0}, "2.0 s, 31 tokens a request"),
    ],
)
def test_what_a_baseline_costs(baseline, words):
    assert baseline_cost(baseline) == words


def test_what_a_point_of_the_front_costs():
    assert [cost_words(cost) for cost in (12, 1234567, 1.0, 1.5004)] == [
        "12",
        "1,234,567",
        "1.000 times",
        "1.500 times",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0m00s"),
        (59.9, "0m59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (5400, "1h30m"),
        (90000, "25h00m"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_configuration_in_one_line():
    params = {
        "learning_rate": 0.000123456,
        "method": "lora",
        "rank": 8,
        "rslora": True,
        "targets": ["q", "v"],
    }
    assert format_params(params) == "lora learning_rate=0.000123 rank=8 rslora=True targets=[q,v]"
    assert format_params({"epochs": 3.0}) == "epochs=3"


# --- while it runs ---


def curve(id, *losses, status="running", **params):
    points = [
        Evaluation(step=n, samples_seen=10 * n, epoch=n, val_loss=loss, probe_loss=loss)
        for n, loss in enumerate(losses, 1)
    ]
    return Curve(id=id, status=status, points=points, params={"method": "lora", **params})


SNAPSHOT = Snapshot(
    progress={"t0002": TrialProgress(samples_seen=50, samples_per_s=12.3)},
    slots={"slot0": ["t0002"], "slot1": []},
    lost={},
    quarantined={},
    baseline=None,
    limits={},
    jobs={},
)


class Shown(Display):
    """A display and the pace of what it shows."""

    def __init__(self, console, name="quick"):
        super().__init__(console, name=name, selection=SelectionConfig())
        self.pace = Pace(
            name,
            trials=4,
            time_budget_s=None,
            total_samples=lambda curve: 100,
            clock=time.monotonic,
        )

    def look(self, curves, snapshot):
        self.refresh(curves, self.pace.progress(curves, snapshot))


def display(**console):
    file = io.StringIO()
    return Shown(Console(file=file, width=200, **console)), file


def test_without_a_terminal_there_are_plain_lines():
    shown, file = display()
    shown.start()
    shown.say("t0001 starts: lora targets=[q,v] " + "x" * 300)
    shown.look([curve("t0001", 1.0)], SNAPSHOT)
    shown.stop()
    assert (
        file.getvalue() == f"[ 0m00s] t0001 starts: lora targets=[q,v] {'x' * 300}\n"
    )  # not wrapped, no table


def test_without_a_terminal_a_line_says_from_time_to_time_how_far_it_is(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    shown, file = display()
    shown.start()
    shown.look([curve("t0001", 1.0)], SNAPSHOT)
    curves = [curve("t0001", 1.0, 0.5, status="complete"), curve("t0002", 2.0)]
    for _ in range(3):
        now[0] += 400
        shown.look(curves, SNAPSHOT)
    assert file.getvalue() == (
        "[13m20s] quick: 1 of 4 trials ended, 13m20s so far, about 22m13s left; the best so far is"
        " t0001, val loss 0.5000\n"
    )
    shown.stop()


def test_in_a_terminal_there_is_a_table_below_the_lines():
    shown, file = display(force_terminal=True, color_system=None)
    shown.start()
    shown.look([], SNAPSHOT)  # what ended before this process does not count for the time left
    shown.say("t0001 starts: lora targets=[q,v]")
    curves = [
        curve("t0001", 1.0, 0.5, status="complete"),
        curve("t0002", 2.0, targets=["q_proj", "v_proj"]),
        curve("t0003"),
        curve("t0004", status="failed"),
    ]
    shown.look(curves, SNAPSHOT)
    text = file.getvalue()
    shown.stop()
    cells = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).split() for line in text.splitlines()]
    lines = {words[0]: words for words in cells if words and len(words) > 2 and words[1] in STATES}
    assert lines["t0001"] == ["t0001", "complete", "0.5000", "lora"]
    assert lines["t0002"] == (
        [
            "t0002",
            "running",
            "2.0000",
            "█████·····",
            "50%",
            "12",
            "slot0",
            "lora",
            "targets=[q_proj,v_proj]",
        ]
    )
    assert lines["t0003"] == ["t0003", "running", "-", "··········", "0%", "waits", "lora"]
    assert lines["t0004"] == ["t0004", "failed", "-", "lora"]
    assert "t0001 starts: lora targets=[q,v]" in text
    assert "quick: 2 of 4 trials ended, 0m00s so far, about 0m00s left" in text


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_the_live_table_leaves_room_for_the_configuration(width):
    """A slot is named by the whole sweep to Ray, and by its number here."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    shown = Shown(console, "quick-20260101-120000")
    shown.start()
    slots = {"quick-20260101-120000-slot0": ["t0002"], "quick-20260101-120000-slot1": []}
    params = {"learning_rate": 0.000123, "rank": 8, "alpha": 16, "batch_size": 32, "epochs": 3}
    curves = [curve("t0001", 1.0, status="complete", **params), curve("t0002", 2.0, **params)]
    shown.look(curves, replace(SNAPSHOT, slots=slots))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    shown.stop()
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    assert (
        max(map(len, lines)) <= width
        and "quick-20260101-120000-slot" not in text
        and "…" not in text
    )
    (running,) = [line for line in lines if line.startswith("t0002")]
    assert (
        "█████····· 50%".replace(" ", "") in running.replace(" ", "")
        and " slot0 " in running
        and "2.0000" in running
    )
    assert "complete" in next(line for line in lines if line.startswith("t0001"))
    assert "lora learning_rate=0.000123" in running, "the configuration has room beside the rest"
    assert len(lines) <= 4 + 2 * 3, "a configuration takes three lines at most"


def test_nobody_knows_how_long_a_sweep_takes_that_has_just_begun():
    shown, file = display(force_terminal=True, color_system=None)
    shown.start()
    shown.look([curve("t0001")], replace(SNAPSHOT, slots={}))
    shown.stop()
    assert "quick: 0 of 4 trials ended, 0m00s so far, time left not known yet" in file.getvalue()


def test_of_many_trials_the_live_table_shows_those_that_run():
    shown, file = display(force_terminal=True, color_system=None)
    shown.start()
    done = [curve(f"t{n:04d}", 1.0, status="complete") for n in range(3, 40)]
    shown.look([*done, curve("t0002", 1.0)], SNAPSHOT)
    shown.stop()
    assert "t0002" in file.getvalue()
    assert "t0005" not in file.getvalue()
