"""Verdicts over curves in a CSV file, from any trainer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from sweeps.selection.diagnose import diagnose
from sweeps.selection.noise import curve_noise
from sweeps.selection.verdicts import verdict
from trainables.errors import InputError
from trainables.evaluation.record import Evaluation

ROOT = Path(__file__).resolve().parents[3]
HEADER = "trial,samples_seen,train_loss,probe_loss,val_loss\n"
CURVES = """\
healthy,100,0.90,0.70,0.720
healthy,200,0.70,0.65,0.680
healthy,300,0.66,0.64,0.678
rising,100,0.90,0.70,0.75
rising,200,0.60,0.40,0.70
rising,300,0.30,0.10,0.95
still,100,1.20,0.95,0.96
still,200,0.90,0.80,0.82
still,300,0.78,0.70,0.73
idle,100,1.0986,1.0981,1.0980
idle,200,1.0982,1.0979,1.0979
stuck,100,1.40,1.100,1.099
stuck,200,1.12,1.099,1.101
stuck,300,1.11,1.099,1.098
forgets,100,0.90,0.70,0.72
forgets,200,1.20,1.09,1.10
explodes,100,0.90,0.70,0.72
explodes,200,9.00,8.00,8.10
breaks,100,0.90,0.70,0.72
breaks,200,nan,nan,nan
"""
EXPECTED = {
    "healthy": "healthy",
    "rising": "overfit",
    "still": "still improving",
    "idle": "underfit",
    "stuck": "collapsed",
    "forgets": "collapsed",
    "explodes": "diverged",
    "breaks": "diverged",
}


def words(file, **more):
    return {trial.id: trial.verdict for trial in diagnose(file, SelectionConfig(), **more).trials}


def written(tmp_path, text):
    file = tmp_path / "curves.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_verdict_for_each_trial_in_the_order_of_the_file(tmp_path):
    found = words(written(tmp_path, HEADER + CURVES))
    assert found == EXPECTED and list(found) == list(EXPECTED)


def test_the_order_of_lines_and_columns_does_not_matter(tmp_path):
    lines = CURVES.splitlines()
    turned = [",".join(reversed(line.split(","))) for line in reversed(lines)]
    file = written(
        tmp_path, "val_loss,probe_loss,train_loss, samples_seen ,trial\n" + "\n".join(turned)
    )
    assert words(file) == EXPECTED


def test_a_line_at_zero_samples_is_the_untuned_model(tmp_path):
    curve = "t,100,1.3,1.10,1.10\nt,200,1.1,1.05,1.06\n"
    assert words(written(tmp_path, HEADER + curve)) == {"t": "still improving"}
    assert words(written(tmp_path, HEADER + curve + "t,0,,1.06,1.07\n")) == {"t": "underfit"}
    assert words(written(tmp_path, HEADER + curve), untuned_loss=1.07) == {"t": "underfit"}


def test_losses_at_the_label_shares_are_a_collapse(tmp_path):
    curve = "t,100,2.0,1.41,1.40\nt,200,1.5,1.36,1.37\n"
    assert words(written(tmp_path, HEADER + curve), untuned_loss=1.5, prior_loss=1.36) == {
        "t": "collapsed"
    }


def test_without_a_probe_the_training_loss_stands_for_it(tmp_path):
    file = written(
        tmp_path,
        "trial,samples_seen,train_loss,val_loss\nt,100,0.9,0.75\nt,200,0.6,0.70\nt,300,0.3,0.95\n",
    )
    assert words(file) == {"t": "overfit"}


def test_lines_without_an_evaluation_are_left_out_and_an_empty_probe_is_the_training_loss(tmp_path):
    text = "t,100,0.9,,0.72\nt,150,0.8,,\nt,200,0.7,,0.68\nt,300,0.66,,0.678\nt,350,0.6,,\n"
    assert words(written(tmp_path, HEADER + text)) == {"t": "healthy"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trial,val_loss\n", "no column samples_seen; it has trial, val_loss"),
        ("trial,samples_seen,val_loss\n", "neither a column probe_loss nor train_loss"),
        (HEADER, "has no line below its header"),
        (HEADER + "t,100,1,1,\n", "no line has a val_loss"),
        (
            HEADER + "t,100,,,1\n",
            "line 2: neither a probe_loss nor a train_loss stands beside the val_loss",
        ),
        (HEADER + "t,100,1,1,abc\n", "line 2: val_loss: must be a number, got 'abc'"),
        (HEADER + "t,many,1,1,1\n", "line 2: samples_seen: must be a number, got 'many'"),
        (
            HEADER + "t,-5,1,1,1\n",
            "line 2: samples_seen: must be a whole number of 0 or more, got '-5'",
        ),
        (HEADER + ",5,1,1,1\n", "line 2: trial: is empty"),
        (HEADER + "t,5,1,1,1\nt,5,1,1,1\n", "line 3: a second line of t at 5 samples"),
        ("", "no column trial; it has none"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, text, said):
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        words(written(tmp_path, text))
    assert said in str(error.value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["untuned_loss", "prior_loss"])
def test_a_loss_to_compare_with_must_be_one(tmp_path, name, value):
    with pytest.raises(InputError) as error:
        words(written(tmp_path, HEADER + CURVES), **{name: value})
    option = f"--{name.replace('_', '-')}"
    assert str(error.value) == f"{option}: must be a finite number of 0 or more, got {value}"


def test_the_command_prints_json_or_lines(tmp_path):
    file = written(tmp_path, HEADER + CURVES)
    command = [sys.executable, "-m", "sweeps", "diagnose"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(file), "--json"], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    trials = json.loads(done.stdout)["trials"]
    assert done.returncode == 0 and {t["id"]: t["verdict"] for t in trials} == EXPECTED
    assert all(
        set(trial) == {"id", "verdict", "verdict_reason"} and trial["verdict_reason"]
        for trial in trials
    )
    done = subprocess.run(
        [*command, "none.csv"], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.returncode == 2 and done.stderr.strip() == "none.csv: there is no such file"
    command = [*command, str(file), "--untuned-loss", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert done.stderr.strip() == "--untuned-loss: must be a finite number of 0 or more, got -1.0"


# --- noise ---


def noisy(rng, evaluations, noise, rise=0.0):
    """A curve that comes down and stays, or from its middle on rises by `rise` while the probe falls."""
    t = np.arange(1, evaluations + 1)
    late = np.clip(t - evaluations / 2, 0, None) / (evaluations / 2)
    val = (0.6 + 0.4 * np.exp(-t / 2)) * (1 + rise * late)
    probe = 0.57 + 0.4 * np.exp(-t / 2) - (0.02 + rise) * t / evaluations
    points = [
        Evaluation(step=i, samples_seen=100 * i, epoch=i, val_loss=v, probe_loss=p)
        for i, v, p in zip(
            t.tolist(), val * (1 + noise * rng.standard_normal(evaluations)), probe, strict=True
        )
    ]
    return Curve(id="t", status="complete", points=points)


def share(evaluations, noise, rise=0.0):
    """Of noisy curves those that are called overfit."""
    rng = np.random.default_rng([evaluations, int(noise * 1e4), int(rise * 1e4)])
    found = [
        verdict(noisy(rng, evaluations, noise, rise), Reference(), SelectionConfig()).word
        for _ in range(200)
    ]
    return found.count("overfit") / len(found)


@pytest.mark.parametrize(("noise", "limit"), [(0.002, 0.0), (0.005, 0.01), (0.01, 0.05)])
@pytest.mark.parametrize("evaluations", [3, 6, 10, 20])
def test_noise_makes_no_healthy_curve_overfit(evaluations, noise, limit):
    assert share(evaluations, noise) <= limit


@pytest.mark.parametrize("evaluations", [6, 10, 20])
def test_a_real_rise_is_seen_through_noise(evaluations):
    assert share(evaluations, 0.0, rise=0.3) == 1.0
    assert share(evaluations, 0.01, rise=0.3) >= 0.95


def test_the_noise_of_a_curve_without_noise_is_nothing_whatever_its_shape():
    points = noisy(np.random.default_rng(0), 20, 0.0, rise=0.5).points
    assert curve_noise(points) == 0.0
    found = [
        curve_noise(noisy(np.random.default_rng(seed), 20, 0.01).points) for seed in range(100)
    ]
    assert 0.004 < np.median(found) < 0.007  # 1% of 0.6
