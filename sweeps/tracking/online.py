"""Whether tracking goes to a W&B server: what is asked for, the key, whether the server answers."""

import base64
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sweeps.tracking.background import one_line
from sweeps.tracking.config import TrackingConfig
from trainables.errors import InputError

if TYPE_CHECKING:
    from wandb.sdk.wandb_settings import Settings

PROBE_TIMEOUT_S = 3.0
NO_KEY = "no API key is configured (`wandb login` or WANDB_API_KEY)"
OF_WANDB_MODE: Mapping[str, Literal["offline", "off"]] = {
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}


def mode_of(config: TrackingConfig) -> Literal["online", "offline", "off"]:
    """What is asked for: the setting, and of `auto` what WANDB_MODE says, else online."""
    if config.wandb != "auto":
        return config.wandb
    return OF_WANDB_MODE.get(os.environ.get("WANDB_MODE", ""), "online")


def session_key(config: TrackingConfig) -> str | None:
    """The key with which this process, which has begun to track, reaches W&B; None where it tracks
    offline or not at all. Asks nobody: neither a person nor the server.
    """
    return session_settings().api_key if mode_of(config) == "online" else None


def session_settings() -> "Settings":
    """Of this process, as wandb reads them; its service, which may have ended, is not asked."""
    from wandb.sdk import wandb_setup

    return wandb_setup.singleton().settings


@dataclass(frozen=True)
class Problem:
    """Why nothing can be asked of a server now."""

    why: str
    for_good: bool = False


def probe(base_url: str, key: str | None) -> Problem | None:
    """Why the W&B server cannot be used now, or None. Asks whose the key is; without a key, any
    answer will do.
    """
    headers = {"Content-Type": "application/json"} | (key_header(key) if key else {})
    question = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
    request = urllib.request.Request(f"{base_url}/graphql", data=question, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S) as response:
            viewer = json.load(response)["data"]["viewer"]
    except urllib.error.HTTPError as error:
        if key and error.code in (401, 403):
            return Problem(f"{base_url} refused the key (HTTP {error.code})", for_good=True)
        return Problem(f"{base_url} answered HTTP {error.code}") if error.code >= 500 else None
    except (OSError, http.client.HTTPException) as error:
        return Problem(f"{base_url} does not answer ({one_line(error)})")
    except (ValueError, KeyError, TypeError):
        return Problem(f"{base_url} is no W&B server")
    return Problem(f"{base_url} refused the key", for_good=True) if key and viewer is None else None


def key_header(key: str) -> dict[str, str]:
    """Of a request to a W&B server."""
    return {"Authorization": "Basic " + base64.b64encode(f"api:{key}".encode()).decode()}


def server_problem() -> str | None:
    """Why nothing can be asked of W&B now, or None. Raises InputError without a key."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    try:
        found = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise InputError(f"W&B: {one_line(error)}") from error
    settings = wandb.setup().settings
    if not found or not settings.api_key:
        raise InputError(f"W&B: {NO_KEY}")
    problem = probe(settings.base_url, settings.api_key)
    return problem and problem.why
