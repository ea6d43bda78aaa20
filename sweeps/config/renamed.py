"""Settings that had another name in an earlier version."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from omegaconf import DictConfig, OmegaConf

from trainables.errors import InputError


@dataclass(frozen=True)
class Present:
    """What a setting is called now."""

    key: str
    values: Mapping[object, str] = field(default_factory=dict)
    """By the former ones; others are as they were."""

    def __str__(self) -> str:
        values = ", ".join(f"{str(each).lower()} is {now}" for each, now in self.values.items())
        return f"{self.key} ({values})" if values else self.key


RENAMED = {
    "cluster.pack": Present("cluster.trials_per_slot"),
    "search.early_stopping.asha": Present("search.scheduler", {True: "asha", False: "none"}),
}


def in_present_words(given: DictConfig) -> DictConfig:
    """The configuration of a sweep that an earlier version has run, as this one reads it."""
    for former, present in RENAMED.items():
        section, _, key = former.rpartition(".")
        inside = OmegaConf.select(given, section)
        if isinstance(inside, DictConfig) and key in inside:
            value = inside.pop(key)
            value = present.values.get(value, value)
            OmegaConf.update(given, present.key, value, force_add=True)
    return given


def refuse_former_names(given: DictConfig) -> None:
    """InputError for a setting by its former name, with the present one."""
    for former, present in RENAMED.items():
        section, _, key = former.rpartition(".")
        inside = OmegaConf.select(given, section)
        if isinstance(inside, DictConfig) and key in inside:
            raise InputError(f"{former}: is now called {present}")
