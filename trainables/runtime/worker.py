"""What every worker of a slot runs."""

import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainables.engine.memory import too_large
from trainables.errors import InputError
from trainables.evaluation.record import MeasuredEvaluation
from trainables.hyperparameters import parse
from trainables.runtime.capacity import trials_that_pay
from trainables.runtime.client import CoordinatorClient
from trainables.runtime.failures import ends_worker, first_line
from trainables.runtime.protocol import SlotConfig


def slot_loop(loop_config: dict[str, SlotConfig]) -> None:
    """What every worker of a slot runs: read the assignment, let trials leave and join, step,
    evaluate, save, publish.
    """
    import ray.train

    config = loop_config["config"]
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    link = CoordinatorClient(config, rank, size)
    wrong: str | None = None
    try:
        store, group = open_slot(config, rank, size)
    # a slot that cannot start would fail again: it ends and says why, and is not restarted
    except Exception as error:
        traceback.print_exc()
        wrong = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    if wrong := next((each for each in link.gather(wrong) if each is not None), None):
        link.broken(wrong)
        return
    link.register()
    worker = SlotWorker(config=config, link=link, group=group, store=store, rank=rank, size=size)
    while True:
        assignment = link.assignment
        waiting = (
            any(go for _, go in assignment.trials.values())
            or assignment.baseline
            or assignment.profile
            or assignment.job
        )
        link.refresh(block=not waiting)
        assignment = link.assignment
        if assignment.stop:
            return
        for trial in [t for t in group.trials if t not in assignment.trials]:
            group.leave(trial)
        if assignment.baseline and not group.trials:
            link.publish("publish_baseline", worker.evaluate_untuned(config.baseline))
        if assignment.job is not None and not group.trials:
            name, what = assignment.job
            group.forget_base()
            link.publish(
                "publish_job", name, link.from_rank_zero(worker.job(what) if rank == 0 else None)
            )
        for sort, params in assignment.profile.items():
            link.publish("publish_limit", sort, trials_that_pay(group, params, config.most, link))
        for trial, (_, may_train) in assignment.trials.items():
            if may_train and trial in worker.unacknowledged:
                worker.tell(trial, worker.unacknowledged.pop(trial))
        assignment = link.assignment
        for trial, (params, may_train) in assignment.trials.items():
            if may_train and trial not in group.trials:
                worker.guard([trial], lambda t=trial, p=params: worker.join(t, p))
        training = [t for t in group.trials if link.assignment.trials.get(t, (None, False))[1]]
        if training:
            worker.guard(training, lambda trials=training: worker.step(trials))


def open_slot(config: SlotConfig, rank: int, size: int) -> tuple[Any, Any]:
    """Everything that is paid once per slot: imports, data, tokenizer; the base is loaded when a
    trial first needs it.
    """
    import ray.train.torch
    import torch

    from trainables.engine.budget import MICRO_BATCH_TOKENS
    from trainables.engine.distributed import World
    from trainables.engine.group import GroupSettings, open_group
    from trainables.models.files import check_files, quiet
    from trainables.models.precision import computes_in_bf16
    from trainables.storage.store import Store

    quiet()
    torch.set_num_threads(max(1, config.threads))
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        why = too_large(config.estimates, torch.cuda.get_device_properties(device).total_memory)
        if why is not None:
            raise InputError(why)
    store = Store(config.storage)
    check_files(config.model)
    bf16 = config.precision == "bfloat16" or (
        config.precision == "auto" and computes_in_bf16(device)
    )
    settings = GroupSettings(
        evaluate_every=config.evaluate_every,
        max_tokens=config.max_tokens or MICRO_BATCH_TOKENS[device.type],
        autocast=torch.bfloat16 if bf16 else None,
        save_dtype=None if config.save_dtype == "auto" else getattr(torch, config.save_dtype),
        gradient_checkpointing=config.gradient_checkpointing,
        probe_rows=config.probe_rows,
        seed=config.seed,
        forgetting=config.forgetting,
    )
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        # a group maps the files of an object store's copy into memory, and they then need no name:
        # whenever and however
        # a worker ends, it leaves none behind
        group = open_group(
            store.fetch("data", Path(scratch)),
            model=config.model,
            task=config.task,
            pad_token_id=config.pad_token_id,
            settings=settings,
            device=device,
            world=World(rank=rank, size=size),
        )
    return store, group


class SlotWorker:
    """What a worker does with the trials on the slot."""

    def __init__(
        self,
        *,
        config: SlotConfig,
        link: CoordinatorClient,
        group: Any,
        store: Any,
        rank: int,
        size: int,
    ) -> None:
        self._config = config
        self._link, self._group, self._store = link, group, store
        self._rank, self._size = rank, size
        self._attempts: dict[str, int] = {}
        self._began: dict[
            str, tuple[float, int]
        ] = {}  # when a trial last began to train towards an evaluation, and where
        self._told = 0.0
        self.unacknowledged: dict[
            str, dict[str, Any]
        ] = {}  # what came of trials when the coordinator had just been restarted

    def join(self, trial: str, params: dict[str, Any]) -> None:
        """Assignment a trial: a new attempt, going on from the newest evaluation that can be
        resumed, if there is one.
        """
        from trainables.storage.checkpoints import begin_attempt, read_evaluation

        group, link, store = self._group, self._link, self._store
        self._attempts[trial], origin = link.from_rank_zero(
            begin_attempt(store, trial) if self._rank == 0 else None
        )
        if origin is None:
            joined = self._make_room(trial, params, None)
        else:
            record = read_evaluation(store, origin)
            if record.finished:  # all was done before the cut; only the news of it was lost
                self.tell(trial, {"evaluation": record})
                return
            with tempfile.TemporaryDirectory() as scratch:
                joined = self._make_room(trial, params, store.fetch(origin, Path(scratch)))
        if joined:
            self._began[trial] = (time.monotonic(), group.progress(trial))

    def _make_room(self, trial: str, params: dict[str, Any], checkpoint: Path | None) -> bool:
        """Whether there was room beside those on the slot; a trial that does not fit even alone has
        failed.
        """
        import torch

        from trainables.engine.group import NotShared

        group, hp, company = self._group, parse(params), len(self._group.trials)
        if not company:
            group.join(trial, hp, checkpoint)
            return True
        room = True
        try:
            group.join(trial, hp, checkpoint)
        except (torch.OutOfMemoryError, NotShared):
            room = False
        if all(self._link.gather(room)):
            return True
        if trial in group.trials:
            group.leave(trial)
        self._link.publish("no_room", trial, company)
        return False

    def tell(self, trial: str, outcome: dict[str, Any]) -> None:
        """Publish what came of a trial; a coordinator that has forgotten it is told again when the
        trial assignments again.
        """
        if not self._link.publish("publish", trial, outcome):
            self.unacknowledged[trial] = outcome

    def step(self, trials: list[str]) -> None:
        """One step for `trials`; whoever's evaluation is due then is evaluated, saved and
        published.
        """
        from trainables.engine.group import NonFinite

        group = self._group
        try:
            due = group.step(trials)
        except NonFinite as error:
            for trial, reason in error.reasons.items():
                group.leave(trial)
                self.tell(trial, {"diverged": reason})
            due = group.due(trial for trial in trials if trial not in error.reasons)
        if due:
            for trial, evaluation in group.evaluate(due).items():
                self.guard([trial], lambda t=trial, e=evaluation: self._publish(t, e))
        elif time.monotonic() - self._told > 1.0:
            self._told = time.monotonic()
            for trial in trials:
                if trial in group.trials:
                    self._tell_progress(trial)

    def _publish(self, trial: str, evaluation: MeasuredEvaluation) -> None:
        from trainables.storage.checkpoints import write_evaluation

        record = None
        if self._rank == 0:
            attempt = self._attempts[trial]
            record = write_evaluation(
                self._store,
                trial,
                attempt,
                evaluation,
                lambda folder: self._group.save(trial, folder),
            )
            self._tell_progress(trial)
        self.tell(trial, {"evaluation": record})
        self._began[trial] = (time.monotonic(), self._group.progress(trial))

    def _tell_progress(self, trial: str) -> None:
        began, seen = self._began[trial]
        now = self._group.progress(trial)
        self._link.progress(trial, now, (now - seen) / max(time.monotonic() - began, 1e-9))

    def evaluate_untuned(self, params: dict[str, Any]) -> dict[str, Any]:
        """The untuned base's numbers, or {"error": …}: a sweep is possible without them."""
        from trainables.storage.checkpoints import write_rows
        from trainables.storage.records import finite_or_none

        try:
            hp = parse(params)
            measured, probed = self._group.untuned_results(hp.method, hp.options)
            metrics = self._group.metrics(measured)
            if self._rank == 0:
                write_rows(
                    self._store, "baselines/validation/untuned", measured.losses, measured.classes
                )
        except Exception as error:  # the trials will meet the same fault, each at its own border
            traceback.print_exc()
            if ends_worker(error):
                raise
            return {"error": f"{type(error).__name__}: {error}"}
        return finite_or_none(
            {"val_loss": measured.loss, "probe_loss": probed.loss, "metrics": metrics}
        )

    def job(self, what: dict[str, Any]) -> dict[str, Any]:
        """What came of an job, or {"error": …}: a sweep is possible without."""
        from trainables.evaluation.jobs import run

        try:
            return run(self._store, self._config, what)
        except Exception as error:  # the border between an job and its slot
            traceback.print_exc()
            if ends_worker(error):
                raise
            return {"error": first_line(error)}

    def guard(self, trials: list[str], action: Callable[[], None]) -> None:
        """Run `action`; what goes wrong there is the end of a trial, not of the slot. Whose end it
        is, with several on assignment, shows when each has gone on alone.
        """
        import torch

        group, link, apart = self._group, self._link, len(trials) > 1
        try:
            action()
            return
        except InputError as error:
            outcome = {"failed": str(error), "certain": True}
        except (
            Exception
        ) as error:  # the border between a trial and its slot: whatever it was, the slot goes on
            outcome = {"failed": first_line(error)}
            if isinstance(error, torch.OutOfMemoryError):
                apart = len({*group.trials, *trials}) > 1  # also those that wait take memory
                outcome["failed"] = f"it does not fit the device even alone: {outcome['failed']}"[
                    :500
                ]
            log = f"trials/{trials[0]}/error.txt"
            self._store.write_bytes(log, traceback.format_exc().encode())
            outcome["log"] = self._store.path(log)
            if ends_worker(error):
                raise
            if (
                self._size > 1
                # the other workers stand in a collective call: only a restart frees them
            ):
                if apart:
                    link.tell("isolate", trials)
                else:
                    link.tell("publish", trials[0], outcome)
                raise
        for trial in trials:
            if trial in group.trials:
                group.leave(trial)
        if apart:
            link.publish("isolate", trials)
        else:
            self.tell(trials[0], outcome)
