"""Load a base or a checkpoint as its user would, with transformers and PEFT alone, and write down
how.

One description of the base, `BaseSpec`, serves training, resuming, the test, verification and the
code on a winner's card.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from trainables.models.base import BaseSpec
from trainables.models.config import ModelConfig
from trainables.models.heads import keeps_head
from trainables.models.loading import load_pretrained
from trainables.models.merging import is_made, plain
from trainables.models.origin import ADAPTER, adapter_of, resolve
from trainables.models.precision import base_dtype
from trainables.models.quantisation import unquantised

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from trainables.hyperparameters import MethodOptions

BASE = "base"  # folder beside an adapter: its base, where that is found nowhere else
# kinds of adapter that transformers itself loads from the folder of a whole model
SELF_CONTAINED = ("LORA", "IA3")


class LoadsModel(Protocol):
    """A task, as far as loading is concerned."""

    auto_class: str
    problem_type: str | None

    def outputs(self, labels: Sequence[str]) -> tuple[str, ...]: ...


def base_spec(
    model: ModelConfig,
    task: LoadsModel,
    labels: Sequence[str],
    pad_token_id: int,
    method: str,
    options: "MethodOptions | None" = None,
    device: "torch.device | None" = None,
    precision: str = "auto",
) -> BaseSpec:
    """The base that a trial of `method` trains over on `device` (None: the CPU). `task`: one of
    trainables.tasks; precision: `train.precision`.
    """
    import torch

    from trainables.methods import quantisation_of

    return BaseSpec(
        model=model,
        auto_class=task.auto_class,
        quantisation=quantisation_of(method, options),
        dtype=base_dtype(model, method, device or torch.device("cpu"), precision),
        pad_token_id=pad_token_id,
        outputs=task.outputs(labels),
        problem_type=task.problem_type,
    )


def load_base_model(spec: BaseSpec, device: "torch.device") -> "PreTrainedModel":
    """The untuned model in eval mode on `device`; a head of the task's own is new."""
    return load_pretrained(spec, device)[0]


def load_untuned(spec: BaseSpec, device: "torch.device") -> "PreTrainedModel":
    """What every trial starts from, in eval mode on `device`: the base, or the adapter that is
    continued over it.
    """
    adapter = adapter_of(spec.model)
    if adapter is None or spec.model.adapter == "merge":
        return load_base_model(spec, device)
    return load_checkpoint(adapter.folder, spec, device)


def load_checkpoint(folder: Path, spec: BaseSpec, device: "torch.device") -> "PreTrainedModel":
    """A trained model in eval mode on `device`: `from_pretrained`, and PEFT or `load_adapter` over
    the base for an adapter.
    """
    if not (folder / ADAPTER).is_file():
        return load_pretrained(spec, device, source=folder)[0]
    base = load_base_model(spec, device)
    if _is_bottleneck(folder):
        from trainables.methods.adapter import load_adapter

        return load_adapter(base, folder).eval()
    from peft import PeftModel

    # PEFT's wrapper hands on what it is asked for
    return cast("PreTrainedModel", PeftModel.from_pretrained(base, str(folder)).eval())


def _is_bottleneck(folder: Path) -> bool:
    """Whether the adapter in `folder` is this project's own."""
    return json.loads((folder / ADAPTER).read_text()).get("adapter_type") == "bottleneck"


def complete(folder: Path, spec: BaseSpec, name: str) -> bool:
    """Put the base beside the adapter of a model with a head, so that the standard one-liners load
    the folder anywhere: `pipeline("text-classification", model=FOLDER)` and the Auto classes of
    transformers and PEFT know neither labels nor padding token otherwise. A base that is made of an
    earlier winner is found nowhere else, and is put into a folder `base` in there. Returns whether
    the folder is now, or was, a model by itself.

    name: what the folder is called where it will be loaded.
    """
    import torch

    described = folder / ADAPTER
    if not described.is_file():
        return True
    adapter = json.loads(described.read_text())
    if (
        not spec.has_head
        or spec.quantisation != "none"
        or adapter.get("peft_type") not in SELF_CONTAINED
        or adapter.get("use_dora")  # of which transformers drops the magnitudes
    ):
        if is_made(spec.model) or not keeps_head(spec):
            # as the weights were made: they are rounded, or quantised, when they are loaded
            made = replace(spec, quantisation="none", dtype=None)
            load_base_model(made, torch.device("cpu")).save_pretrained(folder / BASE)
            _name_base(described, f"{name}/{BASE}")
        return False
    load_base_model(spec, torch.device("cpu")).save_pretrained(folder)
    _name_base(described, name)
    return True


def _name_base(described: Path, name: str) -> None:
    adapter = json.loads(described.read_text())
    adapter |= {"base_model_name_or_path": name, "revision": None}
    described.write_text(json.dumps(adapter, indent=2) + "\n")


def loading_code(folder: Path, spec: BaseSpec, name: str) -> list[str]:
    """Python that loads what lies in `folder` as `model`, where the folder is called `name`."""
    if not (folder / ADAPTER).is_file() or (folder / "config.json").is_file():
        return _code_of_a_whole_model(folder, spec, name)
    where = _base_of(folder, spec, name)
    arguments = [_base_argument(where), _dtype(spec), f"pad_token_id={spec.pad_token_id}"]
    load, bottleneck = ["import torch"], _is_bottleneck(folder)
    if where.name.startswith("package:"):
        load += ["from importlib.util import find_spec", "from pathlib import Path"]
    load.append(
        "from trainables.methods.adapter import load_adapter"
        if bottleneck
        else "from peft import PeftModel"
    )
    load.append(
        f"from transformers import {spec.auto_class}, AutoTokenizer"
        + (", BitsAndBytesConfig" if spec.quantisation != "none" else "")
    )
    if spec.has_head:
        load.append(f"labels = {list(spec.outputs)!r}")
        arguments += _head_arguments(spec)
    if spec.quantisation != "none":
        load.append(_quantised_line(spec))
        arguments.append("quantization_config=quantised")
    arguments += _where_from(where)
    load.append(f"base = {spec.auto_class}.from_pretrained({', '.join(arguments)})")
    if spec.quantisation == "nf4":
        load += [
            (
                "for layer in base.modules():  # what bitsandbytes computes faster on some CPUs is"
                " wrong, or fails"
            ),
            "    layer.support_avx512bf16_for_cpu = False",
        ]
    loader = "load_adapter" if bottleneck else "PeftModel.from_pretrained"
    return [*load, f'model = {loader}(base, "{name}").eval()']


def _head_arguments(spec: BaseSpec) -> list[str]:
    kind = [] if spec.problem_type is None else [f"problem_type={spec.problem_type!r}"]
    return [
        "num_labels=len(labels)",
        "id2label=dict(enumerate(labels))",
        "label2id={label: i for i, label in enumerate(labels)}",
        "ignore_mismatched_sizes=True",  # of the base's own head
        *kind,
    ]


def _code_of_a_whole_model(folder: Path, spec: BaseSpec, name: str) -> list[str]:
    auto, remote = (
        spec.auto_class,
        ", trust_remote_code=True" if spec.model.trust_remote_code else "",
    )
    load = ["import torch", f"from transformers import {auto}, AutoTokenizer"]
    # PEFT looks for the base under the name that the adapter gives it
    if (folder / ADAPTER).is_file():
        load.append(
            f"# or {auto.replace('AutoModel', 'AutoPeftModel')} of peft, where the folder is"
            f" {name!r} from here: so it is called in {ADAPTER}, and may be renamed there"
        )
    return [*load, f'model = {auto}.from_pretrained("{name}", {_dtype(spec)}{remote}).eval()']


def _base_of(folder: Path, spec: BaseSpec, name: str) -> ModelConfig:
    """The base of the adapter in `folder`, which is called `name`, as its code names it."""
    if (folder / BASE).is_dir():
        return replace(spec.model, name=f"{name}/{BASE}", revision=None)
    where = plain(spec.model)
    is_named = where.name.startswith("package:")
    return where if is_named else replace(where, name=resolve(where.name))


def _base_argument(model: ModelConfig) -> str:
    """Where the base lies, as Python."""
    if model.name.startswith("package:"):
        package, _, inside = model.name.removeprefix("package:").partition("/")
        return f'Path(find_spec("{package}").origin).parent / "{inside}"'
    return repr(model.name)


def _where_from(model: ModelConfig) -> list[str]:
    revision = [] if model.revision is None else [f"revision={model.revision!r}"]
    return revision + (["trust_remote_code=True"] if model.trust_remote_code else [])


def _dtype(spec: BaseSpec) -> str:
    return f"dtype={spec.dtype}" if spec.dtype is not None else 'dtype="auto"'


def _quantised_line(spec: BaseSpec) -> str:
    how = "load_in_8bit=True"
    if spec.quantisation == "nf4":
        how = 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True'
    return (
        f"quantised = BitsAndBytesConfig({how},"
        f" llm_int8_skip_modules={unquantised(spec, spec.config())!r})"
    )
