"""Prompts for the frozen base: classes as labels after a prompt, and answers after examples.

Letters of shapes as in `trainables.evaluation.bench`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainables.evaluation.bench import (
    EXAMPLES,
    WORDS,
    Bench,
    Chosen,
    Degenerate,
    Row,
    classified,
    context_tokens,
    in_micro_batches,
    micro_batch_tokens,
    on_device,
    outputs,
    scored,
)
from trainables.evaluation.record import Baseline, MeasuredBaseline
from trainables.models.base import BaseModel
from trainables.tasks import take_targets
from trainables.tasks.causal_lm.task import IGNORED, pad, upcast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def balanced(classes: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Positions of `EXAMPLES` rows of `classes` [M], of as many of the `count` classes and as
    evenly as can be.
    """
    turn, seen, turns = random.permutation(count), Counter(), {}
    for i in random.permutation(len(classes)):
        turns[i] = (seen[classes[i]], turn[classes[i]])
        seen[classes[i]] += 1
    return np.array(sorted(turns, key=turns.__getitem__)[:EXAMPLES])


def _with_prompts(measured: MeasuredBaseline, fitted: Baseline) -> MeasuredBaseline:
    return replace(
        measured,
        examples_per_request=fitted.examples_per_request,
        text_share=fitted.text_share,
        words=fitted.words,
    )


def prompt_length(row: Row) -> int:
    """Tokens before the first target."""
    return int(np.flatnonzero(row["labels"][1:] != IGNORED)[0]) + 1


def _fitted(
    name: str,
    pool: int,
    shown: int,
    examples: Sequence[int],
    context: float,
    kept: Sequence[float] = (),
) -> Baseline:
    """What the context held of what the prompts of baseline `name` were to hold, and the baseline's
    words with it.

    pool: rows that examples come from; shown: examples that each prompt was to hold; examples:
    those that it held [N]; kept: share of its text that it held [N], where texts may be cut.
    """
    mean = share = None
    words, said = WORDS[name], []
    if shown == pool:  # drawn or nearest, they are the same
        words = (
            f"prompt with all {pool} rows of train"
            if pool > 1
            else "prompt with the only row of train"
        )
        words += ", the nearest last" if pool > 1 and name == "retrieved" else ""
    if shown:
        mean = float(np.mean(examples))
        if not mean:
            raise Degenerate(
                f"no example fits beside a row into the {context:,.0f} tokens of the model"
            )
        if mean < shown:
            said.append(f"{min(max(mean, 0.1), shown - 0.1):.1f} fitted")
    if len(kept):
        share = float(np.mean(kept))
        if not share:
            raise Degenerate(
                f"nothing of any text fits into the {context:,.0f} tokens of the model"
            )
        if share < 1:
            said.append(f"texts cut to {min(max(share, 0.01), 0.99):.0%}")
    return Baseline(
        examples_per_request=mean,
        text_share=share,
        words=f"{words} ({', '.join(said)})" if said else words,
    )


def joined_rows(bench: Bench, base: BaseModel, chosen: Chosen) -> Callable[[int], Row]:
    """Each row of the split after the examples `chosen` for it [N, k], by its position."""
    pool, rows = bench.examples, bench.rows
    bos, context = base.model.config.get_text_config().bos_token_id, context_tokens(base)
    return lambda i: _join([pool[j] for j in chosen[i]], rows[i], bos, context)


def continued(
    bench: Bench, base: BaseModel, name: str, joined: Callable[[int], Row], shown: int
) -> MeasuredBaseline:
    """Of the rows of the split as `joined_rows` gives them. shown: examples that each was to
    have.
    """
    count = len(bench.split)
    sizes = [
        (len(row["input_ids"]), prompt_length(row), row["examples"])
        for row in map(joined, range(count))
    ]
    lengths, prompts, examples = zip(*sizes, strict=True)
    fitted = _fitted(name, len(bench.pool), shown, examples, context_tokens(base))
    nll, targets = np.zeros(count), np.zeros(count)

    def run(at: np.ndarray) -> None:
        batch = on_device(bench, bench.task.collate([joined(i) for i in at], bench.pad_token_id))
        answers = take_targets(batch, bench.task, base.model)
        logits = outputs(base, batch)
        nll_B, targets_B = bench.task.row_losses(
            logits, answers.labels, base.output, answers.weights
        )
        nll[at], targets[at] = nll_B.double().cpu(), targets_B.cpu()

    in_micro_batches(bench, lengths, run, micro_batch_tokens(base))
    return _with_prompts(scored(bench, nll, targets, prompts), fitted)


def _join(examples: list[Row], row: Row, bos: int | None, context: float) -> Row:
    """`row` after as many of the last `examples` as the context holds; only the first of all keeps
    its `bos`.

    Its `examples` are so many. Its targets, and their weights, are those that it has alone.
    """
    alone = np.where(
        np.arange(len(row["labels"])) == 0, IGNORED, row["labels"]
    )  # nothing predicts the first token
    parts = [
        *((e["input_ids"], np.full(len(e["input_ids"]), IGNORED)) for e in examples),
        (row["input_ids"], alone),
    ]
    kept = parts[-1:]
    for first in range(len(parts)):
        kept = [
            (ids[cut:], labels[cut:])
            for number, (ids, labels) in enumerate(parts[first:])
            for cut in [int(number > 0 and ids[0] == bos)]
        ]
        if sum(len(ids) for ids, _ in kept) <= context:
            break
    ids, labels = (np.concatenate(column) for column in zip(*kept, strict=True))
    joined = {"input_ids": ids, "labels": labels, "examples": len(kept) - 1}
    if "weights" in row:
        own = row["weights"][len(row["labels"]) - len(kept[-1][1]) :]
        before = np.zeros(len(labels) - len(own), dtype=own.dtype)
        joined |= {"weights": np.concatenate([before, own])}
    return joined


def answered(
    bench: Bench,
    base: BaseModel,
    tokenizer: "PreTrainedTokenizerBase",
    name: str,
    chosen: Chosen,
) -> MeasuredBaseline:
    """Each row's prompt, with the examples `chosen` for it [N, k], and what the model makes of the
    labels after it.
    """
    labels = _label_tokens(tokenizer, bench.labels)
    room = (
        context_tokens(base) - max(map(len, labels)) + 1
    )  # a label's last token does not go into the model
    first = tokenizer("a", verbose=False).input_ids[:1]
    begin = first if first == [tokenizer.bos_token_id] else []

    def text(row: Row) -> str:
        found = tokenizer.decode(
            row["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(found, str), "one row is one text"
        return found

    def prompt(row: Row, examples: list[str]) -> tuple[list[int], int, float]:
        """Within `room`: the first examples go first, then the end of the text. Also how many
        examples are left, and how much of the text.
        """
        row, whole = dict(row), len(row["input_ids"])
        while (
            len(
                tokens := begin
                + _tokens(tokenizer, "".join(examples) + f"Text: {text(row)}\nLabel:")
            )
            > room
        ):
            if not examples and not len(row["input_ids"]):
                raise ValueError(
                    f"a prompt does not fit into the {context_tokens(base)} tokens of the model"
                )
            if examples:
                examples = examples[1:]
            else:
                row["input_ids"] = row["input_ids"][: int(room) - len(tokens)]
        left = len(row["input_ids"])
        return tokens, len(examples), 1.0 if left == whole else left / whole if text(row) else 0.0

    pool = bench.examples
    shown = {
        j: f"Text: {text(pool[j])}\nLabel: {bench.labels[pool[j]['labels']]}\n\n"
        for j in {int(j) for examples in chosen for j in examples}
    }
    made = [
        prompt(row, [shown[j] for j in near]) for row, near in zip(bench.rows, chosen, strict=True)
    ]
    prompts, examples, kept = zip(*made, strict=True)
    fitted = _fitted(name, len(pool), len(chosen[0]), examples, context_tokens(base), kept)
    scores = _label_scores(bench, base, prompts, labels)
    found = classified(
        bench, scores - np.logaddexp.reduce(scores, axis=1, keepdims=True), map(len, prompts)
    )
    return _with_prompts(found, fitted)


def _label_tokens(tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str]) -> list[list[int]]:
    """The tokens of each label after a prompt; labels that no prompt could tell apart are
    refused.
    """
    found, first = [_tokens(tokenizer, f" {label}") for label in labels], {}
    for label, tokens in zip(labels, found, strict=True):
        if not tokens:
            raise Degenerate(f"the label {label!r} is no token to the tokenizer")
        if (other := first.setdefault(tuple(tokens), label)) != label:
            raise Degenerate(
                f"the labels {other!r} and {label!r} are the same tokens to the tokenizer"
            )
    return found


def _tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def _label_scores(
    bench: Bench, base: BaseModel, prompts: Sequence[list[int]], labels: list[list[int]]
) -> np.ndarray:
    """Summed log-probability of each label's tokens after each prompt [N, C].

    A micro-batch of prompts with a stem (a label without its last token) scores all labels that
    need no more than that: of labels that are one token each, all.
    """
    scores = np.zeros((len(prompts), len(labels)))
    lengths = np.array([len(prompt) for prompt in prompts])
    stems = {tuple(label[:-1]) for label in labels}

    def score(stem: tuple[int, ...]) -> None:
        done = {
            c: label
            for c, label in enumerate(labels)
            if stem[: len(label) - 1] == tuple(label[:-1])
        }
        ahead = torch.arange(len(stem) + 1, device=bench.device)

        def run(at: np.ndarray) -> None:
            batch = on_device(
                bench, pad([{"input_ids": [*prompts[i], *stem]} for i in at], bench.pad_token_id)
            )
            last = torch.from_numpy(lengths[at] - 1).to(bench.device)
            states = outputs(base, batch)[
                torch.arange(len(at), device=bench.device)[:, None], last[:, None] + ahead
            ]
            logits = states if base.output is None else base.output(states)
            log_probabilities = upcast(logits).log_softmax(-1)
            for c, label in done.items():
                scores[at, c] = (
                    log_probabilities[:, ahead[: len(label)], label].double().sum(1).cpu()
                )

        in_micro_batches(bench, lengths + len(stem), run, micro_batch_tokens(base))

    for stem in sorted(stems):
        if not any(other != stem and other[: len(stem)] == stem for other in stems):
            score(stem)
    return scores
