"""The path of an accelerator, on a stand-in for one: nothing mixes devices, results are those of a
CPU, and a step launches few operations and waits once.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainables import accelerator
from tests.trainables.accelerator import OnDevice
from trainables.engine import kernels
from trainables.engine.kernels import accumulate, grouped_matmul

if not torch.cuda.is_available():
    # before gradients are computed for the first time: autograd makes a thread for each device then
    accelerator.device()

SEGMENTS = ((0, 0, 3), (1, 3, 10), (3, 10, 11))  # the third trial has no rows
GROUPS = {  # trials that share a base, or have one alone, by the model that they train
    "lora": (
        "llama",
        {
            "a": {"method": "lora", "rank": 8, "targets": "all-linear", "batch_size": 2},
            "b": {
                "method": "lora",
                "rank": 3,
                "alpha": 5,
                "dropout": 0.2,
                "seed": 4,
                "ema_decay": 0.9,
            },
            "c": {"method": "lora", "rank": 2, "use_dora": True, "batch_size": 5},
            "d": {
                "method": "lora",
                "rank": 2,
                "freeze_a": True,
                "loraplus_ratio": 4,
                "optimizer": "lion",
            },
        },
    ),
    "mixed": (
        "llama",
        {
            "a": {"method": "lora", "rank": 8, "batch_size": 3},
            "b": {"method": "ia3"},
            "c": {"method": "adapter", "bottleneck": 4, "batch_size": 2},
            "d": {"method": "vera", "rank": 4},
            "e": {"method": "adalora", "init_r": 4, "target_r": 2, "delta_t": 1},
        },
    ),
    "classes": (
        "bert",
        {
            "a": {"method": "lora", "rank": 8, "batch_size": 3, "dropout": 0.1},
            "b": {"method": "ia3", "label_smoothing": 0.1},
        },
    ),
    "texts": ("t5-seq2seq", {"a": {"method": "lora", "rank": 8}, "b": {"method": "ia3"}}),
    "prompt": ("llama", {"a": {"method": "prompt", "virtual_tokens": 3}}),
    "prefix": ("llama", {"a": {"method": "prefix", "virtual_tokens": 3}}),
    "full": ("llama", {"a": {"method": "full"}}),
    "head": ("bert", {"a": {"method": "full", "ema_decay": 0.5}}),
}


LENGTHY = ("mixed", "texts")  # of groups, as the stand-in takes its time for each operation


@pytest.fixture
def device_of_grouped_products(monkeypatch):
    """Grouped products of any width run on the device as one operation."""
    kernels._grouped_works.cache_clear()
    kernels._on_device.cache_clear()
    yield
    kernels._on_device.cache_clear()


@contextmanager
def stand_in() -> Iterator[torch.device]:
    with accelerator.accelerator():
        yield accelerator.device()


@contextmanager
def card() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    yield torch.device("cuda", 0)


on_each_device = pytest.mark.parametrize(
    "on", [stand_in, pytest.param(card, marks=pytest.mark.gpu)], ids=["stand-in", "gpu"]
)


def trials_of(lab: Any, group: str) -> tuple[str, dict[str, Any]]:
    model, trials = GROUPS[group]
    return model, {
        name: lab.params(**{"epochs": 1, "batch_size": 6, **options})
        for name, options in trials.items()
    }


def test_the_stand_in_refuses_what_an_accelerator_refuses():
    with accelerator.accelerator() as device:
        x = torch.ones(2, 3).to(accelerator.device())
        assert isinstance(x, OnDevice) and x.device.type == accelerator.NAME
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2, 3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.nn.Linear(3, 3)(x)
        with pytest.raises((TypeError, RuntimeError)):
            x.numpy()
        device.counts.clear()
        y = (x.view(3, 2).t() * torch.tensor(2.0))[1:]
        assert dict(device.counts.launched) == {"mul": 1} and not device.counts.waits
        y.tolist(), float(y.sum()), bool((y > 0).all()), y[y > 0], y.cpu()
        y.to("cpu", non_blocking=True), torch.ones(2).to(x.device, non_blocking=True)
        assert sum(device.counts.waits.values()) == 5
        torch.ones(2).to(x.device), torch.tensor([1, 2], device=x.device), y.copy_(torch.ones(1, 3))
        assert sum(device.counts.waits.values()) == 8


@on_each_device
@pytest.mark.parametrize(
    "group",
    [pytest.param(name, marks=[pytest.mark.long] if name in LENGTHY else []) for name in GROUPS],
)
def test_a_group_on_an_accelerator_is_one_on_a_cpu(
    lab, group, on, tmp_path, device_of_grouped_products
):
    model, trials = trials_of(lab, group)
    settings = {"dtype": torch.float64, "max_tokens": 60}
    expected = lab.together(lab.group(model, **settings), tmp_path / "cpu", trials)
    with on() as device:
        one = lab.group(model, device=device, **settings)
        found = lab.together(one, tmp_path / "device", trials)
    for trial in trials:
        lab.assert_alike(found[trial], expected[trial], 1e-9)


@on_each_device
@pytest.mark.parametrize("group", ["lora", "full"])
def test_a_trial_resumes_on_an_accelerator(lab, group, on, tmp_path, device_of_grouped_products):
    model, trials = trials_of(lab, group)
    trials = {"a": trials["a"]}
    settings = {"dtype": torch.float64, "max_tokens": 60, "evaluate_every": 6}
    with on() as device:
        make = functools.partial(lab.group, model, device=device, **settings)
        expected = lab.together(make(), tmp_path / "whole", trials)
        (_, folder), *rest = expected["a"]
        found = lab.together(make(), tmp_path / "rest", trials, checkpoints={"a": folder})
    lab.assert_alike(found["a"], rest, 1e-12)


@pytest.mark.parametrize("group", ["lora", "full"])
def test_a_step_out_of_memory_is_taken_in_smaller_micro_batches(
    lab, group, device_of_grouped_products
):
    model, trials = trials_of(lab, group)
    left = [1]

    def out_of_memory(operation: str) -> None:
        if left and operation == "mm":
            left.clear()
            raise torch.OutOfMemoryError("no room")

    weights: list[dict[str, Tensor]] = []
    with accelerator.accelerator() as device:
        for before in (None, out_of_memory):
            one = lab.group(model, device=accelerator.device(), dtype=torch.float64, max_tokens=200)
            for name, hp in trials.items():
                one.join(name, hp)
            device.before = before
            one.step(list(trials))
            device.before = None
            weights.append(
                {
                    f"{t} {n}": w.detach().cpu()
                    for t in trials
                    for n, w in one._engine.weights(t).items()
                }
            )
        assert not left and one._budget.tokens == 100
    for name, weight in weights[0].items():
        assert torch.allclose(weights[1][name], weight, rtol=1e-9, atol=1e-12), name


# --- products ---


@pytest.mark.parametrize("lanes", [4, 3])
def test_grouped_products_are_those_of_each_trial(lanes, device_of_grouped_products):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    segments = SEGMENTS if lanes == 4 else ((0, 0, 3), (1, 3, 10), (2, 10, 11))
    x_NI, dy_NO, weight_KOI = draw(11, 16), draw(11, 8), draw(lanes, 8, 16)
    grad_KOI = draw(lanes, 8, 16)
    expected = grouped_matmul(x_NI, weight_KOI.transpose(1, 2), segments)
    grad = grad_KOI.clone()
    accumulate(grad, dy_NO, x_NI, segments)
    with accelerator.accelerator() as device:
        to = accelerator.device()
        found_grad, x, dy, weight = (t.to(to) for t in (grad_KOI.clone(), x_NI, dy_NO, weight_KOI))
        grouped_matmul(x, weight.transpose(1, 2), segments)
        accumulate(found_grad.clone(), dy, x, segments)  # has numbers copied that it keeps
        device.counts.clear()
        found = grouped_matmul(x, weight.transpose(1, 2), segments)
        accumulate(found_grad, dy, x, segments)
        assert (
            device.counts.launched.total() == (3 if lanes == 3 else 4) and not device.counts.waits
        )
        found, found_grad = found.cpu(), found_grad.cpu()
    assert torch.allclose(found, expected, rtol=1e-12) and torch.allclose(
        found_grad, grad, rtol=1e-12
    )


# --- budgets ---

TRIALS = 8


def a_step(lab: Any, *, even: bool = False, **options: Any) -> Any:
    """What a step of eight trials with LoRA on all linear layers of 16 layers asks for."""
    trials = {
        f"t{k}": lab.params(
            "lora",
            targets="all-linear",
            rank=8,
            alpha=2 + k,
            batch_size=2 if even else 1 + k % 4,
            seed=k,
            **options,
        )
        for k in range(TRIALS)
    }
    return counts_of_a_step(lab, "llama-deep", trials, max_tokens=4096)


def counts_of_a_step(lab: Any, model: str, trials: dict[str, Any], **settings: Any) -> Any:
    """Of the second, since the first copies numbers to the device that stay there."""
    with accelerator.accelerator() as device:
        group = lab.group(model, device=accelerator.device(), **settings)
        for name, hp in trials.items():
            group.join(name, hp)
        group.step(list(trials))
        device.counts.clear()
        group.step(list(trials))
        return device.counts


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, most",
    [
        ("uneven", 3500),
        pytest.param("dropout", 4500, marks=pytest.mark.long),
        pytest.param("even", 3500, marks=pytest.mark.long),
    ],
)
def test_a_step_launches_few_operations_and_waits_once(lab, kind, most, device_of_grouped_products):
    counts = a_step(lab, even=kind == "even", **({"dropout": 0.1} if kind == "dropout" else {}))
    launched, waits = counts.launched.total(), dict(counts.waits)
    print(f"{kind}: {launched} operations, waits: {waits}; {counts.launched.most_common()}")
    assert launched <= most
    assert counts.waits.total() <= 1, waits


@pytest.mark.parametrize(
    "group, settings",
    [("lora", {}), ("lora", {"varlen": True}), ("classes", {}), ("texts", {}), ("full", {})],
)
def test_a_step_of_several_micro_batches_waits_once(
    lab, group, settings, device_of_grouped_products
):
    model, trials = trials_of(lab, group)
    waits = counts_of_a_step(lab, model, trials, max_tokens=60, **settings).waits
    assert waits.total() == 1, waits
