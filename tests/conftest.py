import gc
import os
import random
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # test processes run side by side
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def cheap_collections() -> None:
    """Garbage is collected wherever memory runs out: it must not walk through all that was imported so far."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws is the same in each run, whatever ran before it in its process."""
    random.seed(0)
    for name in ("numpy.random", "torch"):
        if library := sys.modules.get(name):
            (library.manual_seed if name == "torch" else library.seed)(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data and a tiny real model, laid beside the checkout; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return folder
