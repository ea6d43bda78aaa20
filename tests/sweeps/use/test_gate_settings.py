"""gate.yaml, and the files for continuous integration."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from typer.main import get_command

from sweeps.cli.app import app
from sweeps.use.gate_config import GateConfig, load_gate
from sweeps.use.gate_files import junit, markdown, write
from sweeps.use.verdict import Check, Gate
from trainables.data.arrow import Split, write_split
from trainables.data.manifest import SplitSummary
from trainables.data.records import Encoded
from trainables.errors import InputError
from trainables.evaluation.prior import prior_losses
from trainables.tasks import TASKS

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "gate.yaml"


def test_the_example_has_every_setting_with_its_default():
    assert load_gate(EXAMPLE) == GateConfig() == load_gate(None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("latncy: {}", "latncy: unknown key. Did you mean 'latency'?"),
        ("limits: {klx: 1}", "limits.klx: unknown key"),
        ("limits: {kl: -1}", "limits.kl: must be above 0, got -1"),
        ("latency: {p95_ms: 0}", "latency.p95_ms: must be above 0, got 0"),
        ("latency: {p95_ms: fast}", "latency.p95_ms: must be a number or null, got 'fast'"),
        ("level: 0.7", "level: must be above 0 and below 0.5, got 0.7"),
        ("rivals: [promts]", "rivals: 'promts' is unknown"),
        ("test_rows: 0", "test_rows: must be at least 1, got 0"),
        ("cost: {per_1000_requests: 1}", "cost.per_1000_requests: needs the price"),
        ("metrics: {f1: {least: 1}}", "metrics.f1.least: unknown key. Allowed: min, max"),
        ("metrics: {f1: {}}", "metrics: each must have a min or a max, got neither"),
        ("- level", "got a list"),
        ("level: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(tmp_path, content, words):
    file = tmp_path / "gate.yaml"
    file.write_text(content)
    with pytest.raises(InputError) as caught:
        load_gate(file)
    assert words in str(caught.value) and str(caught.value).startswith(str(file))


def test_each_limit_is_looked_at_by_itself(tmp_path):
    file = tmp_path / "gate.yaml"
    file.write_text("limits: {kl: 0.5, slice_gap: 0.2, slice_rows: 10}")
    single = load_gate(file).single_limits
    assert list(single) == ["kl", "slice_gap"]
    assert single["kl"].slice_gap is None and single["slice_gap"].slice_rows == 10


def test_baselines_are_of_the_kinds_that_are_named():
    config = GateConfig(rivals=["prompts", "untuned"])
    asked = [
        n for n in ("untuned", "untuned_x-1", "few_shot", "prior", "embeddings_ridge", "default")
    ]
    assert [n for n in asked if config.holds_against(n)] == ["untuned", "untuned_x-1", "few_shot"]


FOUND = Gate(
    sweep="tickets",
    trial="t0003",
    checks=(
        Check(name="test rows", passed=True, words="the test split has 300 rows"),
        Check(name="better than a|b", passed=False, words="its loss is <within> noise\x00"),
    ),
)


def test_one_paragraph_says_first_what_decided():
    assert FOUND.words.startswith("Do not ship t0003 of tickets: its loss is <within> noise")
    assert "What it keeps to: the test split has 300 rows." in FOUND.words
    ships = Gate(sweep="tickets", trial="t0003", checks=FOUND.checks[:1])
    assert ships.ships and ships.words == "Ship t0003 of tickets: the test split has 300 rows."


def test_junit_is_read_by_a_parser_of_xml():
    suite = ElementTree.fromstring(junit(FOUND))[0]
    assert suite.attrib["tests"] == "2" and suite.attrib["failures"] == "1"
    passed, failed = suite
    assert passed.find("failure") is None
    failure = failed.find("failure")
    assert failure is not None and failure.attrib["message"] == "its loss is <within> noise\\x00"


def test_markdown_has_a_row_for_each_check(tmp_path):
    lines = markdown(FOUND).splitlines()
    assert lines[0] == "## Do not ship: tickets"
    assert lines[-1].startswith("| better than a\\|b | **failed** |")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^--markdown: .*file/below"):
        write(tmp_path / "file" / "below", "", "--markdown")


ROWS = [np.array([1], np.int32)] * 4
PRIORS = {
    "classification": (np.array([0, 1, 1, 2]), ("a", "b", "c"), np.ones(4)),
    "regression": (np.array([0.5, 1.5, -1.0, 4.0]), (), np.ones(4)),
    "multi_label": (
        [np.array(each, np.float32) for each in ([0, 1], [1, 1], [0, 0], [0, 1])],
        ("a", "b"),
        np.ones(4),
    ),
    "token_classification": (
        [np.array(each, np.int64) for each in ([-100], [0], [1], [1])],
        ("a", "b"),
        np.array([0, 1, 1, 1]),
    ),
}


@pytest.mark.parametrize("name", PRIORS)
def test_the_best_single_answer_row_by_row_is_its_mean_loss(name, tmp_path):
    labels, classes, targets = PRIORS[name]
    write_split(tmp_path / "test.arrow", Encoded(input_ids=ROWS, labels=labels))
    split, task = Split(tmp_path / "test.arrow"), TASKS[name]
    told = task.summarise(split, classes)
    summary = SplitSummary(
        rows=4, label_counts=told.counts, label_mean=told.mean, label_variance=told.variance
    )
    prior, found = (
        task.prior(summary, summary),
        prior_losses(task, summary, split, targets, classes),
    )
    assert prior is not None and found is not None
    assert found[:, 0].sum() / found[:, 1].sum() == pytest.approx(prior.loss)
    assert found[:, 1].tolist() == targets.tolist()


def test_tokens_have_no_best_single_answer(tmp_path):
    write_split(tmp_path / "test.arrow", Encoded(input_ids=ROWS))
    split, task = Split(tmp_path / "test.arrow"), TASKS["causal_lm"]
    assert prior_losses(task, SplitSummary(), split, np.ones(4), ()) is None


def test_the_action_calls_the_command_with_options_that_it_has():
    action = yaml.safe_load((EXAMPLE.parent / "gate-action.yml").read_text())
    steps = {step.get("name"): step for step in action["jobs"]["gate"]["steps"]}
    called = steps["Gate"]["run"]
    options = set(re.findall(r"--[\w-]+", called))
    known = {option for each in get_command(app).commands["gate"].params for option in each.opts}
    assert "-m sweeps gate" in called and options <= known and len(options) == 4
    assert "inputs." not in called, "an input that stands in a script is run"
