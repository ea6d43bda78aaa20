"""What fine-tuning is compared with: the frozen base model, by its embeddings and by prompts. No
Ray here.

Letters of shapes: N rows that are answered, M rows of train, D width of the model, C classes, B
rows of a pass, T tokens of the longest row, V vocabulary.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.data.batches import cut_micro_batches
from trainables.data.manifest import labels_of
from trainables.data.prepare import Split, open_split
from trainables.errors import InputError
from trainables.models.base import BaseModel, BaseSpec
from trainables.models.config import ModelConfig
from trainables.models.files import context_length, load_model_config, load_tokenizer, resolve
from trainables.models.loading import load_model
from trainables.models.output import hidden_states
from trainables.models.precision import base_dtype
from trainables.streams import stream
from trainables.tasks import TASKS, Task
from trainables.tasks.causal_lm.task import IGNORED, pad, tokens_at_once, upcast

POOL_ROWS = 5_000  # of train, at most, that are embedded and that examples come from
EXAMPLES = 4
NEIGHBOURS = (1, 5, 15, 50)
FOLDS = 5
PENALTIES = (
    10.0,
    1.0,
    0.1,
    0.01,
    1e-3,
    1e-4,
)  # of half the squared weights, against the mean loss of a row

WORDS = {
    "embeddings_logistic": "logistic regression on frozen embeddings",
    "embeddings_neighbours": "nearest neighbours of frozen embeddings",
    "zero_shot": "prompt without examples",
    "few_shot": f"prompt with {EXAMPLES} examples",
    "retrieved": f"prompt with the {EXAMPLES} nearest examples",
}

Row = dict[str, Any]
Found = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What is measured, and on what."""

    model: ModelConfig
    task: Task
    labels: list[str]
    train: Split
    pool: np.ndarray  # rows of train that are used [M]
    split: Split
    pad_token_id: int
    max_tokens: int
    seed: int
    device: torch.device
    minutes: float
    deadline: float  # by time.perf_counter

    @property
    def rows(self) -> list[Row]:
        return self.split.rows(range(len(self.split)))

    @property
    def examples(self) -> list[Row]:
        return self.train.rows(self.pool)

    @property
    def prior(self) -> np.ndarray:
        """Share of each class in all of train [C]."""
        return np.bincount(self.train.labels, minlength=len(self.labels)) / len(self.train)

    @property
    def dtype(self) -> torch.dtype:
        """Of a base that nothing trains, whatever its class."""
        return base_dtype(self.model, "lora", self.device)


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    """Embeddings of the pool [M, D] and of the split [N, D], float32, and how many seconds they
    took.
    """

    pool: np.ndarray
    rows: np.ndarray
    seconds: float


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
) -> dict[str, dict[str, Any]]:
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
    bench = _Bench(
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


def _classification(bench: _Bench) -> Found:
    prompts = _prompt_ways(bench.model, bench.task.name)
    embedded = None
    try:
        embedded = _embed_texts(bench)
    except Exception as error:
        found = _failed(error, [*_embedding_ways(bench.task.name), *prompts[2:]])
    else:
        found = _attempt(
            "embeddings_logistic", lambda: _logistic(bench, embedded), embedded.seconds
        )
        found |= _attempt(
            "embeddings_neighbours", lambda: _neighbours(bench, embedded), embedded.seconds
        )
    torch.cuda.empty_cache()
    if prompts:
        left = [name for name in prompts if name not in found]
        found |= _contained(left, lambda: _prompted(bench, embedded))
    return found


# --- the border: a baseline that breaks costs neither the others nor who asked ---


class _Degenerate(Exception):
    """A baseline that would be another one under its own name; the message says why."""


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


def _attempt(name: str, measure: Callable[[], dict[str, Any]], spent: float = 0.0) -> Found:
    """One baseline with its words and seconds; `spent` were before it."""
    began = time.perf_counter()
    try:
        found = measure()
    except Exception as error:
        return _failed(error, [name])
    return {name: {"words": WORDS[name], **found, "seconds": spent + time.perf_counter() - began}}


def _failed(error: Exception, names: Iterable[str]) -> Found:
    first = (str(error).strip().splitlines() or [""])[0]
    said = first if isinstance(error, _Degenerate) else f"{type(error).__name__}: {first}"
    return {name: {"error": said, "words": WORDS[name]} for name in names}


def _scored(
    bench: _Bench,
    nll: np.ndarray,
    targets: np.ndarray,
    tokens: Iterable[int],
    predictions: np.ndarray | None = None,
    labels: np.ndarray | None = None,
) -> dict[str, Any]:
    """From losses, targets, prompt tokens, predicted and true classes of the rows, each [N]."""
    if not np.isfinite(nll).all():
        raise ArithmeticError(
            f"the loss of {np.count_nonzero(~np.isfinite(nll))} of {len(nll)} rows is not finite"
        )
    return {
        "val_loss": float(nll.sum() / targets.sum()),
        "metrics": bench.task.metrics(nll, targets, predictions, labels),
        "losses": np.stack([nll, targets], 1).astype(np.float32),
        "predictions": (
            None if predictions is None else np.stack([predictions, labels], 1).astype(np.int32)
        ),
        "tokens_per_request": float(np.mean(list(tokens))),
    }


def _classified(
    bench: _Bench, log_probabilities: np.ndarray, tokens: Iterable[int]
) -> dict[str, Any]:
    """From the classes' log-probabilities [N, C]."""
    labels = bench.split.labels
    nll = -log_probabilities[np.arange(len(labels)), labels]
    return _scored(bench, nll, np.ones_like(labels), tokens, log_probabilities.argmax(1), labels)


# --- the frozen model ---


def _backbone(bench: _Bench) -> Any:
    """The model without a head. A pooler may be missing: hidden states do not pass through it."""
    from transformers import AutoModel

    config = bench.model
    model, info = AutoModel.from_pretrained(
        resolve(config.name),
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        dtype=bench.dtype,
        output_loading_info=True,
    )
    lacking = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if lacking:
        raise InputError(f"model.name: the weights of {config.name} lack {', '.join(lacking[:3])}")
    model.config.use_cache = False  # keys and values of every token would be kept for nothing
    return model.to(bench.device).eval()


def _language_model(bench: _Bench) -> BaseModel:
    spec = BaseSpec(
        model=bench.model,
        auto_class="AutoModelForCausalLM",
        dtype=bench.dtype,
        pad_token_id=bench.pad_token_id,
    )
    return load_model(spec, device=bench.device, seed=bench.seed)


def _context(base: BaseModel) -> float:
    """Tokens that the model takes; infinite where it does not say."""
    return context_length(base.model.config) or math.inf


def _outputs(base: BaseModel, batch: dict[str, Tensor]) -> Tensor:
    """What goes into the output layer [B, T, D], or the logits [B, T, V] of a model whose `output`
    is None.
    """
    with hidden_states(base.output):
        return base.model(**batch).logits


def _in_passes(
    bench: _Bench,
    lengths: Sequence[int] | np.ndarray,
    run: Callable[[np.ndarray], None],
    tokens: float = math.inf,
) -> None:
    """`run` for all rows, told which, with at most `tokens` in a pass; for half as many where
    memory does not do.
    """
    passes = cut_micro_batches(np.asarray(lengths), int(min(bench.max_tokens, tokens)))
    while passes:
        if time.perf_counter() > bench.deadline:
            raise TimeoutError(
                f"not done within {bench.minutes:g} minutes (selection.baseline_minutes)"
            )
        rows = passes.pop(0)
        try:
            with torch.no_grad():
                run(rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(rows) // 2
            passes[:0] = [rows[:half], rows[half:]]


def _tokens_of_a_pass(base: BaseModel) -> float:
    """As many as have a bounded number of logits, where those of all are there at once."""
    return (
        math.inf
        if base.output is not None
        else tokens_at_once(base.model.config.get_text_config().vocab_size)
    )


def _on_device(bench: _Bench, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(bench.device) for name, tensor in batch.items()}


# --- embeddings ---


def _embed_texts(bench: _Bench) -> _Embedded:
    return _embed(bench, _backbone(bench), bench.examples, bench.rows)


def _embed(bench: _Bench, backbone: Any, pool: list[Row], rows: list[Row]) -> _Embedded:
    """Means of the last hidden states over the tokens of each row."""
    began = time.perf_counter()
    every, order, means = [*pool, *rows], [], []

    def run(at: np.ndarray) -> None:
        batch = _on_device(bench, pad([every[i] for i in at], bench.pad_token_id))
        real = batch["attention_mask"][..., None]
        hidden = backbone(**batch).last_hidden_state.float().masked_fill(real == 0, 0)
        means.append((hidden.sum(1) / real.sum(1)).cpu().numpy())
        order.append(at)

    _in_passes(bench, [len(row["input_ids"]) for row in every], run)
    found = np.concatenate(means)[np.argsort(np.concatenate(order))]
    return _Embedded(
        pool=found[: len(pool)], rows=found[len(pool) :], seconds=time.perf_counter() - began
    )


def _nearest(
    queries: np.ndarray, keys: np.ndarray, count: int, *, same: bool = False
) -> np.ndarray:
    """The `count` keys [M, D] of greatest cosine with each of the queries [N, D], the nearest first
    [N, count].

    same: the queries are the keys, and none is its own neighbour.
    """
    queries, keys = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, keys)
    )
    found = []
    for start in range(0, len(queries), 1024):  # all cosines at once might not fit
        cosines = queries[start : start + 1024] @ keys.T
        if same:
            rows = np.arange(len(cosines))
            cosines[rows, start + rows] = -np.inf
        found.append(np.argsort(-cosines, axis=1, kind="stable")[:, :count])
    return np.concatenate(found)


def _neighbours(bench: _Bench, embedded: _Embedded) -> dict[str, Any]:
    """(votes of the k nearest + class share in train) / (k + 1), with the k that has the least
    leave-one-out loss.
    """
    classes, prior = bench.train.labels[bench.pool], bench.prior
    if len(classes) < 2:
        raise _Degenerate("train has a single row, which is every row's neighbour")
    counts = [
        k for k in NEIGHBOURS if k <= max(1, len(classes) // 2)
    ]  # more would be train's label shares again
    near = classes[_nearest(embedded.pool, embedded.pool, counts[-1], same=True)]
    every = np.arange(len(classes))
    losses = [-np.log(_votes(near[:, :k], prior)[every, classes]).mean() for k in counts]
    best = counts[int(np.argmin(losses))]
    found = _votes(classes[_nearest(embedded.rows, embedded.pool, best)], prior)
    return _classified(bench, np.log(found), bench.split.lengths)


def _votes(near: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Probabilities [N, C] from the neighbours' classes [N, k] and the classes' shares [C]."""
    votes = np.stack([(near == c).sum(1) for c in range(len(prior))], 1)
    return (votes + prior) / (near.shape[1] + 1)


def _logistic(bench: _Bench, embedded: _Embedded) -> dict[str, Any]:
    mean, deviation = (
        embedded.pool.mean(0, dtype=np.float64),
        embedded.pool.std(0, dtype=np.float64),
    )

    def features(embeddings: np.ndarray) -> Tensor:
        scaled = (embeddings - mean) / np.where(deviation > 0, deviation, 1)
        return torch.from_numpy(np.insert(scaled, 0, 1.0, axis=1)).to(bench.device)

    x, y = (
        features(embedded.pool),
        torch.from_numpy(bench.train.labels[bench.pool]).to(bench.device),
    )
    prior = torch.from_numpy(bench.prior).log().to(bench.device)
    folds = torch.from_numpy(
        stream("baselines: folds", bench.seed).permutation(len(y)) % min(FOLDS, len(y))
    ).to(bench.device)
    weights = _fit(x, y, prior, _choose_penalty(x, y, prior, folds))
    found = (features(embedded.rows) @ weights + prior).log_softmax(1)
    return _classified(bench, found.cpu().numpy(), bench.split.lengths)


def _choose_penalty(x: Tensor, y: Tensor, prior: Tensor, folds: Tensor) -> float:
    """The penalty whose loss on the left-out folds is least, from the strongest down until that
    rises.

    folds: the fold of each row [M].
    """
    best, least, starts = PENALTIES[0], math.inf, {}
    for penalty in PENALTIES:
        total = 0.0
        for fold in folds.unique().tolist():
            out = folds == fold
            starts[fold] = _fit(x[~out], y[~out], prior, penalty, starts.get(fold))
            logits = x[out] @ starts[fold] + prior
            total += float(torch.nn.functional.cross_entropy(logits, y[out], reduction="sum"))
        if not total < least:
            break
        best, least = penalty, total
    return best


def _fit(
    x: Tensor, y: Tensor, prior: Tensor, penalty: float, start: Tensor | None = None
) -> Tensor:
    """Weights [D, C] of least mean cross-entropy of `x @ weights + prior` plus penalty / 2 * their
    squares.

    x: float64 [M, D], ones in the first column; y: classes [M]; prior: log share of each class [C],
    which a strong penalty leads to, and which keeps the loss of a class that a fold has no row of
    finite.
    """
    weights = x.new_zeros(x.shape[1], len(prior)) if start is None else start.clone()
    weights.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=1000,
        tolerance_grad=1e-7,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (
            torch.nn.functional.cross_entropy(x @ weights + prior, y)
            + penalty / 2 * weights.square().sum()
        )
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()


# --- instruction: rows after examples ---


def _instruction(bench: _Bench) -> Found:
    base = _language_model(bench)
    pool, rows = bench.examples, bench.rows
    drawn = stream("baselines: examples", bench.seed).permutation(len(pool))[:EXAMPLES]

    def nearest() -> np.ndarray:
        prompts = [
            [{"input_ids": row["input_ids"][: _prompt_length(row)]} for row in part]
            for part in (pool, rows)
        ]
        embedded = _embed(bench, base.model.base_model, *prompts)
        return _nearest(embedded.rows, embedded.pool, EXAMPLES)[:, ::-1]

    found = _attempt("few_shot", lambda: _continued(bench, base, "few_shot", [drawn] * len(rows)))
    return found | _attempt("retrieved", lambda: _continued(bench, base, "retrieved", nearest()))


def _fitted(
    name: str,
    pool: int,
    shown: int,
    examples: Sequence[int],
    context: float,
    kept: Sequence[float] = (),
) -> dict[str, Any]:
    """What the context held of what the prompts of baseline `name` were to hold, and the baseline's
    words with it.

    pool: rows that examples come from; shown: examples that each prompt was to hold; examples:
    those that it held [N]; kept: share of its text that it held [N], where texts may be cut.
    """
    found: dict[str, Any] = {}
    words, said = WORDS[name], []
    if shown == pool:  # drawn or nearest, they are the same
        words = (
            f"prompt with all {pool} rows of train"
            if pool > 1
            else "prompt with the only row of train"
        )
        words += ", the nearest last" if pool > 1 and name == "retrieved" else ""
    if shown:
        found["examples_per_request"] = mean = float(np.mean(examples))
        if not mean:
            raise _Degenerate(
                f"no example fits beside a row into the {context:,.0f} tokens of the model"
            )
        if mean < shown:
            said.append(f"{min(max(mean, 0.1), shown - 0.1):.1f} fitted")
    if len(kept):
        found["text_share"] = share = float(np.mean(kept))
        if not share:
            raise _Degenerate(
                f"nothing of any text fits into the {context:,.0f} tokens of the model"
            )
        if share < 1:
            said.append(f"texts cut to {min(max(share, 0.01), 0.99):.0%}")
    return {**found, "words": f"{words} ({', '.join(said)})" if said else words}


def _prompt_length(row: Row) -> int:
    """Tokens before the first target."""
    return int(np.flatnonzero(row["labels"][1:] != IGNORED)[0]) + 1


def _continued(
    bench: _Bench, base: BaseModel, name: str, chosen: Sequence[Sequence[int]] | np.ndarray
) -> dict[str, Any]:
    """Each row of the split after the examples `chosen` for it [N, k]."""
    pool, rows = bench.examples, bench.rows
    bos, context = base.model.config.get_text_config().bos_token_id, _context(base)

    def joined(i: int) -> Row:
        return _join([pool[j] for j in chosen[i]], rows[i], bos, context)

    sizes = [
        (len(row["input_ids"]), _prompt_length(row), row["examples"])
        for row in map(joined, range(len(rows)))
    ]
    lengths, prompts, examples = zip(*sizes, strict=True)
    fitted = _fitted(name, len(pool), len(chosen[0]), examples, context)
    nll, targets = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)

    def run(at: np.ndarray) -> None:
        batch = _on_device(bench, bench.task.collate([joined(i) for i in at], bench.pad_token_id))
        labels = batch.pop("labels")
        nll_B, targets_B = bench.task.row_losses(_outputs(base, batch), labels, base.output)
        nll[at], targets[at] = nll_B.double().cpu(), targets_B.cpu()

    _in_passes(bench, lengths, run, _tokens_of_a_pass(base))
    return _scored(bench, nll, targets, prompts) | fitted


def _join(examples: list[Row], row: Row, bos: int | None, context: float) -> Row:
    """`row` after as many of the last `examples` as the context holds; only the first of all keeps
    its `bos`.

    Its `examples` are so many. Its targets are those that it has alone.
    """
    alone = np.where(
        np.arange(len(row["labels"])) == 0, IGNORED, row["labels"]
    )  # nothing predicts the first token
    parts = [
        *((e["input_ids"], np.full(len(e["input_ids"]), IGNORED)) for e in examples),
        (row["input_ids"], alone),
    ]
    for first in range(len(parts)):
        kept = [
            (ids[cut:], labels[cut:])
            for number, (ids, labels) in enumerate(parts[first:])
            for cut in [int(number > 0 and ids[0] == bos)]
        ]
        if sum(len(ids) for ids, _ in kept) <= context:
            break
    ids, labels = (np.concatenate(column) for column in zip(*kept, strict=True))
    return {"input_ids": ids, "labels": labels, "examples": len(kept) - 1}


# --- classification: prompts for a causal language model ---


def _prompted(bench: _Bench, embedded: _Embedded | None) -> Found:
    base, tokenizer, count = _language_model(bench), load_tokenizer(bench.model), len(bench.split)

    def drawn() -> np.ndarray:
        return _balanced(
            bench.train.labels[bench.pool],
            len(bench.labels),
            stream("baselines: balanced", bench.seed),
        )

    def nearest() -> np.ndarray:
        assert embedded is not None
        return _nearest(embedded.rows, embedded.pool, EXAMPLES)[:, ::-1]

    found = _attempt(
        "zero_shot", lambda: _answered(bench, base, tokenizer, "zero_shot", [[]] * count)
    )
    found |= _attempt(
        "few_shot", lambda: _answered(bench, base, tokenizer, "few_shot", [drawn()] * count)
    )
    if embedded is not None:
        found |= _attempt(
            "retrieved",
            lambda: _answered(bench, base, tokenizer, "retrieved", nearest()),
            embedded.seconds,
        )
    return found


def _balanced(classes: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Positions of `EXAMPLES` rows of `classes` [M], of as many of the `count` classes and as
    evenly as can be.
    """
    turn, seen, turns = random.permutation(count), Counter(), {}
    for i in random.permutation(len(classes)):
        turns[i] = (seen[classes[i]], turn[classes[i]])
        seen[classes[i]] += 1
    return np.array(sorted(turns, key=turns.__getitem__)[:EXAMPLES])


def _answered(
    bench: _Bench,
    base: BaseModel,
    tokenizer: Any,
    name: str,
    chosen: Sequence[Sequence[int]] | np.ndarray,
) -> dict[str, Any]:
    """Each row's prompt, with the examples `chosen` for it [N, k], and what the model makes of the
    labels after it.
    """
    labels = _label_tokens(tokenizer, bench.labels)
    room = (
        _context(base) - max(map(len, labels)) + 1
    )  # a label's last token does not go into the model
    first = tokenizer("a", verbose=False)["input_ids"][:1]
    begin = first if first == [tokenizer.bos_token_id] else []

    def text(row: Row) -> str:
        return tokenizer.decode(
            row["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

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
                    f"a prompt does not fit into the {_context(base)} tokens of the model"
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
    fitted = _fitted(name, len(pool), len(chosen[0]), examples, _context(base), kept)
    scores = _label_scores(bench, base, prompts, labels)
    found = _classified(
        bench, scores - np.logaddexp.reduce(scores, axis=1, keepdims=True), map(len, prompts)
    )
    return found | fitted


def _label_tokens(tokenizer: Any, labels: Sequence[str]) -> list[list[int]]:
    """The tokens of each label after a prompt; labels that no prompt could tell apart are
    refused.
    """
    found, first = [_tokens(tokenizer, f" {label}") for label in labels], {}
    for label, tokens in zip(labels, found, strict=True):
        if not tokens:
            raise _Degenerate(f"the label {label!r} is no token to the tokenizer")
        if (other := first.setdefault(tuple(tokens), label)) != label:
            raise _Degenerate(
                f"the labels {other!r} and {label!r} are the same tokens to the tokenizer"
            )
    return found


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _label_scores(
    bench: _Bench, base: BaseModel, prompts: list[list[int]], labels: list[list[int]]
) -> np.ndarray:
    """Summed log-probability of each label's tokens after each prompt [N, C].

    A pass over a prompt and a stem (a label without its last token) scores all labels that need no
    more than that: of labels that are one token each, all.
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
            batch = _on_device(
                bench, pad([{"input_ids": [*prompts[i], *stem]} for i in at], bench.pad_token_id)
            )
            last = torch.from_numpy(lengths[at] - 1).to(bench.device)
            outputs = _outputs(base, batch)[
                torch.arange(len(at), device=bench.device)[:, None], last[:, None] + ahead
            ]
            logits = outputs if base.output is None else base.output(outputs)
            log_probabilities = upcast(logits).log_softmax(-1)
            for c, label in done.items():
                scores[at, c] = (
                    log_probabilities[:, ahead[: len(label)], label].double().sum(1).cpu()
                )

        _in_passes(bench, lengths + len(stem), run, _tokens_of_a_pass(base))

    for stem in sorted(stems):
        if not any(other != stem and other[: len(stem)] == stem for other in stems):
            score(stem)
    return scores
