"""What is known of the untuned base while a sweep runs."""

from sweeps.ledger.folder import Ledger
from trainables.runtime.protocol import Baseline
from trainables.storage.records import to_json

FILE = "baseline.json"


class KnownBaseline:
    """Whether the untuned base has been evaluated, and what trials are held against."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.known = ledger.store.exists(FILE)
        self.reference = ledger.reference()

    def write(self, baseline: Baseline) -> None:
        self.known = True
        self._ledger.store.write_json(FILE, to_json(baseline))
        self.reference = self._ledger.reference()
