"""Weights that are pickled are refused with the line that converts them, and nothing of them is read before."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainables.errors import InputError
from trainables.evaluation.bench import load_backbone
from trainables.models.base import BaseSpec
from trainables.models.config import ModelConfig
from trainables.models.files import check_files
from trainables.models.loading import load_pretrained
from trainables.models.merging import plain
from trainables.models.origin import adapter_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

CPU = torch.device("cpu")


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def pickled(folder: Path, stem: str, *, shards: int = 1) -> dict[str, torch.Tensor]:
    """Put what is in STEM.safetensors into files as torch.save writes them."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    names = sorted(tensors)
    for shard in range(shards):
        number = f"-{shard + 1:05d}-of-{shards:05d}" if shards > 1 else ""
        part = {name: tensors[name] for name in names[shard::shards]}
        torch.save(part, folder / f"{stem}{number}.bin")
    return tensors


def convert(message: str) -> None:
    """Type what the message says."""
    command = message.split("Convert it: ")[1].replace("python -c", f"{sys.executable} -c", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_is_converted_by_the_line_that_it_is_refused_with(lab, tmp_path, shards):
    folder = tmp_path / "it's a model"
    shutil.copytree(lab.folder("bert"), folder)
    tensors = pickled(folder, "pytorch_model", shards=shards)
    if shards > 1:
        (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "gone.bin"}}')
    with pytest.raises(InputError) as caught:
        check_files(ModelConfig(name=str(folder)))
    first = "pytorch_model.bin" if shards == 1 else "pytorch_model-00001-of-00003.bin"
    message = str(caught.value)
    assert "\n" not in message and message.startswith(
        f"model.name: {folder} has its weights in {first}, which is pickled and may run code when"
        " it is read: only *.safetensors are. Convert it: python -c "
    )
    convert(message)
    check_files(ModelConfig(name=str(folder)))
    found = load_file(folder / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_an_adapter_is_converted_by_the_line_that_it_is_refused_with(lab, tmp_path):
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(lab.folder("llama"))
    config = peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    folder = tmp_path / "adapter"
    peft.get_peft_model(base, config).save_pretrained(folder)
    model = ModelConfig(name=str(folder))
    check_files(model)
    tensors = pickled(folder, "adapter_model")
    with pytest.raises(InputError, match="has its weights in adapter_model.bin") as caught:
        check_files(model)
    for read in (plain, lambda model: adapter_of(model).tensors()):
        with pytest.raises(InputError, match="has its weights in adapter_model.bin"):
            read(model)
    convert(str(caught.value))
    check_files(model)
    assert adapter_of(model).tensors().keys() == tensors.keys()


def spec(name: str) -> BaseSpec:
    return BaseSpec(
        model=ModelConfig(name=name),
        auto_class="AutoModelForSequenceClassification",
        pad_token_id=0,
        outputs=("a", "b", "c"),
    )


def test_nothing_that_loads_a_model_reads_pickled_weights(lab, tmp_path):
    """Not even where nobody has looked at the files before."""
    folder, trace = tmp_path / "model", tmp_path / "trace"
    shutil.copytree(lab.folder("bert"), folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(trace)))
    bench: Any = SimpleNamespace(
        model=ModelConfig(name=str(folder)), device=CPU, dtype=torch.float32
    )
    for load in (lambda: load_pretrained(spec(str(folder)), CPU), lambda: load_backbone(bench)):
        with pytest.raises((InputError, OSError), match="no file named model.safetensors"):
            load()
    assert not trace.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert trace.exists(), "the file does what it is said to do"


def test_a_model_of_the_hub_without_safetensors(lab, tmp_path, monkeypatch):
    """In the hub's own cache, as if it had been fetched."""
    import huggingface_hub.constants
    import transformers.utils.hub

    snapshot = tmp_path / "models--owner--old" / "snapshots" / ("0" * 40)
    shutil.copytree(lab.folder("bert"), snapshot)
    pickled(snapshot, "pytorch_model")
    (tmp_path / "models--owner--old" / "refs").mkdir()
    (tmp_path / "models--owner--old" / "refs" / "main").write_text("0" * 40)
    missing = tmp_path / "models--owner--old" / ".no_exist" / ("0" * 40)
    missing.mkdir(parents=True)
    for name in ("model.safetensors", "model.safetensors.index.json", "adapter_config.json"):
        (missing / name).touch()
    for module in (huggingface_hub.constants, transformers.utils.hub.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as caught:
        load_pretrained(spec("owner/old"), CPU)
    message = str(caught.value)
    assert message.startswith(
        "model.name: owner/old has no *.safetensors on the hub; what is pickled may run code when it"
        " is read, and is not. Convert it: hf download owner/old --local-dir old && python -c "
    )
    assert message.endswith("; and set model.name: ./old") and "\n" not in message
