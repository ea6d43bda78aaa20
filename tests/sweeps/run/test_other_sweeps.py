"""Whole sweeps of other kinds: chats, a time budget, nothing that may win, two workers and a group."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from drawn import WORDS, save_encoder

from sweeps.config.loading import load
from trainables.engine.group import GroupSettings, open_group
from trainables.tasks import TASKS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(7200)]


def test_instruction_sweep_over_chat_jsonl(
    sweeps, shared_data: Path, general_text: Path, tmp_path: Path
) -> None:
    rows = [
        json.loads(line)
        for line in (shared_data / "chat" / "alpaca_demo.jsonl").read_text().splitlines()
    ]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"{row['instruction']} {row['input']}".strip()},
                {"role": "assistant", "content": row["output"]},
            ]
        }
        for row in rows
        if len(row["output"]) < 300
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, chats[:200])))
    file = tmp_path / "chat.yaml"
    file.write_text(f"""
name: chat
task: instruction
storage: {tmp_path}/runs
model: {{name: {shared_data}/models/stories260K}}
data: {{train: {tmp_path}/chat.jsonl, validation: 0.2, max_length: 256}}
train: {{probe_rows: 64}}
cluster: {{slots: 1}}
search:
  trials: 3
  space:
    method:
      full: {{learning_rate: {{log_uniform: [5e-4, 3e-3]}}}}
      qlora: {{learning_rate: {{log_uniform: [2e-3, 2e-2]}}, rank: 4, alpha: 8}}
    batch_size: 8
    epochs: {{int: [1, 2]}}
selection: {{general_text: {general_text}, limits: {{forgetting: 5, kl: 9}}}}
""")
    done = sweeps("run", file)
    assert done.code == 0, done.out + done.err
    board = json.loads(sweeps("best", done.last_line, "--json").out)
    winner = board["winner"]
    assert winner["val_loss"] < board["baselines"]["untuned"]["val_loss"]
    assert all(
        e["forgetting"] < 5 and 0 < e["kl"] < 9 for t in board["trials"] for e in t["evaluations"]
    )
    lost = (
        board["forgetting"]["after"] - board["forgetting"]["before"]
    )  # by transformers and PEFT alone
    assert winner["forgetting"] == pytest.approx(lost, abs=0.02) and winner["kl"] == pytest.approx(
        board["forgetting"]["kl"], rel=0.5
    )
    done = sweeps("verify", done.last_line)
    assert done.code == 0, done.out + done.err


@pytest.mark.long
def test_preference_sweep_over_pairs(
    sweeps, shared_data: Path, general_text: Path, tmp_path: Path, monkeypatch
) -> None:
    """So small a model learns little of 112 pairs that holds for others, within half an epoch: then it knows the pairs."""
    file = tmp_path / "pairs.yaml"
    file.write_text(f"""
name: pairs
task: preference
storage: {tmp_path}/runs
model: {{name: {shared_data}/models/stories260K}}
data: {{train: {shared_data}/preference/dpo_demo.jsonl, validation: 0.3, max_length: 512}}
train: {{probe_rows: 16, evaluate_every: 56, batch_size: 8, epochs: 1}}
cluster: {{slots: 1}}
search:
  trials: 2
  scheduler: none
  space:
    method:
      full: {{learning_rate: {{log_uniform: [1e-5, 1e-4]}}}}
      lora: {{learning_rate: {{log_uniform: [1e-5, 1e-3]}}, rank: 8}}
    beta: {{log_uniform: [0.05, 0.5]}}
    loss_type: {{choice: [sigmoid, ipo]}}
  initial:
  - {{method: full, learning_rate: 3.0e-5, beta: 0.1, loss_type: sigmoid}}
  - {{method: lora, learning_rate: 1.0e-4, beta: 0.3, loss_type: sigmoid}}
selection: {{general_text: {general_text}, limits: {{kl: 1}}}}
""")
    done = sweeps("run", file)
    assert done.code == 0, done.out + done.err
    board = json.loads(sweeps("best", done.last_line, "--json").out)
    winner, untuned = board["winner"], board["baselines"]["untuned"]
    assert untuned["val_loss"] == pytest.approx(math.log(2))
    assert untuned["metrics"]["reward_accuracy"] == 0.5
    assert winner["val_loss"] < 0.96 * math.log(2)
    assert winner["metrics"]["reward_accuracy"] >= 0.55
    assert winner["probe_loss"] < winner["val_loss"]
    assert all(0 < e["kl"] < 1 for t in board["trials"] for e in t["evaluations"])
    done = sweeps("verify", done.last_line)
    assert done.code == 0, done.out + done.err
    folder = next((tmp_path / "runs").glob("pairs-*"))
    told = (folder / "winner" / "README.md").read_text()
    monkeypatch.chdir(folder)
    exec(re.findall(r"```python\n(.*?)```", told, re.DOTALL)[0], {})
    assert TASKS["preference"].loss.words in told and (folder / "report.html").is_file()


HEADS = {
    "regression": (lambda words: {"text": " ".join(words), "label": len(words[0]) / 2 - 2}, "rmse"),
    "multi_label": (
        lambda words: {
            "text": " ".join(words),
            "labels": ["long", "tall"] if len(words[0]) > 4 else [],
        },
        "micro_f1",
    ),
    "token_classification": (
        lambda words: {
            "tokens": words,
            "tags": ["B-LONG" if len(w) > 5 else "O" for w in words],
        },
        "f1",
    ),
}


@pytest.mark.parametrize(
    "task",
    [
        task if task == "token_classification" else pytest.param(task, marks=pytest.mark.long)
        for task in HEADS
    ],
)
def test_a_sweep_of_each_task_with_a_head(sweeps, task: str, tmp_path: Path, monkeypatch) -> None:
    """From rows to a winner that gives its number when it is loaded again, and the code on its card runs."""
    import random

    save_encoder(tmp_path / "model")
    make, metric = HEADS[task]
    drawn = random.Random(0)
    texts = [[*drawn.choices(WORDS.split(), k=drawn.randint(2, 6)), *str(n)] for n in range(200)]
    rows = [json.dumps(make(words)) for words in texts]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    file = tmp_path / "sweep.yaml"
    file.write_text(f"""
name: heads
task: {task}
storage: {tmp_path}/runs
model: {{name: {tmp_path}/model}}
data: {{train: {tmp_path}/rows.jsonl, validation: 0.2, test: 0.2}}
train: {{probe_rows: 64}}
cluster: {{slots: 1}}
search:
  trials: 2
  space:
    method: lora
    rank: {{choice: [4, 8]}}
    targets: all-linear
    learning_rate: {{log_uniform: [3e-3, 1e-2]}}
    batch_size: 8
    epochs: 8
""")
    done = sweeps("run", file)
    assert done.code == 0, done.out + done.err
    board = json.loads(sweeps("best", done.last_line, "--json").out)
    winner, prior = board["winner"], board["baselines"]["prior"]
    assert winner["val_loss"] < 0.9 * prior["val_loss"] and board["worth"]["verdict"] == "yes"
    assert metric in board["test"]["scores"]["winner"]["metrics"]
    done = sweeps("verify", done.last_line)
    assert done.code == 0, done.out + done.err
    folder = next((tmp_path / "runs").glob("heads-*"))
    told = (folder / "winner" / "README.md").read_text()
    monkeypatch.chdir(folder)
    exec(re.findall(r"```python\n(.*?)```", told, re.DOTALL)[0], {})
    assert TASKS[task].loss.words in told and (folder / "report.html").is_file()


@pytest.mark.long
def test_a_sweep_of_an_encoder_decoder_learns_to_write(sweeps, tmp_path: Path, monkeypatch) -> None:
    """Words in capitals, from rows to a winner that writes them by the code on its card."""
    import random

    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    words = WORDS.split()
    vocabulary = ["<pad>", "</s>", "<unk>", "upper:", "a", "A", "text", "TEXT", *words]
    vocabulary += [word.upper() for word in words]
    backend = Tokenizer(WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = transformers.T5Config(
        vocab_size=len(vocabulary),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    for saved in (tokenizer, transformers.T5ForConditionalGeneration(config)):
        saved.save_pretrained(tmp_path / "model")
    drawn = random.Random(0)
    texts = [drawn.choices(["a", "text", *words], k=drawn.randint(1, 4)) for _ in range(900)]
    rows = [{"low": " ".join(text), "high": " ".join(text).upper()} for text in texts]
    unlike = {row["low"]: json.dumps(row) for row in rows}
    (tmp_path / "rows.jsonl").write_text("\n".join(unlike.values()))
    file = tmp_path / "sweep.yaml"
    file.write_text(f"""
name: writes
task: seq2seq
storage: {tmp_path}/runs
model: {{name: {tmp_path}/model}}
data:
  train: {tmp_path}/rows.jsonl
  validation: 0.1
  test: 0.1
  columns: {{source: low, target: high}}
  source_prefix: "upper: "
train: {{probe_rows: 64}}
cluster: {{slots: 1}}
search:
  trials: 2
  space:
    method: full
    learning_rate: {{log_uniform: [5e-3, 1e-2]}}
    batch_size: 16
    epochs: 10
""")
    done = sweeps("check", file, "--rows", "1")
    assert done.code == 0 and "upper: " in done.out, done.out + done.err
    done = sweeps("run", file)
    assert done.code == 0, done.out + done.err
    board = json.loads(sweeps("best", done.last_line, "--json").out)
    winner, untuned = board["winner"], board["baselines"]["untuned"]
    assert winner["val_loss"] < untuned["val_loss"] / 2 and board["worth"]["verdict"] == "yes"
    assert board["forgetting"] is None and "untuned" in board["test"]["scores"]
    done = sweeps("verify", done.last_line)
    assert done.code == 0, done.out + done.err
    folder = next((tmp_path / "runs").glob("writes-*"))
    told = (folder / "winner" / "README.md").read_text()
    monkeypatch.chdir(folder)
    said: dict = {}
    exec(re.findall(r"```python\n(.*?)```", told, re.DOTALL)[0], said)
    written = said["tokenizer"].batch_decode(said["written"], skip_special_tokens=True)
    assert written == ["A TEXT"], winner
    assert TASKS["seq2seq"].loss.words in told and (folder / "report.html").is_file()


CLOCK_RUNS_OUT = """
import sys
from sweeps.__main__ import main
from sweeps.run.lifetime import Lifetime

elapsed_s = Lifetime.elapsed_s
spent = lambda sweep: [*sweep.ledger.store.local.glob("trials/*/attempt-*/step-*")]
Lifetime.elapsed_s = lambda sweep: elapsed_s(sweep) + (100 * 3600 if spent(sweep) else 0)
main()
"""


@pytest.mark.long
def test_a_time_budget_stops_in_order_and_still_selects(sweeps, shakespeare) -> None:
    """It is spent as soon as the first trial has been evaluated, however long that takes."""
    file = shakespeare("""
search:
  trials: 500
  time_budget: 100h
  space: {method: full, learning_rate: {log_uniform: [3e-4, 3e-3]}, batch_size: 16, epochs: 2}
""")
    done = sweeps("run", file, program=["-c", CLOCK_RUNS_OUT])
    assert done.code == 0 and "time budget" in done.out, done.out + done.err
    board = json.loads(sweeps("best", done.last_line, "--json").out)
    assert (
        board["winner"] is not None and board["status"] == "finished" and len(board["trials"]) < 500
    )
    assert "running" not in {t["status"] for t in board["trials"]}


def test_when_nothing_may_win_it_says_so_and_exits_1(sweeps, shakespeare) -> None:
    file = shakespeare("""
rehearse: false  # which would tell before anything starts
search:
  trials: 2
  space: {method: partial, layers: {choice: [7, 8]}, learning_rate: 0.001, batch_size: 16, epochs: 1}
""")
    done = sweeps("run", file)
    assert (
        done.code == 1
        and "Nothing may win" in done.out
        and "at most the model's 5 layers" in done.out
    ), done.out + done.err
    done = sweeps("best", done.last_line, "--json")
    assert (
        done.code == 1
        and json.loads(done.out)["winner"] is None
        and "failed" in json.loads(done.out)["reason"]
    )


@pytest.mark.long
def test_three_failures_with_one_cause_end_the_sweep_which_goes_on_when_it_is_mended(
    sweeps, shakespeare
) -> None:
    """And it goes on with more trials, in another space."""
    file = shakespeare("""
rehearse: false
search:
  trials: 30
  space: {method: {partial: {layers: {int: [7, 99]}}}, learning_rate: {log_uniform: [1e-4, 1e-3]}, batch_size: 16, epochs: 1}
""")
    done = sweeps("run", file)
    assert (
        done.code == 1
        and "Stopped, as three trials failed with one cause, and none has succeeded: " in done.out
    )
    folder = done.last_line
    board = json.loads(sweeps("best", folder, "--json").out)
    assert (
        board["status"] == "failed"
        and 3 <= sum(t["status"] == "failed" for t in board["trials"]) < 10
    )
    began = len(board["trials"])
    refused = sweeps("resume", folder, "data.rows=9")
    assert refused.code == 2 and refused.err.startswith(
        "data.rows: cannot change when a sweep is resumed"
    )
    done = sweeps(
        "resume",
        folder,
        "search.space.method.partial.layers={choice: [1, 2]}",
        f"search.trials={began + 2}",
    )
    assert done.code == 0, done.out + done.err
    assert (
        "Changed: search.space\n" in done.out
        and f"Changed: search.trials: 30 to {began + 2}\n" in done.out
    )
    assert f"The search space has changed: 0 of {began} trials fit it" in done.out
    board = json.loads(sweeps("best", folder, "--json").out)
    assert board["status"] == "finished" and board["winner"]["params"]["layers"] in (1, 2)
    assert [t["status"] for t in sorted(board["trials"], key=lambda t: t["id"])][-2:] == [
        "complete",
        "complete",
    ]


def test_two_workers_and_a_pack_under_ray_give_what_each_trial_gives_alone_without_ray(
    sweeps, shakespeare
) -> None:
    file = shakespeare("""
cluster: {workers_per_slot: 2, slots: 1, resources_per_worker: {CPU: 1}, trials_per_slot: 2}
search:
  trials: 2
  scheduler: none
  space: {method: lora, rank: {choice: [2, 8]}, learning_rate: 0.001, batch_size: 16, epochs: 2}
""")
    done = sweeps("run", file)
    assert done.code == 0, done.out + done.err
    folder = Path(done.last_line)
    config = load(folder / "sweep.yaml")
    group = open_group(
        folder / "data",
        model=config.model,
        task="causal_lm",
        pad_token_id=0,
        settings=GroupSettings(probe_rows=config.train.probe_rows, seed=config.seed),
        device=torch.device("cpu"),
    )
    trials = json.loads(sweeps("best", folder, "--json").out)["trials"]
    assert len(trials) == 2
    for trial in trials:
        group.join("t", config.hyperparameters(trial["params"]))
        for evaluation in trial["evaluations"]:
            while not group.step(["t"]):
                pass
            own = group.evaluate(["t"])["t"]
            assert own.step == evaluation["step"]
            assert (own.val_loss, own.probe_loss) == pytest.approx(
                (evaluation["val_loss"], evaluation["probe_loss"]), rel=1e-4
            )
        group.leave("t")
