"""Trials that train side by side over one frozen base. Row k of one matrix holds all that trial k
trains. No Ray here.

The base itself is not changed: at some of its modules, the sites, every trial adds something of its
own. Whatever the trials have at one site lies stacked, [K, ...], in columns of the matrix, padded
with zeros to the largest of them; what is padded stays exactly zero, because its gradient is.

Letters of shapes: K trials, P columns, B rows of a micro-batch, N = B * T tokens, I and O channels
in and out, R rank.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainables.engine.dropout import Rates, RowKeys
from trainables.engine.kernels import MicroBatch
from trainables.engine.layout import VACANT, Column, Lane, Layout
from trainables.engine.sites import AdapterSite, Addition, Stacked, Stepped
from trainables.errors import InputError
from trainables.hyperparameters import Hyperparameters
from trainables.models.base import BaseModel
from trainables.models.output import ModelOutput

UPDATE_ELEMENTS = 1 << 24  # of the matrix in one go, so that an update's temporaries stay small
TWINS = ("exp_avg", "exp_avg_sq")  # Adam's moments, by torch's names
AVERAGE = "average"  # of the weights: what is evaluated and saved, of trials that ask for it
WEIGHTS = "weights"  # in the optimiser's state: those that a checkpoint has otherwise


Site = TypeVar("Site", bound=AdapterSite)


class Wrecked(RuntimeError):
    """The device has no room for what the trials of the group had there: their worker must end, and
    they go on elsewhere.
    """


@dataclass(kw_only=True)
class _Made:
    """Matrices [K, P] of a layout and the sites that look into them."""

    weights: Tensor
    low: Tensor  # the weights in the type of the arithmetic
    grads: Tensor
    moments: dict[str, Tensor]  # and the averages, where a trial has one
    sites: dict[tuple[type[AdapterSite], str], AdapterSite] = field(default_factory=dict)
    decayed_P: Tensor = field(init=False)
    fast_P: Tensor = field(init=False)
    frozen: Tensor | None = None  # [K, P]: what of a trial's weights is not trained


@dataclass(frozen=True, kw_only=True)
class _Constants:
    """What each of K trials makes its step with [K, 1]."""

    rate: Tensor
    fast_ratio: Tensor  # of the learning rates of columns that are `fast`
    clip: Tensor
    decay: Tensor
    one_less_beta1: Tensor
    beta2: Tensor
    one_less_beta2: Tensor
    epsilon: Tensor
    correction1: Tensor
    correction2: Tensor

    @classmethod
    def of(cls, own: Sequence[tuple[float, ...]], norms: Tensor) -> "_Constants":
        """own: what `_constants` gives of each; `norms` have the type and the device that the
        arithmetic has.
        """
        columns = torch.tensor(own, dtype=torch.float64)
        columns = columns.to(norms.device, norms.dtype, non_blocking=True).split(1, dim=1)
        rate, fast_ratio, limit, decay, one_less_beta1, beta2, one_less_beta2, *rest = columns
        epsilon, correction1, correction2 = rest
        return cls(
            rate=rate,
            fast_ratio=fast_ratio,
            clip=(limit / (norms[:, None] + 1e-6)).clamp(max=1.0),
            decay=decay,
            one_less_beta1=one_less_beta1,
            beta2=beta2,
            one_less_beta2=one_less_beta2,
            epsilon=epsilon,
            correction1=correction1,
            correction2=correction2,
        )


def _constants(hp: Hyperparameters, rate: float, step: int) -> tuple[float, ...]:
    """Of one trial, in the order in which `_Constants.of` takes them."""
    return (
        rate,
        getattr(hp.options, "loraplus_ratio", 1.0),
        _clip_norm(hp),
        hp.weight_decay,
        1 - hp.beta1,
        hp.beta2,
        1 - hp.beta2,
        hp.epsilon,
        1 - hp.beta1 ** (step + 1),
        math.sqrt(1 - hp.beta2 ** (step + 1)),
    )


def _clip_norm(hp: Hyperparameters) -> float:
    """Of gradients; infinite where they are not clipped."""
    return hp.max_grad_norm if hp.max_grad_norm > 0 else math.inf


def ema_decay(hp: Hyperparameters, steps: int) -> float:
    """Of the average after `steps` steps and one more: little at first, so that the start is soon
    forgotten.
    """
    return min(hp.ema_decay, (2 + steps) / (11 + steps))


class SharedBaseEngine:
    """The trials that share `base`, their weights, gradients and moments, and the sites at which
    they act.
    """

    def __init__(
        self, base: BaseModel, keys: RowKeys, *, compute: torch.dtype | None, device: torch.device
    ) -> None:
        """`compute`: the type of the arithmetic under autocast; None: that of the weights."""
        self.base = base
        self.keys = keys
        self.micro_batch = MicroBatch.of([], device)  # that now runs
        self._rates: dict[tuple[tuple[float, ...], torch.dtype], Rates] = {}  # of its rows
        # autograd must run through frozen inputs too
        self.anchor = torch.zeros(0, device=device, requires_grad=True)
        self.dtype = torch.promote_types(base.dtype, torch.float32)
        self._compute = compute or self.dtype
        self._device = device
        self._lanes: list[Lane] = []
        self._layout = Layout()
        self._weights = self._grads = torch.zeros(0, 0, dtype=self.dtype, device=device)
        self._low = self._weights  # the weights in the type of the arithmetic
        self._moments: dict[str, Tensor] = dict.fromkeys(TWINS, self._weights)
        self._frozen: Tensor | None = None  # what of the weights is not trained
        self._sites: dict[
            tuple[type[AdapterSite], str], tuple[AdapterSite, Callable[[], None]]
        ] = {}

    @property
    def trials(self) -> list[str]:
        return [lane.trial for lane in self._lanes]

    def lane(self, trial: str) -> int:
        return self.trials.index(trial)

    def site(self, kind: type[Site], name: str) -> Site:
        """One of those at which the trials act now."""
        found, _ = self._sites[kind, name]
        assert isinstance(found, kind)
        return found

    # --- joining and leaving ---

    def join(self, trial: str, additions: Sequence[Addition], *, averaged: bool = False) -> None:
        """Let a trial join; where memory does not suffice (torch.OutOfMemoryError), the others are
        as they were. averaged: `ema_decay` is set.
        """
        shapes, options, values, frozen, made = {}, {}, {}, {}, {}
        for addition in additions:
            options[addition.kind, addition.site] = addition.options
            if addition.made is not None:
                made[addition.kind, addition.site] = addition.made
            for name, value in addition.values.items():
                column = Column(addition.kind, addition.site, name)
                shapes[column], values[column] = tuple(value.shape), value
                if name in addition.frozen:
                    frozen[column] = addition.frozen[name]
        lane = Lane(
            trial=trial, options=options, shapes=shapes, frozen=frozen, made=made, averaged=averaged
        )
        self._arrange([*(lane for lane in self._lanes if lane.trial != VACANT), lane], values)

    def leave(self, trial: str) -> None:
        """Take a trial out. Where memory does not suffice for a smaller matrix, its row stays until
        another joins.
        """
        try:
            self._arrange([lane for lane in self._lanes if lane.trial not in (trial, VACANT)])
        except torch.OutOfMemoryError:
            self._lanes[self.lane(trial)].trial = VACANT

    def _arrange(self, lanes: list[Lane], values: Mapping[Column, Tensor] | None = None) -> None:
        """Lay the matrix out for `lanes`: trials that had one keep their values, the last of them
        may bring `values`.

        All that is new is made before anything old is given up, which takes the memory of both
        layouts. Where that does not fit on an accelerator, weights and moments wait in the host's
        memory: that takes the larger of both.
        """
        layout = Layout.of(lanes)
        try:
            made = self._made(lanes, layout, self._kept(), values or {})
        except torch.OutOfMemoryError:
            if not self._waits_elsewhere():
                raise
            made = None
        if made is None:  # not inside `except`: there the traceback still holds what was made
            made = self._made_apart(lanes, layout, values or {})
        self._swap(lanes, layout, made)

    def _waits_elsewhere(self) -> bool:
        """Whether there is other memory than that of the device."""
        return self._device.type != "cpu"

    def _kept(self) -> dict[str, Tensor]:
        """What an arrangement must not lose: weights and moments."""
        return {"weights": self._weights, **self._moments}

    def _made_apart(
        self, lanes: list[Lane], layout: "Layout", values: Mapping[Column, Tensor]
    ) -> "_Made":
        before = self._layout
        old = {name: matrix.cpu() for name, matrix in self._kept().items()}
        self._undo()
        self._sites, self._moments = {}, dict.fromkeys(TWINS, self._weights[:0].clone())
        self._weights = self._grads = self._low = self._moments[TWINS[0]]
        error = None
        try:
            return self._made(lanes, layout, old, values)
        except torch.OutOfMemoryError as raised:
            error = raised.with_traceback(None)
        try:
            self._swap(self._lanes, before, self._made(self._lanes, before, old, {}))
        except torch.OutOfMemoryError as raised:
            raise Wrecked(
                "out of memory while the trials of the group were put back to where they were"
            ) from raised
        raise error

    def _made(
        self,
        lanes: list[Lane],
        layout: "Layout",
        old: Mapping[str, Tensor],
        values: Mapping[Column, Tensor],
    ) -> "_Made":
        """All that a layout needs, out of the `old` weights and moments, with nothing yet in
        use.
        """
        before = self._layout
        rows = {lane.trial: row for row, lane in enumerate(self._lanes)}

        def moved(name: str) -> Tensor:
            new_KP = torch.zeros(len(lanes), layout.width, dtype=self.dtype, device=self._device)
            for row, lane in enumerate(lanes):
                if lane.trial in rows:
                    for column, shape in lane.shapes.items():
                        part = before.own(old[name], column, rows[lane.trial], shape)
                        layout.own(new_KP, column, row, shape).copy_(part)
            return new_KP

        with torch.no_grad():
            weights = moved("weights")
            for column, value in values.items():
                layout.own(weights, column, len(lanes) - 1, tuple(value.shape)).copy_(value)
            moments = {name: moved(name) for name in TWINS}
            for name in {name for lane in lanes for name in lane.kept}:
                moments[name] = moved(name) if name in old else torch.zeros_like(weights)
            if any(lane.averaged for lane in lanes):
                begun = [row for row, lane in enumerate(lanes) if lane.trial not in rows]
                moments[AVERAGE] = moved(AVERAGE) if AVERAGE in old else weights.clone()
                moments[AVERAGE][begun] = weights[begun]
            made = _Made(
                weights=weights,
                low=weights if self._compute == self.dtype else weights.to(self._compute),
                moments=moments,
                grads=torch.zeros_like(weights),
                frozen=self._frozen_of(lanes, layout),
            )
        by_site: dict[tuple[type[AdapterSite], str], list[str]] = {}
        for column in layout.columns:
            by_site.setdefault((column.kind, column.site), []).append(column.tensor)
        for (kind, name), tensors in by_site.items():
            site = made.sites[kind, name] = kind(self, name)
            stacked = {
                tensor: Stacked(
                    weight=layout.view(made.weights, Column(kind, name, tensor)),
                    compute=layout.view(made.low, Column(kind, name, tensor)),
                    grad=layout.view(made.grads, Column(kind, name, tensor)),
                    state={
                        kept: layout.view(made.moments[kept], Column(kind, name, tensor))
                        for kept in kind.state
                    },
                )
                for tensor in tensors
            }
            site.bind(stacked, [lane.options.get((kind, name)) for lane in lanes])
        made.decayed_P, made.fast_P = self._kinds_of_columns(layout)
        return made

    def _frozen_of(self, lanes: Sequence[Lane], layout: "Layout") -> Tensor | None:
        if not any(lane.frozen for lane in lanes):
            return None
        frozen_KP = torch.zeros(len(lanes), layout.width, dtype=torch.bool, device=self._device)
        for row, lane in enumerate(lanes):
            for column, mask in lane.frozen.items():
                layout.own(frozen_KP, column, row, lane.shapes[column]).copy_(mask)
        return frozen_KP

    def _kinds_of_columns(self, layout: "Layout") -> tuple[Tensor, Tensor]:
        """Which columns weight decay acts on, and which are `fast` [P], 1 or 0."""
        columns = torch.arange(layout.width)
        decayed, fast = torch.zeros(len(columns)), torch.zeros(len(columns))
        for column, (start, shape) in layout.columns.items():
            decayed[start : start + math.prod(shape)] = float(
                len(shape) >= 2
            )  # never biases and norms
            fast[start : start + math.prod(shape)] = float(column.tensor in column.kind.fast)
        return decayed.to(self._device, self.dtype), fast.to(self._device, self.dtype)

    def _swap(self, lanes: list[Lane], layout: "Layout", made: "_Made") -> None:
        """Use what was made; needs no memory."""
        self._undo()
        self._lanes, self._layout = lanes, layout
        self._weights, self._low, self._grads = made.weights, made.low, made.grads
        self._moments, self._decayed_P, self._fast_P = made.moments, made.decayed_P, made.fast_P
        self._frozen = made.frozen
        self._sites = {at: (site, site.install()) for at, site in made.sites.items()}

    def _undo(self) -> None:
        for _, undo in self._sites.values():
            undo()

    def _refresh(self) -> None:
        if self._low is not self._weights:
            self._low.copy_(self._weights)

    # --- steps ---

    def place(self, micro_batch: MicroBatch) -> None:
        """From now on, forward passes of the base are of these rows."""
        self.micro_batch, self._rates = micro_batch, {}

    def dropout_rates(self, dropouts: tuple[float, ...], dtype: torch.dtype) -> Rates:
        """Of the rows that are placed, with a probability for each trial: once for all sites."""
        if (dropouts, dtype) not in self._rates:
            segments = self.micro_batch.segments
            rows = [dropouts[lane] for lane, start, stop in segments for _ in range(start, stop)]
            rates = Rates.of(torch.tensor(rows, dtype=torch.float64), dtype)
            self._rates[dropouts, dtype] = rates.to(self._device)
        return self._rates[dropouts, dtype]

    def starting(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Inputs of the base for the rows that are placed, which it then goes on with."""
        for site, _ in self._sites.values():
            batch = site.starting(batch)
        return batch

    def forward(self, batch: dict[str, Tensor], micro_batch: MicroBatch) -> ModelOutput:
        self.place(micro_batch)
        for site, _ in self._sites.values():
            batch = site.inputs(batch)
        return self.base.model(**batch)

    def zero_grad(self) -> None:
        self._grads.zero_()

    def gradients(self) -> list[Tensor]:
        """Of a step whose rows have all been computed; zero for what is not trained."""
        if self._frozen is not None:
            self._grads.masked_fill_(self._frozen, 0)
        return [self._grads]

    def penalise(self, trials: Sequence[str]) -> Tensor:
        """Add the gradients of what trials minimise beside the losses of rows, which is returned
        [K].
        """
        lanes = [self.lane(trial) for trial in trials]
        found = torch.zeros(len(lanes), dtype=torch.float64, device=self._device)
        with torch.no_grad():
            for kind, sites in self._by_kind().items():
                if (added := kind.penalties(sites, lanes)) is not None:
                    found += added
        return found

    def norms(self, trials: Sequence[str]) -> Tensor:
        """L2 norm of each trial's gradient [K]."""
        lanes = [self.lane(trial) for trial in trials]
        norms_K = torch.linalg.vector_norm(self._grads, dim=1)
        return norms_K if self._are_all(lanes) else torch.stack([norms_K[lane] for lane in lanes])

    def _are_all(self, lanes: Sequence[int]) -> bool:
        return lanes == list(range(len(self._lanes)))

    @torch.no_grad()
    def update(
        self,
        trials: Sequence[str],
        hps: Sequence[Hyperparameters],
        rates: Sequence[float],
        steps: Sequence[int],
        totals: Sequence[int],
        norms: Tensor,
    ) -> None:
        """One step of AdamW (Loshchilov & Hutter 2019), or of Lion (Chen et al. 2023), for each of
        `trials`, with learning rates `rates` of their own.

        steps: how many each has made before, of `totals`; norms: of their gradients, for clipping,
        by torch's formula.
        """
        if not trials:
            return

        self._each_by(self._adamw, "adamw", trials, hps, rates, steps, norms)
        self._each_by(self._lion, "lion", trials, hps, rates, steps, norms)
        for trial, hp, step, total, norm in zip(trials, hps, steps, totals, norms, strict=True):
            self._after_step(trial, hp, step, total, norm)
            if hp.ema_decay:
                row = self.lane(trial)
                average_P = self._moments[AVERAGE][row]
                average_P.lerp_(self._weights[row], 1 - ema_decay(hp, step))
        self._refresh()

    def _after_step(
        self, trial: str, hp: Hyperparameters, step: int, total: int, norm: Tensor
    ) -> None:
        """What the kinds of addition do to a trial's weights themselves."""
        kinds = self._by_kind()
        if all(kind.after_step == AdapterSite.after_step for kind in kinds):
            return
        row = self.lane(trial)
        stepped = Stepped(
            lane=row,
            step=step + 1,
            total=total,
            weights=self._weights[row],
            grads=self._grads[row],
            clip=(_clip_norm(hp) / (norm.to(self.dtype) + 1e-6)).clamp(max=1.0),
            state={name: matrix[row] for name, matrix in self._moments.items()},
        )
        for kind, sites in kinds.items():
            kind.after_step(sites, stepped)

    def _by_kind(self) -> dict[type[AdapterSite], list[AdapterSite]]:
        found: dict[type[AdapterSite], list[AdapterSite]] = {}
        for (kind, _), (site, _) in self._sites.items():
            found.setdefault(kind, []).append(site)
        return found

    def _each_by(
        self,
        update: Callable[["_Constants", Sequence[Tensor], Tensor], None],
        optimizer: str,
        trials: Sequence[str],
        hps: Sequence[Hyperparameters],
        rates: Sequence[float],
        steps: Sequence[int],
        norms: Tensor,
    ) -> None:
        """The step of those trials that `optimizer` trains, some columns at a time."""
        chosen = [i for i, hp in enumerate(hps) if hp.optimizer == optimizer]
        if not chosen:
            return
        lanes = [self.lane(trials[i]) for i in chosen]
        if len(chosen) < len(hps):
            norms = norms[self._index(chosen)]
        own = [_constants(hps[i], rates[i], steps[i]) for i in chosen]
        constants = _Constants.of(own, norms.to(self.dtype))
        index = None if self._are_all(lanes) else self._index(lanes)
        width = max(1, UPDATE_ELEMENTS // len(lanes))
        for start in range(0, self._layout.width, width):
            self._update_columns(update, constants, slice(start, start + width), index)

    def _update_columns(
        self,
        update: Callable[["_Constants", Sequence[Tensor], Tensor], None],
        constants: "_Constants",
        here: slice,
        lanes: Tensor | None,
    ) -> None:
        """Of these lanes; None: of all."""
        state = [self._grads, self._weights, *(self._moments[name] for name in TWINS)]
        matrices = [matrix[:, here] for matrix in state]
        parts = matrices if lanes is None else [m.index_select(0, lanes) for m in matrices]
        rates_KP = constants.rate * (1 + (constants.fast_ratio - 1) * self._fast_P[here])
        parts[0] = parts[0] * constants.clip
        parts[1].mul_(1 - rates_KP * constants.decay * self._decayed(here, lanes))
        update(constants, parts, rates_KP)
        if lanes is not None:
            for matrix, part in zip(matrices[1:], parts[1:], strict=True):
                matrix.index_copy_(0, lanes, part)

    def _index(self, positions: Sequence[int]) -> Tensor:
        return torch.tensor(positions).to(self._device, non_blocking=True)

    @staticmethod
    def _adamw(constants: "_Constants", parts: Sequence[Tensor], rates_KP: Tensor) -> None:
        grads, weights, first, second = parts
        first.lerp_(grads, constants.one_less_beta1)
        second.mul_(constants.beta2).addcmul_(grads * constants.one_less_beta2, grads)
        weights.addcdiv_(
            first * (-rates_KP / constants.correction1),
            (second.sqrt() / constants.correction2).add_(constants.epsilon),
        )

    @staticmethod
    def _lion(constants: "_Constants", parts: Sequence[Tensor], rates_KP: Tensor) -> None:
        """Algorithm 2; has one moment."""
        grads, weights, first, _ = parts
        direction = first.lerp(grads, constants.one_less_beta1).sign_()
        weights.sub_(rates_KP * direction)
        first.lerp_(grads, constants.one_less_beta2)

    def _decayed(self, columns: slice, lanes: Tensor | None) -> Tensor:
        """Which of some weights decay, 1 or 0 [P], or of some trials [K, P]."""
        decayed_P = self._decayed_P[columns]
        if self._frozen is None:
            return decayed_P
        frozen_KP = self._frozen[:, columns]
        frozen_KP = frozen_KP if lanes is None else frozen_KP.index_select(0, lanes)
        return decayed_P.masked_fill(frozen_KP, 0)

    @contextmanager
    def as_saved(self, *, rounded: bool = True) -> Iterator[None]:
        """Inside, the weights are those that a checkpoint holds: the averages of trials that have
        one.
        """
        rows = [row for row, lane in enumerate(self._lanes) if lane.averaged]
        if not rows:
            yield
            return
        self._swap_averages(rows)
        try:
            yield
        finally:
            self._swap_averages(rows)

    @torch.no_grad()
    def _swap_averages(self, rows: Sequence[int]) -> None:
        for row in rows:
            weights_P, average_P = self._weights[row], self._moments[AVERAGE][row]
            kept_P = weights_P.clone()
            weights_P.copy_(average_P)
            average_P.copy_(kept_P)
        self._refresh()

    # --- a trial's own tensors ---

    def _own(self, matrix_KP: Tensor, trial: str, *, frozen: bool = True) -> dict[Column, Tensor]:
        """Views of a trial's tensors; with or without those that are not trained at all."""
        row = self.lane(trial)
        lane = self._lanes[row]
        return {
            column: self._layout.own(matrix_KP, column, row, shape)
            for column, shape in lane.shapes.items()
            if frozen or lane.trains(column)
        }

    @staticmethod
    def _named(tensors: Mapping[Column, Tensor]) -> dict[str, Tensor]:
        """A trial's tensors by their names in a checkpoint, in the shapes that they have there."""
        kinds, found = {column.kind for column in tensors}, {}
        for column, value in tensors.items():
            key = column.kind.key(column.site, column.tensor)
            for kind in kinds:
                key = kind.renamed(key)
            found[key] = column.kind.exported(column.tensor, value)
        return found

    def training_weights(self, trial: str) -> dict[str, Tensor]:
        """What `trial` has in training, by names as in a checkpoint; views."""
        return self._named(self._own(self._weights, trial))

    def weights(self, trial: str) -> dict[str, Tensor]:
        """What `trial` adds to the base, by its names in a checkpoint; views, but for what is made
        of others.
        """
        own = self._own(self._weights, trial)
        for (kind, site), make in self._lanes[self.lane(trial)].made.items():
            inside = [column for column in own if (column.kind, column.site) == (kind, site)]
            made = make({column.tensor: own.pop(column) for column in inside})
            own |= {Column(kind, site, tensor): value for tensor, value in made.items()}
        return self._named(own)

    def trained(self, trial: str) -> int:
        """How many numbers `trial` trains."""
        return self._lanes[self.lane(trial)].trained

    def moments(self, trial: str) -> dict[str, Tensor]:
        """And the weights themselves, where a checkpoint holds their averages or what is made of
        them.
        """
        lane = self._lanes[self.lane(trial)]
        state = {name: self._moments[name] for name in TWINS}
        if lane.averaged or lane.made:
            state[WEIGHTS] = self._weights
        if lane.averaged and lane.made:
            state[AVERAGE] = self._moments[AVERAGE]
        own = {name: self._own(matrix, trial, frozen=False) for name, matrix in state.items()}
        for name, columns in lane.kept.items():
            every = self._own(self._moments[name], trial)
            own[name] = {column: every[column] for column in columns}
        return {
            f"{name}/{key}": view
            for name, tensors in own.items()
            for key, view in self._named(tensors).items()
        }

    @torch.no_grad()
    def set_weights(self, trial: str, weights: Mapping[str, Tensor]) -> None:
        """Give `training_weights` these values."""
        for name, view in self.training_weights(trial).items():
            view.copy_(weights[name])
        self._refresh()

    @torch.no_grad()
    def begin(self, trial: str, start: Mapping[str, Tensor]) -> None:
        """Let `trial`, which has just joined, start from weights of a checkpoint. Raises InputError
        where they are not those of such a trial; it may have more, such as a head that is new.
        """
        own = self.training_weights(trial)
        unlike = [name for name in start if name not in own or own[name].shape != start[name].shape]
        if unlike:
            raise InputError(
                f"model.adapter: continue trains the adapter as it is, and its {unlike[0]}"
                f" {list(start[unlike[0]].shape)} is not what these hyperparameters add"
                f" {list(own[unlike[0]].shape) if unlike[0] in own else '(nothing of that name)'};"
                " give method, rank and targets of the adapter"
            )
        views = [own]
        if self._lanes[self.lane(trial)].averaged:
            views.append(self._named(self._own(self._moments[AVERAGE], trial)))
        for each in views:
            for name, tensor in start.items():
                each[name].copy_(tensor)
        self._refresh()

    @torch.no_grad()
    def restore(
        self, trial: str, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]
    ) -> None:
        lane = self._lanes[self.lane(trial)]
        kept = [(self.moments(trial), moments)]
        if lane.averaged and not lane.made:  # the weights themselves are among the moments
            kept.insert(0, (self._named(self._own(self._moments[AVERAGE], trial)), weights))
        if not lane.made:
            kept.insert(0, (self.training_weights(trial), weights))
        for own, saved in kept:
            assert own.keys() == saved.keys(), (
                f"the checkpoint does not fit: {sorted(own.keys() ^ saved.keys())[:3]}"
            )
            for key, view in own.items():
                view.copy_(saved[key])
        self._refresh()
