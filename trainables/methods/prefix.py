"""Prefix tuning (Li & Liang 2021, https://arxiv.org/abs/2101.00190) and P-Tuning v2 (Liu et al.
2022, https://arxiv.org/abs/2110.07602): trained keys and values before those of every attention.

Letters of shapes: B rows of a micro-batch, V virtual tokens, L layers, H heads of keys and values,
D channels of all of them, E channels inside the MLP.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from trainables.engine.shared import SharedBaseEngine
from trainables.engine.sites import AdapterSite, Addition, Stacked, leaves
from trainables.errors import InputError
from trainables.hyperparameters import PrefixOptions
from trainables.methods.prompt import check_context, virtual_tokens_key
from trainables.models.base import BaseModel

if TYPE_CHECKING:
    from peft import PrefixTuningConfig
    from transformers import DynamicCache

PREFIX = "prompt_embeddings"  # [V, 2 * L * D], keys and values of each layer in turn: PEFT's name
# of PEFT's encoder: embeddings of the virtual tokens, and an MLP over them
EMBEDDING, INNER, OUTER = "embedding.weight", "transform.0", "transform.2"


class KeysValues(AdapterSite):
    """The keys and values of all trials, before those of each layer. The site is the whole
    model.
    """

    def __init__(self, engine: SharedBaseEngine, name: str) -> None:
        super().__init__(engine, name)
        self._shape = Shape.of(peft_config(engine.base, PrefixOptions()))

    @staticmethod
    def key(site: str, tensor: str) -> str:
        return tensor

    renamed = staticmethod(virtual_tokens_key)

    def bind(self, tensors: Mapping[str, Stacked], options: Sequence[PrefixOptions | None]) -> None:
        assert (
            None not in options and len({each.virtual_tokens for each in options if each}) == 1
        ), "see `sharing_key`"
        self._projected = [bool(each and each.prefix_projection) for each in options]
        self._leaves = [leaves(tensors, lane) for lane in range(len(options))]

    def install(self) -> Callable[[], None]:
        # what is put before a layer's keys is the same when checkpointing computes it again
        layers = [m for m in self.module.modules() if hasattr(m, "_can_checkpoint_with_cache")]
        for layer in layers:
            layer._can_checkpoint_with_cache = True  # pyright: ignore[reportArgumentType]

        def undo() -> None:
            for layer in layers:
                del layer._can_checkpoint_with_cache

        return undo

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        found = self.starting(batch)
        for layer in found["past_key_values"].layers:
            layer.update = partial(_behind, layer.keys, layer.values)
        return found

    def starting(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        segments, rows = self.engine.micro_batch.segments, len(batch["input_ids"])
        with torch.autocast(self.engine.anchor.device.type, enabled=False):
            prefix_BVP = torch.cat(
                [
                    self._prefix(lane).expand(rows if len(segments) == 1 else stop - start, -1, -1)
                    for lane, start, stop in segments
                ]
            )
        before_BV = batch["attention_mask"].new_ones(prefix_BVP.shape[:2])
        mask = torch.cat([before_BV, batch["attention_mask"]], dim=1)
        return {**batch, "attention_mask": mask, "past_key_values": self._cache(prefix_BVP)}

    def _prefix(self, lane: int) -> Tensor:
        """A trial's keys and values [V, 2 * L * D]."""
        own = self._leaves[lane]
        return project(own) if self._projected[lane] else own[PREFIX]

    def _cache(self, prefix_BVP: Tensor) -> "DynamicCache":
        from transformers import DynamicCache

        of = self._shape
        split = prefix_BVP.unflatten(2, (of.layers, 2, of.heads, of.width // of.heads))
        pairs = split.permute(2, 3, 0, 4, 1, 5).unbind()  # of each layer [2, B, H, V, D / H]
        cache = DynamicCache([tuple(pair) for pair in pairs])
        for layer in cache.layers:
            layer.update = partial(_first, layer)  # pyright: ignore[reportAttributeAccessIssue]
        return cache


def _first(layer: Any, keys: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, Tensor]:
    """A layer's first keys and values go behind the prefix, in the type that they have; all that
    follow go behind them.
    """
    del layer.update
    layer.keys, layer.values = layer.keys.to(keys.dtype), layer.values.to(keys.dtype)
    return layer.update(keys, *rest, **more)


def _behind(
    keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor, *_: Any, **more: Any
) -> tuple[Tensor, Tensor]:
    """A layer's own keys and values, with the prefix before them. Nothing is kept: computed again,
    they are the same.
    """
    pairs = ((keys, new_keys), (values, new_values))
    for prefix, own in pairs:
        if (prefix.shape[1], prefix.shape[3]) != (own.shape[1], own.shape[3]):
            raise InputError(
                f"method: prefix puts keys and values of {prefix.shape[1]} heads with"
                f" {prefix.shape[3]} channels before those of each layer, as PEFT does; the model"
                f" has some of {own.shape[1]} with {own.shape[3]}; choose another method"
            )
    whole_keys, whole_values = (torch.cat([a.to(b.dtype), b], dim=2) for a, b in pairs)
    return whole_keys, whole_values


def project(tensors: Mapping[str, Tensor]) -> Tensor:
    """Keys and values [V, 2 * L * D] of embeddings, through the MLP."""
    linear = nn.functional.linear
    inner_VE = linear(tensors[EMBEDDING], tensors[f"{INNER}.weight"], tensors[f"{INNER}.bias"])
    return linear(inner_VE.tanh(), tensors[f"{OUTER}.weight"], tensors[f"{OUTER}.bias"])


def _as_left(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {PREFIX: project(tensors)}


class Shape(NamedTuple):
    """What PEFT takes for a model's keys."""

    layers: int
    heads: int
    width: int  # channels of all heads

    @classmethod
    def of(cls, config: "PrefixTuningConfig") -> "Shape":
        layers, heads, width = config.num_layers, config.num_attention_heads, config.token_dim
        assert layers and heads and width, "see `peft_config`"
        return cls(layers, heads, width)


def peft_config(base: BaseModel, options: PrefixOptions) -> "PrefixTuningConfig":
    """PEFT's configuration, with the shapes of keys and values that it takes for the model."""
    from peft import PrefixTuningConfig, TaskType
    from peft.utils import _prepare_prompt_learning_config

    model_config = base.model.config.get_text_config()
    config = PrefixTuningConfig(
        base_model_name_or_path=base.model.name_or_path,
        revision=base.spec.model.revision if base.spec else None,
        num_virtual_tokens=options.virtual_tokens,
        num_transformer_submodules=1,
        num_layers=model_config.num_hidden_layers,
        num_attention_heads=model_config.num_attention_heads,
        token_dim=model_config.hidden_size,
        encoder_hidden_size=options.encoder_hidden_size,  # pyright: ignore[reportArgumentType]
        modules_to_save=list(base.head) or None,
        task_type=TaskType(base.peft_task),
        inference_mode=True,
    )
    return _prepare_prompt_learning_config(config, base.model.config)


class Prefix:
    """Keys and values before those of every attention of a frozen base. What leaves is PEFT's
    format, without the MLP, where there was one.
    """

    stays_beside = True

    def plan(self, base: BaseModel, options: PrefixOptions) -> list[Addition]:
        """As PEFT draws them: from N(0, 1), or an MLP of torch's linear layers over such
        embeddings; zero, or the MLP's last layer so, where `init_weights` says it.
        """
        _check(base, options)
        shape = Shape.of(peft_config(base, options))
        width, outputs = shape.width, 2 * shape.layers * shape.width
        if not options.prefix_projection:
            values = {PREFIX: torch.randn(options.virtual_tokens, outputs)}
            last = [PREFIX]
        else:
            inside = options.encoder_hidden_size or width
            values = {EMBEDDING: torch.randn(options.virtual_tokens, width)}
            for name, layer in {
                INNER: nn.Linear(width, inside),
                OUTER: nn.Linear(inside, outputs),
            }.items():
                values |= {f"{name}.{key}": p.detach() for key, p in layer.named_parameters()}
            last = [f"{OUTER}.weight", f"{OUTER}.bias"]
        if options.init_weights == "zero":
            values |= {name: torch.zeros_like(values[name]) for name in last}
        made = _as_left if options.prefix_projection else None
        return [Addition(kind=KeysValues, site="", values=values, options=options, made=made)]

    def describe(self, base: BaseModel, options: PrefixOptions, folder: Path) -> None:
        peft_config(base, options).save_pretrained(str(folder))


def _check(base: BaseModel, options: PrefixOptions) -> None:
    """Raise InputError where the model cannot have keys and values before its own."""
    from transformers import DynamicCache

    model = base.model
    taking = [inspect.signature(m.forward).parameters for m in (model, model.base_model)]
    taken = any("past_key_values" in names for names in taking)
    if (
        not taken
        or model.config.is_encoder_decoder
        or any(DynamicCache(config=model.config).is_linear)
    ):
        raise InputError(
            f"method: prefix cannot train {type(model).__name__}, which takes no keys and values"
            " before those of its input in each layer; choose another method"
        )
    check_context(base, options.virtual_tokens)
