"""Finished sweeps over tiny models: two adapters over one language model, and a classifier."""

import json
import random
import socket
from pathlib import Path

import pytest
import torch
import transformers
from finished import WORDS, classes, finish
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

CHATS = [
    ("Name a color", "The color is red."),
    ("Name an animal", "The animal is a dog."),
    ("Tell me a story", "Once upon a time there was a little girl."),
    ("Who are you?", "I am a little dog named Tim."),
]


@pytest.fixture(scope="session")
def chats(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sweeps of conversations with LoRA of different ranks over one tiny real Llama."""
    tmp = tmp_path_factory.mktemp("chats")
    drawn = random.Random(0)
    rows = []
    for number in range(60):
        question, answer = drawn.choice(CHATS)
        said = [("user", f"{question} {number}"), ("assistant", answer)]
        rows.append({"messages": [{"role": role, "content": text} for role, text in said]})
    (tmp / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = {}
    for name, rank, rate in (("alpha", 4, 1e-2), ("beta", 8, 3e-2)):
        file = tmp / f"{name}.yaml"
        file.write_text(f"""
name: {name}
task: instruction
storage: {tmp}/runs
model: {{name: {shared_data}/models/stories260K}}
data: {{train: {tmp}/chat.jsonl, validation: 0.2, max_length: 128}}
search: {{trials: 1, space: {{method: lora, learning_rate: {rate}, rank: {rank}, batch_size: 8, epochs: 1}}}}
""")
        params = {
            "method": "lora",
            "learning_rate": rate,
            "rank": rank,
            "batch_size": 8,
            "epochs": 1,
        }
        found[name] = finish(file, params)
    return found


@pytest.fixture(scope="session")
def drawn_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT over a few words."""
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = ["[PAD]", "[UNK]", *WORDS.split(), *map(str, range(10))]
    backend = Tokenizer(WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]"
    )
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    for saved in (tokenizer, transformers.BertModel(config)):
        saved.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_heads(drawn_encoder: Path, tmp_path_factory: pytest.TempPathFactory):
    """Trains an encoder on rows of a task; the sweep's folder."""

    def make(task: str, rows: list[dict[str, object]], bad_rows: str = "error") -> Path:
        tmp = tmp_path_factory.mktemp(task)
        (tmp / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        file = tmp / "sweep.yaml"
        file.write_text(f"""
name: {task}
task: {task}
storage: {tmp}/runs
model: {{name: {drawn_encoder}}}
data: {{train: {tmp}/rows.jsonl, validation: 0.3, bad_rows: {bad_rows}}}
search: {{trials: 1, space: {{method: full, learning_rate: 1e-2, batch_size: 8, epochs: 1}}}}
""")
        params = {"method": "full", "learning_rate": 1e-2, "batch_size": 8, "epochs": 2}
        return finish(file, params)

    return make


@pytest.fixture(scope="session")
def classifier(make_heads) -> Path:
    return make_heads("classification", classes())


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
