"""Memory that runs out at the worst moments, errors that end a worker, and bases that nobody can share."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.stack import Wrecked

OUT = "CUDA out of memory. Tried to allocate 2.00 GiB. (simulated)"


class RunsOut(TorchDispatchMode):
    """Counts the operations that allocate, and fails from number `at` on, once or for good."""

    def __init__(self, at: float = math.inf, *, once: bool = True) -> None:
        super().__init__()
        self.at, self.once, self.count = at, once, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        allocates = not name.endswith("_") and not any(each.alias_info for each in func._schema.returns)
        if allocates:
            self.count += 1
            if self.count == self.at + 1 or self.count > self.at and not self.once:
                raise torch.OutOfMemoryError(OUT)
        return func(*args, **(kwargs or {}))


def trials_of(lab: Any, model: str) -> dict[str, Any]:
    return {
        "a": lab.params("lora", rank=2, targets="attention", dropout=0.1),
        "b": lab.params("lora", rank=8, batch_size=3, seed=1),
        "late": lab.params("lora", rank=16, seed=2),
    }


def state(pack: Any, names: Any = "ab") -> dict[str, torch.Tensor]:
    engine = pack._engine
    return {
        f"{trial} {name}": x.clone()
        for trial in names
        for name, x in {**engine.weights(trial), **engine.moments(trial)}.items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def begin(lab: Any, model: str, **settings: Any) -> tuple[Any, dict[str, Any]]:
    pack, trials = lab.pack(model, evaluate_every=1, **settings), trials_of(lab, model)
    for trial in "ab":
        pack.join(trial, trials[trial])
    for _ in range(2):
        pack.step(["a", "b"])
    return pack, trials


@pytest.mark.parametrize("settings", [{}, {"autocast": torch.bfloat16}], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("model", ["bert", "llama"])
def test_memory_that_runs_out_while_a_trial_joins_harms_nobody(lab, model, once, settings):
    """Wherever it happens, the others read the same, train on bit for bit, and the newcomer can join later."""
    undisturbed, trials = begin(lab, model, **settings)
    undisturbed.step(["a", "b"])
    expected = state(undisturbed)
    losses = {trial: each.val_loss for trial, each in undisturbed.evaluate(["a", "b"]).items()}
    with RunsOut() as counting:
        undisturbed.join("late", trials["late"])
    assert counting.count > 30
    pack, _ = begin(lab, model, **settings)
    before = state(pack)
    # every place of the layout, and a sample of what comes before it: drawing initial values
    for at in sorted({*range(0, counting.count, 7), *range(counting.count - 25, counting.count)}):
        with pytest.raises(torch.OutOfMemoryError), RunsOut(at, once=once):
            pack.join("late", trials["late"])
        assert pack.trials == ["a", "b"] == [name for name in pack._engine.trials if name]
        assert same(state(pack), before), at
    pack.step(["a", "b"])
    assert same(state(pack), expected)
    assert {trial: each.val_loss for trial, each in pack.evaluate(["a", "b"]).items()} == losses
    pack.join("late", trials["late"])
    assert same(state(pack), expected) and pack.trials == ["a", "b", "late"]
    assert pack._engine.trials == ["a", "b", "late"]


@pytest.mark.parametrize("once", [True, False])
def test_memory_that_runs_out_while_a_trial_leaves_harms_nobody(lab, once):
    expected, trials = begin(lab, "bert")
    expected.leave("a")
    expected.step(["b"])
    pack, _ = begin(lab, "bert")
    with RunsOut() as counting:
        pack.leave("a")
    for at in range(0, counting.count, 9):
        pack, _ = begin(lab, "bert")
        with RunsOut(at, once=once):
            pack.leave("a")
        assert pack.trials == ["b"]
        pack.step(["b"])
        lab.assert_close(state(pack, "b"), state(expected, "b"), 1e-6)  # its norm is summed in another order
        pack.join("a", trials["a"])
        assert pack._engine.trials == ["b", "a"]


def test_where_both_layouts_do_not_fit_the_old_one_waits_elsewhere(lab, monkeypatch):
    """As on an accelerator: the first try runs out of memory, the second has that of the old layout too."""
    expected, trials = begin(lab, "llama")
    expected.join("late", trials["late"])
    pack, _ = begin(lab, "llama")
    engine, made = pack._engine, type(pack._engine)._made
    tries: list[bool] = []

    def short(self: Any, *args: Any) -> Any:
        tries.append(self._weights.numel() > 0)
        if tries[-1]:
            raise torch.OutOfMemoryError(OUT)
        return made(self, *args)

    monkeypatch.setattr(type(engine), "_made", short)
    monkeypatch.setattr(type(engine), "_waits_elsewhere", lambda self: True)
    pack.join("late", trials["late"])
    assert tries == [True, False]
    assert same(state(pack, ["a", "b", "late"]), state(expected, ["a", "b", "late"]))
    before = state(pack)

    def never(self: Any, lanes: Any, *args: Any) -> Any:
        if len(lanes) > 3 or self._weights.numel() > 0:
            raise torch.OutOfMemoryError(OUT)
        return made(self, lanes, *args)

    monkeypatch.setattr(type(engine), "_made", never)
    with pytest.raises(torch.OutOfMemoryError):
        pack.join("more", trials["a"])
    assert same(state(pack), before) and pack._engine.trials == ["a", "b", "late"]
    pack.step(["a", "b"])

    def at_all(*_: Any) -> Any:
        raise torch.OutOfMemoryError(OUT)

    monkeypatch.setattr(type(engine), "_made", at_all)
    with pytest.raises(Wrecked):
        engine.join("more", [])
