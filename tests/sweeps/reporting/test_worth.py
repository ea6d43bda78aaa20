"""Was it worth it? The paragraph from a board."""

import re

import numpy as np
import pytest
from boards import board_of

from sweeps.reporting.worth import worth as worth_of
from trainables.storage.records import to_json

ROWS = 400


def board(*, winner=0.5, untuned=0.9, default=None, test=None, baselines=None, **more):
    evaluation = {
        "val_loss": winner,
        "folder": "trials/t0002/best",
        "checkpoint": "somewhere",
        "excluded": None,
    }
    trials = [{"id": "t0002", "default": False, "evaluations": [evaluation]}]
    if default is not None:
        first = {
            "val_loss": default,
            "folder": "trials/t0001/best",
            "checkpoint": "somewhere",
            "excluded": None,
        }
        trials.insert(0, {"id": "t0001", "default": True, "evaluations": [first]})
    return {
        "winner": {"trial": "t0002", **evaluation},
        "baselines": baselines or {"untuned": {"val_loss": untuned, "words": "the untuned model"}},
        "trials": trials,
        "test": test,
        **more,
    }


def worth(made, losses):
    found = worth_of(board_of(made), losses)
    return None if found is None else to_json(found)


def rows(mean, seed=0, spread=0.3):
    """Losses of rows whose mean is `mean`; those of one seed are paired."""
    noise = np.random.default_rng(seed).normal(0, spread, ROWS)
    return np.stack([mean + noise - noise.mean(), np.ones(ROWS)], 1).astype(np.float32)


def losses(**by_folder):
    return lambda folder: by_folder.get(folder.replace("/", "_"))


def test_a_gain_beyond_noise_was_worth_it():
    found = worth(
        board(), losses(trials_t0002_best=rows(0.5), baselines_validation_untuned=rows(0.9, seed=1))
    )
    assert (
        found["verdict"] == "yes"
        and found["best_baseline"] == "untuned"
        and found["split"] == "validation"
    )
    assert found["gain"] == pytest.approx(0.4) and found["interval"][0] < 0.4 < found["interval"][1]
    assert found["words"].startswith(
        "Yes, fine-tuning was worth it: validation loss 0.5000 against 0.9000 of the best way"
    )
    assert "the untuned model: 0.4000 lower (95% interval +0.3" in found["words"]


def test_a_gain_within_noise_is_not_clear():
    found = worth(
        board(winner=0.895),
        losses(trials_t0002_best=rows(0.895), baselines_validation_untuned=rows(0.9, seed=1)),
    )
    assert found["verdict"] == "within noise" and "is within noise" in found["words"]


def test_a_baseline_that_is_better_says_no():
    found = worth(
        board(winner=1.2),
        losses(trials_t0002_best=rows(1.2), baselines_validation_untuned=rows(0.9, seed=1)),
    )
    assert found["verdict"] == "no" and found["words"].startswith(
        "No, fine-tuning was not worth it"
    )
    said = re.search(
        r": ([\d.]+) higher \(95% interval ([+-][\d.]+) to ([+-][\d.]+)", found["words"]
    )
    higher, low, high = map(float, said.groups())
    assert 0 < low < higher < high, "bounds have the sign of their words"


def test_the_best_baseline_counts_and_not_the_first():
    others = {
        "untuned": {"val_loss": 2.0, "words": "the untuned model"},
        "few_shot": {
            "val_loss": 0.6,
            "words": "4 examples in the prompt",
            "tokens_per_request": 420.0,
        },
        "broken": {"val_loss": None, "words": "nothing"},
    }
    found = worth(board(baselines=others, tokens_per_request=31.0), losses())
    assert found["best_baseline"] == "few_shot" and found["interval"] is None
    assert (
        "a request is 31 tokens long with the winner, 420 with 4 examples in the prompt"
        in found["words"]
    )


def test_where_the_test_split_was_scored_it_decides():
    scores = {"winner": {"loss": 0.7}, "prior": {"loss": 0.65, "words": "train's label shares"}}
    found = worth(board(test={"scores": scores}), losses())
    assert (
        found["split"] == "test"
        and found["verdict"] == "no"
        and "test loss 0.7000 against 0.6500" in found["words"]
    )


def test_what_the_search_added_over_the_default():
    files = losses(trials_t0002_best=rows(0.5), trials_t0001_best=rows(0.6, seed=1))
    assert (
        "The search lowered validation loss by 0.1000 (95%"
        in worth(board(default=0.6), files)["words"]
    )
    files = losses(trials_t0002_best=rows(0.5), trials_t0001_best=rows(0.501, seed=1))
    assert (
        "over the default configuration, t0001, is within noise: +0.0010"
        in worth(board(default=0.501), files)["words"]
    )
    won = board(default=0.6)
    won["winner"]["trial"] = "t0001"
    assert "nothing better than the default configuration, t0001" in worth(won, losses())["words"]


def test_what_the_search_added_is_told_on_the_test_split_once_that_is_scored():
    test = {
        "scores": {
            name: {"loss": loss}
            for name, loss in (("winner", 0.5), ("default", 0.55), ("untuned", 0.9))
        }
    }
    files = losses(baselines_test_winner=rows(0.5), baselines_test_default=rows(0.55, seed=1))
    found = worth(board(default=0.7, test=test), files)
    assert "The search lowered test loss by 0.0500 (95%" in found["words"]
    assert found["best_baseline"] == "untuned", "the default configuration is fine-tuning too"


def test_a_default_that_is_better_on_the_test_split_is_said_to_be():
    test = {
        "scores": {
            name: {"loss": loss}
            for name, loss in (("winner", 0.55), ("default", 0.5), ("untuned", 0.9))
        }
    }
    files = losses(baselines_test_winner=rows(0.55, seed=1), baselines_test_default=rows(0.5))
    words = worth(board(default=0.7, test=test), files)["words"]
    assert (
        "The search added nothing: the test loss of the default configuration, t0001, is 0.0500 lower than the winner's (95% interval +"
        in words
    )


def many_equal(count, seed):
    """A board of trials that are all as good as the default, the first, and as a baseline; losses by folder."""
    rng = np.random.default_rng(seed)
    hard = rng.gamma(2.0, 0.5, ROWS)
    names = [f"trials/t{number:04d}/best" for number in range(1, count + 1)]
    table = {
        name: hard * rng.lognormal(-0.02, 0.2, ROWS)
        for name in [*names, "baselines/validation/few_shot"]
    }
    table = {name: np.stack([found, np.ones(ROWS)], 1) for name, found in table.items()}
    mean = {name: float(found[:, 0].mean()) for name, found in table.items()}
    trials = [
        {
            "id": name.split("/")[1],
            "default": name == names[0],
            "evaluations": [
                {"val_loss": mean[name], "folder": name, "checkpoint": "it", "excluded": None}
            ],
        }
        for name in names
    ]
    best = min(trials, key=lambda trial: trial["evaluations"][0]["val_loss"])
    baselines = {
        "few_shot": {"val_loss": mean["baselines/validation/few_shot"], "words": "a prompt"}
    }
    winner = {"trial": best["id"], **best["evaluations"][0]}
    return {"winner": winner, "trials": trials, "baselines": baselines, "test": None}, table.get


def test_of_equal_trials_the_best_is_no_better_than_the_default_or_the_baseline():
    """The lowest of thirty equal losses lies below any one of them, by about two standard errors; that is no gain."""
    worth_it, lowered = 0, 0
    for seed in range(60):
        found = worth(*many_equal(30, seed))
        worth_it += found["verdict"] == "yes"
        lowered += "The search lowered" in found["words"]
    assert (
        worth_it <= 5 and lowered <= 5
    )  # 1.5 of 60 at 2.5%; without allowing for the choice 19 and 19


def test_that_the_choice_is_allowed_for_is_said():
    words = worth(*many_equal(30, 1))["words"]
    assert words.count("the choice among all checkpoints allowed for") == 2
    scores = {
        name: {"loss": loss}
        for name, loss in (("winner", 0.5), ("default", 0.55), ("untuned", 0.9))
    }
    files = losses(baselines_test_winner=rows(0.5), baselines_test_untuned=rows(0.9, seed=1))
    assert "allowed for" not in worth(board(default=0.7, test={"scores": scores}), files)["words"]


def test_a_winner_that_repeats_the_default_with_another_seed_is_nothing_better():
    won = board(default=0.6)
    won["trials"].append(
        {"id": "t0003", "default": False, "finalist_of": "t0001", "evaluations": []}
    )
    won["winner"]["trial"] = "t0003"
    assert "nothing better than the default configuration, t0001" in worth(won, losses())["words"]


def test_what_it_cost():
    cost = {"device": "GPU", "device_seconds": 3 * 3600.0}
    assert (
        "The sweep took 3.0 GPU hours for 1 trials." in worth(board(cost=cost), losses())["words"]
    )


@pytest.mark.parametrize(
    ("times", "said"), [(1.0, None), (1.005, None), (1.006, "1.01"), (1.25, "1.25"), (None, None)]
)
def test_what_a_request_of_the_winner_computes(times, said):
    made = board(cost={"device": "GPU", "device_seconds": 7200.0})
    if times is not None:  # a board of before it was measured has none
        made["winner"]["inference_cost"] = times
    words = worth(made, losses())["words"]
    more = f"; it computes {said} times what the untuned model does" if said else ""
    assert f"The sweep took 2.0 GPU hours for 1 trials{more}." in words


def test_without_a_winner_or_anything_to_compare_with_there_is_nothing_to_say():
    assert worth({**board(), "winner": None}, losses()) is None
    assert worth(board(baselines={"untuned": {"val_loss": None}}), losses()) is None
