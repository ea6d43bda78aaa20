"""`space: auto`: ranges from what is known of task, model and data, each by a published rule, about
the rate that the rule gives.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from search_spaces.errors import SpaceError, did_you_mean

SPREAD = 5.0  # a rate is searched from the rule's divided by this to the rule's times this
LORA_OVER_FULL = 10.0
RANKS = (16, 8, 32, 64)  # the first is the first guess
SHARED_OPTIMIZERS = ("adamw", "lion")  # of trials that share a base, as those of LoRA do
LION_OVER_ADAMW = 0.2  # Chen et al. 2023, section 5: 3 to 10 times lower
WIDE = 2048  # hidden size from which full fine-tuning is left out (models of about 1B and more)
STEPS = 20  # that an epoch has at least
MOST_EPOCHS = 20
ALPHA = 32
BETAS = [0.01, 0.5]  # of pairs: 0.1 (Rafailov et al. 2023), 0.5 there too, 0.01 of Zephyr's recipes


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known before a search."""

    classifies: bool
    """Whether a new head is trained on the model; else it predicts tokens."""
    width: int
    """Hidden size."""
    layers: int
    rows: int | None = None
    """Of train; None: not known yet."""
    compares: bool = False
    """Whether a row is a pair of answers, one of which is preferred."""

    @property
    def full_rate(self) -> float:
        """Of full fine-tuning with AdamW, per step: the middle of what BERT-base was tuned over
        (Devlin et al. 2019, appendix A.3), at other widths by 1 / width (Yang et al. 2022, table
        3); of language models 5e-5 at a width of 2000, falling with its power 0.781 (Schulman et
        al. 2025); on pairs 5e-7 at a width of 4096 (Tunstall et al. 2023, Zephyr; Ivison et al.
        2023, Tulu 2), and by the same power.
        """
        if self.classifies:
            return 3e-5 * 768 / self.width
        if self.compares:
            return 5e-7 * (4096 / self.width) ** 0.781
        return 5e-5 * (2000 / self.width) ** 0.781

    @property
    def epochs(self) -> tuple[int, int]:
        """Fewest and most: 3 of 52,000 rows (Taori et al. 2023), 15 of 1,000 (Zhou et al. 2023),
        and the power of the rows between and beyond.
        """
        if self.compares:
            return 1, 3  # Tunstall et al. 2023, Ivison et al. 2023
        if self.rows is None:
            return 1, MOST_EPOCHS
        most = round(3 * (52_000 / max(1, self.rows)) ** 0.407)
        most = min(MOST_EPOCHS, max(2, most))
        return max(1, most // 4), most

    @property
    def batch_sizes(self) -> list[int]:
        """16 or 32 (Devlin et al. 2019), 8 as well for language models (Schulman et al. 2025: LoRA
        suffers from large batches); of few rows, as many that an epoch has some steps.
        """
        usual = [16, 32] if self.classifies or self.compares else [16, 8, 32]
        if self.rows is None:
            return usual
        most = max(1, self.rows // STEPS)
        return [size for size in usual if size <= most] or [most]


def auto_space(setting: Setting, fixed: Mapping[str, object]) -> dict[str, object]:
    """The space as it could stand inline, without what is `fixed`. Raises SpaceError for a fixed
    method that it has no rule for.
    """
    tree: dict[str, object] = {
        "batch_size": _choice(setting.batch_sizes),
        "epochs": _epochs(*setting.epochs),
        "weight_decay": 0.01 if setting.classifies else 0.0,
        "warmup_ratio": 0.1 if setting.compares else 0.06,
    }
    if setting.compares:
        tree["beta"] = {"log_uniform": BETAS}
    branches = dict(_methods(setting, fixed))
    if "method" in fixed:
        tree = {**branches[_known(str(fixed["method"]), branches)], **tree}
    else:
        usual = [name for name in ("lora", "full") if _is_usual(name, setting, fixed)]
        tree = {"method": {name: branches[name] for name in usual}} | tree
    return {name: value for name, value in tree.items() if name not in fixed}


def _is_usual(method: str, setting: Setting, fixed: Mapping[str, object]) -> bool:
    """Whether it is searched unless another method is fixed: full fine-tuning of large models takes
    much memory, and some optimizers are for it alone.
    """
    of_one = fixed.get("optimizer", "adamw") not in SHARED_OPTIMIZERS
    return not of_one if method == "lora" else setting.width < WIDE or of_one


def _of_optimizer(fixed: Mapping[str, object]) -> float:
    """Its rate over AdamW's."""
    return LION_OVER_ADAMW if fixed.get("optimizer") == "lion" else 1.0


def rules(setting: Setting, fixed: Mapping[str, object]) -> Iterator[str]:
    """Why the ranges are what they are, in words. fixed: as `auto_space` takes it."""
    full, source = setting.full_rate, _source(setting)
    yield f"learning_rate of full fine-tuning about {full:.2g}: {source}; width {setting.width}"
    yield (
        f"learning_rate of lora about {LORA_OVER_FULL * full:.2g}: ten times that, at alpha"
        f" {ALPHA} whatever the rank (Schulman et al. 2025)"
    )
    if (factor := _of_optimizer(fixed)) != 1:
        yield f"both times {factor:g} for {fixed['optimizer']} (Chen et al. 2023)"
    if setting.compares:
        yield "epochs 1 to 3: Tunstall et al. 2023, Ivison et al. 2023"
        yield f"beta {BETAS[0]} to {BETAS[1]}: about 0.1 (Rafailov et al. 2023)"
    elif setting.rows is not None:
        low, high = setting.epochs
        yield (
            f"epochs {low} to {high}: 3 of 52,000 rows (Taori et al. 2023), 15 of 1,000 (Zhou et"
            f" al. 2023), by the power between; {setting.rows} rows"
        )


def _source(setting: Setting) -> str:
    """Of the rate of full fine-tuning."""
    if setting.classifies:
        return "BERT's 3e-5 at width 768 (Devlin et al. 2019), by 1 / width (Yang et al. 2022)"
    by_width = "by width to the power -0.781 (Schulman et al. 2025)"
    if setting.compares:
        return f"on pairs 5e-7 at width 4096 (Tunstall et al. 2023), {by_width}"
    return f"5e-5 at width 2000, {by_width}"


def _methods(
    setting: Setting, fixed: Mapping[str, object]
) -> Iterator[tuple[str, dict[str, object]]]:
    """Each method that there is a rule for, with its parameters."""
    full = setting.full_rate * _of_optimizer(fixed)
    ranks = [rank for rank in RANKS if rank <= setting.width // 2] or [1]
    lora: dict[str, object] = {
        "learning_rate": _rates(LORA_OVER_FULL * full),
        "rank": _choice(ranks),
        "alpha": ALPHA,
        "dropout": {"uniform": [0.0, 0.1]},  # Dettmers et al. 2023, QLoRA, appendix A
        "targets": "all-linear",  # Schulman et al. 2025
    }
    # Lee et al. 2019: a quarter of the last layers keeps about 90% of the quality
    layers = sorted({max(1, setting.layers // 4), max(1, setting.layers // 2)})
    found: dict[str, dict[str, object]] = {
        "lora": lora,
        "full": {"learning_rate": _rates(full)},
        "partial": {"learning_rate": _rates(2 * full), "layers": _choice(layers)},
        "qlora": lora | {"bits": 4},  # Dettmers et al. 2023
    }
    left_out = set(fixed)
    if {"train", "patterns"} & left_out:  # which say, in the place of layers, what is trained
        left_out.add("layers")
    if fixed.get("init_lora_weights", True) is not True or fixed.get("freeze_a"):
        left_out.add("dropout")  # which does not go with a start from the base's weights
    for name, parameters in found.items():
        yield name, {key: value for key, value in parameters.items() if key not in left_out}


def _known(method: str, branches: Collection[str]) -> str:
    if method in branches:
        return method
    raise SpaceError(
        f"search.space: auto has no rule for method {method}, only for {', '.join(branches)}; a"
        f" preset or ranges of your own say what varies.{did_you_mean(method, branches)}"
    )


def _rates(middle: float) -> object:
    return {"log_uniform": [float(f"{middle / SPREAD:.2g}"), float(f"{middle * SPREAD:.2g}")]}


def _choice(values: list[int]) -> object:
    return {"choice": values} if len(values) > 1 else values[0]


def _epochs(low: int, high: int) -> dict[str, object]:
    domain: dict[str, object] = {"int": [low, high]}
    return domain | {"log": True} if high >= 4 * low else domain
