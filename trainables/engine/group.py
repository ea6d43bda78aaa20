"""One optimiser step, one evaluation, one checkpoint for every trial on board. No Ray here.

Trials whose methods only add to the base share it, any number of them; a trial that changes the
base has it alone. Who calls a pack sees the same interface for both: trials are named by their id
in every call.

Letters of shapes: B rows of a pass, T tokens, K trials, N rows of a split.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.data.batches import batch_indices, cut_micro_batches
from trainables.data.manifest import labels_of
from trainables.data.prepare import Slices, Split, open_slices, open_split
from trainables.engine import varlen
from trainables.engine.budget import MICRO_BATCH_TOKENS, TokenBudget
from trainables.engine.distributed import World
from trainables.engine.dropout import FunctionDropout, RowDropout, RowKeys, replace_dropout
from trainables.engine.kernels import MicroBatch
from trainables.engine.memory import release
from trainables.engine.own import OwnBaseEngine, initialise
from trainables.engine.row_independence import mixing_rows, padding_changes_losses
from trainables.engine.schedule import learning_rate, samples_seen, total_steps
from trainables.engine.scoring import (
    SAME,
    SAME_HALF,
    SAME_ROW,
    RowResults,
    Rows,
    evaluate_in_micro_batches,
)
from trainables.engine.seeding import seeded
from trainables.engine.shared import SharedBaseEngine
from trainables.engine.sites import Addition, TrainedModule, copy_of
from trainables.errors import InputError
from trainables.evaluation.forgetting import GENERAL, Remembered, draw_continuations
from trainables.evaluation.record import MeasuredEvaluation
from trainables.hyperparameters import OPTIONS, Hyperparameters, sharing_key, virtual_tokens
from trainables.methods import ADDITIVE, REPLACING, quantisation_of
from trainables.methods.lora import FIRST_LAYER
from trainables.models.base import BaseModel, BaseSpec
from trainables.models.config import ModelConfig, Quantisation
from trainables.models.loading import load_model
from trainables.models.output import hidden_states
from trainables.models.precision import base_dtype
from trainables.models.structure import is_linear, layer_lists, linear_layers
from trainables.rehearsal.peak import Peak
from trainables.streams import stream
from trainables.tasks import TASKS, Task

WEIGHTS_FILE = "adapter_model.safetensors"  # PEFT's name
STATE_FILE = "training_state.safetensors"


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """What is the same for every trial of a sweep."""

    evaluate_every: int | None = None  # samples between evaluations; None: once an epoch
    # padded tokens of one forward and backward pass; memory only, never the result
    max_tokens: int = MICRO_BATCH_TOKENS["cpu"]
    autocast: torch.dtype | None = None
    gradient_checkpointing: bool = False
    varlen: bool | None = (
        # passes of language models without padding; None: on GPUs, where that is measured to pay
        None
    )
    probe_rows: int = 512
    seed: int = 0
    # of weights that full and partial fine-tuning leave; None: the base's own
    save_dtype: torch.dtype | None = None
    # measure with every evaluation of a language model what it has lost of its base
    forgetting: bool = False


@dataclass(kw_only=True)
class GroupMember:
    """A trial on board and how far it is."""

    hyperparameters: Hyperparameters
    step: int = 0
    train_nll: float = 0.0  # since the last evaluation
    train_targets: int = 0


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
        # where given, what is forgotten of it is measured with every evaluation
        self._general = general
        self._remembered: dict[tuple[Quantisation, torch.dtype], Remembered] = {}  # of each base
        self._pad_token_id = pad_token_id
        self._settings = settings
        self._device = device
        self._world = world
        self._budget = TokenBudget(settings.max_tokens)
        self._keys = RowKeys()
        self._base: BaseModel | None = None
        self._function_dropout: FunctionDropout | None = None
        self._varlen_cost = (
            math.inf
        )  # of a token in a micro-batch without padding; 1: that of one in a padded pass
        # modules of the base that do not see rows one after another
        self._mixing_rows: dict[str, tuple[bool, ...]] = {}
        self._padded = True  # rows of unlike lengths may share a pass
        self._shared: dict[
            str, bool
        ] = {}  # whether trials can share the base, of the methods that asked
        self._pristine: dict[
            str, Tensor
        ] = {}  # weights of the base that training has changed at some time
        self._members: dict[str, GroupMember] = {}
        # holds what the trials on board train
        self._engine: OwnBaseEngine | SharedBaseEngine | None = None
        # the probe is the same for all trials, so that their probe losses compare
        chosen = stream("probe", settings.seed).permutation(len(train))[: settings.probe_rows]
        self._probe_rows = np.sort(chosen)

    @property
    def trials(self) -> list[str]:
        return list(self._members)

    @property
    def padded(self) -> bool:
        """Whether rows of unlike lengths may share a pass over the base that is loaded."""
        return self._padded

    # --- joining and leaving ---

    def join(
        self, trial: str, hyperparameters: Hyperparameters, checkpoint: Path | None = None
    ) -> None:
        """Take `trial` on board, from its start or from an evaluation folder that `save` wrote with
        its training state.

        Raises NotShared or torch.OutOfMemoryError; who was on board goes on as if nothing had been
        tried.
        """
        hp = hyperparameters
        others = {sharing_key(member.hyperparameters) for member in self._members.values()}
        assert not others or (sharing_key(hp) is not None and others == {sharing_key(hp)}), (
            f"{trial} cannot share this base"
        )
        base = self._base_for(hp.method, hp.options)
        if others and not all(self._shared.values()):
            raise NotShared(
                f"{type(base.model).__name__} cannot be shared: each trial must have it alone"
            )
        if not self._shared and not others:
            self._try_sharing(base, hp.method, hp.options)
        try:
            if hp.method in REPLACING:
                self._engine = OwnBaseEngine(
                    base, self._pristine, trial, hp, self._settings.save_dtype
                )
            else:
                if self._engine is None:
                    self._engine = SharedBaseEngine(
                        base, self._keys, compute=self._settings.autocast, device=self._device
                    )
                assert isinstance(self._engine, SharedBaseEngine)
                self._engine.join(trial, self._additions(base, hp))
            self._members[trial] = member = GroupMember(hyperparameters=hp)
            if self._settings.gradient_checkpointing and len(self._members) == 1:
                how: dict[str, Any] = {"use_reentrant": False}
                if self._function_dropout is not None:
                    how["context_fn"] = self._function_dropout.contexts
                base.model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
            if checkpoint is not None:
                self._restore(trial, member, checkpoint)
        except BaseException:
            self._forget(trial)
            raise

    def _additions(self, base: BaseModel, hp: Hyperparameters) -> list[Addition]:
        """All that a trial adds to the base: the method's part, and a head of its own."""
        with seeded(hp.seed, self._device):
            heads = []
            for name in base.head:
                module = copy_of(base.model.get_submodule(name)).to(
                    torch.promote_types(base.dtype, torch.float32)
                )
                for new in base.new:
                    if new == name or new.startswith(f"{name}."):
                        initialise(
                            base.model,
                            module.get_submodule(new.removeprefix(name).removeprefix(".")),
                        )
                values = {key: p.detach() for key, p in module.named_parameters()}
                heads.append(Addition(kind=TrainedModule, site=name, values=values))
            return [*ADDITIVE[hp.method].plan(base, hp.options), *heads]

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
        """Put `trial` off board; when the last one leaves, the base is again exactly what it
        was.
        """
        del self._members[trial]
        assert self._engine is not None and self._base is not None
        self._engine.leave(trial)
        if not self._members:
            self._engine, model = None, self._base.model
            if self._settings.gradient_checkpointing:
                model.activation_checkpointing_disable()
                model.disable_input_require_grads()
            model.eval()

    # --- one step ---

    def step(self, trials: Sequence[str]) -> list[str]:
        """One optimiser step for each of `trials`; returns those whose evaluation is now due.

        Raises NonFinite after the step of the others, when one or more have exploded; `due` then
        tells the same of them.
        """
        assert self._engine is not None
        member = [self._members[trial] for trial in trials]
        rows = [self._rows(each) for each in member]
        nll, targets = self._gradients(trials, rows)
        norms = self._engine.norms(trials)
        finite = (torch.isfinite(nll) & torch.isfinite(norms)).tolist()
        good = [position for position, fine in enumerate(finite) if fine]
        self._engine.update(
            [trials[p] for p in good],
            [member[p].hyperparameters for p in good],
            [
                learning_rate(a.hyperparameters, a.step, self.total_steps(a.hyperparameters))
                for a in (member[p] for p in good)
            ],
            [member[p].step for p in good],
            norms[good],
        )
        losses = nll.tolist()
        for position in good:
            member[position].step += 1
            member[position].train_nll += losses[position]
            member[position].train_targets += targets[position]
        if not all(finite):
            raise NonFinite(
                {
                    trials[p]: (
                        "the training loss or its gradient became non-finite at step"
                        f" {member[p].step + 1}"
                    )
                    for p, fine in enumerate(finite)
                    if not fine
                }
            )
        return self.due(trials)

    def due(self, trials: Iterable[str]) -> list[str]:
        """Those of `trials` that have just reached an evaluation."""
        return [trial for trial in trials if self._due(self._members[trial])]

    def _rows(self, member: GroupMember) -> np.ndarray:
        hp = member.hyperparameters
        return batch_indices(len(self._train), hp.batch_size, hp.seed, member.step)

    def _gradients(
        self, trials: Sequence[str], rows: Sequence[np.ndarray]
    ) -> tuple[Tensor, list[int]]:
        """Gradients of each trial's mean loss over its `rows`; returns the summed losses [K] and
        their targets, over all workers.
        """
        assert self._engine is not None
        nll, targets = self._own_gradients(trials, rows)
        self._world.sum(self._engine.gradients())
        self._world.sum([nll])
        return nll, targets

    def _own_gradients(
        self, trials: Sequence[str], rows: Sequence[np.ndarray]
    ) -> tuple[Tensor, list[int]]:
        """The part of this worker. No result depends on the budget: where memory does not suffice,
        the half-done step is forgotten and taken again in smaller passes.
        """
        longest = (
            max(int(self._train.lengths[each].max()) for each in rows) + self._virtual_tokens()
        )
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
            self._budget.halve(
                len(self._members)
            )  # not inside `except`: there the traceback still holds the graph
            release(self._device)

    def _in_micro_batches(
        self, trials: Sequence[str], rows: Sequence[np.ndarray]
    ) -> tuple[Tensor, list[int]]:
        engine = self._engine
        assert engine is not None
        engine.zero_grad()
        engine.base.model.train()
        row = np.concatenate(rows)  # of all trials
        position = np.repeat(
            np.arange(len(trials)), [len(each) for each in rows]
        )  # in `trials`, of each row
        lane = np.array([engine.trials.index(trial) for trial in trials])[position]
        seed = np.array([self._members[trial].hyperparameters.seed for trial in trials])[position]
        step = np.array([self._members[trial].step for trial in trials])[position]
        totals = [self._task.target_count(self._train.rows(each)) for each in rows]
        # by the targets of its trial's step, not of the pass: neither cut nor company may weigh
        # rows differently
        weight = (1.0 / np.maximum(totals, 1))[position]
        lengths = self._train.lengths[row]
        mine = np.argsort(lengths, kind="stable")[self._world.rank :: self._world.size]
        nll = torch.zeros(len(trials), dtype=torch.float64, device=self._device)
        for chosen in cut_micro_batches(
            lengths[mine] + self._virtual_tokens(), self._budget.tokens, padded=self._padded
        ):
            at = mine[chosen]
            at = at[np.argsort(lane[at], kind="stable")]
            rows_of_pass = self._varlen_rows(lengths[at])
            named, positions = at, None
            if rows_of_pass is not None:
                named, positions = np.repeat(at, lengths[at]), rows_of_pass.positions_N
            self._keys.set(*(self._on_device(each[named]) for each in (seed, step, row)), positions)
            batch = self._batch(self._train, row[at])
            with self._dropping_out():
                nll_B, _, _ = self._losses(batch, lane[at], rows_of_pass)
                (nll_B * self._on_device(weight[at]).to(nll_B.dtype)).sum().backward()
            nll.index_add_(0, self._on_device(position[at]), nll_B.detach().double())
        return nll, totals

    def _losses(
        self, batch: dict[str, Tensor], lanes_B: np.ndarray, rows: varlen.Rows | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses, targets and predictions of the rows of one pass, as `Task` has them; `rows`: it
        passes without padding.
        """
        assert self._base is not None
        labels = batch.pop("labels")
        output = self._base.output
        varlen.passing(rows)
        if rows is not None:
            batch, lanes_B = rows.flatten(batch), np.repeat(lanes_B, rows.lengths)
        with self._precision():
            with hidden_states(output):
                if self._engine is not None:
                    logits = self._engine.forward(
                        batch, MicroBatch.of(lanes_B, self._device)
                    ).logits
                else:
                    logits = self._base.model(**batch).logits
            if rows is not None:
                logits = rows.padded(logits)
            nll_B, targets_B = self._task.row_losses(logits, labels, output)
        return nll_B, targets_B, self._task.predictions(logits, labels)

    def time_step(self, hyperparameters: Hyperparameters, copies: int) -> float:
        """Seconds that this worker takes for a step of `copies` trials like this one, in passes as
        small as memory wants them. Who is on board loses nothing.

        Raises torch.OutOfMemoryError: so many do not fit. NotShared: they cannot be company.
        """
        names = [f"to be timed {number}" for number in range(copies)]
        try:
            for name in names:
                self.join(name, hyperparameters)
            rows = [self._rows(self._members[name]) for name in names]
            cpu = self._device.type == "cpu"
            clock = (
                time.process_time if cpu else time.perf_counter
            )  # other processes of a busy machine do not count
            seconds: list[float] = []
            while len(seconds) < 3 or (
                len(seconds) < 8 and sum(seconds) < 0.3
            ):  # the first warms up
                began = clock()
                self._own_gradients(names, rows)
                if not cpu:
                    torch.cuda.synchronize(self._device)
                seconds.append(clock() - began)
            return min(seconds[1:])
        finally:
            for name in names:
                if name in self._members:
                    self.leave(name)

    def memory_of_a_micro_batch(self, trial: str) -> tuple[int, int]:
        """Bytes that the passes of the next step of `trial` take at their peak, and padded tokens
        of the largest of them if one holds all its rows. The trial makes no step.
        """
        rows = self._rows(self._members[trial])
        with Peak() as peak:
            self._own_gradients([trial], [rows])
        return peak.bytes, len(rows) * (
            int(self._train.lengths[rows].max()) + self._virtual_tokens()
        )

    # --- evaluation ---

    def evaluate(self, trials: Sequence[str]) -> dict[str, MeasuredEvaluation]:
        """Validation and probe losses of `trials` in eval mode, as the checkpoint of this moment
        would give them.
        """
        with (
            self._engine.as_saved()
            if isinstance(self._engine, OwnBaseEngine)
            else contextlib.nullcontext()
        ):
            validation = self._evaluate_rows(
                trials, self._validation, np.arange(len(self._validation))
            )
            probe = self._evaluate_rows(trials, self._train, self._probe_rows)
            forgotten = self._forgotten(trials)
        return {
            trial: self._evaluation(trial, measured, probed.loss, *lost)
            for trial, measured, probed, lost in zip(
                trials, validation, probe, forgotten, strict=True
            )
        }

    def _forgotten(self, trials: Sequence[str]) -> list[tuple[float | None, float | None]]:
        """`forgetting` and `kl` of an `Evaluation`, of each trial."""
        if self._general is None:
            return [(None, None)] * len(trials)
        assert self._base is not None
        base = self._remembered[self._base.quantisation, self._base.dtype]
        general = self._evaluate_rows(trials, self._general, np.arange(len(self._general)))
        drawn = self._evaluate_rows(trials, base.drawn, np.arange(len(base.drawn)))
        return [
            (g.loss - base.general, d.loss - base.own) for g, d in zip(general, drawn, strict=True)
        ]

    def _remember(self, base: BaseModel) -> None:
        """Measure the untuned base, so that what trials forget of it can be told."""
        if self._general is None or (base.quantisation, base.dtype) in self._remembered:
            return

        def states(row: dict[str, Any]) -> Tensor:
            batch = self._task.collate([row], self._pad_token_id)
            del batch["labels"]
            varlen.passing(None)
            with torch.no_grad(), self._precision():
                with hidden_states(base.output):
                    return base.model(
                        **{name: tensor.to(self._device) for name, tensor in batch.items()}
                    ).logits[0]

        def logits(states_TD: Tensor) -> Tensor:
            with torch.no_grad(), self._precision():
                return states_TD if base.output is None else base.output(states_TD)

        def agree(drawn: Tensor) -> Tensor:
            return self._world.from_first(drawn.to(self._device)).cpu()

        drawn = draw_continuations(states, self._validation, self._settings.seed, agree, logits)
        (general,) = self._evaluate_rows([""], self._general, np.arange(len(self._general)))
        (own,) = self._evaluate_rows([""], drawn, np.arange(len(drawn)))
        self._remembered[base.quantisation, base.dtype] = Remembered(
            general=general.loss, drawn=drawn, own=own.loss
        )

    def evaluate_base(
        self, method: str, options: Any = None
    ) -> tuple[float, float, dict[str, float]]:
        """Validation loss, probe loss and metrics of the untuned base (its new head, if any, is
        random).
        """
        measured, probed = self.untuned_results(method, options)
        return measured.loss, probed.loss, self.metrics(measured)

    def untuned_results(
        self, method: str, options: Any = None
    ) -> tuple["RowResults", "RowResults"]:
        """What the untuned base makes of the validation rows and of the probe."""
        assert not self._members
        self._base_for(method, options)
        (measured,) = self._evaluate_rows([""], self._validation, np.arange(len(self._validation)))
        (probed,) = self._evaluate_rows([""], self._train, self._probe_rows)
        return measured, probed

    def metrics(self, measured: "RowResults") -> dict[str, float]:
        return self._task.metrics(*measured.columns)

    def forget_base(self) -> None:
        """Free the base's memory; the next trial loads it again."""
        assert not self._members
        if self._base is not None:
            self._base, self._pristine, self._function_dropout = None, {}, None
            release(self._device)

    def _evaluation(
        self,
        trial: str,
        measured: "RowResults",
        probe_loss: float,
        forgetting: float | None,
        kl: float | None,
    ) -> MeasuredEvaluation:
        member = self._members[trial]
        hp = member.hyperparameters
        train_loss = member.train_nll / member.train_targets if member.train_targets else None
        member.train_nll, member.train_targets = 0.0, 0
        trained = sum(p.numel() for p in self._engine.weights(trial).values())
        return MeasuredEvaluation(
            step=member.step,
            samples_seen=self._samples(hp, member.step),
            epoch=round(self._samples(hp, member.step) / len(self._train), 4),
            val_loss=measured.loss,
            probe_loss=probe_loss,
            train_loss=train_loss,
            learning_rate=learning_rate(hp, max(member.step - 1, 0), self.total_steps(hp)),
            metrics=self._task.metrics(*measured.columns),
            trainable_parameters=trained,
            finished=self.finished(hp, member.step),
            majority_share=measured.majority_share,
            slices=measured.by_slice(self._task, self._slices),
            forgetting=forgetting,
            kl=kl,
            inference_cost=self._inference_cost(hp, trained),
            losses=measured.losses,
            predictions=measured.classes,
        )

    def _inference_cost(self, hp: Hyperparameters, trained: int) -> float:
        """Arithmetic of a request over that of the untuned base: 2 x parameters x tokens (Kaplan et
        al. 2020, section 2.1).

        What can be merged into the base costs nothing; the length of a request is that of the
        validation rows.
        """
        assert self._base is not None
        model, own = self._base.model, 0
        if hp.method in ADDITIVE and ADDITIVE[hp.method].stays_beside:
            own = trained - sum(
                p.numel() for name, p in model.named_parameters() if self._base.in_head(name)
            )
        computed, output = (
            model.num_parameters(exclude_embeddings=True),
            model.get_output_embeddings(),
        )
        if output is not None and output.weight is model.get_input_embeddings().weight:
            computed += (
                output.weight.numel()
            )  # one table for both, and the output layer multiplies by it
        longer = virtual_tokens(hp) / float(self._validation.lengths.mean())
        return (1 + own / computed) * (1 + longer)

    def _evaluate_rows(
        self, trials: Sequence[str], split: Rows, rows: np.ndarray
    ) -> list["RowResults"]:
        """What each of `trials` makes of `rows`; every batch passes once for all of them."""
        assert self._base is not None
        self._base.model.eval()
        order = self._engine.trials if self._engine else [""]
        lanes = sorted(order.index(trial) for trial in trials)

        def losses(
            batch: dict[str, Tensor], chosen: Sequence[int]
        ) -> tuple[Tensor, Tensor, Tensor | None]:
            lanes_B = np.repeat([lanes[copy] for copy in chosen], len(batch["input_ids"]))
            repeated = {
                name: x.repeat(len(chosen), *([1] * (x.ndim - 1))) for name, x in batch.items()
            }
            return self._losses(
                repeated,
                lanes_B,
                self._varlen_rows(batch["attention_mask"].sum(1).tolist() * len(chosen)),
            )

        found = evaluate_in_micro_batches(
            losses,
            len(trials),
            self._task,
            split,
            rows,
            self._pad_token_id,
            self._settings.max_tokens,
            self._device,
            self._world,
            self._virtual_tokens(),
            self._padded,
        )
        by_trial = {order[lane]: each for lane, each in zip(lanes, found, strict=True)}
        return [by_trial[trial] for trial in trials]

    # --- saving ---

    def save(self, trial: str, folder: Path) -> None:
        """Write `checkpoint/` (what a user loads) and, for a trial that goes on, the optimiser's
        state, below `folder`.
        """
        member, engine, target = self._members[trial], self._engine, folder / "checkpoint"
        assert engine is not None
        hp = member.hyperparameters
        if isinstance(engine, OwnBaseEngine):
            with engine.as_saved(rounded=False):
                REPLACING[hp.method].save(engine.base, target)
        else:
            target.mkdir(parents=True, exist_ok=True)
            save_file(
                _on_cpu(engine.weights(trial)), target / WEIGHTS_FILE, metadata={"format": "pt"}
            )
            ADDITIVE[hp.method].describe(engine.base, hp.options, target)
        if not self.finished(hp, member.step):
            save_file(_on_cpu(engine.moments(trial)), folder / STATE_FILE)

    def _restore(self, trial: str, member: GroupMember, folder: Path) -> None:
        member.step = int(json.loads((folder / "evaluation.json").read_text())["step"])
        moments, hp = load_file(folder / STATE_FILE), member.hyperparameters
        if isinstance(self._engine, OwnBaseEngine):
            REPLACING[hp.method].load(self._engine.base, folder / "checkpoint")
            self._engine.restore(moments, member.step)
        elif self._engine is not None:
            self._engine.restore(trial, load_file(folder / "checkpoint" / WEIGHTS_FILE), moments)

    # --- counting ---

    def total_steps(self, hp: Hyperparameters) -> int:
        return total_steps(len(self._train), hp)

    def finished(self, hp: Hyperparameters, step: int) -> bool:
        return step >= self.total_steps(hp)

    def progress(self, trial: str) -> int:
        """Samples that `trial` has seen."""
        member = self._members[trial]
        return self._samples(member.hyperparameters, member.step)

    def _samples(self, hp: Hyperparameters, step: int) -> int:
        return samples_seen(len(self._train), hp, step)

    def _due(self, member: GroupMember) -> bool:
        hp = member.hyperparameters
        every = self._settings.evaluate_every or len(self._train)
        now, before = self._samples(hp, member.step), self._samples(hp, member.step - 1)
        return self.finished(hp, member.step) or now // every > before // every

    # --- the base ---

    def _base_for(self, method: str, options: Any = None) -> BaseModel:
        quantisation = quantisation_of(method, options)
        dtype = self._base_dtype(method)
        if self._base is None or (self._base.quantisation, self._base.dtype) != (
            quantisation,
            dtype,
        ):
            self.forget_base()  # before the new one is loaded
            self._budget = TokenBudget(self._settings.max_tokens)
            self._base = self._load_base(quantisation, dtype)
            replace_dropout(self._base.model, self._keys)
            self._mixing_rows, self._shared = self._find_mixing_rows(self._base), {}
            self._padded = not self._padding_changes_losses(self._base)
            self._function_dropout = self._watch_functions(self._base)
            self._varlen_cost = self._time_varlen(self._base)
            self._remember(self._base)
            self._try_sharing(self._base, method, options)
        return self._base

    def _find_mixing_rows(self, base: BaseModel) -> dict[str, tuple[bool, ...]]:
        """Modules at which trials may add something, and dropout, that do not see rows one after
        another.
        """
        model = base.model
        linear = [name for name, module in model.named_modules() if is_linear(module)]
        dropout = {
            name: module.layer
            for name, module in model.named_modules()
            if isinstance(module, RowDropout)
        }
        try:
            lists = layer_lists(model)
        except InputError:  # then no method adds to layers
            lists = []
        each = [f"{stack}.{number}" for stack, layers in lists for number in range(len(layers))]
        longest = self._train.rows([int(self._train.lengths.argmax())])[0]["input_ids"].astype(
            np.int64
        )
        # both ends of a row, where its special tokens are: all inputs of all layers are kept for a
        # moment
        ids_T = torch.from_numpy(
            longest if len(longest) <= 16 else np.concatenate([longest[:8], longest[-8:]])
        )

        def run(ids_3T: Tensor) -> None:
            varlen.passing(None)
            batch = {"input_ids": ids_3T, "attention_mask": torch.ones_like(ids_3T)}
            with self._precision(), hidden_states(base.output):
                model(**{name: x.to(self._device) for name, x in batch.items()})

        self._keys.mixing_rows = {}
        found = mixing_rows(
            model, [*linear, *base.head, *dropout, *each], run, ids_T, self._other(base, ids_T)
        )
        numbers = {
            name: FIRST_LAYER + number
            for number, name in enumerate(linear_layers(model, base.head))
        }
        self._keys.mixing_rows = {
            layer: found[name] for name, layer in {**numbers, **dropout}.items() if name in found
        }
        return found

    def _padding_changes_losses(self, base: BaseModel) -> bool:
        """Whether rows of unlike lengths may not share a pass."""

        def losses(rows: np.ndarray) -> Tensor:
            nll_B, targets_B, _ = self._losses(
                self._batch(self._train, rows), np.zeros(len(rows), dtype=int), None
            )
            return nll_B / targets_B.clamp(min=1)

        limit = SAME_HALF if self._rounds(base) else SAME_ROW
        return padding_changes_losses(losses, self._train.lengths, limit, self._settings.max_tokens)

    def _rounds(self, base: BaseModel) -> bool:
        """Whether the arithmetic over `base` is in half precision."""
        return self._settings.autocast is not None or base.dtype.itemsize < 4

    def _other(self, base: BaseModel, ids_T: Tensor) -> Tensor:
        """A row as long as another, with other tokens; those that stay tell a classifier where rows
        begin and end.
        """
        first = self._train.rows(range(min(len(self._train), 64)))
        seen = torch.unique(
            torch.from_numpy(np.concatenate([row["input_ids"] for row in first])).long()
        )
        config = base.model.config.get_text_config().to_dict()
        special = {
            value
            for name, value in config.items()
            if name.endswith("_token_id") and isinstance(value, int)
        }
        special |= {self._pad_token_id} | (
            {int(ids_T[0]), int(ids_T[-1])} if len(ids_T) > 2 else set()
        )
        others = [token for token in seen.tolist() if token not in special] or seen.tolist()
        kept = special if base.head else set()
        moved = [
            t if t in kept else others[(others.index(t) + 1 if t in others else 0) % len(others)]
            for t in ids_T.tolist()
        ]
        return torch.tensor(moved)

    def _try_sharing(self, base: BaseModel, method: str, options: Any) -> None:
        """Once for a base, with the first method that would share it."""
        if method in REPLACING:
            return
        hp = Hyperparameters(
            method=method,
            learning_rate=1.0,
            batch_size=1,
            epochs=1,
            options=options or OPTIONS[method](),
        )
        with contextlib.suppress(
            InputError
        ):  # the method does not suit the base; a trial's own join says so
            self._shared[method] = self._can_share(base, hp)

    def _can_share(self, base: BaseModel, hp: Hyperparameters) -> bool:
        """Whether trials like `hp` can share the base: its modules see rows apart, and two trials
        in one pass over rows of unlike lengths, where the base takes such passes, have the losses
        that each has alone.
        """
        if self._mixing_rows:
            return False
        lengths = self._train.lengths
        order = np.argsort(lengths, kind="stable")
        # one trial has the longest, the other the rest
        rows = np.array(
            [order[0], order[len(order) // 2], order[-1]] if self._padded else [order[-1]] * 3
        )
        owner = np.array([0, 0, 1])
        self._engine = pair = SharedBaseEngine(
            base, self._keys, compute=self._settings.autocast, device=self._device
        )
        try:
            with seeded(self._settings.seed, self._device):
                for name in ("one", "other"):
                    additions = self._additions(base, hp)
                    for addition in additions:
                        addition.values.update(
                            {n: x + 0.1 * torch.randn_like(x) for n, x in addition.values.items()}
                        )
                    pair.join(name, additions)

            def losses(chosen: np.ndarray) -> Tensor:
                self._keys.set(0, 0, self._on_device(rows[chosen]))
                with torch.no_grad(), self._dropping_out():
                    nll_B, targets_B, _ = self._losses(
                        self._batch(self._train, rows[chosen]), owner[chosen], None
                    )
                return nll_B / targets_B.clamp(min=1)

            base.model.train()  # with dropout, whose masks must be the same too
            together = losses(np.arange(3))
            alone = torch.cat([losses(np.flatnonzero(owner == lane)) for lane in (0, 1)])
        except torch.OutOfMemoryError:
            return False
        finally:
            base.model.eval()
            for name in pair.trials:
                pair.leave(name)
            self._engine = None
        limit = SAME_HALF if self._rounds(base) else SAME
        return torch.allclose(together, alone, rtol=limit, atol=limit, equal_nan=True)

    def _time_varlen(self, base: BaseModel) -> float:
        lengths, wanted = self._train.lengths, self._settings.varlen
        if wanted is None:
            wanted = self._device.type == "cuda"
        if (
            not wanted
            or base.output is None
            or lengths.min() == lengths.max()
            or not varlen.prepare(base.model)
        ):
            return math.inf
        # the longest and some others; the seed of the sweep chooses, so that all workers of a slot
        # choose alike
        some = stream("timed rows", self._settings.seed).permutation(len(lengths))
        rows = np.array(
            [lengths.argmax(), *some[: max(1, self._budget.tokens // int(lengths.max()) - 1)]]
        )
        batch = self._batch(self._train, rows)
        del batch["labels"]

        def hidden(batch: dict[str, Tensor]) -> Tensor:
            with self._precision(), hidden_states(base.output):
                return base.model(**batch).logits

        cost = varlen.cost(hidden, batch)
        return 0.0 if self._settings.varlen and math.isfinite(cost) else cost

    def _varlen_rows(self, lengths_B: Sequence[int]) -> varlen.Rows | None:
        """How rows of these lengths pass without padding; None: with it they pass faster."""
        padded = len(lengths_B) * max(lengths_B)
        if self._virtual_tokens() or sum(lengths_B) * self._varlen_cost >= padded:
            return None
        return varlen.Rows.of(lengths_B, self._device)

    def _watch_functions(self, base: BaseModel) -> FunctionDropout | None:
        """What to run a model under that drops out in functions, not modules."""
        mode = FunctionDropout(self._keys)
        batch = self._batch(self._train, np.array([0]))
        del batch["labels"]
        self._keys.set(0, 0, torch.zeros(1, dtype=torch.int64, device=self._device))
        base.model.train()
        with torch.no_grad(), mode, hidden_states(base.output):
            base.model(**batch)
        base.model.eval()
        if mode.used:
            mode.follow(base.model)
        return mode if mode.used else None

    def _dropping_out(self) -> contextlib.AbstractContextManager:
        return self._function_dropout or contextlib.nullcontext()

    def _batch(self, split: Split, rows: np.ndarray) -> dict[str, Tensor]:
        batch = self._task.collate(split.rows(rows), self._pad_token_id)
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}

    def _virtual_tokens(self) -> int:
        """That stand before each row: as many for all on board."""
        return max(
            (virtual_tokens(member.hyperparameters) for member in self._members.values()), default=0
        )

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values).to(self._device, non_blocking=True)

    def _precision(self) -> contextlib.AbstractContextManager:
        if self._settings.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self._settings.autocast)


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
    """A pack over the folder that `trainables.data.prepare.prepare` wrote."""
    what, labels = TASKS[task], labels_of(data)

    def load_base(quantisation: Quantisation, dtype: torch.dtype) -> BaseModel:
        spec = BaseSpec(
            model=model,
            auto_class=what.auto_class,
            quantisation=quantisation,
            dtype=dtype,
            pad_token_id=pad_token_id,
            labels=labels,
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
