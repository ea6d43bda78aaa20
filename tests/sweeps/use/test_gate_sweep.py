"""Gate, monitor and evaluate on finished sweeps."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from sweeps.ledger.harness import read_harness
from sweeps.ledger.opening import open_sweep
from sweeps.use.evaluate import evaluate
from sweeps.use.gate import gate
from sweeps.use.gate_config import GateConfig, LatencyConfig
from sweeps.use.monitor import monitor
from tests.trainables.evaluation.test_harness import write_task
from trainables.errors import InputError
from trainables.evaluation.harness import Asked

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(7200),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]

ANIMALS = "cat dog bird fish horse mouse bear fox".split()
THINGS = "car ball door table house boat stone lamp".split()
OTHERS = "seven eight nine three four two five six".split()
CLASSIFIER = """
name: {name}
task: classification
storage: {tmp}/runs
model: {{name: {shared}/models/stories260K}}
data: {{train: {tmp}/train.csv, validation: {tmp}/validation.csv, test: {tmp}/test.csv, slice: place, max_length: 32, duplicates: drop}}
train: {{probe_rows: 32, batch_size: 16, epochs: 2}}
cluster: {{slots: 1}}
selection: {{baselines: false}}
search: {{trials: 1, initial: [{{method: full, learning_rate: {rate}}}], space: {{method: {{full: {{learning_rate: {{log_uniform: [1e-6, 1e-2]}}}}}}}}}}
"""
STORY = """
name: story
task: causal_lm
storage: {tmp}/runs
model: {{name: {shared}/models/stories260K}}
data: {{train: {shared}/text/tinyshakespeare.txt, validation: 0.02, max_length: 64, rows: 128}}
train: {{probe_rows: 16, batch_size: 16, epochs: 1}}
cluster: {{slots: 1}}
selection: {{baselines: false, general_text: {tmp}/general.txt}}
search: {{trials: 1, space: {{method: {{lora: {{learning_rate: {{log_uniform: [1e-3, 2e-2]}}, rank: 4, alpha: 8, targets: attention}}}}}}}}
"""


def write_rows(file: Path, count: int, seed: int, words: tuple[list[str], list[str]]) -> Path:
    """Texts of words of one of two kinds, which is the label: of three quarters the first."""
    random = np.random.default_rng(seed)
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label", "place"])
        for _ in range(count):
            kind = int(random.random() > 0.75)
            text = "the " + " and the ".join(random.choice(words[kind], 4))
            rows.writerow([text, ("animal", "thing")[kind], random.choice(["north", "south"])])
    return file


@dataclass(frozen=True, kw_only=True)
class Sweeps:
    tmp: Path
    good: str
    """A classifier that has learnt its task."""
    poor: str
    """One that has hardly moved."""
    story: str
    """A language model, without a test split."""


@pytest.fixture(scope="module")
def finished(sweeps, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    tmp = tmp_path_factory.mktemp("gate")
    for seed, (name, count) in enumerate([("train", 240), ("validation", 80), ("test", 160)]):
        write_rows(tmp / f"{name}.csv", count, seed, (ANIMALS, THINGS))
    (tmp / "general.txt").write_text("The manual says what each word of the language does. " * 40)
    folders = {}
    for name, text, rate in (
        ("good", CLASSIFIER, "1e-3"),
        ("poor", CLASSIFIER, "1e-6"),
        ("story", STORY, ""),
    ):
        file = tmp / f"{name}.yaml"
        file.write_text(text.format(name=name, tmp=tmp, shared=shared_data, rate=rate))
        done = sweeps("run", file)
        assert done.code == 0, done.out + done.err
        folders[name] = done.last_line
    return Sweeps(tmp=tmp, **folders)


# --- gate ---


def test_a_winner_that_is_better_than_all_ships(finished, sweeps):
    report = finished.tmp / "out" / "gate.xml"
    done = sweeps("gate", finished.good, "--against", finished.poor, "--junit", report)
    assert done.code == 0, done.out + done.err
    assert done.out.startswith("Ship t0001 of good-") and len(done.out.splitlines()) == 1
    names = [case.attrib["name"] for case in ElementTree.parse(report).iter("testcase")]
    assert names[0] == "test rows" and names[-2:] == ["slice north", "slice south"]
    assert any(name.startswith("better than always animal") for name in names)
    assert any(name.startswith("better than the model in use (poor-") for name in names)


def test_the_model_in_use_is_scored_once_and_row_by_row(finished, monkeypatch):
    """Its losses on these rows are those that its own sweep has measured on the same."""
    gate(finished.good, GateConfig(), finished.poor)
    (kept,) = (
        file
        for file in Path(finished.good).glob("baselines/test/against-poor-*-t0001-*.npy")
        if not file.name.endswith(".outcomes.npy")
    )
    own = np.load(Path(finished.poor) / "baselines/test/winner.npy")
    assert np.load(kept) == pytest.approx(own, rel=1e-4)
    monkeypatch.setattr("sweeps.use.against.score", None)  # nobody is asked again
    assert gate(finished.good, GateConfig(), finished.poor).ships


def test_one_that_is_no_better_does_not_ship_and_says_which(finished, sweeps):
    found = gate(finished.poor, GateConfig(), finished.good)
    failed = [check.name for check in found.checks if not check.passed]
    assert any(name.startswith("better than the model in use (good-") for name in failed)
    done = sweeps("gate", finished.poor)
    assert done.code == 1 and done.out.startswith("Do not ship t0001 of poor-"), done.err


def test_limits_are_kept_to_and_measured_on_this_machine(finished):
    slow = LatencyConfig(requests=5, p50_ms=60_000, p95_ms=1e-6, times_base=1e3)
    found = gate(finished.good, GateConfig(latency=slow, test_rows=1000))
    checks = {check.name: check for check in found.checks}
    assert checks["latency p50"].passed and checks["latency against the untuned model"].passed
    assert not checks["latency p95"].passed and "5 requests" in checks["latency p95"].words
    assert not checks["test rows"].passed and "160 rows" in checks["test rows"].words


def test_validation_does_not_stand_in_for_a_test_split(finished):
    (check,) = gate(finished.story, GateConfig()).checks
    assert not check.passed and "has no test split (data.test)" in check.words


def test_what_cannot_be_compared_is_refused(finished, sweeps, tmp_path):
    with pytest.raises(InputError, match="its task is causal_lm, not classification"):
        gate(finished.good, GateConfig(), finished.story)
    with pytest.raises(InputError, match="is the sweep itself"):
        gate(finished.good, GateConfig(), finished.good)
    done = sweeps("gate", tmp_path)
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1


# --- monitor ---


def test_rows_like_the_old_ones_raise_no_alarm(finished, sweeps):
    new = write_rows(finished.tmp / "same.csv", 200, 7, (ANIMALS, THINGS))
    found = monitor(finished.good, str(new), labelled=True)
    assert not found.drifted and found.reference == "test" and found.rows == 200
    assert {each.name for each in found.measured} == {
        *("loss", "accuracy", "macro_f1", "weighted_f1", "auroc", "calibration_error")
    }
    done = sweeps("monitor", finished.good, new, "--json")
    assert done.code == 0, done.out + done.err
    assert [each["what"] for each in json.loads(done.out)["tests"]] == [
        "the rows",
        "the confidence",
        "the answers",
    ]


def test_rows_of_other_words_are_seen_without_labels(finished, sweeps):
    new = finished.tmp / "others.csv"
    write_rows(new, 200, 8, (OTHERS, OTHERS))
    lines = new.read_text().splitlines()
    new.write_text("\n".join(line.split(",")[0] for line in lines))  # the text alone
    done = sweeps("monitor", finished.good, new)
    assert done.code == 1 and "the rows        DIFFERS" in done.out, done.out + done.err


def test_labels_that_mean_something_else_are_seen_by_the_loss(finished):
    new = write_rows(finished.tmp / "swapped.csv", 200, 9, (THINGS, ANIMALS))
    found = monitor(finished.good, str(new), labelled=True)
    assert "the loss" in found.alarms and "continue training" in found.words
    more = write_rows(finished.tmp / "more.csv", 200, 9, (ANIMALS, THINGS))
    more.write_text(
        "\n".join(line for line in more.read_text().splitlines() if "animal" not in line)
    )
    found = monitor(finished.good, str(more), labelled=True)
    assert "the labels" in found.alarms and "the answers" in found.alarms
    assert "auroc" not in {each.name for each in found.measured}  # of one class alone


def test_new_rows_that_cannot_be_used_are_refused(finished):
    few = write_rows(finished.tmp / "few.csv", 5, 1, (ANIMALS, THINGS))
    with pytest.raises(InputError, match="few.csv: 5 rows .* at least 20"):
        monitor(finished.good, str(few))
    few.write_text(few.read_text().replace(",animal", ",plant"))
    with pytest.raises(InputError, match=r"does not know the label\(s\) plant, only animal"):
        monitor(finished.good, str(few), labelled=True)
    with pytest.raises(InputError, match=r"^nowhere.csv: no such file"):
        monitor(finished.good, "nowhere.csv")


def test_a_text_is_its_own_label(finished, shared_data):
    found = monitor(finished.story, str(shared_data / "text" / "wikitext2_test.txt"), most=60)
    assert found.drifted and "the rows" in found.alarms and found.reference == "validation"
    assert [each.name for each in found.measured] == ["loss"]
    assert found.measured[0].new > (found.measured[0].before or 0.0)


# --- evaluate ---


def test_winner_and_base_on_a_task_of_ones_own(finished, sweeps):
    own = write_task(finished.tmp / "tasks")
    done = sweeps("evaluate", finished.story, "--tasks", "stories", "--include", own)
    assert done.code == 0, done.out + done.err
    assert "acc ↑" in done.out and "Forgetting: loss on general text" in done.out
    ledger, _ = open_sweep(finished.story)
    scores = read_harness(ledger)
    assert [each.metric for each in scores] == ["acc", "acc_norm"]
    assert all(each.samples == 12 and each.paired and each.trial == "t0001" for each in scores)
    assert scores[0].difference == scores[0].trained - scores[0].base
    again = evaluate(finished.story, Asked(tasks=("stories",), include=own, limit=4))
    assert len(read_harness(ledger)) == 2 and again.scores[0].samples == 4


def test_what_is_no_language_model_is_refused(finished):
    with pytest.raises(InputError, match="is trained for classification"):
        evaluate(finished.good, Asked(tasks=("stories",)))
