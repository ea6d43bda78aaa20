import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes: the slow ones first, those of a file together, whole sweeps each by itself."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    for item in items:
        alone = item.get_closest_marker("ray") and item.path.name == "test_end_to_end.py"
        shares = "tweets" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group(item.name if alone and not shares else str(item.path)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data and a tiny real model, laid beside the checkout; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return folder
