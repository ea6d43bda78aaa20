"""A stand-in for an accelerator: tensors that say they are on one and hold data of the CPU.

Inside `accelerator()` the device `DEVICE` exists in this process. Tensors of it and of the CPU do
not mix, as on a GPU; what would be a kernel is counted as launched, and what would make the host
wait for the device as a synchronisation. Gradients are computed by autograd's thread of the device,
as on a GPU. Not like one: no kernel of a GPU runs, and autocast does nothing.
"""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "standin"
CPU = torch.device("cpu")
aten: Any = torch.ops.aten

# what the host must know of the device's numbers before it can go on
WAITS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten._unique2,
    aten.repeat_interleave,
}
# what makes a tensor and leaves its numbers open, or looks at it
FREE = {
    aten._local_scalar_dense,
    aten.detach,
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.is_same_size,
    aten.lift_fresh,
    aten.new_empty,
    aten.new_empty_strided,
    aten.set_,
    aten._unsafe_view,
    aten._reshape_alias,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_}
MAY_HOLD_HOST = {aten.copy_, aten._to_copy}  # these take tensors of both devices


class _Module(_DummyBackendModule):
    """What `torch.standin` is."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@functools.cache
def device() -> torch.device:
    """Registered once in a process."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    return torch.device(NAME, 0)


@dataclass(kw_only=True)
class Counts:
    """What was asked of the device."""

    launched: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    bytes: int = 0  # that launched operations wrote

    def clear(self) -> None:
        self.launched.clear()
        self.waits.clear()
        self.bytes = 0


class OnDevice(Tensor):
    """A tensor of the stand-in; `host` has its numbers."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, requires_grad: bool = False) -> "OnDevice":
        made = Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=device(),
            requires_grad=requires_grad,
        )
        made.host = host.detach()
        return made

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, other: "OnDevice") -> None:
        Tensor.data.__set__(self, other)
        self.host = other.host

    def untyped_storage(self) -> Any:
        return self.host.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnDevice":
        if id(self) not in memo:
            with torch.no_grad():
                made: Any = self.detach().clone()
            if isinstance(self, torch.nn.Parameter):
                made = torch.nn.Parameter(made, self.requires_grad)
            else:
                made.requires_grad_(self.requires_grad)
            memo[id(self)] = made
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.host!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}), Counts())


class Accelerator(TorchDispatchMode):
    """Inside, the device exists."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        # called with the name of each operation before it runs; what it raises is raised there
        self.before: Callable[[str], None] | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self.before is not None:
            self.before(func.overloadpacket.__name__)
        return _run(func, args, dict(kwargs or {}), self.counts)


class _FusedAttention(TorchFunctionMode):
    """Attention is one kernel, and one for its gradient."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False))
        named |= kwargs or {}
        if not isinstance(named["query"], OnDevice):
            return func(**named)
        q, k, v = (named.pop(name) for name in ("query", "key", "value"))
        mask = named.pop("attn_mask", None)
        _refuse_mixing(func.__name__, [q], [x for x in (q, k, v, mask) if type(x) is Tensor])
        return _Attention.apply(q, k, v, mask, named, self._counts)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, mask: Any, how: Any, counts: Counts) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.rest = (mask, how, counts)
        counts.launched["attention"] += 1
        how = how | {"attn_mask": None if mask is None else mask.host}
        return OnDevice(nn.functional.scaled_dot_product_attention(q.host, k.host, v.host, **how))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (mask, how, counts), saved = ctx.rest, ctx.saved_tensors
        counts.launched["gradient of attention"] += 1
        how = how | {"attn_mask": None if mask is None else mask.host}
        with torch.enable_grad():
            given = [x.host.detach().requires_grad_() for x in saved]
            out = nn.functional.scaled_dot_product_attention(*given, **how)
            found = torch.autograd.grad(out, given, grads[0].host)
        return *(OnDevice(x) for x in found), None, None, None


def _run(func: Any, args: tuple, kwargs: dict[str, Any], counts: Counts) -> Any:
    here, on_host = [], []

    def look(x: Any) -> Any:
        if isinstance(x, OnDevice):
            here.append(x)
        elif isinstance(x, Tensor):
            on_host.append(x)
        return x

    tree_map(look, (args, kwargs))
    wanted = kwargs.get("device")
    wanted = None if wanted is None else torch.device(wanted)
    to_device = wanted is not None and wanted.type == NAME
    if not here and not to_device:
        return func(*args, **kwargs)
    packet = func.overloadpacket
    if packet in INDEXING:
        _refuse_mixing(func, here, [x for x in (args[0], *args[2:]) if type(x) is Tensor])
    elif packet not in MAY_HOLD_HOST:
        _refuse_mixing(func, here, on_host)
    _count(func, packet, args, kwargs, here, on_host, wanted, counts)
    if to_device:
        kwargs["device"] = CPU
    host_args, host_kwargs = tree_map(
        lambda x: x.host if isinstance(x, OnDevice) else x, (args, kwargs)
    )
    found = _on_host(func, packet, host_args, host_kwargs)
    if packet is aten._to_copy and wanted is not None and wanted.type == "cpu":
        return found.clone() if any(found is x.host for x in here) else found
    return _returned(func, found, args, kwargs, counts)


def _on_host(func: Any, packet: Any, args: Any, kwargs: Any) -> Any:
    if packet is aten._grouped_mm:
        return grouped(*args, **kwargs)
    return func(*args, **kwargs)


def grouped(a: Tensor, b: Tensor, offs: Tensor, bias: None = None, out_dtype: Any = None) -> Tensor:
    """torch's grouped matrix product, in every type: [N, I] x [K, I, O] of rows that belong
    together, or [I, N] x [N, O] summed over those.
    """
    stops = offs.tolist()
    starts = [0, *stops[:-1]]
    assert stops[-1] == a.shape[1 if b.ndim == 2 else 0]
    pairs = list(enumerate(zip(starts, stops, strict=True)))
    if b.ndim == 2:
        return torch.stack([a[:, i:j] @ b[i:j] for _, (i, j) in pairs])
    return torch.cat([a[i:j] @ b[k] for k, (i, j) in pairs])


def _refuse_mixing(func: Any, here: list[Any], on_host: list[Tensor]) -> None:
    """As torch does: numbers of the CPU without dimensions may stand beside the device's, and an
    index may be on the CPU.
    """
    strangers = [x for x in on_host if x.ndim and here]
    if strangers:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices,"
            f" {device()} and cpu, in {func}"
        )


def _count(
    func: Any,
    packet: Any,
    args: tuple,
    kwargs: Mapping[str, Any],
    here: list[Any],
    on_host: list[Tensor],
    wanted: torch.device | None,
    counts: Counts,
) -> None:
    name = packet.__name__
    if packet in WAITS:
        counts.waits[name] += 1
    if packet in INDEXING:
        indices = [x for x in args[1] if x is not None]
        masks = [x for x in indices if x.dtype in (torch.bool, torch.uint8)]
        moved = [x for x in indices if not isinstance(x, OnDevice)]
        counts.waits["index by a mask"] += len(masks)
        counts.waits["index of the host"] += len(moved)
    if packet is aten._to_copy and wanted is not None:
        crosses = (wanted.type == NAME) != bool(here)
        if crosses and not kwargs.get("non_blocking"):
            counts.waits["copy to the device" if wanted.type == NAME else "copy to the host"] += 1
    if packet is aten.copy_ and here and on_host:
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if not non_blocking:
            counts.waits["copy_"] += 1
    if packet not in FREE and not func.is_view:
        counts.launched[name] += 1
    counts.waits += Counter()  # without zeros


def _returned(func: Any, found: Any, args: tuple, kwargs: Mapping[str, Any], counts: Counts) -> Any:
    """What is changed in place stays the tensor it was."""
    schema = func._schema
    named = {a.name: args[i] for i, a in enumerate(schema.arguments) if i < len(args)} | kwargs
    written = [
        named[a.name]
        for a in schema.arguments
        if a.alias_info is not None and a.alias_info.is_write and named.get(a.name) is not None
    ]
    in_place = [r.alias_info is not None and r.alias_info.is_write for r in schema.returns]
    if in_place and all(in_place):
        return written[0] if len(written) == 1 else tuple(written)

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if not func.is_view:
            counts.bytes += x.numel() * x.element_size()
        return OnDevice(x)

    return tree_map(wrap, found)


@contextlib.contextmanager
def accelerator() -> Iterator[Accelerator]:
    """Inside, there is a device."""
    device()
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Accelerator() as mode, _FusedAttention(mode.counts):
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
