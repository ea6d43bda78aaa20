"""What fine-tuning is compared with: the frozen base model, by its embeddings and by prompts. No
Ray here.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainables.data.manifest import labels_of
from trainables.data.prepare import open_split
from trainables.evaluation.bench import (
    EXAMPLES,
    PROMPTS,
    WORDS,
    Bench,
    Chosen,
    Degenerate,
    Found,
    classes_of,
    load_language_model,
)
from trainables.evaluation.embeddings import (
    Embedded,
    embed,
    embed_texts,
    logistic,
    logistic_each,
    nearest_rows,
    neighbours,
    ridge,
)
from trainables.evaluation.prompts import (
    answered,
    balanced,
    continued,
    joined_rows,
    prompt_length,
)
from trainables.evaluation.record import MeasuredBaseline
from trainables.models.config import ModelConfig
from trainables.models.files import load_model_config, load_tokenizer
from trainables.streams import stream
from trainables.tasks import TASKS, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Joined = Callable[[int], np.ndarray]
"""Tokens of a row of the split after its examples."""
Answer = Callable[[str, "PreTrainedModel", Joined], None]
"""Has rows answered after their examples, by a baseline of this name, and writes down what comes of
it.
"""
POOL_ROWS = 5_000  # of train, at most, that are embedded and that examples come from


def names(model: ModelConfig, task: str) -> list[str]:
    """What `measure_baselines` will measure, in words."""
    return [WORDS[name] for name in _baselines_of(model, TASKS[task])]


def _baselines_of(model: ModelConfig, task: Task) -> list[str]:
    """Those of the task; without prompts where neither task nor checkpoint is a language model."""
    if task.is_language_model or not set(PROMPTS) & set(task.baselines):
        return list(task.baselines)
    architecture = (load_model_config(model).architectures or [""])[0]
    speaks = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    return [name for name in task.baselines if speaks or name not in PROMPTS]


def measure_baselines(
    data: Path,
    *,
    model: ModelConfig,
    task: str,
    pad_token_id: int,
    max_tokens: int,
    seed: int,
    device: torch.device,
    split: str = "validation",
    minutes: float = math.inf,
    answer: Answer | None = None,
) -> dict[str, MeasuredBaseline]:
    """What the frozen base makes of `split` of the folder `data` that
    `trainables.data.prepare.prepare` wrote.

    They are the task's `baselines`; prompts of a task with classes only where the checkpoint is
    itself a causal language model.

    At most 5,000 rows of train, drawn by the seed, are embedded, fitted to and shown as examples;
    class shares are those of all of train. Labels of `split` are looked at only to score.

    max_tokens: padded tokens of a forward pass; memory only, never the result.
    minutes: for all of it; a baseline that is not done by then has broken.
    answer: what has the prompts of a language model answered, besides.

    Returns of each baseline `val_loss` (mean over targets, in the task's unit), `metrics` of the
    task, `losses` float32 [N, 2] (summed loss and targets of each row of `split`), `outcomes`
    float32 [N, M] (as the task has them; None for language models), `seconds` (wall
    clock, embeddings that it uses included, loading the model not), `tokens_per_request` (mean
    tokens of a prompt with its examples, or of what is embedded) and `words` for people. Prompts
    with examples have `examples_per_request` too, those that the context held, and prompts of
    classification `text_share`, the share of their texts' tokens that it held, both means over the
    rows; `words` say where they are not all. One that broke has `error` ("Type: first line") and
    `words`; the others still come. One that would be another under its own name (a prompt that
    holds no example, or nothing of any text) has the reason as its `error`.

    Raises InputError where the model's configuration cannot be read.
    """
    owner = TASKS[task]
    wanted = _baselines_of(model, owner)
    if not wanted:
        return {}
    train = open_split(data, "train")
    bench = Bench(
        model=model,
        task=owner,
        labels=labels_of(data),
        train=train,
        pool=np.sort(stream("baselines: pool", seed).permutation(len(train))[:POOL_ROWS]),
        split=open_split(data, split),
        pad_token_id=pad_token_id,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
        minutes=minutes,
        deadline=time.perf_counter() + 60 * minutes,
    )
    if owner.is_language_model:
        return _contained(wanted, lambda: _of_answers(bench, wanted, answer))
    return _of_classes(bench, wanted)


def _of_classes(bench: Bench, wanted: Sequence[str]) -> Found:
    ways = {
        "embeddings_logistic": logistic,
        "embeddings_logistic_each": logistic_each,
        "embeddings_ridge": ridge,
        "embeddings_neighbours": neighbours,
    }
    found, embedded = {}, None
    if need := [name for name in wanted if name in ways or name == "retrieved"]:
        try:
            embedded = embed_texts(bench)
        except Exception as error:
            found = _failed(error, need)
        torch.cuda.empty_cache()
    if embedded is not None:
        for name in [name for name in wanted if name in ways]:
            measure = partial(ways[name], bench, embedded)
            found |= _attempt(name, measure, embedded.seconds)
    left = [name for name in wanted if name in PROMPTS and name not in found]
    if left:
        found |= _contained(left, lambda: _prompted(bench, left, embedded))
    return found


def _of_answers(bench: Bench, wanted: Sequence[str], answer: Answer | None) -> Found:
    base = load_language_model(bench)
    pool, rows = bench.examples, bench.rows
    drawn = stream("baselines: examples", bench.seed).permutation(len(pool))[:EXAMPLES]

    def nearest() -> Chosen:
        prompts = [
            [{"input_ids": row["input_ids"][: prompt_length(row)]} for row in part]
            for part in (pool, rows)
        ]
        embedded = embed(bench, base.model.base_model, *prompts)
        return nearest_rows(embedded.rows, embedded.pool, EXAMPLES)[:, ::-1]

    chosen: dict[str, Callable[[], Chosen]] = {
        "few_shot": lambda: [drawn] * len(rows),
        "retrieved": nearest,
    }

    def measure(name: str) -> MeasuredBaseline:
        examples = chosen[name]()
        joined = joined_rows(bench, base, examples)
        found = continued(bench, base, name, joined, len(examples[0]))
        if answer is not None:
            answer(name, base.model, lambda row: joined(row)["input_ids"])
        return found

    found = {}
    for name in wanted:
        found |= _attempt(name, partial(measure, name))
    return found


def _prompted(bench: Bench, wanted: Sequence[str], embedded: Embedded | None) -> Found:
    base, tokenizer = load_language_model(bench), load_tokenizer(bench.model)

    def drawn() -> Chosen:
        random = stream("baselines: balanced", bench.seed)
        examples = balanced(classes_of(bench.train)[bench.pool], len(bench.labels), random)
        return [examples] * len(bench.split)

    def nearest() -> Chosen:
        assert embedded is not None
        return nearest_rows(embedded.rows, embedded.pool, EXAMPLES)[:, ::-1]

    chosen: dict[str, Callable[[], Chosen]] = {
        "zero_shot": lambda: [[]] * len(bench.split),
        "few_shot": drawn,
        "retrieved": nearest,
    }

    def measure(name: str) -> MeasuredBaseline:
        return answered(bench, base, tokenizer, name, chosen[name]())

    found = {}
    for name in wanted:
        spent = embedded.seconds if embedded is not None and name == "retrieved" else 0.0
        found |= _attempt(name, partial(measure, name), spent)
    return found


def _contained(names: Sequence[str], measure: Callable[[], Found]) -> Found:
    """What `measure` gives, or its exception as the error of all `names`. Then the accelerator's
    memory is given back.
    """
    try:
        return measure()
    except Exception as error:
        return _failed(error, names)
    finally:
        torch.cuda.empty_cache()


def _attempt(name: str, measure: Callable[[], MeasuredBaseline], spent: float = 0.0) -> Found:
    """One baseline with its words and seconds; `spent` were before it."""
    began = time.perf_counter()
    try:
        found = measure()
    except Exception as error:
        return _failed(error, [name])
    seconds = spent + time.perf_counter() - began
    return {name: replace(found, words=found.words or WORDS[name], seconds=seconds)}


def _failed(error: Exception, names: Iterable[str]) -> Found:
    first = (str(error).strip().splitlines() or [""])[0]
    said = first if isinstance(error, Degenerate) else f"{type(error).__name__}: {first}"
    return {name: MeasuredBaseline(error=said, words=WORDS[name]) for name in names}
