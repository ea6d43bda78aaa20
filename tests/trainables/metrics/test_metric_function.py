"""Metrics that are a function of the user's."""

import math
import sys

import numpy as np
import pytest

from trainables.errors import InputError
from trainables.metrics import Answer
from trainables.metrics.function import FunctionMetric

ANSWERS = [Answer("p", "a", "a"), Answer("p", "b", "a"), Answer("p", "c", "a")]
SOURCE = """
import math
import numpy as np

def equal(answers):
    return [answer.text == answer.reference for answer in answers]

def as_array(answers):
    return np.array([0.5, math.nan, 2], dtype=np.float32)

def as_scalars(answers):
    return (np.float64(len(each.prompt)) for each in answers)

def too_few(answers):
    return [1.0, 2.0]

def too_many(answers):
    return [1.0] * 4

def nothing(answers):
    pass

def texts(answers):
    return [1, "0.5", None]

def lists(answers):
    return [1, 2, [3]]

def infinite(answers):
    return [math.inf, 1, 1]

def table(answers):
    return np.zeros((3, 2))

def broken(answers):
    raise KeyError(answers[0].text)

def long(answers):
    raise ValueError("first\\nsecond")

class Callable:
    def __call__(self, answers):
        return [3] * len(answers)

made = Callable()
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the current folder, which is not on Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    (tmp_path / "users_own_metrics.py").write_text(SOURCE)
    yield "users_own_metrics"
    sys.modules.pop("users_own_metrics", None)


def metric(place):
    return FunctionMetric(name="x", function=place)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("equal", [1, 0, 0]),
        ("as_array", [0.5, math.nan, 2]),
        ("as_scalars", [1, 1, 1]),
        ("made", [3, 3, 3]),
    ],
)
def test_numbers_of_each_row(module, name, wanted):
    path = list(sys.path)
    found = metric(f"{module}:{name}").score(ANSWERS)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, wanted)
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "too_few",
            "must return a number for each of the 3 rows, got 2: they differ from row 3 on",
        ),
        (
            "too_many",
            "must return a number for each of the 3 rows, got 4: they differ from row 4 on",
        ),
        ("nothing", "must return a number for each of the 3 rows, got null"),
        ("texts", "row 2: must be a finite number, or NaN where the row has none, got '0.5'"),
        ("lists", "row 3: must be a finite number, or NaN where the row has none, got [3]"),
        ("infinite", "row 1: must be a finite number, or NaN where the row has none, got inf"),
        (
            "table",
            "row 1: must be a finite number, or NaN where the row has none, got array([0., 0.])",
        ),
        ("broken", "raised KeyError: 'a' (users_own_metrics.py line {line})"),
        ("long", "raised ValueError: first (users_own_metrics.py line {line})"),
        ("Callable", "raised TypeError: Callable() takes no arguments"),
    ],
)
def test_anything_else_is_one_line(module, name, said):
    with pytest.raises(InputError) as error:
        metric(f"{module}:{name}").score(ANSWERS)
    line = SOURCE.splitlines().index(f"def {name}(answers):") + 2 if "{line}" in said else 0
    assert str(error.value) == f"metric {module}:{name}: {said.replace('{line}', str(line))}"


def test_a_function_that_is_not_there_is_told_before_it_is_called(module, tmp_path):
    (tmp_path / "users_broken_module.py").write_text("import nothing_like_this")
    for place, said in (
        (f"{module}:equals", "has no function 'equals'. Did you mean 'equal'?"),
        (f"{module}:number", "has no function 'number'."),
        ("users_none:equal", "the module 'users_none' of users_none:equal cannot be imported from"),
        ("users_broken_module:f", "ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("users own:f", "must be like my_metrics:rhymes"),
        ("users_own_metrics:", "must be like my_metrics:rhymes"),
        ("..:f", "must be like my_metrics:rhymes"),
    ):
        with pytest.raises(InputError) as error:
            metric(place)
        assert said in str(error.value)


def test_a_module_that_exits_ends_nothing(module, tmp_path):
    (tmp_path / "users_exit.py").write_text("raise SystemExit(3)")
    with pytest.raises(InputError, match="SystemExit: 3"):
        metric("users_exit:f")
    sys.modules.pop("users_exit", None)
