"""Trials that train side by side over one frozen base. Row k of one matrix holds all that trial k
trains. No Ray here.

The base itself is not changed: at some of its modules, the sites, every trial adds something of its
own. Whatever the trials have at one site lies stacked, [K, ...], in columns of the matrix, padded
with zeros to the largest of them; what is padded stays exactly zero, because its gradient is.

Letters of shapes: K trials, P columns, B rows of a pass, N = B * T tokens, I and O channels in and
out, R rank.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainables.engine.dropout import RowKeys
from trainables.engine.kernels import MicroBatch
from trainables.engine.layout import VACANT, Column, Lane, Layout
from trainables.engine.sites import AdapterSite, Addition, Stacked
from trainables.hyperparameters import Hyperparameters
from trainables.models.base import BaseModel

UPDATE_ELEMENTS = 1 << 24  # of the matrix in one go, so that an update's temporaries stay small
TWINS = ("exp_avg", "exp_avg_sq")  # Adam's moments, by torch's names


class Wrecked(RuntimeError):
    """The device has no room for what trials on board had there: their worker must end, and they go
    on elsewhere.
    """


# --- matrix products, each trial's rows with its own matrix ---


# --- sites ---


# --- the matrix ---


@dataclass(kw_only=True)
class _Made:
    """Matrices [K, P] of a layout and the sites that look into them."""

    weights: Tensor
    low: Tensor  # the weights in the type of the arithmetic
    grads: Tensor
    moments: dict[str, Tensor]
    sites: dict[tuple[type[AdapterSite], str], AdapterSite] = field(default_factory=dict)
    decayed_P: Tensor = field(init=False)
    fast_P: Tensor = field(init=False)


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
        self.micro_batch = MicroBatch.of([], device)  # whose rows now pass
        self.anchor = torch.zeros(
            0, device=device, requires_grad=True
        )  # autograd must run through frozen inputs too
        self.dtype = torch.promote_types(base.dtype, torch.float32)
        self._compute = compute or self.dtype
        self._device = device
        self._lanes: list[Lane] = []
        self._layout = Layout()
        self._weights = self._grads = torch.zeros(0, 0, dtype=self.dtype, device=device)
        self._low = self._weights  # the weights in the type of the arithmetic
        self._moments = {name: self._weights for name in TWINS}
        self._sites: dict[
            tuple[type[AdapterSite], str], tuple[AdapterSite, Callable[[], None]]
        ] = {}

    @property
    def trials(self) -> list[str]:
        return [lane.trial for lane in self._lanes]

    def lane(self, trial: str) -> int:
        return self.trials.index(trial)

    # --- joining and leaving ---

    def join(self, trial: str, additions: Sequence[Addition]) -> None:
        """Take a trial on board; where memory does not suffice (torch.OutOfMemoryError), the others
        are as they were.
        """
        shapes, options, values = {}, {}, {}
        for addition in additions:
            options[addition.kind, addition.site] = addition.options
            for name, value in addition.values.items():
                column = Column(addition.kind, addition.site, name)
                shapes[column], values[column] = tuple(value.shape), value
        lane = Lane(trial=trial, options=options, shapes=shapes)
        self._arrange([*(lane for lane in self._lanes if lane.trial != VACANT), lane], values)

    def leave(self, trial: str) -> None:
        """Put a trial off board. Where memory does not suffice for a smaller matrix, its row stays
        until someone joins.
        """
        try:
            self._arrange([lane for lane in self._lanes if lane.trial not in (trial, VACANT)])
        except torch.OutOfMemoryError:
            self._lanes[self.lane(trial)].trial = VACANT

    def _arrange(self, lanes: list[Lane], values: Mapping[Column, Tensor] | None = None) -> None:
        """Lay the matrix out for `lanes`: those that were on board keep their values, the last of
        them may bring `values`.

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
        before, old = self._layout, {name: matrix.cpu() for name, matrix in self._kept().items()}
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
                "out of memory while the trials on board were put back to where they were"
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
        before, rows = self._layout, {lane.trial: row for row, lane in enumerate(self._lanes)}

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
            made = _Made(
                weights=weights,
                low=weights if self._compute == self.dtype else weights.to(self._compute),
                moments={name: moved(name) for name in TWINS},
                grads=torch.zeros_like(weights),
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
                )
                for tensor in tensors
            }
            site.bind(stacked, [lane.options.get((kind, name)) for lane in lanes])
        columns = torch.arange(layout.width)
        decayed, fast = torch.zeros(len(columns)), torch.zeros(len(columns))
        for column, (start, shape) in layout.columns.items():
            decayed[start : start + math.prod(shape)] = float(
                len(shape) >= 2
            )  # never biases and norms
            fast[start : start + math.prod(shape)] = float(column.tensor in column.kind.fast)
        made.decayed_P = decayed.to(self._device, self.dtype)
        made.fast_P = fast.to(self._device, self.dtype)
        return made

    def _swap(self, lanes: list[Lane], layout: "Layout", made: "_Made") -> None:
        """Use what was made; needs no memory."""
        self._undo()
        self._lanes, self._layout = lanes, layout
        self._weights, self._low, self._grads = made.weights, made.low, made.grads
        self._moments, self._decayed_P, self._fast_P = made.moments, made.decayed_P, made.fast_P
        self._sites = {at: (site, site.install()) for at, site in made.sites.items()}

    def _undo(self) -> None:
        for _, undo in self._sites.values():
            undo()

    def _refresh(self) -> None:
        if self._low is not self._weights:
            self._low.copy_(self._weights)

    # --- passes ---

    def forward(self, batch: dict[str, Tensor], micro_batch: MicroBatch) -> Any:
        self.micro_batch = micro_batch
        for site, _ in self._sites.values():
            batch = site.inputs(batch)
        return self.base.model(**batch)

    def zero_grad(self) -> None:
        self._grads.zero_()

    def gradients(self) -> list[Tensor]:
        return [self._grads]

    def norms(self, trials: Sequence[str]) -> Tensor:
        """L2 norm of each trial's gradient [K]."""
        lanes = [self.lane(trial) for trial in trials]
        return torch.stack([torch.linalg.vector_norm(self._grads[lane]) for lane in lanes])

    @torch.no_grad()
    def update(
        self,
        trials: Sequence[str],
        hps: Sequence[Hyperparameters],
        rates: Sequence[float],
        steps: Sequence[int],
        norms: Tensor,
    ) -> None:
        """One step of AdamW (Loshchilov & Hutter 2019) for each of `trials`, with learning rates
        `rates` of their own.

        steps: how many each has made before; norms: of their gradients, for clipping, by torch's
        formula.
        """
        if not trials:
            return

        def vector(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).to(self._device, self.dtype)[:, None]

        lanes = [self.lane(trial) for trial in trials]
        everyone = lanes == list(range(len(self._lanes)))
        index = None if everyone else torch.tensor(lanes, device=self._device)
        limit = vector([hp.max_grad_norm if hp.max_grad_norm > 0 else math.inf for hp in hps])
        clip = (limit / (norms[:, None].to(self.dtype) + 1e-6)).clamp(max=1.0)
        rate, ratio = (
            vector(rates),
            vector([getattr(hp.options, "loraplus_ratio", 1.0) for hp in hps]),
        )
        one_less_beta1 = vector([1 - hp.beta1 for hp in hps])
        beta2, one_less_beta2 = (
            vector([hp.beta2 for hp in hps]),
            vector([1 - hp.beta2 for hp in hps]),
        )
        epsilon = vector([hp.epsilon for hp in hps])
        decay = vector([hp.weight_decay for hp in hps])
        correction1 = vector(
            [1 - hp.beta1 ** (step + 1) for hp, step in zip(hps, steps, strict=True)]
        )
        correction2 = vector(
            [math.sqrt(1 - hp.beta2 ** (step + 1)) for hp, step in zip(hps, steps, strict=True)]
        )
        width = max(1, UPDATE_ELEMENTS // len(lanes))
        for start in range(0, self._layout.width, width):
            here = slice(start, start + width)
            matrices = [
                m[:, here]
                for m in (self._weights, self._grads, *(self._moments[name] for name in TWINS))
            ]
            weights, grads, first, second = (
                matrices if index is None else [m.index_select(0, index) for m in matrices]
            )
            rates_KP = rate * (1 + (ratio - 1) * self._fast_P[here])
            grads = grads * clip
            weights.mul_(1 - rates_KP * decay * self._decayed_P[here])
            first.lerp_(grads, one_less_beta1)
            second.mul_(beta2).addcmul_(grads * one_less_beta2, grads)
            weights.addcdiv_(
                first * (-rates_KP / correction1), (second.sqrt() / correction2).add_(epsilon)
            )
            if index is not None:
                for matrix, part in (
                    (matrices[0], weights),
                    (matrices[2], first),
                    (matrices[3], second),
                ):
                    matrix.index_copy_(0, index, part)
        self._refresh()

    # --- a trial's own tensors ---

    def _own(self, matrix_KP: Tensor, trial: str) -> Iterator[tuple[str, Tensor]]:
        row = self.lane(trial)
        shapes = self._lanes[row].shapes
        kinds = {column.kind for column in shapes}
        for column, shape in shapes.items():
            key, value = (
                column.kind.key(column.site, column.tensor),
                self._layout.own(matrix_KP, column, row, shape),
            )
            for kind in kinds:
                key = kind.renamed(key)
            yield key, column.kind.exported(column.tensor, value)

    def weights(self, trial: str) -> dict[str, Tensor]:
        """What `trial` trains, by its names in a checkpoint; views."""
        return dict(self._own(self._weights, trial))

    def moments(self, trial: str) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": view
            for name in TWINS
            for key, view in self._own(self._moments[name], trial)
        }

    @torch.no_grad()
    def restore(
        self, trial: str, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]
    ) -> None:
        for own, saved in ((self.weights(trial), weights), (self.moments(trial), moments)):
            assert own.keys() == saved.keys(), (
                f"the checkpoint does not fit: {sorted(own.keys() ^ saved.keys())[:3]}"
            )
            for key, view in own.items():
                view.copy_(saved[key])
        self._refresh()
