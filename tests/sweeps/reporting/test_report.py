"""The HTML report and the W&B report, read back from what they write."""

import base64
import datetime
import http.server
import io
import json
import math
import re
import socket
import subprocess
import sys
import threading
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from boards import board_of
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from sweeps.ledger.folder import Ledger
from sweeps.reporting import metrics
from sweeps.reporting.console import leaderboard as table
from sweeps.reporting.html import Beside, html_report
from sweeps.reporting.plots.curves import baseline_lines
from sweeps.reporting.publish import publish_in_time
from sweeps.reporting.samples import Sample, Written
from sweeps.reporting.wandb_report import ReportError, save_wandb_report
from sweeps.reporting.wandb_report import wandb_report as report_of
from sweeps.tracking.config import TrackingConfig
from trainables.storage.records import to_json
from trainables.tasks import TASKS

optuna.logging.set_verbosity(optuna.logging.ERROR)

# --- boards and studies ---


def leaderboard(made):
    return board_of(made).rows


def wandb_report(made, *args):
    return report_of(board_of(made), *args)


def by_class(outcomes, labels):
    return to_json(metrics.by_class(TASKS["classification"].by_class(outcomes, labels)))


def evaluation(step, val_loss, probe_loss, **extra):
    return {
        "step": step,
        "samples_seen": step * 16,
        "epoch": step * 16 / 4800,
        "val_loss": val_loss,
        "probe_loss": probe_loss,
        "metrics": {"accuracy": 0.9 - val_loss / 2}
        if val_loss is not None and val_loss < 1.8
        else {},
        "checkpoint": f"trials/checkpoint-{step}",
    } | extra


def trial(id, verdict, curve, *, status="complete", why="", **params):
    """`curve`: (validation loss, probe loss) of each evaluation, 100 steps apart."""
    evaluations = [evaluation(100 * i, *losses) for i, losses in enumerate(curve, start=1)]
    made = {"id": id, "status": status, "verdict": verdict, "verdict_reason": why, "params": params}
    return made | {"evaluations": evaluations}


def board(
    trials,
    *,
    winner=None,
    reason="Nothing may win: no trial has a checkpoint.",
    status="finished",
    name="tweets",
):
    """`winner`: (trial id, index of its evaluation, reason)."""
    made = {
        "sweep": name,
        "folder": f"runs/{name}",
        "status": status,
        "metric": "val_loss",
        "winner": None,
    }
    if winner is None:
        return made | {"trials": trials, "reason": reason}
    id, index, why = winner
    picked = next(t for t in trials if t["id"] == id)
    won = {"trial": id, "params": picked["params"], "reason": why} | picked["evaluations"][index]
    return made | {"trials": trials, "winner": won}


def falling(start, end, n, *, gap=0.02, turn=None, rise=0.0):
    """Losses that fall from start to end; after evaluation `turn` validation rises while the probe falls on."""
    curve = []
    for i in range(n):
        loss = end + (start - end) * math.exp(-2.2 * i / n)
        up = 0.0 if turn is None or i <= turn else rise * (i - turn)
        curve.append((round(loss + up, 4), round(loss - gap - gap * i / 2 - up / 2, 4)))
    return curve


def realistic():
    """Fourteen trials of three methods, most without some parameters of the others, with every verdict."""
    lora = {"method": "lora", "epochs": 3, "batch_size": 16}
    full = {"method": "full", "epochs": 3}
    partial = {"method": "partial", "epochs": 3, "batch_size": 32}
    rose = "validation loss rose 15.9% above its minimum (0.6890 to 0.7985) while probe loss fell from 0.5640 to 0.0987"
    gap = "probe loss 0.0430 is 94% below validation loss 0.7169 (limit 90%): the training rows are memorised"
    grew = (
        "validation loss 18.4 and probe loss 19 are above 2 times that of not fine-tuning (1.0986)"
    )
    memory = "CUDA out of memory: lower batch_size or train.max_tokens (log: trials/t0006/log.txt)"
    memorised = falling(1.0, 0.46, 9, turn=4, rise=0.045, gap=0.05)
    trials = [
        trial(
            "t0000", "healthy", falling(1.05, 0.52, 9), learning_rate=2e-4, rank=8, alpha=16, **lora
        ),
        trial(
            "t0001", "underfit", falling(1.08, 1.05, 9), learning_rate=1e-5, rank=4, alpha=8, **lora
        ),
        trial(
            *("t0002", "overfit", falling(0.98, 0.42, 9, turn=3, rise=0.06, gap=0.05)),
            **({"why": rose, "learning_rate": 3e-4, "batch_size": 16} | full),
        ),
        trial(
            "t0003",
            "healthy",
            falling(1.04, 0.47, 9),
            learning_rate=1e-3,
            rank=16,
            alpha=32,
            **lora,
        ),
        trial(
            *("t0004", "diverged", [(1.1, 1.08), (3.9, 4.1), (18.4, 19.0), (None, None)]),
            **({"status": "pruned", "why": grew, "learning_rate": 8e-3, "batch_size": 8} | full),
        ),
        trial(
            "t0005",
            "still improving",
            falling(1.06, 0.58, 5),
            status="pruned",
            learning_rate=9e-5,
            layers=4,
            **partial,
        ),
        trial(
            "t0006",
            "failed",
            [],
            status="failed",
            why=memory,
            learning_rate=5e-5,
            batch_size=64,
            **full,
        ),
        trial(
            "t0007",
            "healthy",
            falling(1.02, 0.44, 9),
            learning_rate=1.3e-3,
            rank=32,
            alpha=32,
            **lora,
        ),
        trial(
            "t0008", "healthy", falling(1.03, 0.49, 9), learning_rate=4e-5, batch_size=16, **full
        ),
        trial(
            "t0009",
            "underfit",
            falling(1.09, 1.03, 4),
            status="pruned",
            learning_rate=2e-5,
            layers=2,
            **partial,
        ),
        trial(
            "t0010",
            "still improving",
            falling(1.05, 0.55, 9),
            learning_rate=3e-4,
            layers=6,
            **partial,
        ),
        trial(
            "t0011", "overfit", memorised, why=gap, learning_rate=4e-3, rank=64, alpha=64, **lora
        ),
        trial(
            "t0012",
            "healthy",
            falling(1.04, 0.455, 9),
            learning_rate=9e-4,
            rank=32,
            alpha=64,
            **lora,
        ),
        trial(
            "t0013", "healthy", falling(1.04, 0.5, 9), learning_rate=6e-4, rank=8, alpha=32, **lora
        ),
    ]
    why = (
        "t0007 has the lowest validation loss, 0.5221, of 10 trials with a checkpoint that is not overfit; also within "
        "1 standard error: t0012; 2 trials had overfit checkpoints, which could not win: t0002, t0011."
    )
    made = board(trials, winner=("t0007", 8, why), name="tweets-lora-or-full")
    made["winner"]["tied"] = ["t0012"]
    untuned = {"val_loss": 1.0986, "probe_loss": 1.1012, "metrics": {"accuracy": 0.34}}
    return made | {
        "winner_folder": "runs/tweets-lora-or-full/winner",
        "baselines": {
            "untuned": untuned,
            "prior": {"val_loss": 1.0431, "metrics": {"accuracy": 0.45}},
        },
    }


ANSWERS = by_class(
    np.repeat([[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [2, 2]], [50, 10, 8, 120, 35, 5], axis=0),
    ["anger", "joy", "fear"],
)


def whole():
    """The realistic board with all that a sweep may have measured."""
    made = realistic()
    made["baselines"]["untuned"]["difference"] = {"mean": 0.5765, "low": 0.5, "high": 0.6512345}
    made["baselines"]["few_shot"] = {
        "val_loss": 0.9,
        "metrics": {"accuracy": 0.5},
        "words": "prompt with 4 examples (2.3 fitted)",
        "seconds": 12.34,
        "tokens_per_request": 1234.4,
        "difference": {"mean": 0.3779, "low": -0.1, "high": 0.8},
    }
    few_shot = {"loss": 0.95, "low": 0.9, "high": 1.0, "metrics": {"accuracy": 0.48}}
    scores = {
        "winner": {"loss": 0.55, "low": 0.5, "high": 0.6, "metrics": {"accuracy": 0.63}},
        "few_shot": few_shot,
        "prior": {"loss": 1.05, "metrics": {"accuracy": 0.44}},
    }
    made["test"] = {
        "scores": scores,
        "split": {"rows": 500},
        "optimism": 0.0279,
        "scored_before": [],
    }
    made["tokens_per_request"] = 31.0
    made["metrics"] = {
        "alternatives": [
            {
                "name": name,
                "words": words,
                "validation": {"loss": loss, "metrics": {"accuracy": accuracy}},
                "test": None
                if test is None
                else {"loss": test[0], "metrics": {"accuracy": test[1]}},
            }
            for name, words, loss, accuracy, test in (
                ("winner", "the winner, t0007", 0.5221, 0.639, (0.55, 0.63)),
                ("default", "the default configuration, t0000", 0.6, 0.6, (0.61, 0.59)),
                ("untuned", "the untuned model", 1.0986, 0.34, None),
                ("prior", "train's label shares, always joy", 1.0431, 0.45, (1.05, 0.44)),
                ("few_shot", "prompt with 4 examples (2.3 fitted)", 0.9, 0.5, (0.95, 0.48)),
            )
        ],
        "classes": {"validation": ANSWERS, "test": ANSWERS},
        "compared": {},
    }
    left_out = "no example fits beside a row into the 40 tokens of the model"
    made["not_measured"] = [
        {"split": "validation", "words": "prompt with the 4 nearest examples", "error": left_out}
    ]
    made["slices"] = {
        "column": "language",
        "validation": [
            {
                "value": "de",
                "rows": 1200,
                "loss": None,
                "low": None,
                "high": None,
                "accuracy": None,
            },
            {"value": "fr", "rows": 40, "loss": 0.9, "low": 0.8, "high": 1.05, "accuracy": 0.5},
            {"value": "", "rows": 7, "loss": 0.25, "low": None, "high": None, "accuracy": 1.0},
        ],
        "test": [
            {"value": "fr", "rows": 50, "loss": 0.7, "low": 0.6, "high": 0.8, "accuracy": 0.625}
        ],
    }
    made["pareto"] = {
        "cost": "trainable_parameters",
        "front": [
            {
                "trial": "t0007",
                "val_loss": 0.5221,
                "trainable_parameters": 294912,
                "inference_cost": 1.02,
            },
            {
                "trial": "t0001",
                "val_loss": 1.0589,
                "trainable_parameters": 36864,
                "inference_cost": 1.0,
            },
        ],
    }
    return made


DOMAINS = {
    "method": CategoricalDistribution(["lora", "full", "partial"]),
    "learning_rate": FloatDistribution(1e-6, 1e-1, log=True),
    "batch_size": IntDistribution(1, 128, log=True),
    "rank": IntDistribution(1, 128, log=True),
    "alpha": IntDistribution(1, 128, log=True),
    "layers": IntDistribution(1, 12),
}


def study_of(board):
    """The Optuna study, in memory, of which these trials would be the outcome; three run at a time."""
    study = optuna.create_study(direction="minimize")
    begin = datetime.datetime(2026, 5, 4, 9, 0)
    states = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    for i, t in enumerate(board["trials"]):
        state = states[t["status"]]
        losses = [e["val_loss"] for e in t["evaluations"] if e["val_loss"] is not None]
        params = {name: value for name, value in t["params"].items() if name in DOMAINS}
        start = begin + datetime.timedelta(minutes=7 * (i // 3) + i % 3)
        study.add_trial(
            FrozenTrial(
                number=i,
                trial_id=i,
                state=state,
                value=min(losses) if state == TrialState.COMPLETE else None,
                datetime_start=start,
                datetime_complete=start
                + datetime.timedelta(minutes=0.4 + 0.7 * len(t["evaluations"])),
                params=params,
                distributions={name: DOMAINS[name] for name in params},
                user_attrs={"trial": t["id"]},
                system_attrs={},
                intermediate_values={},
            )
        )
    return study


# --- reading a page ---

VOID = {"meta", "br", "link", "img", "input", "hr", "base", "source"}


class Page(HTMLParser):
    """What a browser would make of the page: elements, their attributes, and the text of sections and table cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.scripts = [], [], {}, []
        self.header, self.rows = [], []
        self.tables = {}  # the cells of each row of a section's tables, but for the leaderboard's
        self.feed(text)
        self.close()
        figures = next(
            body for attributes, body in self.scripts if attributes.get("id") == "figures"
        )
        self.figures = {figure["id"]: figure for figure in json.loads(figures)}

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes))
        if tag == "script":
            self.scripts.append([attributes, ""])
        if tag == "tr":
            wins = "wins" in attributes.get("class", "")
            if "data-trial" in attributes and self.in_leaderboard():
                self.rows.append({"wins": wins, "cells": []})
            elif not self.in_leaderboard():
                self.tables.setdefault(self.section(), []).append({"wins": wins, "cells": []})
        if tag in ("td", "th"):
            self.cells(tag).append("")

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes <{self.open[-1][0]}>"
        self.open.pop()

    def handle_data(self, data):
        names = [tag for tag, _ in self.open]
        if "script" in names:
            self.scripts[-1][1] += data
            return
        for tag, attributes in self.open:
            key = attributes.get("id") or tag
            self.text[key] = self.text.get(key, "") + data
        for tag in {"td", "th"} & set(names):
            self.cells(tag)[-1] += data

    def section(self):
        """The innermost that is open; the panel of one trial counts as one."""
        return next(
            attributes.get("id")
            for tag, attributes in reversed(self.open)
            if tag in ("section", "aside")
        )

    def sections(self):
        return [
            attributes["id"]
            for tag, attributes in self.tags
            if tag == "section" and "id" in attributes
        ]

    def in_leaderboard(self):
        return self.section() == "leaderboard"

    def cells(self, tag):
        """Where a cell of the row that is open goes."""
        if not self.in_leaderboard():
            return self.tables[self.section()][-1]["cells"]
        return self.header if tag == "th" else self.rows[-1]["cells"]

    def lines(self, section):
        """The words of a section's tables, the heads too."""
        return [[" ".join(cell.split()) for cell in row["cells"]] for row in self.tables[section]]

    def table(self):
        """The leaderboard."""
        header = [name.strip() for name in self.header]
        return [
            dict(zip(header, (cell.strip() for cell in row["cells"]), strict=True))
            for row in self.rows
        ]

    def words(self, key):
        return " ".join(self.text[key].split())


@pytest.fixture
def page():
    def read(board, study=None, **beside):
        return Page(html_report(board_of(board), Beside(study=study, **beside)))

    return read


# --- the leaderboard ---


def test_leaderboard_ranks_what_may_win_by_loss_and_says_why_of_the_rest():
    rows = leaderboard(realistic())
    ranked = [row.shown.val_loss for row in rows if row.rank]
    assert ranked == sorted(ranked) and [row.rank for row in rows if row.rank] == list(range(1, 11))
    assert [row.trial.id for row in rows if row.wins] == ["t0007"] and rows[0].wins
    assert [row.trial.id for row in rows if not row.rank] == ["t0011", "t0002", "t0004", "t0006"]
    assert all(row.excluded for row in rows if not row.rank) and not any(
        row.excluded for row in rows if row.rank
    )
    assert "memorised" in rows[10].excluded and "out of memory" in rows[13].excluded
    assert rows[12].shown.val_loss == 1.1, "the best finite loss of a diverged trial"


def test_the_winner_shows_its_own_checkpoint_even_where_its_trial_went_overfit_or_lower():
    curve = [(0.9, 0.8), (0.5, 0.4), (0.7, 0.1)]
    late = trial("t0001", "overfit", curve, why="rose")
    other = trial("t0002", "healthy", [(0.48, 0.4)])
    rows = leaderboard(board([late, other], winner=("t0001", 1, "tied, and cheaper")))
    assert [(row.trial.id, row.rank, row.wins, row.shown.val_loss) for row in rows] == [
        ("t0001", 1, True, 0.5),
        ("t0002", 2, False, 0.48),
    ]


def test_excluded_on_an_evaluation_decides_over_the_verdict_but_not_over_failure():
    late = trial("t0001", "overfit", [(0.5, 0.4), (0.49, 0.04)], why="rose")
    for e, why in zip(late["evaluations"], [None, "memorised"], strict=True):
        e["excluded"] = why
    failed = trial("t0002", "failed", [(0.3, 0.2)], status="failed", why="lost")
    failed["evaluations"][0]["excluded"] = None
    blind = trial("t0003", "healthy", [(0.2, None)])
    blind["evaluations"][0]["excluded"] = None
    rows = leaderboard(board([late, failed, blind]))
    assert [(row.trial.id, row.rank, row.shown.val_loss, row.excluded) for row in rows] == [
        ("t0001", 1, 0.5, ""),
        ("t0003", None, 0.2, "its probe loss is not finite"),
        ("t0002", None, 0.3, "lost"),
    ]


def test_one_order_of_trials_in_terminal_page_report_and_json(page):
    """With a winner that has not the lowest loss, ties, and trials that may not win."""
    made = realistic() | {"baselines": {}}
    made["winner"] = {"trial": "t0012", "params": {}, "reason": "cheaper", "tied": ["t0007"]}
    made["winner"] |= made["trials"][12]["evaluations"][-1]
    in_order = [row.trial.id for row in leaderboard(made)]
    assert in_order[:2] == ["t0012", "t0007"] and sorted(in_order) == [
        t["id"] for t in made["trials"]
    ]
    shuffled = made | {"trials": made["trials"][::-1]}
    assert [row.trial.id for row in leaderboard(shuffled)] == in_order
    file = io.StringIO()
    Console(file=file, width=250).print(table(board_of(made)))
    assert re.findall(r"t00\d\d", file.getvalue()) == in_order
    assert [row["trial"].split()[0] for row in page(made).table()] == in_order
    markdown = wandb_report(made, None, "project", "group").blocks[3].text
    assert re.findall(r"t00\d\d", markdown)[: len(in_order)] == in_order


def test_a_verdict_is_of_the_checkpoint_and_what_befell_the_trial_later_stands_beside_it(page):
    late = trial("t0001", "healthy", [(0.9, 0.8), (0.5, 0.4), (0.7, 0.1)]) | {
        "verdict_later": "overfit"
    }
    late["evaluations"][2]["excluded"] = late["evaluations"][1]["excluded"] = late["evaluations"][
        0
    ]["excluded"] = None
    (row,) = page(board([late], winner=("t0001", 1, "lowest"))).table()
    assert row["verdict"].split() == ["healthy", "later", "overfit"]


def test_the_number_to_expect_stands_beside_the_winners(page):
    made = board(
        [trial("t0003", "healthy", [(0.9, 0.8), (0.5, 0.4)])], winner=("t0003", 1, "lowest mean")
    )
    seeds = {"t0002": 0.51, "t0003": 0.5}
    made["winner"]["expected"] = {
        "trial": "t0001",
        "seeds": seeds,
        "failed": ["t0004"],
        "mean": 0.505,
        "spread": 0.007,
    }
    words = (
        "expected 0.5050 ± 0.0070, the mean of 2 new seeds; 1 more gave no checkpoint that may win"
    )
    assert words in page(made).words("winner")
    assert words in wandb_report(made, None, "project", "group").blocks[1].text.replace("\\", "")


# --- the page ---


def test_page_leads_with_the_winner_and_its_reason(page):
    made = realistic()
    read = page(made, study_of(made))
    assert read.words("title") == "tweets-lora-or-full · sweep report"
    assert read.words("h1") == "tweets-lora-or-full" and read.words("status") == "finished"
    assert read.sections() == [
        "winner",
        "leaderboard",
        "baselines",
        "curves",
        "parallel",
        "importances",
        "timeline",
        "words",
    ]
    said = read.words("winner")
    for part in (
        "Winner ★ t0007",
        made["winner"]["reason"],
        "validation loss 0.5221",
        "probe loss 0.4221",
        "14,400",
    ):
        assert part in said
    assert "runs/tweets-lora-or-full/winner" in said and "learning_rate 0.0013" in said
    assert read.lines("baselines")[2][:2] == ["the untuned model", "1.0986"]


def test_table_has_every_trial_in_order_with_conditional_parameters_kept_apart(page):
    read = page(realistic())
    table = read.table()
    assert [row["trial"].split()[0] for row in table] == [
        row.trial.id for row in leaderboard(realistic())
    ]
    assert [row["wins"] for row in read.rows] == [True] + [False] * 13
    assert table[0]["trial"] == "t0007 ★" and table[1]["trial"] == "t0012 tied"
    assert list(table[0].items())[1:] == [
        ("#", "1"),
        ("method", "lora"),
        ("verdict", "healthy"),
        ("status", "complete"),
        ("val loss", "0.5221"),
        ("probe loss", "0.4221"),
        ("accuracy", "0.6390"),
        ("samples seen", "14,400"),
        ("why excluded", ""),
        ("learning_rate", "0.0013"),
        ("rank", "32"),
        ("alpha", "32"),
        ("batch_size", "16"),
        ("layers", "–"),
    ]
    full = next(row for row in table if row["trial"] == "t0008")
    assert full["alpha"] == "–" and full["layers"] == "–" and full["batch_size"] == "16"
    assert "epochs = 3" in read.words("leaderboard"), "what never varies is said once"


def test_other_ways_stand_below_the_winner_with_what_they_cost(page):
    read = page(whole())
    assert read.words("baselines").startswith("Other ways than fine-tuning What needs no training")
    head = [
        "way",
        "val loss",
        "above the best (95%)",
        "accuracy",
        "test loss (95%)",
        "test accuracy",
        "tokens a request",
    ]
    assert read.lines("baselines") == [
        [*head, "seconds to measure"],
        [
            "t0007, the winner",
            "0.5221",
            "",
            "0.6390",
            "0.5500 (0.5000 to 0.6000)",
            "0.6300",
            "31",
            "",
        ],
        ["the default configuration, t0000", "0.6000", "", "0.6000", "–", "0.5900", "", ""],
        [
            "the untuned model",
            "1.0986",
            "+0.5765 (+0.5000 to +0.6512)",
            "0.3400",
            "–",
            "–",
            "–",
            "–",
        ],
        ["train's label shares", "1.0431", "-", "0.4500", "1.0500", "0.4400", "–", "–"],
        [
            *(
                "prompt with 4 examples (2.3 fitted)",
                "0.9000",
                "+0.3779 (-0.1000 to +0.8000)",
                "0.5000",
            ),
            *("0.9500 (0.9000 to 1.0000)", "0.4800", "1,234", "12.3"),
        ],
    ]
    assert [row["wins"] for row in read.tables["baselines"]] == [
        False,
        True,
        False,
        False,
        False,
        False,
    ]
    left_out = "Not measured on validation: prompt with the 4 nearest examples: no example fits beside a row into the 40 tokens"
    assert left_out in read.words("baselines")


def test_the_winner_by_class_on_both_splits(page):
    read = page(whole())
    head = [
        "rows",
        "answered",
        "recall",
        "precision",
        "answered anger",
        "answered joy",
        "answered fear",
    ]
    lines = [
        ["anger", "60", "93", "0.833", "0.538", "50", "10", "0"],
        ["joy", "128", "130", "0.938", "0.923", "8", "120", "0"],
        ["fear hardly ever answered", "40", "5", "0.125", "1.000", "35", "0", "5"],
    ]
    assert read.lines("classes") == [["validation", *head], *lines, ["test", *head], *lines]


def test_of_many_classes_the_answers_are_said_in_words(page):
    made, labels = whole(), [f"c{i:03}" for i in range(150)]
    pairs = [[(i + 1) % 150 if i % 2 else i, i] for i in range(150) for _ in range(5)]
    made["metrics"]["classes"] = {"validation": by_class(np.array(pairs), labels)}
    assert made["metrics"]["classes"]["validation"]["confusion"] is None
    lines = page(made).lines("classes")
    assert len(lines) == 151 and lines[1] == ["c000", "5", "10", "1.000", "0.500", "c000 5"]
    assert lines[2] == ["c001 hardly ever answered", "5", "0", "0.000", "–", "c002 5"]


def test_the_winners_numbers_stand_before_the_words(page):
    said = page(whole()).words("winner")
    assert (
        0
        < said.index("validation loss 0.5221")
        < said.index("test loss 0.5500")
        < said.index(whole()["winner"]["reason"])
    )


def test_other_ways_without_a_test_split_have_no_column_for_it(page):
    read = page(realistic())
    assert read.lines("baselines") == [
        [
            "way",
            "val loss",
            "above the best (95%)",
            "accuracy",
            "tokens a request",
            "seconds to measure",
        ],
        ["t0007, the winner", "0.5221", "", "0.6390", "–", ""],
        ["the untuned model", "1.0986", "-", "0.3400", "–", "–"],
        ["train's label shares", "1.0431", "-", "0.4500", "–", "–"],
    ]


def test_other_ways_stand_there_before_there_is_a_winner(page):
    made = board([], status="running") | {
        "baselines": {"untuned": {"val_loss": 0.7, "metrics": {"accuracy": 0.5}}}
    }
    read = page(made)
    assert [line[0] for line in read.lines("baselines")] == ["way", "the untuned model"]


def test_the_winner_by_slice_on_both_splits(page):
    read = page(whole())
    assert read.words("slices").startswith("The winner by language The worst slice first")
    assert read.lines("slices") == [
        ["validation", "rows", "loss (95%)", "accuracy"],
        ["de", "1,200", "–", "–"],
        ["fr", "40", "0.9000 (0.8000 to 1.0500)", "0.5000"],
        ["empty", "7", "0.2500", "1.0000"],
        ["test", "rows", "loss (95%)", "accuracy"],
        ["fr", "50", "0.7000 (0.6000 to 0.8000)", "0.6250"],
    ]
    made = whole()
    del made["slices"]["test"]
    assert [line[0] for line in page(made).lines("slices")] == ["validation", "de", "fr", "empty"]


@pytest.mark.parametrize(
    ("cost", "title", "column"),
    [
        ("trainable_parameters", "trainable parameters", ["294,912", "36,864"]),
        ("inference_cost", "inference cost", ["1.020 times", "1.000 times"]),
    ],
)
def test_the_pareto_front(page, cost, title, column):
    made = whole()
    made["pareto"]["cost"] = cost
    read = page(made)
    assert f"Validation loss against {title}" in read.words("pareto")
    assert read.lines("pareto") == [
        ["trial", "val loss", title],
        ["t0007", "0.5221", column[0]],
        ["t0001", "1.0589", column[1]],
    ]


def test_sections_of_what_was_not_measured_are_absent(page):
    with_all = ["winner", "leaderboard", "baselines", "classes", "slices", "pareto"]
    assert page(whole()).sections()[:6] == with_all
    made = whole() | {
        "baselines": {},
        "slices": None,
        "pareto": None,
        "test": None,
        "metrics": None,
    }
    assert page(made).sections()[:3] == ["winner", "leaderboard", "curves"]
    for name in ("baselines", "slices", "pareto", "metrics"):  # boards of before it was there
        made.pop(name)
    assert page(made).sections()[:3] == ["winner", "leaderboard", "curves"]


def test_what_is_forgotten_has_columns_only_where_it_was_measured(page):
    made = realistic()
    for t in made["trials"]:
        for e in t["evaluations"]:
            e |= {"forgetting": None, "kl": None}
    made["winner"] |= {"forgetting": None, "kl": None}
    read = page(made)
    assert not {"forgetting", "kl"} & set(read.table()[0]) and "forgetting" not in read.words(
        "winner"
    )
    for t in made["trials"]:
        for e in t["evaluations"]:
            e["kl"] = e["step"] / 10_000
    made["winner"]["kl"] = 0.09
    read = page(made)
    assert list(read.table()[0])[7:10] == ["accuracy", "kl", "samples seen"]
    assert {row["trial"].split()[0]: row["kl"] for row in read.table()}.items() >= {
        "t0007": "0.0900",
        "t0011": "0.0500",  # its best, whose loss is shown too
        "t0006": "–",  # it failed before any
    }.items()
    assert "kl 0.0900" in read.words("winner") and "forgetting" not in read.words("winner")


def test_the_reason_of_a_checkpoint_beyond_a_limit_stands_in_the_leaderboard(page):
    beyond = trial("t0001", "healthy", [(0.4, 0.3)])
    beyond["evaluations"][0]["excluded"] = "its loss on the slice 'de' is 2.5000 (limit 2)"
    within = trial("t0002", "healthy", [(0.5, 0.4)])
    within["evaluations"][0]["excluded"] = None
    table = page(
        board([beyond, within], winner=("t0002", 0, "the lowest within the limits"))
    ).table()
    assert [(row["trial"], row["#"], row["why excluded"]) for row in table] == [
        ("t0002 ★", "1", ""),
        ("t0001", "–", "its loss on the slice 'de' is 2.5000 (limit 2)"),
    ]


def test_page_loads_nothing(page):
    made = realistic()
    read = page(made, study_of(made))
    loading = {
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "audio",
        "video",
        "source",
    }
    assert not loading & {tag for tag, _ in read.tags}
    for tag, attributes in read.tags:
        assert not {"src", "href", "srcset", "action", "data", "ping"} & attributes.keys(), (
            tag,
            attributes,
        )
    policy = next(
        a["content"]
        for t, a in read.tags
        if t == "meta" and a.get("http-equiv", "").endswith("Policy")
    )
    assert policy.startswith("default-src 'none'") and "http" not in policy
    style = read.text["style"]
    assert "@import" not in style and "url(" not in style
    assert sum("plotly.js v" in body for _, body in read.scripts) == 1


def hostile():
    evil = "<script>document.documentElement.dataset.error='ran'</script>"
    attribute = "\" onmouseover=\"document.documentElement.dataset.error='ran'"
    closing = "</script><img src=x onerror=\"document.documentElement.dataset.error='ran'\">"
    trials = [
        trial(
            f"t1{evil}",
            "healthy",
            [(0.6, 0.5), (0.5, 0.4)],
            **{"method": evil, "note": closing, f"p{attribute}": attribute},
        ),
        trial(
            f"t2{attribute}",
            "overfit",
            [(0.7, 0.5)],
            why=evil + attribute,
            method=closing,
            note="a & b | c",
        ),
        trial(
            f"t3{closing}",
            f"new{attribute}",
            [],
            status=f"odd{evil}",
            why=closing,
            method="<b>bold</b>",
        ),
    ]
    for t in trials:
        for e in t["evaluations"]:
            e["metrics"] = {evil: 0.5}
    winner = (trials[0]["id"], 1, closing + evil)
    made = board(trials, winner=winner, status=f"odd{attribute}", name=f"s{evil}{closing}")
    part = {"rows": 40, "loss": 0.5, "low": None, "high": None, evil: 0.5}
    made["slices"] = {
        "column": f"c{evil}",
        "validation": [{"value": v, **part} for v in (evil, attribute, closing)],
    }
    front = [{"trial": trials[0]["id"], "val_loss": 0.5, "inference_cost": 1.0}]
    made["pareto"] = {"cost": "inference_cost", "front": front}
    other = {"val_loss": 0.65, "probe_loss": 0.65, "words": closing}
    return made | {"baselines": {evil: {"val_loss": 0.65, "probe_loss": 0.65}, "few_shot": other}}


def test_hostile_names_stay_text(page):
    made = hostile()
    read = page(made)
    nonces = {attributes.get("nonce") for attributes, _ in read.scripts}
    assert len(read.scripts) == 5 and len(nonces) == 1 and None not in nonces
    assert not [t for t, a in read.tags if t == "img" or any(name.startswith("on") for name in a)]
    assert made["sweep"] in read.text["h1"] and made["winner"]["reason"] in read.text["winner"]
    assert [row["trial"] for row in read.table()][0].startswith(made["trials"][0]["id"])
    evil, closing = list(made["baselines"])[0], made["baselines"]["few_shot"]["words"]
    assert [row["cells"][0] for row in read.tables["baselines"][2:]] == [evil, closing]
    values = [part["value"] for part in made["slices"]["validation"]]
    assert (
        [row["cells"][0] for row in read.tables["slices"][1:]] == values
        and evil in values
        and closing in values
    )
    assert f"The winner by c{evil}" in read.text["slices"]
    assert read.tables["pareto"][1]["cells"][0] == made["trials"][0]["id"]
    for figure in read.figures.values():
        texts = json.dumps(
            [[trace["text"], trace["meta"].get("around")] for trace in figure["data"]]
        )
        assert "<script" not in texts, "plotly reads HTML in hover texts"
        assert "<script" not in json.dumps(figure["layout"])


def test_empty_board(page):
    read = page(board([], status="running", reason="Nothing may win: no trial has started."))
    assert "No winner yet Nothing may win: no trial has started." in read.words("winner")
    assert "No trial has started yet." in read.words("leaderboard")
    assert read.figures == {} and read.rows == []


def test_running_sweep(page):
    trials = [
        trial("t0000", "still improving", [(0.9, 0.9), (0.7, 0.7)], status="running", rank=8),
        trial("t0001", "still improving", [], status="running", why="no evaluation yet", rank=16),
        trial("t0002", None, [], status="running", rank=4),
    ]
    read = page(board(trials, status="running", winner=("t0000", 1, "the lowest so far")))
    assert "Best so far ★ t0000" in read.words("winner") and "0.7000" in read.words("winner")
    assert [row["why excluded"] for row in read.table()] == [
        "",
        "no evaluation yet",
        "no evaluation yet",
    ]
    assert [row["verdict"] for row in read.table()] == [
        "still improving",
        "still improving",
        "no verdict yet",
    ]
    assert "Not drawn, having no finite loss: t0001, t0002." in read.words("curves")
    assert len(read.figures["plot-parallel"]["data"]) == 3


def test_all_failed(page):
    trials = [
        trial(f"t{i:04d}", "failed", [], status="failed", why=f"error {i}", rank=2**i)
        for i in range(3)
    ]
    read = page(
        board(trials, reason="Nothing may win: of 3 trials, 3 failed."), study_of(board(trials))
    )
    assert "No winner Nothing may win: of 3 trials, 3 failed." in read.words("winner")
    assert [row["why excluded"] for row in read.table()] == ["error 0", "error 1", "error 2"]
    assert "No trial has a finite loss to draw yet." in read.words("curves")
    assert "and there are 0 (the study holds 3 fail)" in read.words("importances")
    assert "plot-timeline" in read.figures


def test_one_trial(page):
    only = trial("t0000", "healthy", [(0.5, 0.4)], method="lora", rank=8)
    read = page(board([only], winner=("t0000", 0, "the only one")))
    assert read.words("parallel").endswith("It takes two trials to compare parameters.")
    assert [row["rank"] for row in read.table()], (
        "its parameters are in the table, not folded away as constant"
    )
    assert len(read.figures["plot-val_loss"]["data"]) == 2, "its line and the winner's star"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_losses_that_are_no_numbers(page, bad):
    trials = [
        trial("t0000", "healthy", [(0.6, 0.6), (0.5, 0.5)], rank=8),
        trial("t0001", "diverged", [(0.7, 0.7), (bad, bad)], why="a loss was not finite", rank=4),
        trial("t0002", "diverged", [(bad, bad)], why="a loss was not finite", rank=2),
    ]
    read = page(board(trials, winner=("t0000", 1, "lowest")))
    assert [row["val loss"] for row in read.table()] == ["0.5000", "0.7000", "–"]
    line = next(t for t in read.figures["plot-val_loss"]["data"] if t["meta"]["trial"] == "t0001")
    assert line["y"] == [0.7, None]
    assert "Not drawn, having no finite loss: t0002." in read.words("curves")


# --- plots ---


def test_curves_are_coloured_by_verdict_and_keep_one_range(page):
    read = page(realistic())
    val, probe = read.figures["plot-val_loss"], read.figures["plot-probe_loss"]
    assert val["layout"]["yaxis"]["range"] == probe["layout"]["yaxis"]["range"]
    assert val["layout"]["yaxis"]["range"][1] < 1.3, "a diverged trial does not squash the others"
    assert "Losses of t0004 go beyond the top of the axis" in read.words("curves")
    tones = {trace["meta"]["trial"]: trace["meta"]["tone"] for trace in val["data"][:-1]}
    assert len(tones) == 13 and tones["t0002"] == "overfit" and tones["t0010"] == "still-improving"
    meta = val["data"][-2]["meta"]
    before, after = meta.pop("around")
    assert meta == {"trial": "t0007", "tone": "healthy", "winner": True}, "the winner lies on top"
    assert (val["data"][-1]["x"], val["data"][-1]["y"]) == ([14400], [0.5221])
    assert before == "<b>t0007</b> healthy<br>" and "<br>rank = 32" in after
    assert val["data"][-2]["text"][0] == "val_loss 1.0200 at 1,600 samples"
    letters = {note["text"]: note["y"] for note in val["layout"]["annotations"]}
    assert letters == pytest.approx({"A": 1.0431, "B": 1.0986}, abs=1e-3)
    assert [line["y0"] for line in val["layout"]["shapes"]] == [1.0431, 1.0986]
    assert val["key"] == [["A", "train's label shares 1.0431"], ["B", "the untuned model 1.0986"]]
    assert "A train's label shares 1.0431 B the untuned model 1.0986" in read.words("curves")
    assert probe["key"] == [["B", "the untuned model 1.1012"]], "one letter in both plots"
    assert all(
        note["x"] == 1 and note["xanchor"] == "left" for note in val["layout"]["annotations"]
    ), "beside the plot"


@pytest.mark.parametrize(
    ("losses", "places"),
    [
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.2, 0.21, 0.9], [0.2, 0.25, 0.9]),
        ([0.98, 0.99, 1.0], [0.9, 0.95, 1.0]),
        ([0.5] * 4, [0.5, 0.55, 0.6, 0.65]),
        ([], []),
    ],
)
def test_letters_of_near_baselines_stand_apart(losses, places):
    lines, letters = baseline_lines(list(zip(losses, "ABCD", strict=False)), 0.0, 1.0)
    assert [line["y0"] for line in lines] == losses
    assert [letter["y"] for letter in letters] == pytest.approx(places)


def test_a_baseline_far_away_is_said_in_words(page):
    made = board(
        [trial("t0000", "healthy", [(0.5, 0.4), (0.4, 0.3)], rank=8)], winner=("t0000", 1, "lowest")
    )
    read = page(made | {"baselines": {"untuned": {"val_loss": 11.2, "probe_loss": 11.1}}})
    assert "Outside the axis of validation loss: the untuned model (11.2000)." in read.words(
        "curves"
    )
    assert read.figures["plot-val_loss"]["layout"]["yaxis"]["range"][1] < 1


def test_parallel_coordinates_keep_trials_that_lack_a_parameter(page):
    read = page(realistic())
    figure = read.figures["plot-parallel"]
    assert {trace["meta"]["trial"] for trace in figure["data"]} == {
        t["id"] for t in realistic()["trials"]
    }
    names = [note["text"] for note in figure["layout"]["annotations"] if note["name"] == "axis"]
    assert names == ["learning_rate", "rank", "alpha", "method", "batch_size", "layers", "val_loss"]
    lines = {trace["meta"]["trial"]: trace for trace in figure["data"]}
    assert all(len(line["y"]) == len(names) and None not in line["y"] for line in lines.values())
    unused = {
        id: [n for n, y in zip(names, line["y"], strict=True) if y < -0.1]
        for id, line in lines.items()
    }
    assert unused["t0007"] == ["layers"] and unused["t0008"] == ["rank", "alpha", "layers"]
    assert unused["t0006"] == ["rank", "alpha", "layers", "val_loss"], (
        "a failed trial has parameters too"
    )
    assert "epochs = 3" in read.words("parallel"), "an axis that is left out is named"


def test_axes_handle_every_kind_of_value(page):
    values = [True, False, None, "q_proj", ["q", "v"], 0, -3.5, 7, 1e-9]
    trials = [
        trial(f"t{i:04d}", "healthy", [(0.5, 0.4)], mixed=v, n=i, neg=-i)
        for i, v in enumerate(values)
    ]
    read = page(board(trials, winner=("t0000", 0, "tied")))
    labels = [note["text"] for note in read.figures["plot-parallel"]["layout"]["annotations"]]
    for label in ("true", "false", "none", "q_proj", "['q', 'v']", "1e-09"):
        assert label in labels
    assert {row["mixed"] for row in read.table()} >= {"true", "none", "['q', 'v']", "-3.5"}


def test_plots_are_what_plotly_accepts(page):
    from plotly.graph_objects import Figure

    made = realistic()
    figures = page(made, study_of(made)).figures
    assert set(figures) == {
        f"plot-{n}" for n in ("val_loss", "probe_loss", "parallel", "importances", "timeline")
    }
    for figure in figures.values():
        Figure(
            figure["data"], figure["layout"]
        )  # raises on any property or value that plotly does not know


def test_importances_name_the_objective_and_include_conditional_parameters(page):
    made = realistic()
    read = page(made, study_of(made))
    said = read.words("importances")
    told = [t for t in study_of(made).trials if t.values and math.isfinite(t.value)]
    assert (
        "What mattered for val_loss" in said
        and f"With {len(told)} trials the shares are rough" in said
    )
    assert (
        f"the best 5 of {len(told)} trials by the study's objective, val_loss (minimized)" in said
    )
    bars = read.figures["plot-importances"]["data"][0]
    assert (
        set(bars["y"]) == set(DOMAINS)
        and bars["x"] == sorted(bars["x"])
        and sum(bars["x"]) == pytest.approx(1)
    )


def test_importances_find_what_matters_with_conditional_parameters(page):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))

    def objective(t):
        method = t.suggest_categorical("method", ["lora", "full"])
        rate = t.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
        t.suggest_int("noise", 1, 100)
        rank = t.suggest_int("rank", 4, 64) if method == "lora" else 64
        return (math.log10(rate) + 3.5) ** 2 + 1 / rank

    study.optimize(objective, n_trials=80)
    bars = page(board([]), study).figures["plot-importances"]["data"][0]
    assert bars["y"][-1] == "learning_rate" and set(bars["y"]) == {
        "method",
        "learning_rate",
        "noise",
        "rank",
    }


def test_importances_are_drawn_from_seven_trials_of_which_most_were_pruned(page):
    study = optuna.create_study()
    domains = {"x": IntDistribution(0, 99), "noise": IntDistribution(0, 99)}
    for number in range(7):
        state = TrialState.COMPLETE if number < 2 else TrialState.PRUNED
        params = {"x": number, "noise": number * 37 % 100}
        made = optuna.trial.create_trial(
            state=state, value=float(number), params=params, distributions=domains
        )
        study.add_trial(made)
    read = page(board([]), study)
    assert set(read.figures["plot-importances"]["data"][0]["y"]) == {"x", "noise"}
    said = read.words("importances")
    assert (
        "the best 4 of 7 trials" in said
        and "With 7 trials the shares are rough; trust them from about 50 on" in said
    )
    assert (
        "5 of them were behind and stopped early; they count with the best loss that they reached."
        in said
    )


def constant_study(n, value=1.0):
    study = optuna.create_study()
    domain = {"x": IntDistribution(0, 99)}
    study.add_trials(
        optuna.trial.create_trial(value=value, params={"x": i}, distributions=domain)
        for i in range(n)
    )
    return study


def study_without_params(n):
    study = optuna.create_study()
    study.add_trials([optuna.trial.create_trial(value=float(i)) for i in range(n)])
    return study


@pytest.mark.parametrize(
    ("study", "why"),
    [
        (None, "Importances for val_loss cannot be computed: they need the Optuna study"),
        (optuna.create_study(), "there are 0 (the study holds no trial)"),
        (
            constant_study(4),
            "5 trials with a finite val_loss, and there are 4 (the study holds 4 complete)",
        ),
        (constant_study(12), "all 12 trials have the same val_loss"),
        (constant_study(12, math.inf), "and there are 0 (the study holds 12 complete)"),
        (study_without_params(12), "the study varies no parameter"),
    ],
)
def test_importances_that_cannot_be_computed_say_why(page, study, why):
    read = page(board([]), study)
    assert why in read.words("importances") and "plot-importances" not in read.figures


def test_timeline_has_every_trial_once_and_no_duplicate(page):
    made = realistic()
    study = study_of(made)
    study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={"duplicate_of": "t0007"}))
    figure = page(made, study).figures["plot-timeline"]
    drawn = {trace["name"]: trace["y"] for trace in figure["data"]}
    assert sorted(name for names in drawn.values() for name in names) == [
        t["id"] for t in made["trials"]
    ]
    assert drawn["failed"] == ["t0006"] and drawn["pruned"] == ["t0004", "t0005", "t0009"]
    complete = next(trace for trace in figure["data"] if trace["name"] == "complete")
    assert complete["x"][0] == pytest.approx(1000 * 60 * 6.7)
    assert figure["layout"]["yaxis"]["categoryarray"] == [t["id"] for t in made["trials"]]


def test_importing_the_module_loads_nothing_heavy():
    heavy = "{'wandb', 'wandb_workspaces', 'plotly', 'optuna', 'jinja2', 'torch', 'ray'} & set(sys.modules)"
    code = f"import sys, sweeps.reporting.html; print({heavy})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "set()", loaded.stderr


# --- Weights & Biases ---


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError(f"tried to connect: {args}")

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)


def spec_of(report):
    return report._to_model().model_dump(by_alias=True, exclude_none=True)


def blocks_of(report, kind):
    return [block for block in spec_of(report)["spec"]["blocks"] if block["type"] == kind]


def texts_of(report, kind):
    """What blocks say that hold lines of plain text."""
    return texts_in(line for block in blocks_of(report, kind) for line in block["children"])


def texts_in(nodes):
    return ["".join(part["text"] for part in node["children"]) for node in nodes]


def panels_of(report):
    grids = blocks_of(report, "panel-grid")
    return [p for grid in grids for p in grid["metadata"]["panelBankSectionConfig"]["panels"]]


def test_wandb_report_is_built_without_key_or_network(no_network):
    report = wandb_report(realistic(), "team", "sweeps", "tweets-lora-or-full")
    spec = spec_of(report)
    assert spec["displayName"] == "Sweep tweets-lora-or-full"
    assert (spec["project"]["entityName"], spec["project"]["name"]) == ("team", "sweeps")
    json.dumps(spec["spec"], allow_nan=False)
    (callout,) = texts_of(report, "callout-block")
    why = realistic()["winner"]["reason"]
    assert callout == f"Winner: t0007, validation loss 0.5221. {why}"
    said = [block["content"] for block in blocks_of(report, "markdown-block")]
    assert said[0].startswith("**t0007**: validation loss **0.5221**, probe loss 0.4221")
    lines = said[1].splitlines()
    assert lines[2].startswith("| **1** | **t0007** | **healthy** |") and len(lines) == 16
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1, (
        "every line has all columns"
    )


def test_wandb_panels_ask_for_what_the_tracker_logs(no_network):
    report = wandb_report(realistic(), None, "sweeps", "tweets-lora-or-full")
    panels = panels_of(report)
    kinds = [panel["viewType"] for panel in panels]
    assert (
        kinds.count("Run History Line Plot") == 4 and kinds.count("Parallel Coordinates Plot") == 1
    )
    assert kinds.count("Parameter Importance") == 1 and kinds.count("Run Comparer") == 1
    lines = [p["config"] for p in panels if p["viewType"] == "Run History Line Plot"]
    assert [line["metrics"] for line in lines] == [
        ["val/loss"],
        ["probe/loss"],
        ["val/accuracy"],
        ["val/loss", "probe/loss", "train/loss"],
    ]
    assert {line["xAxis"] for line in lines} == {"samples_seen"}
    columns = next(
        p["config"]["columns"] for p in panels if p["viewType"] == "Parallel Coordinates Plot"
    )
    assert [c["accessor"] for c in columns][:2] == [
        "config:learning_rate.value",
        "config:rank.value",
    ]
    assert columns[-1]["accessor"] == "summary:best/val_loss" and columns[0]["log"] is True
    scatters = [p["config"] for p in panels if p["viewType"] == "Scatter Plot"]
    varied = ("learning_rate", "rank", "alpha", "batch_size", "layers")
    assert [scatter["xAxis"] for scatter in scatters] == [f"config:{name}.value" for name in varied]
    assert (
        next(p["config"]["targetKey"] for p in panels if p["viewType"] == "Parameter Importance")
        == "best/val_loss"
    )


BEST = ["t0007", "t0012", "t0003", "t0008", "t0013"]


def test_wandb_run_sets_hold_the_group_the_winner_and_the_best(no_network):
    report = wandb_report(realistic(), None, "sweeps", "tweets-lora-or-full")
    sets = [grid["metadata"]["runSets"][0] for grid in blocks_of(report, "panel-grid")]
    group = {
        "key": {"section": "run", "name": "group"},
        "op": "=",
        "value": "tweets-lora-or-full",
        "disabled": False,
    }
    is_of = {"key": {"section": "run", "name": "name"}, "op": "IN", "disabled": False}
    trials = group | {"key": {"section": "run", "name": "jobType"}, "op": "!=", "value": "sweep"}
    every = [group, trials]
    winner = is_of | {"value": ["tweets-lora-or-full-t0007"]}
    filters = [[{k: f[k] for k in group} for f in runs["filters"]["filters"]] for runs in sets]
    ids = [f"tweets-lora-or-full-{trial}" for trial in BEST]
    best = is_of | {"value": ids}
    assert filters == [every, [winner], every, every, [best]]
    assert all("project" not in runs for runs in sets), (
        "a run set without a project is the report's own"
    )
    assert {"key": {"section": "summary", "name": "best/val_loss"}, "ascending": True} in sets[0][
        "sort"
    ]["keys"]


@pytest.mark.parametrize("status", ["running", "finished"])
def test_wandb_report_of_an_empty_board(no_network, status):
    report = wandb_report(
        board([], reason="no trial has started", status=status), None, "sweeps", "tweets"
    )
    said = [block["content"] for block in blocks_of(report, "markdown-block")]
    title = "No winner yet" if status == "running" else "No winner"
    assert texts_of(report, "callout-block") == [f"{title}. no trial has started"]
    assert said == ["No trial has started yet."]
    assert [panel["viewType"] for panel in panels_of(report)].count("Run History Line Plot") == 2


def test_wandb_markdown_keeps_hostile_names_as_text(no_network):
    made = hostile()
    for number, each in enumerate(made["trials"]):
        each["id"] = f"t{number}"  # it names a run
    made["winner"]["trial"] = "t0"
    made["trials"] += [
        trial(f"t{i:04d}", "healthy", [(0.6, 0.5)], note="a|b\n# c") for i in range(40)
    ]
    said = [
        block["content"]
        for block in blocks_of(wandb_report(made, None, "sweeps", "tweets"), "markdown-block")
    ]
    assert not re.search(r"(?<!\\)<", "".join(said))
    lines = next(each for each in said if each.startswith("| \\#")).splitlines()
    assert len(lines) == 2 + 25 + 2 and lines[-1] == "and 18 more trials in the run set below."
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines[:-2]} == {
        len(re.findall(r"(?<!\\)\|", lines[0]))
    }


@pytest.mark.parametrize("group", ["it's", "a=b", "x<y", "back\\slash", 'q"', "two\nlines"])
def test_wandb_refuses_a_group_that_its_filter_cannot_express(group):
    with pytest.raises(ReportError, match="a W&B filter cannot express the group"):
        wandb_report(realistic(), None, "sweeps", group)


# --- saving to W&B ---


class StubServer(http.server.BaseHTTPRequestHandler):
    """As much of W&B's GraphQL as saving a report takes."""

    saved: list[dict] = []
    views: dict[str, dict] = {}

    def do_GET(self):
        self._answer({})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        query, variables = asked["query"], asked.get("variables")
        if "upsertView" in query:
            self.saved.append(variables)
            names = {key: variables[key] for key in ("name", "displayName", "description", "spec")}
            owner = {
                "project": {"name": variables["projectName"], "entityName": variables["entityName"]}
            }
            known = variables["id"] in self.views
            id = variables["id"] or base64.b64encode(f"View:{len(self.saved)}".encode()).decode()
            self.views[id] = names | owner | {"id": id}
            return self._answer({"upsertView": {"view": self.views[id], "inserted": not known}})
        if "SpecificReport" in query:
            return self._answer({"view": self.views.get(variables["reportId"])})
        if "GetProjects" in query:
            nothing = {"edges": [], "pageInfo": {"endCursor": None, "hasNextPage": False}}
            return self._answer({"models": nothing})
        if "viewer" in query:
            ada = {"id": "VXNlcjox", "entity": "ada", "username": "ada", "teams": {"edges": []}}
            return self._answer({"viewer": ada})
        return self._answer({name: None for name in re.findall(r"\{\s*(\w+)", query)[:1]})

    def _answer(self, data):
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def wandb_at(monkeypatch, tmp_path):
    """Points a fresh wandb at a server, with a configuration folder of its own."""
    import wandb

    def point(url, key):
        wandb.teardown()
        for name in ("HOME", "WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            monkeypatch.setenv(name, str(tmp_path))
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", key) if key else monkeypatch.delenv(
            "WANDB_API_KEY", raising=False
        )

    yield point
    wandb.teardown()


@pytest.fixture
def stub_url():
    StubServer.saved.clear()
    StubServer.views.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StubServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def save(made=None, group="tweets-1", former=None, **config):
    board = board_of(made or realistic())
    return save_wandb_report(
        board, TrackingConfig(project="sweeps", **config), group, SAMPLES, former
    )


KEY = "local-" + "a" * 40
SAMPLES = tuple(
    Sample(
        row=row,
        prompt="<b>which</b>\nway | so",
        reference="left",
        answers=(
            Written(by="the untuned model", text="right " * 200, scores={"exact": 0.0}),
            Written(by="the winner, t0007", text="left", scores={"exact": 1.0}),
        ),
    )
    for row in range(8)
)


def test_wandb_report_is_saved_to_the_accounts_own_entity(wandb_at, stub_url):
    wandb_at(stub_url, KEY)
    saved = save()
    assert saved.url.startswith(f"{stub_url}/ada/sweeps/reports/Sweep-tweets-lora-or-full--")
    (sent,) = StubServer.saved
    assert (sent["entityName"], sent["projectName"]) == ("ada", "sweeps")
    assert "t0007 has the lowest validation loss" in sent["spec"]


def test_wandb_report_says_what_won_why_and_how_to_get_it(no_network):
    made = whole() | {
        "forgetting": {"before": 2.0, "after": 2.125, "kl": 0.05},
        "worth": {"words": "Yes, by 0.5765."},
    }
    report = report_of(board_of(made), "team", "sweeps", "tweets-1", SAMPLES)
    (command,) = texts_of(report, "code-block")
    assert command == "python -m sweeps pick team/sweeps/tweets-1-winner:winner --to winner"
    titles = texts_in(block for block in blocks_of(report, "heading"))
    assert titles == [
        "Leaderboard",
        "Learning curves",
        "Validation against probe",
        "Parameters",
        "Methods",
        "Answers",
        "The best compared",
        "Where the winner comes from",
    ]
    winner, board, methods, answers = (
        block["content"].replace("\\", "") for block in blocks_of(report, "markdown-block")
    )
    for part in (
        "**Test:** loss 0.5500 (95% interval 0.5000 to 0.6000) on 500 rows",
        "**Forgetting:** loss on general text 2.0000 before and 2.1250 after",
        "**Worth it?** Yes, by 0.5765.",
        "**Slices:** test loss by language",
    ):
        assert part in winner
    lines = [line.strip("| ").split(" | ") for line in methods.splitlines()]
    assert lines[0] == [
        *("method", "trials", "may win", "best trial", "val loss", "median", "samples seen"),
    ]
    assert lines[2] == ["lora", "7", "6", "t0007", "0.5221", "0.5635", "14,400"]
    assert {line[0] for line in lines[2:]} == {"lora", "full", "partial"}
    rows = answers.splitlines()
    assert len(rows) == 2 + 5 and max(map(len, rows)) < 700
    assert rows[2].startswith("| 0 | <b>which</b> way | so | left | right right")
    escaped = blocks_of(report, "markdown-block")[3]["content"]
    assert r"\<b\>which" in escaped and r"way \| so" in escaped
    (lineage,) = blocks_of(report, "weave-panel")
    shown = json.dumps(lineage)
    assert '"tweets-1-winner"' in shown and '"selectedTab": "lineage"' in shown


def test_wandb_report_of_one_method_and_no_entity_leaves_out_what_it_cannot_say(no_network):
    trials = [trial(f"t000{i}", "healthy", [(0.5 + i, 0.4)], method="lora") for i in range(3)]
    report = wandb_report(board(trials, winner=("t0000", 0, "lowest")), None, "sweeps", "s")
    assert not blocks_of(report, "code-block") and not blocks_of(report, "weave-panel")
    assert "Methods" not in texts_in(blocks_of(report, "heading"))


def test_the_same_wandb_report_is_written_anew_until_it_is_deleted(wandb_at, stub_url):
    wandb_at(stub_url, KEY)
    name = "tweets-lora-or-full"
    first = save(board([], reason="no trial has started", status="running", name=name))
    assert save(former=first) == first and len(StubServer.views) == 1
    begun, ended = StubServer.saved
    assert begun["id"] is None and ended["id"] in StubServer.views
    assert "No winner yet" in begun["spec"] and "Winner: t0007" in ended["spec"]
    assert "pick ada/sweeps/tweets-1-winner:winner" in ended["spec"]
    other = save(former=first, entity="team")
    assert other != first and len(StubServer.views) == 2, "the team has a report of its own"
    StubServer.views.clear()
    assert save(former=first) != first and len(StubServer.views) == 1


def test_a_sweep_publishes_its_wandb_report_by_itself_where_it_tracks_online(
    wandb_at, stub_url, tmp_path, monkeypatch
):
    ledger, lines = Ledger(str(tmp_path / "tweets-1")), []
    made = board_of(realistic())

    def publish(wandb="auto"):
        config = SimpleNamespace(tracking=TrackingConfig(project="sweeps", wandb=wandb))
        return publish_in_time(ledger, config, made, lines.append)

    wandb_at(stub_url, KEY)
    url = publish()
    assert url and url == publish() and len(StubServer.views) == 1 and not lines
    kept = json.loads((tmp_path / "tweets-1" / "tracking" / "report.json").read_text())
    assert kept == {"server": stub_url, "url": url}
    assert publish("offline") is None and publish("off") is None and not lines
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert publish() is None and len(StubServer.saved) == 2 and not lines
    wandb_at("http://127.0.0.1:9", KEY)
    assert publish() is None
    (line,) = lines
    assert re.fullmatch(
        r"W&B report: not saved to project 'sweeps': http://127.0.0.1:9 does not answer .*;"
        r" again with: python -m sweeps report runs/tweets-lora-or-full --wandb",
        line,
    )


def test_wandb_report_without_a_server_is_one_clear_line(wandb_at):
    wandb_at("http://127.0.0.1:9", KEY)
    with pytest.raises(ReportError) as caught:
        save(entity="ada")
    line = r"W&B report: not saved to project 'sweeps': http://127.0.0.1:9 does not answer \(.*refused.*\)"
    assert re.fullmatch(line, str(caught.value))


def test_wandb_report_without_a_key_is_one_clear_line(wandb_at, stub_url):
    wandb_at(stub_url, None)
    with pytest.raises(
        ReportError, match="^W&B report: not saved to project 'sweeps': .*(API key|logged in).*$"
    ):
        save(entity="ada")
