"""Metrics that a sweep file names: looked at before anything starts."""

from dataclasses import replace

from sweeps.config.schema import SweepConfig
from sweeps.selection.measure import VAL_LOSS
from trainables.errors import InputError
from trainables.metrics.choosing import metrics_from
from trainables.tasks import TASKS


def with_metric(config: SweepConfig) -> SweepConfig:
    """The configuration with the direction of the metric that chooses. Raises InputError for
    metrics that cannot be measured.
    """
    task, chosen = TASKS[config.task], config.selection.metric
    lower = {each.name: each.lower_is_better for each in metrics_from(config.metrics)}
    taken = (VAL_LOSS, "loss", *task.metric_names)
    if name := next((name for name in lower if name in taken), None):
        raise InputError(
            f"metrics: none may be called {name}, which the task measures ({', '.join(taken)});"
            " give it another `name`"
        )
    lower |= {name: name in task.lower_is_better for name in task.metric_names}
    if chosen in (None, VAL_LOSS):
        return config
    if chosen not in lower:
        raise InputError(
            f"selection.metric: must be {VAL_LOSS} or a metric of the sweep"
            f" ({', '.join(lower) or 'which has none'}), got {chosen!r}"
        )
    if chosen not in task.metric_names and config.generation.when == "winner":
        raise InputError(
            f"selection.metric: {chosen} is of answers, and generation.when=winner has only the"
            " winner write some; must be finalists or evaluations"
        )
    if config.selection.metric_mode != "auto":
        return config
    mode = "min" if lower[chosen] else "max"
    return replace(config, selection=replace(config.selection, metric_mode=mode))
