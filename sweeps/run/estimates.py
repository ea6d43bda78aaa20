"""Memory that trials will take on GPUs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sweeps.config.schema import SweepConfig
from trainables.hyperparameters import Hyperparameters, parse

if TYPE_CHECKING:
    from trainables.engine.memory import MemoryEstimate

# hyperparameters that say how much a trial adds to the base
SIZES = ("rank", "init_r", "bottleneck", "virtual_tokens")


def memory_lines(config: SweepConfig, draws: Sequence[Mapping[str, object]]) -> list[str]:
    """How many trials GPUs could train at once, for each method that leaves the base as it is, at
    the largest size of those drawn.
    """
    from trainables.engine.memory import gib, gpu_table
    from trainables.methods import ADDITIVE
    from trainables.runtime.capacity import MAX_GROUP_SIZE

    most = (
        MAX_GROUP_SIZE
        if config.cluster.trials_per_slot == "auto"
        else config.cluster.trials_per_slot
    )
    drawn = [hp for hp in map(parse, draws) if hp.method in ADDITIVE]
    drawn.sort(key=_size_of)
    # one for each method and kind of base, the last of the same being the largest
    largest = {(hp.method, hp.options.quantisation, _experts(hp)): hp for hp in drawn}
    lines = []
    for _, hp in sorted(largest.items(), key=lambda item: item[0]):
        what = _words(hp)
        try:
            found = _estimate(config, hp)
        # an architecture that the formula does not know is no fault of the sweep
        except Exception as error:
            lines.append(
                f"  no estimate for {what}:"
                f" {' '.join(str(error).split())[:200] or type(error).__name__}"
            )
            continue
        lines.append(
            f"  {what}: base {gib(found.base)}, a micro-batch {gib(found.activations)}, a trial"
            f" {gib(found.per_trial)}; trials at once: {gpu_table(found, most)}"
        )
    if not lines:
        return []
    tokens = _micro_batch_tokens(config)
    header = f"Memory on GPUs (an estimate; a slot measures it), micro-batches of {tokens} tokens:"
    return [header, *lines]


def smallest_estimates(
    config: SweepConfig, draws: Sequence[Mapping[str, object]]
) -> dict[str, "MemoryEstimate"]:
    """What the smallest trial of each method and quantisation takes on a GPU, by words for it;
    empty where that cannot be said of each.
    """
    from trainables.methods import quantisation_of

    drawn = sorted(map(parse, draws), key=_size_of, reverse=True)
    smallest = {(hp.method, quantisation_of(hp.method, hp.options)): hp for hp in drawn}
    try:
        return {_words(hp): _estimate(config, hp) for hp in smallest.values()}
    except Exception:  # an architecture that the formula does not know is no fault of the sweep
        return {}


def device_bytes() -> int | None:
    """Memory of the largest GPU of this machine; None: it has none."""
    import torch

    sizes = [
        torch.cuda.get_device_properties(number).total_memory
        for number in range(torch.cuda.device_count())
    ]
    return max(sizes, default=None)


def _estimate(config: SweepConfig, hp: Hyperparameters) -> "MemoryEstimate":
    """What trials like `hp` take on a GPU."""
    from trainables.engine.memory import estimate_of

    return estimate_of(
        config.model,
        config.task,
        hp,
        precision=config.train.precision,
        max_tokens=_micro_batch_tokens(config),
        gradient_checkpointing=config.train.gradient_checkpointing,
    )


def _micro_batch_tokens(config: SweepConfig) -> int:
    from trainables.engine.budget import MICRO_BATCH_TOKENS

    return config.train.max_tokens or MICRO_BATCH_TOKENS["cuda"]


def _size_of(hp: Hyperparameters) -> tuple[float, ...]:
    """By which trials of a method take more or less memory."""
    sizes = [getattr(hp.options, name, None) or 0 for name in (*SIZES, "layers")]
    return (
        bool(_experts(hp)),
        *sizes,
        getattr(hp.options, "targets", None) == "all-linear",
        getattr(hp.options, "dropout", 0),
    )


def _words(hp: Hyperparameters) -> str:
    """`qlora at rank 8 over nf4`."""
    from trainables.methods import quantisation_of

    sizes = {
        name.replace("_", " "): getattr(hp.options, name)
        for name in SIZES
        if hasattr(hp.options, name)
    }
    quantisation = quantisation_of(hp.method, hp.options)
    at = "".join(f" at {name} {value}" for name, value in sizes.items())
    over = f" over {quantisation}" if quantisation != "none" else ""
    return f"{hp.method}{at}{over}{_experts(hp)}"


def _experts(hp: Hyperparameters) -> str:
    return " with experts" if getattr(hp.options, "target_parameters", ()) else ""
