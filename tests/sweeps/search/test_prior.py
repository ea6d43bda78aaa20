"""What a search knows of earlier sweeps: their trials, each sweep's by its own order, and the less the less alike."""

import math
from dataclasses import replace
from statistics import median

import optuna
import pytest

from search_spaces import Int, Uniform
from sweeps.config.loading import dump
from sweeps.config.schema import SearchConfig
from sweeps.run.folder import tracked
from sweeps.search.draws import DrawnByNumber
from sweeps.search.points import distribution
from sweeps.search.prior import Known, read_prior, saved_prior
from sweeps.search.searcher import StudySearcher
from sweeps.search.study import make_sampler
from sweeps.tracking.runs import TrackedTrial
from tests.sweeps.search.test_study import CONTINUOUS, Sweep
from trainables.data.config import DataConfig
from trainables.data.manifest import Manifest, SourceSummary, SplitSummary, manifest_json
from trainables.errors import InputError

SPLITS = ("train", "validation")
MODEL = {"model.safetensors": "abc"}
DATA = Manifest(
    sources={
        "train": SourceSummary(source="rows.csv", sha256="1"),
        "validation": SourceSummary(source="more.csv", sha256="2"),
    }
)
BEST = 1e-3
CHOICE = {"rate": Uniform(0.0, 1.0), "rank": Int(1, 8)}


def loss_of(rate, scale=1.0):
    return scale * (1 + (math.log10(rate) - math.log10(BEST)) ** 2)


def earlier(folder, rates, space=CONTINUOUS, *, base=MODEL, data=DATA, scale=1.0, **more):
    """The folder of a sweep that has tried these learning rates."""
    sweep = Sweep(folder, space, trials=len(rates), initial=[{"learning_rate": r} for r in rates], **more)  # fmt: skip
    for rate in rates:
        sweep.run(loss_of(rate, scale))
    sweep.ledger.store.write_bytes("sweep.yaml", dump(sweep.config).encode())
    sweep.ledger.store.write_json("base.json", base)
    sweep.ledger.store.write_json("data/manifest.json", manifest_json(data))
    return str(folder)


def known(config, *, base=MODEL, data=DATA):
    return Known.of(read_prior(config, data, base), config)


def config_of(folder, *folders, space=CONTINUOUS, **search):
    return Sweep(folder, space, prior=list(folders), **search).config


def test_what_counts_depends_on_model_and_data(tmp_path):
    folder = earlier(tmp_path / "a", [1e-4, 1e-3])
    config = config_of(tmp_path / "b", folder)
    other = Manifest(sources={"train": SourceSummary(source="rows.csv", sha256="9")})
    tested = Manifest(sources={**DATA.sources, "test": SourceSummary(source="t.csv", sha256="5")})
    likeness = [
        known(config, base=base, data=data).sweeps[0].sweep.likeness
        for base, data in (
            (MODEL, DATA),
            (MODEL, tested),
            ({}, DATA),
            (MODEL, other),
            ({"model.safetensors": "x"}, other),
        )
    ]
    assert likeness == [1, 1, 0.5, 0.5, 0.25]


def test_trials_outside_the_space_are_left_out_and_told(tmp_path):
    folder = earlier(tmp_path / "a", [2e-5, 1e-4, 1e-3])
    narrow = CONTINUOUS | {"learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    found = known(config_of(tmp_path / "b", folder, space=narrow))
    assert list(found.words(20)) == [
        f"Known: 2 trials of {folder} (the same model, the same data: each counts 1; 1 more lie outside the space)",
        "  the best 2 of the likest sweep are tried first",
    ]
    other = CONTINUOUS | {"method": "full"}
    words = list(known(config_of(tmp_path / "c", folder, space=other)).words(20))
    assert words[-1] == "  none of their trials lies in this space, so nothing is known"


def test_a_hyperparameter_that_varies_only_now_had_its_default(tmp_path):
    folder = earlier(tmp_path / "a", [1e-3])
    space = CONTINUOUS | {"rank": {"choice": [4, 8, 16]}, "weight_decay": {"uniform": [0, 0.1]}}
    (point,) = known(config_of(tmp_path / "b", folder, space=space)).first(20)
    assert point == {"learning_rate": 1e-3, "rank": 8, "weight_decay": 0.01}


def test_trials_that_say_nothing_and_finalists_do_not_count(tmp_path):
    folder = tmp_path / "a"
    earlier(folder, [1e-3])
    sweep = Sweep(folder, CONTINUOUS, trials=9)
    sweep.end(sweep.ask(), ended="failed", reason="out of memory")
    diverged = sweep.ask()
    sweep.evaluate(diverged, math.nan)
    sweep.end(diverged, ended="diverged", reason="its loss is not finite")
    sweep.ask()  # still running
    sweep.ledger.begin("t0099", {"learning_rate": 1e-3, "seed": 5}, finalist_of="t0001")
    sweep.ledger.finish("t0099", "complete", None)
    (found,) = read_prior(config_of(tmp_path / "b", str(folder)), DATA, MODEL).sweeps
    assert [trial.loss for trial in found.trials] == [1.0, None]


def test_trials_of_which_nothing_may_win_are_not_good(tmp_path):
    folder = tmp_path / "a"
    earlier(folder, [1e-3])
    sweep = Sweep(folder, CONTINUOUS, trials=9)
    for _ in range(3):
        diverged = sweep.ask()
        sweep.evaluate(diverged, math.nan)
        sweep.end(diverged, ended="diverged", reason="its loss is not finite")
    found = known(config_of(tmp_path / "b", str(folder), trials=40))
    assert found.first(40) == [{"learning_rate": 1e-3}] == list(found.sweeps[0].good)
    assert len(found.sweeps[0]) == 4


def test_the_likest_that_has_trials_here_is_tried_first(tmp_path):
    like = earlier(tmp_path / "like", [1e-3], CONTINUOUS | {"method": "full"})
    unlike = earlier(tmp_path / "unlike", [3e-5, 3e-4], base={})
    found = known(config_of(tmp_path / "now", like, unlike))
    assert [point["learning_rate"] for point in found.first(20)] == [3e-4, 3e-5]
    assert list(found.words(20))[-1] == "  the best 2 of the likest sweep are tried first"


def test_rows_of_which_something_else_is_learnt_are_other_data(tmp_path):
    folder = earlier(tmp_path / "a", [1e-3])
    other = replace(DATA, data=DataConfig(label="stars"))
    found = known(config_of(tmp_path / "b", folder), data=other)
    assert not found.sweeps[0].sweep.same_data


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda tmp: str(tmp / "none"), "search.prior[0]: {}: no such folder"),
        (
            lambda tmp: earlier(tmp / "a", [1e-3], task="causal_lm"),
            "search.prior[0]: {}: a sweep of task causal_lm; this one is of classification",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(tmp_path, make, message):
    folder = make(tmp_path)
    with pytest.raises(InputError) as raised:
        read_prior(config_of(tmp_path / "b", folder), DATA, MODEL)
    assert str(raised.value).startswith(message.format(folder))


@pytest.mark.parametrize("same", [True, False])
def test_a_sweep_in_wandb_tells_what_its_folder_tells(tmp_path, monkeypatch, same):
    def splits(digest):
        return {name: SplitSummary(rows=9, fingerprint=f"{name} {digest}") for name in SPLITS}

    ours = replace(DATA, splits=splits("a"))
    former = Sweep(tmp_path / "a", CONTINUOUS, trials=3).config
    about = tracked(former, replace(DATA, splits=splits("a" if same else "b")), MODEL, ())
    told = [
        TrackedTrial(
            config=about | former.complete(former.space().middle() | {"learning_rate": rate}),
            summary={"status": status, "best/val_loss": loss_of(rate)},
        )
        for rate, status in ((1e-4, "complete"), (1e-3, "pruned"), (1e-2, "failed"))
    ]
    monkeypatch.setattr("sweeps.search.prior.trials_of", lambda name, where: told)
    config = config_of(tmp_path / "b", "wandb:me/p/tickets-1")
    (sweep,) = Known.of(read_prior(config, ours, MODEL), config).sweeps
    assert (sweep.sweep.same_model, sweep.sweep.same_data) == (True, same)
    assert sweep.sweep.folder == "wandb:me/p/tickets-1" and len(sweep) == 2
    assert sweep.promising[0]["learning_rate"] == 1e-3
    told[0] = replace(told[0], config=dict(told[0].config) | {"task": "causal_lm"})
    with pytest.raises(InputError, match="wandb:me/p/tickets-1: a sweep of task causal_lm"):
        read_prior(config, ours, MODEL)


def test_only_tpe_learns_from_trials():
    with pytest.raises(InputError, match="search.prior: only sampler tpe"):
        SearchConfig(prior=["runs/a"], sampler="random")


def test_the_best_of_the_likest_are_tried_first_and_once(tmp_path):
    like = earlier(tmp_path / "like", [1e-5, 2e-3, 6e-4, 1e-4])
    unlike = earlier(tmp_path / "unlike", [3e-5], base={})
    now = Sweep(tmp_path / "now", CONTINUOUS, prior=[unlike, like], trials=20)
    read_prior(now.config, DATA, MODEL).save(now.ledger)

    def searcher():
        first = Known.of(saved_prior(now.ledger), now.config).first(now.config.search.trials)
        now.searcher = StudySearcher(
            config=now.config, space=now.config.space(), study=now.study, ledger=now.ledger, first=first,
            coordinator="", namespace="", stopped=lambda: None, room=lambda: True,
            on_start=lambda *_: None, on_end=lambda _: None, say=now.said.append,
        )  # fmt: skip

    searcher()
    rates = [now.run(1.0).params["learning_rate"] for _ in range(3)]
    searcher()  # resumed
    rates += [now.run(1.0).params["learning_rate"] for _ in range(3)]
    middle = now.config.space().middle()["learning_rate"]
    assert rates[:4] == [middle, 6e-4, 2e-3, 1e-4]
    assert not {6e-4, 2e-3, 1e-4, 3e-5} & set(rates[4:])


# What TPE makes of it


def suggestions(known, count, *, trials=40, best=BEST):
    """Median distance from the best rate, in powers of ten, of the first so many suggestions."""
    found = []
    for seed in range(15):
        sampler = make_sampler(SearchConfig(trials=trials), seed, known)
        study = optuna.create_study(sampler=sampler)
        for _ in range(count):
            trial = study.ask()
            rate = trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
            found.append(abs(math.log10(rate / best)))
            study.tell(trial, (math.log10(rate / best)) ** 2)
    return median(found[len(found) - 15 * min(count, 3) :])


def test_like_sweeps_take_the_place_of_random_trials(tmp_path):
    rates = [10 ** (-5 + 3 * i / 19) for i in range(20)]
    for scale in (1.0, 1000.0):  # losses of two sweeps do not compare
        folder = earlier(tmp_path / f"a{scale}", rates, scale=scale)
        config = config_of(tmp_path / f"b{scale}", folder, trials=40)
        found = known(config)
        assert found.random_trials(10) == 0
        assert suggestions(found, 3) < 0.6 * suggestions(None, 3)


@pytest.mark.parametrize(
    "base, data, weights", [(MODEL, DATA, [1, 1, 1]), ({}, Manifest(), [0.25, 0.25**2, 0.25**3])]
)
def test_what_differs_fades_with_the_trials_of_the_search(tmp_path, base, data, weights):
    folder = earlier(tmp_path / "a", [1e-4, 1e-3])
    found = known(config_of(tmp_path / "b", folder, trials=40), base=base, data=data)
    sampler = make_sampler(SearchConfig(trials=40), 0, found)._sampler
    names = {"learning_rate": distribution(CHOICE["rate"])}
    each = [sampler._earlier(names, True, own) for own in (0, 10, 20)]
    assert [weight for _, (weight,) in each] == weights
    assert all(points == [{"learning_rate": 1e-3}] for points, _ in each)
    assert sampler._earlier({**names, "rank": names["learning_rate"]}, True, 0) == ([], [])


def test_what_misleads_is_overcome(tmp_path):
    rates = [10 ** (-5 + 3 * i / 19) for i in range(20)]
    folder = earlier(tmp_path / "a", rates, base={})
    config = config_of(tmp_path / "b", folder, trials=40)
    found = known(config, data=Manifest())
    assert found.sweeps[0].sweep.likeness == 0.25
    elsewhere = 2e-5
    assert suggestions(found, 30, best=elsewhere) < 0.5


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_without_earlier_sweeps_it_is_optunas_own():
    def draws(sampler):
        study = optuna.create_study(sampler=sampler)
        found = []
        for _ in range(15):
            trial = study.ask(
                {"rate": distribution(CHOICE["rate"]), "rank": distribution(CHOICE["rank"])}
            )
            found.append(trial.params)
            study.tell(trial, trial.params["rate"] + trial.params["rank"])
        return found

    search = SearchConfig(trials=20)

    plain = optuna.samplers.TPESampler(n_startup_trials=search.random_trials(), group=True)
    assert draws(make_sampler(search, 3)) == draws(DrawnByNumber(plain, 3))
