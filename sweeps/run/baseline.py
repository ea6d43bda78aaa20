"""What is known of the untuned base while a sweep runs."""

from sweeps.ledger.folder import Ledger
from trainables.evaluation.record import Untuned


class KnownBaseline:
    """Whether the untuned base has been evaluated, and what trials are held against."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.known = ledger.untuned() is not None
        self.reference = ledger.reference()

    def write(self, baseline: Untuned) -> None:
        self.known = True
        self._ledger.write_untuned(baseline)
        self.reference = self._ledger.reference()
