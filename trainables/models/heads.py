"""Heads above a backbone: whether that of an earlier winner goes on, and how a new one is drawn."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.models.base import BaseSpec
from trainables.models.lineage import read_lineage
from trainables.models.origin import Adapter, adapter_of, resolve

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


def keeps_head(spec: BaseSpec) -> bool:
    """Whether the head that the model has goes on: that of a winner does for the same task with the
    same labels, that of an adapter of which only labels are known for the same labels. Any other
    model's does where it has the task's shape, as transformers loads it, and a language model's
    output layer always.
    """
    if not spec.has_head:
        return True
    adapter = adapter_of(spec.model)
    lineage = read_lineage(Path(resolve(spec.model.name)))
    if lineage:
        last = lineage[-1]
        former = last.auto_class, last.problem_type, last.outputs
        return former == (spec.auto_class, spec.problem_type, spec.outputs)
    return adapter is None or head_outputs(adapter) == spec.outputs


def head_outputs(adapter: Adapter) -> tuple[str, ...]:
    """Names of what the head of a classifier's adapter gives; where nothing tells them, LABEL_0 and
    on.
    """
    if lineage := read_lineage(adapter.folder):
        return lineage[-1].outputs
    config = adapter.folder / "config.json"
    if config.is_file():
        names: dict[str, str] = json.loads(config.read_text(encoding="utf-8")).get("id2label", {})
        return tuple(names.values())
    whole = adapter.whole_modules()
    matrices = [x for n, x in adapter.tensors().items() if n.startswith(whole) and x.ndim == 2]
    # the last of a head's layers is its narrowest
    return tuple(f"LABEL_{i}" for i in range(min(map(len, matrices), default=2)))


def initialise(model: "PreTrainedModel", head: "Module") -> None:
    """Draw the weights of `head` anew, as transformers draws those of a new head."""
    for module in head.modules():
        for parameter in module.parameters(recurse=False):
            # transformers leaves alone what carries this mark
            parameter._is_hf_initialized = False  # pyright: ignore[reportAttributeAccessIssue]
        model._init_weights(module)
