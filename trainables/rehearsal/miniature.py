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
# of latent attention: sums of these are widths too
_LATENT = re.compile(r"lora_rank$|^(qk_|v_)\w*head_dim$")
_EMBEDDED = re.compile(r"(embed|embedding|proj)\w*(size|dim)$|^embedding_size$")
# heads, their width and the factor by which a state-space layer is wider than the model: the first
# two give the third
_STATE_SPACE = (
    ("num_heads", "head_dim", "expand"),
    ("mamba_n_heads", "mamba_d_head", "mamba_expand"),
)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A model of drawn weights, and its size in words."""

    model: "PreTrainedModel"
    size: str


def candidates(config: "PreTrainedConfig") -> "Iterator[tuple[str, PreTrainedConfig]]":
    """Configurations like `config`, each with its size in words, the smallest first; the last is
    `config` itself.
    """
    for words, changes in (
        ("few layers, narrow", (_shallow, _narrow)),
        ("few layers", (_shallow,)),
        ("all of it", ()),
    ):
        own = copy.deepcopy(config)
        try:
            for change in changes:
                for part in _parts(own):
                    change(part)
        # an architecture of other settings
        except (TypeError, ValueError, AttributeError, ZeroDivisionError, NotImplementedError):
            continue
        yield words, own


def draw(
    config: "PreTrainedConfig",
    auto_class: str,
    trust_remote_code: bool,
    works: "Callable[[PreTrainedModel], None]",
) -> Drawn | str:
    """The smallest model of drawn weights that is like `config` and that `works` takes; or why
    there is none.
    """
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
            model = _with_weights(auto, own, trust_remote_code, works)
        except InputError:
            raise
        except Exception as error:  # whatever a smaller configuration breaks: a larger one is tried
            whys.append(f"{words}: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
            continue
        text = own.get_text_config()
        layers, width = (getattr(text, f"{n}", "?") for n in ("num_hidden_layers", "hidden_size"))
        return Drawn(model=model, size=f"{layers} layers of width {width}, {count:,} parameters")
    return "; ".join(whys)


def _with_weights(
    auto: type,
    config: "PreTrainedConfig",
    trust_remote_code: bool,
    works: "Callable[[PreTrainedModel], None]",
) -> "PreTrainedModel":
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        drawn = auto.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
        model = drawn.float().eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * SPREAD)
        works(model)
    return model


def _parts(config: "PreTrainedConfig") -> "list[PreTrainedConfig]":
    """The configuration and those inside it."""
    inner = [
        value
        for value in vars(config).values()
        if hasattr(value, "to_dict") and hasattr(value, "model_type")
    ]
    return [config, *inner]


# --- fewer layers ---


def _shallow(part: "PreTrainedConfig") -> None:
    whole = getattr(part, "num_hidden_layers", None)
    if not isinstance(whole, int):
        return
    kept = _layers_kept(part, whole)
    if getattr(part, "first_k_dense_replace", 0) >= kept:
        # the first layers have no experts: keep one of each
        part.first_k_dense_replace = 1
    for name, value in list(vars(part).items()):
        if isinstance(value, list):
            setattr(part, name, _cut(name, value, whole, kept))
        elif _COUNTS_LAYERS.search(name) and _is_count(value) and value > kept:
            setattr(part, name, kept)
    part.num_hidden_layers = kept


def _cut(name: str, value: list, whole: int, kept: int) -> list:
    """A list with an entry for each layer, or with numbers of those of the rarer kind."""
    if len(value) == whole:
        return value[:kept]
    return [kept - 1] if _numbers_layers(name, value) else value


def _layers_kept(part: "PreTrainedConfig", whole: int) -> int:
    """As few as there can be with every kind of layer among them."""
    lists = [value for value in vars(part).values() if isinstance(value, list)]
    kinds = [list(map(str, value)) for value in lists if len(value) == whole]
    turns = [len(value) for value in lists if _takes_turns(value)] + _periods(part)
    kept = min(whole, LAYERS)
    while kept < whole and not all(set(kind[:kept]) == set(kind) for kind in kinds):
        kept += 1
    return max([kept, *(turn for turn in turns if turn < whole)])


def _takes_turns(value: list) -> bool:
    """Whether it names kinds of layers that come one after another, again and again."""
    return bool(value) and all(isinstance(each, str) for each in value)


def _periods(part: "PreTrainedConfig") -> list[int]:
    named = [value for name, value in vars(part).items() if name.endswith("_period")]
    return [value for value in named if _is_count(value)]


def _numbers_layers(name: str, value: list) -> bool:
    return bool(value) and "layer" in name and all(map(_is_count, value))


# --- narrower ---


@dataclass(frozen=True, kw_only=True)
class _Narrow:
    """What a part of a configuration is narrowed to, from the width `before`."""

    before: int
    width: int
    head: int
    """Width of an attention head."""
    heads: int
    groups: int
    """Heads of keys and values."""
    rotary: int | None
    """Width, so far, of what latent attention rotates."""


def _narrow(part: "PreTrainedConfig") -> None:
    to = _narrower(part)
    if to is None:
        return
    for name, value in list(vars(part).items()):
        if _is_count(value) and not _is_no_width(name):
            found = (rule(name, value, to) for rule in (_experts, _latent, _of_heads, _widths))
            setattr(part, name, next((new for new in found if new is not None), value))
    part.hidden_size = to.width
    part.num_attention_heads = to.heads
    _narrow_state_space(part, to)


def _narrow_state_space(part: "PreTrainedConfig", to: "_Narrow") -> None:
    for count, size, expand in _STATE_SPACE:
        if all(_is_count(getattr(part, name, None)) for name in (count, size, expand)):
            setattr(part, size, to.head)
            setattr(part, count, getattr(part, expand) * to.width // to.head)


def _narrower(part: "PreTrainedConfig") -> _Narrow | None:
    """None: it has no width, or none that would be smaller."""
    width, heads = (getattr(part, n, None) for n in ("hidden_size", "num_attention_heads"))
    if not isinstance(width, int):
        return None
    heads = heads if isinstance(heads, int) else max(1, width // 64)
    groups = getattr(part, "num_key_value_heads", None) or heads
    few_groups = min(groups, 4 if groups == heads else 2)
    few = few_groups * min(max(1, heads // groups), 2)
    head = min(getattr(part, "head_dim", None) or width // heads, HEAD_WIDTH)
    few *= -(-NARROW // (few * head))
    return (
        None
        if few * head >= width
        else _Narrow(
            before=width,
            width=few * head,
            head=head,
            heads=few,
            groups=few_groups,
            rotary=getattr(part, "qk_rope_head_dim", None),
        )
    )


def _is_no_width(name: str) -> bool:
    return "vocab" in name or "position" in name or name.endswith("_id")


def _experts(name: str, value: int, to: _Narrow) -> int | None:
    if _COUNTS_EXPERTS.search(name):
        return min(value, EXPERTS)
    if _CHOSEN_EXPERTS.search(name):
        return min(value, 2)
    return 1 if name in ("n_group", "topk_group") else None


def _latent(name: str, value: int, to: _Narrow) -> int | None:
    rotates = name == "head_dim" and value == to.rotary
    return min(value, NARROW) if rotates or _LATENT.search(name) else None


def _of_heads(name: str, value: int, to: _Narrow) -> int | None:
    if _OF_A_HEAD.search(name):
        return min(value, to.head)
    if name.endswith("heads") or name == "n_head":
        return to.groups if "key_value" in name or "kv" in name else min(value, to.heads)
    return None


def _widths(name: str, value: int, to: _Narrow) -> int | None:
    if _INSIDE.search(name):
        return min(value, 2 * to.width)
    if value >= to.before and value % to.before == 0:
        return value // to.before * to.width
    if value > to.width and _EMBEDDED.search(name):
        return to.width
    return -(-to.width // 16) if name == "time_step_rank" else None


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
