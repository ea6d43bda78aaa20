"""Several base models in one sweep file."""

from pathlib import Path

import pytest

from sweeps.config.draws import of_each_base
from sweeps.config.loading import dump, from_folder, from_tree
from sweeps.run.folder import absolute_paths
from trainables.errors import InputError

SPACE = {"method": "lora", "rank": 4, "learning_rate": 1e-3, "batch_size": 8, "epochs": 1}


def load(name, space=SPACE, **model):
    from omegaconf import OmegaConf

    tree = {
        "name": "several",
        "model": {"name": name, **model},
        "data": {"train": "rows.csv", "validation": 0.2},
        "search": {"space": space},
    }
    return from_tree(OmegaConf.create(tree), (), "sweep.yaml")


def test_a_choice_of_bases_is_a_parameter_of_the_space():
    config = load({"choice": ["org/a-1.5B", "org/b"]})
    assert config.bases == ("org/a-1.5B", "org/b")
    assert config.space().parameters[0] == ("model", "one of org/a-1.5B, org/b")
    drawn = {over.model.name: draws for _, over, draws, _ in of_each_base(config)}
    assert set(drawn) == {"org/a-1.5B", "org/b"} and all(drawn.values())
    for name, draws in drawn.items():
        assert {config.hyperparameters(draw).model for draw in draws} == {name}
    assert from_folder(dump(config).encode(), (), "sweep.yaml") == config


def test_each_base_may_have_a_branch_of_its_own():
    own = {
        "model": {
            "org/a.1": {"learning_rate": {"log_uniform": [1e-5, 1e-4]}},
            "org/b": {"learning_rate": 0.5},
        }
    }
    rest = {name: value for name, value in SPACE.items() if name != "learning_rate"}
    config = load({"choice": ["org/a.1", "org/b"]}, {**own, **rest})
    for _, over, draws, _ in of_each_base(config):
        rates = {config.hyperparameters(draw).learning_rate for draw in draws}
        assert (rates == {0.5}) if over.model.name == "org/b" else (max(rates) <= 1e-4)


def test_one_base_is_as_it_was():
    config = load("org/a")
    assert config.bases == ("",) and config.over("").model.name == "org/a"
    assert "model" not in dict(config.space().parameters)
    assert not config.compares_tokenizers


def test_words_for_bases_outlive_absolute_paths(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    config = absolute_paths(load({"choice": ["./one", "two"]}))
    assert config.bases == ("./one", "two")
    assert config.over("./one").model.name == str(tmp_path / "one")
    named = load({"choice": {"small": "org/a", "large": "org/b"}})
    assert named.bases == ("small", "large") and named.over("large").model.name == "org/b"


@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        ({"choice": ["a"]}, {}, "model.name: a choice is of two or more different base models"),
        ({"choice": ["a", "a"]}, {}, "model.name: a choice is of two or more different"),
        ({"choice": ["a", 3]}, {}, "model.name: a choice is of names of base models, got 3"),
        ({"choices": ["a", "b"]}, {}, "model.name: must be a base model or {choice: [A, B]}"),
        (["a", "b"], {}, "model.name: must be a base model or {choice: [A, B]} of several"),
        ({"choice": ["a", "b"]}, {"revision": "main"}, "model.revision: is of one base model"),
    ],
)
def test_a_choice_that_is_none(name, more, told):
    with pytest.raises(InputError) as error:
        load(name, **more)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("name", "space", "told"),
    [
        ("a", {**SPACE, "model": {"choice": ["a", "b"]}}, "model.name is one base model"),
        (
            {"choice": ["a", "b"]},
            {**SPACE, "model": {"a": None}},
            "search.space.model: must be a choice of the base models of model.name, a, b",
        ),
        ({"choice": ["a", "b"]}, {**SPACE, "model": "a"}, "must be a choice of the base models"),
    ],
)
def test_a_space_that_does_not_fit_the_choice(name, space, told):
    with pytest.raises(InputError) as error:
        load(name, space)
    assert told in str(error.value)
