"""What a sweep begins with: a new one is prepared, an earlier one is opened again."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sweeps.config.loading import with_own_space
from sweeps.config.metrics import with_metric
from sweeps.config.schema import SweepConfig
from sweeps.ledger.driver import Driver
from sweeps.ledger.folder import Ledger
from sweeps.reporting.verify import changed_sources
from sweeps.run.earlier import lineages, with_local_model
from sweeps.run.folder import (
    absolute_paths,
    amend,
    new_folder,
    write_configuration,
)
from sweeps.run.plan import auto_words
from sweeps.run.preflight import preflight
from sweeps.run.preparation import earlier_sweeps, prepare_data, rehearsed
from sweeps.run.storage import check_storage
from sweeps.run.sweep import Outcome, Sweep, print_line
from trainables.data.manifest import MANIFEST
from trainables.errors import InputError

if TYPE_CHECKING:
    from sweeps.run.preflight import Rehearse


def start(config: SweepConfig, console: Console) -> Outcome:
    """Run a new sweep."""
    config = _settled(absolute_paths(config))
    with preflight(config, lambda line: print_line(console, line)) as rehearse:
        config, ledger, driver = prepare(config, console, rehearse)
    return Sweep(config, ledger, console, elapsed_s=0.0, driver=driver).run()


def _settled(config: SweepConfig) -> SweepConfig:
    """With what follows from its own files and words before data are read."""
    return with_own_space(with_local_model(with_metric(config)))


def prepare(
    config: SweepConfig, console: Console, rehearse: "Rehearse | None" = None
) -> tuple[SweepConfig, Ledger, Driver]:
    """The configuration with what follows from the data, and the folder of a new sweep with all
    that is known before the first trial. Bad data is refused before there is a folder of a sweep
    that never began.
    """
    check_storage(config)
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        data = Path(scratch) / "data"
        manifest = prepare_data(config, data)
        for line in auto_words(config, manifest):
            print_line(console, line)
        config = with_own_space(config, manifest.train.rows)
        base = config.model.fingerprints()
        prior = earlier_sweeps(config, manifest, base)
        rehearsed(config, data, lambda line: print_line(console, line), rehearse)
        ledger = new_folder(config)
        driver = Driver.take(ledger)
        write_configuration(ledger, config)
        ledger.set_status("running", 0.0)  # whoever finds the folder may watch it
        ledger.store.write_json("base.json", base)
        if ancestors := lineages(config):
            ledger.write_lineages(ancestors)
        if prior is not None:
            prior.save(ledger)
        staged = ledger.store.scratch()
        shutil.copytree(data, staged, dirs_exist_ok=True)
        ledger.store.publish(staged, "data", last=MANIFEST)
    return config, ledger, driver


def resume(ledger: Ledger, config: SweepConfig, console: Console) -> Outcome:
    """Go on with a sweep, maybe with another configuration: finished trials are kept, unfinished
    ones go on from their last checkpoints with what they began.
    """
    if not ledger.has_data():
        raise InputError(
            f"{ledger.store.path('')}: has no prepared data, so it never began; run it anew"
        )
    elapsed_s = ledger.status()[1]
    driver = Driver.take(ledger)
    ledger.store.clear_scratch()
    ledger.load()
    config = with_own_space(with_metric(config), ledger.manifest().train.rows)
    for line in [*changed_sources(ledger.manifest()), *amend(ledger, config)]:
        print_line(console, line)
    for curve in ledger.curves():
        if curve.status != "running":
            # a kill can come between the end of a trial and its pruning
            ledger.prune(curve.id, config.selection)
    with preflight(config, lambda line: print_line(console, line)):
        pass
    return Sweep(config, ledger, console, elapsed_s=elapsed_s, driver=driver).run()
