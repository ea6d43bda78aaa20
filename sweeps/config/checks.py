"""Whether the search space and what is fixed fit together, before a trial is drawn."""

from collections.abc import Sequence

from search_spaces import Choice, Space
from sweeps.config.messages import what_was_meant
from sweeps.config.schema import HYPERPARAMETERS, SweepConfig, tasks_that
from trainables.errors import InputError
from trainables.hyperparameters import OF_PAIRS, OPTIONS, base_of, parse
from trainables.tasks import TASKS


def check_hyperparameters(config: SweepConfig) -> None:
    """The space and what is fixed must fit together for every branch: all that can be known before
    a trial is drawn.
    """
    if config.search.space is None:
        raise InputError(
            "search.space: not given; auto, the name of a preset, a YAML file, or the space itself"
        )
    space = config.space()
    if config.search.sampler == "grid" and space.size() is None:
        raise InputError(
            "search.sampler: grid needs a finite space, got one in which a float varies; allowed:"
            " tpe, random"
        )
    _check_names(config, space)
    _check_methods(config)
    _check_values(config)
    _check_of_task(config)
    for number, initial in enumerate(config.search.initial):
        space.encode(initial, f"search.initial[{number}]")


def _check_names(config: SweepConfig, space: Space) -> None:
    """Only hyperparameters vary, none that is fixed, and a method is given."""
    fixed = config.train.fixed()
    for path, what in space.parameters:
        name = path.rsplit(".", 1)[-1]
        if name in fixed:
            raise InputError(f"train.{name}: also varies in search.space; set it in one place")
        if name == "model":
            _check_bases(config, path, what)
        elif name not in HYPERPARAMETERS:
            raise InputError(
                f"search.space.{path}: not a hyperparameter."
                f" {what_was_meant(name, HYPERPARAMETERS)}"
            )
    _check_of_pairs(config, [path for path, _ in space.parameters])
    names = {path.rsplit(".", 1)[-1] for path, _ in space.parameters}
    if "method" not in {*fixed, *names}:
        raise InputError(
            f"search.space.method: not given; one of {', '.join(OPTIONS)}, here or as train.method"
        )


def _check_bases(config: SweepConfig, path: str, what: str) -> None:
    """The bases that the space chooses from are those of the section `model`."""
    domain = config.space().domains.get(path)
    if not config.model.choice:
        raise InputError(
            f"search.space.{path}: model.name is one base model; model.name: {{choice: [A, B]}}"
            " makes it a choice"
        )
    found = domain.values if isinstance(domain, Choice) else ()
    if path != "model" or sorted(map(str, found)) != sorted(config.bases):
        raise InputError(
            f"search.space.{path}: must be a choice of the base models of model.name,"
            f" {', '.join(config.bases)}, each with a branch or none, got {what}"
        )


def _check_of_pairs(config: SweepConfig, paths: Sequence[str]) -> None:
    """paths: of what varies. Raise InputError for what only pairs are trained with, elsewhere."""
    if TASKS[config.task].has_pairs:
        return
    given = [f"train.{name}" for name in config.train.fixed()]
    given += [f"search.space.{path}" for path in paths]
    if where := next((path for path in given if path.rsplit(".", 1)[-1] in OF_PAIRS), None):
        tasks = tasks_that(lambda task: task.has_pairs)
        raise InputError(f"{where}: is for pairs of answers (task {tasks}), got task {config.task}")


def _check_of_task(config: SweepConfig) -> None:
    """Raise InputError for what this task's loss cannot be trained with."""
    task, fixed = TASKS[config.task], config.train.fixed()
    wrong = {
        "class_weights": ("balanced", lambda task: task.has_classes),
        "label_smoothing": ("above 0", lambda task: task.loss.is_likelihood),
    }
    for name, (value, suits) in wrong.items():
        given = any(draw.get(name) not in (None, "none", 0) for draw, _ in config.survey())
        if given and not suits(task):
            raise InputError(
                f"{'train' if name in fixed else 'search.space'}.{name}: {value} is for task"
                f" {tasks_that(suits)}, got task {config.task}"
            )


def _check_methods(config: SweepConfig) -> None:
    """Each method must have a valid configuration. Single ones may be invalid: they are drawn again
    when they come up.
    """
    wrong: dict[tuple[str, str], str] = {}
    right: set[tuple[str, str]] = set()
    for draw, _ in config.survey():
        kind = base_of(draw), str(draw.get("method"))
        try:
            parse(draw)
            right.add(kind)
        except InputError as error:
            wrong.setdefault(kind, str(error))
    for base, method in [kind for kind in wrong if kind not in right]:
        reason = wrong[base, method]
        if reason.partition(":")[0] in config.train.fixed():
            raise InputError(f"train.{reason}")
        if method not in OPTIONS:
            raise InputError(f"search.space.{reason}")
        over = f" over {base}" if base else ""
        raise InputError(
            f"search.space: no configuration of method {method}{over} is valid: {reason}"
        )


def _check_values(config: SweepConfig) -> None:
    """Every value of a choice and both ends of every range must be ones that can be trained: a typo
    is not a rare draw.
    """
    checked: set[str] = set()
    for draw, asked in config.survey():
        for path, domain in asked.items():
            name = path.rsplit(".", 1)[-1]
            if path in checked or name == "method":
                continue
            checked.add(path)
            for value in domain.values if isinstance(domain, Choice) else (domain.low, domain.high):
                try:
                    parse({**draw, name: value})
                except InputError as error:
                    if str(error).startswith(f"{name}:"):
                        raise InputError(
                            f"search.space.{path}: {str(error).removeprefix(f'{name}: ')}"
                        ) from error
