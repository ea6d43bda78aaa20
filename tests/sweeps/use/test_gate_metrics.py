"""Gate by the metric that a sweep was chosen by, on finished sweeps over tiny drawn models."""

import re
from pathlib import Path

import numpy as np
import pytest

from sweeps.ledger.opening import open_sweep
from sweeps.use.gate import gate
from sweeps.use.gate_config import GateConfig, MetricLimit
from sweeps.use.verdict import Check
from tests.sweeps.use.tiny_sweep import drawn, score_test, tiny_sweep
from trainables.errors import InputError
from trainables.evaluation.answered import read_answers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]

BY_LOSS = GateConfig(metric="val_loss", test_rows=10)
BY_METRIC = GateConfig(test_rows=10)


def scored(folder: Path, task: str, model: Path, metric: str, **settings: object) -> Path:
    """A finished sweep, chosen by a metric, whose winner was scored on its test split."""
    selection = {"metric": metric, "baselines": False}
    if task == "instruction":
        (folder / "general.txt").parent.mkdir(parents=True, exist_ok=True)
        selection["general_text"] = str(folder / "general.txt")
    data: dict[str, object] = {"test": 0.4, "validation": 0.2}
    if task == "classification":
        data["slice"] = "half"
    made = tiny_sweep(
        folder,
        task,
        model,
        "lora",
        rank=4,
        data=data,
        settings={"selection": selection, **settings},
    )
    score_test(made)
    return made


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("classifier")
    model = drawn(tmp / "model", "bert", "classification")
    return scored(tmp / "s", "classification", model, "accuracy")


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sweep, and that of the model in use."""
    tmp = tmp_path_factory.mktemp("writers")
    model = drawn(tmp / "model", "llama", "causal")
    asked = {"metrics": ["chrf"], "generation": {"rows": 12, "max_new_tokens": 4}}
    return (
        scored(tmp / "own", "instruction", model, "chrf", **asked),
        scored(tmp / "used", "instruction", model, "chrf", **asked),
    )


def checks(folder: Path, config: GateConfig, against: Path | None = None) -> dict[str, Check]:
    found = gate(str(folder), config, None if against is None else str(against))
    return {check.name: check for check in found.checks}


def rewrite(folder: Path, name: str, right: bool) -> None:
    """The outcomes of a classifier on the test split: all right, or all wrong."""
    file = folder / "baselines" / "test" / f"{name}.outcomes.npy"
    outcomes = np.load(file)
    outcomes[:, 0] = outcomes[:, 1] if right else (outcomes[:, 1] + 1) % 3
    np.save(file, outcomes)


def test_a_winner_of_a_higher_loss_ships_by_the_metric_that_chose_it(classifier):
    rewrite(classifier, "winner", right=True)
    losses = classifier / "baselines" / "test" / "winner.npy"
    kept = np.load(losses)
    np.save(losses, kept + [3.0, 0.0])  # sure of nothing, and right
    by_loss, by_metric = checks(classifier, BY_LOSS), checks(classifier, BY_METRIC)
    np.save(losses, kept)
    (name,) = (name for name in by_metric if name.startswith("better than"))
    said = re.search(r"its loss is (\S+) ± \S+ above that of", by_loss[name].words)
    assert not by_loss[name].passed and said is not None
    assert float(said[1]) == pytest.approx(3.0, abs=0.1), "a tiny model learns next to nothing"
    assert by_metric[name].passed and "its accuracy is 0." in by_metric[name].words
    assert " above that of always " in by_metric[name].words
    assert by_metric["test rows"].words.startswith("accuracy is told of 15 rows of the test split")
    slices = [check for each, check in by_metric.items() if each.startswith("slice ")]
    assert not slices, "of fewer than 30 rows"


def test_a_winner_that_is_wrong_does_not_ship_whatever_its_loss(classifier):
    rewrite(classifier, "winner", right=False)
    found = gate(str(classifier), BY_METRIC)
    rewrite(classifier, "winner", right=True)
    assert not found.ships and " below that of always " in found.words


def test_slices_are_compared_by_the_metric_too(classifier):
    config = GateConfig(test_rows=10)
    config.limits.__dict__["slice_rows"] = 4
    found = checks(classifier, config)
    words = [check.words for name, check in found.items() if name.startswith("slice ")]
    assert len(words) == 2 and all("rows) its accuracy is 0." in each for each in words)


def test_a_rival_of_which_the_metric_is_not_told_is_compared_by_its_loss(writers):
    untuned = writers[0] / "baselines" / "test" / "untuned.answers.json"
    by_metric = checks(writers[0], BY_METRIC)["better than the untuned model"].words
    aside = untuned.rename(untuned.with_suffix(".aside"))
    by_loss = checks(writers[0], BY_METRIC)["better than the untuned model"].words
    aside.rename(untuned)
    assert "its chrF is" in by_metric
    assert "its loss is" in by_loss and ", as chrF is not told of that" in by_loss


def test_limits_of_metrics_are_kept_to(classifier):
    limits = {
        "accuracy": MetricLimit(min=0.0),
        "macro_f1": MetricLimit(min=1.1),
        "rmse": MetricLimit(max=1),
    }
    found = checks(classifier, GateConfig(test_rows=10, metrics=limits))
    assert found["accuracy"].passed and "(at least 0 is asked)" in found["accuracy"].words
    assert not found["macro_f1"].passed and "(at least 1.1 is asked)" in found["macro_f1"].words
    assert not found["rmse"].passed and "its RMSE was not measured" in found["rmse"].words


def test_a_metric_that_the_sweep_has_not_is_refused(classifier):
    with pytest.raises(InputError, match=r"metric: must be val_loss or .*accuracy.*, got 'bleu'"):
        gate(str(classifier), GateConfig(metric="bleu"))


def test_the_model_in_use_answers_the_rows_that_the_winner_did(writers, monkeypatch):
    own, used = writers
    found = checks(own, BY_METRIC, used)
    (name,) = (name for name in found if name.startswith("better than the model in use"))
    assert "its chrF is 0.0000 ± 0.0000 below that of the model in use" in found[name].words
    assert found["test rows"].passed and "chrF is told of 12 rows" in found["test rows"].words
    ledger, _ = open_sweep(str(own))
    (kept,) = (file.name for file in (own / "baselines" / "test").glob("against-*.answers.json"))
    theirs = read_answers(ledger.store, f"baselines/test/{kept.removesuffix('.answers.json')}")
    mine = read_answers(ledger.store, "baselines/test/winner")
    assert theirs is not None and mine is not None
    assert (theirs.rows, theirs.texts, theirs.scores) == (mine.rows, mine.texts, mine.scores)

    monkeypatch.setattr("sweeps.use.trained.Trained.load", None)  # nobody is asked again
    assert checks(own, BY_METRIC, used)[name].words == found[name].words


def test_too_few_answers_say_which_setting_asks_for_more(writers):
    found = checks(writers[0], GateConfig())["test rows"]
    assert not found.passed and "generation.rows of the sweep is how many" in found.words


def test_a_winner_that_was_not_measured_by_the_metric_does_not_ship(writers):
    answers = writers[0] / "baselines" / "test" / "winner.answers.json"
    aside = answers.rename(answers.with_suffix(".aside"))
    found = gate(str(writers[0]), BY_METRIC)
    aside.rename(answers)
    assert not found.ships and "chrF, by which it is compared, was not measured" in found.words
    assert "`metric: val_loss`" in found.words
