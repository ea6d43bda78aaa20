"""Where a server listens, and the token that its clients must have. Neither torch nor Ray here: a
wrong call is answered at once.
"""

import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from trainables.errors import InputError

LEAST_TOKEN = 16  # characters


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the server listens, and what clients must have."""

    host: str
    port: int
    token: str | None

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise InputError(f"--port: must be from 1 to 65535, got {self.port}")
        if self.token is None and not is_loopback(self.host):
            raise InputError(
                f"--token: {self.host} is reached from other machines: give a token, as the name of"
                " a variable or a file that holds it"
            )

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def listening(address: Address) -> socket.socket:
    """Raises InputError for a port that is taken, or a host that is not this machine's."""
    found = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((address.host, address.port))
        found.listen(128)
    except OSError as error:
        found.close()
        raise InputError(
            f"--host, --port: cannot listen at {address.host}:{address.port}: {error.strerror}"
        ) from None
    return found


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(given: str | None) -> str | None:
    """Of a variable or a file. Raises InputError where there is none, or one that is soon
    guessed.
    """
    if given is None:
        return None
    path = Path(given).expanduser()
    if given in os.environ:
        token = os.environ[given].strip()
    elif path.is_file():
        token = path.read_text(encoding="utf-8").strip()
    else:
        raise InputError(f"--token: {given} is neither a variable of this shell nor a file")
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable():
        raise InputError(
            f"--token: {given} must hold at least {LEAST_TOKEN} printable ASCII characters, got"
            f" {len(token)}"
        )
    return token
