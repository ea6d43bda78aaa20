"""Whole sweeps in which the base model is a choice."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trainables.data.arrow import open_split

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]

LETTERS = random.Random(0)
WORDS = ["".join(LETTERS.choices("abcdefghijklmnop", k=6)) for _ in range(100)]


def sentences(count: int, seed: int) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(WORDS, k=8)) + f" {n}." for n in range(count)]


def made_model(folder: Path, vocabulary: int) -> None:
    """A Llama that knows nothing, whose tokens are bytes (259) or words (more)."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        sentences(300, 1),
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    tokenizer.save_pretrained(folder)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def test_bits_per_byte_choose_where_nats_per_token_would_choose_wrongly(
    sweeps, general_text: Path, tmp_path: Path, monkeypatch
) -> None:
    """A token of bytes has fewer nats than a token of words, and the text many more of them."""
    made_model(tmp_path / "bytes", 259)
    made_model(tmp_path / "words", 900)
    rows = [json.dumps({"prompt": "", "completion": text}) for text in sentences(240, 2)]
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(rows).replace('"prompt": ""', '"prompt": "Say: "')
    )
    file = tmp_path / "sweep.yaml"
    file.write_text(f"""
name: several
task: instruction
storage: {tmp_path}/runs
model: {{name: {{choice: {{bytes: {tmp_path}/bytes, words: {tmp_path}/words}}}}}}
data: {{train: {tmp_path}/rows.jsonl, validation: 0.2, test: 0.2, max_length: 128, chat_template: none}}
train: {{probe_rows: 32}}
cluster: {{slots: 1}}
search:
  trials: 4
  sampler: grid
  space:
    model:
      bytes: {{learning_rate: {{choice: [3e-3, 1e-2]}}}}
      words: {{learning_rate: {{choice: [3e-3, 1e-2]}}}}
    method: full
    batch_size: 16
    epochs: 3
selection: {{general_text: {general_text}, baselines: false}}
""")
    done = sweeps("run", file)
    assert done.code == 0, done.out + done.err
    assert "bits per byte" in done.out
    board = json.loads(sweeps("best", done.last_line, "--json").out)
    folder = Path(done.last_line)
    prepared = {"bytes": folder / "data", "words": next((folder / "data").glob("words-*"))}
    splits = {base: open_split(data, "validation") for base, data in prepared.items()}
    assert np.array_equal(splits["bytes"].target_bytes, splits["words"].target_bytes)
    text = splits["words"].target_bytes.sum()

    def of_token(trial: dict) -> float:
        """What each target token of the text took, in nats."""
        base = trial["params"]["model"]
        targets = sum(
            (row["labels"][1:] >= 0).sum() for row in splits[base].rows(range(len(splits[base])))
        )
        return trial["best"] * text * math.log(2) / targets

    best: dict[str, dict] = {}
    for trial in board["trials"]:
        trial["best"] = min(each["val_loss"] for each in trial["evaluations"])
        base = trial["params"]["model"]
        if base not in best or trial["best"] < best[base]["best"]:
            best[base] = trial
    assert of_token(best["bytes"]) < of_token(best["words"]), "by tokens the bytes would have won"
    assert best["words"]["best"] < best["bytes"]["best"], "by the text that both had to say"
    winner = board["winner"]
    assert winner["params"]["model"] == "words" and "bits per byte" in board["losses"]
    assert {"untuned", next(name for name in board["baselines"] if "words" in name)} <= {
        *board["baselines"]
    }
    untuned = next(each for name, each in board["baselines"].items() if "words" in name)
    assert untuned["val_loss"] > winner["val_loss"]
    # every trial learns from what its own base gives
    assert all(trial["verdict"] not in ("diverged", "collapsed") for trial in board["trials"])
    assert board["test"]["scores"]["winner"]["loss"] == pytest.approx(winner["val_loss"], rel=0.3)
    done = sweeps("verify", folder)
    assert done.code == 0, done.out + done.err
    told = (folder / "winner" / "README.md").read_text()
    assert "bits per byte" in told and str(tmp_path / "words") in told
    assert json.loads((folder / "winner" / "config.json").read_text())["vocab_size"] > 300
    monkeypatch.chdir(folder)
    exec(re.findall(r"```python\n(.*?)```", told, re.DOTALL)[0], {})
    more = sweeps("resume", folder, "selection.finalists.top=1", "selection.finalists.seeds=1")
    assert more.code == 0, more.out + more.err
    again = json.loads(sweeps("best", folder, "--json").out)
    assert any(trial["finalist_of"] for trial in again["trials"])
