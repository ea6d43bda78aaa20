"""Whether requests to a winner are fast and cheap enough, as measured on this machine."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from sweeps.ledger.leaderboard import WinnerRow
from sweeps.use.gate_config import GateConfig
from sweeps.use.trained import Trained
from sweeps.use.verdict import Check

if TYPE_CHECKING:
    from trainables.evaluation.latency import Latency

SECONDS = 3600  # of an hour


def timed_checks(trained: Trained, winner: WinnerRow, config: GateConfig) -> Iterator[Check]:
    """Latency and cost, where they have limits or requests have a price."""
    if (limit := config.cost.inference_cost) is not None:
        yield Check(
            name="inference cost",
            passed=winner.inference_cost <= limit,
            words=f"a request takes {winner.inference_cost:.3f} times the arithmetic of the untuned"
            f" model (limit {limit:g})",
        )
    if not config.is_timed:
        return
    own, base = _timed(trained, config)
    yield from _latency(own, base, trained, config)
    yield from _cost(own, base, config)


def _timed(trained: Trained, config: GateConfig) -> "list[Latency]":
    """Of the winner and of the untuned model, both of which are in memory."""
    from trainables.evaluation.latency import measure_latencies

    split = trained.split("validation")
    at = np.linspace(0, len(split) - 1, min(config.latency.requests, len(split))).astype(int)
    return measure_latencies(
        [trained.load(), trained.load_untuned()],
        trained.task,
        split.rows(at),
        pad_token_id=trained.spec.pad_token_id,
        new_tokens=config.latency.new_tokens,
        device=trained.device,
    )


def _latency(
    own: "Latency", base: "Latency", trained: Trained, config: GateConfig
) -> Iterator[Check]:
    asked, times = config.latency, own.p50_ms / base.p50_ms
    of = (
        f" of {own.requests} requests one at a time on this machine ({trained.device.type}),"
        f" {base.p50_ms:.1f} ms and {base.p95_ms:.1f} ms with the untuned model"
    )
    if trained.task.is_language_model:
        of += f", {asked.new_tokens} tokens written in each"
    measured = f"p50 {own.p50_ms:.1f} ms and p95 {own.p95_ms:.1f} ms{of}"
    for name, value, limit, unit in (
        ("latency p50", own.p50_ms, asked.p50_ms, " ms"),
        ("latency p95", own.p95_ms, asked.p95_ms, " ms"),
        ("latency against the untuned model", times, asked.times_base, " times"),
    ):
        if limit is not None:
            words = f"{name} is {value:.4g}{unit} (limit {limit:g}{unit}; {measured})"
            yield Check(name=name, passed=value <= limit, words=words)


def _cost(own: "Latency", base: "Latency", config: GateConfig) -> Iterator[Check]:
    """What is not batched is answered one after another: batching makes it cheaper."""
    price, limit = config.cost.price_per_hour, config.cost.per_1000_requests
    if price is None:
        return
    cost, untuned = (price / SECONDS * each.mean_ms for each in (own, base))  # ms * 1000 / 1000
    words = (
        f"1,000 requests one after another cost {cost:.3g} ({untuned:.3g} with the untuned model"
    )
    words += ")" if limit is None else f"; limit {limit:g})"
    yield Check(name="cost", passed=limit is None or cost <= limit, words=words)
