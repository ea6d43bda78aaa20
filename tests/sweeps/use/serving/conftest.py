"""Finished sweeps over tiny models: two adapters over one language model, and a classifier."""

import json
import random
from pathlib import Path

import pytest
from drawn import save_encoder
from finished import classes, finish

CHATS = [
    ("Name a color", "The color is red."),
    ("Name an animal", "The animal is a dog."),
    ("Tell me a story", "Once upon a time there was a little girl."),
    ("Who are you?", "I am a little dog named Tim."),
]


@pytest.fixture(scope="session")
def make_chats(shared_data: Path, tmp_path_factory: pytest.TempPathFactory):
    """Trains a tiny real Llama on conversations; the sweep's folder."""
    tmp = tmp_path_factory.mktemp("chats")
    drawn = random.Random(0)
    rows = []
    for number in range(60):
        question, answer = drawn.choice(CHATS)
        said = [("user", f"{question} {number}"), ("assistant", answer)]
        rows.append({"messages": [{"role": role, "content": text} for role, text in said]})
    (tmp / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def make(name: str, **params: object) -> Path:
        params = {"batch_size": 8, "epochs": 1, **params}
        file = tmp / f"{name}.yaml"
        file.write_text(f"""
name: {name}
task: instruction
storage: {tmp}/runs
model: {{name: {shared_data}/models/stories260K}}
data: {{train: {tmp}/chat.jsonl, validation: 0.2, max_length: 128}}
search: {{trials: 1, space: {json.dumps(params)}}}
""")
        return finish(file, params)

    return make


@pytest.fixture(scope="session")
def chats(make_chats) -> dict[str, Path]:
    """Two sweeps with LoRA of different ranks over one base."""
    return {
        "alpha": make_chats("alpha", method="lora", rank=4, learning_rate=1e-2),
        "beta": make_chats("beta", method="lora", rank=8, learning_rate=3e-2),
    }


@pytest.fixture(scope="session")
def drawn_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT over a few words."""
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(folder)
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
