"""What fine-tuning is compared with: the frozen base model, by its embeddings and by prompts. No
Ray here.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from trainables.data.manifest import labels_of
from trainables.data.prepare import open_split
from trainables.evaluation.bench import (
    EXAMPLES,
    WORDS,
    Bench,
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
    nearest_rows,
    neighbours,
)
from trainables.evaluation.prompts import (
    answered,
    balanced,
    continued,
    prompt_length,
)
from trainables.evaluation.record import MeasuredBaseline
from trainables.models.config import ModelConfig
from trainables.models.files import load_model_config, load_tokenizer
from trainables.streams import stream
from trainables.tasks import TASKS

POOL_ROWS = 5_000  # of train, at most, that are embedded and that examples come from


def names(model: ModelConfig, task: str) -> list[str]:
    """What `measure_baselines` will measure, in words."""
    return [WORDS[name] for name in _embedding_ways(task) + _prompt_ways(model, task)]


def _embedding_ways(task: str) -> list[str]:
    return ["embeddings_logistic", "embeddings_neighbours"] if task == "classification" else []


def _prompt_ways(model: ModelConfig, task: str) -> list[str]:
    if task == "instruction":
        return ["few_shot", "retrieved"]  # zero-shot is the untuned base
    architecture = (load_model_config(model).architectures or [""])[0]
    speaks = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    return ["zero_shot", "few_shot", "retrieved"] if task == "classification" and speaks else []


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
) -> dict[str, MeasuredBaseline]:
    """What the frozen base makes of `split` of the folder `data` that
    `trainables.data.prepare.prepare` wrote.

    classification: `embeddings_logistic`, `embeddings_neighbours` and, where the checkpoint is
    itself a causal language model, `zero_shot`, `few_shot`, `retrieved`. instruction: `few_shot`,
    `retrieved` (zero-shot is the untuned base). causal_lm: nothing.

    At most 5,000 rows of train, drawn by the seed, are embedded, fitted to and shown as examples;
    class shares are those of all of train. Labels of `split` are looked at only to score.

    max_tokens: padded tokens of a forward pass; memory only, never the result.
    minutes: for all of it; a baseline that is not done by then has broken.

    Returns of each baseline `val_loss` (mean nats per example or target token), `metrics` of the
    task, `losses` float32 [N, 2] (summed loss and targets of each row of `split`), `predictions`
    int32 [N, 2] (predicted and true class of each row; None for language models), `seconds` (wall
    clock, embeddings that it uses included, loading the model not), `tokens_per_request` (mean
    tokens of a prompt with its examples, or of what is embedded) and `words` for people. Prompts
    with examples have `examples_per_request` too, those that the context held, and prompts of
    classification `text_share`, the share of their texts' tokens that it held, both means over the
    rows; `words` say where they are not all. One that broke has `error` ("Type: first line") and
    `words`; the others still come. One that would be another under its own name (a prompt that
    holds no example, or nothing of any text) has the reason as its `error`.

    Raises InputError where the model's configuration cannot be read.
    """
    if task == "causal_lm":
        return {}
    train = open_split(data, "train")
    bench = Bench(
        model=model,
        task=TASKS[task],
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
    if task == "instruction":
        return _contained(_prompt_ways(model, task), lambda: _instruction(bench))
    return _classification(bench)


def _classification(bench: Bench) -> Found:
    prompts = _prompt_ways(bench.model, bench.task.name)
    embedded = None
    try:
        embedded = embed_texts(bench)
    except Exception as error:
        found = _failed(error, [*_embedding_ways(bench.task.name), *prompts[2:]])
    else:
        found = _attempt("embeddings_logistic", lambda: logistic(bench, embedded), embedded.seconds)
        found |= _attempt(
            "embeddings_neighbours", lambda: neighbours(bench, embedded), embedded.seconds
        )
    torch.cuda.empty_cache()
    if prompts:
        left = [name for name in prompts if name not in found]
        found |= _contained(left, lambda: _prompted(bench, embedded))
    return found


def _instruction(bench: Bench) -> Found:
    base = load_language_model(bench)
    pool, rows = bench.examples, bench.rows
    drawn = stream("baselines: examples", bench.seed).permutation(len(pool))[:EXAMPLES]

    def nearest() -> np.ndarray:
        prompts = [
            [{"input_ids": row["input_ids"][: prompt_length(row)]} for row in part]
            for part in (pool, rows)
        ]
        embedded = embed(bench, base.model.base_model, *prompts)
        return nearest_rows(embedded.rows, embedded.pool, EXAMPLES)[:, ::-1]

    found = _attempt("few_shot", lambda: continued(bench, base, "few_shot", [drawn] * len(rows)))
    return found | _attempt("retrieved", lambda: continued(bench, base, "retrieved", nearest()))


def _prompted(bench: Bench, embedded: Embedded | None) -> Found:
    base, tokenizer, count = (
        load_language_model(bench),
        load_tokenizer(bench.model),
        len(bench.split),
    )

    def drawn() -> np.ndarray:
        return balanced(
            classes_of(bench.train)[bench.pool],
            len(bench.labels),
            stream("baselines: balanced", bench.seed),
        )

    def nearest() -> np.ndarray:
        assert embedded is not None
        return nearest_rows(embedded.rows, embedded.pool, EXAMPLES)[:, ::-1]

    found = _attempt(
        "zero_shot", lambda: answered(bench, base, tokenizer, "zero_shot", [[]] * count)
    )
    found |= _attempt(
        "few_shot", lambda: answered(bench, base, tokenizer, "few_shot", [drawn()] * count)
    )
    if embedded is not None:
        found |= _attempt(
            "retrieved",
            lambda: answered(bench, base, tokenizer, "retrieved", nearest()),
            embedded.seconds,
        )
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
