"""The JSON Schema of a sweep file: what may be written passes, and what editors should mark does not."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from sweeps.config.json_schema import comments_of, sweep_schema

ROOT = Path(__file__).parents[3]
SHIPPED = [*(ROOT / "sweeps").glob("*.yaml")]
LEAST = {
    "name": "a",
    "model": {"name": "gpt2"},
    "data": {"train": "a.csv"},
    "search": {"space": {"method": "full", "learning_rate": 1e-3}},
}


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    found = sweep_schema()
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(json.loads(json.dumps(found)))


@pytest.mark.parametrize("file", SHIPPED, ids=[file.stem for file in SHIPPED])
def test_shipped_sweeps_fit(schema, file):
    given = OmegaConf.to_container(OmegaConf.load(file))
    assert [error.message for error in schema.iter_errors(given)] == []


def changed(key: str, value: object) -> dict:
    config = OmegaConf.create(LEAST)
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    return OmegaConf.to_container(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("search.space", "auto"),
        ("search.space", "mine.yaml"),
        (
            "search.space.method",
            {"lora": {"rank": {"int": [4, 32], "log": True}, "alpha": "2 * rank"}, "full": None},
        ),
        ("search.space.method", {"choice": ["lora", "full"]}),
        ("search.space.batch_size", {"choice": [8, 16]}),
        ("model.name", {"choice": {"small": "gpt2", "large": "gpt2-medium"}}),
        ("data.train", ["a.csv", {"source": "b.csv", "weight": 2}]),
        ("metrics", ["exact_match", "mine:function", {"sql_execution": {"database": "a.sqlite"}}]),
        ("tracking.wandb", False),
        ("cluster.slots", 2),
    ],
)
def test_what_may_be_written_fits(schema, key, value):
    assert [error.message for error in schema.iter_errors(changed(key, value))] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 1e-3),
        ("task", "translation"),
        ("search.trails", 4),
        ("search.sampler", "bayes"),
        ("search.space.method", {"lorra": None}),
        ("search.space.learning_rate", {"log_uniform": [0, 1e-3]}),
        ("search.space.learning_rate", {"log_uniform": [1e-4]}),
        ("search.space.learning_rate", {"uniform": [1e-4, 1e-3], "int": [1, 2]}),
        ("model.name", {"choose": ["a"]}),
        ("metrics", ["exakt"]),
        ("train.warmup", 0.1),
        ("cluster.slots", "many"),
    ],
)
def test_what_may_not_be_written_does_not(schema, key, value):
    assert list(schema.iter_errors(changed(key, value)))


def test_every_setting_that_the_reference_explains_is_described():
    found = sweep_schema()
    explained = dict(comments_of((ROOT / "sweeps" / "reference.yaml").read_text()))
    early = found["$defs"]["EarlyStoppingConfig"]["properties"]["overfit_patience"]
    assert early["description"] == explained["search.early_stopping.overfit_patience"]
    assert found["properties"]["storage"]["description"] == explained["storage"]
