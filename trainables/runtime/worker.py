"""What every worker of a slot runs."""

import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from trainables.data.manifest import data_of
from trainables.engine.memory import estimate_of, gib, held, size_of, too_large
from trainables.errors import InputError
from trainables.evaluation.record import (
    Job,
    JobFailed,
    JobResult,
    MeasuredEvaluation,
    Untuned,
    UntunedFailed,
    UntunedResults,
    untuned_name,
)
from trainables.hyperparameters import base_of, parse
from trainables.runtime.answers import SlotAnswers, with_answers
from trainables.runtime.capacity import trials_that_pay
from trainables.runtime.client import CoordinatorClient
from trainables.runtime.failures import TOO_LARGE, ends_worker, first_line
from trainables.runtime.metrics import Exporter, Reading, SlotMeter
from trainables.runtime.protocol import (
    Diverged,
    Evaluated,
    Failed,
    Outcome,
    Parameters,
    SlotConfig,
    TrialProgress,
)
from trainables.storage.patience import Patience, StorageLost

if TYPE_CHECKING:
    import torch

    from trainables.engine.group import TrialGroup
    from trainables.engine.settings import GroupSettings
    from trainables.evaluation.answered import Answered
    from trainables.storage.store import Store

SWEEP_FILE = "sweep.yaml"  # there for as long as the sweep's folder is
PROGRESS_S = 1.0  # between news of how far trials are
MAX_REASON = 500  # characters

Written = TypeVar("Written")


def slot_loop(loop_config: dict[str, SlotConfig]) -> None:
    """Read the assignment, let trials leave and join, step, evaluate, save, publish."""
    import ray.train

    (config,) = loop_config.values()
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    client = CoordinatorClient(config, rank, size)
    worker = start_worker(config, client, rank, size)
    if worker is None:
        return
    client.register()
    try:
        _serve(worker, config, client)
    except StorageLost as lost:
        client.broken(f"storage: {lost}")


def _serve(worker: "SlotWorker", config: SlotConfig, client: CoordinatorClient) -> None:
    slot = config.slot.removeprefix(f"{config.sweep}-")
    exporter = Exporter(print, sweep=config.sweep, slot=slot)
    while True:
        with worker.meter.spends("waiting"):
            client.refresh(block=not client.assignment.asks_for_work)
        if worker.meter.due:
            exporter.tell(worker.readings())
        if client.assignment.stop:
            return
        if client.assignment.retire:
            worker.pause()
            client.tell("retired")
            return
        worker.let_leave()
        worker.evaluate_untuned()
        worker.do_job()
        worker.profile()
        worker.repeat_news()
        worker.let_join()
        worker.train()


def start_worker(
    config: SlotConfig, client: CoordinatorClient, rank: int, size: int
) -> "SlotWorker | None":
    """None: a worker of the slot cannot start, and would fail again. The coordinator knows why; the
    slot ends, and is not restarted.
    """
    opened, problem = None, None
    try:
        opened = open_slot(config, rank, size, client.storage)
    except Exception as error:  # whatever it is, it must reach the coordinator
        traceback.print_exc()
        known = isinstance(error, InputError)
        problem = str(error) if known else f"{type(error).__name__}: {error}"
    problems = [each for each in client.gather(problem) if each is not None]
    if opened is None or problems:
        client.broken(problems[0])
        return None
    store, groups = opened
    return SlotWorker(
        config=config, client=client, groups=groups, store=store, rank=rank, size=size
    )


def open_slot(
    config: SlotConfig,
    rank: int,
    size: int,
    wait: Callable[[str | None], None] = lambda wrong: None,
) -> "tuple[Store, dict[str, TrialGroup]]":
    """Everything that is paid once per slot: imports, data, tokenizer; a base is loaded when a
    trial first needs it. The groups are by the words for their bases. wait: is told when storage
    does not work, and when it does again.
    """
    import ray.train.torch
    import torch

    from trainables.engine.distributed import World
    from trainables.engine.group import open_group
    from trainables.models.files import check_files, quiet
    from trainables.storage.store import Store

    quiet()
    torch.set_num_threads(max(1, config.threads))
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device), "a worker has one device"
    for base in config.bases.values():
        if device.type == "cuda":
            if (why := too_large(base.estimates, size_of(device))) is not None:
                raise InputError(why)
        check_files(base.model)
    store = Store(config.storage)
    store.insist(Patience(wait, wait_s=config.storage_wait_s), marker=SWEEP_FILE)
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        # a group maps the files of an object store's copy into memory, and they then need no name:
        # whenever and however a worker ends, it leaves none behind
        data = store.fetch("data", Path(scratch))
        groups = {
            word: open_group(
                data / data_of(word, config.first),
                model=base.model,
                task=config.task,
                pad_token_id=base.pad_token_id,
                settings=_group_settings(config, device),
                device=device,
                world=World(rank=rank, size=size),
            )
            for word, base in config.bases.items()
        }
    return store, groups


def _group_settings(config: SlotConfig, device: "torch.device") -> "GroupSettings":
    from trainables.engine.settings import GroupSettings

    return GroupSettings.on(
        device,
        precision=config.precision,
        save_dtype=config.save_dtype,
        max_tokens=config.max_tokens,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=config.seed,
        evaluate_every=config.evaluate_every,
        probe_rows=config.probe_rows,
        forgetting=config.forgetting,
        several_bases=len(config.bases) > 1,
    )


class SlotWorker:
    """What a worker does with the trials on its slot. Every worker of the slot does the same;
    rank 0 also writes and tells.
    """

    def __init__(
        self,
        *,
        config: SlotConfig,
        client: CoordinatorClient,
        groups: "Mapping[str, TrialGroup]",
        store: "Store",
        rank: int,
        size: int,
    ) -> None:
        self._config = config
        self._client, self._store = client, store
        self._groups = groups
        self._group = groups[config.first]  # whose base may be loaded
        self._rank, self._size = rank, size
        self._attempts: dict[str, int] = {}
        # when a trial last began to train towards an evaluation, and from how many samples
        self._began: dict[str, tuple[float, int]] = {}
        self._paused: set[str] = set()  # trials that went on from a pause
        self._told_progress = 0.0
        self._answers = SlotAnswers(config, groups, store, rank)
        self.meter = SlotMeter()
        # what came of trials when the coordinator had just been restarted and did not know the slot
        self.unacknowledged: dict[str, Outcome] = {}

    # --- one round of the slot's loop ---

    def let_leave(self) -> None:
        for trial in self._group.trials:
            if trial not in self._client.assignment.trials:
                self._group.leave(trial)

    def pause(self) -> None:
        """Write what the trials on the slot go on from elsewhere, without waiting for their next
        evaluations: the machine may be gone by then.
        """
        from trainables.storage.checkpoints import write_pause

        for trial in self._group.trials:
            position = self._group.position(trial)
            if self._group.progress(trial) > self._began[trial][1]:  # since it joined, or was saved
                self._on_rank_zero(
                    lambda t=trial, p=position: write_pause(
                        self._store,
                        t,
                        self._attempts[t],
                        p,
                        lambda folder: self._group.save(t, folder),
                    )
                )
            self._group.leave(trial)

    def evaluate_untuned(self) -> None:
        if self._client.assignment.baseline and not self._group.trials:
            self._client.publish("publish_baseline", self.untuned())

    def do_job(self) -> None:
        if self._client.assignment.job is not None and not self._group.trials:
            name, what = self._client.assignment.job
            self._group.forget_base()
            result = self._on_rank_zero(lambda: self.job(what))
            self._client.publish("publish_job", name, result)

    def profile(self) -> None:
        for each in self._client.assignment.profile:
            self._take_base(base_of(each.parameters))
            limit = trials_that_pay(self._group, each.parameters, self._config.most, self._client)
            self._client.publish("publish_limit", each.cost_class, limit)

    def repeat_news(self) -> None:
        """Tell the coordinator again what it has forgotten of the trials that wait."""
        for trial, assigned in self._client.assignment.trials.items():
            if assigned.may_train and trial in self.unacknowledged:
                self.tell(trial, self.unacknowledged.pop(trial))

    def let_join(self) -> None:
        for trial, assigned in self._client.assignment.trials.items():
            if assigned.may_train and trial not in self._group.trials:
                self.guard([trial], lambda t=trial, p=assigned.parameters: self.join(t, p))

    def train(self) -> None:
        """One step for those that may, if there are any."""
        assigned = self._client.assignment.trials
        training = [t for t in self._group.trials if t in assigned and assigned[t].may_train]
        if training:
            self.guard(training, lambda: self.step(training))

    def _take_base(self, word: str) -> None:
        """Another base than the slot's takes its place; no trial is on the slot then."""
        if self._groups[word] is not self._group:
            self._group.forget_base()
            self._group = self._groups[word]

    # --- joining ---

    def join(self, trial: str, parameters: Parameters) -> None:
        """A new attempt of a trial, going on from the newest evaluation that can be resumed, if
        there is one.
        """
        from trainables.storage.checkpoints import begin_attempt, is_pause, read_evaluation

        self._take_base(base_of(parameters))
        group, store = self._group, self._store
        begun = self._on_rank_zero(lambda: begin_attempt(store, trial))
        self._attempts[trial], origin = begun
        if origin is None:
            joined = self._join_if_room(trial, parameters, None)
        else:
            if is_pause(origin):
                self._paused.add(trial)
            # all was done before the cut; only the news of it was lost
            elif (record := read_evaluation(store, origin)).finished:
                self.tell(trial, Evaluated(evaluation=record))
                return
            with tempfile.TemporaryDirectory() as scratch:
                checkpoint = store.fetch(origin, Path(scratch))
                joined = self._join_if_room(trial, parameters, checkpoint)
        if joined:
            self._began[trial] = (time.monotonic(), group.progress(trial))

    def _join_if_room(self, trial: str, parameters: Parameters, checkpoint: Path | None) -> bool:
        """Whether there was room beside those on the slot; a trial that does not fit even alone has
        failed.
        """
        import torch

        from trainables.engine.group import NotShared

        group, hp, others = self._group, parse(parameters), len(self._group.trials)
        if not others:
            group.join(trial, hp, checkpoint)
            return True
        room = True
        try:
            group.join(trial, hp, checkpoint)
        except (torch.OutOfMemoryError, NotShared):
            room = False
        if all(self._client.gather(room)):
            return True
        if trial in group.trials:
            group.leave(trial)
        self._client.publish("no_room", trial, others)
        return False

    # --- training ---

    def step(self, trials: Sequence[str]) -> None:
        """One step for `trials`; whoever's evaluation is due then is evaluated, saved and
        published.
        """
        from trainables.engine.group import NonFinite

        group = self._group
        try:
            with self.meter.spends("training"):
                due = group.step(trials)
        except NonFinite as error:
            for trial, reason in error.reasons.items():
                group.leave(trial)
                self.tell(trial, Diverged(reason=reason))
            due = group.due(trial for trial in trials if trial not in error.reasons)
        if due:
            with self.meter.spends("evaluating"):
                self._evaluate(due)
        elif time.monotonic() - self._told_progress > PROGRESS_S:
            self._told_progress = time.monotonic()
            self._tell_progress([trial for trial in trials if trial in group.trials])

    def _evaluate(self, due: Sequence[str]) -> None:
        evaluated, written = self._group.evaluate(due), self._answers.written(self._group, due)
        for trial, evaluation in evaluated.items():
            answered = written.get(trial, lambda: None)
            self.guard([trial], lambda t=trial, e=evaluation, a=answered: self._publish(t, e, a))

    def _publish(
        self,
        trial: str,
        evaluation: MeasuredEvaluation,
        answered: "Callable[[], Answered | None]",
    ) -> None:
        from trainables.storage.checkpoints import delete_pauses, write_evaluation

        evaluation = with_answers(evaluation, answered, self._client, self._rank)
        record = self._on_rank_zero(
            lambda: write_evaluation(
                self._store,
                trial,
                self._attempts[trial],
                evaluation,
                lambda folder: self._group.save(trial, folder),
            )
        )
        if trial in self._paused:
            self._paused.discard(trial)
            self._on_rank_zero(lambda: delete_pauses(self._store, trial))
        if self._rank == 0:
            self._tell_progress([trial])
        self.tell(trial, Evaluated(evaluation=record))
        self._began[trial] = (time.monotonic(), self._group.progress(trial))

    def _on_rank_zero(self, write: Callable[[], Written]) -> Written:
        """What `write` gives on rank 0, on every worker; StorageLost on each of them where it is
        raised there: none must wait for it.
        """
        written, lost = None, ""
        if self._rank == 0:
            try:
                written = write()
            except StorageLost as error:
                lost = str(error)
        written, lost = self._client.from_rank_zero((written, lost))
        if lost:
            raise StorageLost(lost)
        return cast("Written", written)

    def tell(self, trial: str, outcome: Outcome) -> None:
        """Publish what came of a trial; a coordinator that has forgotten it is told again when the
        trial is on the slot again.
        """
        if not self._client.publish("publish", trial, outcome):
            self.unacknowledged[trial] = outcome

    def _tell_progress(self, trials: Sequence[str]) -> None:
        self._client.progress({trial: self._progress(trial) for trial in trials})

    def _progress(self, trial: str) -> TrialProgress:
        began, seen = self._began[trial]
        now = self._group.progress(trial)
        rate = (now - seen) / max(time.monotonic() - began, 1e-9)
        return TrialProgress(samples_seen=now, samples_per_s=rate)

    def readings(self) -> Iterator[Reading]:
        """For Ray's metrics: what the slot has done since it last told them, of rank 0, and what
        memory this worker holds.
        """
        groups = self._groups.values()
        samples = sum(group.trained_samples for group in groups)
        tokens = sum(group.trained_tokens for group in groups)
        of_slot = list(self.meter.readings(samples, tokens))
        yield from of_slot if self._rank == 0 else ()
        for kind, memory in held(self._group.device).items():
            labels = {"worker": str(self._rank), "device": kind}
            yield Reading("sweeps_slot_memory_bytes", memory, labels)

    # --- what a slot does beside training ---

    def untuned(self) -> Untuned:
        """What the bases make of the data before they are tuned; the first is loaded last, as it is
        the likeliest to be wanted next.
        """
        try:
            found = {word: self._untuned(word) for word in reversed([*self._config.bases])}
        except StorageLost:
            raise
        except Exception as error:  # the trials will meet the same fault, each at its own border
            traceback.print_exc()
            if ends_worker(error):
                raise
            return UntunedFailed(error=f"{type(error).__name__}: {error}")
        others = {word: found[word] for word in self._config.bases if word != self._config.first}
        return replace(found[self._config.first], others=others)

    def _untuned(self, word: str) -> UntunedResults:
        from trainables.storage.checkpoints import write_rows

        self._take_base(word)
        hp = parse(self._config.bases[word].baseline)
        results, probed = self._group.untuned_results(hp.method, hp.options)
        name = f"baselines/validation/{untuned_name(word, self._config.first)}"
        self._on_rank_zero(
            lambda: write_rows(self._store, name, results.losses, results.rows_outcomes)
        )
        metrics = self._group.metrics(results)
        return UntunedResults(val_loss=results.loss, probe_loss=probed.loss, metrics=metrics)

    def job(self, what: Job) -> JobResult:
        """What came of a post-search job: a sweep is possible without."""
        from trainables.evaluation.jobs import run

        try:
            return run(self._store, self._config, what)
        except StorageLost:
            raise
        except Exception as error:  # the border between a job and its slot
            traceback.print_exc()
            if ends_worker(error):
                raise
            return JobFailed(error=first_line(error))

    # --- the border between a trial and its slot ---

    def guard(self, trials: Sequence[str], action: Callable[[], None]) -> None:
        """Run `action`; what goes wrong there is the end of a trial, not of the slot. Whose end it
        is, with several on the slot, shows when each has gone on alone.
        """
        try:
            action()
            return
        except StorageLost:  # no trial is to blame for it
            raise
        except InputError as error:
            failure, isolate = Failed(reason=str(error), certain=True), len(trials) > 1
        except Exception as error:  # whatever it was, the slot goes on
            failure = self._failure(trials[0], error)
            isolate = self._may_be_of_another(trials, error)
            if ends_worker(error):
                raise
            if self._size > 1:
                # the other workers stand in a collective call: only a restart frees them
                if isolate:
                    self._client.tell("isolate", trials)
                else:
                    self._client.tell("publish", trials[0], failure)
                raise
        for trial in trials:
            if trial in self._group.trials:
                self._group.leave(trial)
        if isolate:
            self._client.publish("isolate", trials)
        else:
            self.tell(trials[0], failure)

    def _may_be_of_another(self, trials: Sequence[str], error: Exception) -> bool:
        """Whether trials that train on alone may do without the error."""
        import torch

        if isinstance(error, torch.OutOfMemoryError):  # also those that wait take memory
            return len({*self._group.trials, *trials}) > 1
        return len(trials) > 1

    def _failure(self, trial: str, error: Exception) -> Failed:
        """How `trial` failed; the traceback is in the sweep's folder."""
        import torch

        reason = first_line(error)
        if isinstance(error, torch.OutOfMemoryError):
            reason = f"{self._too_large(trial)}: {reason}"[:MAX_REASON]
        log = f"trials/{trial}/error.txt"
        self._store.write_bytes(log, traceback.format_exc().encode())
        return Failed(reason=reason, log=self._store.path(log))

    def _too_large(self, trial: str) -> str:
        """What a trial needs that does not fit, as far as that can be said, and what there is."""
        config, device = self._config, self._group.device
        what = f"{TOO_LARGE} the device of {gib(size_of(device))} even alone"
        try:
            parameters = self._client.assignment.trials[trial].parameters
            autocast = _group_settings(config, device).autocast
            found = estimate_of(
                config.bases[base_of(parameters)].model,
                config.task,
                parse(parameters),
                precision="float32" if autocast is None else "bfloat16",
                max_tokens=self._group.longest,
                gradient_checkpointing=config.gradient_checkpointing,
            )
        except Exception:  # an architecture that the formula does not know
            return what
        needs = gib(found.base + found.per_trial + found.activations)
        return (
            f"{what}; it needs about {needs}: {gib(found.base)} for the base,"
            f" {gib(found.per_trial)} for the trial, {gib(found.activations)} for a row"
        )
