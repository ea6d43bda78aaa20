"""What a sweep holds of accelerators, or else of cores, over all its processes: cost.json."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sweeps.ledger.folder import Ledger

if TYPE_CHECKING:
    from cluster.connect import SlotPlan

COST = "cost.json"


class DeviceTime:
    """Counts what slots hold, whether they train or wait."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = ledger.store, clock
        known = ledger.store.read_json(COST) if ledger.store.exists(COST) else {}
        self._seconds = float(known.get("device_seconds", 0.0))
        self._device = ""
        self._each = 0.0  # devices of a slot
        self._slots: Callable[[], int] = lambda: 0
        self._counted = clock()
        self._lock = threading.Lock()

    def start(self, plan: "SlotPlan", slots: Callable[[], int]) -> None:
        """slots: how many there are at a moment, each as `plan` has them."""
        on_gpu = bool(plan.resources_per_worker.get("GPU"))
        each = plan.resources_per_worker.get("GPU" if on_gpu else "CPU", 1.0)
        with self._lock:
            self._device = "GPU" if on_gpu else "CPU core"
            self._each, self._slots = each * plan.workers_per_slot, slots
            self._counted = self._clock()

    def seconds(self) -> float:
        """Device seconds until now."""
        with self._lock:
            now = self._clock()
            self._seconds += (now - self._counted) * self._each * self._slots()
            self._counted = now
            return self._seconds

    def save(self) -> None:
        """Raises OSError where the folder cannot be written."""
        if self._device:
            counted = {"device": self._device, "device_seconds": self.seconds()}
            self._store.write_json(COST, counted)

    def stop(self) -> None:
        """No slot is left."""
        self.seconds()
        self._slots = lambda: 0
