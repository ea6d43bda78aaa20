"""A trial that trains weights of the base itself, and so has it alone. No Ray here."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from trainables.engine.kernels import MicroBatch
from trainables.engine.optimisers import Optimisers
from trainables.engine.seeding import seeded
from trainables.engine.shared import AVERAGE, WEIGHTS, ema_decay
from trainables.hyperparameters import Hyperparameters
from trainables.methods import REPLACING
from trainables.models.base import BaseModel
from trainables.models.heads import initialise
from trainables.models.output import ModelOutput


class OwnBaseEngine:
    """One trial and its base; the same interface as `SharedBaseEngine`."""

    def __init__(
        self,
        base: BaseModel,
        pristine: dict[str, Tensor],
        trial: str,
        hp: Hyperparameters,
        save_dtype: torch.dtype | None = None,
    ) -> None:
        """`pristine` collects the weights that are changed here, as they were, so that `leave` can
        put them back.

        save_dtype: of the weights in a checkpoint; None: that of the base's own files where it is
        trained in float32, else that in which it is trained.
        """
        self.base = base
        # a wider one is for arithmetic
        own = getattr(base.config, "dtype", None) if base.dtype is torch.float32 else None
        self._save_dtype = save_dtype or own or base.dtype
        self.trials = [trial]
        self._pristine = pristine
        with seeded(hp.seed, base.model.device):
            self._remember(
                [name for name, _ in base.model.named_parameters() if base.in_head(name)]
            )
            for name in base.new:
                initialise(base.model, base.model.get_submodule(name))
            REPLACING[hp.method].attach(base, hp.options)
        self._parameters = {name: p for name, p in base.model.named_parameters() if p.requires_grad}
        self._remember(list(self._parameters))
        self._optimisers = Optimisers(self._parameters, self._hidden(), hp)
        # by name; of a trial that asks for them
        self._averages = _copies(self._parameters) if hp.ema_decay else {}

    def _hidden(self) -> list[str]:
        """Matrices between embeddings and outputs, which Muon is for (Jordan et al. 2024)."""
        model = self.base.model
        outside = [model.get_output_embeddings()]
        outside += [each for each in model.modules() if isinstance(each, torch.nn.Embedding)]
        apart = {id(p) for each in outside if each is not None for p in each.parameters()}
        return [
            name
            for name, p in self._parameters.items()
            if p.ndim == 2 and id(p) not in apart and not self.base.in_head(name)
        ]

    def _remember(self, names: Sequence[str]) -> None:
        parameters = dict(self.base.model.named_parameters())
        for name in names:
            if name not in self._pristine:
                self._pristine[name] = parameters[name].detach().to("cpu", copy=True)

    def leave(self, trial: str) -> None:
        """The base is again exactly what it was."""
        self.trials.remove(trial)
        with torch.no_grad():
            for name, parameter in self.base.model.named_parameters():
                parameter.grad = None
                parameter.requires_grad_(False)
                if name in self._pristine:
                    parameter.copy_(self._pristine[name])

    def place(self, micro_batch: MicroBatch) -> None:
        """All rows are the one trial's."""

    def starting(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch

    def forward(self, batch: dict[str, Tensor], micro_batch: MicroBatch) -> ModelOutput:
        return self.base.model(**batch)

    def zero_grad(self) -> None:
        self._optimisers.zero_grad()

    def gradients(self) -> list[Tensor]:
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in self._parameters.values() if p.grad is not None]

    def penalise(self, trials: Sequence[str]) -> Tensor:
        """No method that trains the base adds to what it minimises."""
        return torch.zeros(len(trials), dtype=torch.float64, device=self.base.model.device)

    def norms(self, trials: Sequence[str]) -> Tensor:
        return torch.nn.utils.get_total_norm(self.gradients()).reshape(1)

    def update(
        self,
        trials: Sequence[str],
        hps: Sequence[Hyperparameters],
        rates: Sequence[float],
        steps: Sequence[int],
        totals: Sequence[int],
        norms: Tensor,
    ) -> None:
        for hp, rate, step in zip(hps, rates, steps, strict=True):
            if hp.max_grad_norm > 0:
                torch.nn.utils.clip_grads_with_norm_(
                    self._parameters.values(), hp.max_grad_norm, norms[0]
                )
            self._optimisers.step(rate)
            for name, average in self._averages.items():
                average.lerp_(self._parameters[name].detach(), 1 - ema_decay(hp, step))

    @contextmanager
    def as_saved(self, *, rounded: bool = True) -> Iterator[None]:
        """Inside, the weights are those that a checkpoint holds, or their averages, in its type or,
        `rounded`, with its digits: what is measured must be what is loaded again.
        """
        named = self.base.model.named_parameters()
        kept = [(name, p, p.data) for name, p in named if p.is_floating_point()]
        try:
            for name, parameter, data in kept:
                parameter.data = (
                    self._averages.get(name, data)
                    .to(self._save_dtype)
                    .to(data.dtype if rounded else self._save_dtype)
                )
            yield
        finally:
            for _, parameter, data in kept:
                parameter.data = data

    def weights(self, trial: str) -> dict[str, Tensor]:
        return dict(self._parameters)

    def training_weights(self, trial: str) -> dict[str, Tensor]:
        """What the trial trains, by the names in the model."""
        return dict(self._parameters)

    @torch.no_grad()
    def set_weights(self, trial: str, weights: Mapping[str, Tensor]) -> None:
        """Give `training_weights` these values."""
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])

    def trained(self, trial: str) -> int:
        """How many numbers `trial` trains."""
        return sum(p.numel() for p in self._parameters.values())

    def moments(self, trial: str) -> dict[str, Tensor]:
        """And the weights and averages themselves, where a checkpoint holds them with fewer digits
        or not at all.
        """
        found = self._optimisers.state()
        has_fewer_digits = (
            torch.promote_types(self._save_dtype, self.base.dtype) != self._save_dtype
        )
        if has_fewer_digits or self._averages:
            found |= {f"{WEIGHTS}/{name}": p for name, p in self._parameters.items()}
        if has_fewer_digits:
            found |= {f"{AVERAGE}/{name}": x for name, x in self._averages.items()}
        return found

    def restore(self, moments: Mapping[str, Tensor], step: int) -> None:
        for name, parameter in self._parameters.items():
            if name in self._averages:
                kept = moments.get(f"{AVERAGE}/{name}", parameter.detach())
                self._averages[name].copy_(kept)
            if (whole := moments.get(f"{WEIGHTS}/{name}")) is not None:
                with torch.no_grad():
                    parameter.copy_(whole)
        kept = (f"{WEIGHTS}/", f"{AVERAGE}/")
        own = {name: each for name, each in moments.items() if not name.startswith(kept)}
        self._optimisers.restore(own, step)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
