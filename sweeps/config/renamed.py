"""Settings that had another name in an earlier version."""

from omegaconf import DictConfig, OmegaConf

from trainables.errors import InputError

RENAMED = {"cluster.pack": "cluster.trials_per_slot"}


def in_present_words(given: DictConfig) -> DictConfig:
    """The configuration of a sweep that an earlier version has run, as this one reads it."""
    for former, present in RENAMED.items():
        section, _, key = former.rpartition(".")
        inside = OmegaConf.select(given, section)
        if isinstance(inside, DictConfig) and key in inside:
            OmegaConf.update(given, present, inside.pop(key), force_add=True)
    return given


def refuse_former_names(given: DictConfig) -> None:
    """InputError for a setting by its former name, with the present one."""
    for former, present in RENAMED.items():
        section, _, key = former.rpartition(".")
        inside = OmegaConf.select(given, section)
        if isinstance(inside, DictConfig) and key in inside:
            raise InputError(f"{former}: is now called {present}")
