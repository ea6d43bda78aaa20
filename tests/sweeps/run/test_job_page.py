"""What the dashboard's page of a job is told; with a real head in tests/cluster."""

import json

import pytest

from sweeps.ledger.folder import Ledger
from sweeps.run.job_page import JobPage
from sweeps.selection.config import SelectionConfig

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Makes one of a sweep in a job, or in none; with the lines that it says."""

    def make(*, job: str | None) -> tuple[JobPage, list[str]]:
        monkeypatch.delenv(JOB, raising=False)
        if job is not None:
            monkeypatch.setenv(JOB, json.dumps({"metadata": {"job_submission_id": job}}))
        said: list[str] = []
        return JobPage(Ledger(str(tmp_path)), SelectionConfig(), 3, said.append), said

    return make


def test_what_does_not_work_is_said_once(page, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where no head is
    made, said = page(job="quick-1")
    made.tell("running")
    made.tell("finished")
    (line,) = said
    assert line.startswith("The job's page does not tell how far the sweep is: ConnectionRefused")


def test_outside_of_a_job_nobody_is_told(page, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    made, said = page(job=None)
    made.tell("running")
    assert said == []
