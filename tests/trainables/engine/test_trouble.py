"""Memory that runs out at the worst moments, errors that end a worker, and bases that nobody can share."""

import dataclasses
import gc
import math
import weakref
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import trainables.engine.group
from trainables.engine.budget import TokenBudget
from trainables.engine.group import NotShared
from trainables.engine.memory import GB, MemoryEstimate, too_large
from trainables.engine.shared import Wrecked
from trainables.errors import InputError
from trainables.evaluation.record import Evaluation
from trainables.runtime.capacity import trials_that_pay
from trainables.runtime.client import CoordinatorClient
from trainables.runtime.failures import ends_worker
from trainables.runtime.protocol import Assignment, Evaluated, Failed
from trainables.runtime.worker import SlotWorker
from trainables.storage.store import Store

OUT = "CUDA out of memory. Tried to allocate 2.00 GiB. (simulated)"


class RunsOut(TorchDispatchMode):
    """Counts the operations that allocate, and fails from number `at` on, once or for good."""

    def __init__(self, at: float = math.inf, *, once: bool = True) -> None:
        super().__init__()
        self.at, self.once, self.count = at, once, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        allocates = not name.endswith("_") and not any(
            each.alias_info for each in func._schema.returns
        )
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


def state(group: Any, names: Any = "ab") -> dict[str, torch.Tensor]:
    engine = group._engine
    return {
        f"{trial} {name}": x.clone()
        for trial in names
        for name, x in {**engine.weights(trial), **engine.moments(trial)}.items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def begin(lab: Any, model: str, **settings: Any) -> tuple[Any, dict[str, Any]]:
    group, trials = lab.group(model, evaluate_every=1, **settings), trials_of(lab, model)
    for trial in "ab":
        group.join(trial, trials[trial])
    for _ in range(2):
        group.step(["a", "b"])
    return group, trials


@pytest.mark.parametrize(
    "settings", [{}, {"autocast": torch.bfloat16}], ids=["float32", "bfloat16"]
)
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
    group, _ = begin(lab, model, **settings)
    before = state(group)
    # every place of the layout, and a sample of what comes before it: drawing initial values
    for at in sorted({*range(0, counting.count, 7), *range(counting.count - 25, counting.count)}):
        with pytest.raises(torch.OutOfMemoryError), RunsOut(at, once=once):
            group.join("late", trials["late"])
        assert group.trials == ["a", "b"] == [name for name in group._engine.trials if name]
        assert same(state(group), before), at
    group.step(["a", "b"])
    assert same(state(group), expected)
    assert {trial: each.val_loss for trial, each in group.evaluate(["a", "b"]).items()} == losses
    group.join("late", trials["late"])
    assert same(state(group), expected) and group.trials == ["a", "b", "late"]
    assert group._engine.trials == ["a", "b", "late"]


@pytest.mark.parametrize("once", [True, False])
def test_memory_that_runs_out_while_a_trial_leaves_harms_nobody(lab, once):
    expected, trials = begin(lab, "bert")
    expected.leave("a")
    expected.step(["b"])
    group, _ = begin(lab, "bert")
    with RunsOut() as counting:
        group.leave("a")
    for at in range(0, counting.count, 9):
        group, _ = begin(lab, "bert")
        with RunsOut(at, once=once):
            group.leave("a")
        assert group.trials == ["b"]
        group.step(["b"])
        lab.assert_close(
            state(group, "b"), state(expected, "b"), 1e-6
        )  # its norm is summed in another order
        group.join("a", trials["a"])
        assert group._engine.trials == ["b", "a"]


def test_where_both_layouts_do_not_fit_the_old_one_waits_elsewhere(lab, monkeypatch):
    """As on an accelerator: the first try runs out of memory, the second has that of the old layout too."""
    expected, trials = begin(lab, "llama")
    expected.join("late", trials["late"])
    group, _ = begin(lab, "llama")
    engine, made = group._engine, type(group._engine)._made
    tries: list[bool] = []

    def short(self: Any, *args: Any) -> Any:
        tries.append(self._weights.numel() > 0)
        if tries[-1]:
            raise torch.OutOfMemoryError(OUT)
        return made(self, *args)

    monkeypatch.setattr(type(engine), "_made", short)
    monkeypatch.setattr(type(engine), "_waits_elsewhere", lambda self: True)
    group.join("late", trials["late"])
    assert tries == [True, False]
    assert same(state(group, ["a", "b", "late"]), state(expected, ["a", "b", "late"]))
    before = state(group)

    def never(self: Any, lanes: Any, *args: Any) -> Any:
        if len(lanes) > 3 or self._weights.numel() > 0:
            raise torch.OutOfMemoryError(OUT)
        return made(self, lanes, *args)

    monkeypatch.setattr(type(engine), "_made", never)
    with pytest.raises(torch.OutOfMemoryError):
        group.join("more", trials["a"])
    assert same(state(group), before) and group._engine.trials == ["a", "b", "late"]
    group.step(["a", "b"])

    def at_all(*_: Any) -> Any:
        raise torch.OutOfMemoryError(OUT)

    monkeypatch.setattr(type(engine), "_made", at_all)
    with pytest.raises(Wrecked):
        engine.join("more", [])


# --- what an error is the end of ---


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (
            RuntimeError(
                "CUDA error: device-side assert triggered\nCUDA kernel errors might be ..."
            ),
            True,
        ),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"
            ),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (RuntimeError("CUDA driver error: unknown error"), True),
        (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1234, unhandled cuda error"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1"), True),
        (RuntimeError("HIP error: invalid device function"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (
            chained(
                ValueError("could not sample"),
                torch.AcceleratorError("CUDA error: unspecified launch failure"),
            ),
            True,
        ),
        (Wrecked("no room"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x8 and 9x2)"), False),
        (
            RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu"),
            False,
        ),
        (ValueError("CUDA error is a word of the user's"), False),
        (InputError("targets: no linear layer is called 'x'"), False),
        (OSError("No space left on device"), False),
    ],
)
def test_errors_after_which_a_process_gets_nothing_more_from_its_accelerator(error, ends):
    assert ends_worker(error) is ends


class Client:
    """Records what a slot tells its coordinator. first: what rank 0 has sent to the others, for a
    worker that is one of these.
    """

    def __init__(self, *, known: bool = True, first: Any = None) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.known = known
        self.first = first
        self.assignment = Assignment(version=1)

    def publish(self, *news: Any) -> bool:
        self.told.append(news)
        return self.known

    tell = publish

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def from_rank_zero(self, value: Any) -> Any:
        return self.first or value


def worker_of(group: Any, tmp_path: Any, *, known: bool = True) -> SlotWorker:
    return SlotWorker(
        config=SimpleNamespace(first=""),
        client=Client(known=known),
        groups={"": group},
        store=Store(str(tmp_path)),
        rank=0,
        size=1,
    )


def raising(error: Exception) -> Any:
    def action() -> None:
        raise error

    return action


def test_an_error_of_the_accelerator_ends_the_worker_and_no_trial(lab, tmp_path):
    group = lab.group("bert")
    group.join("a", lab.params("lora"))
    worker = worker_of(group, tmp_path)
    with pytest.raises(torch.AcceleratorError):
        worker.guard(["a"], raising(torch.AcceleratorError("CUDA error: unknown error")))
    assert (
        worker._client.told == [] and "CUDA error" in (tmp_path / "trials/a/error.txt").read_text()
    )


def test_who_runs_out_of_memory_beside_others_goes_on_alone_and_alone_has_failed(lab, tmp_path):
    """Also beside trials that only wait: they take memory."""
    group = lab.group("bert")
    for trial in "ab":
        group.join(trial, lab.params("lora"))
    worker = worker_of(group, tmp_path)
    worker.guard(["a"], raising(torch.OutOfMemoryError(OUT)))
    assert worker._client.told == [("isolate", ["a"])] and group.trials == ["b"]
    worker.guard(["b"], raising(torch.OutOfMemoryError(OUT)))
    _, trial, outcome = worker._client.told[-1]
    assert trial == "b" and outcome.reason.startswith("it does not fit the device of ")
    assert " even alone" in outcome.reason and ": OutOfMemoryError: CUDA out" in outcome.reason
    worker.guard(["c"], raising(InputError("rank: too large")))
    assert worker._client.told[-1] == (
        "publish",
        "c",
        Failed(reason="rank: too large", certain=True),
    )


def test_a_trial_that_does_not_fit_beside_the_others_waits_for_another_slot(lab, tmp_path):
    group = lab.group("bert")
    params = {"method": "lora", "learning_rate": 1e-3, "batch_size": 4, "epochs": 1}
    worker = worker_of(group, tmp_path)
    worker.join("a", params)
    before = state(group, "a")
    with RunsOut(20):
        worker.guard(["b"], lambda: worker.join("b", params))
    assert (
        worker._client.told == [("no_room", "b", 1)]
        and group.trials == ["a"]
        and same(state(group, "a"), before)
    )
    worker.guard(["b"], lambda: worker.join("b", params))
    assert group.trials == ["a", "b"]


def test_a_trial_over_a_base_that_nobody_can_share_waits_for_another_slot(lab, tmp_path):
    params = {"method": "lora", "learning_rate": 1e-3, "batch_size": 4, "epochs": 1}
    worker = worker_of(lab.group("deberta-v3"), tmp_path)
    for trial in "ab":
        worker.guard([trial], lambda t=trial: worker.join(t, params))
    assert worker._client.told == [("no_room", "b", 1)]


def test_news_that_a_restarted_coordinator_did_not_take_are_kept_for_when_the_trial_joins_again(
    lab, tmp_path
):
    worker = worker_of(lab.group("bert"), tmp_path, known=False)
    news = Evaluated(
        evaluation=Evaluation(step=5, samples_seen=5, epoch=1, val_loss=1.0, probe_loss=1.0)
    )
    worker.tell("a", news)
    assert worker.unacknowledged == {"a": news}
    worker._client.known = True
    worker.tell("a", worker.unacknowledged.pop("a"))
    assert worker.unacknowledged == {}


def test_workers_wait_for_the_first_as_long_as_a_job_takes_it(tmp_path, monkeypatch):
    """Torch's own limit is half an hour."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        group = CoordinatorClient(SimpleNamespace(), 1, 2)._process_group
        assert group._get_backend(torch.device("cpu")).options._timeout >= timedelta(days=7)
    finally:
        torch.distributed.destroy_process_group()


# --- how many trials, in passes of how many tokens ---


class Timed:
    """A group whose steps take the seconds given, by the number of copies."""

    def __init__(self, seconds: dict[int, Any]) -> None:
        self.seconds, self.asked = seconds, []

    def time_step(self, hp: Any, copies: int) -> float:
        self.asked.append(copies)
        if isinstance(self.seconds[copies], Exception):
            raise self.seconds[copies]
        return self.seconds[copies]


@pytest.mark.parametrize(
    ("seconds", "limit", "asked"),
    [
        ({1: 1.0, 2: 1.2, 4: 1.5, 8: 2.0, 16: 9.0}, 8, [1, 2, 4, 8, 16]),
        ({1: 1.0, 2: 2.3}, 1, [1, 2]),
        ({1: torch.OutOfMemoryError(OUT)}, 1, [1]),
        ({1: 1.0, 2: 1.2, 4: torch.OutOfMemoryError(OUT)}, 2, [1, 2, 4]),
        ({1: 1.0, 2: NotShared("alone")}, 1, [1, 2]),
    ],
)
def test_what_does_not_fit_is_not_tried_five_times_as_large(seconds, limit, asked):
    group, params = (
        Timed(seconds),
        {"method": "lora", "learning_rate": 1e-3, "batch_size": 4, "epochs": 1},
    )
    assert trials_that_pay(group, params, 16, Client()) == limit and group.asked == asked


def test_a_broken_accelerator_is_no_measurement():
    params = {"method": "lora", "learning_rate": 1e-3, "batch_size": 4, "epochs": 1}
    with pytest.raises(torch.AcceleratorError):
        trials_that_pay(
            Timed({1: torch.AcceleratorError("CUDA error: unknown error")}), params, 16, Client()
        )


def runs_out_above(lab: Any, tokens: int) -> list[int]:
    """Passes of the base with more than so many tokens run out of memory."""
    sizes: list[int] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        sizes.append(kwargs["input_ids"].numel())
        if module.training and sizes[-1] > tokens:
            raise torch.OutOfMemoryError(OUT)

    lab.bases[-1].model.register_forward_pre_hook(hook, with_kwargs=True)
    return sizes


def test_a_step_that_is_timed_finds_its_budget_as_a_step_does(lab):
    """`auto` would take too large a pass for too many trials."""
    group = lab.group("bert", max_tokens=400)
    group.untuned_results("lora")
    sizes = runs_out_above(lab, 40)
    assert 0 < group.time_step(lab.params("lora", batch_size=18), 4) < 60
    assert max(sizes) > 40 >= sizes[-1]


def test_the_token_budget_grows_again_after_some_time():
    budget = TokenBudget(100)
    budget.halve(1)
    budget.halve(1)
    assert budget.tokens == 25
    for _ in range(TokenBudget.PATIENCE):
        budget.begin(1)
        assert budget.tokens == 25
        budget.made_step()
    assert budget.tokens == 50
    for _ in range(3 * TokenBudget.PATIENCE):
        budget.made_step()
    assert budget.tokens == 100


def test_the_token_budget_is_whole_again_when_fewer_are_on_the_slot(lab):
    group = lab.group("bert", max_tokens=400)
    for trial in "ab":
        group.join(trial, lab.params("lora", batch_size=18))
    sizes = runs_out_above(lab, 40)

    def largest() -> int:
        tried = len(sizes)
        group.step(group.trials)
        return max(sizes[tried:])

    assert largest() > 40 >= sizes[-1]
    assert largest() <= 40, "it does not run out again at each step"
    group.leave("b")
    assert largest() > 40 >= largest()
    group.join("c", lab.params("lora", batch_size=18))
    assert largest() <= 40
    group.leave("a")
    group.leave("c")
    group.join("next", lab.params("qlora", batch_size=18))  # over another base
    runs_out_above(lab, 40)
    assert group._budget.tokens == 400


# --- memory that is given back ---


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_old_base_is_gone_before_the_new_one_is_loaded(lab, method):
    """Without Python's collector of cycles, which comes when it likes: quantised weights and their layers hold each other."""
    group = lab.group("llama")
    load, alive = group._load_base, []

    def loading(*args: Any) -> Any:
        alive.append([ref for ref in old if ref() is not None])
        return dataclasses.replace(load(*args))

    group._load_base = loading
    old: list[Any] = []
    gc.disable()
    try:
        for kind in (method, "full" if method == "qlora" else "qlora", method):
            group.join("a", lab.params(kind))
            group.step(["a"])
            group.leave("a")
            assert lab.bases.pop() is not None
            old = [weakref.ref(parameter) for parameter in group._base.model.parameters()]
            assert all(ref() is not None for ref in old)
    finally:
        gc.enable()
    assert alive == [[], [], []]


def test_memory_is_given_back_when_nothing_holds_the_graph_any_more(lab, monkeypatch):
    """Not inside `except`: there the traceback refers to all that was computed."""
    group = lab.group("bert", max_tokens=400)
    group.join("a", lab.params("lora", batch_size=18))
    outputs: list[Any] = []
    lab.bases[-1].model.get_input_embeddings().register_forward_hook(
        lambda *args: outputs.append(weakref.ref(args[-1]))
    )
    released: list[list[bool]] = []
    for module in (trainables.engine.group, trainables.engine.scoring):
        monkeypatch.setattr(
            module,
            "release",
            lambda device: released.append([ref() is not None for ref in outputs]),
        )
    sizes: list[int] = []

    def run_out(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        sizes.append(kwargs["input_ids"].numel())
        if len(sizes) == 1:
            raise torch.OutOfMemoryError(OUT)

    lab.bases[-1].model.register_forward_hook(run_out, with_kwargs=True)
    group.step(["a"])
    assert released == [[False]]
    sizes.clear()
    outputs.clear()
    group.evaluate(["a"])
    assert released[1:] == [[False]]


# --- a base that fits no device ---


def test_a_base_that_fits_no_device_is_refused_with_its_estimate():
    large = MemoryEstimate(base=30 * GB, activations=GB, per_trial=GB, shared=True)
    small = MemoryEstimate(base=8 * GB, activations=GB, per_trial=GB // 10, shared=True)
    assert too_large({"lora at rank 8": large}, 31 * GB) is None, (
        "passes may be as small as one row"
    )
    assert too_large({"lora at rank 8": large, "qlora at rank 8 over nf4": small}, 16 * GB) is None
    assert too_large({}, 16 * GB) is None
    assert too_large({"full": large, "lora at rank 8": small}, 8 * GB) == (
        "model.name: does not fit a device of 7.5 GiB: lora at rank 8 takes 7.5 GiB for the base and 95.4 MiB for a trial; "
        "take a smaller model, method qlora, or a larger device"
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_worker_tells_of_the_slot_and_each_of_its_memory(lab, tmp_path, rank):
    group = lab.group("bert")
    first_attempt, not_lost = (1, None), ""
    worker = SlotWorker(
        config=SimpleNamespace(first=""),
        client=Client(first=(first_attempt, not_lost) if rank else None),
        groups={"": group},
        store=Store(str(tmp_path)),
        rank=rank,
        size=2,
    )
    worker.join("a", {"method": "lora", "learning_rate": 1e-3, "batch_size": 4, "epochs": 1})
    with worker.meter.spends("training"):
        group.step(["a"])
    told = {each.metric: (each.value, each.labels) for each in worker.readings()}
    memory, labels = told.pop("sweeps_slot_memory_bytes")
    assert memory is not None and memory > 1e6
    assert labels == {"worker": str(rank), "device": "cpu"}
    assert not worker.meter.due
    if rank:
        assert told == {}
    else:
        assert told["sweeps_slot_samples"] == (4, {}) and "sweeps_slot_seconds" in told


def test_a_slot_holds_one_base_model_at_a_time(lab, tmp_path):
    """Of several: a trial over another takes the place of the one that nobody is on any more."""
    groups = {"small": lab.group("bert"), "large": lab.group("bert")}
    worker = SlotWorker(
        config=SimpleNamespace(first="small"),
        client=Client(),
        groups=groups,
        store=Store(str(tmp_path)),
        rank=0,
        size=1,
    )
    params = {"method": "lora", "learning_rate": 1e-3, "batch_size": 4, "epochs": 1}
    worker.join("a", {**params, "model": "small"})
    with pytest.raises(AssertionError):
        worker.join("b", {**params, "model": "large"})
    groups["small"].leave("a")
    worker.join("b", {**params, "model": "large"})
    assert groups["large"].trials == ["b"] and groups["small"]._base is None
