"""A trained model as folders that others load: one whole model, or an adapter for PEFT."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainables.errors import InputError
from trainables.models.base import BaseSpec
from trainables.models.checkpoint import complete, load_base_model
from trainables.models.loading import load_pretrained
from trainables.models.merging import merged_into, plain
from trainables.models.origin import ADAPTER, WEIGHTS, resolve, why_not_exact

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Base = Literal["quantised", "full"]
"""What an adapter that was trained over a quantised base is merged into: the weights that it was
trained and measured over, dequantised, or those as they were before they were quantised.
"""


def adapter_in(files: Path) -> dict[str, object] | None:
    """What `adapter_config.json` says of the checkpoint in `files`; None of a whole model."""
    path = files / ADAPTER
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def why_not_whole(files: Path, spec: BaseSpec, onto: Base) -> str | None:
    """Why the checkpoint in `files` is no single whole model, and cannot be made one, in words;
    None where it is, or can.
    """
    described = adapter_in(files)
    if described is None:
        return None
    return why_not_exact(described, spec.quantisation if onto == "full" else "none")


def whole_model(
    files: Path, spec: BaseSpec, onto: Base, dtype: "torch.dtype | None"
) -> "PreTrainedModel":
    """The checkpoint in `files` as one model of transformers, on the CPU in eval mode. An adapter
    is merged in float32. dtype: of the weights; None: float32 of what was merged, else that in
    which they were saved.
    """
    import torch

    cpu = torch.device("cpu")
    if adapter_in(files) is None:
        return load_pretrained(_unquantised(spec, dtype), cpu, source=files)[0]
    try:
        merged = merged_into(_base(spec, onto), files)
    except (ValueError, RuntimeError, AttributeError, KeyError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"{files}: PEFT cannot merge it into its base: {first}") from error
    merged.to(dtype or torch.float32)  # pyright: ignore[reportArgumentType]  its stub lacks self
    return merged.eval()


def _unquantised(spec: BaseSpec, dtype: "torch.dtype | None") -> BaseSpec:
    return replace(spec, quantisation="none", dtype=dtype)


def _base(spec: BaseSpec, onto: Base) -> "PreTrainedModel":
    """In float32, with the weights as they were rounded or quantised for training."""
    import torch

    cpu = torch.device("cpu")
    if spec.quantisation == "none":
        return load_base_model(spec, cpu).float()
    model = load_base_model(_unquantised(spec, torch.float32), cpu)
    if onto == "quantised":
        _take_dequantised(model, load_base_model(spec, cpu))
    return model


def _take_dequantised(model: "PreTrainedModel", quantised: "PreTrainedModel") -> None:
    """Give `model` the weights of `quantised`, as that computes with them."""
    import torch
    from torch import nn

    from trainables.models.structure import is_linear, weight_of

    with torch.no_grad():
        for name, layer in quantised.named_modules():
            if is_linear(layer) and not layer.get_parameter("weight").is_floating_point():
                own = model.get_submodule(name)
                weight = weight_of(layer).to(torch.float32)
                own.get_parameter("weight").copy_(
                    weight if isinstance(own, nn.Linear) else weight.T
                )


def write_adapter(
    files: Path, spec: BaseSpec, folder: Path, name: str, dtype: "torch.dtype | None"
) -> None:
    """Write the adapter in `files` to `folder`, with the name of its base as it is found by a user;
    beside it a base that is found nowhere else, or whose head others do not know of.

    name: what the folder will be called; dtype: of the adapter's weights; None: as they are.
    """
    from safetensors.torch import load_file, save_file

    described, base = adapter_in(files), plain(spec.model)
    assert described is not None, "an adapter says what it is"
    described |= {"base_model_name_or_path": resolve(base.name), "revision": base.revision}
    (folder / ADAPTER).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    if dtype is None:
        shutil.copyfile(files / WEIGHTS, folder / WEIGHTS)
    else:
        tensors = {key: x.to(dtype) for key, x in load_file(files / WEIGHTS).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    complete(folder, spec, name)


def write_beside(spec: BaseSpec, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write what a model in `folder` is used with: the tokenizer with its chat template and, of
    language models, how the base is set to generate.
    """
    from transformers import GenerationConfig

    tokenizer.save_pretrained(folder)
    if spec.has_head or (folder / "generation_config.json").is_file():
        return
    base = plain(spec.model)
    try:
        found = GenerationConfig.from_pretrained(
            resolve(base.name), revision=base.revision or "main"
        )
    except OSError:  # the model has none
        return
    found.save_pretrained(folder)
