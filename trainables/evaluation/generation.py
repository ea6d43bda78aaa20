"""Prompts out of prepared rows, where an answer ends, and answers as text. Neither torch nor Ray
here; `trainables.engine.decoding` writes the answers.

Letters of shapes: T tokens of a prompt, U of an answer.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np

from trainables.data.arrow import Row, Split, sequences_of
from trainables.data.records import IGNORED
from trainables.errors import InputError
from trainables.metrics import Answer
from trainables.streams import stream
from trainables.tasks import Task

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

READ = 1000  # rows of which the ends of answers are read
COMMON = 0.05  # share of them that an end has, at the least
READ_TOGETHER = 256
BEHIND = 4  # tokens of white space that a template may write behind the end of a turn


def _none() -> np.ndarray:
    return np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """What a model is given, and what stands there."""

    ids: np.ndarray
    """int32 [T]; of an encoder-decoder the source."""
    text: str = ""
    """The same as text, special tokens with it."""
    reference: str = ""
    """The row's own answer, without special tokens."""
    target: np.ndarray = field(default_factory=_none)
    """Its tokens, int32 [U]; none where there is no such answer."""
    row: int = 0
    """Its number in the split. What is drawn for its answer is a function of this and a seed."""
    before: tuple[int, ...] = ()
    """The end of a text that is gone on with: tokens after it are spelt as they are behind it."""


def writes_answers(task: Task) -> bool:
    """Whether rows of `task` have an answer that a model can write."""
    return task.is_language_model and (task.targets_are_answers or task.has_pairs)


def stop_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    *,
    task: Task | None = None,
    split: Split | None = None,
    generation_config: "GenerationConfig | None" = None,
) -> tuple[int, ...]:
    """Tokens that end an answer: those that end the answers of a prepared split (so the sweep has
    learnt its chat template), the tokenizer's end of sequence, and what the model's own
    configuration says.
    """
    own = cast("int | list[int] | None", getattr(generation_config, "eos_token_id", None))
    named = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    found = {token for token in named if isinstance(token, int)}
    if split is not None and task is not None and writes_answers(task):
        found |= _learnt_ends(task, split, tokenizer)
    return tuple(sorted(found))


def draw_prompts(
    task: Task, split: Split, count: int, tokenizer: "PreTrainedTokenizerBase", seed: int
) -> list[Prompt]:
    """Prompts of `count` rows, in their order: always the same of a seed. Those that cannot be
    asked (see `prompts_of`) are passed over. Raises InputError where all are.
    """
    order, found = stream("answered rows", seed).permutation(len(split)), []
    ends = _learnt_ends(task, split, tokenizer)
    for start in range(0, len(order), READ_TOGETHER):
        if len(found) >= count:
            break
        rows = order[start : start + READ_TOGETHER]
        found += _prompts(task, split, rows, tokenizer, ends)
    if not found:
        raise InputError(
            f"generation: none of {len(split)} rows has an answer with something before it that is"
            " not cut off by data.max_length"
        )
    return sorted(found[:count], key=lambda prompt: prompt.row)


def prompts_of(
    task: Task,
    split: Split,
    rows: Sequence[int] | np.ndarray,
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Prompt]:
    """What stands before the last answer of each of `rows`, as it was rendered for training, and
    that answer, with its thought; of a pair the preferred one. Left out are rows whose answer
    begins with their first token, and those whose answer was cut.
    """
    return _prompts(task, split, rows, tokenizer, _learnt_ends(task, split, tokenizer))


def _prompts(
    task: Task,
    split: Split,
    rows: Sequence[int] | np.ndarray,
    tokenizer: "PreTrainedTokenizerBase",
    ends: set[int],
) -> list[Prompt]:
    """ends: tokens that end the split's answers."""
    assert writes_answers(task), f"{task.name} has no answers that could be written"
    found = []
    for number, row in zip(rows, split.rows(rows), strict=True):
        given, target, is_last = _last_answer(task, row)
        end = _end(target, ends, tokenizer)
        is_cut = is_last and end is None and bool(ends)
        if len(given) and len(target) and not is_cut:
            text = _decoded(given, tokenizer, skip_special_tokens=False)
            reference = text_of(target[:end], tokenizer)
            found.append(
                Prompt(ids=given, text=text, reference=reference, target=target, row=int(number))
            )
    return found


def text_of(
    ids: Sequence[int] | np.ndarray,
    tokenizer: "PreTrainedTokenizerBase",
    stop: Collection[int] = (),
) -> str:
    """An answer as text, without special tokens and without the `stop` tokens at its end."""
    kept = [int(token) for token in ids]
    while kept and kept[-1] in stop:
        kept.pop()
    return _decoded(kept, tokenizer, skip_special_tokens=True)


def answers_of(
    prompts: Sequence[Prompt],
    written: Sequence[Sequence[int]],
    tokenizer: "PreTrainedTokenizerBase",
    stop: Collection[int],
) -> list[Answer]:
    """What was written to each of `prompts`, as metrics take it."""
    return [
        Answer(prompt.text, text_of(ids, tokenizer, stop), prompt.reference)
        for prompt, ids in zip(prompts, written, strict=True)
    ]


def _learnt_ends(task: Task, split: Split, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Tokens that end the last answers of a split's rows: special or added ones, which text does
    not become.
    """
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    last: Counter[int] = Counter()
    for target in _some_targets(task, split):
        if (end := _end(target, special, tokenizer)) is not None:
            last[int(target[end])] += 1
    return {token for token, count in last.items() if count >= COMMON * sum(last.values())}


def _end(
    target: np.ndarray, ends: Collection[int], tokenizer: "PreTrainedTokenizerBase"
) -> int | None:
    """Where one of `ends` ends an answer, perhaps with white space behind it."""
    for position in range(len(target) - 1, max(len(target) - 1 - BEHIND, -1), -1):
        if int(target[position]) in ends:
            return position
        if _decoded(target[position : position + 1], tokenizer, skip_special_tokens=False).strip():
            return None
    return None


def _some_targets(task: Task, split: Split) -> Iterator[np.ndarray]:
    rows = np.unique(np.linspace(0, len(split) - 1, READ).astype(int))
    for start in range(0, len(rows), READ_TOGETHER):
        for row in split.rows(rows[start : start + READ_TOGETHER]):
            yield _last_answer(task, row)[1]


def _last_answer(task: Task, row: Row) -> tuple[np.ndarray, np.ndarray, bool]:
    """Tokens before the last run of targets, those targets with the thought that comes before them,
    and whether the row ends with them.
    """
    first = sequences_of(row)[0]
    ids, labels = first["input_ids"], first["labels"]
    if not task.continues_text:
        return ids, labels[labels != IGNORED], True
    targets = np.flatnonzero(labels != IGNORED)
    if not len(targets):
        return ids, labels[:0], False
    end = int(targets[-1]) + 1
    before = np.flatnonzero(labels[:end] == IGNORED)
    start = (int(before[-1]) + 1 if len(before) else 0) - int(row.get("thought", 0))
    return ids[:start], ids[start:end], end == len(ids)


def _decoded(
    ids: Sequence[int] | np.ndarray,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    skip_special_tokens: bool,
) -> str:
    text = tokenizer.decode(
        [int(token) for token in ids],
        skip_special_tokens=skip_special_tokens,
        clean_up_tokenization_spaces=False,
    )
    assert isinstance(text, str), "one row is one text"
    return text
