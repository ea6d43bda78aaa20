"""Where each trial's tensors lie in the one matrix [K, P] that holds all that the trials of a group
train.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from trainables.engine.sites import AdapterSite, Made
from trainables.hyperparameters import MethodOptions

VACANT = ""  # the trial of a row that nobody has any more


@dataclass(frozen=True)
class Column:
    """One tensor of one site: columns of the matrix."""

    kind: type[AdapterSite]
    site: str
    tensor: str


@dataclass(kw_only=True)
class Lane:
    """A trial's row of the matrix."""

    trial: str
    options: dict[tuple[type[AdapterSite], str], MethodOptions | None]
    shapes: dict[Column, tuple[int, ...]]  # the trial's own
    frozen: dict[Column, Tensor] = field(default_factory=dict)  # see `Addition`
    made: dict[tuple[type[AdapterSite], str], Made] = field(default_factory=dict)  # likewise
    averaged: bool = False  # whether the moving average of its weights is kept

    @property
    def kept(self) -> dict[str, set[Column]]:
        """What is kept of its numbers beside the optimizer's moments, and of which."""
        found: dict[str, set[Column]] = {}
        for column in self.shapes:
            for name in column.kind.state:
                found.setdefault(name, set()).add(column)
        return found

    @property
    def trained(self) -> int:
        """How many numbers the trial trains."""
        frozen = sum(int(x.expand(self.shapes[c]).sum()) for c, x in self.frozen.items())
        return sum(map(math.prod, self.shapes.values())) - frozen

    def trains(self, column: Column) -> bool:
        """Whether anything of a tensor is trained."""
        return column not in self.frozen or not bool(self.frozen[column].all())


@dataclass(kw_only=True)
class Layout:
    """Where each tensor lies: first column and padded shape."""

    columns: dict[Column, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    width: int = 0

    @classmethod
    def of(cls, lanes: Sequence[Lane]) -> "Layout":
        layout = cls()
        shapes: dict[Column, tuple[int, ...]] = {}
        for lane in lanes:
            for column, shape in lane.shapes.items():
                known = shapes.get(column, shape)
                shapes[column] = tuple(max(a, b) for a, b in zip(known, shape, strict=True))
        for column, shape in shapes.items():
            layout.columns[column] = (layout.width, shape)
            layout.width += -(-math.prod(shape) // 8) * 8  # aligned, for the kernels of GPUs
        return layout

    def view(self, matrix_KP: Tensor, column: Column) -> Tensor:
        start, shape = self.columns[column]
        return matrix_KP[:, start : start + math.prod(shape)].unflatten(1, shape)

    def own(self, matrix_KP: Tensor, column: Column, row: int, shape: tuple[int, ...]) -> Tensor:
        """The part of a padded tensor that a trial of `shape` trains."""
        return self.view(matrix_KP, column)[row][tuple(slice(size) for size in shape)]
