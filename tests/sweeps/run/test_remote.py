"""What travels with a sweep that is submitted: data files of every kind of source, under names that the job can read."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import yaml

import sweeps.run.remote as remote
from sweeps.config.loading import load
from trainables.data.config import DataConfig
from trainables.data.sources import open_sources
from trainables.errors import InputError


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """Submits a sweep on these data: its sweep file as the job finds it, and the job's folder."""
    here, job = tmp_path / "here", tmp_path / "job"
    here.mkdir()
    for name in ("a.jsonl.gz", "b.jsonl", "many/2.csv", "many/1.csv", "own.jinja"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(name)
    monkeypatch.chdir(here)

    @contextmanager
    def stage(_, files):
        for name, path in files.items():
            (job / name).parent.mkdir(parents=True, exist_ok=True)
            (job / name).write_bytes(path.read_bytes())
        yield job

    monkeypatch.setattr(remote, "stage", stage)
    ended = SimpleNamespace(job_id="1", status="SUCCEEDED", url="", message="")
    monkeypatch.setattr(remote, "submit_job", lambda **_: ended)

    def submit(**data):
        sweep = {"name": "x", "task": "instruction", "model": {"name": "owner/model"}}
        sweep |= {"data": data, "storage": "/tmp/x", "search": {"space": "llm_small"}}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
        remote.submit_sweep(
            load(tmp_path / "sweep.yaml", []),
            address="http://127.0.0.1:1",
            wait=False,
            print_line=print,
        )
        monkeypatch.chdir(job)
        return yaml.safe_load((job / "sweep.yaml").read_text())["data"]

    return submit


@pytest.mark.parametrize(
    ("train", "files"),
    [
        ("a.jsonl.gz", ["a.jsonl.gz"]),
        ("many", ["many/1.csv", "many/2.csv"]),
        ("many/*.csv", ["many/1.csv", "many/2.csv"]),
        (
            ["b.jsonl", "many/", {"source": "a.jsonl.gz", "weight": 2}],
            ["b.jsonl", "many/1.csv", "many/2.csv", "a.jsonl.gz"],
        ),
    ],
)
def test_files_of_every_kind_of_source_travel_in_their_order(submitted, train, files):
    found = DataConfig(**submitted(train=train))
    sources = open_sources(found, "train")  # as the job reads them
    assert [source.file.local.read_text() for source in sources] == files
    assert [source.weight for source in sources] == [1.0] * (len(files) - 1) + [
        2.0 if len(files) == 4 else 1.0
    ]
    assert found.validation == 0.1


def test_a_chat_template_travels_and_what_is_elsewhere_stays(submitted):
    hub = ["hf:owner/name", "b.jsonl", "s3://bucket/c.jsonl"]
    found = submitted(train=hub, validation="hf:owner/other", chat_template="own.jinja")
    assert found["train"][0] == hub[0] and found["train"][2] == hub[2]
    assert found["validation"] == "hf:owner/other"
    assert open(found["chat_template"]).read() == "own.jinja"
    assert open(found["train"][1]).read() == "b.jsonl"


@pytest.mark.parametrize("template", ["chatml", "none", None])
def test_a_preset_is_no_file(submitted, template):
    assert submitted(train="b.jsonl", chat_template=template)["chat_template"] == template


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"train": "missing.jsonl"}, "data.train: no such file: missing.jsonl"),
        ({"train": ["b.jsonl", "missing.jsonl"]}, "data.train: missing.jsonl: no such file"),
        (
            {"train": "b.jsonl", "chat_template": "missing"},
            "data.chat_template: no such file: missing",
        ),
    ],
)
def test_what_is_not_there_is_named_before_anything_is_submitted(submitted, data, words):
    with pytest.raises(InputError, match=f"^{words}"):
        submitted(**data)
