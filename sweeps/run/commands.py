"""What may be asked of a running sweep: `stop T`, `clone T key=value`, `add key=value`, `pause`,
`go-on`, `trials=+10`.
"""

import getpass
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from omegaconf import OmegaConf
from yaml import YAMLError

from search_spaces import Domain, Space, SpaceError
from sweeps.config.schema import UNITS, SearchConfig, SweepConfig, seconds_of
from sweeps.ledger.control import Command
from sweeps.ledger.folder import Ledger
from sweeps.ledger.status import BY_HAND
from trainables.errors import InputError

SETTINGS = ("trials", "time_budget", "device_hours", "cost")
ALLOWED = (
    "stop TRIAL, clone TRIAL key=value..., add key=value..., pause, go-on, or one of"
    f" {', '.join(f'{name}=VALUE' for name in SETTINGS)} (with a plus, what is added)"
)


def whoever() -> str:
    """Who types, and on which machine."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a number without a name, as in many containers
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def read_command(words: Sequence[str], by: str) -> Command:
    """The command that these words are. Raises InputError."""
    first, *rest = words
    name, equals, value = first.partition("=")
    command = Command(what="pause", by=by, time=time.time())
    if equals and name in SETTINGS:
        _check_end(first, rest)
        _check_amount(name, value)
        return replace(command, what="set", setting=name, value=value)
    match first, rest:
        case "pause", _:
            _check_end(first, rest)
            return command
        case "go-on", _:
            _check_end(first, rest)
            return replace(command, what="go-on")
        case "go", ["on", *more]:
            _check_end("go on", more)
            return replace(command, what="go-on")
        case "stop", [trial, *more] if "=" not in trial:
            _check_end(f"stop {trial}", more)
            return replace(command, what="stop", trial=trial)
        case "clone", [trial, *pairs] if "=" not in trial and pairs:
            return replace(command, what="clone", trial=trial, params=_params(pairs))
        case "add", [_, *_]:
            return replace(command, what="add", params=_params(rest))
    raise InputError(f"ctl: must be {ALLOWED}, got {' '.join(words)!r}")


def _check_end(known: str, rest: Sequence[str]) -> None:
    if rest:
        raise InputError(f"ctl: {known}: nothing may follow, got {' '.join(rest)!r}")


def _params(pairs: Sequence[str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"\w+", name):
            raise InputError(f"ctl: {pair}: a hyperparameter is given as key=value, such as rank=8")
        if name in found:
            raise InputError(f"ctl: {name}: given twice")
        try:
            tree = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
        except YAMLError as error:
            raise InputError(f"ctl: {pair}: not valid YAML") from error
        assert isinstance(tree, dict)
        found[name] = tree["value"]
    return found


def _check_amount(setting: str, value: str) -> None:
    amount = value.removeprefix("+")
    if setting == "trials":
        if not re.fullmatch(r"\d+", amount) or int(amount) == 0:
            raise InputError(
                f"ctl: trials: must be a number of trials, such as 40 or +10, got {value!r}"
            )
    elif setting == "time_budget":
        if seconds_of(amount) is None:
            raise InputError(
                "ctl: time_budget: must be a number with s, m, h or d, such as 8h or +2h, got"
                f" {value!r}"
            )
    elif not re.fullmatch(r"\d+(\.\d+)?", amount) or float(amount) == 0:
        raise InputError(
            f"ctl: {setting}: must be a number above 0, such as 8 or +2, got {value!r}"
        )


def check_command(command: Command, config: SweepConfig, ledger: Ledger) -> None:
    """Raise InputError for what this sweep cannot do."""
    if command.trial is not None:
        known = ledger.trials()
        if command.trial not in known:
            last = f"they are t0001 to {known[-1]}" if known else "it has none yet"
            raise InputError(f"{command.trial}: the sweep has no such trial, {last}")
    if command.what == "stop":
        assert command.trial is not None
        curve = ledger.curve(command.trial)
        if curve.status != "running" and curve.reason != BY_HAND:
            raise InputError(f"{command.trial}: has ended already ({curve.status})")
    elif command.what in ("clone", "add"):
        configuration(command, config, ledger)
    elif command.what == "set":
        amended(command, config)


def configuration(command: Command, config: SweepConfig, ledger: Ledger) -> dict[str, object]:
    """What is given of the new trial, as `search.initial` takes it: of a clone what its original
    has, but for what is changed, and what hangs on that. Raises InputError.
    """
    space, given = config.space(), dict(command.params)
    if command.trial is not None:
        original = ledger.curve(command.trial).params
        try:
            kept = _on_path(space, {**original, **given})
        except SpaceError as error:
            raise InputError(f"{command.what}: {error}") from error
        given = {name: value for name, value in kept.items() if name not in given} | given
    try:
        space.encode(given, command.what)
    except SpaceError as error:
        raise InputError(str(error)) from error
    return given


def _on_path(space: Space, values: Mapping[str, object]) -> dict[str, object]:
    """Those of `values` that are free where they take their branches; the rest follows."""
    found: dict[str, object] = {}

    def suggest(key: str, domain: Domain) -> object:
        name = key.rsplit(".", 1)[-1]
        if name not in values:
            return domain.middle()
        found[name] = values[name]
        try:
            return domain.match(values[name])
        except SpaceError as error:
            raise SpaceError(f"{name}: {error}") from None

    space.sample(suggest)
    return found


def amended(command: Command, config: SweepConfig, target: str | None = None) -> SweepConfig:
    """With the setting that a command changes. target: that it leads to, where that is known
    already. Raises InputError.
    """
    assert command.setting is not None and command.value is not None
    value = target or _target(command.setting, command.value, config.search)
    kinds = {"trials": int, "time_budget": str}
    new = kinds.get(command.setting, float)(value)
    return replace(config, search=replace(config.search, **{command.setting: new}))


def target_of(command: Command, config: SweepConfig) -> str:
    """The value that a setting has once a command is done."""
    return str(getattr(amended(command, config).search, command.setting or ""))


def _target(setting: str, value: str, search: SearchConfig) -> str:
    if not value.startswith("+"):
        return value
    before, more = getattr(search, setting), value.removeprefix("+")
    if before is None:
        raise InputError(
            f"search.{setting}: the sweep has none that could be added to; {setting}={more} sets it"
        )
    if setting == "trials":
        return str(before + int(more))
    if setting == "time_budget":
        return _span((seconds_of(before) or 0) + (seconds_of(more) or 0))
    return f"{before + float(more):.10g}"


def _span(seconds: float) -> str:
    """As `search.time_budget` takes it, in the largest unit of which it is a whole number."""
    unit = next((each for each, length in UNITS.items() if seconds % length == 0), "s")
    return f"{seconds / UNITS[unit]:.10g}{unit}"
