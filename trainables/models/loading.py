"""Load a base for training."""

import copy
import warnings
from pathlib import Path
from typing import Any

from trainables.errors import InputError
from trainables.models.base import BaseModel, BaseSpec
from trainables.models.files import hub_error, resolve
from trainables.models.output import output_layer
from trainables.models.quantisation import keep_rows_apart, quantization, unquantised


def load_pretrained(
    spec: BaseSpec, device: Any, *, source: str | Path | None = None, config: Any = None
) -> tuple[Any, dict[str, Any]]:
    """The model of `spec` on `device` in eval mode, and what transformers tells of loading it.

    source: a folder that holds the same model with other weights, as full fine-tuning leaves it.
    config: instead of that which `spec` gives, or the folder has.
    """
    import transformers

    extra: dict[str, Any] = {}
    if source is None:
        config = config or spec.config()
        check_class(spec, config)
    if config is not None:
        extra["config"] = config
    if spec.quantisation != "none" and source is None:
        extra["quantization_config"] = quantization(
            spec.quantisation, device, unquantised(spec, config)
        )
        extra["device_map"] = {"": device}
    try:
        model, info = getattr(transformers, spec.auto_class).from_pretrained(
            source or resolve(spec.model.name),
            revision=spec.model.revision if source is None else None,
            trust_remote_code=spec.model.trust_remote_code,
            dtype=spec.dtype or "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=spec.is_classifier,
            **extra,
        )
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        if source is not None:
            raise InputError(
                f"{source}: could not load the trained model: {str(error).splitlines()[0][:300]}"
            ) from error
        raise hub_error(spec.model, error) from error
    if spec.quantisation != "none" and source is None:
        keep_rows_apart(model)
    else:
        model.to(device)
    return model.eval(), info


def check_class(spec: BaseSpec, config: Any) -> None:
    """Raise InputError where transformers has no model of this architecture for the task."""
    import transformers

    known = getattr(transformers, spec.auto_class)._model_mapping
    own_code = getattr(config, "auto_map", None) or {}
    if type(config) not in known and spec.auto_class not in own_code:
        what = "classifies texts" if spec.is_classifier else "is a causal language model"
        raise InputError(
            f"model.name: transformers has no {config.model_type} that {what} ({spec.auto_class});"
            " choose another model, or another task"
        )


def load_model(spec: BaseSpec, *, device: Any, seed: int) -> BaseModel:
    """The base in eval mode on `device`, for training. A new head is drawn from `seed`, so every
    load gives the same one.

    A classifier whose head has other classes than the data gets a new head.

    Attention dropout is set to 0 (inside fused attention it cannot be drawn per row); other dropout
    stays as configured. Raises InputError where the weights are not those of the task's
    architecture, or where a language model sees what it is to predict.
    """
    import torch

    from trainables.models.structure import above_backbone

    leaves = spec.config()
    config = copy.deepcopy(leaves)
    for name in ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop"):
        if getattr(config, name, 0):
            setattr(config, name, 0.0)
    if not spec.is_classifier:
        config.use_cache = False
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter(
            "ignore"
        )  # a new head is announced as a warning; here it is what was asked for
        torch.manual_seed(seed)
        model, info = load_pretrained(spec, device, config=config)
    missing = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    new: tuple[str, ...] = ()
    if spec.is_classifier:
        # above the backbone, or its pooler: anything else that is missing would be trained from
        # scratch unnoticed
        outside = (f"{model.base_model_prefix}.",)
        new = tuple(
            name
            for name in _new_modules(model, missing)
            if not name.startswith(outside) or name.endswith(".pooler")
        )
    lacking = sorted(
        key for key in missing if not key.startswith(tuple(f"{module}." for module in new))
    )
    if lacking:
        what = "this architecture" if spec.is_classifier else "a causal language model"
        raise InputError(
            f"model.name: the weights of {spec.model.name} lack {', '.join(lacking[:3])}: they are"
            f" not those of {what}"
        )
    head: tuple[str, ...] = ()
    if spec.is_classifier:
        above = above_backbone(model)
        head = (*above, *(name for name in new if name.split(".")[0] not in above))
    else:
        # the padding token is often the end-of-text token too, and torch gives the row of a padding
        # index no gradient
        model.get_input_embeddings().padding_idx = None
    fixed = frozenset(
        name for name, parameter in model.named_parameters() if not parameter.requires_grad
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if not spec.is_classifier:
        check_causal(model, spec.model.name)
    output = None if spec.is_classifier else output_layer(model)
    return BaseModel(
        model=model,
        quantisation=spec.quantisation,
        dtype=spec.dtype,
        head=head,
        new=new,
        output=output,
        fixed=fixed,
        spec=spec,
        config=leaves,
    )


def check_causal(model: Any, name: str) -> None:
    """Raise InputError where a token has a say in what the model predicts before it: such a model
    reaches any loss without learning anything.
    """
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
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


def _new_modules(model: Any, missing: set[str]) -> tuple[str, ...]:
    """The outermost modules of which the checkpoint brought nothing."""
    names = [name for name, _ in model.named_parameters()]
    found: list[str] = []
    for module, _ in model.named_modules():  # outer ones come before inner ones
        inside = [name for name in names if name.startswith(f"{module}.")]
        if (
            module
            and inside
            and missing.issuperset(inside)
            and not module.startswith(tuple(f"{outer}." for outer in found))
        ):
            found.append(module)
    return tuple(found)
