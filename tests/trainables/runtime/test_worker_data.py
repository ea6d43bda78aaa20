"""Where a slot's worker keeps its copy of the data of an object store."""

import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch

from trainables.data.config import DataConfig
from trainables.data.prepare import prepare
from trainables.hyperparameters import parse
from trainables.models.config import ModelConfig
from trainables.models.files import load_tokenizer
from trainables.runtime.protocol import SlotBase, SlotConfig
from trainables.runtime.worker import open_slot
from trainables.storage.store import Store


@pytest.fixture
def config(shared_data, tmp_path):
    """Of a slot whose sweep lies in an object store."""
    model = ModelConfig(name=str(shared_data / "models/stories260K"))
    lines = [f"A line of the text, the {number}th of all that there are.\n" for number in range(80)]
    (tmp_path / "text.txt").write_text("".join(lines))
    data = DataConfig(train=str(tmp_path / "text.txt"), validation=0.2, max_length=32)
    tokenizer = load_tokenizer(model)
    prepare(data, "causal_lm", tokenizer, 0, tmp_path / "data")
    store = Store(f"memory://{tmp_path.name}/sweep")
    for file in (tmp_path / "data").iterdir():
        store.write_bytes(f"data/{file.name}", file.read_bytes())
    yield SlotConfig(
        sweep="s",
        slot="slot0",
        coordinator="coordinator",
        namespace="sweep",
        storage=store.url,
        bases={"": SlotBase(model=model, pad_token_id=tokenizer.pad_token_id, baseline={})},
        task="causal_lm",
        seed=0,
        evaluate_every=None,
        max_tokens=None,
        precision="auto",
        save_dtype="auto",
        gradient_checkpointing=False,
        most=1,
        probe_rows=8,
        forgetting=False,
        baseline_minutes=1,
        threads=1,
    )
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    import ray.train.torch

    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_it_has_no_name_when_a_worker_begins_so_that_a_killed_one_leaves_nothing(
    config, temporary
) -> None:
    _, groups = open_slot(config, 0, 1)
    (group,) = groups.values()
    assert list(temporary.iterdir()) == []
    group.join(
        "t",
        parse({"method": "lora", "rank": 2, "learning_rate": 1e-3, "batch_size": 4, "epochs": 1}),
    )
    while not group.step(["t"]):
        pass
    found = group.evaluate(["t"])["t"]
    assert found.finished and np.isfinite(found.val_loss)


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        ("auto", "auto", torch.bfloat16),
        ("auto", "bfloat16", torch.bfloat16),
        ("auto", "float32", torch.float32),
        ("bfloat16", "float32", torch.bfloat16),
        ("float32", "auto", torch.float32),
    ],
)
def test_who_asks_for_float32_gets_no_weights_in_bfloat16(
    config, temporary, monkeypatch, dtype, precision, expected
):
    """Arithmetic has the type of the weights where there is no autocast."""
    import ray.train.torch

    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("trainables.runtime.worker.too_large", lambda estimates, device_bytes: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1 << 34)
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    (base,) = config.bases.values()
    base = replace(base, model=replace(base.model, dtype=dtype))
    config = replace(config, precision=precision, bases={"": base})
    _, groups = open_slot(config, 0, 1)
    (group,) = groups.values()
    assert group._base_dtype("lora") == expected


def test_it_cannot_be_foretold_and_only_the_user_reads_it(config, temporary, monkeypatch) -> None:
    """Who can write to the folder of temporary files must be able neither to read the data nor to exchange them."""
    seen = []
    fetch = Store.fetch

    def watched(store: Store, name: str, into: Path) -> Path:
        seen.append((into, into.stat().st_mode & 0o777))
        return fetch(store, name, into)

    monkeypatch.setattr(Store, "fetch", watched)
    for _ in range(2):
        open_slot(config, 0, 1)
    (first, rights), (second, _) = seen
    assert first != second and rights == 0o700 and first.parent == temporary
