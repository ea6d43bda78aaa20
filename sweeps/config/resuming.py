"""What a sweep that has begun may change, and what it may not."""

import dataclasses
from collections.abc import Iterator, Mapping

from sweeps.config.messages import shown
from sweeps.config.schema import HYPERPARAMETERS, SweepConfig
from sweeps.selection.measure import VAL_LOSS
from trainables.errors import InputError
from trainables.tasks import TASKS

FIXED_ON_RESUME = {  # what a sweep that has begun cannot change, and why
    "name": "it names the sweep's folder",
    "storage": "it is where the sweep's folder lies",
    "seed": "data, order and heads hang on it; another seed is another sweep",
    "task": "losses of another task do not compare",
    "model": "losses of another base model do not compare",
    "data": "losses on other data do not compare",
    "search.prior": "earlier sweeps were read when it began",
    "train.evaluate_every": "trials that are measured more often have more chances to win",
    "train.probe_rows": "probe losses on other rows do not compare",
    "train.precision": "losses in other arithmetic do not compare",
    "selection.general_text": "it was prepared with the data",
    "selection.limits.forgetting": "it was not measured of the trials that have run",
    "selection.limits.kl": "it was not measured of the trials that have run",
}
WRITTEN_BY = ("rows", "max_new_tokens", "temperature", "top_p")  # of generation: how answers are


def differences(former: SweepConfig, config: SweepConfig) -> list[str]:
    """What is set otherwise, in words."""
    before, now = dict(_leaves(former, "")), dict(_leaves(config, ""))
    return [
        (
            key
            if isinstance(now[key], dict | list)
            else f"{key}: {shown(before[key])} to {shown(now[key])}"
        )
        for key in before
        if before[key] != now[key]
    ]


def _leaves(section: object, key: str) -> Iterator[tuple[str, object]]:
    if not dataclasses.is_dataclass(section):
        yield key, section
        return
    for part in dataclasses.fields(section):
        yield from _leaves(getattr(section, part.name), f"{key}.{part.name}" if key else part.name)


def check_resumable(former: SweepConfig, config: SweepConfig) -> None:
    """Raise InputError where a sweep that ran as `former` cannot go on as `config`."""
    before, now = dict(_leaves(former, "")), dict(_leaves(config, ""))
    found = []
    for key in [key for key in before if before[key] != now[key]]:
        if key.startswith("selection.limits.") and (
            now[key] is None or former.selection.limits.of_forgetting
        ):
            continue
        if (why := _why_fixed(key)) is not None:
            words = f"{shown(before[key])} to {shown(now[key])}"
            found.append(
                f"{key}: cannot change when a sweep is resumed ({words}): {why}; run a new sweep"
                " for that"
            )
    if former.searching.measure != config.searching.measure:
        found.append(
            "selection.metric: cannot change when a sweep is resumed"
            f" ({former.selection.measure.name} to {config.selection.measure.name}): the search was"
            " told of trials by it, and their other checkpoints are gone; run a new sweep for that"
        )
    found += _asked_otherwise(former, config)
    if found:
        raise InputError("; ".join(found))


def _asked_otherwise(former: SweepConfig, config: SweepConfig) -> list[str]:
    """What the search was told of answers does not compare with answers to other rows, or scored
    otherwise; metrics may be added.
    """
    metric = config.searching.measure.name
    if not former.metrics or metric in (VAL_LOSS, *TASKS[config.task].metric_names):
        return []
    before, now = dataclasses.asdict(former.generation), dataclasses.asdict(config.generation)
    changed = [f"generation.{name}" for name in WRITTEN_BY if before[name] != now[name]]
    changed += ["metrics"] if any(each not in config.metrics for each in former.metrics) else []
    return [
        f"{key}: cannot change when a sweep is resumed: the search was told of trials by {metric};"
        " run a new sweep for that"
        for key in changed
    ]


def _why_fixed(key: str) -> str | None:
    for fixed, why in FIXED_ON_RESUME.items():
        if f"{key}.".startswith(f"{fixed}."):
            return why
    return None


def as_trained(
    former: SweepConfig, config: SweepConfig, params: Mapping[str, object]
) -> dict[str, object]:
    """Parameters of a trial of `former` that give the same hyperparameters under `config`: what
    `train` fixed for it, and fixes otherwise or no longer, becomes a parameter of its own.
    """
    before, now = former.train.fixed(), config.train.fixed()
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    if not changed:
        return dict(params)
    hp, complete = former.hyperparameters(params), former.complete(params)
    trained = {**vars(hp), **vars(hp.options), **complete}
    return dict(params) | {
        name: trained[name] for name in HYPERPARAMETERS if name in changed and name in trained
    }
