"""Metrics beside the loss: what is compared, when a metric disagrees with the loss, what the winner answers by class."""

import numpy as np
import pytest
from boards import board_of, record

from sweeps.ledger.leaderboard import MetricsReport
from sweeps.reporting import metrics
from sweeps.reporting.metrics import metrics_of
from sweeps.reporting.worth import worth as worth_of
from sweeps.selection.resampling import resampled_metrics
from trainables.data.manifest import Manifest, SplitSummary
from trainables.evaluation.class_metrics import class_metrics, confusion_matrix, count_classes
from trainables.storage.records import to_json
from trainables.tasks import TASKS

CLASSES = TASKS["classification"]
LABELS = ["sadness", "joy", "anger", "love"]
SHARES = [0.3, 0.35, 0.2, 0.15]


def rows_of(right, *, rows=800, seed=0, instead=1):
    """Predicted and true class of rows: of each class the share `right` is answered rightly, the rest as `instead`."""
    true = np.repeat(np.arange(4), (np.array(SHARES) * rows).astype(int))
    hit = np.random.default_rng(seed).random(len(true)) < np.array(right)[true]
    return np.stack([np.where(hit, true, (true + instead) % 4), true], 1)


def evaluation(loss, folder, **metrics):
    return {
        "val_loss": loss,
        "folder": folder,
        "checkpoint": "here",
        "excluded": None,
        "metrics": metrics,
    }


def board(*, winner=0.5, test=None, default=None, **baselines):
    """Losses of everything; `test`: the losses of the test split, by name."""
    won = evaluation(winner, "trials/t0002/best")
    trials = [{"id": "t0002", "default": False, "evaluations": [won]}]
    if default is not None:
        trials.insert(
            0,
            {
                "id": "t0001",
                "default": True,
                "evaluations": [evaluation(default, "trials/t0001/best")],
            },
        )
    words = {"logistic": "logistic regression", "prior": "train's label shares"}
    return {
        "winner": {"trial": "t0002", **won},
        "trials": trials,
        "baselines": {
            name: {
                "val_loss": loss,
                "metrics": {},
                "words": words.get(name, f"the {name} way"),
                "class": "joy",
            }
            for name, loss in baselines.items()
        },
        "test": None
        if test is None
        else {
            "scores": {
                name: {"loss": loss, "metrics": {}, "words": words.get(name)}
                for name, loss in test.items()
            }
        },
    }


def measured(made, *, groups=None, labels=LABELS, validation=None, test=None):
    answers = {"validation": validation or {}, "test": test or {}}
    manifest = None
    if labels is not None:
        train = SplitSummary(label_counts=dict(zip(LABELS, [30, 35, 20, 15], strict=True)))
        manifest = Manifest(task="classification", labels=tuple(labels), splits={"train": train})
    found = metrics_of(
        board_of(made), manifest, lambda split, name: answers[split].get(name), lambda split: groups
    )
    return to_json(found)


def by_class(outcomes, labels):
    return to_json(metrics.by_class(TASKS["classification"].by_class(outcomes, labels)))


def disagreements(found, *args):
    return metrics.disagreements(None if found is None else record(MetricsReport, found), *args)


def hardly_answered(found, split):
    return metrics.hardly_answered(None if found is None else record(MetricsReport, found), split)


def worth(made, losses):
    return to_json(worth_of(board_of(made), losses))


# --- metrics of classes ---


def test_metrics_of_classes():
    predictions, labels = np.array([0, 0, 1, 1, 3]), np.array([0, 1, 1, 0, 0])
    counts = count_classes(predictions, labels, 5)
    assert [each.tolist() for each in counts] == [[1, 1, 0, 0, 0], [2, 2, 0, 1, 0], [3, 2, 0, 0, 0]]
    assert class_metrics(counts) == {
        "accuracy": 0.4,
        "macro_f1": pytest.approx((2 / 5 + 2 / 4 + 0) / 3),
        "weighted_f1": pytest.approx((3 * 2 / 5 + 2 * 2 / 4) / 5),
    }
    assert confusion_matrix(predictions, labels, 4)[0].tolist() == [1, 1, 0, 1]


def test_what_is_answered_by_class():
    found = by_class(np.array([[0, 0], [0, 0], [1, 0], [1, 1], [1, 3]]), LABELS)
    assert found["confusion"] == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert found["classes"][0] == {
        "label": "sadness",
        "rows": 3,
        "answered": 2,
        "recall": 2 / 3,
        "precision": 1.0,
        "answered_as": {"sadness": 2, "joy": 1},
    }
    assert (found["classes"][2]["recall"], found["classes"][2]["precision"]) == (None, None)
    assert (found["classes"][3]["recall"], found["classes"][3]["precision"]) == (0.0, None)
    assert found["hardly"] == [], "one row of a class is too few to say so"


@pytest.mark.parametrize(
    ("answered", "rows", "said"),
    [(20, 123, True), (41, 123, True), (42, 123, False), (0, 5, True), (0, 3, False)],
)
def test_a_class_that_is_hardly_ever_answered(answered, rows, said):
    true = np.repeat([0, 1], [rows, 200])
    predicted = np.where(np.arange(len(true)) < answered, 0, 1)
    found = by_class(np.stack([predicted, true], 1), ["surprise", "joy"])
    assert found["hardly"] == (["surprise"] if said else [])
    words = hardly_answered({"classes": {"test": found}}, "test")
    expected = f"On test the winner hardly ever answers surprise ({answered} times where {rows} were true)."
    assert words == (expected if said else "")
    assert (
        hardly_answered({"classes": {"test": found}}, "validation")
        == hardly_answered({"classes": None}, "test")
        == ""
    )


# --- what is compared ---


def test_every_alternative_stands_with_its_metrics_on_both_splits():
    made = board(
        default=0.6,
        untuned=1.4,
        prior=1.3,
        logistic=0.7,
        test={"winner": 0.55, "default": 0.6, "logistic": 0.72},
    )
    own, other = rows_of([0.9, 0.9, 0.9, 0.2]), rows_of([0.7] * 4)
    validation = {"winner": own, "default": other, "untuned": rows_of([0.3] * 4), "logistic": other}
    found = measured(
        made, validation=validation, test={"winner": other, "default": own, "logistic": own}
    )
    by_name = {each["name"]: each for each in found["alternatives"]}
    assert list(by_name) == ["winner", "default", "untuned", "prior", "logistic"]
    assert by_name["winner"]["validation"] == {
        "loss": 0.5,
        "metrics": class_metrics(count_classes(*own.T, 4)),
    }
    assert by_name["default"]["test"]["metrics"] == class_metrics(count_classes(*own.T, 4))
    assert by_name["default"]["words"] == "the default configuration, t0001"
    assert by_name["untuned"]["test"] is None
    assert by_name["prior"]["words"] == "always joy, at train's label shares"
    f1 = 2 * 0.35 / 1.35 / 4
    assert by_name["prior"]["validation"]["metrics"] == {
        "accuracy": pytest.approx(0.35),
        "macro_f1": pytest.approx(f1),
        "weighted_f1": pytest.approx(f1 * 4 * 0.35),
    }
    assert set(found["classes"]) == set(found["compared"]) == {"validation", "test"}
    asked = [(each["metric"], each["name"]) for each in found["compared"]["validation"]]
    names = ("accuracy", "macro_f1", "weighted_f1")
    assert set(asked) == {(m, n) for m in names for n in ("default", "logistic")}


def test_what_kept_no_outcomes_stands_with_what_it_has():
    made = board(logistic=0.7, test={"winner": 0.55})
    made["baselines"]["logistic"]["metrics"] = {"accuracy": 0.25}
    found = measured(made)
    assert found["classes"] is None and found["compared"] == {}
    assert found["alternatives"][1]["validation"] == {"loss": 0.7, "metrics": {"accuracy": 0.25}}
    other_rows = rows_of([0.9] * 4, rows=400)
    found = measured(made, validation={"winner": rows_of([0.5] * 4), "logistic": other_rows})
    assert found["compared"]["validation"] == []


def test_metrics_of_what_was_written_stand_beside_the_tasks_own():
    made = board(untuned=1.4)
    made["winner"]["metrics"] = {"exact_match": 0.75, "reward_accuracy": 0.5}
    pairs = Manifest(task="preference", splits={"train": SplitSummary()})
    answers = {"winner": np.ones((40, 3))}
    found = metrics_of(
        board_of(made), pairs, lambda split, name: answers.get(name), lambda split: None
    )
    assert found.alternatives[0].validation.metrics == {
        "exact_match": 0.75,
        **TASKS["preference"].metrics(answers["winner"]),
    }


def test_language_models_have_no_classes():
    made = board(untuned=1.4)
    made["winner"]["metrics"] = {"perplexity": 1.6}
    found = measured(made, labels=None, validation={"winner": rows_of([1] * 4)})
    assert found["classes"] is None and found["alternatives"][0]["validation"]["metrics"] == {
        "perplexity": 1.6
    }


GOOD, LOVELESS = [0.8] * 4, [0.9, 0.9, 0.9, 0.1]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_metric_that_disagrees_with_the_loss_is_said_in_the_paragraph(split):
    """The winner has the lower loss, and answers a class that it hardly ever finds as another."""
    scores = {"winner": 0.5, "logistic": 0.6} if split == "test" else None
    made = board(logistic=0.6, default=0.55, test=scores)
    answers = {"winner": rows_of(LOVELESS), "logistic": rows_of(GOOD, seed=1)}
    made["metrics"] = measured(made, **{split: answers})
    words = worth(made, lambda folder: None)["words"]
    own, other = (
        class_metrics(count_classes(*answers[name].T, 4))["macro_f1"]
        for name in ("winner", "logistic")
    )
    assert words.startswith("Yes, fine-tuning was worth it")
    assert (
        f"But by macro-F1 logistic regression is better: {other:.3f} against {own:.3f} (95% interval +0.0"
        in words
    )
    assert "accuracy" not in words
    assert f"On {split} the winner hardly ever answers love (" in words


def test_a_difference_within_noise_is_not_said():
    made = board(logistic=0.6)
    made["metrics"] = measured(
        made, validation={"winner": rows_of(GOOD), "logistic": rows_of(GOOD, seed=3)}
    )
    words = worth(made, lambda folder: None)["words"]
    assert "macro-F1" not in words and "accuracy" not in words and "hardly" not in words


def test_what_the_winner_was_chosen_by_is_said_where_it_tells_nothing_and_where_it_agrees():
    said = []
    for other in (rows_of(GOOD, seed=3), rows_of([0.3] * 4, seed=3)):
        made = board(logistic=0.6, test={"winner": 0.5, "logistic": 0.6}) | {"metric": "macro_f1"}
        answers = {"winner": rows_of(GOOD), "logistic": other}
        made["metrics"] = measured(made, validation=answers, test=answers)
        said.append(worth(made, lambda folder: None)["words"])
        on_validation = disagreements(made["metrics"], "validation", "yes", "macro_f1")
        assert all("cannot be told" in sentence for sentence in on_validation)
    told = "By macro-F1, which it was chosen by, the winner"
    assert all("Yes, fine-tuning was worth it" in words for words in said)
    assert f"{told} cannot be told from logistic regression: 0." in said[0]
    assert f"{told} is better than logistic regression too: 0." in said[1]


def test_a_metric_that_the_loss_agrees_with_is_not_said():
    """A baseline of lower loss and better metrics: the paragraph says No already."""
    made = board(winner=0.7, logistic=0.6)
    made["metrics"] = measured(
        made, validation={"winner": rows_of([0.5] * 4), "logistic": rows_of(GOOD)}
    )
    words = worth(made, lambda folder: None)["words"]
    assert words.startswith("No") and "better" not in words


def test_a_winner_of_higher_loss_and_better_metrics_is_said_on_the_test_alone():
    answers = {"winner": rows_of([0.9] * 4), "logistic": rows_of([0.6] * 4, seed=1)}
    made = board(winner=0.7, logistic=0.6, test={"winner": 0.7, "logistic": 0.6})
    made["metrics"] = measured(made, validation=answers, test=answers)
    words = worth(made, lambda folder: None)["words"]
    assert (
        words.startswith("No")
        and "But by accuracy the winner is better than logistic regression: 0.8" in words
    )
    assert disagreements(made["metrics"], "validation", "no") == []


def test_the_default_configuration_that_is_better_by_a_metric_is_said():
    made = board(logistic=0.9, default=0.55)
    answers = {
        "winner": rows_of(LOVELESS),
        "default": rows_of(GOOD, seed=1),
        "logistic": rows_of([0.3] * 4),
    }
    made["metrics"] = measured(made, validation=answers)
    words = worth(made, lambda folder: None)["words"]
    assert "But by macro-F1 the default configuration, t0001 is better: " in words
    assert "logistic regression is better" not in words


def test_the_best_of_many_ways_by_a_metric_needs_more_than_the_way_of_the_lowest_loss():
    """Chosen by its metric among six others, so its interval is wider."""
    ways = {f"way{i}": 0.7 + i / 100 for i in range(6)}
    made = board(logistic=0.6, **ways)
    answers = {name: rows_of(GOOD, seed=2 + i) for i, name in enumerate(ways)}
    answers |= {"winner": rows_of(GOOD), "logistic": rows_of([0.7] * 4, seed=1)}
    compared = measured(made, validation=answers)["compared"]["validation"]
    of = {each["name"]: each["of"] for each in compared if each["metric"] == "macro_f1"}
    assert of.pop("logistic") == 3 and list(of.values()) == [18]
    widths = {
        each["of"]: each["high"] - each["low"] for each in compared if each["metric"] == "macro_f1"
    }
    assert 1.1 < widths[18] / widths[3] < 1.45


def test_equal_ways_are_seldom_called_better():
    """Seven equal ways and two metrics; of 300 such boards 5% said so."""
    made = board(logistic=0.6, **{f"way{i}": 0.7 for i in range(6)})
    false = 0
    for seed in range(30):
        names = ["winner", *made["baselines"]]
        answers = {
            name: rows_of([0.7] * 4, rows=300, seed=1000 * seed + i) for i, name in enumerate(names)
        }
        false += bool(disagreements(measured(made, validation=answers), "validation", "yes"))
    assert false <= 4


def test_rows_of_one_group_are_drawn_together():
    """Ten copies of each row are no more evidence than the row."""
    one, other = rows_of(GOOD, rows=100), rows_of([0.7] * 4, rows=100, seed=1)

    def width(times, groups):
        answers = {"a": np.repeat(one, times, axis=0), "b": np.repeat(other, times, axis=0)}
        drawn = resampled_metrics(answers, CLASSES.metrics, groups)
        return (drawn["a"]["macro_f1"] - drawn["b"]["macro_f1"]).std()

    grouped = np.repeat(np.arange(len(one)), 10)
    assert width(10, grouped) == pytest.approx(width(1, None), rel=1e-9)
    assert width(10, None) == pytest.approx(width(1, None) / 10**0.5, rel=0.2)


def numbers(error, seed=0, rows=400):
    """Predicted and true numbers of rows, that are off by so much."""
    random = np.random.default_rng(seed)
    true = np.random.default_rng(99).normal(size=rows)
    return np.stack([true + error * random.normal(size=rows), true], 1)


def test_of_an_error_the_lower_is_better():
    """The way of the lowest loss has the larger error here, another the lowest, and the winner is between."""
    made = board(logistic=0.6, nearest=0.7)
    made["baselines"]["prior"] = {**made["baselines"]["logistic"], "val_loss": 1.0, "words": None}
    answers = {"winner": numbers(0.5), "logistic": numbers(0.8, 1), "nearest": numbers(0.2, 2)}
    train = SplitSummary(label_mean=0.0, label_variance=1.0)
    manifest = Manifest(task="regression", splits={"train": train})
    found = to_json(
        metrics_of(
            board_of(made),
            manifest,
            lambda split, name: answers.get(name) if split == "validation" else None,
            lambda split: None,
        )
    )
    compared = {(e["metric"], e["name"]): e for e in found["compared"]["validation"]}
    assert {name for metric, name in compared if metric == "rmse"} == {"logistic", "nearest"}
    assert {name for metric, name in compared if metric == "pearson"} == {"logistic", "nearest"}
    assert compared["rmse", "nearest"]["high"] < 0 < compared["rmse", "logistic"]["low"]
    assert compared["rmse", "nearest"]["lower_is_better"]
    assert "lower_is_better" not in compared["pearson", "nearest"]
    of_prior = next(each for each in found["alternatives"] if each["name"] == "prior")
    assert of_prior["validation"]["metrics"]["pearson"] is None, "it is constant"
    made["metrics"] = found
    words = worth(made, lambda folder: None)["words"]
    errors = [TASKS["regression"].metrics(answers[name])["rmse"] for name in ("nearest", "winner")]
    best, own = errors
    assert (
        f"But by RMSE the nearest way is better: {best:.3f} against {own:.3f} (95% interval -0."
        in words
    )
    assert "But by Spearman's correlation the nearest way is better: 0.9" in words
    assert "logistic regression is better" not in words
