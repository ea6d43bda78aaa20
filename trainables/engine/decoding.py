"""Tokens that a model writes after prompts: many rows at once, each as if it were alone. No Ray
here.

`generate` of transformers prepares inputs, masks, positions and caches of every architecture; what
it calls for the tokens is the loop here. Rows that have ended leave the batch, each has its own way
of choosing tokens, and what is drawn for it is a function of its seed and its number alone.

Letters of shapes: B rows of a batch, T tokens of the longest prompt, V vocabulary.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from trainables.data.batches import cut_micro_batches
from trainables.engine.budget import MICRO_BATCH_TOKENS
from trainables.engine.memory import release
from trainables.engine.scoring import SAME_HALF, SAME_ROW, halves
from trainables.errors import InputError
from trainables.evaluation.generation import Prompt
from trainables.metrics.config import GenerationConfig
from trainables.models.decoder import decoder_inputs
from trainables.models.files import context_length
from trainables.streams import stream
from trainables.tasks.causal_lm.task import IGNORED, upcast

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, PreTrainedModel

# padded tokens of a batch here for each of a micro-batch in training, which keeps of a token many
# times what its keys and values are
CACHED = 4
STEP = 256  # what a step costs beside its rows, in tokens
TRIED = 2  # tokens whose scores tell whether padding changes them

# instead of how a model's own configuration would have its answers searched for; what that says of
# the vocabulary (tokens that are never written, or always first) stays
PLAIN = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "forced_eos_token_id": None,  # it comes where the row that may be longest ends
    "use_cache": True,
    "return_dict_in_generate": False,
}

OnToken = Callable[[int, int, Tensor], object]
"""Told the position of a prompt, a token of its answer, and the scores [V] that it was chosen by;
what is true ends that answer.
"""
Place = Callable[[Sequence[int]], None]
"""Told before each step which rows of the batch are left."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the tokens of an answer are chosen, and where it ends."""

    settings: GenerationConfig
    stop: frozenset[int]
    seed: int = 0

    def limit(self, prompt: Prompt, model: "PreTrainedModel", virtual_tokens: int = 0) -> int:
        """How many tokens may be written to a prompt. Raises InputError where there is no room for
        one.
        """
        most, context = self.settings.max_new_tokens, context_length(model.config)
        if context is None:
            return most
        given = len(prompt.ids) + virtual_tokens
        room = context - given
        if model.config.is_encoder_decoder and room >= 0:
            room = context - 1  # what is written has a context of its own
        if room < 1:
            raise InputError(
                f"the prompt of row {prompt.row} has {given} tokens, and the model's context of"
                f" {context} leaves no room for an answer; shorten it"
            )
        return min(most, room)

    def draws(self, row: int) -> np.ndarray:
        """Uniform in [0, 1), one for each token of a row's answer; none where none is drawn."""
        count = self.settings.max_new_tokens if self.settings.temperature else 0
        return stream("answers", self.seed, row).random(count)


@dataclass(kw_only=True)
class Rows:
    """Those of a batch, and what has been written to them."""

    decodings: Sequence[Decoding]
    limits: Sequence[int]
    draws: Sequence[np.ndarray]
    """Of each token of each."""
    on_token: OnToken | None = None
    """Told positions in the batch."""
    watched: list[Tensor] = field(default_factory=list)
    """Scores of the first `TRIED` tokens of rows that are left."""
    written: list[list[int]] = field(init=False)
    left: list[int] = field(init=False)
    """Positions of the rows that have not ended."""

    def __post_init__(self) -> None:
        self.written = [[] for _ in self.limits]
        self.left = list(range(len(self.limits)))

    def take(self, scores_BV: Tensor) -> tuple[Tensor, list[int]]:
        """The next token of each row that is left; and which of these go on, by their position
        among them.
        """
        if len(self.watched) < TRIED:
            self.watched.append(scores_BV)
        tokens_B = self._chosen(scores_BV)
        going = [
            number
            for number, (row, token) in enumerate(zip(self.left, tokens_B.tolist(), strict=True))
            if self._goes_on(row, token, scores_BV[number])
        ]
        self.left = [self.left[number] for number in going]
        return tokens_B, going

    def _goes_on(self, row: int, token: int, scores_V: Tensor) -> bool:
        written = self.written[row]
        written.append(token)
        is_told_to_end = self.on_token is not None and bool(self.on_token(row, token, scores_V))
        is_full = len(written) >= self.limits[row]
        return not (is_told_to_end or is_full or token in self.decodings[row].stop)

    def _chosen(self, scores_BV: Tensor) -> Tensor:
        tokens_B = scores_BV.argmax(-1)
        settings = [self.decodings[row].settings for row in self.left]
        drawn = [number for number, each in enumerate(settings) if each.temperature]
        if drawn:
            rows = [self.left[number] for number in drawn]
            tokens_B[drawn] = sampled(
                scores_BV[drawn],
                _of_each(self.draws[row][len(self.written[row])] for row in rows),
                _of_each(settings[number].temperature for number in drawn),
                _of_each(settings[number].top_p for number in drawn),
            )
        return tokens_B


def _of_each(values: Iterable[float]) -> Tensor:
    return torch.tensor([*values], dtype=torch.float64)


def sampled(scores_BV: Tensor, draws_B: Tensor, temperature_B: Tensor, top_p_B: Tensor) -> Tensor:
    """Tokens [B] at the quantiles `draws_B` of what is left of the distributions: the likeliest
    tokens that together have `top_p_B` (Holtzman et al. 2020), at temperatures above 0.
    """
    scores_BV = scores_BV.double()
    shares_BV = (scores_BV / temperature_B.to(scores_BV)[:, None]).softmax(-1)
    shares_BV, tokens_BV = shares_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = shares_BV.cumsum(-1) - shares_BV
    shares_BV = shares_BV.masked_fill(before_BV >= top_p_B.to(shares_BV)[:, None], 0)
    upto_BV = shares_BV.cumsum(-1)
    wanted_B1 = draws_B.to(upto_BV)[:, None] * upto_BV[:, -1:]
    chosen_B1 = (upto_BV <= wanted_B1).sum(-1, keepdim=True)
    last_B1 = (shares_BV > 0).sum(-1, keepdim=True).clamp(min=1) - 1  # of NaN none is above 0
    return tokens_BV.gather(-1, chosen_B1.minimum(last_B1))[:, 0]


# --- one batch ---


def model_inputs(
    model: "PreTrainedModel", prompts: Sequence[Prompt], pad_token_id: int
) -> dict[str, Tensor]:
    """What `write` takes of prompts. Those of a decoder end together, those of an encoder begin
    together.
    """
    ids = [prompt.ids for prompt in prompts]
    if not model.config.is_encoder_decoder:
        return _padded(ids, pad_token_id, model.device, left=True)
    inputs = _padded(ids, pad_token_id, model.device, left=False)
    if all(len(prompt.target) for prompt in prompts):
        # some decoders begin with the language, which the model reads off the target's end
        targets = [prompt.target for prompt in prompts]
        labels = _padded(targets, IGNORED, model.device, left=False)["input_ids"]
        inputs["decoder_start_token_id"] = decoder_inputs(model, labels)[:, 0]
    return inputs


def _padded(
    rows: Sequence[np.ndarray], pad: int, device: torch.device, *, left: bool
) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, at], mask[number, at] = row, 1
    return {
        "input_ids": torch.from_numpy(ids).to(device),
        "attention_mask": torch.from_numpy(mask).to(device),
    }


def write(
    model: "PreTrainedModel",
    inputs: dict[str, Any],
    rows: Rows,
    pad_token_id: int,
    place: Place | None = None,
) -> list[list[int]]:
    """Tokens that `model` writes to each row of `inputs`, with the one that ended it."""

    def loop(
        model: "PreTrainedModel",
        input_ids: Tensor,
        logits_processor: "LogitsProcessorList",
        stopping_criteria: object,
        generation_config: object,
        **state: Any,
    ) -> None:
        inner: Any = model
        outputs = inner._prefill(input_ids, generation_config, state)  # noqa: SLF001
        while True:
            state = inner._update_model_kwargs_for_generation(  # noqa: SLF001
                outputs, state, is_encoder_decoder=inner.config.is_encoder_decoder
            )
            last_BV = upcast(outputs.logits[:, -1])
            del outputs  # it may hold the logits of whole prompts
            tokens_B, going = rows.take(logits_processor(input_ids, last_BV))
            if not going:
                return
            input_ids = torch.cat([input_ids, tokens_B[:, None]], dim=1)
            if len(going) < len(input_ids):
                kept = torch.tensor(going, device=input_ids.device)
                state = {name: _of_rows(x, kept, len(input_ids)) for name, x in state.items()}
                input_ids = input_ids[kept]
            if place is not None:
                place(rows.left)
            step = inner.prepare_inputs_for_generation(
                input_ids, next_sequence_length=1 if state["use_cache"] else None, **state
            )
            outputs = inner(**step, return_dict=True)

    inner: Any = model
    inner.generate(
        **inputs,
        **PLAIN,
        max_new_tokens=max(rows.limits),
        eos_token_id=sorted({token for each in rows.decodings for token in each.stop}) or None,
        pad_token_id=pad_token_id,
        custom_generate=loop,
    )
    return rows.written


def _of_rows(value: Any, kept: Tensor, count: int) -> Any:
    """Of what goes from step to step the rows `kept`, of so many."""
    from transformers import Cache
    from transformers.utils.generic import ModelOutput

    if isinstance(value, Cache):
        value.reorder_cache(cast("torch.LongTensor", kept))
    elif isinstance(value, ModelOutput):
        for name, part in value.items():
            value[name] = _of_rows(part, kept, count)
    elif isinstance(value, Tensor) and value.ndim and len(value) == count:
        return value[kept]
    return value


# --- all prompts ---


@dataclass
class Padding:
    """What is known of a model."""

    is_harmless: bool | None = None
    """Whether prompts of unlike lengths may share a batch; None: it is tried on the first such."""


@dataclass(kw_only=True)
class Writer:
    """Writes answers to prompts, by one or several copies of a model: rows of like lengths share a
    batch, half as many where memory does not suffice.
    """

    prompts: Sequence[Prompt]
    decodings: Sequence[Decoding]
    """Of each."""
    limits: Sequence[int]
    """Of the tokens that are written to each."""
    run: Callable[[np.ndarray, Sequence[int], Rows], list[list[int]]]
    """Writes to the prompts at some positions by some of the copies, one copy's rows after
    another's.
    """
    max_tokens: int
    """Padded tokens of a batch, with those that are written."""
    device: torch.device
    copies: int = 1
    rounds: bool = False
    """Whether the arithmetic is in half precision."""
    padding: Padding = field(default_factory=Padding)
    on_token: OnToken | None = None
    _told: dict[int, list[bool]] = field(default_factory=dict)

    def answers(self, mine: np.ndarray | None = None) -> list[list[list[int]]]:
        """Tokens by each copy to each prompt; to those at the positions `mine` alone, the others'
        are empty.
        """
        at = np.arange(len(self.prompts)) if mine is None else mine
        found: list[list[list[int]]] = [[[] for _ in self.prompts] for _ in range(self.copies)]
        waiting = [(at[part], list(range(self.copies))) for part in self._batches(at)]
        while waiting:
            positions, which = waiting.pop(0)
            written = self._attempted(positions, which)
            if written is None:
                release(self.device)
                waiting[:0] = halves(positions, which)
                continue
            order = [(copy, position) for copy in which for position in positions]
            for (copy, position), ids in zip(order, written, strict=True):
                found[copy][position] = ids
        return found

    def _batches(self, at: np.ndarray) -> list[np.ndarray]:
        given = np.array([len(self.prompts[position].ids) for position in at], dtype=np.int64)
        lengths = given + np.array([self.limits[position] for position in at], dtype=np.int64)
        together = self._may_share(at[np.argsort(given, kind="stable")])
        return cut_micro_batches(
            lengths,
            self.max_tokens // self.copies,
            STEP * max(self.limits, default=0),
            kinds=None if together else given,
        )

    def _may_share(self, by_length: np.ndarray) -> bool:
        """Whether a prompt has the same scores beside a longer one, before there is a cache and
        after.
        """
        if self.padding.is_harmless is not None:
            return self.padding.is_harmless
        ends = by_length[[0, -1]] if len(by_length) else by_length
        if len({len(self.prompts[position].ids) for position in ends}) < 2:
            return True
        endless = [replace(each, stop=frozenset()) for each in self.decodings]
        trial = replace(self, decodings=endless, on_token=None)
        try:
            alone, beside = trial._first_scores(ends[:1]), trial._first_scores(ends)
        except torch.OutOfMemoryError:
            return False
        limit = SAME_HALF if self.rounds else SAME_ROW
        self.padding.is_harmless = all(
            torch.allclose(one, other[::2], rtol=limit, atol=limit)
            for one, other in zip(alone, beside, strict=False)
        )
        return self.padding.is_harmless

    def _first_scores(self, positions: np.ndarray) -> list[Tensor]:
        """Of each of the first tokens [copies * B, V]; as many as all may have."""
        which = list(range(self.copies))
        rows = self._rows(positions, which)
        rows.limits = [min(TRIED, *rows.limits)] * len(rows.limits)
        self.run(positions, which, rows)
        return rows.watched

    def _rows(self, positions: np.ndarray, which: Sequence[int]) -> Rows:
        decodings = [self.decodings[position] for position in positions]
        rows = [self.prompts[position].row for position in positions]
        draws = [each.draws(row) for each, row in zip(decodings, rows, strict=True)]
        return Rows(
            decodings=decodings * len(which),
            limits=[self.limits[position] for position in positions] * len(which),
            draws=draws * len(which),
            on_token=None if self.on_token is None else partial(self._tell, positions, Counter()),
        )

    def _attempted(self, positions: np.ndarray, which: Sequence[int]) -> list[list[int]] | None:
        """None: memory does not suffice, and the batch can be halved. It is given back by the
        caller: where the error is caught, its traceback still holds what was computed.
        """
        try:
            return self.run(positions, which, self._rows(positions, which))
        except torch.OutOfMemoryError:
            if len(positions) * len(which) == 1:
                raise
            return None

    def _tell(
        self, positions: np.ndarray, counts: Counter[int], row: int, token: int, scores_V: Tensor
    ) -> bool:
        """Tokens that a smaller batch writes again are told once."""
        assert self.on_token is not None
        position = int(positions[row])
        told = self._told.setdefault(position, [])
        counts[row] += 1
        if counts[row] > len(told):
            told.append(bool(self.on_token(position, token, scores_V)))
        return told[counts[row] - 1]


def generate(
    model: "PreTrainedModel",
    prompts: Sequence[Prompt],
    settings: GenerationConfig,
    *,
    stop: Sequence[int],
    pad_token_id: int,
    seed: int = 0,
    max_tokens: int | None = None,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """`generate_each`, all alike."""
    decoding = Decoding(settings=settings, stop=frozenset(stop), seed=seed)
    return generate_each(
        model,
        prompts,
        [decoding] * len(prompts),
        pad_token_id=pad_token_id,
        max_tokens=max_tokens,
        on_token=on_token,
    )


def generate_each(
    model: "PreTrainedModel",
    prompts: Sequence[Prompt],
    decodings: Sequence[Decoding],
    *,
    pad_token_id: int,
    adapters: Sequence[str] | None = None,
    padding: Padding | None = None,
    max_tokens: int | None = None,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """Tokens that a model by itself (of transformers, or PEFT's over one; in eval mode) writes to
    each of `prompts`, with the stop token that ended it.

    adapters: of each, where PEFT's model has several. padding: what an earlier call found, or is to
    be found for a later one. max_tokens: of a micro-batch in training, as `train.max_tokens`; None:
    the device's own. on_token: told tokens as they come. Raises InputError for a prompt that leaves
    no room for an answer.
    """
    virtual = _virtual_tokens(model)

    def run(positions: np.ndarray, which: Sequence[int], rows: Rows) -> list[list[int]]:
        inputs = model_inputs(model, [prompts[each] for each in positions], pad_token_id)
        if adapters is None:
            return write(model, inputs, rows, pad_token_id)
        of_rows = [adapters[each] for each in positions]
        names = list(of_rows)

        def place(left: Sequence[int]) -> None:
            names[:] = [of_rows[row] for row in left]  # the list that PEFT's hooks hold

        return write(model, {**inputs, "adapter_names": names}, rows, pad_token_id, place)

    writer = Writer(
        prompts=prompts,
        decodings=decodings,
        limits=[
            decoding.limit(prompt, model, virtual)
            for decoding, prompt in zip(decodings, prompts, strict=True)
        ],
        run=run,
        max_tokens=CACHED * (max_tokens or MICRO_BATCH_TOKENS[model.device.type]),
        device=model.device,
        rounds=model.dtype.itemsize < 4,
        padding=padding or Padding(),
        on_token=on_token,
    )
    (answers,) = writer.answers()
    return answers


def _virtual_tokens(model: "PreTrainedModel") -> int:
    """Trained positions that PEFT puts before each row."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return 0
    # what it drops, and says so for every token, the model then makes itself
    warnings.filterwarnings("ignore", "Position ids are not supported for parameter efficient")
    return config.num_virtual_tokens
