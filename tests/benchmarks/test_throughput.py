"""The benchmark starts, and its arithmetic is right; what it measures is never asserted."""

import json
import subprocess
import sys
from pathlib import Path

import arms  # pytest puts this folder on sys.path
import pytest
import throughput

from sweeps.config.loading import load

SCRIPT = Path(throughput.__file__)


def arm(
    name: str,
    losses: list[float],
    wall: float = 10.0,
    cpu: float = 20.0,
    peak: int = 2**30,
    steps: int = 5,
) -> throughput.RowResults:
    trials = tuple(throughput.Trial(val_loss=loss, steps=steps, trained=7) for loss in losses)
    return throughput.RowResults(name=name, at_once=2, peak=peak, wall=wall, cpu=cpu, trials=trials)


def test_help_names_the_options() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--child" not in done.stdout
    assert all(
        option in done.stdout
        for option in ("--workload", "--trials", "--rows", "--trials-per-slot", "--table")
    )


@pytest.mark.parametrize(("option", "least"), [("--trials", 2), ("--rows", 20)])
def test_too_few_are_refused(option: str, least: int) -> None:
    with pytest.raises(SystemExit, match=f"^{option}: must be at least {least}, got 1$"):
        throughput.main([option, "1"])


@pytest.mark.parametrize(("workload", "name"), [("encoder", "TWEETS"), ("llama", "STORIES")])
def test_it_says_what_data_it_lacks(
    workload: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(throughput, name, tmp_path / "lost")
    with pytest.raises(
        SystemExit,
        match="lost: not there; this benchmark needs the data laid beside the repository",
    ):
        throughput.main(["--workload", workload])


def test_it_says_what_package_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "PACKAGE", "no_such_package")
    with pytest.raises(
        SystemExit, match="^no_such_package: not installed; `make quickstart` installs it"
    ):
        throughput.encoder()


def test_configurations_differ_and_are_mixed() -> None:
    found = throughput.configurations(16)
    assert found == throughput.configurations(16)
    assert (
        len({trial["learning_rate"] for trial in found}) == 16
    )  # by which the arms' trials are matched
    assert (found[0]["learning_rate"], found[-1]["learning_rate"]) == (1e-4, 1e-3)
    assert {(trial["batch_size"], trial["rank"]) for trial in found} == {
        (b, r) for b in (1, 2, 4) for r in (4, 8)
    }


def test_the_platform_takes_the_sweep_file(tmp_path: Path) -> None:
    chosen = throughput.configurations(8)
    prepared = {
        "task": "causal_lm",
        "model": {"name": "m"},
        "data": {"train": "a.txt", "validation": "b.txt", "rows": 40},
    }
    for group in ("auto", "3"):
        file = tmp_path / "sweep.yaml"
        file.write_text(throughput.sweep_file(prepared, chosen, group, tmp_path / "runs"))
        config = load(file)
        assert config.cluster.trials_per_slot == ("auto" if group == "auto" else 3)
    trial = config.hyperparameters({**chosen[4], "alpha": 16})
    assert (trial.method, trial.learning_rate, trial.batch_size, trial.epochs) == (
        "lora",
        chosen[4]["learning_rate"],
        2,
        1,
    )
    assert (trial.schedule, trial.warmup_ratio, trial.weight_decay, trial.max_grad_norm) == (
        "constant",
        0.0,
        0.0,
        1.0,
    )
    assert (trial.options.rank, trial.options.dropout, trial.options.targets) == (
        8,
        0.0,
        "all-linear",
    )


def test_the_model_is_copied_without_its_dropout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, text, work = tmp_path / "given", tmp_path / "text.txt", tmp_path / "work"
    model.mkdir(), work.mkdir()
    (model / "config.json").write_text(
        '{"attention_dropout": 0.1, "hidden_dropout_prob": 0.1, "hidden_size": 8}'
    )
    (model / "model.safetensors").write_text("weights")
    text.write_text("".join(f"{n:07d}\n" for n in range(4000)))
    monkeypatch.setattr(throughput, "STORIES", model)
    monkeypatch.setattr(throughput, "TEXT", text)
    prepared = throughput.prepare("llama", 20, work)
    assert json.loads((work / "model" / "config.json").read_text()) == {
        "attention_dropout": 0.0,
        "hidden_dropout_prob": 0.0,
        "hidden_size": 8,
    }
    assert (work / "model" / "model.safetensors").read_text() == "weights"
    train, validation = (
        Path(prepared["data"][name]).read_text() for name in ("train", "validation")
    )
    assert text.read_text().startswith(train) and text.read_text().endswith(validation)
    assert len(train) == 3840 and len(validation) == 1152  # characters: they do not overlap


def test_trials_at_once() -> None:
    assert throughput.most_at_once([(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (5.0, 6.0)]) == 2
    assert throughput.most_at_once([(0.0, 9.0), (1.0, 3.0), (2.0, 4.0)]) == 3


def test_a_sweep_is_read_in_the_order_of_its_configurations(tmp_path: Path) -> None:
    for trial, rate, started, ended in (("t0001", 1e-3, 0.0, 2.0), ("t0002", 1e-4, 1.0, 3.0)):
        step = tmp_path / "trials" / trial / "attempt-1" / "step-00000009"
        step.mkdir(parents=True)
        (step.parents[1] / "trial.json").write_text(
            json.dumps({"params": {"learning_rate": rate}, "started": started})
        )
        (step.parents[1] / "outcome.json").write_text(json.dumps({"ended": ended}))
        (step / "evaluation.json").write_text(
            json.dumps({"val_loss": rate, "step": 9, "trainable_parameters": 7})
        )
    trials, at_once = throughput.of_sweep(
        tmp_path, [{"learning_rate": 1e-4}, {"learning_rate": 1e-3}]
    )
    assert (
        trials
        == tuple(throughput.Trial(val_loss=rate, steps=9, trained=7) for rate in (1e-4, 1e-3))
        and at_once == 2
    )


def test_unequal_work_is_refused() -> None:
    own = arm("ours", [1.0, 2.0])
    throughput.check_same_work(own, arm("stock", [1.5, 2.5]))
    with pytest.raises(
        SystemExit, match="^trial 1: ours took 5 steps of 7 parameters, stock 6 of 7$"
    ):
        throughput.check_same_work(own, arm("stock", [1.0, 2.0], steps=6))


def test_table_compares_with_the_first_arm() -> None:
    ours, stock = (
        arm("ours", [1.5, 1.25]),
        arm("stock", [1.5, 1.25001], wall=35.0, cpu=30.0, peak=3 * 2**30),
    )
    separate = throughput.RowResults(name="separate", at_once=2, peak=2**31)
    header, rule, *rows = throughput.table([ours, stock, separate]).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, rule, *rows)]
    assert len({len(row) for row in cells}) == 1 and f"peak {arms.MEMORY}, GiB" in cells[0]
    assert cells[2] == [
        "ours",
        "2",
        "10.0",
        "1.0",
        "20.0",
        "1.0",
        "1.00",
        "1.0",
        "1.25000",
        "2",
        "0.0e+00",
    ]
    assert cells[3] == [
        "stock",
        "2",
        "35.0",
        "3.5",
        "30.0",
        "1.5",
        "3.00",
        "3.0",
        "1.25001",
        "2",
        "1.0e-05",
    ]
    assert cells[4] == ["separate", "2", "-", "-", "-", "-", "2.00", "2.0", "-", "-", "-"]
