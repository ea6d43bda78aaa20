"""A sweep whose slots train nothing: losses come from a formula, at once, and all the rest is the real thing.

    python -c "from tests.standing_in import main; main()" run FILE

Tune, Optuna, the coordinator, the ledger and all that writes and reads a sweep's folder are what they always are. So
is the loop of a slot with its worker (`trainables.runtime.worker`): it takes assignments, joins trials, writes
evaluations with their checkpoints and publishes them. Two things differ: the trial group is a `FormulaGroup`, and all
slots are threads of one process, not Ray Train runs of their own.
"""

import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

ON_BOARD = "STAND_IN_ON_BOARD"  # variable: trials that are evaluated only once so many are on board, all at once
DISK_S = "STAND_IN_DISK_S"  # variable: seconds that each write into the sweep's folder takes more
CHECKPOINT_BYTES = 1000
MAX_SLOTS = 160  # each is a thread


class Boarding:
    """How many trials are on board, of all slots; and whether so many have been that they may be evaluated."""

    def __init__(self, wanted: int) -> None:
        self._wanted, self._there, self._lock = wanted, 0, threading.Lock()
        self.open = wanted == 0

    def count(self, more: int) -> None:
        with self._lock:
            self._there += more
            self.open = self.open or self._there >= self._wanted


class Member:
    """A trial of a `FormulaGroup`."""

    def __init__(self, name: str, hp: Any, step: int) -> None:
        self.name, self.hp, self.step = name, hp, step


class FormulaGroup:
    """What a slot's worker asks of a `TrialGroup`. A step takes its trials to their next evaluations."""

    def __init__(self, rows: int, validation: int, boarding: Boarding) -> None:
        """rows: of train; validation: rows of that split."""
        import torch

        self.device = torch.device("cpu")
        self.trained_samples = self.trained_tokens = 0
        self._rows, self._validation, self._boarding = rows, validation, boarding
        self._members: dict[str, Member] = {}

    @property
    def trials(self) -> list[str]:
        return list(self._members)

    def join(self, trial: str, hp: Any, checkpoint: Path | None) -> None:
        step = 0
        if checkpoint is not None:
            step = json.loads((checkpoint / "evaluation.json").read_text())["step"]
        self._members[trial] = Member(trial, hp, step)
        self._boarding.count(1)

    def leave(self, trial: str) -> None:
        del self._members[trial]
        self._boarding.count(-1)

    def step(self, trials: Sequence[str]) -> list[str]:
        from trainables.engine.schedule import is_due

        if not self._boarding.open:
            time.sleep(0.1)
            return []
        for member in map(self._members.__getitem__, trials):
            before, member.step = self._seen(member), member.step + 1
            while not is_due(self._rows, member.hp, member.step, self._rows):
                member.step += 1
            self.trained_samples += self._seen(member) - before
        return list(trials)

    def due(self, trials: Iterable[str]) -> list[str]:
        return list(trials)

    def evaluate(self, trials: Sequence[str]) -> dict[str, Any]:
        return {trial: self._evaluation(self._members[trial]) for trial in trials}

    def _evaluation(self, member: Member) -> Any:
        from trainables.engine.schedule import last_step
        from trainables.evaluation.record import MeasuredEvaluation

        epoch = self._seen(member) / self._rows
        drawn = np.random.default_rng(crc32(member.name.encode()))
        far = abs(math.log10(member.hp.learning_rate) + 3.3)
        loss = 0.4 + far / 4 + 0.2 * drawn.random() + 0.5 * math.exp(-epoch)
        of_rows = drawn.gamma(2.0, 0.5, self._validation)
        of_rows *= loss / of_rows.mean()
        losses = np.stack([of_rows, np.ones(self._validation)], 1).astype(np.float32)
        return MeasuredEvaluation(
            step=member.step,
            samples_seen=self._seen(member),
            epoch=epoch,
            val_loss=float(losses[:, 0].mean()),
            probe_loss=loss - 0.02,
            train_loss=loss,
            metrics={"accuracy": math.exp(-loss)},
            finished=member.step >= last_step(self._rows, member.hp),
            trainable_parameters=1000,
            losses=losses,
        )

    def _seen(self, member: Member) -> int:
        from trainables.engine.schedule import samples_seen

        return samples_seen(self._rows, member.hp, member.step)

    def progress(self, trial: str) -> int:
        return self._seen(self._members[trial])

    def save(self, trial: str, folder: Path) -> None:
        from trainables.engine.schedule import last_step
        from trainables.storage.checkpoints import CHECKPOINT, STATE

        (folder / CHECKPOINT).mkdir()
        (folder / CHECKPOINT / "model.safetensors").write_bytes(bytes(CHECKPOINT_BYTES))
        member = self._members[trial]
        if member.step < last_step(self._rows, member.hp):
            (folder / STATE).write_bytes(bytes(CHECKPOINT_BYTES))

    def untuned_results(self, method: str, options: object = None) -> tuple[Any, Any]:
        from trainables.engine.scoring import RowResults

        ones = np.ones(self._validation)
        results = RowResults(nll=1.4 * ones, targets=ones, outcomes=None)
        return results, results

    def metrics(self, results: object) -> dict[str, float]:
        return {"accuracy": 0.25}

    def forget_base(self) -> None:
        """Nothing: it has none."""


class StandIn:
    """An actor: the process in which all slots are."""

    def __init__(self, on_board: int, disk_s: float) -> None:
        slow_down_disk(disk_s)
        self._boarding = Boarding(on_board)

    def serve(self, config: Any) -> None:
        """A slot, from its start to its end."""
        from trainables.data.manifest import MANIFEST, manifest_of
        from trainables.runtime.client import CoordinatorClient
        from trainables.runtime.worker import SWEEP_FILE, SlotWorker, _serve
        from trainables.storage.patience import Patience
        from trainables.storage.store import Store

        client = CoordinatorClient(config, 0, 1)
        store = Store(config.storage)
        store.insist(
            Patience(client.storage, wait_s=config.storage_wait_s),
            marker=SWEEP_FILE,
        )
        manifest = manifest_of(store.read_json(f"data/{MANIFEST}"), config.storage)
        validation = manifest.splits["validation"].rows
        group: Any = FormulaGroup(manifest.train.rows, validation, self._boarding)
        groups = {config.first: group}
        worker = SlotWorker(
            config=config, client=client, groups=groups, store=store, rank=0, size=1
        )
        client.register()
        _serve(worker, config, client)


def slow_down_disk(seconds: float) -> None:
    """Let each write into a sweep's folder take so much longer, in this process."""
    from trainables.storage.store import Store

    if not seconds:
        return

    def slow(method: Callable[..., Any]) -> Callable[..., Any]:
        def write(*given: Any, **named: Any) -> Any:
            time.sleep(seconds)
            return method(*given, **named)

        return write

    for name in ("write_bytes", "create", "publish", "delete"):
        setattr(Store, name, slow(getattr(Store, name)))


def stand_in() -> None:
    """From now on the slots of this process's sweep train nothing."""
    import ray

    from tests import standing_in
    from trainables.runtime import slot

    on_board, disk_s = int(os.environ.get(ON_BOARD, 0)), float(os.environ.get(DISK_S, 0))
    slow_down_disk(disk_s)
    starting, started = threading.Lock(), []

    def run_slot(config: Any, *, workers: int, resources_per_worker: object, folder: str) -> None:
        with starting:
            if not started:
                options = {"num_cpus": 0, "max_concurrency": MAX_SLOTS}
                actor = ray.remote(standing_in.StandIn).options(**options)
                started.append(actor.remote(on_board, disk_s))
        ray.get(started[0].serve.remote(config))

    slot.run_slot = run_slot


def main() -> None:
    from sweeps.cli.app import main as sweeps

    stand_in()
    sweeps()


def write_sweep(
    work: Path, trials: int, *, slots: int, share: int, rows: int = 400, more: str = ""
) -> Path:
    """A sweep file with its data and a tiny model. share: trials on a slot; more: of the section search."""
    from tests.sweeps.drawn import WORDS, save_encoder

    save_encoder(work / "model")
    texts = itertools.product(WORDS.split(), repeat=3)
    lines = [
        f"{' '.join(text)},{'ab'[k % 2]}" for k, text in enumerate(itertools.islice(texts, rows))
    ]
    (work / "rows.csv").write_text("\n".join(["text,label", *lines]))
    file = work / "sweep.yaml"
    file.write_text(f"""
name: many
task: classification
storage: {work}/runs
rehearse: false
model: {{name: {work}/model}}
data: {{train: {work}/rows.csv, validation: 0.5, max_length: 16}}
train: {{evaluate_every: epoch}}
selection: {{baselines: false}}
cluster: {{slots: {slots}, trials_per_slot: {share}, resources_per_worker: {{CPU: {1 / slots / 2:.6f}}}}}
tracking: {{wandb: "off"}}
search:
  trials: {trials}
  space:
    method: lora
    learning_rate: {{log_uniform: [1e-5, 1e-2]}}
    rank: {{choice: [4, 8, 16, 32]}}
    dropout: {{uniform: [0.0, 0.2]}}
    batch_size: {{choice: [8, 16, 32]}}
    epochs: {{int: [1, 3]}}
{more}
""")
    return file
