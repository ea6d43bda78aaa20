"""What travels with a sweep that is submitted: data files of every kind of source, under names that the job can read."""

import shutil
import sqlite3
from contextlib import closing, contextmanager
from types import SimpleNamespace

import pytest
import yaml

import sweeps.run.remote as remote
from cluster import staging
from cluster.staging import PACKAGES
from sweeps.config.loading import load
from trainables.data.config import DataConfig
from trainables.data.sources import open_sources
from trainables.errors import InputError
from trainables.metrics import Answer
from trainables.metrics.choosing import metrics_from


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
    def stage(root, files):
        with staging.stage(root, files) as staged:
            shutil.copytree(staged, job, ignore=shutil.ignore_patterns(*PACKAGES))
        yield job

    monkeypatch.setattr(remote, "stage", stage)
    ended = SimpleNamespace(job_id="1", status="SUCCEEDED", url="", message="")
    monkeypatch.setattr(remote, "submit_job", lambda **_: ended)

    def submit(metrics=(), **data):
        sweep = {"name": "x", "task": "instruction", "model": {"name": "owner/model"}}
        sweep |= {"data": data, "storage": "/tmp/x", "search": {"space": "llm_small"}}
        sweep["metrics"] = list(metrics)
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
        remote.submit_sweep(
            load(tmp_path / "sweep.yaml", []),
            remote.Submission(address="http://127.0.0.1:1", print_line=print),
        )
        monkeypatch.chdir(job)
        found = yaml.safe_load((job / "sweep.yaml").read_text())
        return found["metrics"] if metrics else found["data"]

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


SCRIPT = """
import datasets
import evaluate


class Same(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=features
        )

    def _compute(self, predictions, references):
        return {"same": float(predictions == references)}
"""


def test_all_files_that_metrics_name_travel(submitted, tmp_path, monkeypatch):
    """Where the job runs each of them scores, under the name that it had here."""
    pytest.importorskip("evaluate")
    here = tmp_path / "here"
    for name in ("same.py", "folder/folder.py"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(SCRIPT)
    with closing(sqlite3.connect(here / "towns.sqlite")) as database:
        database.execute("CREATE TABLE town (name)")
    (here / "answer.json").write_text('{"type": "object"}')
    (here / "own_shipped.py").write_text("def short(answers):\n    return [1.0] * len(answers)\n")
    package = here / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("ONE = 1.0\n")
    inner = (
        "from own_package.parts import ONE\n\ndef one(answers):\n    return [ONE] * len(answers)\n"
    )
    (package / "inner.py").write_text(inner)
    metrics = [
        "evaluate:same.py",
        {"evaluate:folder": {"name": "also"}},
        {"sql_execution": {"database": "towns.sqlite"}},
        {"json_schema": {"schema": "answer.json"}},
        "own_shipped:short",
        "own_package.inner:one",
    ]
    shipped = submitted(metrics=metrics, train="b.jsonl")
    shutil.rmtree(here)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    found = metrics_from(shipped)
    assert [each.name for each in found] == [
        *("same", "also", "sql_execution", "json_schema", "short", "one")
    ]
    query = "SELECT name FROM town"
    assert [each.score([Answer("", query, query)]).tolist() for each in found] == [
        *([1.0], [1.0], [1.0], [0.0], [1.0], [1.0])
    ]


@pytest.mark.parametrize("name", ["KEY=value", "", "A B", "1A"])
def test_a_variable_is_named_and_its_value_stays(name):
    with pytest.raises(InputError, match="^--env: must be the name of a variable") as refused:
        remote.Submission(address=None, needs=[name], print_line=print)
    assert "value;" not in str(refused.value) and "=value" not in str(refused.value)


def test_a_password_in_a_setting_is_refused(monkeypatch):
    for name in remote.PASSED_ON:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert remote._passed_on() == {"WANDB_MODE": "offline", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example")
    with pytest.raises(InputError, match="^MLFLOW_TRACKING_URI: has a password in it") as refused:
        remote._passed_on()
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("folder", "name", "storage"),
    [
        ("s3://bucket/sweeps/night-20260101-120000/", "night", "s3://bucket/sweeps"),
        ("/mnt/sweeps/night", "night", "/mnt/sweeps"),
    ],
)
def test_a_sweep_that_goes_on_is_submitted_by_its_folder(folder, name, storage, monkeypatch):
    seen = {}
    ended = SimpleNamespace(job_id="1", status="SUCCEEDED", url="", message="")
    monkeypatch.setattr(remote, "submit_job", lambda **given: seen.update(given) or ended)
    how = remote.Submission(address="http://head:1", print_line=print)
    remote.submit_resume(folder, ["search.trials=9"], how)
    assert seen["entry"] == ["sweeps", "resume", folder.rstrip("/"), "search.trials=9"]
    assert (seen["name"], seen["metadata"]["storage"]) == (name, storage)
    with pytest.raises(InputError, match="^DIR: must be a URL"):
        remote.submit_resume("runs/night", (), how)
