"""Trials that train side by side over one frozen base. Row k of one matrix holds all that trial k trains. No Ray here.

The base itself is not changed: at some of its modules, the places, every trial adds something of its own. Whatever the
trials have at one place lies stacked, [K, ...], in columns of the matrix, padded with zeros to the largest of them; what
is padded stays exactly zero, because its gradient is.

Letters of shapes: K trials, P columns, B rows of a pass, N = B * T tokens, I and O channels in and out, R rank.
"""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainables.dropout import RowKeys
from trainables.hyperparameters import Hyperparameters
from trainables.model import BaseModel

UPDATE_ELEMENTS = 1 << 24  # of the matrix in one go, so that an update's temporaries stay small
TWINS = ("exp_avg", "exp_avg_sq")  # Adam's moments, by torch's names
VACANT = ""  # the trial of a row that nobody has any more


class Wrecked(RuntimeError):
    """The device has no room for what trials on board had there: their worker must end, and they go on elsewhere."""


Segments = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Whose the rows of a forward pass are. Rows of one trial lie side by side, in the order of the matrix."""

    segments: Segments  # (trial's row in the matrix, first row of the pass, row after the last)
    lanes_B: Tensor  # the trial's row in the matrix, of each row of the pass

    @classmethod
    def of(cls, lanes_B: Sequence[int], device: torch.device) -> "Pass":
        """`lanes_B`: whose each row is, ascending."""
        segments, start = [], 0
        for lane, group in itertools.groupby(lanes_B):
            stop = start + len(list(group))
            segments.append((int(lane), start, stop))
            start = stop
        return cls(segments=tuple(segments), lanes_B=torch.as_tensor(lanes_B, device=device))

    def scaled(self, length: int) -> Segments:
        """The segments of a tensor of `length` vectors: rows flattened into tokens. Where one trial's rows pass, every
        vector is that trial's, also of a tensor that has no rows.
        """
        if len(self.segments) == 1:
            return ((self.segments[0][0], 0, length),)
        factor, rest = divmod(length, len(self.lanes_B))
        assert rest == 0, "a tensor's first dimension must be rows, or rows times tokens"
        return tuple((lane, start * factor, stop * factor) for lane, start, stop in self.segments)


def _even(segments: Segments) -> int | None:
    """Rows of each trial, if all have as many."""
    counts = {stop - start for _, start, stop in segments}
    return counts.pop() if len(counts) == 1 else None


# --- matrix products, each trial's rows with its own matrix ---


def grouped_matmul(x_NI: Tensor, weight_KIO: Tensor, segments: Segments) -> Tensor:
    """[N, O]: the rows of every trial times that trial's matrix."""
    even = _even(segments)
    if even is not None and len(segments) > 1:
        chosen = _chosen(weight_KIO, segments)
        return torch.bmm(x_NI.view(-1, even, x_NI.shape[1]), chosen).view(len(x_NI), -1)
    if x_NI.is_cuda and x_NI.dtype is torch.bfloat16 and len(segments) > 1 and _groups(x_NI, weight_KIO):
        return nn.functional.grouped_mm(
            x_NI, _chosen(weight_KIO, segments).contiguous(), offs=_stops(segments, x_NI.device)
        )
    out = x_NI.new_empty(len(x_NI), weight_KIO.shape[2])
    for lane, start, stop in segments:
        torch.mm(x_NI[start:stop], weight_KIO[lane], out=out[start:stop])
    return out


def accumulate(grad_KOI: Tensor, dy_NO: Tensor, x_NI: Tensor, segments: Segments) -> None:
    """Add to every trial's gradient what its rows give: dy^T x."""
    even = _even(segments)
    if even is not None and len(segments) > 1:
        product = torch.bmm(dy_NO.view(-1, even, dy_NO.shape[1]).transpose(1, 2), x_NI.view(-1, even, x_NI.shape[1]))
        if len(segments) == len(grad_KOI):
            grad_KOI.add_(product)
        else:
            for position, (lane, _, _) in enumerate(segments):
                grad_KOI[lane].add_(product[position])
        return
    for lane, start, stop in segments:
        if dy_NO.dtype == grad_KOI.dtype:
            grad_KOI[lane].addmm_(dy_NO[start:stop].t(), x_NI[start:stop])
        else:
            grad_KOI[lane].add_(dy_NO[start:stop].t() @ x_NI[start:stop])


def _chosen(stacked: Tensor, segments: Segments) -> Tensor:
    if len(segments) == len(stacked):
        return stacked
    return torch.stack([stacked[lane] for lane, _, _ in segments])


def _groups(x_NI: Tensor, weight_KIO: Tensor) -> bool:
    """Whether torch's grouped matrix product takes these: its kernel reads 16 bytes at a time."""
    return x_NI.shape[1] % 8 == 0 and weight_KIO.shape[2] % 8 == 0 and _grouped_works(x_NI.device)


@lru_cache(maxsize=64)
def _stops(segments: Segments, device: torch.device) -> Tensor:
    """Where each trial's rows end: copied to the device once, not for every layer."""
    return torch.tensor([stop for _, _, stop in segments], dtype=torch.int32, device=device)


@cache
def _grouped_works(device: torch.device) -> bool:
    """Whether torch's grouped matrix product runs on `device` and gives what single products give."""
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(96, 64, device=device, generator=generator).bfloat16()
    weight = torch.randn(3, 64, 16, device=device, generator=generator).bfloat16()
    expected = torch.cat([x[:16] @ weight[0], x[16:40] @ weight[1], x[40:] @ weight[2]])
    try:
        stops = torch.tensor([16, 40, 96], dtype=torch.int32, device=device)
        found = nn.functional.grouped_mm(x, weight, offs=stops)
    except RuntimeError:  # not built for this device
        return False
    return torch.allclose(found.float(), expected.float(), rtol=2e-2, atol=2e-1)


class GroupedLinear(torch.autograd.Function):
    """y = x W_k^T for the rows of trial k. The gradient of W is added to `grad` in place; autograd sees only x."""

    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, anchor: Tensor, weight_KOI: Tensor, grad_KOI: Tensor, segments: Segments
    ) -> Tensor:
        ctx.save_for_backward(x_NI)
        ctx.rest = (weight_KOI, grad_KOI, segments)
        return grouped_matmul(x_NI, weight_KOI.transpose(1, 2), segments)

    @staticmethod
    def backward(ctx: Any, dy_NO: Tensor) -> tuple:
        (x_NI,), (weight_KOI, grad_KOI, segments) = ctx.saved_tensors, ctx.rest
        dy_NO = dy_NO.contiguous()
        accumulate(grad_KOI, dy_NO, x_NI, segments)
        dx_NI = grouped_matmul(dy_NO, weight_KOI, segments) if ctx.needs_input_grad[0] else None
        return dx_NI, None, None, None, None


class GroupedScale(torch.autograd.Function):
    """x * s_k for the vectors of trial k, and x where a trial has nothing at this place. The gradient of s is added to
    `grad` in place. Scales are not kept for each vector: in a pass without padding each token is one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NC: Tensor,
        anchor: Tensor,
        scale_KC: Tensor,
        grad_KC: Tensor,
        segments: Segments,
        here: Sequence[bool],
    ) -> Tensor:
        ctx.save_for_backward(x_NC)
        ctx.rest = (scale_KC, grad_KC, [segment for segment in segments if here[segment[0]]])
        return _scale(x_NC, scale_KC, ctx.rest[2])

    @staticmethod
    def backward(ctx: Any, dy_NC: Tensor) -> tuple:
        (x_NC,), (scale_KC, grad_KC, segments) = ctx.saved_tensors, ctx.rest
        for lane, start, stop in segments:
            grad_KC[lane].add_((dy_NC[start:stop].to(grad_KC.dtype) * x_NC[start:stop]).sum(0))
        dx_NC = _scale(dy_NC, scale_KC, segments) if ctx.needs_input_grad[0] else None
        return dx_NC, None, None, None, None, None


def _scale(x_NC: Tensor, scale_KC: Tensor, segments: Sequence[tuple[int, int, int]]) -> Tensor:
    out_NC = x_NC.clone()
    for lane, start, stop in segments:
        out_NC[start:stop] = x_NC[start:stop] * scale_KC[lane]
    return out_NC


class Gathered(torch.autograd.Function):
    """[B, ...]: of each row of a pass, its trial's vector or matrix; [1, ...] where all rows are one trial's. Its gradient
    is added to `grad` in place, but not for trials that have nothing at this place.
    """

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, weight_K: Tensor, grad_K: Tensor, passing: Pass, here: Sequence[bool]
    ) -> Tensor:
        if len(passing.segments) == 1:
            lane = passing.segments[0][0]
            ctx.rest = (grad_K, [(lane, 0, 1)] if here[lane] else [])
            return weight_K[lane : lane + 1].clone()
        ctx.rest = (grad_K, [segment for segment in passing.segments if here[segment[0]]])
        return weight_K[passing.lanes_B]

    @staticmethod
    def backward(ctx: Any, d_B: Tensor) -> tuple:
        grad_K, segments = ctx.rest
        for lane, start, stop in segments:
            grad_K[lane].add_(d_B[start:stop].sum(0))
        return None, None, None, None, None


# --- places ---


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What one trial has at one place: initial values, by name, in the trial's own shapes."""

    kind: type["Place"]
    place: str  # name of the module in the base
    values: dict[str, Tensor]
    options: Any = None  # the method's


@dataclass(frozen=True, kw_only=True)
class Stacked:
    """One of a place's tensors for all trials: views of the matrix."""

    weight: Tensor  # [K, ...], as it is trained
    compute: Tensor  # the same in the type that the arithmetic has
    grad: Tensor  # [K, ...]


class Place:
    """A module of the base at which trials add something of their own. One subclass for each kind of addition."""

    fast: ClassVar[tuple[str, ...]] = ()  # names of tensors whose learning rate LoRA+ multiplies

    def __init__(self, stack: "Stack", name: str) -> None:
        self.stack = stack
        self.name = name
        self.module = stack.base.model.get_submodule(name)

    @staticmethod
    def key(place: str, tensor: str) -> str:
        """Name of a tensor in the checkpoint."""
        raise NotImplementedError

    @staticmethod
    def exported(tensor: str, value: Tensor) -> Tensor:
        """A view of a trial's tensor in the shape that it has in the checkpoint."""
        return value

    @staticmethod
    def renamed(key: str) -> str:
        """Name in the checkpoint of what the same trial has at other places, where PEFT's depends on this kind."""
        return key

    def bind(self, tensors: Mapping[str, Stacked], options: Sequence[Any]) -> None:
        """Take the views after the matrix was laid out anew. `options` of each trial here, None for one that has nothing
        at this place: its zeros must then change nothing.
        """
        raise NotImplementedError

    def install(self) -> Callable[[], None]:
        """Act on the base's forward pass from now on; returns what undoes it."""
        raise NotImplementedError

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's inputs, where this kind of addition changes those."""
        return batch


class TrainedModule(Place):
    """A module that every trial trains whole: the head of a classifier."""

    @staticmethod
    def key(place: str, tensor: str) -> str:
        return f"base_model.model.{place}.{tensor}"  # where PEFT keeps its modules_to_save

    def bind(self, tensors: Mapping[str, Stacked], options: Sequence[Any]) -> None:
        self._inner = copy_of(self.module)
        self._parameters = []
        for lane in range(len(options)):
            leaves = {}
            for name, stacked in tensors.items():
                leaf = stacked.weight[lane].detach().requires_grad_()
                leaf.grad = stacked.grad[lane]  # autograd adds to it in place
                leaves[name] = leaf
            self._parameters.append(leaves)

    def install(self) -> Callable[[], None]:
        self.module.forward = self._forward

        def undo() -> None:
            del self.module.forward

        return undo

    def _forward(self, x: Tensor) -> Tensor:
        self._inner.train(self.module.training)
        whole, outputs = self.stack.passing, []
        x = x.to(self.stack.dtype)  # in the type of a half-precision base, weights would lose small updates
        with torch.autocast(x.device.type, enabled=False):
            for (lane, first, last), (_, start, stop) in zip(whole.segments, whole.scaled(len(x)), strict=True):
                with self.stack.keys.only(first, last):
                    outputs.append(torch.func.functional_call(self._inner, self._parameters[lane], (x[start:stop],)))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def copy_of(module: nn.Module) -> nn.Module:
    """A copy of a module of the base, without what a place has put into it (that would copy the stack, and all)."""
    replaced = vars(module).pop("forward", None)
    try:
        return copy.deepcopy(module)
    finally:
        if replaced is not None:
            module.forward = replaced


# --- the matrix ---


@dataclass(frozen=True)
class _Column:
    kind: type[Place]
    place: str
    tensor: str


@dataclass(kw_only=True)
class _Lane:
    trial: str
    options: dict[tuple[type[Place], str], Any]
    shapes: dict[_Column, tuple[int, ...]]  # the trial's own


@dataclass(kw_only=True)
class _Layout:
    """Where each tensor lies: first column and padded shape."""

    columns: dict[_Column, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    width: int = 0

    @classmethod
    def of(cls, lanes: Sequence[_Lane]) -> "_Layout":
        layout = cls()
        shapes: dict[_Column, tuple[int, ...]] = {}
        for lane in lanes:
            for column, shape in lane.shapes.items():
                known = shapes.get(column, shape)
                shapes[column] = tuple(max(a, b) for a, b in zip(known, shape, strict=True))
        for column, shape in shapes.items():
            layout.columns[column] = (layout.width, shape)
            layout.width += -(-math.prod(shape) // 8) * 8  # aligned, for the kernels of GPUs
        return layout

    def view(self, matrix_KP: Tensor, column: _Column) -> Tensor:
        start, shape = self.columns[column]
        return matrix_KP[:, start : start + math.prod(shape)].unflatten(1, shape)

    def own(self, matrix_KP: Tensor, column: _Column, row: int, shape: tuple[int, ...]) -> Tensor:
        """The part of a padded tensor that a trial of `shape` trains."""
        return self.view(matrix_KP, column)[row][tuple(slice(size) for size in shape)]


@dataclass(kw_only=True)
class _Made:
    """Matrices [K, P] of a layout and the places that look into them."""

    weights: Tensor
    low: Tensor  # the weights in the type of the arithmetic
    grads: Tensor
    moments: dict[str, Tensor]
    places: dict[tuple[type[Place], str], Place] = field(default_factory=dict)
    decayed_P: Tensor = field(init=False)
    fast_P: Tensor = field(init=False)


class Stack:
    """The trials that share `base`, their weights, gradients and moments, and the places at which they act."""

    def __init__(self, base: BaseModel, keys: RowKeys, *, compute: torch.dtype | None, device: torch.device) -> None:
        """`compute`: the type of the arithmetic under autocast; None: that of the weights."""
        self.base = base
        self.keys = keys
        self.passing = Pass.of([], device)  # whose rows now pass
        self.anchor = torch.zeros(0, device=device, requires_grad=True)  # autograd must run through frozen inputs too
        self.dtype = torch.promote_types(base.dtype, torch.float32)
        self._compute = compute or self.dtype
        self._device = device
        self._lanes: list[_Lane] = []
        self._layout = _Layout()
        self._weights = self._grads = torch.zeros(0, 0, dtype=self.dtype, device=device)
        self._low = self._weights  # the weights in the type of the arithmetic
        self._moments = {name: self._weights for name in TWINS}
        self._places: dict[tuple[type[Place], str], tuple[Place, Callable[[], None]]] = {}

    @property
    def trials(self) -> list[str]:
        return [lane.trial for lane in self._lanes]

    def lane(self, trial: str) -> int:
        return self.trials.index(trial)

    # --- joining and leaving ---

    def join(self, trial: str, additions: Sequence[Addition]) -> None:
        """Take a trial on board; where memory does not suffice (torch.OutOfMemoryError), the others are as they were."""
        shapes, options, values = {}, {}, {}
        for addition in additions:
            options[addition.kind, addition.place] = addition.options
            for name, value in addition.values.items():
                column = _Column(addition.kind, addition.place, name)
                shapes[column], values[column] = tuple(value.shape), value
        lane = _Lane(trial=trial, options=options, shapes=shapes)
        self._arrange([*(lane for lane in self._lanes if lane.trial != VACANT), lane], values)

    def leave(self, trial: str) -> None:
        """Put a trial off board. Where memory does not suffice for a smaller matrix, its row stays until someone joins."""
        try:
            self._arrange([lane for lane in self._lanes if lane.trial not in (trial, VACANT)])
        except torch.OutOfMemoryError:
            self._lanes[self.lane(trial)].trial = VACANT

    def _arrange(self, lanes: list[_Lane], values: Mapping[_Column, Tensor] | None = None) -> None:
        """Lay the matrix out for `lanes`: those that were on board keep their values, the last of them may bring `values`.

        All that is new is made before anything old is given up, which takes the memory of both layouts. Where that does
        not fit on an accelerator, weights and moments wait in the host's memory: that takes the larger of both.
        """
        layout = _Layout.of(lanes)
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

    def _made_apart(self, lanes: list[_Lane], layout: "_Layout", values: Mapping[_Column, Tensor]) -> "_Made":
        before, old = self._layout, {name: matrix.cpu() for name, matrix in self._kept().items()}
        self._undo()
        self._places, self._moments = {}, dict.fromkeys(TWINS, self._weights[:0].clone())
        self._weights = self._grads = self._low = self._moments[TWINS[0]]
        error = None
        try:
            return self._made(lanes, layout, old, values)
        except torch.OutOfMemoryError as raised:
            error = raised.with_traceback(None)
        try:
            self._swap(self._lanes, before, self._made(self._lanes, before, old, {}))
        except torch.OutOfMemoryError as raised:
            raise Wrecked("out of memory while the trials on board were put back to where they were") from raised
        raise error

    def _made(
        self, lanes: list[_Lane], layout: "_Layout", old: Mapping[str, Tensor], values: Mapping[_Column, Tensor]
    ) -> "_Made":
        """All that a layout needs, out of the `old` weights and moments, with nothing yet in use."""
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
        by_place: dict[tuple[type[Place], str], list[str]] = {}
        for column in layout.columns:
            by_place.setdefault((column.kind, column.place), []).append(column.tensor)
        for (kind, name), tensors in by_place.items():
            place = made.places[kind, name] = kind(self, name)
            stacked = {
                tensor: Stacked(
                    weight=layout.view(made.weights, _Column(kind, name, tensor)),
                    compute=layout.view(made.low, _Column(kind, name, tensor)),
                    grad=layout.view(made.grads, _Column(kind, name, tensor)),
                )
                for tensor in tensors
            }
            place.bind(stacked, [lane.options.get((kind, name)) for lane in lanes])
        columns = torch.arange(layout.width)
        decayed, fast = torch.zeros(len(columns)), torch.zeros(len(columns))
        for column, (start, shape) in layout.columns.items():
            decayed[start : start + math.prod(shape)] = float(len(shape) >= 2)  # never biases and norms
            fast[start : start + math.prod(shape)] = float(column.tensor in column.kind.fast)
        made.decayed_P = decayed.to(self._device, self.dtype)
        made.fast_P = fast.to(self._device, self.dtype)
        return made

    def _swap(self, lanes: list[_Lane], layout: "_Layout", made: "_Made") -> None:
        """Use what was made; needs no memory."""
        self._undo()
        self._lanes, self._layout = lanes, layout
        self._weights, self._low, self._grads = made.weights, made.low, made.grads
        self._moments, self._decayed_P, self._fast_P = made.moments, made.decayed_P, made.fast_P
        self._places = {at: (place, place.install()) for at, place in made.places.items()}

    def _undo(self) -> None:
        for _, undo in self._places.values():
            undo()

    def _refresh(self) -> None:
        if self._low is not self._weights:
            self._low.copy_(self._weights)

    # --- passes ---

    def forward(self, batch: dict[str, Tensor], passing: Pass) -> Any:
        self.passing = passing
        for place, _ in self._places.values():
            batch = place.inputs(batch)
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
        """One step of AdamW (Loshchilov & Hutter 2019) for each of `trials`, with learning rates `rates` of their own.

        steps: how many each has made before; norms: of their gradients, for clipping, by torch's formula.
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
        rate, ratio = vector(rates), vector([getattr(hp.options, "loraplus_ratio", 1.0) for hp in hps])
        one_less_beta1 = vector([1 - hp.beta1 for hp in hps])
        beta2, one_less_beta2 = vector([hp.beta2 for hp in hps]), vector([1 - hp.beta2 for hp in hps])
        epsilon = vector([hp.epsilon for hp in hps])
        decay = vector([hp.weight_decay for hp in hps])
        correction1 = vector([1 - hp.beta1 ** (step + 1) for hp, step in zip(hps, steps, strict=True)])
        correction2 = vector([math.sqrt(1 - hp.beta2 ** (step + 1)) for hp, step in zip(hps, steps, strict=True)])
        width = max(1, UPDATE_ELEMENTS // len(lanes))
        for start in range(0, self._layout.width, width):
            here = slice(start, start + width)
            matrices = [m[:, here] for m in (self._weights, self._grads, *(self._moments[name] for name in TWINS))]
            weights, grads, first, second = matrices if index is None else [m.index_select(0, index) for m in matrices]
            rates_KP = rate * (1 + (ratio - 1) * self._fast_P[here])
            grads = grads * clip
            weights.mul_(1 - rates_KP * decay * self._decayed_P[here])
            first.lerp_(grads, one_less_beta1)
            second.mul_(beta2).addcmul_(grads * one_less_beta2, grads)
            weights.addcdiv_(first * (-rates_KP / correction1), (second.sqrt() / correction2).add_(epsilon))
            if index is not None:
                for matrix, part in ((matrices[0], weights), (matrices[2], first), (matrices[3], second)):
                    matrix.index_copy_(0, index, part)
        self._refresh()

    # --- a trial's own tensors ---

    def _own(self, matrix_KP: Tensor, trial: str) -> Iterator[tuple[str, Tensor]]:
        row = self.lane(trial)
        shapes = self._lanes[row].shapes
        kinds = {column.kind for column in shapes}
        for column, shape in shapes.items():
            key, value = column.kind.key(column.place, column.tensor), self._layout.own(matrix_KP, column, row, shape)
            for kind in kinds:
                key = kind.renamed(key)
            yield key, column.kind.exported(column.tensor, value)

    def weights(self, trial: str) -> dict[str, Tensor]:
        """What `trial` trains, by its names in a checkpoint; views."""
        return dict(self._own(self._weights, trial))

    def moments(self, trial: str) -> dict[str, Tensor]:
        return {f"{name}/{key}": view for name in TWINS for key, view in self._own(self._moments[name], trial)}

    @torch.no_grad()
    def restore(self, trial: str, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        for own, saved in ((self.weights(trial), weights), (self.moments(trial), moments)):
            assert own.keys() == saved.keys(), f"the checkpoint does not fit: {sorted(own.keys() ^ saved.keys())[:3]}"
            for key, view in own.items():
                view.copy_(saved[key])
        self._refresh()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws from torch's generators are a function of `seed`, and leave no trace."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
