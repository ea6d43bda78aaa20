"""The simulation has the truth that it claims, and the arithmetic is right; which way chooses better is never asserted."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import selection  # pytest puts this folder on sys.path

from sweeps.selection.curves import Curve
from sweeps.selection.statistics import paired_difference
from trainables.evaluation.record import Evaluation

SCRIPT = Path(selection.__file__)


def sweep(
    trials: dict[str, Sequence[tuple[float, float, float]]], parameters: dict[str, int]
) -> selection.Sweep:
    """Trials from (true loss, measured validation loss, measured probe loss) of each evaluation; ten samples apart."""
    curves, truth, row_losses = [], {}, {}
    for name, evaluations in trials.items():
        points = []
        for i, (true, val, probe) in enumerate(evaluations, 1):
            folder = f"{name}/{i}"
            truth[folder] = selection.Truth(loss=true, overfit=name == "overfit" and i == 3)
            spread = (
                0.12 if name == "cheap" else 0.1
            )  # so its difference to the others has a standard error
            row_losses[folder] = val + spread * np.tile([-1, 1, 1, -1], 3)
            points.append(
                Evaluation(
                    step=i, samples_seen=10 * i, epoch=i, val_loss=val, probe_loss=probe, folder=folder, checkpoint=folder,
                    trainable_parameters=parameters[name], checkpoint_bytes=parameters[name],
                )
            )  # fmt: skip
        curves.append(Curve(id=name, status="complete", points=points))
    return selection.Sweep(rows=12, curves=curves, truth=truth, row_losses=row_losses)


def small() -> selection.Sweep:
    trials = {
        "overfit": [(1.5, 1.5, 1.4), (0.8, 0.8, 0.7), (1.2, 1.2, 0.2)],
        "large": [(1.4, 1.4, 1.4), (1.0, 0.9, 0.9)],
        "cheap": [(1.3, 1.3, 1.3), (0.9, 0.805, 0.7), (1.0, 1.0, 0.69)],
    }
    return sweep(trials, {"overfit": 1000, "large": 1000, "cheap": 10})


def test_help_names_the_options() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(
        option in done.stdout for option in ("--sweeps", "--seed", "--out")
    )


def test_too_few_sweeps_are_refused() -> None:
    with pytest.raises(SystemExit, match="^--sweeps: must be at least 3, got 2$"):
        selection.main(["--sweeps", "2"])


@pytest.mark.parametrize("evaluations", [3, 4, 12])
def test_only_overfit_trials_end_overfit(evaluations: int) -> None:
    rng = np.random.default_rng(0)
    for family in ("overfit", *selection.OTHERS):
        for _ in range(20):
            val, probe = selection.trend(family, evaluations, rng, untuned=2.0, floor=1.0)
            assert len(val) == len(probe) == evaluations
            assert selection.is_overfit(val, probe, evaluations - 1) == (family == "overfit")


def test_families_do_what_their_names_say() -> None:
    rng = np.random.default_rng(1)

    def ends(family: str) -> np.ndarray:
        return np.array(
            [selection.trend(family, 10, rng, untuned=2.0, floor=1.0)[0][-2:] for _ in range(50)]
        )

    healthy, improving = ends("healthy"), ends("still improving")
    assert (healthy[:, 1] < 1.02).all() and (improving[:, 0] - improving[:, 1] > 0.01).all()
    assert (ends("underfit")[:, 1] > 1.96).all()
    assert ((ends("collapsed")[:, 1] >= 1.9) & (ends("collapsed")[:, 1] <= 2.2)).all()
    diverged = ends("diverged")[:, 1]
    assert np.isnan(diverged).any() and (diverged[np.isfinite(diverged)] >= 6).all()


@pytest.mark.parametrize("rise", [0.05, 0.2])
def test_an_overfit_trial_rises_as_far_as_asked(rise: float) -> None:
    val, probe = selection.trend(
        "overfit", 8, np.random.default_rng(2), untuned=2.0, floor=1.0, rise=rise
    )
    assert val[-1] == pytest.approx(val.min() * (1 + rise)) and probe[-1] == probe.min()


def test_overfit_needs_a_rise_and_a_falling_training_loss() -> None:
    val, falling = np.array([1.0, 1.01, 1.03, np.nan]), np.array([0.9, 0.8, 0.7, np.nan])
    assert [selection.is_overfit(val, falling, i) for i in range(4)] == [False, False, True, False]
    assert not selection.is_overfit(val, falling[::-1], 2)


def test_rows_have_the_true_loss_as_their_mean_and_their_differences_are_paired() -> None:
    rng, task, rows = np.random.default_rng(3), selection.TASKS[0], 200_000
    shape = 1 / task.difficulty**2
    difficulty = rng.gamma(shape, 1 / shape, rows).astype(np.float32)
    first, second = (
        selection.rows_of(np.array([1.0, 1.0]), difficulty, task, rng) for _ in range(2)
    )
    assert first.mean(axis=1) == pytest.approx([1.0, 1.0], rel=0.01) and first.min() > 0
    ones = np.ones(rows)
    between, within = (
        paired_difference(np.stack([first[0], ones], 1), np.stack([other, ones], 1))[1]
        for other in (second[0], first[1])
    )
    assert 2 * between < 1.5 * first[0].std() / rows**0.5 and within < 0.7 * between


def test_sweeps_come_from_their_seed_alone() -> None:
    first, again, other = (
        selection.simulate(0, 1),
        selection.simulate(0, 1),
        selection.simulate(0, 2),
    )
    assert (
        first.truth == again.truth and first.curves == again.curves and first.truth != other.truth
    )
    assert [selection.simulate(i, 1).rows for i in range(3)] == [100, 500, 2000]
    assert 20 <= len(first.curves) <= 60
    points = [p for c in first.curves for p in c.points if p.val_loss is not None]
    assert {p.folder for p in points} == set(first.truth)
    assert all(p.val_loss == pytest.approx(first.losses(p.folder)[:, 0].mean()) for p in points)


def test_ways_choose_as_they_are_described() -> None:
    found = {way: choose(small()).folder for way, choose in selection.WAYS.items()}
    assert found == {
        "last checkpoint": "large/2",
        "lowest training loss": "overfit/3",
        "bare argmin": "overfit/2",
        "half of the rows": "overfit/2",
        "sweeps.selection.ranking": "overfit/2",
        "prefer: cheapest": "cheap/2",  # tied with overfit/2, and a smaller file
    }


def test_choices_are_judged_by_their_truth() -> None:
    found = selection.judge(small(), selection.bare_argmin(small()))
    assert (found.overfit, found.regret, found.parameters, found.samples, found.rows) == (
        False,
        0.0,
        1000,
        20,
        12,
    )
    found = selection.judge(small(), selection.lowest_training_loss(small()))
    assert (
        found.overfit
        and found.regret == pytest.approx(0.4)
        and found.relative == pytest.approx(0.5)
    )
    found = selection.judge(small(), selection.last_checkpoint(small()))
    assert found.regret == pytest.approx(0.2) and found.optimism == pytest.approx(0.1)


def test_table_has_all_sweeps_and_each_size() -> None:
    def choice(rows: int, regret: float) -> selection.Choice:
        return selection.Choice(
            rows=rows,
            overfit=regret > 0,
            regret=regret,
            relative=regret / 2,
            optimism=-0.1,
            parameters=10**6,
            samples=90,
        )

    table = selection.choices_table(
        {"a": [choice(100, 0.0), choice(500, 0.2)], "b": [choice(100, 0.4), choice(500, 0.0)]}
    )
    header, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
    ]
    assert [line[:2] for line in lines] == [[n, way] for n in ("all", "100", "500") for way in "ab"]
    assert {len(line) for line in lines} == {len(header)}
    assert lines[0][2:] == [
        "50.0%",
        "0.1000 ± 0.1000",
        "0.1800",
        "5.00%",
        "9.00%",
        "50.0%",
        "6.00",
        "90",
        "-0.1000 ± 0.0000",
    ]
    assert lines[4][:4] == ["500", "a", "100.0%", "0.2000"]  # one sweep has no standard error


def test_without_noise_there_are_no_false_alarms_and_every_hit() -> None:
    for evaluations in selection.EVALUATIONS:
        said = selection.verdicts(["healthy", "still improving"], evaluations, 0.0, None, 0, 10)
        assert len(said) == 20 and set(said) <= {"healthy", "still improving"}
        assert set(selection.verdicts(["overfit"], evaluations, 0.0, 0.05, 0, 10)) == {"overfit"}


def test_verdicts_table_counts_alarms_and_hits(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(
        families: Sequence[str], evaluations: int, noise: float, rise: float | None, *_: int
    ) -> list[str]:
        assert list(families) == (["healthy", "still improving"] if rise is None else ["overfit"])
        return (
            ["overfit"] * round(100 * (rise or 0.03))
            + ["healthy"] * 50
            + ["still improving"] * round(50 - 100 * (rise or 0.03))
        )

    monkeypatch.setattr(selection, "verdicts", said)
    header, _, *lines = [
        line.strip("| ").split(" | ") for line in selection.verdicts_table(0).splitlines()
    ]
    assert header == [
        "noise",
        "evaluations",
        "false alarms",
        *(f"hits, rise of {r}%" for r in (5, 10, 20)),
    ]
    cells = [[f"{n}%", str(e)] for n in (0.2, 0.5, "1.0", "2.0") for e in (4, 6, 10, 20)]
    assert lines == [[*cell, "3.0%", "5.0%", "10.0%", "20.0%"] for cell in cells]


def test_one_half_of_the_rows_chooses_and_the_other_reports() -> None:
    rng = np.random.default_rng(0)
    trials, rival = np.ones((2, 40)), np.full((1, 40), 3.0)
    trials[0, ::2] = 0.5  # the better where it is chosen
    trials[1, 1::2] = 0.5
    made = sweep({"large": [(1.0, 1.0, 1.0)], "cheap": [(1.0, 1.0, 1.0)]}, {"large": 1, "cheap": 1})
    made.row_losses.update({"large/1": trials[0], "cheap/1": trials[1]})
    assert selection.half_of_the_rows(made).folder == "large/1"
    assert selection.lower_bound("half of the rows", trials, rival, rng) == pytest.approx(2.0)
    assert (
        selection.lower_bound("as if not chosen", trials[:1], rival, rng) < 2.25
    )  # on all rows, of which half have 0.5


@pytest.mark.parametrize("way", selection.BOUNDS)
def test_a_gain_that_is_the_same_on_every_row_is_claimed_by_every_way(way: str) -> None:
    rng = np.random.default_rng(1)
    hard = rng.exponential(1.0, 60)
    trials = np.stack([hard + 2.0, hard + 1.0 + 0.01 * rng.random(60)])
    low = selection.lower_bound(way, trials, trials[:1], rng)
    assert low == pytest.approx(1.0, abs=0.02) and low > 0.95


def test_claims_are_of_every_way_and_every_sweep() -> None:
    found = selection.claims(3, 3.0, 12, 0)
    assert list(found) == list(selection.BOUNDS) and all(len(each) == 12 for each in found.values())
    assert all(claim.default and claim.baseline for claim in found["as if not chosen"]), (
        "three times worse is seen"
    )
    assert found == selection.claims(3, 3.0, 12, 0)


def test_rows_of_a_group_are_alike_as_far_as_asked() -> None:
    rng, of_rows = np.random.default_rng(2), np.repeat(np.arange(20_000), 2)
    for rho in (0.0, 0.3):
        logs = np.log(selection.alike(0.5, rho, of_rows, rng)).reshape(-1, 2)
        assert np.corrcoef(logs.T)[0, 1] == pytest.approx(rho, abs=0.02)
        assert np.exp(logs).mean() == pytest.approx(1.0, abs=0.02)


def test_coverage_is_a_share_for_each_number_and_unit() -> None:
    found = selection.covered(10, 0.0, 4, 0)
    assert list(found) == ["mean, rows", "mean, groups", "difference, rows", "difference, groups"]
    assert all(share in (0, 0.25, 0.5, 0.75, 1) for share in found.values())
