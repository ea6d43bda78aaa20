"""What selection gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sweeps.selection.curves import Curve
from sweeps.selection.statistics import Difference
from trainables.evaluation.record import Evaluation


@dataclass(frozen=True, kw_only=True)
class Final:
    """A configuration that was trained again: its new seeds, each with its best validation loss
    that may win.

    The loss of the first seed does not count: it is why the configuration was chosen, and so too
    good on average.
    """

    trial: str  # which had it first
    seeds: Mapping[str, float]  # validation loss, by the trial of each new seed
    failed: tuple[str, ...] = ()  # new seeds that ended without a checkpoint that may win
    mean: float
    spread: (
        float | None
    )  # standard deviation over the new seeds; None for a single one, of which it is not known

    @property
    def median(self) -> str:
        """The trial whose checkpoint stands for the configuration: neither a lucky seed nor an
        unlucky one. Of an even number the better of the middle two.
        """
        return sorted(self.seeds, key=lambda trial: (self.seeds[trial], trial))[
            (len(self.seeds) - 1) // 2
        ]


@dataclass(frozen=True, kw_only=True)
class Winner:
    trial: str
    point: Evaluation
    reason: str
    tied: tuple[str, ...] = ()
    # where it ran again with new seeds: their mean is what to expect of it
    expected: Final | None = None
    lowest: str = ""  # folder of the evaluation with the lowest loss
    differences: Mapping[str, Difference] = field(
        default_factory=dict
    )  # of the other candidates, to the lowest loss


Standing = Sequence[tuple[Curve, Evaluation]]


def cost_in_use(item: tuple[Curve, Evaluation]) -> tuple[float, int, int, str]:
    """What a checkpoint costs whoever uses it, and last what it cost to train. The number of
    trained parameters is no part of it: after training they cost nothing.
    """
    curve, point = item
    return point.request_cost, point.checkpoint_bytes, point.samples_seen, curve.id
