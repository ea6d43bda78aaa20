"""A dashboard behind a proxy that ends TLS and wants a header of its own, as on a shared cluster."""

import asyncio
import datetime
import ipaddress
import json
import os
import re
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cluster import ClusterError
from cluster.endpoint import find_endpoint, open_client
from cluster.jobs import Jobs
from cluster.submit import submit

SESSION = "the-session-of-a-person"
HERE = "127.0.0.1"


def certificate(folder: Path) -> tuple[Path, Path]:
    """(key, certificate) of this machine, signed by itself."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a head")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HERE))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (folder / "ca.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return folder / "key.pem", folder / "ca.pem"


class Proxy:
    """Ends TLS, shows who has no session a page for people, and hands the rest on."""

    def __init__(self, folder: Path, behind: str | None) -> None:
        key, self.authority = certificate(folder)
        self._behind = behind
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(self.authority, key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        opened = asyncio.start_server(self._serve, HERE, 0, ssl=self._context)
        self._server = asyncio.run_coroutine_threadsafe(opened, self._loop).result()
        self.url = f"https://{HERE}:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if f"cookie: session={SESSION}".encode() not in head.replace(b"Cookie", b"cookie"):
                page = b"<html>Log in</html>"
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(page), page))
                await writer.drain()
                return
            assert self._behind is not None
            parts = urlsplit(self._behind)
            back, forth = await asyncio.open_connection(parts.hostname, parts.port)
            # what is meant for a proxy goes no further
            forth.write(re.sub(rb"(?i)\r\nauthorization: basic [^\r]*", b"", head))
            await asyncio.gather(pump(reader, forth), pump(back, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    target.close()


@pytest.fixture
def no_variables(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("RAY_") or name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def door(tmp_path, no_variables):
    """A proxy with nothing behind it."""
    proxy = Proxy(tmp_path / "door", None)
    yield proxy
    proxy.close()


# --- with no cluster ---


def refused(address: str, verify: str | None = None) -> str:
    with pytest.raises(ClusterError) as caught:
        open_client(find_endpoint(address), verify)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_certificate_that_is_not_trusted(door, tmp_path, monkeypatch):
    trust = f"--address: {door.url}: its certificate is not trusted ("
    assert refused(door.url).startswith(trust)
    _, other = certificate(tmp_path / "other")
    said = refused(door.url, str(other))
    assert said.startswith(trust) and said.endswith("by --verify or REQUESTS_CA_BUNDLE")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    assert refused(door.url).startswith(trust)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("by", ["option", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "no check"])
def test_a_proxy_that_wants_a_session_shows_its_page(door, monkeypatch, by):
    verify = {"option": str(door.authority), "no check": "false"}.get(by)
    if verify is None:
        monkeypatch.setenv(by, str(door.authority))
    said = refused(door.url, verify)
    assert said.endswith("a page for people stands there: does a proxy want RAY_JOB_HEADERS?")


def test_files_that_hold_no_certificate(door, tmp_path):
    missing, empty = tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.write_text("no certificate")
    assert (
        refused(door.url, str(missing))
        == f"--verify: cannot read {missing}: No such file or directory"
    )
    assert refused(door.url, str(empty)) == f"--verify: {empty} holds no certificates (PEM)"


def test_a_port_that_speaks_no_tls(no_variables):
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def plain(reader, writer):
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    opened = asyncio.run_coroutine_threadsafe(asyncio.start_server(plain, HERE, 0), loop)
    server = opened.result()
    said = refused(f"https://{HERE}:{server.sockets[0].getsockname()[1]}")
    assert "does not speak TLS" in said and said.endswith("is it http://?")
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.mark.parametrize("headers", ["{", "[]", '{"Cookie": 1}', '{"Cookie": "secret\\nsecret"}'])
def test_headers_that_are_none(door, monkeypatch, headers):
    monkeypatch.setenv("RAY_JOB_HEADERS", headers)
    said = refused(door.url, str(door.authority))
    assert said.startswith('RAY_JOB_HEADERS: must be JSON such as {"NAME": "VALUE"}')
    assert "secret" not in said


# --- with a head that asks for a token too ---


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("taken", [False, True], ids=["", "the usual header is the proxy's"])
def test_a_job_through_tls_and_a_proxy(ray_head, tmp_path, monkeypatch, no_variables, taken):
    """Its log too, which comes by a websocket; what opens the door is written down nowhere."""
    ray_head.use(monkeypatch)
    headers = {"Cookie": f"session={SESSION}"} | (
        {"Authorization": "Basic bWU6eW91"} if taken else {}
    )
    monkeypatch.setenv("RAY_JOB_HEADERS", json.dumps(headers))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "says.py").write_text("print('said through TLS')\n")
    proxy, lines = Proxy(tmp_path / "door", ray_head.dashboard_url), []
    try:
        outcome = submit(
            name="by-tls",
            entry=["says"],
            working_dir=tmp_path / "code",
            address=proxy.url,
            verify=str(proxy.authority),
            metadata={},
            env={},
            wait=True,
            print_line=lines.append,
        )
        assert outcome.status == "SUCCEEDED" and "said through TLS" in lines, lines
        jobs = Jobs(proxy.url, str(proxy.authority))
        assert jobs.choose(outcome.job_id[:-1]).job_id == outcome.job_id
        assert "said through TLS" in jobs.log(outcome.job_id)
        command = [sys.executable, "-m", "sweeps", "logs", outcome.job_id, "--address", proxy.url]
        command += ["--verify", str(proxy.authority), "--follow"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and "said through TLS" in done.stdout, done.stderr
    finally:
        proxy.close()
    written = b"".join(each.read_bytes() for each in ray_head.temp_dir.rglob("*") if each.is_file())
    assert outcome.job_id.encode() in written and SESSION.encode() not in written
