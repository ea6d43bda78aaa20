"""Names by which trials and slots are known in the Ray dashboard."""

from typing import Any

import ray


class DashboardLabel:
    """A trial's row in the dashboard's Actors page, alive while it runs: the actors of `Trial`
    carry one after another.

    It stands here and not beside `Trial` because its process then need not import Ray Tune.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def dashboard_label(trial: str, text: str) -> Any:
    """A running actor named after `trial`; `ray.kill` ends it. It is not waited for."""
    return (
        ray.remote(DashboardLabel)
        .options(name=f"trial {trial}", num_cpus=0, max_restarts=-1)
        .remote(text)
    )
