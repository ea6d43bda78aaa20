"""One optimiser step, one evaluation, one checkpoint for every trial of a group. No Ray here.

Trials whose methods only add to the base share it, any number of them; a trial that changes the
base has it alone. Who calls a group sees the same interface for both: trials are named by their id
in every call.

Letters of shapes: B rows of a micro-batch, T tokens, K trials, N rows of a split.
"""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.data.batches import batch_indices, cut_micro_batches
from trainables.data.manifest import labels_of
from trainables.data.prepare import Slices, Split, open_slices, open_split
from trainables.engine import varlen
from trainables.engine.answering import answers
from trainables.engine.budget import TokenBudget
from trainables.engine.decoding import Decoding
from trainables.engine.distributed import World
from trainables.engine.dropout import RowKeys
from trainables.engine.forward import Engine, ForwardPass
from trainables.engine.loaded_base import LoadedBase
from trainables.engine.memory import release
from trainables.engine.own import OwnBaseEngine
from trainables.engine.regularisation import balanced
from trainables.engine.schedule import (
    averaged_steps,
    is_due,
    last_step,
    learning_rate,
    samples_seen,
    total_steps,
)
from trainables.engine.scoring import (
    BatchLosses,
    Cut,
    RowResults,
    Rows,
    evaluate_in_micro_batches,
    padded_lengths,
    sequence_numbers,
    with_reference,
)
from trainables.engine.settings import GroupSettings
from trainables.engine.shared import SharedBaseEngine
from trainables.engine.step import StepRows
from trainables.errors import InputError
from trainables.evaluation.forgetting import GENERAL, Remembered, draw_continuations
from trainables.evaluation.generation import Prompt
from trainables.evaluation.record import MeasuredEvaluation, Position, read_position
from trainables.hyperparameters import (
    Hyperparameters,
    MethodOptions,
    sharing_key,
    untrained,
    virtual_tokens,
)
from trainables.methods import ADDITIVE, REPLACING, quantisation_of
from trainables.metrics.config import GenerationConfig
from trainables.models.base import BaseModel, BaseSpec
from trainables.models.config import ModelConfig, Quantisation
from trainables.models.loading import load_model
from trainables.models.precision import base_dtype
from trainables.rehearsal.peak import Peak
from trainables.streams import stream
from trainables.tasks import TASKS, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


WEIGHTS_FILE = "adapter_model.safetensors"  # PEFT's name
STATE_FILE = "training_state.safetensors"
SUM = "sum/"  # how names in it begin that are of the weights that `average_last` averages


@dataclass(kw_only=True)
class GroupMember:
    """A trial of the group and how far it is."""

    hyperparameters: Hyperparameters
    step: int = 0
    train_nll: float = 0.0  # since the last evaluation
    train_targets: float = 0
    averaged: Sequence[int] = ()  # the steps that `average_last` averages
    # of the weights at those of them that it has made, float64 in the host's memory, so that one of
    # many terms loses nothing
    weight_sum: dict[str, Tensor] = field(default_factory=dict)


class NonFinite(ArithmeticError):
    """Loss or gradient of some trials is no longer a number: they made no step and must leave; the
    others made theirs.
    """

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("; ".join(reasons.values()))
        self.reasons = reasons


class NotShared(RuntimeError):
    """Trials over this base would act on each other's rows: each must have it alone."""


class TrialGroup:
    """Trials that train in one process: one that has its base alone, or any number over one."""

    def __init__(
        self,
        *,
        load_base: Callable[[Quantisation, torch.dtype], BaseModel],
        base_dtype: Callable[[str], torch.dtype],
        task: Task,
        train: Split,
        validation: Split,
        pad_token_id: int,
        settings: GroupSettings,
        device: torch.device,
        world: World,
        slices: Slices | None = None,
        general: Split | None = None,
    ) -> None:
        self._load_base = load_base
        self._base_dtype = base_dtype  # of a method's base
        self._task = task
        self._train = train
        self._validation = validation
        self._slices = slices
        # where given, every evaluation says what has been forgotten of it
        self._general = general
        self._remembered: dict[tuple[Quantisation, torch.dtype], Remembered] = {}  # of each base
        # train and validation, with what each base makes of pairs
        self._referred: dict[tuple[Quantisation, torch.dtype], tuple[Split, ...]] = {}
        self._settings = settings
        self._device = device
        self._world = world
        self._forward = ForwardPass(
            task=task, pad_token_id=pad_token_id, device=device, autocast=settings.autocast
        )
        self._budget = TokenBudget(settings.max_tokens)
        self._keys = RowKeys()
        self._base: LoadedBase | None = None
        self._members: dict[str, GroupMember] = {}
        self._engine: Engine | None = None  # holds what the trials of the group train
        self._class_weights: np.ndarray | None = None  # balanced, once a trial asks for them
        self.trained_samples, self.trained_tokens = 0, 0  # in steps, by all workers
        # the probe is the same for all trials, so that their probe losses compare
        chosen = stream("probe", settings.seed).permutation(len(train))[: settings.probe_rows]
        self._probe_rows = np.sort(chosen)

    @property
    def trials(self) -> list[str]:
        return list(self._members)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def validation(self) -> Split:
        return self._validation

    @property
    def model(self) -> "PreTrainedModel":
        """The base that is loaded."""
        assert self._base is not None, "a trial is on board, so its base is"
        return self._base.model

    @property
    def padded(self) -> bool:
        """Whether rows of unlike lengths may share a micro-batch over the base that is loaded."""
        return self._base is None or self._base.padded

    @property
    def longest(self) -> int:
        """Padded tokens of the longest row that is trained on: no micro-batch has fewer."""
        return int(self._padded_lengths(np.arange(len(self._train))).max())

    # --- joining and leaving ---

    def join(
        self, trial: str, hyperparameters: Hyperparameters, checkpoint: Path | None = None
    ) -> None:
        """Let `trial` join, from its start or from the folder of an evaluation or of a pause, which
        `save` wrote with its training state.

        Raises NotShared or torch.OutOfMemoryError; the other trials go on as if nothing had been
        tried.
        """
        hp = hyperparameters
        self._check_sharing_key(trial, hp)
        base = self._base_for(hp.method, hp.options)
        if not self._members:
            base.try_sharing(hp.method, hp.options)
        elif not base.can_be_shared:
            raise NotShared(
                f"{type(base.model).__name__} cannot be shared: each trial must have it alone"
            )
        try:
            self._check_loss(hp)
            self._add_to_engine(trial, hp, base)
            averaged = averaged_steps(len(self._train), hp, self._evaluate_every)
            self._members[trial] = member = GroupMember(hyperparameters=hp, averaged=averaged)
            if self._settings.gradient_checkpointing and len(self._members) == 1:
                base.checkpoint_gradients()
            if checkpoint is not None:
                self._restore(trial, member, checkpoint)
        except BaseException:
            self._forget(trial)
            raise

    def _check_loss(self, hp: Hyperparameters) -> None:
        """Raise InputError for what the task's loss, or the number of steps, cannot be given."""
        hp.options.check_steps(self.total_steps(hp))
        if hp.label_smoothing and not self._task.loss.is_likelihood:
            raise InputError(
                "label_smoothing: is for losses that are likelihoods, got task"
                f" {self._task.name}, whose losses are {self._task.loss.words}"
            )
        if hp.class_weights == "balanced" and self._class_weights is None:
            self._class_weights = balanced(self._train.labels if self._task.has_classes else None)

    def _check_sharing_key(self, trial: str, hp: Hyperparameters) -> None:
        others = {sharing_key(member.hyperparameters) for member in self._members.values()}
        assert not others or (sharing_key(hp) is not None and others == {sharing_key(hp)}), (
            f"{trial} cannot share this base"
        )

    def _add_to_engine(self, trial: str, hp: Hyperparameters, base: LoadedBase) -> None:
        if hp.method in REPLACING:
            if base.base.start:
                raise InputError(
                    f"model.adapter: continue trains the adapter itself, got method {hp.method}"
                )
            self._engine = OwnBaseEngine(
                base.base, base.pristine, trial, hp, self._settings.save_dtype
            )
            return
        if self._engine is None:
            self._engine = SharedBaseEngine(
                base.base, self._keys, compute=self._settings.autocast, device=self._device
            )
        assert isinstance(self._engine, SharedBaseEngine)
        self._engine.join(trial, base.additions(hp), averaged=hp.ema_decay > 0)
        if base.base.start:
            self._engine.begin(trial, base.base.start)

    def _forget(self, trial: str) -> None:
        """After a join that broke half way: nobody else is harmed; a base that may be changed is
        loaded anew.
        """
        self._members.pop(trial, None)
        if self._members:
            assert isinstance(self._engine, SharedBaseEngine)
            if trial in self._engine.trials:
                self._engine.leave(trial)
        else:
            self._engine = None
            self.forget_base()

    def leave(self, trial: str) -> None:
        """Take `trial` out of the group; when the last one leaves, the base is again exactly what
        it was.
        """
        del self._members[trial]
        assert self._engine is not None and self._base is not None
        self._engine.leave(trial)
        if not self._members:
            self._engine = None
            if self._settings.gradient_checkpointing:
                self._base.keep_activations()
            self._base.model.eval()

    # --- one step ---

    def step(self, trials: Sequence[str]) -> list[str]:
        """One optimiser step for each of `trials`, or the average of those that have made theirs;
        returns those whose evaluation is now due.

        Raises NonFinite after the step of the others, when one or more have exploded; `due` then
        tells the same of them.
        """
        through = [trial for trial in trials if self._averages_next(self._members[trial])]
        for trial in through:
            self._average(trial)
        if training := [trial for trial in trials if trial not in through]:
            self._train_step(training)
        return self.due(trials)

    def _train_step(self, trials: Sequence[str]) -> None:
        assert self._engine is not None
        member = [self._members[trial] for trial in trials]
        rows = [self._rows(each) for each in member]
        nll, targets = self._gradients(trials, rows)
        self.trained_samples += sum(map(len, rows))
        self.trained_tokens += int(self._padded_lengths(np.concatenate(rows)).sum())
        norms = self._engine.norms(trials)
        # the one time in a step that the host waits for the device
        losses, sizes = torch.stack([nll, norms.to(nll)]).tolist()
        finite = np.isfinite(losses) & np.isfinite(sizes)
        good, bad = np.flatnonzero(finite).tolist(), np.flatnonzero(~finite).tolist()
        self._update([trials[position] for position in good], norms[good] if bad else norms)
        for position in good:
            member[position].step += 1
            member[position].train_nll += losses[position]
            member[position].train_targets += targets[position]
            self._add_to_sum(trials[position])
        if bad:
            raise self._non_finite([trials[position] for position in bad])

    def _averages_next(self, member: GroupMember) -> bool:
        """Whether a trial's next step takes no rows: its weights become their average."""
        return bool(member.averaged) and member.step == member.averaged[0]

    def _add_to_sum(self, trial: str) -> None:
        """Take a trial's weights into those that it averages, where this step is one of them."""
        member, engine = self._members[trial], self._engine
        if member.step not in member.averaged:
            return
        assert engine is not None
        for name, weight in engine.training_weights(trial).items():
            term = weight.detach().to("cpu", torch.float64)
            member.weight_sum[name] = term + member.weight_sum.get(name, 0)

    def _average(self, trial: str) -> None:
        member = self._members[trial]
        assert self._engine is not None
        count = len(member.averaged)
        self._engine.set_weights(
            trial, {name: total / count for name, total in member.weight_sum.items()}
        )
        member.weight_sum.clear()
        member.step += 1

    def _update(self, trials: Sequence[str], norms: Tensor) -> None:
        assert self._engine is not None
        members = [self._members[trial] for trial in trials]
        hps, steps = [each.hyperparameters for each in members], [each.step for each in members]
        totals = [self.total_steps(hp) for hp in hps]
        rates = [learning_rate(*each) for each in zip(hps, steps, totals, strict=True)]
        self._engine.update(trials, hps, rates, steps, totals, norms)

    def _non_finite(self, trials: Sequence[str]) -> NonFinite:
        what = "the training loss or its gradient became non-finite at step"
        return NonFinite({trial: f"{what} {self._members[trial].step + 1}" for trial in trials})

    def due(self, trials: Iterable[str]) -> list[str]:
        """Those of `trials` that have just reached an evaluation."""
        return [trial for trial in trials if self._due(self._members[trial])]

    def _gradients(
        self, trials: Sequence[str], rows: Sequence[np.ndarray]
    ) -> tuple[Tensor, list[float]]:
        """Gradients of what each trial minimises over its `rows`; returns that, times the targets
        [K], and those (ln 2 times their bytes, where losses are told in bits per byte), over all
        workers.
        """
        assert self._engine is not None
        nll, targets = self._own_gradients(trials, rows)
        self._world.sum(self._engine.gradients())
        self._world.sum([nll])
        penalties = self._engine.penalise(trials).to(nll)
        if (sizes := self._train.target_bytes) is not None:
            targets = [float(sizes[each].sum()) * math.log(2) for each in rows]
        return nll + penalties * self._forward.on_device(np.array(targets)), targets

    def _own_gradients(
        self, trials: Sequence[str], rows: Sequence[np.ndarray]
    ) -> tuple[Tensor, list[float]]:
        """The part of this worker. No result depends on the budget: where memory does not suffice,
        the half-done step is forgotten and taken again in smaller micro-batches.
        """
        longest = max(int(self._padded_lengths(each).max()) for each in rows)
        self._budget.begin(len(self._members))
        while True:
            try:
                found = self._in_micro_batches(trials, rows)
            except torch.OutOfMemoryError:
                if self._budget.tokens <= longest:
                    raise
            else:
                self._budget.made_step()
                return found
            # not inside `except`: there the traceback still holds the graph
            self._budget.halve(len(self._members))
            release(self._device)

    def _in_micro_batches(
        self, trials: Sequence[str], rows: Sequence[np.ndarray]
    ) -> tuple[Tensor, list[float]]:
        engine, base = self._engine, self._base
        assert engine is not None and base is not None
        engine.zero_grad()
        base.model.train()
        members = [self._members[trial] for trial in trials]
        whole = StepRows.of(
            [member.hyperparameters for member in members],
            [member.step for member in members],
            rows,
            self._train,
            self._task,
            self._class_weights,
        )
        row, position, weight = whole.row, whole.position, whole.weight
        lane = np.array([engine.trials.index(trial) for trial in trials])[position]
        lengths, kinds = self._padded_lengths(row), self._train.kinds[row]
        mine = np.argsort(lengths, kind="stable")[self._world.rank :: self._world.size]
        sequences = self._train.sequences
        nll = torch.zeros(len(trials), dtype=torch.float64, device=self._device)
        on_device = self._forward.on_device
        for chosen in cut_micro_batches(
            lengths[mine],
            self._budget.tokens,
            kinds=None if base.padded else kinds[mine],
            tokens=self._train.sequence_lengths[row[mine]].sum(1),
            token_cost=self._token_cost(),
        ):
            at = mine[chosen]
            at = at[np.argsort(lane[at], kind="stable")]
            number = sequence_numbers(self._train, row[at])  # a pair is two in the forward pass
            each, tokens = np.repeat(at, len(number) // len(at)), sequences.lengths[number]
            flat = self._varlen_rows(tokens)
            times = 1 if flat is None else tokens  # without padding each token is named
            named = np.repeat(each, times)
            self._keys.set(
                torch.as_tensor(whole.seed[named]),
                torch.as_tensor(whole.step[named]),
                torch.as_tensor(np.repeat(number, times)),
                None if flat is None else flat.positions_N,
                self._device,
            )
            batch = self._forward.batch(self._train, row[at])
            read = sequences.parts[number, 0]  # of a row's two texts the source
            noise = base.input_noise.on(
                whole.hps, position[named], np.repeat(read, times), on_device
            )
            with base.dropping_out(), noise:
                nll_B, _, _ = self._forward.losses(
                    base.base,
                    engine,
                    batch,
                    lane[each],
                    flat,
                    whole.hps_of(at),
                    lengths_B=read,
                )
                (nll_B * on_device(weight[at]).to(nll_B.dtype)).sum().backward()
            counted_B = nll_B.detach().double() * on_device(whole.counts[at])
            nll.index_add_(0, on_device(position[at]), counted_B)
        return nll, whole.totals

    def time_step(self, hyperparameters: Hyperparameters, copies: int) -> float:
        """Seconds that this worker takes for a step of `copies` trials like this one, in
        micro-batches as small as memory wants them. The trials of the group lose nothing.

        Raises torch.OutOfMemoryError: so many do not fit. NotShared: they cannot share the base.
        """
        names = [f"to be timed {number}" for number in range(copies)]
        try:
            for name in names:
                self.join(name, hyperparameters)
            rows = [self._rows(self._members[name]) for name in names]
            return _seconds(lambda: self._own_gradients(names, rows), self._device)
        finally:
            for name in names:
                if name in self._members:
                    self.leave(name)

    def memory_of_a_micro_batch(self, trial: str) -> tuple[int, int]:
        """Bytes that the micro-batches of the next step of `trial` take at their peak, and padded
        tokens of one that holds all its rows. The trial makes no step.
        """
        rows = self._rows(self._members[trial])
        with Peak() as peak:
            self._own_gradients([trial], [rows])
        return peak.bytes, len(rows) * int(self._padded_lengths(rows).max())

    # --- evaluation ---

    def evaluate(self, trials: Sequence[str]) -> dict[str, MeasuredEvaluation]:
        """Validation and probe losses of `trials` in eval mode, as the checkpoint of this moment
        would give them.
        """
        engine = self._engine
        with engine.as_saved() if engine else contextlib.nullcontext():
            validation = self._evaluate_rows(trials, self._validation)
            probe = self._evaluate_rows(trials, self._train, self._probe_rows)
            forgotten = self._forgotten(trials)
        return {
            trial: self._evaluation(trial, found, probed.loss, *lost)
            for trial, found, probed, lost in zip(trials, validation, probe, forgotten, strict=True)
        }

    def _forgotten(self, trials: Sequence[str]) -> list[tuple[float | None, float | None]]:
        """`forgetting` and `kl` of an `Evaluation`, of each trial."""
        if self._general is None:
            return [(None, None)] * len(trials)
        assert self._base is not None
        base = self._remembered[self._base.base.quantisation, self._base.base.dtype]
        general = self._evaluate_rows(trials, self._general)
        drawn = self._evaluate_rows(trials, base.drawn)
        return [
            (g.loss - base.general, d.loss - base.own) for g, d in zip(general, drawn, strict=True)
        ]

    def _remember(self, base: LoadedBase) -> None:
        """Evaluate the untuned base, so that what trials forget of it can be told."""
        key = base.base.quantisation, base.base.dtype
        if self._general is None or key in self._remembered:
            return

        def agree(drawn: Tensor) -> Tensor:
            return self._world.from_first(drawn.to(self._device)).cpu()

        drawn = draw_continuations(
            base.states, self._validation.sequences, self._settings.seed, agree, base.logits
        )
        (general,) = self._evaluate_rows([""], self._general)
        (own,) = self._evaluate_rows([""], drawn)
        self._remembered[key] = Remembered(general=general.loss, drawn=drawn, own=own.loss)

    def _refer(self, base: LoadedBase, method: str, options: MethodOptions | None) -> None:
        """Let pairs have the log-probabilities of what trials start from beside them: once for a
        base.
        """
        if not self._task.has_pairs:
            return
        key = base.base.quantisation, base.base.dtype
        if key not in self._referred:

            def measure(split: Split) -> RowResults:
                return self._evaluate_rows([""], split)[0]

            with self._untuned(base, method, options):
                splits = [with_reference(each, measure) for each in (self._train, self._validation)]
            self._referred[key] = tuple(splits)
        self._train, self._validation = self._referred[key]

    def untuned_results(
        self, method: str, options: MethodOptions | None = None
    ) -> tuple[RowResults, RowResults]:
        """What the untuned base (its new head, if any, is random), or the adapter that is
        continued, makes of the validation rows and of the probe.
        """
        assert not self._members
        base, trials = self._base_for(method, options), [""]
        with self._untuned(base, method, options):
            (results,) = self._evaluate_rows(trials, self._validation)
            (probed,) = self._evaluate_rows(trials, self._train, self._probe_rows)
        return results, probed

    @contextlib.contextmanager
    def _untuned(
        self, base: LoadedBase, method: str, options: MethodOptions | None
    ) -> Iterator[None]:
        """Inside, "" is what trials start from: the base, or an adapter that is continued over
        it.
        """
        if base.base.start:
            self.join("", untrained(method, options))
        try:
            yield
        finally:
            if base.base.start:
                self.leave("")

    def metrics(self, results: RowResults) -> dict[str, float]:
        return results.metrics(self._task)

    def _evaluation(
        self,
        trial: str,
        results: RowResults,
        probe_loss: float,
        forgetting: float | None,
        kl: float | None,
    ) -> MeasuredEvaluation:
        assert self._base is not None and self._engine is not None
        member = self._members[trial]
        hp, samples = member.hyperparameters, self.progress(trial)
        train_loss = member.train_nll / member.train_targets if member.train_targets else None
        member.train_nll, member.train_targets = 0.0, 0
        trained = self._engine.trained(trial)
        saved = sum(tensor.numel() for tensor in self._engine.weights(trial).values())
        tokens = float(self._validation.sequence_lengths.mean())
        is_average = member.step > self.total_steps(hp)
        rate = learning_rate(hp, max(member.step - 1, 0), self.total_steps(hp))
        return MeasuredEvaluation(
            step=member.step,
            samples_seen=samples,
            epoch=round(samples / len(self._train), 4),
            val_loss=results.loss,
            probe_loss=probe_loss,
            train_loss=train_loss,
            learning_rate=None if is_average else rate,
            metrics=self.metrics(results),
            trainable_parameters=trained,
            finished=self.finished(hp, member.step),
            averaged=len(member.averaged) if is_average else 0,
            majority_share=results.majority_share(self._task),
            slices=results.by_slice(self._task, self._slices),
            forgetting=forgetting,
            kl=kl,
            inference_cost=self._base.inference_cost(hp, saved, tokens),
            base_cost=self._base.cost(tokens),
            losses=results.losses,
            outcomes=results.rows_outcomes,
        )

    def _evaluate_rows(
        self, trials: Sequence[str], split: Rows, rows: np.ndarray | None = None
    ) -> list[RowResults]:
        """What each of `trials` makes of `rows` (None: all of the split); every micro-batch is
        collated once for all of them.
        """
        assert self._base is not None
        base, engine = self._base, self._engine
        base.model.eval()
        order = engine.trials if engine else [""]
        lanes = sorted(order.index(trial) for trial in trials)

        def losses(batch: dict[str, Tensor], chosen: Sequence[int]) -> BatchLosses:
            lanes_B = np.repeat([lanes[copy] for copy in chosen], len(batch["input_ids"]))
            flat = self._varlen_rows(batch["attention_mask"].sum(1).tolist() * len(chosen))
            repeated = {
                name: x.repeat(len(chosen), *([1] * (x.ndim - 1))) for name, x in batch.items()
            }
            return self._forward.losses(base.base, engine, repeated, lanes_B, flat)

        cut = Cut(
            pad_token_id=self._forward.pad_token_id,
            max_tokens=self._settings.max_tokens,
            device=self._device,
            world=self._world,
            soft_prompt_tokens=self._virtual_tokens(),
            padded=base.padded,
            token_cost=self._token_cost(),
        )
        chosen = np.arange(len(split)) if rows is None else rows
        found = evaluate_in_micro_batches(losses, len(trials), self._task, split, chosen, cut)
        by_trial = {order[lane]: each for lane, each in zip(lanes, found, strict=True)}
        return [by_trial[trial] for trial in trials]

    def answers(
        self,
        trials: Sequence[str],
        prompts: Sequence[Prompt],
        settings: GenerationConfig,
        stop: Collection[int],
    ) -> dict[str, list[list[int]]]:
        """Tokens that each of `trials` writes to each of `prompts`, as the checkpoint of this
        moment would, with the one of `stop` that ended them; training then goes on as if nothing
        had been asked.
        """
        engine, base = self._engine, self._base
        assert engine is not None and base is not None
        decoding = Decoding(settings=settings, stop=frozenset(stop), seed=self._settings.seed)
        with engine.as_saved():
            return answers(
                base,
                engine,
                trials,
                prompts,
                decoding,
                forward=self._forward,
                max_tokens=self._settings.max_tokens,
                virtual_tokens=self._virtual_tokens(),
                world=self._world,
            )

    # --- saving ---

    def save(self, trial: str, folder: Path) -> None:
        """Write `checkpoint/` (what a user loads) and, for a trial that goes on, the optimiser's
        state, below `folder`.
        """
        member, engine, target = self._members[trial], self._engine, folder / "checkpoint"
        assert engine is not None
        hp = member.hyperparameters
        with engine.as_saved(rounded=False):
            if isinstance(engine, OwnBaseEngine):
                REPLACING[hp.method].save(engine.base, target)
            else:
                target.mkdir(parents=True, exist_ok=True)
                save_file(
                    _on_cpu(engine.weights(trial)), target / WEIGHTS_FILE, metadata={"format": "pt"}
                )
                ADDITIVE[hp.method].describe(engine.base, hp.options, target)
        if not self.finished(hp, member.step):
            state = engine.moments(trial) | {SUM + n: x for n, x in member.weight_sum.items()}
            save_file(_on_cpu(state), folder / STATE_FILE)

    def position(self, trial: str) -> Position:
        """How far `trial` is, to be written with what `save` writes between two evaluations."""
        member = self._members[trial]
        return Position(
            step=member.step, train_nll=member.train_nll, train_targets=member.train_targets
        )

    def _restore(self, trial: str, member: GroupMember, folder: Path) -> None:
        position = read_position(folder)
        member.step = position.step
        member.train_nll, member.train_targets = position.train_nll, position.train_targets
        state, hp = load_file(folder / STATE_FILE), member.hyperparameters
        moments = {name: each for name, each in state.items() if not name.startswith(SUM)}
        member.weight_sum = {
            name.removeprefix(SUM): each for name, each in state.items() if name.startswith(SUM)
        }
        if isinstance(self._engine, OwnBaseEngine):
            REPLACING[hp.method].load(self._engine.base, folder / "checkpoint")
            self._engine.restore(moments, member.step)
        elif self._engine is not None:
            self._engine.restore(trial, load_file(folder / "checkpoint" / WEIGHTS_FILE), moments)

    # --- counting ---

    def total_steps(self, hp: Hyperparameters) -> int:
        return total_steps(len(self._train), hp)

    def finished(self, hp: Hyperparameters, step: int) -> bool:
        return step >= last_step(len(self._train), hp)

    def progress(self, trial: str) -> int:
        """Samples that `trial` has seen."""
        member = self._members[trial]
        return samples_seen(len(self._train), member.hyperparameters, member.step)

    def _rows(self, member: GroupMember) -> np.ndarray:
        """Rows of the next step."""
        hp = member.hyperparameters
        return batch_indices(len(self._train), hp.batch_size, hp.seed, member.step)

    def _due(self, member: GroupMember) -> bool:
        hp, rows = member.hyperparameters, len(self._train)
        return is_due(rows, hp, member.step, self._evaluate_every)

    @property
    def _evaluate_every(self) -> int:
        """Samples from one evaluation to the next."""
        return self._settings.evaluate_every or len(self._train)

    def _padded_lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens that each of these training rows takes by itself in a micro-batch."""
        return padded_lengths(self._train, rows, self._virtual_tokens())

    def _virtual_tokens(self) -> int:
        """Trained positions before each row: as many for all trials of the group."""
        return max(
            (virtual_tokens(member.hyperparameters) for member in self._members.values()), default=0
        )

    def _varlen_rows(self, lengths_B: Sequence[int] | np.ndarray) -> varlen.Rows | None:
        """Where rows of these lengths lie in a micro-batch without padding; None: with it."""
        assert self._base is not None
        return None if self._virtual_tokens() else self._base.varlen_rows(lengths_B)

    def _token_cost(self) -> float:
        """Of a token in a micro-batch without padding, as `cut_micro_batches` takes it."""
        assert self._base is not None
        return math.inf if self._virtual_tokens() else self._base.token_cost

    # --- the base ---

    def _base_for(self, method: str, options: MethodOptions | None = None) -> LoadedBase:
        wanted = quantisation_of(method, options), self._base_dtype(method)
        loaded = self._base
        if loaded is not None and (loaded.base.quantisation, loaded.base.dtype) == wanted:
            return loaded
        del loaded
        self.forget_base()  # before the new one is loaded
        self._budget = TokenBudget(self._settings.max_tokens)
        self._base = base = LoadedBase(
            self._load_base(*wanted),
            forward=self._forward,
            train=self._train.sequences,
            settings=self._settings,
            keys=self._keys,
        )
        self._refer(base, method, options)
        self._remember(base)
        base.try_sharing(method, options)
        return base

    def forget_base(self) -> None:
        """Free the base's memory; the next trial loads it again."""
        assert not self._members
        if self._base is not None:
            self._base = None
            release(self._device)


def open_group(
    data: Path,
    *,
    model: ModelConfig,
    task: str,
    pad_token_id: int,
    settings: GroupSettings,
    device: torch.device,
    world: World | None = None,
) -> TrialGroup:
    """A group over the folder that `trainables.data.prepare.prepare` wrote."""
    what, labels = TASKS[task], labels_of(data)

    def load_base(quantisation: Quantisation, dtype: torch.dtype) -> BaseModel:
        spec = BaseSpec(
            model=model,
            auto_class=what.auto_class,
            quantisation=quantisation,
            dtype=dtype,
            pad_token_id=pad_token_id,
            outputs=what.outputs(labels),
            problem_type=what.problem_type,
        )
        return load_model(spec, device=device, seed=settings.seed)

    return TrialGroup(
        load_base=load_base,
        base_dtype=lambda method: base_dtype(
            model, method, device, "float32" if settings.autocast is None else "auto"
        ),
        task=what,
        train=open_split(data, "train"),
        validation=open_split(data, "validation"),
        slices=open_slices(data, "validation"),
        general=open_split(data, GENERAL) if settings.forgetting else None,
        pad_token_id=pad_token_id,
        settings=settings,
        device=device,
        world=world or World(),
    )


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The least that `run` takes. Other processes of a busy machine do not count."""
    cpu = device.type == "cpu"
    clock = time.process_time if cpu else time.perf_counter
    seconds: list[float] = []
    while len(seconds) < 3 or (len(seconds) < 8 and sum(seconds) < 0.3):  # the first warms up
        began = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - began)
    return min(seconds[1:])
