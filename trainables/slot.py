"""A slot: one long-lived Ray Train run that holds the base model and trains the trials that board it.

Who is on board is kept by the sweep's mailbox, a small actor. Trials (trial.py) ask it to `advance`; slots `take` the
board that they should have, compare it with the one they have, and `publish` what came of it. Boards are states, not
messages: a slot that restarts reads its board again, boards the trials from their last checkpoints, and nobody else
need know.
"""

import asyncio
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from trainables.errors import InputError
from trainables.hyperparameters import parse
from trainables.model import ModelConfig

TAKE_TIMEOUT_S = 10.0  # a slot without news looks again after this long
MAX_CRASHES = 3  # a trial whose slot dies this often with no evaluation in between has failed


@dataclass(frozen=True, kw_only=True)
class SlotConfig:
    """All that a worker of a slot needs to know; the same for every slot of a sweep, but for its name."""

    slot: str
    mailbox: str  # name of the actor
    namespace: str
    storage: str  # URL or folder of the sweep
    model: ModelConfig
    task: str
    baseline_method: str  # the base that this method trains over is measured untuned
    seed: int
    pad_token_id: int
    evaluate_every: int | None
    max_tokens: int | None
    precision: str
    gradient_checkpointing: bool
    probe_rows: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Board:
    """The trials that should be on a slot: parameters of each, and whether it may train on towards its next evaluation."""

    version: int
    trials: dict[str, tuple[dict[str, Any], bool]] = field(default_factory=dict)
    baseline: bool = False  # measure the untuned base first
    stop: bool = False


@dataclass(kw_only=True)
class _Passenger:
    params: dict[str, Any]
    waiter: asyncio.Future
    go: bool = True
    slot: str | None = None
    crashes: int = 0


@dataclass(kw_only=True)
class _Place:
    capacity: int
    version: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Mailbox:
    """Who waits, who is on board where, and what came of it. An actor; all of it can be rebuilt by asking again."""

    def __init__(self, sweep: str) -> None:
        self._sweep = sweep
        self._passengers: dict[str, _Passenger] = {}
        self._slots: dict[str, _Place] = {}
        self._progress: dict[str, dict[str, Any]] = {}
        self._lost: dict[str, str] = {}
        self._stop: str | None = None
        self._close = False
        self._baseline: dict[str, Any] | None = None
        self._baseline_slot: str | None = None

    def __repr__(self) -> str:
        return f"{self._sweep}:mailbox"

    # --- for trials ---

    async def advance(self, trial: str, params: dict[str, Any]) -> dict[str, Any]:
        """Wait for the next evaluation of `trial` (it boards a slot first if it is on none) and return what came of it."""
        if self._stop is not None:
            return {"stopped": self._stop}
        passenger = self._passengers.get(trial)
        if passenger is None:
            passenger = _Passenger(params=params, waiter=asyncio.get_running_loop().create_future())
            self._passengers[trial] = passenger
        else:
            passenger.go = True
            if passenger.waiter.done():
                passenger.waiter = asyncio.get_running_loop().create_future()
        self._assign()
        if passenger.slot is not None:
            self._touch(passenger.slot)
        return await asyncio.shield(passenger.waiter)

    async def leave(self, trial: str) -> None:
        passenger = self._passengers.pop(trial, None)
        self._progress.pop(trial, None)
        if passenger is not None and not passenger.waiter.done():
            passenger.waiter.set_result({"stopped": "it left"})
        if passenger is not None and passenger.slot is not None:
            self._touch(passenger.slot)
        self._assign()

    # --- for slots ---

    async def register(self, slot: str, capacity: int) -> Board:
        """A slot's workers have started (again): whoever was on board goes on from the last checkpoint."""
        for trial, passenger in list(self._passengers.items()):
            if passenger.slot == slot:
                passenger.crashes += 1
                if passenger.crashes >= MAX_CRASHES:
                    self._answer(
                        trial, {"failed": f"its worker process died {MAX_CRASHES} times with no evaluation in between"}
                    )
        self._slots[slot] = _Place(
            capacity=capacity, version=self._slots[slot].version + 1 if slot in self._slots else 1
        )
        if self._baseline is None and self._baseline_slot is None:
            self._baseline_slot = slot
        self._assign()
        return self._board(slot)

    async def take(self, slot: str, version: int) -> Board | None:
        """The board of `slot`, as soon as it differs from `version`. None: the slot is unknown here and must register."""
        place = self._slots.get(slot)
        if place is None:
            return None
        if place.version <= version and not self._close:
            place.changed.clear()
            try:
                await asyncio.wait_for(place.changed.wait(), TAKE_TIMEOUT_S)
            except TimeoutError:
                pass
        return self._board(slot) if slot in self._slots else None  # it may have been lost in the meantime

    async def publish(self, slot: str, trial: str, outcome: dict[str, Any]) -> Board | None:
        """What came of `trial`: {"evaluation": …} (it waits for the next advance), or {"failed": …} / {"diverged": …}."""
        passenger = self._passengers.get(trial)
        if passenger is not None and passenger.slot == slot:
            passenger.crashes = 0
            self._answer(trial, outcome)
            self._touch(slot)
        return self._board(slot) if slot in self._slots else None

    async def publish_baseline(self, slot: str, baseline: dict[str, Any]) -> Board | None:
        self._baseline = baseline
        self._touch(slot)
        return self._board(slot) if slot in self._slots else None

    async def progress(self, trial: str, samples_seen: int, samples_per_s: float) -> None:
        if trial in self._passengers:
            self._progress[trial] = {"samples_seen": samples_seen, "samples_per_s": samples_per_s}

    # --- for the sweep ---

    async def skip_baseline(self) -> None:
        """The untuned base was measured by an earlier process of the sweep."""
        self._baseline_slot = "-"

    async def slot_broken(self, slot: str, error: str) -> None:
        """A slot cannot start; its run ends, and the sweep learns why from `slot_lost`."""
        self._lost[slot] = error

    async def slot_lost(self, slot: str, error: str) -> None:
        """A slot is gone for good; its trials board another."""
        self._lost.setdefault(slot, error)
        self._slots.pop(slot, None)
        if self._baseline_slot == slot and self._baseline is None:
            self._baseline_slot = min(self._slots, default=None)
            if self._baseline_slot is not None:
                self._touch(self._baseline_slot)
        for passenger in self._passengers.values():
            if passenger.slot == slot:
                passenger.slot, passenger.crashes = None, passenger.crashes + 1
        self._assign()

    async def stop_trials(self, reason: str) -> None:
        """Answer every waiting trial with {"stopped": reason}, now and from now on."""
        self._stop = reason
        for trial in list(self._passengers):
            self._answer(trial, {"stopped": reason})
            await self.leave(trial)

    async def close(self) -> None:
        """Let the slots end."""
        self._close = True
        for slot in self._slots:
            self._touch(slot)

    async def snapshot(self) -> dict[str, Any]:
        """For the live table: slots that run, where each trial is and how far it got, the baseline."""
        return {
            "slots": {slot: [t for t, p in self._passengers.items() if p.slot == slot] for slot in self._slots},
            "lost": dict(self._lost),
            "progress": dict(self._progress),
            "baseline": self._baseline,
        }

    # --- inside ---

    def _answer(self, trial: str, outcome: dict[str, Any]) -> None:
        passenger = self._passengers[trial]
        passenger.go = False
        if not passenger.waiter.done():
            passenger.waiter.set_result(outcome)

    def _assign(self) -> None:
        for trial, passenger in self._passengers.items():
            if passenger.slot is None and passenger.go:
                aboard = {slot: sum(p.slot == slot for p in self._passengers.values()) for slot in self._slots}
                free = [slot for slot, place in self._slots.items() if aboard[slot] < place.capacity]
                if not free:
                    return
                passenger.slot = min(free, key=lambda slot: (aboard[slot], slot))
                self._touch(passenger.slot)
                self._progress.setdefault(trial, {"samples_seen": 0, "samples_per_s": 0.0})

    def _touch(self, slot: str) -> None:
        if slot in self._slots:
            self._slots[slot].version += 1
            self._slots[slot].changed.set()

    def _board(self, slot: str) -> Board:
        trials = {t: (p.params, p.go) for t, p in self._passengers.items() if p.slot == slot}
        return Board(
            version=self._slots[slot].version,
            trials=trials,
            baseline=self._baseline is None and self._baseline_slot == slot,
            stop=self._close,
        )


def start_mailbox(sweep: str, name: str) -> Any:
    """The mailbox of a sweep, beside the driver; it comes back by itself, and is told everything again by who asks."""
    return (
        ray.remote(Mailbox)
        .options(
            name=name,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=10_000,
            label_selector={ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()},
        )
        .remote(sweep)
    )


class NamePlate:
    """A trial's row in the dashboard's Actors page, alive while it runs: the actors of `Trial` carry one after another.

    It stands here and not beside `Trial` because its process then need not import Ray Tune.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def name_plate(trial: str, text: str) -> Any:
    """A running actor named after `trial`; `ray.kill` ends it. It is not waited for."""
    return ray.remote(NamePlate).options(name=f"trial {trial}", num_cpus=0, max_restarts=-1).remote(text)


class _Link:
    """A worker's view of its slot's board: rank 0 asks the mailbox and tells the other workers."""

    def __init__(self, config: SlotConfig, rank: int, size: int) -> None:
        self._config = config
        self._rank, self._size = rank, size
        self._mailbox = ray.get_actor(config.mailbox, namespace=config.namespace) if rank == 0 else None
        self._group: Any = None
        self._pending: Any = None
        self.board = Board(version=0)
        if size > 1:
            import torch.distributed

            self._group = torch.distributed.new_group(backend="gloo")  # boards are objects: the CPU carries them

    def register(self, capacity: int) -> None:
        if self._rank == 0:
            self.board = ray.get(self._mailbox.register.remote(self._config.slot, capacity))
        self._share()

    def refresh(self, capacity: int, *, block: bool) -> None:
        """Look for a newer board; with `block`, wait for one (at most some seconds)."""
        if self._rank == 0:
            if self._pending is None:
                self._pending = self._mailbox.take.remote(self._config.slot, self.board.version)
            ready, _ = ray.wait([self._pending], timeout=None if block else 0)
            if ready:
                board, self._pending = ray.get(self._pending), None
                self._accept(board, capacity)
        self._share()

    def tell(self, trial: str, outcome: dict[str, Any], capacity: int) -> None:
        """Rank 0 publishes what came of `trial`; the other workers are not told of the board that follows from it."""
        if self._rank == 0:
            self._accept(ray.get(self._mailbox.publish.remote(self._config.slot, trial, outcome)), capacity)

    def publish(self, trial: str, outcome: dict[str, Any], capacity: int) -> None:
        self.tell(trial, outcome, capacity)
        self._share()

    def publish_baseline(self, baseline: dict[str, Any], capacity: int) -> None:
        if self._rank == 0:
            self._accept(ray.get(self._mailbox.publish_baseline.remote(self._config.slot, baseline)), capacity)
        self._share()

    def broken(self, error: str) -> None:
        if self._rank == 0:
            ray.get(self._mailbox.slot_broken.remote(self._config.slot, error))

    def first_of_all(self, value: str | None) -> str | None:
        """The first value that is not None of any worker, on every worker."""
        values: list[str | None] = [value]
        if self._size > 1:
            import torch.distributed

            values = [None] * self._size
            torch.distributed.all_gather_object(values, value, group=self._group)
        return next((each for each in values if each is not None), None)

    def from_rank_zero(self, value: Any) -> Any:
        """The value that rank 0 passes, on every worker."""
        if self._size == 1:
            return value
        import torch.distributed

        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def progress(self, trial: str, samples_seen: int, samples_per_s: float) -> None:
        if self._rank == 0:
            self._mailbox.progress.remote(trial, samples_seen, samples_per_s)

    def _accept(self, board: Board | None, capacity: int) -> None:
        if board is None:  # the mailbox was restarted: it learns of this slot again, and the trials board it again
            self.board = Board(version=0)
            self.board = ray.get(self._mailbox.register.remote(self._config.slot, capacity))
        elif board.version > self.board.version or board.stop:
            self.board = board

    def _share(self) -> None:
        self.board = self.from_rank_zero(self.board)


def slot_loop(loop_config: dict[str, SlotConfig]) -> None:
    """What every worker of a slot runs: read the board, let trials leave and join, step, evaluate, save, publish."""
    import ray.train

    config = loop_config["config"]
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    link = _Link(config, rank, size)
    attempts: dict[str, int] = {}
    wrong: str | None = None
    try:
        store, pack = _prepare(config, rank, size)
    except Exception as error:  # a slot that cannot start would fail again: it ends and says why, and is not restarted
        traceback.print_exc()
        wrong = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    if wrong := link.first_of_all(wrong):
        link.broken(wrong)
        return
    link.register(pack.capacity)
    while True:
        link.refresh(
            pack.capacity, block=not any(go for _, go in link.board.trials.values()) and not link.board.baseline
        )
        if link.board.stop:
            return
        for trial in [t for t in pack.trials if t not in link.board.trials]:
            pack.leave(trial)
        if link.board.baseline and not pack.trials:
            link.publish_baseline(_measure_baseline(pack, config.baseline_method), pack.capacity)
        for trial, (params, go) in link.board.trials.items():
            if go and trial not in pack.trials:
                _guard(
                    link,
                    pack,
                    trial,
                    store,
                    size,
                    lambda t=trial, p=params: _join(t, p, pack, store, attempts, link, rank),
                )
        for trial in [t for t in pack.trials if link.board.trials.get(t, (None, False))[1]]:
            _guard(link, pack, trial, store, size, lambda t=trial: _advance(t, pack, store, attempts, link, rank))


def _prepare(config: SlotConfig, rank: int, size: int) -> tuple[Any, Any]:
    """Everything that is paid once per slot: imports, data, tokenizer; the base is loaded when a trial first needs it."""
    import ray.train.torch
    import torch

    from trainables.data.prepare import open_split
    from trainables.model import base_dtype, check_files, load_model, quiet
    from trainables.pack import Pack, PackSettings, World
    from trainables.store import Store
    from trainables.tasks import TASKS

    quiet()
    torch.set_num_threads(max(1, config.threads))
    device = ray.train.torch.get_device()
    store = Store(config.storage)
    data = store.fetch("data", Path(os.environ.get("TMPDIR", "/tmp")) / f"finetune-sweeps-{os.getpid()}")
    manifest = store.read_json("data/manifest.json")
    task = TASKS[config.task]
    check_files(config.model)

    def load_base(variant: Any, dtype: Any) -> Any:
        return load_model(
            config.model,
            auto_class=task.auto_class,
            variant=variant,
            dtype=dtype,
            device=device,
            seed=config.seed,
            pad_token_id=config.pad_token_id,
            model_kwargs=task.model_kwargs(manifest),
        )

    bf16 = config.precision == "bfloat16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    pack = Pack(
        load_base=load_base,
        base_dtype=lambda method: base_dtype(config.model, method, task.auto_class, device),
        task=task,
        train=open_split(data, "train"),
        validation=open_split(data, "validation"),
        pad_token_id=config.pad_token_id,
        settings=PackSettings(
            evaluate_every=config.evaluate_every,
            max_tokens=config.max_tokens or (16384 if device.type == "cuda" else 4096),
            autocast=torch.bfloat16 if bf16 else None,
            gradient_checkpointing=config.gradient_checkpointing,
            probe_rows=config.probe_rows,
            seed=config.seed,
        ),
        device=device,
        world=World(rank=rank, size=size),
    )
    return store, pack


def _measure_baseline(pack: Any, method: str) -> dict[str, Any]:
    """The untuned base's numbers, or {"error": …}: a sweep is possible without them."""
    from trainables.checkpoints import finite_or_none

    try:
        val_loss, probe_loss, metrics = pack.evaluate_base(method)
    except Exception as error:  # the trials will meet the same fault, each at its own border
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    return finite_or_none({"val_loss": val_loss, "probe_loss": probe_loss, "metrics": metrics})


def _join(
    trial: str, params: dict[str, Any], pack: Any, store: Any, attempts: dict[str, int], link: _Link, rank: int
) -> None:
    """Board a trial: a new attempt, going on from the newest evaluation that can be resumed, if there is one."""
    from trainables.checkpoints import EVALUATION, begin_attempt

    attempts[trial], origin = link.from_rank_zero(begin_attempt(store, trial) if rank == 0 else None)
    if origin is None:
        pack.join(trial, parse(params))
        return
    record = store.read_json(f"{origin}/{EVALUATION}")
    if record["finished"]:  # all was done before the cut; only the news of it was lost
        link.publish(trial, {"evaluation": record}, pack.capacity)
        return
    with tempfile.TemporaryDirectory() as scratch:
        pack.join(trial, parse(params), store.fetch(origin, Path(scratch)))


def _advance(trial: str, pack: Any, store: Any, attempts: dict[str, int], link: _Link, rank: int) -> None:
    """Train `trial` until its next evaluation is published, or until it should no longer be on board."""
    from trainables.checkpoints import write_evaluation

    began, seen, told = time.monotonic(), pack.progress(trial), time.monotonic()
    while not pack.step([trial]):
        if time.monotonic() - told > 1.0:
            told = time.monotonic()
            link.progress(trial, pack.progress(trial), (pack.progress(trial) - seen) / (told - began))
        link.refresh(pack.capacity, block=False)
        if link.board.stop or trial not in link.board.trials:
            return
    evaluation = pack.evaluate([trial])[trial]
    record = None
    if rank == 0:
        record = write_evaluation(store, trial, attempts[trial], evaluation, lambda folder: pack.save(trial, folder))
        link.progress(trial, record["samples_seen"], (record["samples_seen"] - seen) / (time.monotonic() - began))
    link.publish(trial, {"evaluation": record}, pack.capacity)


def _guard(link: _Link, pack: Any, trial: str, store: Any, size: int, action: Callable[[], None]) -> None:
    """Run `action`; what goes wrong there is this trial's end, not the slot's."""
    from trainables.pack import NonFinite

    try:
        action()
        return
    except NonFinite as error:
        outcome = {"diverged": str(error)}
    except InputError as error:
        outcome = {"failed": str(error)}
    except Exception as error:  # the border between a trial and its slot: whatever it was, the slot goes on
        outcome = {
            "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[
                :500
            ]
        }
        log = f"trials/{trial}/error.txt"
        store.write_bytes(log, traceback.format_exc().encode())
        outcome["log"] = store.path(log)
        if size > 1:  # the other workers stand in the middle of a collective call: only a restart frees them
            link.tell(trial, outcome, pack.capacity)
            raise
    if trial in pack.trials:
        pack.leave(trial)
    link.publish(trial, outcome, pack.capacity)


def run_slot(config: SlotConfig, *, workers: int, resources_per_worker: dict[str, float], folder: str) -> None:
    """Start a slot and wait for its end. Raises what ended it when Ray Train gave up restarting its workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
    from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup

    class NameWorkers(ControllerCallback):
        """Ray Train's workers all look alike in the dashboard: here they show the slot that they work for."""

        def after_controller_start(self, *_: Any) -> None:  # in the controller's process, which is this slot's alone
            name = config.slot
            WorkerGroup._worker_cls = type("Slot", (RayTrainWorker,), {"__repr__": lambda self: name})

    gpu = resources_per_worker.get("GPU", 0) > 0
    TorchTrainer(
        slot_loop,
        train_loop_config={"config": config},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=dict(resources_per_worker)),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name=config.slot,
            storage_path=folder,
            failure_config=FailureConfig(max_failures=1000),
            callbacks=[NameWorkers()],
            worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}},
        ),
    ).fit()
