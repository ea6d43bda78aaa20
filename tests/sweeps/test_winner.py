"""What `verify` says of data and model that are no longer what they were."""

import hashlib
from types import SimpleNamespace

import pytest

from sweeps.ledger import Ledger
from sweeps.winner import altered

CONTENT = b"text,label\na,b\n"


@pytest.fixture
def ledger(tmp_path):
    """A folder whose data came from train.csv beside it, and from a hub."""
    made = Ledger(str(tmp_path / "quick-20260101-120000"))
    source = {"source": str(tmp_path / "train.csv"), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    sources = {"train": source, "test": {"source": "hf:somebody/something", "sha256": "f" * 64}}
    made.store.write_json("data/manifest.json", {"splits": {}, "sources": sources})
    return made


def test_a_source_that_has_changed_since_is_named(ledger, tmp_path):
    config = SimpleNamespace(model=None)
    (tmp_path / "train.csv").write_bytes(CONTENT)
    assert altered(ledger, config) == []
    (tmp_path / "train.csv").write_bytes(CONTENT + b"c,d\n")
    assert altered(ledger, config) == [f"data.train: {tmp_path}/train.csv is no longer the file that the sweep read"]
    (tmp_path / "train.csv").unlink()
    assert altered(ledger, config) == [], "what is not here cannot be compared: the prepared data are"
