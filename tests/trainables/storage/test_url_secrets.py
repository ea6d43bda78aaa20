"""Secrets in URLs: what is one, and that none is taken or shown."""

import pytest

from trainables.data.files import File
from trainables.errors import InputError
from trainables.storage.store import Store
from trainables.storage.url_secrets import redacted, refuse_secrets

SECRETS = {
    "https://me:hunter2@host/a.csv": "https://***@host/a.csv",
    "https://ghp_hunter2@host/a.csv": "https://***@host/a.csv",
    "s3://AKIA:hunter2@bucket/sweeps": "s3://***@bucket/sweeps",
    "sftp://me:hunter2@host/a.csv": "sftp://***@host/a.csv",
    "postgresql+psycopg://me:hunter2@db/optuna": "postgresql+psycopg://***@db/optuna",
    "zip://a.csv::https://me:hunter2@host/a.zip": "zip://a.csv::https://***@host/a.zip",
    "https://b.s3.amazonaws.com/a.csv?X-Amz-Expires=60&X-Amz-Credential=hunter2%2Fs3&X-Amz-Signature=hunter2": "https://b.s3.amazonaws.com/a.csv?X-Amz-Expires=60&X-Amz-Credential=***&X-Amz-Signature=***",
    "https://storage.googleapis.com/b/a.csv?X-Goog-Signature=hunter2": "https://storage.googleapis.com/b/a.csv?X-Goog-Signature=***",
    "https://acc.blob.core.windows.net/c/a.csv?sv=2026&sig=hunter2&se=x": "https://acc.blob.core.windows.net/c/a.csv?sv=2026&sig=***&se=x",
    "https://host/a.csv?access_token=hunter2#top": "https://host/a.csv?access_token=***#top",
    "https://host/a.csv?apiKey=hunter2": "https://host/a.csv?apiKey=***",
}
HARMLESS = [
    "s3://bucket/sweeps",
    "s3://bucket/a:b@c/d.csv",
    "gs://bucket/@now/x.csv",
    "sftp://me@host/a.csv",
    "abfs://container@account.dfs.core.windows.net/a.csv",
    "https://host:8443/a.csv?version=3&format=csv",
    "https://host/a.csv?monkey=1&tokens=3",
    "/home/me:you@here/a.csv",
    "mail me@host about key=value",
    "",
]


@pytest.mark.parametrize(("url", "shown"), SECRETS.items())
def test_what_is_secret_is_neither_taken_nor_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown and "hunter2" not in shown
    assert redacted(f"see {url} and {url} again") == f"see {shown} and {shown} again"
    takers = [
        lambda: refuse_secrets(url, "storage"),
        lambda: Store(url),
        lambda: File(key="data.train", name=url, address=url),
    ]
    for take in takers:
        with pytest.raises(InputError) as caught:
            take()
        assert shown in str(caught.value) and "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", HARMLESS)
def test_what_is_harmless_is_as_it_was(url: str) -> None:
    assert redacted(url) == url
    refuse_secrets(url)
