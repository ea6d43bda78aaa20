"""A sweep of which some trials need more memory than a slot has."""

import json
import os
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]

# what every Python of the sweep begins with: a Llama that trains while the process holds more than
# 12 MB in tensors finds what it finds on an accelerator of that size
SMALL_DEVICE = """
import gc, importlib.abc, importlib.util, sys

MOST = 12_000_000
LLAMA = "transformers.models.llama.modeling_llama"

def small(model):
    import torch
    forward = model.forward
    def limited(self, *given, **named):
        if self.training:
            tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
            held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
            if sum(held.values()) > MOST:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        return forward(self, *given, **named)
    model.forward = limited

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != LLAMA:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def loaded(module):
            load(module)
            small(module.LlamaForCausalLM)
        spec.loader.exec_module = loaded
        return spec

sys.meta_path.insert(0, Finder())
"""
LARGE = 256  # a rank at which a trial takes 24 MB
RANKS = {"t0001": 4, "t0002": LARGE, "t0003": LARGE, "t0004": LARGE, "t0005": LARGE, "t0006": 8}
INITIAL = [{"rank": rank, "learning_rate": 0.001 * int(trial[1:])} for trial, rank in RANKS.items()]
REST = f"""
rehearse: false
train: {{method: lora, alpha: 8, batch_size: 8, evaluate_every: 64, probe_rows: 64, epochs: 0.4}}
cluster: {{slots: 1, trials_per_slot: 2}}
tracking: {{wandb: "off"}}
search:
  trials: 6
  scheduler: none
  early_stopping: {{overfit: false, diverged: false}}
  initial: {json.dumps(INITIAL)}
  space: {{rank: {{choice: [4, 8, 256]}}, learning_rate: {{log_uniform: [1.0e-4, 1.0e-2]}}}}
"""


def test_trials_that_fit_no_slot_fail_alone_with_what_they_need_and_the_search_knows(
    sweeps, shakespeare, tmp_path: Path
) -> None:
    """Also where more of them come one after another than the faults for which a slot is given up."""
    device = tmp_path / "device"
    device.mkdir()
    (device / "sitecustomize.py").write_text(SMALL_DEVICE)
    path = os.pathsep.join([str(device), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = sweeps("run", shakespeare(f"{REST}\nselection: {{baselines: false}}"), PYTHONPATH=path)
    assert done.code == 0, done.out + done.err
    (folder,) = (tmp_path / "runs").iterdir()
    for trial, rank in RANKS.items():
        outcome = json.loads((folder / "trials" / trial / "outcome.json").read_text())
        evaluations = [*folder.glob(f"trials/{trial}/*/*/evaluation.json")]
        if rank != LARGE:
            assert outcome["status"] == "complete" and len(evaluations) == 2
            continue
        assert outcome["status"] == "failed" and not evaluations
        reason = outcome["reason"]
        assert reason.startswith("it does not fit the device of "), reason
        assert "even alone; it needs about 2" in reason and " MiB for the trial" in reason, reason
        assert ": OutOfMemoryError: CUDA out of memory." in reason and "\n" not in reason
        (line,) = [line for line in done.out.splitlines() if f"{trial} failed" in line]
        assert reason in line
    assert "gets no more trials" not in done.out and "Traceback" not in done.out
    journal = JournalFileBackend(str(folder / "study.journal"))
    storage = optuna.storages.JournalStorage(journal)
    study = optuna.load_study(study_name=folder.name, storage=storage)
    told = {each.user_attrs["trial"]: each for each in study.trials}
    for trial, rank in RANKS.items():
        broken = {"memory": 1.0} if rank == LARGE else {}
        assert told[trial].constraints == broken
        assert told[trial].state == (TrialState.PRUNED if broken else TrialState.COMPLETE)
