"""Load a base for training."""

import copy
import warnings
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from trainables.errors import InputError
from trainables.models.base import LANGUAGE_MODEL, SEQ2SEQ, BaseModel, BaseSpec
from trainables.models.decoder import decoder_inputs
from trainables.models.files import hub_error
from trainables.models.heads import initialise, keeps_head
from trainables.models.merging import plain
from trainables.models.origin import adapter_of, resolve
from trainables.models.output import output_layer
from trainables.models.quantisation import keep_rows_apart, quantization, unquantised

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


DOES = {
    LANGUAGE_MODEL: "is a causal language model",
    SEQ2SEQ: "is an encoder-decoder language model",
    "AutoModelForSequenceClassification": "classifies texts",
    "AutoModelForTokenClassification": "classifies tokens",
}


# settings of dropout that cannot be drawn for each row: inside attention, and of whole layers
NO_DROPOUT = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "layerdrop",
    "encoder_layerdrop",
    "decoder_layerdrop",
)


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What transformers tells of the weights that it loaded."""

    lacking: frozenset[str]  # parameters that the checkpoint did not bring, or in other shapes


def load_pretrained(
    spec: BaseSpec,
    device: "torch.device",
    *,
    source: str | Path | None = None,
    config: "PreTrainedConfig | None" = None,
) -> tuple["PreTrainedModel", Loading]:
    """The model of `spec` on `device` in eval mode.

    source: a folder that holds the same model with other weights, as full fine-tuning leaves it.
    config: instead of that which `spec` gives, or the folder has.
    """
    import transformers

    extra: dict[str, object] = {}
    if source is None:
        config = config or spec.config()
        check_class(spec, config)
        extra = _quantised(spec, config, device)
    if config is not None:
        extra["config"] = config
    try:
        where = plain(spec.model)
        model, info = getattr(transformers, spec.auto_class).from_pretrained(
            source or resolve(where.name),
            revision=where.revision if source is None else None,
            trust_remote_code=spec.model.trust_remote_code,
            use_safetensors=True,
            dtype=spec.dtype or "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=spec.has_head,
            **extra,
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(spec, source, error) from error
    if "quantization_config" in extra:
        keep_rows_apart(model)
    else:
        model.to(device)
    lacking = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    lacking |= _renewed(model) if source is None and not keeps_head(spec) else set()
    return model.eval(), Loading(lacking=frozenset(lacking))


def _renewed(model: "PreTrainedModel") -> set[str]:
    """Draw the head anew; returns the names of its parameters."""
    from trainables.models.structure import above_backbone

    found: set[str] = set()
    for name in above_backbone(model):
        head = model.get_submodule(name)
        initialise(model, head)
        found |= {f"{name}.{parameter}" for parameter, _ in head.named_parameters()}
    return found


def _quantised(
    spec: BaseSpec, config: "PreTrainedConfig", device: "torch.device"
) -> dict[str, object]:
    """How transformers is told to quantise what it loads; empty where it is not to."""
    if spec.quantisation == "none":
        return {}
    quantised = quantization(spec.quantisation, device, unquantised(spec, config))
    return {"quantization_config": quantised, "device_map": {"": device}}


def _not_loaded(spec: BaseSpec, source: str | Path | None, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    if source is None:
        return hub_error(spec.model, error)
    first = str(error).splitlines()[0][:300]
    return InputError(f"{source}: could not load the trained model: {first}")


def check_class(spec: BaseSpec, config: "PreTrainedConfig") -> None:
    """Raise InputError where transformers has no model of this architecture for the task."""
    import transformers

    known = getattr(transformers, spec.auto_class)._model_mapping
    own_code = getattr(config, "auto_map", None) or {}
    if type(config) not in known and spec.auto_class not in own_code:
        raise InputError(
            f"model.name: transformers has no {config.model_type} that {DOES[spec.auto_class]}"
            f" ({spec.auto_class}); choose another model, or another task"
        )


def load_model(spec: BaseSpec, *, device: "torch.device", seed: int) -> BaseModel:
    """The base in eval mode on `device`, for training. A new head is drawn from `seed`, so every
    load gives the same one.

    A head of another shape than the task's is a new one.

    Attention dropout is set to 0 (inside fused attention it cannot be drawn per row), and so is
    dropout of whole layers, which is of all rows at once; other dropout stays as configured.
    Raises InputError where the weights are not those of the task's architecture, or where a
    language model attends to what it is to predict.
    """
    import torch

    saved = spec.config()
    config = _for_training(spec, saved)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        warnings.catch_warnings(),
    ):
        # a new head is announced as a warning; here it is what was asked for
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model, loading = load_pretrained(spec, device, config=config)
    new = _new_head(model, loading.lacking) if spec.has_head else ()
    _check_complete(spec, loading.lacking, new)
    fixed = frozenset(name for name, p in model.named_parameters() if not p.requires_grad)
    model.requires_grad_(False)
    if not spec.has_head:
        # the padding token is often the end-of-text token too, and torch gives the row of a padding
        # index no gradient
        cast("torch.nn.Embedding", model.get_input_embeddings()).padding_idx = None
        check_predicts(spec, model)
    return BaseModel(
        model=model,
        quantisation=spec.quantisation,
        dtype=spec.dtype or model.dtype,
        head=_head(model, new) if spec.has_head else (),
        new=new,
        output=None if spec.has_head else output_layer(model),
        fixed=fixed,
        start=start_of(spec, () if keeps_head(spec) else _head(model, new)),
        spec=spec,
        config=saved,
    )


def start_of(spec: BaseSpec, head: Collection[str]) -> "Mapping[str, torch.Tensor]":
    """Weights of the adapter that is continued, by their names in its file, without those of the
    modules `head`.
    """
    adapter = adapter_of(spec.model)
    if adapter is None or spec.model.adapter == "merge":
        return {}
    # PEFT wraps nothing around a model with virtual tokens
    outer = ("base_model.model", "base_model")
    heads = tuple(f"{prefix}.{name}." for prefix in outer for name in head)
    return {name: each for name, each in adapter.tensors().items() if not name.startswith(heads)}


def shapes_of(spec: BaseSpec) -> BaseModel:
    """A base without its weights, frozen."""
    import torch
    import transformers

    from trainables.models.structure import above_backbone, on_meta

    shapes = on_meta(
        getattr(transformers, spec.auto_class), spec.config(), spec.model.trust_remote_code
    )
    head = tuple(above_backbone(shapes)) if spec.has_head else ()
    return BaseModel(model=shapes, quantisation="none", dtype=torch.float32, head=head, spec=spec)


def _for_training(spec: BaseSpec, config: "PreTrainedConfig") -> "PreTrainedConfig":
    found = copy.deepcopy(config)
    for name in NO_DROPOUT:
        if getattr(found, name, 0):
            setattr(found, name, 0.0)
    if not spec.has_head:
        found.use_cache = False
    return found


def _new_head(model: "PreTrainedModel", lacking: Set[str]) -> tuple[str, ...]:
    """Modules of a model with a head that the checkpoint did not bring and may lack: what stands
    above the backbone, or its pooler. Anything else would be trained from scratch unnoticed.
    """
    backbone = f"{model.base_model_prefix}."
    return tuple(
        name
        for name in _new_modules(model, lacking)
        if not name.startswith(backbone) or name.endswith(".pooler")
    )


def _check_complete(spec: BaseSpec, lacking: Set[str], new: tuple[str, ...]) -> None:
    allowed = tuple(f"{module}." for module in new)
    if names := sorted(key for key in lacking if not key.startswith(allowed)):
        what = "this architecture" if spec.has_head else "such a language model"
        raise InputError(
            f"model.name: the weights of {spec.model.name} lack {', '.join(names[:3])}: they are"
            f" not those of {what}"
        )


def _head(model: "PreTrainedModel", new: tuple[str, ...]) -> tuple[str, ...]:
    """What every trial over a model with a head trains."""
    from trainables.models.structure import above_backbone

    above = above_backbone(model)
    return (*above, *(name for name in new if name.split(".")[0] not in above))


def check_predicts(spec: BaseSpec, model: "PreTrainedModel") -> None:
    """Raise InputError where a language model cannot learn to predict: it sees what it is to
    predict, or its decoder does not know what to begin with.
    """
    if spec.auto_class == SEQ2SEQ:
        _check_begins(model, spec.model.name)
    else:
        _check_causal(model, spec.model.name)


def _check_begins(model: "PreTrainedModel", name: str) -> None:
    import torch

    try:
        decoder_inputs(model, torch.tensor([[2, 3]], device=model.device))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"model.name: {name} ({type(model).__name__}) does not say which token its decoder"
            " begins with; set decoder_start_token_id in its config.json"
        ) from error


def _check_causal(model: "PreTrainedModel", name: str) -> None:
    """Raise InputError where a token has a say in what the model predicts before it: such a model
    reaches any loss without learning anything.
    """
    import torch

    vocabulary = model.get_input_embeddings().get_parameter("weight").shape[0]
    ids = (torch.arange(8, device=model.device)[None] * 7 + 3) % vocabulary
    changed, at = ids.clone(), 5
    changed[0, at] = (changed[0, at] + 1 + vocabulary // 2) % vocabulary
    mask = torch.ones_like(ids)
    with torch.no_grad():
        before, after = (
            model(input_ids=x, attention_mask=mask).logits[0].float() for x in (ids, changed)
        )
    moved = (after - before).abs().amax(dim=-1)
    # what cannot see it computes the same; a thousandth is room for kernels that round otherwise
    if bool(moved[:at].max() > 1e-3 * moved[at:].max()):
        raise InputError(
            f"model.name: {name} ({type(model).__name__}) sees the tokens that it is to predict;"
            " choose a causal language model, or task classification"
        )


def _new_modules(model: "PreTrainedModel", missing: Set[str]) -> tuple[str, ...]:
    """The outermost modules of which the checkpoint brought nothing."""
    names = [name for name, _ in model.named_parameters()]
    found: list[str] = []
    for module, _ in model.named_modules():  # outer ones come before inner ones
        inside = [name for name in names if name.startswith(f"{module}.")]
        if (
            module
            and inside
            and missing >= set(inside)
            and not module.startswith(tuple(f"{outer}." for outer in found))
        ):
            found.append(module)
    return tuple(found)
