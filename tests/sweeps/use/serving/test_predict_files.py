"""Answers written beside the rows of a file: real Ray Data on this machine."""

import csv
import json
import signal
import time
from pathlib import Path

import pytest
from pyarrow import parquet

from sweeps.use.trained import open_trained

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_the_validation_file_is_answered_as_the_evaluation_recorded(
    sweeps, classifier: Path, tmp_path: Path
) -> None:
    with open_trained(str(classifier)) as trained:
        raw = (trained.data / "validation.jsonl").read_text().splitlines()
        recorded = trained.ledger.outcomes(trained.evaluation.folder)[:, 0].astype(int)
        names = [trained.manifest.labels[each] for each in recorded]
    texts = [json.loads(line)["text"] for line in raw]
    with (tmp_path / "asked.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))
    out = tmp_path / "out.csv"
    done = sweeps("predict", classifier, tmp_path / "asked.csv", "--out", out, "--workers", 1)
    assert done.code == 0 and done.last_line == str(out), done.out + done.err
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["id", "text", "prediction", "probability_long", "probability_short"]
    assert [row["text"] for row in rows] == texts and [row["id"] for row in rows] == [
        str(number) for number in range(len(texts))
    ]
    assert [row["prediction"] for row in rows] == names
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob(".*"))
    again = sweeps("predict", classifier, tmp_path / "asked.csv", "--out", out)
    assert again.code == 2 and "is there already" in again.err


@pytest.mark.long
def test_bad_rows_are_refused_or_written_with_their_error(
    sweeps, classifier: Path, tmp_path: Path
) -> None:
    lines = ['{"text": "bright good 1"}', '{"text": ""}', "nonsense", '{"text": "bad 2", "n": [1]}']
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    call = ["predict", classifier, tmp_path / "asked.jsonl", "--out", tmp_path / "out.parquet"]
    refused = sweeps(*call)
    assert refused.code == 2 and len(refused.err.splitlines()) == 1
    assert "asked.jsonl line 2: 'text' is empty" in refused.err and "line 3" in refused.err
    assert "--bad-rows drop" in refused.err
    done = sweeps(*call, "--bad-rows", "drop", "--workers", 1)
    assert done.code == 0, done.out + done.err
    assert "2 of 4 rows have an error in the place of an answer" in done.out
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["prediction"] is None for row in rows] == [False, True, True, False]
    assert "is empty" in rows[1]["error"] and "not JSON" in rows[2]["error"]
    assert rows[0]["error"] is None and rows[3]["n"] == [1]


@pytest.mark.long
def test_a_killed_call_goes_on_where_it_was(
    sweeps, start_sweeps, chats: dict[str, Path], tmp_path: Path
) -> None:
    """A language model, whose answers do not depend on where it was cut off; order is kept."""
    with (tmp_path / "asked.jsonl").open("w") as stream:
        for number in range(64 * 6):
            stream.write(json.dumps({"prompt": f"Name a color {number}", "n": number}) + "\n")
    call = ["predict", chats["alpha"], tmp_path / "asked.jsonl", "--max-new-tokens", "3"]
    call += ["--temperature", "1", "--seed", "7", "--workers", "1"]
    parts = tmp_path / "killed.jsonl.parts"
    first = start_sweeps(tmp_path / "log", *call, "--out", tmp_path / "killed.jsonl")
    while len(list(parts.glob("[0-9]*.jsonl"))) < 2:
        assert first.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("[0-9]*.jsonl")}
    assert 2 <= len(kept) < 6 and not (tmp_path / "killed.jsonl").exists()
    other = sweeps(*call, "--out", tmp_path / "killed.jsonl", "--seed", "8")
    assert other.code == 2 and "parts of another call (sampling differ)" in other.err
    done = sweeps(*call, "--out", tmp_path / "killed.jsonl")
    assert done.code == 0, done.out + done.err
    assert f"{len(kept)} of 6 blocks were there from an earlier call" in done.out
    rows = [json.loads(line) for line in (tmp_path / "killed.jsonl").read_text().splitlines()]
    assert [row["n"] for row in rows] == list(range(64 * 6))
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    whole = sweeps(*call, "--out", tmp_path / "whole.jsonl")
    assert whole.code == 0, whole.out + whole.err
    assert (tmp_path / "whole.jsonl").read_text() == (tmp_path / "killed.jsonl").read_text()
