import os

import pytest
from wandb_stub import KEY, WandbServer, clean_environment


@pytest.fixture
def wandb_environment(tmp_path):
    """Of nobody: what a test tracks stays below its own folder."""
    with clean_environment(tmp_path):
        yield


@pytest.fixture
def server(wandb_environment):
    """A small W&B server, to which this process has a key."""
    server = WandbServer()
    os.environ |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    yield server
    server.stop()
    assert not server.mistakes
