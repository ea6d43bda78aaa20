"""The `metrics` of a sweep file."""

import json
import pickle
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from trainables.errors import InputError
from trainables.metrics import Answer
from trainables.metrics.choosing import BUILT_IN, metrics_from

ANSWERS = [Answer("p", '{"a": 1}', '{"a": 1}'), Answer("p", "no", '{"a": 1}')]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schema.json").write_text(json.dumps({"type": "object"}))
    (tmp_path / "users_choice.py").write_text(
        "def short(answers):\n    return [len(each.text) < 3 for each in answers]\n"
    )
    with closing(sqlite3.connect("data.sqlite")) as connection:
        connection.execute("CREATE TABLE t (a)")
    yield tmp_path
    sys.modules.pop("users_choice", None)


def test_names_and_names_with_options_in_their_order(files):
    entries = [
        "exact_match",
        {"rouge_l": {"stemmer": True}},
        {"chrf": None},
        {"json_schema": {"schema": "schema.json"}},
        {"sql_execution": {"database": "data.sqlite", "timeout": 2}},
        {"bleu": {}},
        {"bleu": {"name": "bleu_char", "tokenize": "char"}},
        "users_choice:short",
        {"users_choice:short": {"name": "long", "lower_is_better": True}},
        {
            "judge": {
                "url": "http://localhost:1/v1",
                "model": "m",
                "scale": [0, 10.5],
                "cache": "judged",
            }
        },
    ]
    found = metrics_from(entries)
    names = [
        "exact_match",
        "rouge_l",
        "chrf",
        "json_schema",
        "sql_execution",
        "bleu",
        "bleu_char",
        "short",
        "long",
        "judge",
    ]
    assert [each.name for each in found] == names
    assert [each.name for each in found if each.lower_is_better] == ["long"]
    for each in found[:-1]:
        copy = pickle.loads(pickle.dumps(each))
        scores = copy.score(ANSWERS)
        assert scores.shape == (2,) and scores.dtype == np.float64
        np.testing.assert_array_equal(scores, each.score(ANSWERS))
    assert found[7].score(ANSWERS).tolist() == [0, 1]
    assert pickle.loads(pickle.dumps(found[-1])) == found[-1]
    assert metrics_from([]) == ()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            "bleu",
            "metrics: must be a list of names, or of mappings like {rouge_l: {stemmer: true}}, got 'bleu'",
        ),
        ({"bleu": {}}, "metrics: must be a list of names"),
        (None, "metrics: must be a list of names"),
        (
            [3],
            "metrics[0]: must be a name, or a mapping of one name to its options, like {rouge_l: {stemmer: true}}, got 3",
        ),
        ([{"bleu": {}, "chrf": {}}], "metrics[0]: must be a name, or a mapping of one name"),
        ([{"bleu": [1]}], "metrics[0]: must be a name, or a mapping of one name"),
        ([{3: {}}], "metrics[0]: must be a name, or a mapping of one name"),
        (
            ["bleu", "roug_l"],
            f"metrics[1]: must be one of {', '.join(BUILT_IN)}, or evaluate:NAME, torchmetrics:NAME or module:function, got 'roug_l'. Did you mean 'rouge_l'?",
        ),
        (["evaluate:"], "metrics[0]: must be one of exact_match"),
        (
            ["chrf", "chrf"],
            "metrics: 2 of them are called 'chrf': give all but one another `name`, like {chrf: {name: chrf_2}}",
        ),
        ([{"bleu": {"name": "chrf"}}, "chrf"], "metrics: 2 of them are called 'chrf'"),
        (
            [{"rouge_l": {"stemer": True}}],
            "metrics[0].rouge_l: has no option 'stemer'; its options are name, stemmer. Did you mean 'stemmer'?",
        ),
        (
            [{"rouge_l": {"stemmer": "yes"}}],
            "metrics[0].rouge_l.stemmer: must be a valid boolean, got 'yes'",
        ),
        (
            [{"rouge_l": {"lower_is_better": True}}],
            "metrics[0].rouge_l: has no option 'lower_is_better'",
        ),
        (
            [{"rouge_l": {"name": "a b"}}],
            "metrics[0].rouge_l.name: must be letters, digits, '_', '.' and '-', got 'a b'",
        ),
        (
            [{"bleu": {"tokenize": "mecab"}}],
            "metrics[0].bleu.tokenize: must be '13a', 'intl', 'char', 'zh' or 'none', got 'mecab'",
        ),
        (["sql_execution"], "metrics[0].sql_execution: needs the option 'database'"),
        (
            [{"sql_execution": {"database": "none.sqlite"}}],
            "metrics[0].sql_execution.database: 'none.sqlite' is no file",
        ),
        (
            [{"sql_execution": {"database": "data.sqlite", "timeout": "5"}}],
            "metrics[0].sql_execution.timeout: must be a valid number, got '5'",
        ),
        (
            [{"sql_execution": {"database": "data.sqlite", "timeout": 0}}],
            "metrics[0].sql_execution.timeout: must be above 0, got 0",
        ),
        (
            [{"json_schema": {"schema": "none.json"}}],
            "metrics[0].json_schema.schema: cannot read 'none.json' as JSON",
        ),
        ([{"judge": {"url": "x", "model": "m"}}], "metrics[0].judge.url: must be like"),
        ([{"judge": {"url": "http://x"}}], "metrics[0].judge: needs the option 'model'"),
        (
            [{"judge": {"url": "http://x", "model": "m", "usage": {}}}],
            "metrics[0].judge: has no option 'usage'",
        ),
        (
            [{"judge": {"url": "http://x", "model": "m", "scale": [1]}}],
            "metrics[0].judge.scale[1]: field required, got [1]",
        ),
        (
            [{"judge": {"url": "http://x", "model": "m", "parallel": True}}],
            "metrics[0].judge.parallel: must be a valid integer, got true",
        ),
        (
            [{"judge": {"url": "http://x", "model": {1, 2}}}],
            "metrics[0].judge.model: must be what JSON can hold, got {1, 2}",
        ),
        (["users_choice:long"], "metrics[0]: users_choice ("),
        (
            ["users_none:f"],
            "metrics[0]: the module 'users_none' of users_none:f cannot be imported from",
        ),
        (
            [{"users_choice:short": {"function": "x"}}],
            "metrics[0].users_choice:short: has no option 'function'; its options are name, lower_is_better.",
        ),
    ],
)
def test_what_cannot_be_is_one_line(files, entries, said):
    with pytest.raises(InputError) as error:
        metrics_from(entries)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_the_section_may_have_another_name(files):
    with pytest.raises(InputError, match=r"^generation\.metrics\[0\]: must be one of"):
        metrics_from(["none"], "generation.metrics")


def test_the_room_imports_neither_torch_nor_ray():
    heavy = (
        "torch",
        "ray",
        "transformers",
        "datasets",
        "evaluate",
        "torchmetrics",
        "httpx",
        "jsonschema",
        "nltk",
        "sacrebleu",
    )
    code = f"import sys, trainables.metrics.choosing; print([each for each in {heavy} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
