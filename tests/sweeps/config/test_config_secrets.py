"""What a sweep file holds is written down and shown: it takes no secret, and nothing of the environment."""

from pathlib import Path

import pytest
import yaml

from search_spaces import SpaceError, load_tree
from sweeps.config.loading import dump, from_folder, load
from trainables.errors import InputError

GOOD = {
    "name": "s",
    "task": "classification",
    "model": {"name": "owner/model"},
    "data": {"train": "t.csv", "text": "text", "label": "label"},
    "search": {
        "trials": 3,
        "space": {"method": "full", "learning_rate": 0.001, "batch_size": 8, "epochs": 1},
    },
}
URL = "https://me:hunter2@host/x.csv"
SHOWN = (
    "https://***@host/x.csv has a password or a signature in it (***), which would stand in the"
    " sweep's folder, reports and logs; leave it out: keys belong into the environment of the"
    " machines that read it"
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hunter2")


def written(content: object) -> Path:
    Path("s.yaml").write_text(yaml.safe_dump(content))
    return Path("s.yaml")


@pytest.mark.parametrize(
    ("section", "setting", "value", "key"),
    [
        ("storage", None, URL, "storage"),
        ("data", "train", URL, "data.train"),
        ("data", "train", ["a.csv", {"source": URL, "weight": 2}], "data.train[1].source"),
        ("data", "replay", {"source": URL}, "data.replay.source"),
        ("search", "prior", [URL], "search.prior[0]"),
        ("model", "name", URL, "model.name"),
        ("tracking", "mlflow", URL, "tracking.mlflow"),
        ("metrics", None, [{"judge": {"url": URL, "model": "m"}}], "metrics[0].judge.url"),
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_shown(section, setting, value, key):
    changed = {**GOOD, section: {**GOOD.get(section, {}), setting: value} if setting else value}
    with pytest.raises(InputError) as caught:
        load(written(changed))
    assert str(caught.value) == f"s.yaml: {key}: {SHOWN}"


def test_an_override_with_a_secret_is_refused_also_when_a_sweep_goes_on():
    for read in (
        lambda given: load(written(GOOD), given),
        lambda given: from_folder(yaml.safe_dump(GOOD).encode(), given, "there"),
    ):
        with pytest.raises(InputError) as caught:
            read([f"storage={URL}"])
        assert str(caught.value) == f"storage: {SHOWN}"


def test_a_sweep_that_has_one_can_still_be_read():
    """An earlier version took it."""
    config = from_folder(yaml.safe_dump({**GOOD, "storage": URL}).encode(), (), "there")
    assert config.storage == URL


ASKS = ["${oc.env:HF_TOKEN}", "s3://${oc.env:HF_TOKEN}/x", "${oc.decode:${ oc.env:HF_TOKEN,none}}"]


@pytest.mark.parametrize("value", ASKS)
def test_nothing_is_taken_from_the_environment(value):
    line = (
        f"storage: {value!r} asks for a variable of the environment, which would be written down;"
        " give the value itself, such as storage=... on the command line"
    )
    for read in (
        lambda: load(written({**GOOD, "storage": value})),
        lambda: load(written(GOOD), [f"storage={value}"]),
        lambda: from_folder(yaml.safe_dump({**GOOD, "storage": value}).encode(), (), "there"),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert str(caught.value).endswith(line)


def test_a_space_takes_nothing_from_the_environment_either():
    Path("space.yaml").write_text("{method: full, learning_rate: '${oc.env:HF_TOKEN}'}")
    with pytest.raises(SpaceError, match=r"space.yaml asks for the environment \(oc.env\)"):
        load_tree("space.yaml")


def test_one_setting_may_still_name_another():
    config = load(written({**GOOD, "storage": "runs/${name}"}))
    assert config.storage == "runs/s" and "runs/s" in dump(config)


def test_a_sweep_file_makes_no_objects():
    Path("s.yaml").write_text("name: !!python/object/apply:os.system ['touch trace']")
    with pytest.raises(InputError, match="not valid YAML"):
        load(Path("s.yaml"))
    assert not Path("trace").exists()
