"""The searcher over a real Optuna journal; Tune is played by the tests, which call what it calls."""

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces import load_space
from sweeps.config.loading import from_tree
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import INTERRUPTED, NO_SLOT
from sweeps.reporting.leaderboard import leaderboard
from sweeps.search.choosing import Chooser
from sweeps.search.following import follow_space
from sweeps.search.searcher import StudySearcher
from sweeps.search.study import STUDY, open_study, suggest_with
from trainables.errors import InputError
from trainables.hyperparameters import parse
from trainables.storage.checkpoints import CHECKPOINT, EVALUATION, read_evaluation

COMPLETE, PRUNED, FAIL, RUNNING = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
)
PRESETS = sorted((Path(__file__).resolve().parents[3] / "search_spaces").glob("*.yaml"))

FIXED = {"method": "lora", "batch_size": 8, "epochs": 2}
CONTINUOUS = FIXED | {"learning_rate": {"log_uniform": [1e-5, 1e-2]}}
SMALL = FIXED | {
    "learning_rate": {"choice": [1e-4, 1e-3]},
    "rank": {"choice": [4, 8]},
}  # 4 configurations

EXHAUSTED = "Every configuration that can be trained has been tried: the sweep ends with {} trials."


class Sweep:
    """A sweep without Tune and slots: a searcher, its study and its ledger, and what it said."""

    def __init__(
        self,
        folder,
        space=CONTINUOUS,
        *,
        stopped=None,
        selection=None,
        task="classification",
        model="tiny",
        seed=0,
        **search,
    ):
        tree = {
            "name": "quick",
            "seed": seed,
            "task": task,
            "model": {"name": model},
            "data": {"train": "rows.csv"},
            "search": {"space": space, **search},
            "selection": {"overfit_rise": 0.25, "overfit_gap": 0.5, **(selection or {})},
        }
        self.config = from_tree(OmegaConf.create(tree), (), "sweep.yaml")
        self.ledger = Ledger(str(folder)).load()
        self.ledger.store.write_json("here.json", {})
        self.journal = Path(folder) / STUDY
        self.stopped, self.room = stopped, True
        self.paused = self.more = self.full = False
        self.started, self.ended, self.said, self.left, self.wanted = [], [], [], [], set()
        study = open_study(self.journal, "quick", self.config.search, self.config.seed)
        self.study = follow_space(study, self.config, self.ledger, self.said.append)
        self.searcher = StudySearcher(
            config=self.config,
            space=self.config.space(),
            study=self.study,
            ledger=self.ledger,
            coordinator="coordinator",
            namespace="sweep-quick",
            stopped=lambda: self.stopped,
            room=lambda: self.room,
            on_start=lambda *started: self.started.append(started),
            on_end=self.ended.append,
            say=self.said.append,
            paused=lambda: self.paused,
            more=lambda: self.more,
            full=lambda: self.full,
            chooser=self._chooser(),
            on_pause=self.left.append,
            wanted=self.wanted.__contains__,
        )
        self._tune_ids = 0

    def _chooser(self):
        """Each trial is evaluated every 10 samples, which are an epoch."""
        if self.config.search.scheduler != "freeze_thaw":
            return None
        given = {"config": self.config, "space": self.config.space(), "ledger": self.ledger}
        return Chooser(**given, rows={"": 10})

    def ask(self):
        """A Tune trial's id and its configuration, or None when the search is over."""
        self._tune_ids += 1
        tune_id = f"tune-{self._tune_ids}"
        given = self.searcher.suggest(tune_id)
        return None if given == Searcher.FINISHED else SimpleNamespace(tune_id=tune_id, **given)

    def evaluate(self, asked, *losses, kl=()):
        """Evaluations as a slot writes them, and as the sweep takes note of them; one number is both losses. kl: of each."""
        points = self.ledger.curve(asked.id).points
        for step, loss in enumerate(losses, start=len(points) + 1):
            val, probe = loss if isinstance(loss, tuple) else (loss, loss)
            folder = f"trials/{asked.id}/attempt-1/step-{step:08d}"
            evaluation = {
                "step": step,
                "samples_seen": 10 * step,
                "epoch": step,
                "val_loss": val if val is None or math.isfinite(val) else None,
                "probe_loss": probe if probe is None or math.isfinite(probe) else None,
                "metrics": {},
                "kl": kl[step - 1 - len(points)] if kl else None,
                "trainable_parameters": 1,
                "folder": folder,
            }
            self.ledger.store.write_bytes(f"{folder}/{CHECKPOINT}/adapter_model.safetensors", b"")
            self.ledger.store.write_json(f"{folder}/{EVALUATION}", evaluation)
            self.ledger.record(asked.id, read_evaluation(self.ledger.store, folder))

    def end(self, asked, *, error=False, **result):
        self.searcher.on_trial_complete(
            asked.tune_id, None if error else {"id": asked.id, **result}, error=error
        )

    def run(self, *losses):
        """One trial from asking to its end."""
        asked = self.ask()
        if asked is not None:
            self.evaluate(asked, *losses)
            self.end(asked, ended="finished")
        return asked

    def frozen(self, asked):
        return next(
            trial for trial in self.study.trials if trial.user_attrs.get("trial") == asked.id
        )

    def states(self):
        return [trial.state for trial in self.study.trials]


# --- what Tune gets, and what Optuna is told ---


def test_a_suggestion_is_a_complete_configuration_and_is_written_down_at_once(tmp_path):
    sweep = Sweep(tmp_path, CONTINUOUS | {"rank": 4, "alpha": "2 * rank"})
    asked = sweep.ask()
    assert (asked.id, asked.coordinator, asked.namespace) == ("t0001", "coordinator", "sweep-quick")
    written = json.loads((tmp_path / "trials" / "t0001" / "trial.json").read_text())["params"]
    assert asked.params == sweep.config.complete(written)
    assert (asked.params["rank"], asked.params["alpha"], asked.params["seed"]) == (4, 8, 0)
    assert sweep.started == [("t0001", written, False)]
    assert sweep.frozen(asked).state == RUNNING
    assert sweep.ask().id == "t0002"


def test_optuna_is_told_the_best_loss_that_may_win_and_never_the_last(tmp_path):
    sweep = Sweep(tmp_path)
    asked = sweep.run(
        (3.0, 2.9), (2.0, 1.9), (2.1, 2.0), (1.0, math.nan), (2.9, 0.05)
    )  # the fourth has no probe loss
    frozen = sweep.frozen(asked)
    assert (frozen.state, frozen.value) == (COMPLETE, 2.0)
    assert frozen.intermediate_values == {10: 3.0, 20: 2.0, 30: 2.1, 40: 1.0, 50: 2.9}
    assert sweep.study.best_value == 2.0
    assert sweep.ledger.curve(asked.id).status == "complete"
    assert sweep.ended == ["t0001"]


@pytest.mark.parametrize(
    ("result", "status", "reason", "state", "value"),
    [
        ({"ended": "finished"}, "complete", None, COMPLETE, 1.0),
        ({"ended": "failed", "reason": "out of memory"}, "failed", "out of memory", FAIL, None),
        (
            {"ended": "failed", "reason": "out of memory", "log": "trials/t0001/log.txt"},
            "failed",
            "out of memory (log: trials/t0001/log.txt)",
            FAIL,
            None,
        ),
        ({"ended": "diverged", "reason": "nan"}, "pruned", "diverged: nan", COMPLETE, 1.0),
        (
            {"ended": "stopped", "reason": "the time budget of 8h is spent"},
            "pruned",
            "the time budget of 8h is spent",
            COMPLETE,
            1.0,
        ),
        (
            {"ended": None, "samples_seen": 30},
            "pruned",
            "behind the others at 30 samples (ASHA)",
            PRUNED,
            1.0,
        ),
        ({"error": True}, "failed", "its coordinator failed again and again", FAIL, None),
    ],
    ids=["finished", "failed", "failed with a log", "diverged", "budget", "asha", "error"],
)
def test_how_a_trial_ended(tmp_path, result, status, reason, state, value):
    sweep = Sweep(tmp_path)
    asked = sweep.ask()
    sweep.evaluate(asked, 2.0, 1.0, 3.0)
    sweep.end(asked, **result)
    curve, frozen = sweep.ledger.curve(asked.id), sweep.frozen(asked)
    assert (curve.status, curve.reason) == (status, reason)
    assert (frozen.state, frozen.value) == (state, value)
    assert frozen.user_attrs.get("reason") == reason
    assert Ledger(str(tmp_path)).load().curve(asked.id) == curve


def test_a_trial_that_the_platform_stopped_carries_its_reason(tmp_path):
    sweep = Sweep(tmp_path)
    asked = sweep.ask()
    sweep.evaluate(asked, (2.0, 2.0), (3.0, 1.5))
    sweep.searcher.stop_reason(asked.tune_id, "overfit: validation loss rose")
    sweep.end(asked, ended=None, samples_seen=20)
    assert sweep.ledger.curve(asked.id).reason == "overfit: validation loss rose"
    assert (sweep.frozen(asked).state, sweep.frozen(asked).value) == (COMPLETE, 2.0)


def split_by_tpe(study):
    """The trials that TPE takes for good, of as many as it takes after 10: what it samples from."""
    finished = [trial for trial in study.trials if trial.state in (COMPLETE, PRUNED)]
    good, _ = optuna.samplers._tpe.sampler._split_trials(
        study, finished, optuna.samplers._tpe.sampler.default_gamma(10)
    )
    return {trial.user_attrs["trial"] for trial in good}


@pytest.mark.parametrize(
    "result",
    [
        {"ended": None, "reason": "overfit: validation loss rose"},
        {"ended": None, "reason": "diverged: above 2 times"},
        {"ended": "diverged", "reason": "nan"},
        {"ended": "stopped", "reason": "the time budget of 8h is spent"},
    ],
    ids=["overfit", "far from the untuned model", "not finite", "time budget"],
)
def test_tpe_takes_a_trial_that_has_a_loss_that_may_win_for_good_however_it_ended(tmp_path, result):
    sweep = Sweep(tmp_path)
    asked = sweep.ask()
    sweep.evaluate(asked, 0.7, (0.9, 0.6))
    if result["ended"] is None:
        sweep.searcher.stop_reason(asked.tune_id, result.pop("reason"))
    sweep.end(asked, samples_seen=20, **result)
    for number in range(9):
        sweep.run(1.05 + number / 10)
    assert split_by_tpe(sweep.study) == {"t0001"}
    assert sweep.study.best_value == 0.7


def test_tpe_takes_a_trial_that_was_behind_its_like_for_good_only_for_want_of_better(tmp_path):
    """What it would have reached is not known: Optuna ranks the pruned behind the complete, those that came furthest first."""
    sweep = Sweep(tmp_path)
    for losses in ((1.0,), (0.9, 0.8)):
        asked = sweep.ask()
        sweep.evaluate(asked, *losses)
        sweep.end(asked, ended=None, samples_seen=10 * len(losses))
    assert split_by_tpe(sweep.study) == {"t0002"}
    sweep.run(1.05)
    assert split_by_tpe(sweep.study) == {"t0003"}


@pytest.mark.parametrize("losses", [(math.inf,), (2.0, math.inf), (), ((1.0, math.nan),)])
@pytest.mark.parametrize("ended", ["finished", "diverged", None])
def test_whatever_the_losses_no_trial_stays_running(tmp_path, losses, ended):
    sweep = Sweep(tmp_path)
    asked = sweep.ask()
    sweep.evaluate(asked, *losses)
    sweep.end(asked, ended=ended, reason="nan", val_loss=math.inf, samples_seen=10)
    assert sweep.frozen(asked).state.is_finished()
    best = 2.0 if losses[:1] == (2.0,) else None
    assert sweep.frozen(asked).value == best


def test_a_trial_of_which_nothing_may_win_is_the_worst_there_is_and_not_ignored(tmp_path):
    """TPE ignores FAIL, and then goes on proposing what diverges; PRUNED without a value it counts as bad."""
    sweep = Sweep(tmp_path)
    diverged, blind = sweep.ask(), sweep.ask()
    sweep.end(diverged, ended="diverged", reason="nan at step 3")
    sweep.evaluate(blind, (0.5, math.nan))
    sweep.end(blind, ended="finished")
    for asked in (diverged, blind):
        frozen = sweep.frozen(asked)
        assert (frozen.state, frozen.value, frozen.intermediate_values) == (PRUNED, None, {})


LIMITED = {"task": "instruction", "selection": {"limits": {"kl": 0.5}}}


@pytest.mark.parametrize(
    ("result", "state"),
    [({"ended": "finished"}, COMPLETE), ({"ended": None, "samples_seen": 40}, PRUNED)],
    ids=["finished", "behind"],
)
def test_optuna_is_told_the_best_loss_within_the_limits(tmp_path, result, state):
    sweep = Sweep(tmp_path, **LIMITED)
    asked = sweep.ask()
    sweep.evaluate(
        asked, 3.0, 2.0, 2.5, 1.0, kl=(0.1, 0.5, 0.4, 0.6)
    )  # the lowest has moved too far
    sweep.end(asked, **result)
    frozen = sweep.frozen(asked)
    assert (frozen.state, frozen.value) == (state, 2.0)
    assert sweep.ledger.curve(asked.id).points[3].val_loss == 1.0


@pytest.mark.parametrize("kl", [(0.6, 2.0), (None, None), (0.6, None)])
@pytest.mark.parametrize("result", [{"ended": "finished"}, {"ended": None, "samples_seen": 20}])
def test_a_trial_of_which_nothing_keeps_to_the_limits_is_pruned_without_a_value(
    tmp_path, result, kl
):
    sweep = Sweep(tmp_path, **LIMITED)
    asked = sweep.ask()
    sweep.evaluate(asked, 2.0, 1.0, kl=kl)
    sweep.end(asked, **result)
    frozen = sweep.frozen(asked)
    assert (frozen.state, frozen.value, frozen.intermediate_values) == (PRUNED, None, {})


def test_finalists_are_those_within_the_limits(tmp_path):
    selection = LIMITED["selection"] | {"finalists": {"top": 1, "seeds": 1}}
    sweep = Sweep(tmp_path, **LIMITED | {"selection": selection}, trials=2)
    for loss, kl in ((1.0, 0.9), (2.0, 0.1)):
        asked = sweep.ask()
        sweep.evaluate(asked, loss, kl=(kl,))
        sweep.end(asked, ended="finished")
    final = sweep.ask()
    assert final.compared and sweep.ledger.curve(final.id).finalist_of == "t0002"


def test_tpe_leaves_the_region_that_diverges(tmp_path):
    sweep = Sweep(tmp_path, trials=40, startup_trials=8)
    diverged = []
    for _ in range(32):
        asked = sweep.ask()
        rate = asked.params["learning_rate"]
        if rate > 1e-4:
            sweep.end(asked, ended="diverged", reason="nan")
        else:
            sweep.evaluate(asked, 1 + abs(math.log10(rate / 5e-5)))
            sweep.end(asked, ended="finished")
        diverged.append(rate > 1e-4)
    assert (
        sum(diverged[-16:]) <= 8
    )  # two thirds of the space diverge; told FAIL, 12 of the last 16 did so


TOO_LARGE = "it does not fit the device of 16.0 GiB even alone; it needs about 21.0 GiB: OutOfMemoryError: out"
SIZES = FIXED | {
    "learning_rate": {"log_uniform": [1e-5, 1e-2]},
    "batch_size": {"choice": [4, 8, 16, 32]},
    "rank": {"int": [4, 256], "log": True},
}


def test_a_trial_that_does_not_fit_is_infeasible_for_optuna(tmp_path):
    sweep = Sweep(tmp_path, SIZES)
    fitting, large = sweep.ask(), sweep.ask()
    sweep.end(large, ended="failed", reason=TOO_LARGE)
    sweep.evaluate(fitting, 1.0)
    sweep.end(fitting, ended="finished")
    assert sweep.frozen(large).state == PRUNED and sweep.frozen(large).value is None
    assert sweep.frozen(large).constraints == {"memory": 1.0}
    assert sweep.frozen(fitting).constraints == {}
    assert sweep.ledger.curve(large.id).status == "failed"
    assert sweep.study.best_trial.user_attrs["trial"] == fitting.id


def too_large_of(folder, seed, reason):
    """Of 30 trials those that do not fit: the larger half of ranks, and large batches sooner. They would be the best."""
    sweep, found = Sweep(folder, SIZES, trials=30, startup_trials=8, seed=seed), []
    while asked := sweep.ask():
        rank, rate = asked.params["rank"], asked.params["learning_rate"]
        found.append(rank * asked.params["batch_size"] ** 0.5 > 64)
        if found[-1]:
            sweep.end(asked, ended="failed", reason=reason)
        else:
            sweep.evaluate(asked, 1 + abs(math.log10(rate / 3e-4)) - math.log2(rank) / 20)
            sweep.end(asked, ended="finished")
    assert len(found) == 30
    return found


def test_the_search_learns_which_sizes_do_not_fit(tmp_path):
    """Against one that is told that they have failed, which Optuna ignores; over four seeds, as one is luck."""
    told, untold = (
        [too_large_of(tmp_path / f"{name}-{seed}", seed, reason) for seed in range(4)]
        for name, reason in (("told", TOO_LARGE), ("untold", "KeyError: 'x'"))
    )
    late, late_untold = (sum(sum(each[15:]) for each in all_of) for all_of in (told, untold))
    assert sum(sum(each[:8]) for each in told) > 5  # by chance many do not
    assert 1.5 * late < late_untold  # seen: 22 and 56


def test_a_kill_while_a_trial_is_told_that_it_does_not_fit_does_not_stand_in_the_way(
    tmp_path, monkeypatch
):
    sweep = Sweep(tmp_path, SIZES)
    large = sweep.ask()

    def killed(*told, **named):
        raise Killed

    monkeypatch.setattr(sweep.study, "tell", killed)
    with pytest.raises(Killed):
        sweep.end(large, ended="failed", reason=TOO_LARGE)
    assert sweep.frozen(large).state == RUNNING
    again = Sweep(tmp_path, SIZES)
    assert again.frozen(large).state == PRUNED
    assert again.frozen(large).constraints == {"memory": 1.0}


def test_a_trial_ends_once(tmp_path):
    sweep = Sweep(tmp_path)
    asked = sweep.ask()
    sweep.evaluate(asked, 1.0)
    sweep.end(asked, ended="finished")
    sweep.end(asked, error=True)
    sweep.searcher.on_trial_complete("unknown", {"ended": "failed"})
    assert sweep.ledger.curve(asked.id).status == "complete"
    assert sweep.ended == ["t0001"]


def test_no_trial_starts_when_the_sweep_is_stopped_or_has_all_its_trials(tmp_path):
    sweep = Sweep(tmp_path, trials=2)
    sweep.stopped = "the time budget of 8h is spent"
    assert sweep.ask() is None
    sweep.stopped = None
    assert [sweep.ask().id, sweep.ask().id] == ["t0001", "t0002"]
    assert sweep.ask() is None
    assert sweep.said == []


# --- what is not run ---


def test_a_configuration_is_not_run_twice_and_a_duplicate_counts_for_nothing(tmp_path):
    sweep = Sweep(tmp_path, SMALL, trials=4, sampler="random")
    seen = []
    for _ in range(4):
        asked = sweep.run(1.0 + len(seen))
        seen.append((asked.params["learning_rate"], asked.params["rank"]))
    assert len(set(seen)) == 4
    assert [curve.id for curve in sweep.ledger.curves()] == ["t0001", "t0002", "t0003", "t0004"]
    duplicates = [trial for trial in sweep.study.trials if "duplicate_of" in trial.user_attrs]
    assert duplicates, "the seed draws no duplicate: the test tests nothing"
    for duplicate in duplicates:
        twin = int(duplicate.user_attrs["duplicate_of"].removeprefix("t"))
        assert (duplicate.state, duplicate.value) == (COMPLETE, float(twin))  # the loss of its twin
    assert RUNNING not in sweep.states()


def test_a_duplicate_of_a_trial_that_still_runs_is_closed_too(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.search.searcher.MAX_REDRAWS", 25)
    sweep = Sweep(tmp_path, SMALL, sampler="random")
    asked = [sweep.ask() for _ in range(4)]
    assert sweep.ask() is None
    assert sweep.states().count(RUNNING) == 4
    assert {trial.state for trial in sweep.study.trials if "duplicate_of" in trial.user_attrs} == {
        FAIL
    }
    for one in asked:
        sweep.end(one, ended="finished")
    assert RUNNING not in sweep.states()


def test_the_same_settings_in_another_branch_are_another_configuration(tmp_path):
    space = {
        "method": {"full": None, "lora": {"rank": 8}},
        "learning_rate": 1e-3,
        "batch_size": 8,
        "epochs": 2,
    }
    sweep = Sweep(tmp_path, space, sampler="random")
    assert {sweep.ask().params["method"], sweep.ask().params["method"]} == {"full", "lora"}


def test_an_invalid_configuration_is_told_and_drawn_again(tmp_path, monkeypatch):
    sweep = Sweep(
        tmp_path, CONTINUOUS | {"batch_size": {"choice": [4, 8]}}, trials=10, sampler="random"
    )
    refused = {4: {"batch_size": 0}}  # stands for values that do not go together
    monkeypatch.setattr(
        type(sweep.config),
        "hyperparameters",
        lambda self, params: parse(params | refused.get(params["batch_size"], {})),
    )
    for _ in range(10):
        assert sweep.run(1.0).params["batch_size"] == 8
    invalid = [trial for trial in sweep.study.trials if "invalid" in trial.user_attrs]
    assert invalid and {trial.state for trial in invalid} == {FAIL}
    assert invalid[0].user_attrs["invalid"] == "batch_size: must be at least 1, got 0"
    assert len(sweep.ledger.curves()) == 10


def test_a_space_in_which_nothing_valid_is_found_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.search.searcher.MAX_REDRAWS", 25)
    sweep = Sweep(tmp_path, CONTINUOUS)
    monkeypatch.setattr(
        type(sweep.config),
        "hyperparameters",
        lambda self, params: parse(params | {"batch_size": 0}),
    )
    with pytest.raises(InputError) as caught:
        sweep.ask()
    assert str(caught.value) == (
        "search.space: no valid configuration was found, the last is not because: batch_size: must be at least 1, got 0"
    )
    assert RUNNING not in sweep.states()


FINITE = {  # space, and how many configurations of it can be trained
    "ranks": (FIXED | {"learning_rate": 1e-3, "rank": {"int": [1, 16]}}, 16),
    "branches": (
        {
            "method": {
                "full": {"learning_rate": {"choice": [1e-5, 1e-4]}},
                "lora": {"learning_rate": 1e-3, "rank": {"int": [1, 4]}, "alpha": "2 * rank"},
                "partial": {"learning_rate": 1e-4, "layers": {"int": [1, 2]}},
            },
            "batch_size": {"choice": [8, 16]},
            "epochs": 2,
        },
        2 * (2 + 4 + 2),
    ),
    "invalid": (
        FIXED | {"learning_rate": 1e-3, "rank": {"int": [1, 15]}, "dropout": "(rank - 5) / 5"},
        5,
    ),
    "without a value": (
        FIXED | {"learning_rate": 1e-3, "rank": {"int": [1, 9]}, "alpha": "16 / (rank - 4)"},
        5,
    ),
    "the same twice": (
        FIXED | {"learning_rate": 1e-3, "rank": {"choice": [4, 8]}, "alpha": "0 * rank + 8"},
        2,
    ),
    "lists": (
        FIXED
        | {"learning_rate": 1e-3, "targets": {"choice": ["all-linear", ["q_proj"], ["v_proj"]]}},
        3,
    ),
}


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize("name", FINITE)
def test_all_of_a_finite_space_is_tried_before_the_sweep_ends_for_want_of_more(
    tmp_path, name, sampler
):
    space, size = FINITE[name]
    sweep = Sweep(tmp_path, space, trials=50, sampler=sampler, startup_trials=3)
    tried = []
    while asked := sweep.run(
        1.0 + abs(sweep.started[-1][1].get("rank", 3) - 3 if sweep.started else 0)
    ):
        tried.append(json.dumps(asked.params))
    assert len(set(tried)) == len(tried) == size
    assert sweep.said == [EXHAUSTED.format(size)]
    assert sweep.states().count(COMPLETE) >= size and RUNNING not in sweep.states()
    assert len(sweep.study.trials) < 25 * size  # a duplicate costs a suggestion, not a hundred


def test_a_large_finite_space_is_not_gone_through(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.search.searcher.MAX_REDRAWS", 0)  # as if the sampler found no more
    monkeypatch.setattr(
        "search_spaces.Space.configurations", lambda space: pytest.fail("16 million")
    )
    number = {"int": [1, 4000]}
    space = FIXED | {
        "learning_rate": 1e-3,
        "rank": number,
        "batch_size": number,
        "dropout": "rank / 4000",
    }
    sweep = Sweep(tmp_path, space, trials=20)
    assert len({json.dumps(sweep.run(1.0).params) for _ in range(20)}) == 20
    valid = parse(sweep.config.complete(sweep.started[0][1]))
    monkeypatch.setattr(
        type(sweep.config), "hyperparameters", lambda config, params: valid
    )  # all else is the same
    other = Sweep(tmp_path / "other", space, trials=20)
    assert other.run(1.0) and other.ask() is None
    assert other.said == ["No new configuration is found: the sweep ends with 1 trials."]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_finite_space_that_is_exhausted_ends_the_sweep_early(tmp_path, sampler, monkeypatch):
    monkeypatch.setattr("sweeps.search.searcher.MAX_REDRAWS", 25)
    sweep = Sweep(tmp_path, SMALL, trials=20, sampler=sampler)
    while sweep.run(1.0):
        pass
    assert len(sweep.ledger.curves()) == 4
    assert sweep.said == [EXHAUSTED.format(4)]
    assert RUNNING not in sweep.states()


def test_the_grid_tries_everything_once(tmp_path):
    space = {
        "method": {
            "full": {"learning_rate": {"choice": [1e-5, 1e-4]}},
            "lora": {"rank": {"int": [1, 3]}},
        },
        "batch_size": {"choice": [8, 16]},
        "epochs": 2,
    }
    space["method"]["lora"]["learning_rate"] = 1e-3
    sweep = Sweep(tmp_path, space, trials=20, sampler="grid")
    asked = []
    while one := sweep.ask():
        asked.append(one)
        if len(asked) % 2:  # two at a time, as two slots run them
            continue
        for one in asked[-2:]:
            sweep.evaluate(one, 1.0)
            sweep.end(one, ended="finished")
    tried = {
        (
            a.params["method"],
            a.params["learning_rate"],
            a.params.get("rank"),
            a.params["batch_size"],
        )
        for a in asked
    }
    assert len(tried) == len(asked) == 2 * (2 + 3)
    assert sweep.said == [EXHAUSTED.format(10)]
    assert RUNNING not in sweep.states()


def test_the_grid_goes_on_after_a_restart(tmp_path):
    first = Sweep(tmp_path, SMALL, sampler="grid")
    done = [first.run(1.0), first.run(1.0)]
    second = Sweep(tmp_path, SMALL, sampler="grid")
    while one := second.run(1.0):
        done.append(one)
    assert (
        len({(one.params["learning_rate"], one.params["rank"]) for one in done}) == len(done) == 4
    )


def test_initial_configurations_come_first_and_what_they_leave_open_is_sampled(tmp_path):
    space = CONTINUOUS | {"targets": {"choice": ["all-linear", ["q_proj", "v_proj"]]}}
    initial = [{"learning_rate": 5e-4, "targets": ["q_proj", "v_proj"]}, {"targets": "all-linear"}]
    sweep = Sweep(tmp_path, space, initial=initial)
    first, second = sweep.ask(), sweep.ask()
    assert (first.params["learning_rate"], first.params["targets"]) == (5e-4, ["q_proj", "v_proj"])
    assert second.params["targets"] == "all-linear"
    assert 1e-5 <= second.params["learning_rate"] <= 1e-2


# --- restarts ---


def test_after_a_restart_unfinished_trials_go_on_under_their_ids_and_count(tmp_path):
    before = Sweep(tmp_path, trials=4)
    finished, half, fresh = before.run(1.0), before.ask(), before.ask()
    before.evaluate(half, 3.0, 2.0)
    after = Sweep(tmp_path, trials=4)
    resumed = [after.ask(), after.ask()]
    assert [one.id for one in resumed] == [half.id, fresh.id] == ["t0002", "t0003"]
    assert [one.params for one in resumed] == [half.params, fresh.params]
    assert [(id, again) for id, _, again in after.started] == [("t0002", True), ("t0003", True)]
    assert len(after.ledger.curve("t0002").points) == 2
    new = after.ask()
    assert (new.id, after.started[-1][2]) == ("t0004", False)
    assert after.ask() is None  # four in all
    after.evaluate(resumed[0], 1.5)
    for one in (*resumed, new):
        after.end(one, ended="finished")
    assert [(trial.user_attrs["trial"], trial.state) for trial in after.study.trials][:2] == [
        (finished.id, COMPLETE),
        (half.id, COMPLETE),
    ]
    assert after.frozen(half).value == 1.5
    assert len(after.study.trials) == 4


@pytest.mark.parametrize("reason", [INTERRUPTED, NO_SLOT])
def test_an_interrupted_trial_stays_unfinished(tmp_path, reason):
    before = Sweep(tmp_path)
    told, silent = before.ask(), before.ask()
    before.evaluate(told, 2.0)
    before.stopped = reason
    before.end(told, ended="stopped", reason=reason)
    before.searcher.on_trial_complete(silent.tune_id)  # Tune ends it without a result
    assert before.ledger.unfinished() == ["t0001", "t0002"]
    assert before.states() == [RUNNING, RUNNING]
    assert before.ended == []
    after = Sweep(tmp_path)
    assert [after.ask().id, after.ask().id, after.ask().id] == ["t0001", "t0002", "t0003"]


def test_a_trial_that_was_asked_but_never_written_down_is_the_next(tmp_path):
    before = Sweep(tmp_path, trials=3)
    before.run(1.0)
    killed_before_its_id = before.study.ask()
    killed_before_its_folder = before.study.ask()
    killed_before_its_folder.set_user_attr("trial", "t0002")
    after = Sweep(tmp_path, trials=3)
    assert after.states() == [COMPLETE, RUNNING, RUNNING]
    assert (killed_before_its_id.number, killed_before_its_folder.number) == (1, 2)
    asked = [after.run(3.0), after.run(2.0)]
    assert [one.id for one in asked] == ["t0002", "t0003"]
    again = Sweep(tmp_path, trials=3)
    assert again.states() == [COMPLETE, COMPLETE, COMPLETE]
    assert [trial.value for trial in again.study.trials] == [1.0, 3.0, 2.0]


class Killed(BaseException):
    """Nothing is done after it."""


class KilledAt:
    """Of a process: it dies before (or after) its `nth` write to the study's journal or the ledger."""

    def __init__(self, monkeypatch, nth, after):
        self.left, self.after = nth, after
        monkeypatch.setattr(
            JournalFileBackend, "append_logs", self.dying(JournalFileBackend.append_logs)
        )
        for name in ("begin", "finish"):
            monkeypatch.setattr(Ledger, name, self.dying(getattr(Ledger, name)))

    def dying(self, write):
        def written(*args, **named):
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Killed
            found = write(*args, **named)
            if self.left == 0:
                raise Killed
            return found

        return written


def configurations(sweep):
    return [(curve.id, curve.params, curve.status) for curve in sweep.ledger.curves()]


def loss_of(asked):
    """Of a job that does not know what was done before."""
    return abs(math.log(asked.params["learning_rate"] / 1e-3)) + asked.params.get("rank", 4) / 8


def to_the_end(sweep):
    while asked := sweep.ask():
        if asked.params.get("rank", 4) > 64:
            sweep.end(asked, ended="failed", reason=TOO_LARGE)
            continue
        points = len(sweep.ledger.curve(asked.id).points)
        sweep.evaluate(asked, *[loss_of(asked) + 1 / step for step in (1, 2)][points:])
        sweep.end(asked, ended="finished")
    return sweep


INTERRUPTIBLE = {
    "tpe": (CONTINUOUS | {"rank": {"choice": [4, 8, 16]}}, {"startup_trials": 3}),
    "tpe, and much does not fit": (SIZES, {"startup_trials": 3}),
    "random": (CONTINUOUS, {"sampler": "random"}),
    "with duplicates": (SMALL | {"epochs": {"choice": [1, 2]}}, {"sampler": "random"}),
    "grid": (SMALL | {"epochs": {"choice": [1, 2]}}, {"sampler": "grid"}),
    "initial": (CONTINUOUS, {"initial": [{"learning_rate": rate} for rate in (5e-4, 6e-4)]}),
}


@pytest.mark.parametrize("kind", INTERRUPTIBLE)
def test_a_search_that_is_killed_again_and_again_draws_what_an_undisturbed_one_does(
    tmp_path, kind, monkeypatch
):
    """Before and after each write of the study and the ledger, over the course of the search."""
    space, search = INTERRUPTIBLE[kind]
    search = {"trials": 8} | search
    undisturbed = configurations(to_the_end(Sweep(tmp_path / "undisturbed", space, **search)))
    assert len(undisturbed) == search["trials"]
    for after in (False, True):
        folder, kills = tmp_path / f"killed-{after}", 0
        while True:
            try:
                with monkeypatch.context() as patch:
                    KilledAt(patch, 1 + after + kills, after)
                    ended = to_the_end(Sweep(folder, space, **search))
                break
            except Killed:
                kills += 1
        assert kills > 5
        assert configurations(ended) == undisturbed
        assert RUNNING not in ended.states()


@pytest.mark.parametrize(
    ("status", "state", "value"),
    [("complete", COMPLETE, 1.0), ("pruned", PRUNED, 1.0), ("failed", FAIL, None)],
)
def test_a_trial_that_ended_in_the_ledger_but_not_in_the_study_is_told(
    tmp_path, status, state, value
):
    before = Sweep(tmp_path)
    asked = before.ask()
    before.evaluate(asked, 2.0, 1.0, 1.5)
    before.ledger.finish(asked.id, status, "behind the others at 30 samples (ASHA)")
    assert before.states() == [RUNNING]
    after = Sweep(tmp_path)
    assert (after.frozen(asked).state, after.frozen(asked).value) == (state, value)
    assert after.ask().id == "t0002"


def test_a_kill_while_a_trial_is_told_does_not_stand_in_the_way(tmp_path):
    before = Sweep(tmp_path)
    asked = before.ask()
    before.evaluate(asked, 2.0, 1.0, 1.5)
    before.ledger.finish(asked.id, "pruned", "behind the others at 30 samples (ASHA)")
    handle = optuna.Trial(before.study, before.frozen(asked)._trial_id)
    handle.report(2.0, 10)  # and then it was killed
    after = Sweep(
        tmp_path
    )  # Optuna warns when a step is reported twice, and here warnings are errors
    assert (after.frozen(asked).state, after.frozen(asked).value) == (PRUNED, 1.0)


def test_suggestions_after_a_restart_are_new(tmp_path):
    """A sampler that starts from the same seed again would repeat its first suggestions."""
    rates = []
    for _ in range(3):
        sweep = Sweep(tmp_path, trials=12)
        rates += [sweep.run(1.0).params["learning_rate"] for _ in range(4)]
    assert len(set(rates)) == 12
    assert not any("duplicate_of" in trial.user_attrs for trial in sweep.study.trials)


def test_after_a_restart_what_was_tried_is_not_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.search.searcher.MAX_REDRAWS", 25)
    before = Sweep(tmp_path, SMALL, sampler="random")
    tried = [before.run(1.0) for _ in range(2)]
    after = Sweep(tmp_path, SMALL, sampler="random")
    while one := after.run(1.0):
        tried.append(one)
    assert (
        len({(one.params["learning_rate"], one.params["rank"]) for one in tried}) == len(tried) == 4
    )


def test_initial_configurations_are_not_tried_again_after_a_restart(tmp_path):
    initial = [{"learning_rate": 5e-4}, {"learning_rate": 6e-4}]
    before = Sweep(tmp_path, initial=initial)
    before.run(1.0)
    after = Sweep(tmp_path, initial=initial)
    assert after.run(1.0).params["learning_rate"] == 6e-4
    assert after.run(1.0).params["learning_rate"] not in (5e-4, 6e-4)


def test_a_lock_that_a_killed_sweep_left_does_not_stop_the_next(tmp_path, monkeypatch):
    # Optuna itself would break it after 30 s
    monkeypatch.setattr(JournalFileSymlinkLock.__init__, "__defaults__", (None,))
    before = Sweep(tmp_path)
    before.run(1.0)
    Path(f"{before.journal}.lock").symlink_to(before.journal)  # as Optuna makes it
    assert Sweep(tmp_path).run(1.0).id == "t0002"


def test_another_total_can_be_run_on_to(tmp_path):
    before = Sweep(tmp_path, trials=2)
    while before.run(1.0):
        pass
    after = Sweep(tmp_path, trials=3)
    assert after.run(1.0).id == "t0003"
    assert after.run(1.0) is None


# --- the study, for others ---


def test_other_tools_read_the_study(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.run(3.0, 2.0, 2.5)
    pruned = sweep.ask()
    sweep.evaluate(pruned, 4.0, 1.0, 3.5)
    sweep.end(pruned, ended=None, samples_seen=30)
    storage = JournalStorage(JournalFileBackend(str(sweep.journal)))
    study = optuna.load_study(study_name="quick", storage=storage)
    assert [(trial.state, trial.value) for trial in study.trials] == [
        (COMPLETE, 2.0),
        (PRUNED, 1.0),
    ]
    assert study.trials[0].user_attrs["trial"] == "t0001"
    assert study.best_trial.number == 0  # Optuna takes complete trials only
    read_only = open_study(sweep.journal, "quick", sweep.config.search, 0, read_only=True)
    assert len(read_only.trials) == 2


@pytest.mark.parametrize("read_only", [True, False])
def test_a_folder_that_was_renamed_keeps_its_study(tmp_path, read_only):
    sweep = Sweep(tmp_path)
    sweep.study.ask()
    found = open_study(sweep.journal, "renamed", sweep.config.search, 0, read_only=read_only)
    assert found.study_name == "quick" and len(found.trials) == 1


def test_optuna_dashboard_shows_the_study(tmp_path):
    dashboard = pytest.importorskip("optuna_dashboard")
    sweep = Sweep(tmp_path)
    sweep.run(3.0, 2.0)
    app = dashboard.wsgi(JournalStorage(JournalFileBackend(str(sweep.journal))))
    answer = []
    environment = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/api/studies",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
    }
    body = b"".join(app(environment, lambda status, headers, exc_info=None: answer.append(status)))
    assert answer == ["200 OK"]
    assert [study["study_name"] for study in json.loads(body)["study_summaries"]] == ["quick"]


@pytest.mark.parametrize("preset", [path.stem for path in PRESETS])
def test_every_preset_can_be_searched_and_tried_first(preset):
    space = load_space(preset)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        params = space.sample(suggest_with(study.ask()))
        parse(params)
        study.enqueue_trial(
            {
                name: json.dumps(v) if isinstance(v, list) else v
                for name, v in space.encode(params).items()
            }
        )
        assert space.sample(suggest_with(study.ask())) == params


# --- a space that has changed ---

CHANGES = {  # the space before and after, and whether a trial of rank 4 and one of rank 8 at 1e-3 fit what it has become
    "wider": ({"rank": {"choice": [4, 8]}}, {"rank": {"choice": [4, 8, 16]}}, (True, True)),
    "in another order": ({"rank": {"choice": [4, 8]}}, {"rank": {"choice": [8, 4]}}, (True, True)),
    "narrower": ({"rank": {"choice": [4, 8]}}, {"rank": {"choice": [8, 16]}}, (False, True)),
    "another kind": ({"rank": {"choice": [4, 8]}}, {"rank": {"int": [4, 6]}}, (True, False)),
    "log": ({"rank": {"choice": [4, 8]}}, {"rank": {"int": [4, 64], "log": True}}, (True, True)),
    "fixed": ({"rank": {"choice": [4, 8]}}, {"rank": 8}, (False, True)),
    "out of a branch": (
        {"method": {"lora": {"rank": {"choice": [4, 8]}}}},
        {"method": "lora", "rank": {"choice": [4, 8, 16]}},
        (True, True),
    ),
    "another branch": (
        {"method": {"lora": {"rank": {"choice": [4, 8]}}}},
        {"method": {"lora": {"rank": 4}, "full": None}},
        (True, False),
    ),
    "the method has gone": (
        {"method": {"lora": {"rank": {"choice": [4, 8]}}, "full": None}},
        {"method": {"full": None}},
        (False, False),
    ),
    "one more, whose default they had": (
        {"rank": {"choice": [4, 8]}},
        {"rank": {"choice": [4, 8, 16]}, "weight_decay": {"choice": [0.01, 0.1]}},
        (True, True),
    ),
    "one more, without their default": (
        {"rank": {"choice": [4, 8]}},
        {"rank": {"choice": [4, 8]}, "weight_decay": {"choice": [0.1, 0.2]}},
        (False, False),
    ),
    "one less": (
        {"rank": {"choice": [4, 8]}, "alpha": "2 * rank"},
        {"rank": {"choice": [4, 8, 16]}, "alpha": {"int": [1, 8]}},
        (True, False),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_space_that_has_changed_keeps_what_fits_it(tmp_path, name):
    before, after, fits = CHANGES[name]
    rest = {"learning_rate": {"log_uniform": [1e-4, 1e-2]}, "batch_size": 8, "epochs": 2}
    before, after = ({"method": "lora"} | rest | space for space in (before, after))
    initial = [{"method": "lora", "rank": rank, "learning_rate": 1e-3} for rank in (4, 8)]
    first = Sweep(tmp_path, before, initial=initial, trials=12)
    ended = [first.run(2.0, 1.0), first.ask()]
    first.evaluate(ended[1], 3.0)
    assert [one.params["rank"] for one in ended] == [4, 8]
    second = Sweep(tmp_path, after, trials=12, startup_trials=2)
    frozen = {
        trial.user_attrs["trial"]: trial
        for trial in second.study.trials
        if "trial" in trial.user_attrs
    }
    assert set(frozen) == {one.id for one, fit in zip(ended, fits, strict=True) if fit}
    if fits[0]:
        assert (frozen["t0001"].state, frozen["t0001"].value) == (COMPLETE, 1.0)
    if fits[1]:
        assert frozen["t0002"].state == RUNNING
    (said,) = second.said
    assert said.startswith(f"The search space has changed: {sum(fits)} of 2 trials fit it")
    assert all((f"{one.id} (" in said) != fit for one, fit in zip(ended, fits, strict=True))
    resumed = second.ask()
    assert (resumed.id, resumed.params) == (
        "t0002",
        ended[1].params,
    )  # it goes on with what it began
    second.evaluate(resumed, 0.5)
    second.end(resumed, ended="finished")
    if fits[1]:
        assert (second.frozen(resumed).state, second.frozen(resumed).value) == (COMPLETE, 0.5)
    for _ in range(6):
        assert second.run(1.5).params["method"] in json.dumps(after)
    third = Sweep(tmp_path, after, trials=12)  # nothing has changed since
    assert third.said == [] and third.study.study_name == second.study.study_name
    assert len(third.study.trials) == len(second.study.trials)


def test_a_changed_space_knows_what_did_not_fit(tmp_path):
    first = Sweep(tmp_path, SIZES)
    large = first.ask()
    first.end(large, ended="failed", reason=TOO_LARGE)
    second = Sweep(tmp_path, SIZES | {"rank": {"int": [4, 512], "log": True}})
    assert second.study.study_name != first.study.study_name
    assert second.frozen(large).state == PRUNED
    assert second.frozen(large).constraints == {"memory": 1.0}


def test_an_unfinished_trial_that_has_shown_nothing_and_lies_outside_the_space_is_ended(tmp_path):
    first = Sweep(tmp_path, SMALL)
    asked = [first.ask() for _ in range(4)]
    first.evaluate(asked[0], 1.0)
    outside = [one.id for one in asked[1:] if one.params["rank"] == 4]
    assert 0 < len(outside)
    second = Sweep(tmp_path, SMALL | {"rank": 8})
    going_on = [second.ask().id for _ in range(4 - len(outside))]
    assert going_on == [one.id for one in asked if one.id not in outside]
    for trial in outside:
        assert second.ledger.curve(trial).status == "pruned"
        assert (
            second.ledger.curve(trial).reason == "the search space has changed, and it lies outside"
        )


def test_a_space_that_is_as_it_was_keeps_its_study(tmp_path):
    first = Sweep(tmp_path, SMALL)
    first.run(1.0)
    second = Sweep(tmp_path, SMALL | {"dropout": {"uniform": [0.0, 0.1]}})
    third = Sweep(tmp_path, SMALL | {"dropout": {"uniform": [0.0, 0.1]}})
    assert [sweep.study.study_name for sweep in (first, second, third)] == [
        "quick",
        "quick-2",
        "quick-2",
    ]
    assert (
        open_study(first.journal, "quick", first.config.search, 0, read_only=True).study_name
        == "quick-2"
    )


# --- the default configuration, and finalists ---


def test_the_first_trial_is_what_one_would_train_without_a_search(tmp_path):
    space = {"learning_rate": {"log_uniform": [1e-5, 1e-3]}, "method": {"choice": ["lora", "full"]}}
    searching = Sweep(tmp_path, {**space, "batch_size": 8, "epochs": 1}, trials=3)
    first, second = searching.ask(), searching.ask()
    assert first.params["learning_rate"] == 1e-4 and first.params["method"] == "lora"
    board = leaderboard(searching.ledger, "quick", searching.config.selection)
    assert [trial.default for trial in board.trials] == [True, False] and second.id == "t0002"


def test_the_best_configurations_run_again_with_new_seeds_when_the_search_has_ended(tmp_path):
    selection = {"finalists": {"top": 2, "seeds": 2}}
    searching = Sweep(tmp_path, trials=3, selection=selection)
    asked = [searching.ask() for _ in range(3)]
    for loss, each in zip((2.0, 1.0, 3.0), asked, strict=True):
        searching.evaluate(each, loss)
    for each in asked[:2]:
        searching.end(each, ended="finished")
    assert (
        searching.searcher.suggest("too early") is None
    )  # the last trial of the search may still be the best
    searching.end(asked[2], ended="finished")
    finals = [searching.ask() for _ in range(4)]
    assert searching.ask() is None
    assert [searching.ledger.curve(final.id).finalist_of for final in finals] == [
        "t0002",
        "t0002",
        "t0001",
        "t0001",
    ]
    assert all(final.compared for final in finals) and [each.compared for each in asked] == [
        True,
        False,
        False,
    ]
    for final, first in zip(finals, (asked[1], asked[1], asked[0], asked[0]), strict=True):
        assert {**final.params, "seed": 0} == {**first.params, "seed": 0} and final.params[
            "seed"
        ] != first.params["seed"]
    assert finals[0].params["seed"] != finals[1].params["seed"]
    assert len(searching.study.trials) == 3  # Optuna learns nothing from a seed


def test_finalists_that_were_interrupted_go_on_and_none_runs_twice(tmp_path):
    selection = {"finalists": {"top": 1, "seeds": 2}}
    searching = Sweep(tmp_path, trials=2, selection=selection)
    for loss in (2.0, 1.0):
        searching.run(loss)
    searching.run(1.5)
    running = searching.ask()
    later = Sweep(tmp_path, trials=2, selection=selection)
    again = later.ask()
    assert (again.id, again.params, again.compared) == (running.id, running.params, True)
    assert later.ask() is None


# --- trials that somebody asks for while it runs ---


def test_a_trial_that_is_asked_for_comes_next_and_on_top(tmp_path):
    sweep = Sweep(tmp_path, trials=2)
    sweep.run(1.0)
    assert sweep.searcher.add("c1", {"learning_rate": 2e-3}, "added by ann") == "t0002"
    assert sweep.searcher.add("c2", {"learning_rate": 3e-3}, "added by ann") == "t0003"
    asked = [sweep.ask() for _ in range(3)]
    assert [each.id for each in asked] == ["t0002", "t0003", "t0004"] and sweep.ask() is None
    assert [each.params["learning_rate"] for each in asked[:2]] == [2e-3, 3e-3]
    assert [resumed for *_, resumed in sweep.started] == [False] * 4
    assert sweep.ledger.drawn() == 2 and sweep.ledger.asked_for() == 2
    for each in asked:
        sweep.evaluate(each, 1.5)
        sweep.end(each, ended="finished")
    assert [sweep.frozen(each).value for each in asked] == [1.5] * 3
    assert set(sweep.states()) == {COMPLETE}


def test_a_command_that_is_done_again_makes_no_second_trial(tmp_path):
    sweep = Sweep(tmp_path, trials=1)
    assert sweep.searcher.add("c1", {"learning_rate": 2e-3}, "added by ann") == "t0001"
    assert sweep.searcher.add("c1", {"learning_rate": 2e-3}, "added by ann") == "t0001"
    again = Sweep(tmp_path, trials=1)
    assert again.searcher.add("c1", {"learning_rate": 2e-3}, "added by ann") == "t0001"
    assert [again.ask().id for _ in range(2)] == ["t0001", "t0002"] and again.ask() is None
    assert [resumed for *_, resumed in again.started] == [True, False]


def test_the_default_is_what_the_search_begins_with_whatever_was_asked_for_before(tmp_path):
    sweep = Sweep(tmp_path, trials=2)
    sweep.searcher.add("c1", {"learning_rate": 2e-3}, "added by ann")
    asked = [sweep.ask() for _ in range(3)]
    assert [sweep.ledger.is_default(each.id) for each in asked] == [False, True, False]
    assert asked[1].params["learning_rate"] == sweep.config.space().middle()["learning_rate"]


def test_what_was_tried_or_cannot_be_trained_is_not_begun(tmp_path):
    sweep = Sweep(tmp_path, CONTINUOUS | {"rank": {"choice": [4, 8]}, "alpha": 8})
    sweep.run(1.0)
    params = sweep.ledger.curve("t0001").params
    given = {name: params[name] for name in ("learning_rate", "rank")}
    with pytest.raises(InputError, match="t0001 has this configuration already"):
        sweep.searcher.add("c1", given, "added by ann")
    assert sweep.ledger.trials() == ["t0001"] and RUNNING not in sweep.states()
    first = sweep.searcher.add("c2", {"learning_rate": given["learning_rate"]}, "added by ann")
    assert sweep.ledger.curve(first).params["rank"] != given["rank"], "what is open is sampled"


def test_a_paused_sweep_starts_nothing_and_goes_on(tmp_path):
    sweep = Sweep(tmp_path, trials=1)
    sweep.paused = True
    assert sweep.searcher.suggest("tune") is None and not sweep.started
    sweep.paused = False
    assert sweep.ask().id == "t0001"


def test_without_room_on_disk_no_trial_starts_but_what_has_begun_goes_on(tmp_path):
    Sweep(tmp_path, trials=3).ask()
    sweep = Sweep(tmp_path, trials=3, selection={"finalists": {"top": 1, "seeds": 1}})
    sweep.full = True
    assert sweep.run(1.0).id == "t0001" and sweep.ask() is None and sweep.searcher.finished


def test_a_search_that_has_no_more_waits_while_somebody_may_ask(tmp_path):
    sweep = Sweep(tmp_path, trials=1)
    sweep.run(1.0)
    sweep.more = True
    assert sweep.searcher.suggest("tune") is None and not sweep.searcher.finished
    more = from_tree(
        OmegaConf.merge(OmegaConf.structured(sweep.config), {"search": {"trials": 2}}), (), "s"
    )
    sweep.searcher.follow(more)
    assert sweep.run(1.0).id == "t0002"
    sweep.more = False
    assert sweep.ask() is None and sweep.searcher.finished
    assert sweep.searcher.add("c1", {"learning_rate": 2e-3}, "added by ann") is None


def test_a_trial_that_somebody_stopped_keeps_what_it_showed_and_is_told_pruned(tmp_path):
    sweep = Sweep(tmp_path)
    asked, silent = sweep.ask(), sweep.ask()
    sweep.evaluate(asked, 2.0, 1.0)
    sweep.end(asked, ended="stopped", reason="stopped by hand")
    sweep.end(silent, ended="stopped", reason="stopped by hand")
    curve, frozen = sweep.ledger.curve(asked.id), sweep.frozen(asked)
    assert (curve.status, curve.reason) == ("pruned", "stopped by hand")
    assert (frozen.state, frozen.value) == (PRUNED, 1.0)
    assert sweep.frozen(silent).state == FAIL, "nothing is known of it"
    assert sweep.ledger.curve(asked.id).points[1].checkpoint


def test_a_trial_that_waits_is_stopped_where_it_waits(tmp_path):
    first = Sweep(tmp_path)
    first.evaluate(first.ask(), 2.0)
    sweep = Sweep(tmp_path)
    sweep.searcher.stop("t0001")
    sweep.searcher.stop("t0001")
    assert sweep.ledger.curve("t0001").reason == "stopped by hand" and sweep.ended == ["t0001"]
    assert sweep.ask().id == "t0002"


@pytest.mark.parametrize(
    ("reason", "status"),
    [("the time budget of 8h is spent", "pruned"), (INTERRUPTED, "running")],
)
def test_a_spent_budget_ends_also_the_trials_that_wait_to_go_on(tmp_path, reason, status):
    Sweep(tmp_path).ask()
    sweep = Sweep(tmp_path, stopped=reason)
    assert sweep.ask() is None and sweep.started == []
    assert sweep.ledger.curve("t0001").status == status
