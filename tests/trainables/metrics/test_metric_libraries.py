"""Metrics of `evaluate` and `torchmetrics` by their names."""

import math
import sys

import numpy as np
import pytest
from torchmetrics.functional import text as functional

from trainables.errors import InputError
from trainables.metrics import Answer
from trainables.metrics.choosing import metrics_from
from trainables.metrics.libraries import FUNCTIONALS

ROWS = [
    Answer("", "the cat sat on the mat today", "the cat sat on a mat today"),
    Answer("", "a dog", "the cat sat on a mat"),
    Answer("", "all birds can fly, they say", "all birds can fly, they say"),
]
MODULE = """
import datasets
import evaluate


class Agree(evaluate.Metric):
    def _info(self):
        values = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=values)

    def _compute(self, predictions, references, power=1):
        shares = [(len(set(a.split()) & set(b.split())) / len(set(b.split()))) ** power for a, b in zip(predictions, references)]
        return RESULT
"""


@pytest.fixture
def module(tmp_path):
    def write(result, name="agree"):
        path = tmp_path / f"{name}.py"
        path.write_text(MODULE.replace("RESULT", result))
        return f"evaluate:{path}"

    return write


@pytest.mark.parametrize(
    ("result", "options"),
    [
        ("{'share': sum(shares) / len(shares)}", {}),
        ("{'agree': sum(shares) / len(shares), 'rows': len(shares)}", {}),
        ("{'share': sum(shares) / len(shares), 'rows': len(shares)}", {"key": "share"}),
        ("{'share': shares, 'hash': 'x'}", {}),
        ("{'share': __import__('numpy').array(shares)}", {}),
        ("{'share': __import__('torch').tensor(shares, dtype=__import__('torch').float64)}", {}),
        ("{'share': sum(shares) / len(shares), 'orders': [1, 2, 3]}", {}),
    ],
)
def test_a_module_of_evaluate_counts_each_row(module, result, options):
    (metric,) = metrics_from([{module(result): options}])
    assert metric.name == "agree" and not metric.lower_is_better
    assert metric.score(ROWS).tolist() == pytest.approx([6 / 7, 1 / 6, 1])
    assert metric.score([]).tolist() == []


def test_what_a_module_is_given_and_called(module):
    place = module("{'share': sum(shares) / len(shares)}", "cer")
    (metric,) = metrics_from([place])
    assert metric.lower_is_better and metric.name == "cer"
    (metric,) = metrics_from(
        [{place: {"name": "own", "lower_is_better": False, "options": {"power": 2}}}]
    )
    assert metric.name == "own" and not metric.lower_is_better
    assert metric.score(ROWS)[0] == pytest.approx((6 / 7) ** 2)


@pytest.mark.parametrize(
    ("result", "options", "said"),
    [
        ("{'a': 1.0, 'b': 2.0}", {}, "gives a, b: choose one by `key`"),
        ("{'a': 1.0}", {"key": "b"}, "has no key 'b', but a"),
        ("{'a': 'x'}", {"key": "a"}, "must give one number a row, got 'x'"),
        ("{}", {}, "gives nothing: choose one by `key`"),
        ("1 / 0", {}, "ZeroDivisionError: division by zero"),
        ("{'a': 1.0}", {"options": {"powr": 2}}, "TypeError: "),
    ],
)
def test_a_module_that_gives_anything_else_is_told_before_there_are_answers(
    module, result, options, said
):
    place = module(result)
    with pytest.raises(InputError) as error:
        metrics_from([{place: options}])
    assert f"metrics[0]: {place}: {said}" in str(error.value)


def test_a_metric_of_evaluate_that_is_not_here():
    with pytest.raises(
        InputError,
        match=r"^metrics\[0\]: evaluate:no_such_metric: its script is neither a file here",
    ):
        metrics_from(["evaluate:no_such_metric"])


def test_libraries_that_are_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional", None)
    for name in ("evaluate:bleu", "torchmetrics:bleu_score"):
        with pytest.raises(InputError, match="is not installed: pip install"):
            metrics_from([name])


NEEDS_MODELS = {"bert_score", "infolm"}


@pytest.mark.parametrize("name", sorted(FUNCTIONALS.keys() - NEEDS_MODELS))
def test_functions_of_torchmetrics_of_each_row(name):
    options = (
        {"key": "rougeL_fmeasure", "options": {"rouge_keys": "rougeL"}}
        if name == "rouge_score"
        else {}
    )
    (metric,) = metrics_from([{f"torchmetrics:{name}": options}])
    found = metric.score(ROWS)
    for row, value in zip(ROWS, found, strict=True):
        if name == "rouge_score":
            wanted = functional.rouge_score(row.text, row.reference, rouge_keys="rougeL")[
                "rougeL_fmeasure"
            ]
        else:
            wanted = getattr(functional, name)(
                [row.text], [[row.reference]] if FUNCTIONALS[name].in_lists else [row.reference]
            )
        assert value == pytest.approx(float(wanted))
    best, worst = found[2], found[1]
    assert best < worst if metric.lower_is_better else best > worst


def test_options_of_torchmetrics():
    (metric,) = metrics_from([{"torchmetrics:bleu_score": {"options": {"n_gram": 1}}}])
    assert metric.score(ROWS)[0] == pytest.approx(6 / 7)
    with pytest.raises(InputError, match=r"torchmetrics:bleu_score: TypeError: .*n_grams"):
        metrics_from([{"torchmetrics:bleu_score": {"options": {"n_grams": 1}}}])
    with pytest.raises(
        InputError, match="torchmetrics:squad: must be one of bert_score, .*, got 'squad'"
    ):
        metrics_from(["torchmetrics:squad"])


def test_a_value_that_is_not_finite_is_none(module):
    (metric,) = metrics_from([module("{'a': float('inf') if shares[0] < 0.5 else 1.0}")])
    np.testing.assert_array_equal(metric.score(ROWS), [1, math.nan, 1])
