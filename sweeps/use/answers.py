"""What a trained model answers to rows, whatever its task: the columns that stand beside a row."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trainables.data.records import Record
from trainables.data.rows import BadRow
from trainables.errors import InputError

if TYPE_CHECKING:
    from sweeps.use.generation import Reply, Sampling
    from sweeps.use.trained import Trained

PREDICTION, PROBABILITIES, FINISH, ERROR = (
    "prediction",
    "probabilities",
    "finish_reason",
    "error",
)
PROBABILITY = "probability_"
"""Before the name of a class."""

Answer = dict[str, object]
"""Columns of a row, by name."""


def answerer(
    trained: "Trained", sampling: "Sampling"
) -> Callable[[Sequence[tuple[int, Record]]], Iterator[Answer]]:
    """Loads the model, and answers rows, each beside its number, in their order. sampling: of a
    language model; its seed and a row's number are what that row's tokens are drawn by.
    """
    return _writer(trained, sampling) if trained.task.is_language_model else _head(trained)


def _head(trained: "Trained") -> Callable[[Sequence[tuple[int, Record]]], Iterator[Answer]]:
    from sweeps.use.heads import Heads

    heads = Heads(trained)

    def answers(rows: Sequence[tuple[int, Record]]) -> Iterator[Answer]:
        for each in heads.predict([record for _, record in rows]):
            yield {PREDICTION: each.prediction, **_shares(each.probabilities)}

    return answers


def _shares(given: Mapping[str, float] | list[float | None] | None) -> Answer:
    if isinstance(given, Mapping):
        return {PROBABILITY + name: share for name, share in given.items()}
    return {} if given is None else {PROBABILITIES: given}


def _writer(
    trained: "Trained", sampling: "Sampling"
) -> Callable[[Sequence[tuple[int, Record]]], Iterator[Answer]]:
    from sweeps.use.generation import generate
    from sweeps.use.prompts import Prompts
    from trainables.engine.decoding import Padding

    model = trained.load()
    prompts, padding = Prompts.of(trained, model), Padding()

    def begun(number: int, record: Record) -> "Reply | BadRow":
        try:
            prompt = prompts.of_record(record)
        except BadRow as error:
            return error
        return prompts.reply(replace(prompt, row=number), sampling)

    def answers(rows: Sequence[tuple[int, Record]]) -> Iterator[Answer]:
        replies = [begun(number, record) for number, record in rows]
        written = [reply for reply in replies if not isinstance(reply, BadRow)]
        generate(model, written, trained.spec.pad_token_id, padding=padding)
        yield from map(_written, replies)

    return answers


def _written(reply: "Reply | BadRow") -> Answer:
    if isinstance(reply, BadRow):
        return {ERROR: str(reply)}
    return {PREDICTION: reply.text, FINISH: reply.finish}


def check_columns(found: Sequence[str], name: str) -> None:
    """Raise InputError where the file `name` has a column that answers would be written over."""
    ours = (PREDICTION, PROBABILITIES, FINISH, ERROR)
    taken = [column for column in found if column in ours or column.startswith(PROBABILITY)]
    if taken:
        raise InputError(
            f"FILE: {name} has a column {taken[0]!r}, a name that answers have; rename it"
        )
