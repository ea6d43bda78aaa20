import pytest


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Files are named without their folder, as where a user calls from it."""
    monkeypatch.chdir(tmp_path)
