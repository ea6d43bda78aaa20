"""How long a model takes for a request: one row at a time, as a service without batching would
answer it. No Ray.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.data.arrow import sequences_of
from trainables.data.records import IGNORED
from trainables.models.files import context_length
from trainables.tasks import Task, take_targets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Row = dict[str, Any]
WARM_UP = 3  # requests that are not timed: the first ones allocate, compile, load kernels


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Of single requests, in milliseconds."""

    requests: int
    mean_ms: float
    p50_ms: float
    p95_ms: float


def measure_latencies(
    models: Sequence["PreTrainedModel"],
    task: Task,
    rows: Sequence[Row],
    *,
    pad_token_id: int,
    new_tokens: int,
    device: "torch.device",
) -> list[Latency]:
    """Time each of `models` (in eval mode on `device`) on each of `rows` by itself, in turn, so
    that what else the machine does meets all alike. What a head answers is one forward pass; a
    language model reads the row up to its answer and writes `new_tokens` tokens by greedy decoding
    with a cache, always as many, so that all do the same work.
    """
    import torch

    made = [_writer(model, task, new_tokens, pad_token_id, device) for model in models]
    if not task.is_language_model:
        made = [_reader(model, task, pad_token_id, device) for model in models]
    timed = np.zeros((len(models), len(rows) + WARM_UP))
    with torch.no_grad():
        for number in range(timed.shape[1]):
            for model, answer in enumerate(made):
                timed[model, number] = _timed(answer, rows[number % len(rows)], device)
    return [_latency(each[WARM_UP:]) for each in timed]


def _timed(answer: Callable[[Row], object], row: Row, device: "torch.device") -> float:
    """Milliseconds."""
    _wait(device)
    began = time.perf_counter()
    answer(row)
    _wait(device)
    return 1000 * (time.perf_counter() - began)


def _latency(timed: np.ndarray) -> Latency:
    p50, p95 = np.percentile(timed, [50, 95])
    return Latency(
        requests=len(timed), mean_ms=float(timed.mean()), p50_ms=float(p50), p95_ms=float(p95)
    )


def _wait(device: "torch.device") -> None:
    """For what the device has been asked and has not done yet."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reader(
    model: "PreTrainedModel", task: Task, pad_token_id: int, device: "torch.device"
) -> Callable[[Row], object]:
    def answer(row: Row) -> object:
        batch = task.collate([row], pad_token_id)
        take_targets(batch, task, model)
        return model(**{name: each.to(device) for name, each in batch.items()}).logits.cpu()

    return answer


def _writer(
    model: "PreTrainedModel",
    task: Task,
    new_tokens: int,
    pad_token_id: int,
    device: "torch.device",
) -> Callable[[Row], object]:
    import torch

    room = (context_length(model.config) or 1 << 30) - new_tokens

    def answer(row: Row) -> object:
        ids = torch.from_numpy(prompt_ids(row, task).astype(np.int64)[-room:])[None].to(device)
        return model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=pad_token_id,
        ).cpu()

    return answer


def prompt_ids(row: Row, task: Task) -> np.ndarray:
    """Tokens of a language model's row before its answer [T]: of a text that has none, its first
    half.
    """
    first = sequences_of(row)[0]
    ids = first["input_ids"]
    if not task.continues_text:  # the answer is another text
        return ids
    if not task.targets_are_answers:
        return ids[: max(1, len(ids) // 2)]
    targets = np.flatnonzero(np.asarray(first["labels"])[1:] != IGNORED)
    return ids[: targets[0] + 1] if len(targets) else ids
