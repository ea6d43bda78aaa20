"""What trials of a slot write to rows of the validation split at every evaluation, where the sweep
file asks for that.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from trainables.data.manifest import data_of
from trainables.errors import InputError
from trainables.evaluation.record import MeasuredEvaluation
from trainables.runtime.protocol import SlotConfig

if TYPE_CHECKING:
    from trainables.engine.group import TrialGroup
    from trainables.evaluation.answered import Answered
    from trainables.evaluation.answering import Answering
    from trainables.runtime.client import CoordinatorClient
    from trainables.storage.store import Store


class SlotAnswers:
    def __init__(
        self, config: SlotConfig, groups: "Mapping[str, TrialGroup]", store: "Store", rank: int
    ) -> None:
        """groups: by the words for their bases."""
        self._config, self._groups, self._store, self._rank = config, groups, store, rank
        self._opened: dict[str, Answering] = {}

    def written(
        self, group: "TrialGroup", trials: Sequence[str]
    ) -> "dict[str, Callable[[], Answered]]":
        """By each of `trials`, on all workers at once; scored when it is called, on one of them."""
        if not self._config.metrics or self._config.generation.when != "evaluations":
            return {}
        answering = self._answering(group)
        began, stop = time.perf_counter(), answering.stop(group.model)
        written = group.answers(trials, answering.prompts, answering.settings, stop)
        seconds = (time.perf_counter() - began) / len(trials)
        return {
            trial: partial(answering.scored, tokens, stop, seconds)
            for trial, tokens in written.items()
        }

    def _answering(self, group: "TrialGroup") -> "Answering":
        from trainables.engine.budget import MICRO_BATCH_TOKENS
        from trainables.evaluation.answered import write_asked
        from trainables.evaluation.answering import Answering

        config = self._config
        word = next(word for word, each in self._groups.items() if each is group)
        if word not in self._opened:
            most = config.max_tokens or MICRO_BATCH_TOKENS[group.device.type]
            found = Answering.of(config, config.bases[word], group.validation, most)
            if self._rank == 0:
                write_asked(self._store, "validation", data_of(word, config.first), found.asked)
            self._opened[word] = found
        return self._opened[word]


def with_answers(
    evaluation: MeasuredEvaluation,
    answered: "Callable[[], Answered | None]",
    client: "CoordinatorClient",
    rank: int,
) -> MeasuredEvaluation:
    """As rank 0 alone scores them. Raises InputError on every worker of the slot where that cannot
    be done: the trial leaves all of them.
    """
    wrong = ""
    if rank == 0:
        try:
            if (found := answered()) is not None:
                metrics = {**evaluation.metrics, **found.means}
                evaluation = replace(evaluation, answered=found, metrics=metrics)
        except InputError as error:
            wrong = str(error)
    if wrong := client.from_rank_zero(wrong):
        raise InputError(wrong)
    return evaluation
