"""What a search knows of earlier sweeps where the base model is a choice, there or here."""

from dataclasses import replace

import optuna
import pytest

from sweeps.config.loading import dump
from sweeps.run.folder import tracked
from sweeps.search.prior import Known, read_prior
from sweeps.search.study import make_sampler, suggest_with
from sweeps.tracking.runs import TrackedTrial
from tests.sweeps.search.test_prior import DATA, MODEL, SPLITS, earlier, known, loss_of
from tests.sweeps.search.test_study import CONTINUOUS, FIXED, Sweep
from trainables.data.manifest import SplitSummary, manifest_json

BRANCH = {"learning_rate": {"log_uniform": [1e-5, 1e-2]}}
OURS = {"small": "a", "large": "b"}
SPACE = FIXED | {"model": {word: BRANCH for word in OURS}}
BASES = {"small: model.safetensors": "abc", "large: model.safetensors": "def"}


def over_several(folder, tried, files):
    """The folder of a sweep over bases, by word the digest of each, that has tried these words and
    learning rates.
    """
    model = {"choice": {word: f"folder-{word}" for word in files}}
    space = FIXED | {"model": {word: BRANCH for word in files}}
    initial = [{"model": word, "learning_rate": rate} for word, rate in tried]
    sweep = Sweep(folder, space, model=model, trials=len(tried), initial=initial)
    for _, rate in tried:
        sweep.run(loss_of(rate))
    base = {f"{word}: model.safetensors": each for word, each in files.items()}
    sweep.ledger.store.write_bytes("sweep.yaml", dump(sweep.config).encode())
    sweep.ledger.store.write_json("base.json", base)
    sweep.ledger.store.write_json("data/manifest.json", manifest_json(DATA))
    return str(folder)


def ours(folder, *folders, trials=20, space=SPACE):
    return Sweep(folder, space, model={"choice": OURS}, prior=list(folders), trials=trials).config


def where(points):
    return [(p["model"], p[f"{p['model']}.learning_rate"]) for p in points]


def test_a_sweep_of_one_base_tells_of_that_base(tmp_path):
    folder = earlier(tmp_path / "a", [1e-4, 1e-3])
    config = ours(tmp_path / "b", folder)
    found = known(config, base=BASES)
    assert where(found.first(20)) == [("small", 1e-3), ("small", 1e-4)]
    assert next(found.words(20)) == (
        f"Known: 2 trials of {folder} (the same model, the same data: each counts 1)"
    )
    sampler = make_sampler(config.search, 0, found)
    study = optuna.create_study(sampler=sampler)
    for _ in range(5):  # and TPE takes them beside its own
        trial = study.ask()
        config.space().sample(suggest_with(trial))
        study.tell(trial, 1.0)


def test_trials_of_bases_that_are_none_here_are_left_out_and_told(tmp_path):
    tried = [("old", 1e-4), ("mini", 1e-3), ("old", 2e-3)]
    folder = over_several(tmp_path / "a", tried, {"mini": "def", "old": "xyz"})
    found = known(ours(tmp_path / "b", folder), base=BASES)
    assert where(found.first(20)) == [("large", 1e-3)], "by our word for it"
    assert next(found.words(20)).endswith(
        "each counts 1; 2 more, of other base models, are left out)"
    )


def test_nothing_is_known_where_no_base_is_the_same(tmp_path):
    folder = earlier(tmp_path / "a", [1e-4, 1e-3], base={"model.safetensors": "xyz"})
    found = known(ours(tmp_path / "b", folder), base=BASES)
    assert found.random_trials(5) == 5 and not found.first(20)
    first, last = found.words(20)
    assert "another model" in first and "2 more, of other base models, are left out" in first
    assert last.endswith("so nothing is known")


@pytest.mark.parametrize("mine, likeness, rates", [("def", 1, [1e-3]), ("none", 0.5, [1e-3, 1e-4])])
def test_a_search_over_one_base_takes_the_trials_of_it(tmp_path, mine, likeness, rates):
    tried = [("small", 1e-4), ("large", 1e-3)]
    folder = over_several(tmp_path / "a", tried, {"small": "abc", "large": "def"})
    config = Sweep(tmp_path / "b", CONTINUOUS, prior=[folder]).config
    found = known(config, base={"model.safetensors": mine})
    assert [point["learning_rate"] for point in found.first(20)] == rates
    assert found.sweeps[0].sweep.likeness == likeness


def test_runs_in_wandb_tell_the_same(tmp_path, monkeypatch):
    splits = {name: SplitSummary(rows=9, fingerprint=name) for name in SPLITS}
    data = replace(DATA, splits=splits)
    theirs = ours(tmp_path / "a")
    about = tracked(theirs, data, BASES)
    told = [
        TrackedTrial(
            config=about | theirs.complete(FIXED | {"model": word, "learning_rate": rate}),
            summary={"status": "complete", "best/val_loss": loss_of(rate)},
        )
        for word, rate in (("small", 1e-4), ("large", 1e-3))
    ]
    monkeypatch.setattr("sweeps.search.prior.trials_of", lambda name, where: told)
    config = ours(tmp_path / "b", "wandb:me/p/tickets-1")
    found = Known.of(read_prior(config, data, BASES), config)
    assert where(found.first(20)) == [("large", 1e-3), ("small", 1e-4)]
    one = Sweep(tmp_path / "c", CONTINUOUS, prior=["wandb:me/p/tickets-1"]).config
    (sweep,) = Known.of(read_prior(one, data, MODEL), one).sweeps
    assert [p["learning_rate"] for p in sweep.promising] == [1e-4] and sweep.sweep.same_model
