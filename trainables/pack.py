"""One optimiser step, one evaluation, one checkpoint for every trial on board. No Ray here.

A pack trains up to `capacity` trials over one base. For now the capacity is one; who calls it sees the same interface
whatever the number: trials are named by their id in every call.

Letters of shapes: B rows of a pass, T tokens, N rows of a split.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.data.batches import batch_indices, cut_passes, steps_per_epoch
from trainables.data.prepare import Split
from trainables.dropout import RowKeys, replace_dropout
from trainables.hyperparameters import Hyperparameters
from trainables.methods import METHODS
from trainables.model import BaseModel, Variant
from trainables.tasks import Task

STATE_FILE = "training_state.safetensors"


@dataclass(frozen=True, kw_only=True)
class World:
    """The workers of a slot: rows of a step are split over them, gradients and losses summed."""

    rank: int = 0
    size: int = 1

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add `tensors` over all workers, in place, in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """What is the same for every trial of a sweep."""

    evaluate_every: int | None = None  # samples between evaluations; None: once an epoch
    max_tokens: int = 4096  # padded tokens of one forward and backward pass; memory only, never the result
    autocast: torch.dtype | None = None
    gradient_checkpointing: bool = False
    probe_rows: int = 512
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A point of a trial. Losses are means in nats per example (classification) or target token (language models)."""

    step: int
    samples_seen: int
    epoch: float
    val_loss: float
    probe_loss: float
    train_loss: float | None  # mean over the steps since the last evaluation, in training mode
    learning_rate: float
    metrics: dict[str, float]
    trainable_parameters: int
    finished: bool
    losses: np.ndarray  # [N, 2] float32: per validation row the summed loss and its number of targets


@dataclass(kw_only=True)
class Aboard:
    """A trial on board and what it trains with."""

    hyperparameters: Hyperparameters
    base: BaseModel
    model: Any
    parameters: dict[str, Tensor]  # what is trained
    optimizer: torch.optim.AdamW
    step: int = 0
    train_nll: float = 0.0  # since the last evaluation
    train_targets: int = 0


class NonFinite(ArithmeticError):
    """Loss or gradient of one trial is no longer a number; the trial leaves, the slot goes on."""


class Pack:
    capacity = 1

    def __init__(
        self,
        *,
        load_base: Callable[[Variant, torch.dtype], BaseModel],
        base_dtype: Callable[[str], torch.dtype],
        task: Task,
        train: Split,
        validation: Split,
        pad_token_id: int,
        settings: PackSettings,
        device: torch.device,
        world: World,
    ) -> None:
        self._load_base = load_base
        self._base_dtype = base_dtype  # of a method's base
        self._task = task
        self._train = train
        self._validation = validation
        self._pad_token_id = pad_token_id
        self._settings = settings
        self._device = device
        self._world = world
        self._max_tokens = settings.max_tokens
        self._keys = RowKeys()
        self._base: BaseModel | None = None
        self._pristine: dict[str, Tensor] = {}  # weights of the base that training has changed at some time
        self._aboard: dict[str, Aboard] = {}
        # the probe is the same for all trials, so that their probe losses compare
        chosen = np.random.Generator(np.random.PCG64([settings.seed, 7])).permutation(len(train))[: settings.probe_rows]
        self._probe_rows = np.sort(chosen)

    @property
    def trials(self) -> list[str]:
        return list(self._aboard)

    # --- joining and leaving ---

    def join(self, trial: str, hyperparameters: Hyperparameters, checkpoint: Path | None = None) -> None:
        """Take `trial` on board, from its start or from an evaluation folder that `save` wrote with its training state."""
        assert len(self._aboard) < self.capacity, "the pack is full"
        base = self._base_for(hyperparameters.method)
        try:
            model, parameters = self._attach(base, hyperparameters)
        except BaseException:  # half attached: the next trial gets a base that is loaded anew
            self._base, self._pristine = None, {}
            raise
        decayed = [p for p in parameters.values() if p.ndim >= 2]  # never biases and norms
        rest = [p for p in parameters.values() if p.ndim < 2]
        hp = hyperparameters
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": hp.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=hp.learning_rate,
            betas=(hp.beta1, hp.beta2),
            eps=hp.epsilon,
            fused=True,
        )
        aboard = Aboard(hyperparameters=hp, base=base, model=model, parameters=parameters, optimizer=optimizer)
        self._aboard[trial] = aboard
        if checkpoint is not None:
            self._restore(aboard, checkpoint)

    def _attach(self, base: BaseModel, hp: Hyperparameters) -> tuple[Any, dict[str, Tensor]]:
        """The model to run, and what of it is trained; what of the base will change is remembered first."""
        with _seeded(hp.seed, self._device):
            self._remember(base, [name for name, _ in base.model.named_parameters() if base.in_head(name)])
            for name in base.new:
                _initialise(base.model, base.model.get_submodule(name))
            model = METHODS[hp.method].attach(base, hp.options)
        replace_dropout(model, self._keys)
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if model is base.model:
            self._remember(base, list(parameters))
        if self._settings.gradient_checkpointing:
            base.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        return model, parameters

    def leave(self, trial: str) -> None:
        """Put `trial` off board; the base is again exactly what it was."""
        aboard = self._aboard.pop(trial)
        METHODS[aboard.hyperparameters.method].detach(aboard.model, aboard.base)
        if self._settings.gradient_checkpointing:
            aboard.base.model.activation_checkpointing_disable()
            aboard.base.model.disable_input_require_grads()
        aboard.base.model.eval()
        with torch.no_grad():
            for name, parameter in aboard.base.model.named_parameters():
                parameter.grad = None
                if name in self._pristine:
                    parameter.copy_(self._pristine[name])

    # --- one step ---

    def step(self, trials: Sequence[str]) -> list[str]:
        """One optimiser step for each of `trials`; returns those whose evaluation is now due. Raises NonFinite."""
        for trial in trials:
            self._step(self._aboard[trial])
        return [trial for trial in trials if self._due(self._aboard[trial])]

    def _step(self, aboard: Aboard) -> None:
        hp = aboard.hyperparameters
        rows = batch_indices(len(self._train), hp.batch_size, hp.seed, aboard.step)
        while True:
            try:
                nll, targets = self._gradients(aboard, rows)
                break
            except torch.OutOfMemoryError:
                if self._max_tokens <= int(self._train.lengths[rows].max()):
                    raise
                # no result depends on the budget: forget the half-done step and take it again in smaller passes
                self._max_tokens //= 2
                torch.cuda.empty_cache()
        parameters = list(aboard.parameters.values())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not math.isfinite(nll) or not torch.isfinite(norm):
            raise NonFinite(f"the training loss or its gradient became non-finite at step {aboard.step + 1}")
        if hp.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, hp.max_grad_norm, norm)
        rate = learning_rate(hp, aboard.step, self.total_steps(hp))
        for group in aboard.optimizer.param_groups:
            group["lr"] = rate
        aboard.optimizer.step()
        aboard.step += 1
        aboard.train_nll += nll
        aboard.train_targets += targets

    def _gradients(self, aboard: Aboard, rows: np.ndarray) -> tuple[float, int]:
        """Gradient of the step's mean loss into `.grad`; returns the summed loss and its targets, over all workers."""
        hp = aboard.hyperparameters
        aboard.optimizer.zero_grad(set_to_none=True)
        aboard.model.train()
        lengths = self._train.lengths[rows]
        mine = np.argsort(lengths, kind="stable")[self._world.rank :: self._world.size]
        total = self._task.target_count(self._train.rows(rows))
        nll = torch.zeros((), dtype=torch.float64, device=self._device)
        torch.manual_seed(
            hash((hp.seed, aboard.step)) & 0x7FFFFFFF
        )  # for models that drop out in functions, not modules
        for positions in cut_passes(lengths[mine], self._max_tokens):
            picked = rows[mine[positions]]
            batch = self._batch(self._train, picked)
            labels = batch.pop("labels")
            self._keys.set(hp.seed, aboard.step, torch.as_tensor(picked, device=self._device))
            with self._precision():
                logits = aboard.model(**batch).logits
            nll_B, _ = self._task.row_losses(logits, labels)
            # by the step's targets, not by the pass's: the cut into passes must not weigh rows differently
            (nll_B.sum() / total).backward()
            nll += nll_B.detach().sum()
        for parameter in aboard.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._world.sum([p.grad for p in aboard.parameters.values() if p.grad is not None])
        self._world.sum([nll])
        return float(nll), total

    # --- evaluation ---

    def evaluate(self, trials: Sequence[str]) -> dict[str, Evaluation]:
        """Validation and probe losses of `trials` in eval mode, as the checkpoint of this moment would give them."""
        return {trial: self._evaluate(self._aboard[trial]) for trial in trials}

    def evaluate_base(self, method: str) -> tuple[float, float, dict[str, float]]:
        """Validation loss, probe loss and metrics of the untuned base (its new head, if any, is random)."""
        assert not self._aboard
        model = self._base_for(method).model
        val_loss, metrics, _ = self._measure(model, self._validation, np.arange(len(self._validation)))
        probe_loss, _, _ = self._measure(model, self._train, self._probe_rows)
        return val_loss, probe_loss, metrics

    def _evaluate(self, aboard: Aboard) -> Evaluation:
        hp = aboard.hyperparameters
        val_loss, metrics, losses = self._measure(aboard.model, self._validation, np.arange(len(self._validation)))
        probe_loss, _, _ = self._measure(aboard.model, self._train, self._probe_rows)
        train_loss = aboard.train_nll / aboard.train_targets if aboard.train_targets else None
        aboard.train_nll, aboard.train_targets = 0.0, 0
        return Evaluation(
            step=aboard.step,
            samples_seen=self._samples(hp, aboard.step),
            epoch=round(self._samples(hp, aboard.step) / len(self._train), 4),
            val_loss=val_loss,
            probe_loss=probe_loss,
            train_loss=train_loss,
            learning_rate=learning_rate(hp, max(aboard.step - 1, 0), self.total_steps(hp)),
            metrics=metrics,
            trainable_parameters=sum(p.numel() for p in aboard.parameters.values()),
            finished=self.finished(hp, aboard.step),
            losses=losses,
        )

    def _measure(self, model: Any, split: Split, rows: np.ndarray) -> tuple[float, dict[str, float], np.ndarray]:
        nll, targets, predictions, labels = measure(
            model,
            self._task,
            split,
            rows,
            self._pad_token_id,
            self._settings.max_tokens,
            self._device,
            self._precision,
            self._world,
        )
        return (
            float(nll.sum() / targets.sum()),
            self._task.metrics(nll, targets, predictions, labels),
            np.stack([nll, targets], 1).astype(np.float32),
        )

    # --- saving ---

    def save(self, trial: str, folder: Path) -> None:
        """Write `checkpoint/` (what a user loads) and, for a trial that goes on, the optimiser's state, below `folder`."""
        aboard = self._aboard[trial]
        METHODS[aboard.hyperparameters.method].save(aboard.model, folder / "checkpoint")
        if not self.finished(aboard.hyperparameters, aboard.step):
            state = {}
            for name, parameter in aboard.parameters.items():
                for key, value in aboard.optimizer.state[parameter].items():
                    state[f"{key}/{name}"] = value.detach().cpu().contiguous()
            save_file(state, folder / STATE_FILE, metadata={"step": json.dumps(aboard.step)})

    def _restore(self, aboard: Aboard, folder: Path) -> None:
        method = METHODS[aboard.hyperparameters.method]
        method.load(aboard.model, folder / "checkpoint")
        state = load_file(folder / STATE_FILE)
        for name, parameter in aboard.parameters.items():
            aboard.optimizer.state[parameter] = {
                key: state[f"{key}/{name}"].to(
                    parameter.device if key != "step" or self._device.type == "cuda" else "cpu"
                )
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        aboard.step = int(json.loads((folder / "evaluation.json").read_text())["step"])

    # --- counting ---

    def total_steps(self, hp: Hyperparameters) -> int:
        return _ceil(hp.epochs * steps_per_epoch(len(self._train), hp.batch_size))

    def finished(self, hp: Hyperparameters, step: int) -> bool:
        return step >= self.total_steps(hp)

    def progress(self, trial: str) -> int:
        """Samples that `trial` has seen."""
        aboard = self._aboard[trial]
        return self._samples(aboard.hyperparameters, aboard.step)

    def _samples(self, hp: Hyperparameters, step: int) -> int:
        epochs, rest = divmod(step, steps_per_epoch(len(self._train), hp.batch_size))
        return epochs * len(self._train) + rest * hp.batch_size

    def _due(self, aboard: Aboard) -> bool:
        hp = aboard.hyperparameters
        every = self._settings.evaluate_every or len(self._train)
        now, before = self._samples(hp, aboard.step), self._samples(hp, aboard.step - 1)
        return self.finished(hp, aboard.step) or now // every > before // every

    # --- the base ---

    def _base_for(self, method: str) -> BaseModel:
        variant = METHODS[method].variant
        dtype = self._base_dtype(method)
        if self._base is None or (self._base.variant, self._base.dtype) != (variant, dtype):
            self._base, self._pristine = None, {}  # free the old base before the new one is loaded
            self._base = self._load_base(variant, dtype)
            replace_dropout(self._base.model, self._keys)
        return self._base

    def _remember(self, base: BaseModel, names: Sequence[str]) -> None:
        parameters = dict(base.model.named_parameters())
        for name in names:
            if name not in self._pristine:
                self._pristine[name] = parameters[name].detach().to("cpu", copy=True)

    def _batch(self, split: Split, rows: np.ndarray) -> dict[str, Tensor]:
        batch = self._task.collate(split.rows(rows), self._pad_token_id)
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}

    def _precision(self) -> contextlib.AbstractContextManager:
        if self._settings.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self._settings.autocast)


def measure(
    model: Any,
    task: Task,
    split: Split,
    rows: np.ndarray,
    pad_token_id: int,
    max_tokens: int,
    device: torch.device,
    precision: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    world: World | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Loss of each of `rows` in eval mode: summed loss [N], targets [N], predicted and true classes [N] or None.

    Used by training and by `verify`, so both measure alike.
    """
    world = world or World()
    was_training = model.training
    model.eval()
    lengths = split.lengths[rows]
    mine = np.argsort(lengths, kind="stable")[world.rank :: world.size]
    results = torch.zeros(4, len(rows), dtype=torch.float64)
    classes = False
    with torch.no_grad():  # not inference mode: what a model caches in it could not be trained with afterwards
        passes = list(cut_passes(lengths[mine], max_tokens))
        while passes:
            positions = passes.pop(0)
            at = mine[positions]
            batch = task.collate(split.rows(rows[at]), pad_token_id)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            labels = batch.pop("labels")
            try:
                with precision():
                    logits = model(**batch).logits
                nll_B, targets_B = task.row_losses(logits, labels)
                predicted_B = task.predictions(logits, labels)
            except torch.OutOfMemoryError:
                if len(positions) == 1:
                    raise
                logits = None
                torch.cuda.empty_cache()
                half = len(positions) // 2
                passes[:0] = [positions[:half], positions[half:]]
                continue
            index = torch.as_tensor(at)
            results[0, index] = nll_B.double().cpu()
            results[1, index] = targets_B.double().cpu()
            if predicted_B is not None:
                classes = True
                results[2, index] = predicted_B.double().cpu()
                results[3, index] = labels.double().cpu()
    if world.size > 1:
        shared = results.to(device)
        world.sum([shared])
        results = shared.cpu()
        flag = torch.tensor([float(classes)], device=device)
        world.sum([flag])
        classes = bool(flag > 0)
    if was_training:
        model.train()
    nll, targets, predictions, labels = results.numpy()
    if not classes:
        return nll, targets, None, None
    return nll, targets, predictions.astype(np.int64), labels.astype(np.int64)


def learning_rate(hp: Hyperparameters, step: int, total_steps: int) -> float:
    """Rate of optimiser step `step` (0-based): linear warm-up, then linear or cosine decay to 0, or constant."""
    warmup = _ceil(hp.warmup_ratio * total_steps)
    if step < warmup:
        return hp.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    if hp.schedule == "linear":
        return hp.learning_rate * (1 - done)
    if hp.schedule == "cosine":
        return hp.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return hp.learning_rate


def _ceil(product: float) -> int:
    """1.1 epochs of 10 steps are 11 steps, though their product is a little more."""
    return math.ceil(round(product, 6))


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _initialise(model: Any, head: torch.nn.Module) -> None:
    """Draw the weights of `head` anew, as transformers draws those of a new head."""
    for module in head.modules():
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False  # transformers leaves alone what carries this mark
        model._init_weights(module)
