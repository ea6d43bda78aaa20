"""An architecture at a size of seconds: a model's own configuration with fewer layers and
narrower.
"""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

from trainables.errors import InputError

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
# heads, their width and the factor by which a state-space layer is wider than the model: the first
# two give the third
_STATE_SPACE = (
    ("num_heads", "head_dim", "expand"),
    ("mamba_n_heads", "mamba_d_head", "mamba_expand"),
)


def candidates(config: Any) -> Iterator[tuple[str, Any]]:
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
    config: Any, auto_class: str, trust_remote_code: bool, works: Callable[[Any], None]
) -> tuple[Any, str] | tuple[None, str]:
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


def _parts(config: Any) -> list[Any]:
    """The configuration and those inside it."""
    inner = [
        value
        for value in vars(config).values()
        if hasattr(value, "to_dict") and hasattr(value, "model_type")
    ]
    return [config, *inner]


def _shallow(config: Any) -> Any:
    for part in _parts(config):
        whole = getattr(part, "num_hidden_layers", None)
        if not isinstance(whole, int):
            continue
        kept = min(whole, LAYERS)
        lists = {name: value for name, value in vars(part).items() if isinstance(value, list)}
        kinds = [value for value in lists.values() if len(value) == whole]
        while kept < whole and any({*map(str, kind[:kept])} != {*map(str, kind)} for kind in kinds):
            kept += 1  # every kind of layer must be among them
        turns = [
            len(value)
            for value in lists.values()
            if value and all(isinstance(each, str) for each in value)
        ]
        turns += [
            value
            for name, value in vars(part).items()
            if name.endswith("_period") and _is_count(value)
        ]
        kept = max([kept, *(turn for turn in turns if turn < whole)])
        if (
            getattr(part, "first_k_dense_replace", 0) >= kept
        ):  # the first layers have no experts: keep one of each
            part.first_k_dense_replace = 1
        for name, value in list(vars(part).items()):
            if name in lists and len(value) == whole:
                setattr(part, name, value[:kept])
            elif (
                name in lists
                and value
                and "layer" in name
                and all(_is_count(each) for each in value)
            ):
                setattr(part, name, [kept - 1])  # which layers are of the rarer kind
            elif _COUNTS_LAYERS.search(name) and _is_count(value) and value > kept:
                setattr(part, name, kept)
        part.num_hidden_layers = kept
    return config


def _narrow(config: Any) -> Any:
    for part in _parts(config):
        width, heads = (
            getattr(part, "hidden_size", None),
            getattr(part, "num_attention_heads", None),
        )
        if not isinstance(width, int):
            continue
        heads = heads if isinstance(heads, int) else max(1, width // 64)
        groups = getattr(part, "num_key_value_heads", None) or heads
        few_groups = min(groups, 4 if groups == heads else 2)
        few = few_groups * min(max(1, heads // groups), 2)
        head = getattr(part, "head_dim", None) or width // heads
        small_head = min(head, HEAD_WIDTH)
        few *= -(-NARROW // (few * small_head))
        narrow = few * small_head
        if narrow >= width:
            continue
        for name, value in list(vars(part).items()):
            if (
                not _is_count(value)
                or "vocab" in name
                or "position" in name
                or name.endswith("_id")
            ):
                continue
            if _COUNTS_EXPERTS.search(name):
                setattr(part, name, min(value, EXPERTS))
            elif _CHOSEN_EXPERTS.search(name):
                setattr(part, name, min(value, 2))
            elif name in ("n_group", "topk_group"):
                setattr(part, name, 1)
            elif (
                _LATENT.search(name)
                or name == "head_dim"
                and value == getattr(part, "qk_rope_head_dim", None)
            ):
                setattr(part, name, min(value, NARROW))
            elif _OF_A_HEAD.search(name):
                setattr(part, name, min(value, small_head))
            elif name.endswith("heads") or name == "n_head":
                setattr(
                    part,
                    name,
                    few_groups if "key_value" in name or "kv" in name else min(value, few),
                )
            elif _INSIDE.search(name):
                setattr(part, name, min(value, 2 * narrow))
            elif value >= width and value % width == 0:
                setattr(part, name, value // width * narrow)
            elif value > narrow and re.search(
                r"(embed|embedding|proj)\w*(size|dim)$|^embedding_size$", name
            ):
                setattr(part, name, narrow)
            elif name == "time_step_rank":
                setattr(part, name, -(-narrow // 16))
        part.hidden_size = narrow
        part.num_attention_heads = few
        for count, size, expand in _STATE_SPACE:
            if all(_is_count(getattr(part, name, None)) for name in (count, size, expand)):
                setattr(part, size, small_head)
                setattr(part, count, getattr(part, expand) * narrow // small_head)
    return config


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
