"""How much memory a computation takes at its peak, on any device: by what its operations make and
when that goes again.
"""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Inside, `bytes` is the most that the tensors made here have taken at one time. Workspaces of
    kernels do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self._live = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {
            id(x.untyped_storage())
            for x in tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        }
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = id(storage), storage.nbytes()
                if key not in given and key not in self._alive:
                    self._live += size
                    self.bytes = max(self.bytes, self._live)
                    self._alive[key] = weakref.ref(
                        storage, lambda _, key=key, size=size: self._gone(key, size)
                    )
        return out

    def _gone(self, key: int, size: int) -> None:
        self._live -= size
        del self._alive[key]
