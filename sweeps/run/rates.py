"""How fast this machine trains the sweep's model on its data, before the sweep starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sweeps.config.draws import first_of_each_method, of_each_base
from sweeps.config.schema import SweepConfig
from trainables.hyperparameters import Hyperparameters, parse
from trainables.models.files import load_tokenizer, pad_token_of

if TYPE_CHECKING:
    import torch

    from cluster.connect import SlotPlan
    from trainables.engine.group import TrialGroup


@dataclass(frozen=True, kw_only=True)
class MeasuredRate:
    """Of a trial that has a device of this machine alone."""

    base: str = ""
    """The word for its base model; "" is the only one."""
    method: str
    batch_size: int
    device: str
    """`NVIDIA H200`, or `CPU (1 thread)`."""
    tokens_per_s: float | None = None
    """Of the rows, without padding; None: it could not be measured."""
    words: str
    """From what it was measured, or why it was not."""


def measure_rates(
    config: SweepConfig, data: Path, slots: "SlotPlan | None"
) -> tuple[MeasuredRate, ...]:
    """Train a trial of each method for some steps, as a slot on this machine would.

    data: the folder of the prepared data; slots: those that a sweep would have here; None: it runs
    elsewhere.
    """
    import torch

    from trainables.data.prepare import open_split
    from trainables.engine.group import open_group
    from trainables.engine.settings import GroupSettings

    is_gpu = torch.cuda.is_available() if slots is None else "GPU" in slots.resources_per_worker
    device = torch.device("cuda", 0) if is_gpu else torch.device("cpu")
    threads = torch.get_num_threads()
    if slots is not None:
        torch.set_num_threads(slots.threads_per_worker)
    train = config.train
    found: list[MeasuredRate] = []
    try:
        for _, over, drawn, folder in of_each_base(config):
            prepared = data / folder
            group = open_group(
                prepared,
                model=over.model,
                task=config.task,
                pad_token_id=pad_token_of(load_tokenizer(over.model)),
                settings=GroupSettings.on(
                    device,
                    precision=train.precision,
                    save_dtype=train.save_dtype,
                    max_tokens=train.max_tokens,
                    gradient_checkpointing=train.gradient_checkpointing,
                    seed=config.seed,
                ),
                device=device,
            )
            lengths = open_split(prepared, "train").lengths
            hps = [parse(draw) for draw in first_of_each_method(drawn)]
            found += [_measured(group, hp, lengths, device) for hp in hps]
        return tuple(found)
    finally:
        torch.set_num_threads(threads)


def _measured(
    group: "TrialGroup", hp: Hyperparameters, lengths: np.ndarray, device: "torch.device"
) -> MeasuredRate:
    from trainables.engine.speed import measure_speed

    rate, words = None, ""
    try:
        found = measure_speed(group, hp, lengths, device)
        rate = found.tokens_per_s
        words = f"{found.steps} steps in {found.seconds:.1f} s"
    # the border to model and device: what cannot be measured may train elsewhere, or with less
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return MeasuredRate(
        base=hp.model,
        method=hp.method,
        batch_size=hp.batch_size,
        device=_device_words(device),
        tokens_per_s=rate,
        words=words,
    )


def _device_words(device: "torch.device") -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' if threads > 1 else ''})"
