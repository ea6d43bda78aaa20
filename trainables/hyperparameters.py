"""What one trial trains with: typed, complete, checked before the trial takes a slot.

The one place where hyperparameters are declared. A method's options say, besides their values, what
the rest of the platform has to know of a trial before anything is loaded.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import NoneType
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from trainables.errors import InputError, did_you_mean
from trainables.models.config import Quantisation


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """The hyperparameters that one method has and others have not."""

    trains_base: ClassVar[bool] = False
    """Whether weights of the base itself are trained: the trial then needs a base of its own."""
    loaded_by: ClassVar[Literal["transformers", "PEFT", "this project"]] = "PEFT"
    """What loads the checkpoints."""

    @property
    def quantisation(self) -> Quantisation:
        """How the weights of the base are stored while it is trained over."""
        return "none"

    @property
    def soft_prompt_tokens(self) -> int:
        """Number of trained positions before each input, embedded or of each layer's keys and
        values; 0 for other methods.
        """
        return 0

    @property
    def sharing_key(self) -> str | None:
        """Trials of equal keys can share a base; None: the trial needs a base for itself."""
        if self.trains_base:
            return None
        return "plain" if self.quantisation == "none" else self.quantisation

    def check_steps(self, total: int) -> None:
        """Raise InputError where a trial cannot do with `total` steps."""

    @property
    def form(self) -> str:
        """Which form of the method it is, in words, where that changes how it is computed or saved;
        "" for the plain one.
        """
        return ""

    @property
    def size(self) -> str | None:
        """How much a trial adds to the base, to the nearest power of two, and where; None: this
        does not depend on the options.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class FullOptions(MethodOptions):
    """Every weight is trained."""

    trains_base: ClassVar = True
    loaded_by: ClassVar = "transformers"


@dataclass(frozen=True, kw_only=True)
class PartialOptions(MethodOptions):
    """The head and the last `layers` layers, or every parameter whose name matches one of
    `patterns`, or what `train` names: the `head` alone (a linear probe), every `bias` (BitFit, Ben
    Zaken et al. 2022, https://arxiv.org/abs/2106.10199), or the weights of all `norms`.
    """

    trains_base: ClassVar = True
    loaded_by: ClassVar = "transformers"

    layers: int | None = None
    patterns: tuple[str, ...] = ()
    train: Literal["head", "bias", "norms"] | None = None

    def __post_init__(self) -> None:
        given = (self.layers is not None, bool(self.patterns), self.train is not None)
        if sum(given) != 1:
            raise InputError(
                "method=partial: give one of layers (the last n), patterns (a list) and train"
                " (head, bias or norms)"
            )
        if self.layers is not None and self.layers < 0:
            raise InputError(f"layers: must be 0 or more, got {self.layers}")


def _check_targets(targets: str | tuple[str, ...]) -> None:
    if targets and (not isinstance(targets, str) or targets in ("all-linear", "attention")):
        return
    got = repr(targets) if isinstance(targets, str) else "an empty list"
    raise InputError(f"targets: must be all-linear, attention or a list of module names, got {got}")


Number = TypeVar("Number", int, float)


def _patterns(name: str, given: Sequence[str], read: Callable[[str], Number]) -> dict[str, Number]:
    """The number above 0 of each regular expression in REGEX=NUMBER. `name`: of the
    hyperparameter.
    """
    found = {}
    for pattern in given:
        regex, _, number = pattern.rpartition("=")
        with suppress(re.error, ValueError):
            if re.compile(regex).pattern and 0 < read(number) < math.inf:
                found[regex] = read(number)
        if regex not in found:
            what = "whole number" if read is int else "number"
            raise InputError(
                f"{name}: must be a list of REGEX=NUMBER, a {what} above 0, such as q_proj=16, got"
                f" {pattern!r}"
            )
    return found


# of LoRA: parts of the base's own weights
STARTS = r"pissa(_niter_[1-9]\d*)?|olora"


@dataclass(frozen=True, kw_only=True)
class LoraOptions(MethodOptions):
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685): W + scale * B A, scale
    = alpha / rank.

    `rslora` scales by alpha / sqrt(rank) instead (Kalajdzievski 2023,
    https://arxiv.org/abs/2312.03732). `loraplus_ratio` multiplies B's learning rate (LoRA+, Hayou
    et al. 2024, https://arxiv.org/abs/2402.12354). `targets` is "all-linear", "attention", or a
    list of module names as PEFT's `target_modules` takes them.

    `use_dora`: the rows of W + scale * B A are scaled to learned magnitudes (DoRA, Liu et al. 2024,
    https://arxiv.org/abs/2402.09353). `init_lora_weights`, by PEFT's names: true (A drawn, B zero),
    or A and B are the part of W that matters most, and what is learned is the change of it: pissa
    or, by iterations, pissa_niter_4 (Meng et al. 2024, https://arxiv.org/abs/2404.02948), olora
    (Büyükakyüz 2024, https://arxiv.org/abs/2406.01775). `freeze_a`: B alone is trained (LoRA-FA,
    Zhang et al. 2023, https://arxiv.org/abs/2308.03303). `rank_pattern` and `alpha_pattern`: others
    for layers whose names end as a regular expression says, as REGEX=NUMBER, such as q_proj=16; the
    first that fits counts, as in PEFT's options of these names. `target_parameters`, by PEFT's
    name: beside `targets` (which may then be an empty list) fused experts, parameters [experts, .,
    .] whose names end so.
    """

    rank: int = 8
    alpha: float = 16.0
    rank_pattern: tuple[str, ...] = ()
    alpha_pattern: tuple[str, ...] = ()
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    rslora: bool = False
    loraplus_ratio: float = 1.0
    use_dora: bool = False
    init_lora_weights: bool | str = True
    freeze_a: bool = False
    target_parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_start()
        self._check_experts()
        _ = self.ranks, self.alphas  # which are checked as they are read
        if self.rank < 1:
            raise InputError(f"rank: must be at least 1, got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise InputError(f"alpha: must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: must be in [0, 1), got {self.dropout}")
        if not 0 < self.loraplus_ratio < math.inf:
            raise InputError(f"loraplus_ratio: must be above 0, got {self.loraplus_ratio}")
        if self.targets or not self.target_parameters:
            _check_targets(self.targets)

    def _check_experts(self) -> None:
        """Raise InputError for what PEFT cannot do with fused experts, or calls ignored when it
        loads it (patterns, as of 0.21).
        """
        if not self.target_parameters:
            return
        if self.quantisation != "none":
            raise InputError(
                "target_parameters: needs a base that is not quantised; take method lora"
            )
        plain = {"dropout": 0, "use_dora": False, "init_lora_weights": True}
        for name, wanted in {**plain, "rank_pattern": [], "alpha_pattern": []}.items():
            got = getattr(self, name)
            got = list(got) if isinstance(got, tuple) else got
            if got != wanted:
                raise InputError(
                    f"{name}: must be {str(wanted).lower()} with target_parameters, got"
                    f" {str(got).lower()}"
                )

    def _check_start(self) -> None:
        start = self.init_lora_weights
        if start is not True and not (isinstance(start, str) and re.fullmatch(STARTS, start)):
            raise InputError(
                "init_lora_weights: must be true, pissa, pissa_niter_N (N iterations) or olora, got"
                f" {'false' if start is False else repr(start)}"
            )
        if start is True:
            return
        if self.quantisation != "none":
            raise InputError(
                f"init_lora_weights: must be true over a quantised base, got {start!r}; with"
                " method: lora it may be"
            )
        for name, plain in {"dropout": 0, "freeze_a": False}.items():
            if (got := getattr(self, name)) != plain:
                raise InputError(
                    f"{name}: must be {str(plain).lower()} with init_lora_weights: {start}, got"
                    f" {str(got).lower()}"
                )

    @property
    def scale(self) -> float:
        """Of B A."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def sharing_key(self) -> str | None:
        """Weights of experts with a trial's own in them are that trial's."""
        return None if self.target_parameters else super().sharing_key

    @property
    def ranks(self) -> dict[str, int]:
        """Of `rank_pattern`."""
        return _patterns("rank_pattern", self.rank_pattern, int)

    @property
    def alphas(self) -> dict[str, float]:
        """Of `alpha_pattern`."""
        return _patterns("alpha_pattern", self.alpha_pattern, float)

    @property
    def from_base(self) -> str | None:
        """What A and B start from, where that is the base's own weights: the trial then has their
        start beside them, which it takes off the base again.
        """
        return self.init_lora_weights if isinstance(self.init_lora_weights, str) else None

    @property
    def form(self) -> str:
        forms = (
            "DoRA" if self.use_dora else "",
            self.from_base,
            "A frozen" if self.freeze_a else "",
        )
        return ", ".join(filter(None, forms))

    @property
    def size(self) -> str:
        named = (self.targets,) if isinstance(self.targets, str) else self.targets
        targets = " and ".join((*named, *self.target_parameters))
        more = ", ".join(filter(None, [self.form, *self.rank_pattern]))
        rank = self.rank * (2 if self.from_base else 1)
        return f"rank {_power_of_two(rank)} on {targets}{f' ({more})' if more else ''}"


@dataclass(frozen=True, kw_only=True)
class QLoraOptions(LoraOptions):
    """LoRA over a quantised base: 4-bit NormalFloat (Dettmers et al. 2023,
    https://arxiv.org/abs/2305.14314) or 8-bit integers (Dettmers et al. 2022,
    https://arxiv.org/abs/2208.07339).
    """

    bits: Literal[4, 8] = 4

    @property
    def quantisation(self) -> Quantisation:
        return "nf4" if self.bits == 4 else "int8"


@dataclass(frozen=True, kw_only=True)
class Ia3Options(MethodOptions):
    """Learned scales of keys, values and the feed-forward's inner activations (Liu et al. 2022,
    https://arxiv.org/abs/2205.05638), at the layers that PEFT takes for the architecture.
    """


@dataclass(frozen=True, kw_only=True)
class PromptOptions(MethodOptions):
    """Prompt tuning (Lester et al. 2021, https://arxiv.org/abs/2104.08691): `virtual_tokens`
    learned vectors stand before every input.
    """

    virtual_tokens: int = 20

    def __post_init__(self) -> None:
        if self.virtual_tokens < 1:
            raise InputError(f"virtual_tokens: must be at least 1, got {self.virtual_tokens}")

    @property
    def soft_prompt_tokens(self) -> int:
        return self.virtual_tokens

    @property
    def sharing_key(self) -> str:
        """Every row of a micro-batch is longer by as many tokens."""
        return f"plain, {self.virtual_tokens} virtual tokens"


@dataclass(frozen=True, kw_only=True)
class PrefixOptions(PromptOptions):
    """Keys and values of `virtual_tokens` positions before those of every attention, by PEFT's
    names. `prefix_projection`: false, they are trained themselves (P-Tuning v2, Liu et al. 2022,
    https://arxiv.org/abs/2110.07602), or true, through embeddings and an MLP of
    `encoder_hidden_size` channels inside (null: as many as a layer's keys), which is gone from
    what leaves (prefix tuning, Li & Liang 2021, https://arxiv.org/abs/2101.00190).
    `init_weights`: null, drawn, or zero, keys and values of nought.
    """

    prefix_projection: bool = False
    encoder_hidden_size: int | None = None
    init_weights: Literal["zero"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        width = self.encoder_hidden_size
        if width is not None and width < 1:
            raise InputError(f"encoder_hidden_size: must be at least 1, got {width}")
        if width is not None and not self.prefix_projection:
            raise InputError(
                f"encoder_hidden_size: is of prefix_projection: true, which is false, got {width}"
            )

    @property
    def sharing_key(self) -> str:
        """Every row of a micro-batch attends to as many positions more."""
        return f"plain, keys and values of {self.virtual_tokens} virtual tokens"

    @property
    def form(self) -> str:
        return "projected" if self.prefix_projection else ""

    @property
    def size(self) -> str | None:
        if not self.prefix_projection:
            return None
        width = self.encoder_hidden_size
        return f"projection of {_power_of_two(width)}" if width else "projection"


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(MethodOptions):
    """Bottleneck adapters: f(x) = scale * up(activation(down(x))), `bottleneck` channels between.

    `placement`, by the papers that tried them: pfeiffer, h + f(h) of the hidden states h that a
    layer gives, so after its feed-forward (Pfeiffer et al. 2020,
    https://arxiv.org/abs/2005.00247); houlsby, h + f(h) of what its attention and what its
    feed-forward project back to the model's width, before it is added to the residual stream
    (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751); parallel, f(x) beside the feed-forward
    that is given x (He et al. 2022, https://arxiv.org/abs/2110.04366, with a scale of 4).
    """

    loaded_by: ClassVar = "this project"

    bottleneck: int = 64
    placement: Literal["pfeiffer", "houlsby", "parallel"] = "pfeiffer"
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise InputError(f"bottleneck: must be at least 1, got {self.bottleneck}")
        if not 0 < self.scale < math.inf:
            raise InputError(f"scale: must be above 0, got {self.scale}")

    @property
    def form(self) -> str:
        return "" if self.placement == "pfeiffer" else self.placement

    @property
    def size(self) -> str:
        form = f" ({self.form})" if self.form else ""
        return f"bottleneck {_power_of_two(self.bottleneck)}{form}"


@dataclass(frozen=True, kw_only=True)
class VeraOptions(MethodOptions):
    """Low-rank branches b * B (d * A x) of random A and B, which all layers share and nobody
    trains; the vectors b and d are trained (VeRA, Kopiczko et al. 2023,
    https://arxiv.org/abs/2310.11454). d starts at `d_initial`; `targets` as LoRA's.
    """

    rank: int = 256
    d_initial: float = 0.1
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"rank: must be at least 1, got {self.rank}")
        if not 0 < self.d_initial < math.inf:
            raise InputError(f"d_initial: must be above 0, got {self.d_initial}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: must be in [0, 1), got {self.dropout}")
        _check_targets(self.targets)

    @property
    def size(self) -> str:
        targets = self.targets if isinstance(self.targets, str) else " and ".join(self.targets)
        return f"scales at rank {_power_of_two(self.rank)} on {targets}"


@dataclass(frozen=True, kw_only=True)
class AdaLoraOptions(MethodOptions):
    """Low-rank adapters B diag(E) A, scaled by alpha / init_r, whose least important ranks are set
    to zero while they train (AdaLoRA, Zhang et al. 2023, https://arxiv.org/abs/2303.10512).

    All layers begin with `init_r` ranks, and end with `target_r` on average. The budget stays for
    the first `tinit_ratio` of the trial's steps, falls by the cube of what is left, and stays for
    the last `tfinal_ratio`; every `delta_t` steps between, ranks beyond it go. What a rank is worth
    is a moving average of |weight x gradient| (`importance_beta1`) times its deviation
    (`importance_beta2`). `orth_reg_weight` times how far A and B are from orthogonal is added to
    what is minimised. PEFT has tinit and tfinal in steps, and beta1, beta2.
    """

    init_r: int = 12
    target_r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    tinit_ratio: float = 0.1
    tfinal_ratio: float = 0.5
    delta_t: int = 1
    importance_beta1: float = 0.85
    importance_beta2: float = 0.85
    orth_reg_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.target_r < 1:
            raise InputError(f"target_r: must be at least 1, got {self.target_r}")
        if self.init_r <= self.target_r:
            raise InputError(
                f"init_r: must be above target_r ({self.target_r}), got {self.init_r}; with ranks"
                " that stay take method lora"
            )
        if self.delta_t < 1:
            raise InputError(f"delta_t: must be at least 1, got {self.delta_t}")
        for name, bounds in ADALORA_BOUNDS.items():
            bounds.check(name, getattr(self, name))
        for name in ("dropout", "importance_beta1", "importance_beta2"):
            if getattr(self, name) == 1:
                raise InputError(f"{name}: must be below 1, got {getattr(self, name)}")
        if self.tinit_ratio + self.tfinal_ratio >= 1:
            raise InputError(
                "tfinal_ratio: with tinit_ratio it must be below 1, so that ranks can go between,"
                f" got {self.tfinal_ratio} and {self.tinit_ratio}"
            )
        _check_targets(self.targets)

    def budgeting(self, total: int) -> tuple[int, int]:
        """Steps, of `total`, after which ranks begin to go, and with which the last go."""
        return math.floor(self.tinit_ratio * total), total - math.floor(self.tfinal_ratio * total)

    def check_steps(self, total: int) -> None:
        if self.budgeting(total)[1] < 2:
            raise InputError(
                "epochs: method adalora needs 2 steps or more before the last part"
                f" (tfinal_ratio: {self.tfinal_ratio:g}), got {total} in all"
            )

    @property
    def size(self) -> str:
        targets = self.targets if isinstance(self.targets, str) else " and ".join(self.targets)
        return f"rank {_power_of_two(self.init_r)} on {targets} (AdaLoRA)"


OPTIONS: dict[str, type[MethodOptions]] = {
    "full": FullOptions,
    "partial": PartialOptions,
    "lora": LoraOptions,
    "qlora": QLoraOptions,
    "ia3": Ia3Options,
    "prompt": PromptOptions,
    "prefix": PrefixOptions,
    "adapter": AdapterOptions,
    "vera": VeraOptions,
    "adalora": AdaLoraOptions,
}


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """One trial's configuration. Learning rates are per step of the optimizer, which is AdamW
    (Loshchilov & Hutter 2019) unless another is named.
    """

    method: str
    learning_rate: float
    batch_size: int  # rows per optimiser step, over all workers of the slot
    epochs: float
    weight_decay: float = 0.01  # on matrices; never on biases and norms
    warmup_ratio: float = 0.1  # share of all steps over which the rate rises linearly from 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # after the warm-up
    max_grad_norm: float = 1.0  # global L2 norm; 0 turns clipping off
    # lion: Chen et al. 2023, https://arxiv.org/abs/2302.06675; muon: Jordan et al. 2024,
    # https://kellerjordan.github.io/posts/muon/; 8bit: moments of 8 bits, Dettmers et al. 2022,
    # https://arxiv.org/abs/2110.02861, paged: in the host's memory where the GPU's is full
    optimizer: Literal["adamw", "lion", "adamw_8bit", "paged_adamw_8bit", "muon"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999  # of lion 0.99, unless it is set
    epsilon: float = 1e-8
    # share of each target's probability that is spread over all classes or tokens in training
    # (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7)
    label_smoothing: float = 0.0
    # of pairs of answers, in training: by TRL's names DPO (sigmoid), the same of mean
    # log-probabilities per token (sigmoid_norm) and IPO; `trainables.tasks.preference.losses`
    loss_type: Literal["sigmoid", "sigmoid_norm", "ipo"] = "sigmoid"
    beta: float = 0.1  # how strongly that holds a trial to the untuned model
    # of a row's loss in training; balanced: rows / (classes * rows of its class)
    class_weights: Literal["none", "balanced"] = "none"
    # uniform noise on the embedded input in training, of magnitude alpha / sqrt(T * D) in a row of
    # T tokens (NEFTune, Jain et al. 2023, https://arxiv.org/abs/2310.05914)
    neftune_alpha: float = 0.0
    # of the weights' exponential moving average, which is evaluated and saved in their place; after
    # t steps at most (1 + t) / (10 + t) (Polyak & Juditsky 1992); 0: no average
    ema_decay: float = 0.0
    # of its last so many evaluations, whose weights are averaged when all steps are made: that is
    # evaluated and saved once more (LAWA, Kaddour 2022, https://arxiv.org/abs/2209.14981); 0: none
    average_last: int = 0
    seed: int = 0  # of the head, the adapters, the order of the rows and dropout
    model: str = ""  # which of the sweep's base models, where it has several
    options: MethodOptions

    def __post_init__(self) -> None:
        for name, bounds in BOUNDS.items():
            bounds.check(name, getattr(self, name))
        for name in ("beta1", "beta2", "label_smoothing", "ema_decay"):
            if getattr(self, name) == 1:
                raise InputError(f"{name}: must be below 1, got {getattr(self, name)}")
        if self.loss_type == "ipo" and self.label_smoothing:
            raise InputError(
                f"label_smoothing: must be 0 with loss_type: ipo, got {self.label_smoothing}"
            )
        self._check_average()
        if not self.options.trains_base and self.optimizer not in SHARED_OPTIMIZERS:
            raise InputError(
                f"optimizer: trials of method {self.method} share a base and train by"
                f" {' or '.join(SHARED_OPTIMIZERS)}, got {self.optimizer}"
            )

    def _check_average(self) -> None:
        if self.average_last == 1:
            raise InputError("average_last: must be 0 or at least 2, got 1")
        if self.average_last and self.ema_decay:
            raise InputError(
                f"average_last: must be 0 where ema_decay is not, got {self.average_last} and"
                f" ema_decay {self.ema_decay}: either averages the weights"
            )
        for name in ("ema_decay", "average_last"):
            if getattr(self, name) and isinstance(self.options, AdaLoraOptions):
                raise InputError(
                    f"{name}: must be 0 with method adalora, whose ranks go at once and not in an"
                    f" average, got {getattr(self, name)}"
                )


def untrained(method: str, options: MethodOptions | None = None) -> Hyperparameters:
    """Of a trial that makes no step; options None: the method's defaults."""
    return Hyperparameters(
        method=method,
        learning_rate=1.0,
        batch_size=1,
        epochs=1,
        options=options or OPTIONS[method](),
    )


OF_PAIRS = ("loss_type", "beta")
"""What only pairs of answers are trained with."""
SHARED_OPTIMIZERS = ("adamw", "lion")
"""Of trials that train beside each other over one base."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Finite numbers from `low` (without it, where `above`) to `high`."""

    low: float = 0
    high: float = math.inf
    above: bool = False

    def check(self, name: str, value: float) -> None:
        reaches = value > self.low if self.above else value >= self.low
        if reaches and value <= self.high and math.isfinite(value):
            return
        words = f"{'above' if self.above else 'at least'} {self.low}"
        if self.high < math.inf:
            words += f" and at most {self.high}"
        raise InputError(f"{name}: must be {words}, got {value}")


ADALORA_BOUNDS = {
    "alpha": Bounds(above=True),
    "dropout": Bounds(high=1),
    "tinit_ratio": Bounds(),
    "tfinal_ratio": Bounds(),
    "importance_beta1": Bounds(high=1, above=True),
    "importance_beta2": Bounds(high=1, above=True),
    "orth_reg_weight": Bounds(),
}
BOUNDS = {
    "learning_rate": Bounds(above=True),
    "batch_size": Bounds(low=1),
    "epochs": Bounds(above=True),
    "weight_decay": Bounds(),
    "warmup_ratio": Bounds(high=1),
    "max_grad_norm": Bounds(),
    "beta1": Bounds(high=1),
    "beta2": Bounds(high=1),
    "epsilon": Bounds(above=True),
    "label_smoothing": Bounds(high=1),
    "beta": Bounds(above=True),
    "neftune_alpha": Bounds(),
    "ema_decay": Bounds(high=1),
    "average_last": Bounds(),
    "seed": Bounds(high=2**32 - 1),
}


def sharing_key(hp: Hyperparameters) -> str | None:
    """Trials of equal keys can share a base; None: the trial needs a base for itself."""
    key = hp.options.sharing_key
    return f"{hp.model} {key}" if hp.model and key is not None else key


def base_of(params: Mapping[str, object]) -> str:
    """The word for the base model of a trial with these parameters; "" is the only one."""
    return str(params.get("model", ""))


def virtual_tokens(hp: Hyperparameters) -> int:
    """Number of trained positions before each input; 0 for other methods."""
    return hp.options.soft_prompt_tokens


def cost_class(hp: Hyperparameters) -> str:
    """Trials of one cost class take about as long for a step and about as much memory: they have
    the same sharing key, and batch size and what they add to the base are alike.
    """
    words = [f"{sharing_key(hp)} base", f"batch size {_power_of_two(hp.batch_size)}"]
    return ", ".join([*words, *filter(None, [hp.options.size])])


def _power_of_two(size: int) -> int:
    return 2 ** round(math.log2(size))


OWN = ("method", "model", "options")
"""What is no hyperparameter of every method, or has a section of its own in the sweep file."""
COMMON = tuple(f.name for f in fields(Hyperparameters) if f.name not in OWN)
REQUIRED = [f.name for f in fields(Hyperparameters) if f.name in COMMON and f.default is MISSING]


def parse(params: Mapping[str, object]) -> Hyperparameters:
    """Flat `params`, as a search space samples them, to `Hyperparameters`; raises InputError for
    what is wrong.
    """
    given = dict(params)
    method, model = _method(given.pop("method", None)), given.pop("model", "")
    if not isinstance(model, str):
        raise InputError(f"model: must be the name of a base model, got {model!r}")
    kind = OPTIONS[method]
    own = [f.name for f in fields(kind)]
    _check_known(given, [*COMMON, *own], method)
    common = _typed(Hyperparameters, _only(given, COMMON))
    if common.get("optimizer") == "lion":
        common.setdefault("beta2", 0.99)  # Chen et al. 2023
    if missing := [name for name in REQUIRED if name not in common]:
        raise InputError(f"{missing[0]}: not given; put it into search.space or into train")
    options = kind(**_typed(kind, _only(given, own)))
    return Hyperparameters(method=method, model=model, options=options, **common)


def _check_known(given: Iterable[str], allowed: Sequence[str], method: str) -> None:
    if unknown := [name for name in given if name not in allowed]:
        is_typo = all(unknown[0] not in kind.__dataclass_fields__ for kind in OPTIONS.values())
        meant = did_you_mean(unknown[0], allowed) if is_typo else ""
        hint = meant or f" Allowed: {', '.join(allowed)}."
        raise InputError(f"{unknown[0]}: not a hyperparameter of method {method}.{hint}")


def _only(given: Mapping[str, object], names: Collection[str]) -> dict[str, object]:
    return {name: value for name, value in given.items() if name in names}


def _method(value: object) -> str:
    if isinstance(value, str) and value in OPTIONS:
        return value
    hint = did_you_mean(value, OPTIONS) if isinstance(value, str) else ""
    raise InputError(
        f"method: must be one of {', '.join(OPTIONS)}, got {value!r}{'.' if hint else ''}{hint}"
    )


def _typed(schema: type, values: Mapping[str, object]) -> dict[str, Any]:
    hints = _hints(schema)
    return {name: _cast(name, hints[name], value) for name, value in values.items()}


@cache  # a sweep parses a trial's parameters again and again, and this takes most of that time
def _hints(schema: type) -> Mapping[str, object]:
    return get_type_hints(schema)


def _cast(name: str, hint: object, value: object) -> object:
    """`value` as `hint`; never rounds or clamps, so that a score is credited to the value that
    ran.
    """
    words = []
    for each in _members(hint):
        if get_origin(each) is Literal:
            if value in get_args(each):
                return value
            words.append(f"one of {', '.join(map(str, get_args(each)))}")
        else:
            kind = get_origin(each) or each
            with suppress(TypeError):
                return READERS[kind](value)
            words.append(WORDS[kind])
    raise InputError(f"{name}: must be {' or '.join(words)}, got {value!r}")


def _members(hint: object) -> tuple[Any, ...]:
    """The types of a union, or the one."""
    return get_args(hint) if get_origin(hint) not in (None, tuple, Literal) else (hint,)


def _whole(value: object) -> int:
    number = _number(value)
    if not number.is_integer():
        raise TypeError
    return int(number)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise TypeError
    return tuple(value)


def _exactly(kind: type) -> Callable[[object], object]:
    def read(value: object) -> object:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return read


READERS: dict[type, Callable[[object], object]] = {  # raise TypeError for what is none
    int: _whole,
    float: _number,
    tuple: _names,
    bool: _exactly(bool),
    str: _exactly(str),
    NoneType: _exactly(NoneType),
}
WORDS = {
    int: "a whole number",
    float: "a number",
    tuple: "a list of names",
    bool: "true or false",
    str: "a word",
    NoneType: "null",
}


def _optional(hint: object) -> object:
    """`hint` as OmegaConf's structured configurations take it, and null for what is not set."""
    kinds = [_plain(each) for each in _members(hint) if each is not NoneType]
    return kinds[0] | None if len(kinds) == 1 else Any


def _plain(hint: Any) -> Any:
    """A type that is no union, without what it allows of its values."""
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0])
    return list[str] if get_origin(hint) is tuple else hint


def _declared() -> dict[str, object]:
    found: dict[str, object] = {"method": str | None}
    for schema in (Hyperparameters, *OPTIONS.values()):
        hints = get_type_hints(schema)
        names = COMMON if schema is Hyperparameters else [f.name for f in fields(schema)]
        found |= {name: _optional(hints[name]) for name in names}
    return found


FIELDS = _declared()
"""Every hyperparameter of every method with its type as a field of the sweep file, where each is
optional. A value that may be a word or a list is `Any`: OmegaConf has no such unions.
"""
