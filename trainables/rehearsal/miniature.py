"""An architecture at a size of seconds: a model's own configuration with fewer layers and
narrower.
"""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from trainables.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LAYERS, HEAD_WIDTH, EXPERTS = 2, 16, 4
NARROW = 64  # the least width: weights in 4 bits lie in blocks of 64
MOST_PARAMETERS = 60_000_000  # of a miniature, embeddings of the real vocabulary among them
# standard deviation of what is added to drawn weights, so that every layer matters to the loss
SPREAD = 0.1

_COUNTS_LAYERS = re.compile(r"layers$|^n_layer$|^num_blocks$")
_COUNTS_EXPERTS = re.compile(r"^(num|n)_(local_|routed_)?experts$|^moe_num_experts$")
_CHOSEN_EXPERTS = re.compile(r"experts_per_tok|^moe_top_?k$|^top_k_experts$")
_INSIDE = re.compile(r"intermediate|ffn|inner|d_ff|mlp_dim|hidden_dim$|feed_forward")
_OF_A_HEAD = re.compile(r"(^|_)(head_dim|d_head|d_kv|rotary_dim)$|head_size$")
_LATENT = re.compile(
    r"lora_rank$|^(qk_|v_)\w*head_dim$"
)  # of latent attention: sums of these are widths too
_EMBEDDING = re.compile(r"(embed|embedding|proj)\w*(size|dim)$|^embedding_size$")
# heads, their width and the factor by which a state-space layer is wider than the model: the first
# two give the third
_STATE_SPACE = (
    ("num_heads", "head_dim", "expand"),
    ("mamba_n_heads", "mamba_d_head", "mamba_expand"),
)


def candidates(config: "PreTrainedConfig") -> Iterator[tuple[str, "PreTrainedConfig"]]:
    """Configurations like `config`, each with its size in words, the smallest first; the last is
    `config` itself.
    """
    for words, change in (
        ("few layers, narrow", lambda own: _narrow(_shallow(own))),
        ("few layers", _shallow),
        ("all of it", lambda own: own),
    ):
        own = copy.deepcopy(config)
        try:
            change(own)
        except (
            TypeError,
            ValueError,
            AttributeError,
            ZeroDivisionError,
            NotImplementedError,
        ):  # an architecture of other settings
            continue
        yield words, own


def draw(
    config: "PreTrainedConfig",
    auto_class: str,
    trust_remote_code: bool,
    works: Callable[["PreTrainedModel"], None],
) -> tuple["PreTrainedModel", str] | tuple[None, str]:
    """The smallest model of drawn weights that is like `config` and that `works` takes, with its
    size in words; or None, and why there is none.
    """
    import torch
    import transformers

    from trainables.models.structure import on_meta

    auto, whys = getattr(transformers, auto_class), []
    for words, own in candidates(config):
        try:
            shapes = on_meta(auto, own, trust_remote_code)
            count = sum(parameter.numel() for parameter in shapes.parameters())
            if count > MOST_PARAMETERS:
                whys.append(f"{words}: {count:,} parameters")
                continue
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                model = (
                    auto.from_config(copy.deepcopy(own), trust_remote_code=trust_remote_code)
                    .float()
                    .eval()
                )
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * SPREAD)
                works(model)
        except InputError:
            raise
        except Exception as error:  # whatever a smaller configuration breaks: a larger one is tried
            whys.append(f"{words}: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
            continue
        text = own.get_text_config()
        size = (
            f"{getattr(text, 'num_hidden_layers', '?')} layers of width"
            f" {getattr(text, 'hidden_size', '?')}"
        )
        return model, f"{size}, {count:,} parameters"
    return None, "; ".join(whys)


def _parts(config: "PreTrainedConfig") -> "list[PreTrainedConfig]":
    """The configuration and those inside it."""
    inner = [
        value
        for value in vars(config).values()
        if hasattr(value, "to_dict") and hasattr(value, "model_type")
    ]
    return [config, *inner]


def _shallow(config: "PreTrainedConfig") -> "PreTrainedConfig":
    for part in _parts(config):
        whole = getattr(part, "num_hidden_layers", None)
        if isinstance(whole, int):
            _cut_layers(part, whole, _kept_layers(part, whole))
    return config


def _kept_layers(part: "PreTrainedConfig", whole: int) -> int:
    """How many of `whole` layers are enough for every kind of layer to be among them."""
    kept = min(whole, LAYERS)
    lists = [value for value in vars(part).values() if isinstance(value, list)]
    kinds = [list(map(str, value)) for value in lists if len(value) == whole]
    while kept < whole and any({*kind[:kept]} != {*kind} for kind in kinds):
        kept += 1
    return max([kept, *(turn for turn in _turns(part) if turn < whole)])


def _turns(part: "PreTrainedConfig") -> Iterator[int]:
    """After how many layers their kinds come round again."""
    for name, value in vars(part).items():
        if name.endswith("_period") and _is_count(value):
            yield value
        elif isinstance(value, list) and value and all(isinstance(each, str) for each in value):
            yield len(value)


def _cut_layers(part: "PreTrainedConfig", whole: int, kept: int) -> None:
    # the first layers have no experts: keep one of each
    if getattr(part, "first_k_dense_replace", 0) >= kept:
        part.first_k_dense_replace = 1
    for name, value in list(vars(part).items()):
        if isinstance(value, list) and len(value) == whole:
            setattr(part, name, value[:kept])
        elif isinstance(value, list) and _names_layers(name, value):
            setattr(part, name, [kept - 1])  # which layers are of the rarer kind
        elif _COUNTS_LAYERS.search(name) and _is_count(value) and value > kept:
            setattr(part, name, kept)
    part.num_hidden_layers = kept


def _names_layers(name: str, value: list) -> bool:
    return bool(value) and "layer" in name and all(map(_is_count, value))


@dataclass(frozen=True, kw_only=True)
class _Widths:
    """Of a model, and of the one that is made of it."""

    width: int
    narrow: int
    """Of the model that is made."""
    heads: int
    """Its heads, `groups` of keys and values among them, each of `head` numbers."""
    groups: int
    head: int


def _widths(part: "PreTrainedConfig") -> _Widths | None:
    """None for what has no width, or is as narrow already."""
    width, heads = getattr(part, "hidden_size", None), getattr(part, "num_attention_heads", None)
    if not isinstance(width, int):
        return None
    heads = heads if isinstance(heads, int) else max(1, width // 64)
    groups = getattr(part, "num_key_value_heads", None) or heads
    few_groups = min(groups, 4 if groups == heads else 2)
    few = few_groups * min(max(1, heads // groups), 2)
    small_head = min(getattr(part, "head_dim", None) or width // heads, HEAD_WIDTH)
    few *= -(-NARROW // (few * small_head))
    narrow = few * small_head
    if narrow >= width:
        return None
    return _Widths(width=width, narrow=narrow, heads=few, groups=few_groups, head=small_head)


def _narrow(config: "PreTrainedConfig") -> "PreTrainedConfig":
    for part in _parts(config):
        if (widths := _widths(part)) is None:
            continue
        _narrow_sizes(part, widths)
        part.hidden_size = widths.narrow
        part.num_attention_heads = widths.heads
        _narrow_state_space(part, widths)
    return config


def _narrow_sizes(part: "PreTrainedConfig", widths: _Widths) -> None:
    for name, value in list(vars(part).items()):
        if "vocab" in name or "position" in name or name.endswith("_id") or not _is_count(value):
            continue
        if (small := _smaller(name, value, widths, part)) != value:
            setattr(part, name, small)


def _narrow_state_space(part: "PreTrainedConfig", widths: _Widths) -> None:
    for count, size, expand in _STATE_SPACE:
        if all(_is_count(getattr(part, name, None)) for name in (count, size, expand)):
            setattr(part, size, widths.head)
            setattr(part, count, getattr(part, expand) * widths.narrow // widths.head)


def _smaller(name: str, value: int, widths: _Widths, part: "PreTrainedConfig") -> int:
    """What the setting `name`, a count or a size, is in the narrow model."""
    for small in (_experts(name, value), _of_heads(name, value, widths, part)):
        if small is not None:
            return small
    return _width(name, value, widths)


def _experts(name: str, value: int) -> int | None:
    """None: the setting is none of experts."""
    if _COUNTS_EXPERTS.search(name):
        return min(value, EXPERTS)
    if _CHOSEN_EXPERTS.search(name):
        return min(value, 2)
    return 1 if name in ("n_group", "topk_group") else None


def _of_heads(name: str, value: int, widths: _Widths, part: "PreTrainedConfig") -> int | None:
    """None: the setting is none of attention's heads."""
    is_rope = name == "head_dim" and value == getattr(part, "qk_rope_head_dim", None)
    if _LATENT.search(name) or is_rope:
        return min(value, NARROW)
    if _OF_A_HEAD.search(name):
        return min(value, widths.head)
    if name.endswith("heads") or name == "n_head":
        return widths.groups if "key_value" in name or "kv" in name else min(value, widths.heads)
    return None


def _width(name: str, value: int, widths: _Widths) -> int:
    if _INSIDE.search(name):
        return min(value, 2 * widths.narrow)
    if value >= widths.width and value % widths.width == 0:
        return value // widths.width * widths.narrow
    if value > widths.narrow and _EMBEDDING.search(name):
        return widths.narrow
    return -(-widths.narrow // 16) if name == "time_step_rank" else value


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
