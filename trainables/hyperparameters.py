"""What one trial trains with: typed, complete, checked before the trial takes a slot."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from trainables.errors import InputError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class FullOptions:
    """Every weight is trained."""


@dataclass(frozen=True, kw_only=True)
class PartialOptions:
    """The head and either the last `layers` layers or every parameter whose name matches one of
    `patterns`.
    """

    layers: int | None = None
    patterns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.layers is None) == (not self.patterns):
            raise InputError(
                "method=partial: give either layers (the last n) or patterns (a list), not both or"
                " neither"
            )
        if self.layers is not None and self.layers < 0:
            raise InputError(f"layers: must be 0 or more, got {self.layers}")


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685): W + scale * B A, scale
    = alpha / rank.

    `rslora` scales by alpha / sqrt(rank) instead (Kalajdzievski 2023,
    https://arxiv.org/abs/2312.03732). `loraplus_ratio` multiplies B's learning rate (LoRA+, Hayou
    et al. 2024, https://arxiv.org/abs/2402.12354). `targets` is "all-linear", "attention", or a
    list of module names as PEFT's `target_modules` takes them.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    rslora: bool = False
    loraplus_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"rank: must be at least 1, got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"alpha: must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: must be in [0, 1), got {self.dropout}")
        if not 0 < self.loraplus_ratio < math.inf:
            raise InputError(f"loraplus_ratio: must be above 0, got {self.loraplus_ratio}")
        if (
            not self.targets
            or isinstance(self.targets, str)
            and self.targets not in ("all-linear", "attention")
        ):
            got = repr(self.targets) if isinstance(self.targets, str) else "an empty list"
            raise InputError(
                f"targets: must be all-linear, attention or a list of module names, got {got}"
            )


@dataclass(frozen=True, kw_only=True)
class QLoraOptions(LoraOptions):
    """LoRA over a quantised base: 4-bit NormalFloat (Dettmers et al. 2023,
    https://arxiv.org/abs/2305.14314) or 8-bit integers (Dettmers et al. 2022,
    https://arxiv.org/abs/2208.07339).
    """

    bits: Literal[4, 8] = 4


@dataclass(frozen=True, kw_only=True)
class Ia3Options:
    """Learned scales of keys, values and the feed-forward's inner activations (Liu et al. 2022,
    https://arxiv.org/abs/2205.05638), at the layers that PEFT takes for the architecture.
    """


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691): `virtual_tokens`
    learned vectors stand before every input.
    """

    virtual_tokens: int = 20

    def __post_init__(self) -> None:
        if self.virtual_tokens < 1:
            raise InputError(f"virtual_tokens: must be at least 1, got {self.virtual_tokens}")


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Bottleneck adapters (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751), one after each
    layer's feed-forward (Pfeiffer et al. 2020, https://arxiv.org/abs/2005.00247): h +
    up(relu(down(h))), `bottleneck` channels between.
    """

    bottleneck: int = 64

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise InputError(f"bottleneck: must be at least 1, got {self.bottleneck}")


OPTIONS: dict[str, type] = {
    "full": FullOptions,
    "partial": PartialOptions,
    "lora": LoraOptions,
    "qlora": QLoraOptions,
    "ia3": Ia3Options,
    "prompt": PromptOptions,
    "adapter": AdapterOptions,
}


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """One trial's configuration. Learning rates are per optimiser step of AdamW (Loshchilov &
    Hutter 2019).
    """

    method: str
    learning_rate: float
    batch_size: int  # rows per optimiser step, over all workers of the slot
    epochs: float
    weight_decay: float = 0.01  # on matrices; never on biases and norms
    warmup_ratio: float = 0.1  # share of all steps over which the rate rises linearly from 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # after the warm-up
    max_grad_norm: float = 1.0  # global L2 norm; 0 turns clipping off
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    seed: int = 0  # of the head, the adapters, the order of the rows and dropout
    options: (
        FullOptions | PartialOptions | LoraOptions | Ia3Options | PromptOptions | AdapterOptions
    )

    def __post_init__(self) -> None:
        for name, low_open, low, high in (
            ("learning_rate", True, 0, math.inf),
            ("batch_size", False, 1, math.inf),
            ("epochs", True, 0, math.inf),
            ("weight_decay", False, 0, math.inf),
            ("warmup_ratio", False, 0, 1),
            ("max_grad_norm", False, 0, math.inf),
            ("beta1", False, 0, 1),
            ("beta2", False, 0, 1),
            ("epsilon", True, 0, math.inf),
            ("seed", False, 0, 2**32 - 1),
        ):
            value = getattr(self, name)
            inside = (
                (value > low if low_open else value >= low)
                and value <= high
                and math.isfinite(value)
            )
            if not inside:
                bound = f"{'above' if low_open else 'at least'} {low}" + (
                    f" and at most {high}" if high < math.inf else ""
                )
                raise InputError(f"{name}: must be {bound}, got {value}")
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1:
                raise InputError(f"{name}: must be below 1, got {getattr(self, name)}")


def sharing_key(hp: Hyperparameters) -> str | None:
    """Trials of the same company can share a base: the kind of it. None: the trial needs a base for
    itself.
    """
    if hp.method in ("full", "partial"):
        return None
    if isinstance(hp.options, QLoraOptions):
        return {4: "nf4", 8: "int8"}[hp.options.bits]
    if isinstance(hp.options, PromptOptions):  # every row of a pass is longer by as many
        return f"plain, {hp.options.virtual_tokens} virtual tokens"
    return "plain"


def virtual_tokens(hp: Hyperparameters) -> int:
    """That stand before every row."""
    return getattr(hp.options, "virtual_tokens", 0)


def cost_class(hp: Hyperparameters) -> str:
    """Trials of one kind take alike long for a step, and alike much memory: company, what they add
    to the base and where, and batch size and rank to the nearest power of two.
    """
    words = [f"{sharing_key(hp)} base", f"batch size {_power_of_two(hp.batch_size)}"]
    for name in ("rank", "bottleneck"):
        if (size := getattr(hp.options, name, None)) is not None:
            words.append(f"{name} {_power_of_two(size)}")
    if (targets := getattr(hp.options, "targets", None)) is not None:
        words[-1] += f" on {targets if isinstance(targets, str) else ' and '.join(targets)}"
    return ", ".join(words)


def _power_of_two(size: int) -> int:
    return 2 ** round(math.log2(size))


COMMON = tuple(f.name for f in fields(Hyperparameters) if f.name not in ("method", "options"))


def parse(params: Mapping[str, Any]) -> Hyperparameters:
    """Flat `params`, as a search space samples them, to `Hyperparameters`; raises InputError for
    what is wrong.
    """
    given = dict(params)
    method = given.pop("method", None)
    if not isinstance(method, str) or method not in OPTIONS:
        hint = did_you_mean(method.lower(), OPTIONS) if isinstance(method, str) else ""
        raise InputError(
            f"method: must be one of {', '.join(OPTIONS)}, got"
            f" {method!r}{'.' if hint else ''}{hint}"
        )
    options = OPTIONS[method]
    option_names = [f.name for f in fields(options)]
    for name in given:
        if name not in COMMON and name not in option_names:
            allowed = [*COMMON, *option_names]
            hint = did_you_mean(name, allowed) or f" Allowed: {', '.join(allowed)}."
            raise InputError(f"{name}: not a hyperparameter of method {method}.{hint}")
    common = _typed(Hyperparameters, {k: v for k, v in given.items() if k in COMMON})
    missing = [
        f.name
        for f in fields(Hyperparameters)
        if f.name in COMMON and f.default is MISSING and f.name not in common
    ]
    if missing:
        raise InputError(f"{missing[0]}: not given; put it into search.space or into train")
    return Hyperparameters(
        method=method,
        options=options(**_typed(options, {k: v for k, v in given.items() if k in option_names})),
        **common,
    )


def _typed(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(schema)
    return {name: _cast(name, hints[name], value) for name, value in values.items()}


def _cast(name: str, hint: Any, value: Any) -> Any:
    """`value` as `hint`; never rounds or clamps, so that a score is credited to the value that
    ran.
    """
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(
                f"{name}: must be one of {', '.join(map(str, get_args(hint)))}, got {value!r}"
            )
        return value
    kinds = get_args(hint) if get_args(hint) and get_origin(hint) is not tuple else (hint,)
    if value is None and type(None) in kinds:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if bool in kinds and isinstance(value, bool):
        return value
    if int in kinds and number and float(value).is_integer():
        return int(value)
    if float in kinds and number:
        return float(value)
    if str in kinds and isinstance(value, str):
        return value
    if (
        any(get_origin(k) is tuple for k in kinds)
        and isinstance(value, list | tuple)
        and all(isinstance(v, str) for v in value)
    ):
        return tuple(value)
    words = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "a word",
        "NoneType": "null",
    }
    wanted = " or ".join(
        (
            words.get(getattr(k, "__name__", ""), "a list of names")
            if get_origin(k) is None
            else "a list of names"
        )
        for k in kinds
    )
    raise InputError(f"{name}: must be {wanted}, got {value!r}")
