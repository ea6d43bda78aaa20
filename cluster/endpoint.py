"""The door of a cluster's dashboard, and of its jobs: address, token, headers, TLS."""

import ipaddress
import json
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import ray.exceptions
import requests
from ray.job_submission import JobSubmissionClient

from cluster import ClusterError
from cluster.connect import API_ADDRESS, PROBE_TIMEOUT_S, TOKEN_HELP, environment

EXAMPLE = "such as http://127.0.0.1:8265"
OPTION = "--address"
HEADERS = "RAY_JOB_HEADERS"  # variable with the headers of every request, as Ray's own commands
AUTHORIZATION = "authorization"
# where Ray takes its token too, as what stands before it may want the usual header for itself
RAY_AUTHORIZATION = "X-Ray-Authorization"
CA_FILES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")  # variables with a file of certificates
UNTRUSTED = "its certificate is not trusted"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A dashboard as it was named."""

    url: str  # without a trailing slash
    host: str
    port: int
    where: str  # who named it: the option, or a variable

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(self.host)


def find_endpoint(address: str | None) -> Endpoint:
    """The dashboard at `address`, else that of RAY_API_SERVER_ADDRESS, else that of RAY_ADDRESS
    where it is a dashboard's.
    """
    given = {
        OPTION: address,
        API_ADDRESS: os.environ.get(API_ADDRESS),
        # which is mostly the head's host:port, of other commands
        "RAY_ADDRESS": _dashboard_only(os.environ.get("RAY_ADDRESS", "")),
    }
    for where, each in given.items():
        if each:
            url, host, port = parse_address(each, where)
            return Endpoint(url=url, host=host, port=port, where=where)
    raise ClusterError(
        f"{OPTION}: not given; the cluster's dashboard, {EXAMPLE}, here or in {API_ADDRESS}"
    )


def _dashboard_only(address: str) -> str | None:
    return address if address.startswith(("http://", "https://")) else None


def parse_address(address: str, where: str = OPTION) -> tuple[str, str, int]:
    """(url without a trailing slash, host, port) of a dashboard."""
    if address.startswith("ray://"):
        raise ClusterError(
            f"{where}: {address} is a Ray Client address; must be the dashboard's, {EXAMPLE}"
        )
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ClusterError(
            f"{where}: must be the dashboard's address, {EXAMPLE}, got {address!r} ({error})"
        ) from error
    _refuse_password(parts, where)
    if not host or not _is_dashboard(parts, address):
        raise ClusterError(f"{where}: must be the dashboard's address, {EXAMPLE}, got {address!r}")
    port = port or (443 if parts.scheme == "https" else 8265)
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port}{parts.path.rstrip('/')}", host, port


def _refuse_password(parts: SplitResult, where: str) -> None:
    if parts.username or parts.password:
        raise ClusterError(
            f"{where}: a name and a password do not belong into the address, where all see them;"
            f" set {HEADERS}"
        )


def _is_dashboard(parts: SplitResult, address: str) -> bool:
    extra = parts.query or parts.fragment or any(map(str.isspace, address))
    return parts.scheme in ("http", "https") and not extra


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_client(endpoint: Endpoint, verify: str | None = None) -> JobSubmissionClient:
    """verify: the file with the certificate authority of an https address, or `false`. Raises
    ClusterError: nothing answers, no trust in its certificate, wrong or missing token.
    """
    url, where = endpoint.url, endpoint.where
    authority = _authority(verify)
    try:
        socket.create_connection(
            (endpoint.host, endpoint.port), timeout=PROBE_TIMEOUT_S
        ).close()  # Ray's own request has no time limit
    except OSError as error:
        raise ClusterError(
            f"{where}: nothing answers at {url} ({error.strerror or error}); does the head run"
            " there?"
        ) from error
    headers = _headers(endpoint.host)
    with one_line_errors(url, where), environment({API_ADDRESS: url}):  # Ray prefers the variable
        return JobSubmissionClient(url, headers=headers, verify=authority)


def _authority(verify: str | None) -> str | bool:
    """What Ray's client takes as `verify`."""
    if verify and verify.lower() in ("true", "false"):
        return verify.lower() == "true"
    given = {"--verify": verify} | {name: os.environ.get(name) for name in CA_FILES}
    for where, path in given.items():
        if path:
            return _certificates(path, where)
    return True


def _certificates(path: str, where: str) -> str:
    """The file or folder `path`, which has certificates."""
    try:
        if not Path(path).is_dir():
            ssl.create_default_context(cafile=path)
        return path
    except ssl.SSLError as error:
        raise ClusterError(f"{where}: {path} holds no certificates (PEM)") from error
    except OSError as error:
        raise ClusterError(f"{where}: cannot read {path}: {error.strerror}") from error


def _headers(host: str) -> dict[str, str]:
    """Of every request: those of RAY_JOB_HEADERS, and the token."""
    headers = _given_headers()
    token = _token(host)
    if token:
        taken = AUTHORIZATION in map(str.lower, headers)
        headers[RAY_AUTHORIZATION if taken else "Authorization"] = f"Bearer {token}"
    return headers


def _given_headers() -> dict[str, str]:
    text = os.environ.get(HEADERS, "")
    if not text:
        return {}
    must = f'{HEADERS}: must be JSON such as {{"NAME": "VALUE"}}'  # its values are not repeated
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ClusterError(must) from error
    if not isinstance(found, Mapping):
        raise ClusterError(must)
    for name, value in found.items():
        if not isinstance(value, str) or not value.isprintable():
            raise ClusterError(f"{must}, and the value of {name} is no such text")
    return dict(found)


def _token(host: str) -> str:
    """From where Ray takes it; Ray sends it only if RAY_AUTH_MODE was set when Ray was imported."""
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode not in (None, "token"):
        return ""
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if not token and (path := os.environ.get("RAY_AUTH_TOKEN_PATH")):
        try:
            token = Path(path).read_text().strip()
        except OSError as error:
            raise ClusterError(
                f"RAY_AUTH_TOKEN_PATH: cannot read {path}: {error.strerror}"
            ) from error
    default = Path.home() / ".ray" / "auth_token"
    if not token and (mode == "token" or is_loopback(host)) and default.is_file():
        token = default.read_text().strip()
    return token


@contextmanager
def one_line_errors(url: str, where: str = OPTION) -> Iterator[None]:
    """What goes wrong between us and the dashboard, as a ClusterError."""
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"{where}: {url} refused our token: {TOKEN_HELP}; where a proxy stands before it,"
            f" {HEADERS} to what that wants"
        ) from error
    except (ConnectionError, requests.RequestException) as error:
        raise ClusterError(f"{where}: {_no_answer(url, error)}") from error
    except (
        RuntimeError
    ) as error:  # what the head answered: often a traceback, which ends with what went wrong
        raise ClusterError(f"{where}: {url}: {str(error).strip().splitlines()[-1]}") from error


def _no_answer(url: str, error: BaseException) -> str:
    """Why the dashboard did not answer as one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"{url}: {UNTRUSTED} ({cause.verify_message}); give the file of its certificate"
                f" authority by --verify or {CA_FILES[0]}"
            )
        if isinstance(cause, ssl.SSLError):
            return f"{url} does not speak TLS ({cause.reason}); is it http://?"
        # requests and urllib3 keep what they caught as an argument
        inner = [each for each in cause.args if isinstance(each, BaseException)]
        reason = getattr(cause, "reason", None)
        cause = (
            reason
            if isinstance(reason, BaseException)
            else inner[0]
            if inner
            else cause.__cause__ or cause.__context__
        )
    hint = ""
    if isinstance(error, requests.exceptions.JSONDecodeError):
        hint = f"; a page for people stands there: does a proxy want {HEADERS}?"
    return f"{url} does not answer as a Ray dashboard ({type(error).__name__}){hint}"
