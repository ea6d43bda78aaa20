"""A row's answer does not depend on its company, and is that of transformers' own `generate`."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t

from trainables.engine import decoding
from trainables.engine.decoding import Decoding, generate, generate_each, sampled
from trainables.errors import InputError
from trainables.evaluation.generation import Prompt
from trainables.metrics.config import GenerationConfig

VOCABULARY, PAD, CONTEXT = 100, 0, 64
STOP = (7, 8, 9, 10, 11)
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "pad_token_id": PAD,
}
GROUPED = {**SHAPE, "num_key_value_heads": 1}
WINDOW = {**GROUPED, "head_dim": 16, "sliding_window": 6}
OPT = {
    **SHAPE,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
    "init_std": 0.3,
}
TWO_STACKS = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": CONTEXT,
    "init_std": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": 1,
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SHAPE)),
    "gpt2": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=CONTEXT,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=1,
            pad_token_id=PAD,
        )
    ),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**GROUPED)),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**GROUPED, head_dim=16)),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**WINDOW)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**WINDOW)),
    "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**WINDOW)),
    "opt": lambda: t.OPTForCausalLM(t.OPTConfig(**OPT)),
    "bloom": lambda: t.BloomForCausalLM(
        t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2)
    ),
    "t5": lambda: t.T5ForConditionalGeneration(
        t.T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            pad_token_id=PAD,
            eos_token_id=1,
            decoder_start_token_id=PAD,  # pyright: ignore[reportCallIssue]
        )
    ),
    "bart": lambda: t.BartForConditionalGeneration(
        t.BartConfig(**TWO_STACKS, eos_token_id=1, decoder_start_token_id=1)
    ),
    "mbart": lambda: t.MBartForConditionalGeneration(t.MBartConfig(**TWO_STACKS, eos_token_id=2)),
}
GREEDY = GenerationConfig(max_new_tokens=16)
SAMPLED = GenerationConfig(max_new_tokens=16, temperature=1.5, top_p=0.9)


@pytest.fixture(autouse=True)
def quiet():
    t.logging.set_verbosity_error()
    torch.set_num_threads(1)


def make(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A model whose every weight matters to what it writes."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = MODELS[name]()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.to(dtype).eval()


def prompts(lengths: Sequence[int] = (3, 17, 5, 9, 12, 4)) -> list[Prompt]:
    rng = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return rng.integers(12, VOCABULARY, length).astype(np.int32)

    return [
        Prompt(ids=ids(length), target=ids(4), row=10 + row) for row, length in enumerate(lengths)
    ]


def written(model: Any, given: Sequence[Prompt], settings: GenerationConfig, **more: Any) -> Any:
    return generate(model, given, settings, **{"stop": STOP, "pad_token_id": PAD, **more})


def by_transformers(model: Any, prompt: Prompt, settings: GenerationConfig) -> list[int]:
    ids = torch.from_numpy(prompt.ids).long()[None]
    (found,) = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        eos_token_id=list(STOP),
        pad_token_id=PAD,
        forced_eos_token_id=None,
    ).tolist()
    return found[1:] if model.config.is_encoder_decoder else found[len(prompt.ids) :]


# the masks of some are too small for float64, where they then share no batch
IN_FLOAT32 = ("gemma2", "bloom")


@pytest.mark.parametrize("name", MODELS)
def test_an_answer_does_not_depend_on_its_company(name: str):
    model = make(name, torch.float32 if name in IN_FLOAT32 else torch.float64)
    given = prompts()
    for settings in (GREEDY, SAMPLED):
        alone = [written(model, [prompt], settings)[0] for prompt in given]
        assert written(model, given, settings) == alone
        assert written(model, given[::-1], settings, max_tokens=20)[::-1] == alone
        assert all(0 < len(ids) <= settings.max_new_tokens for ids in alone)
        assert all(set(ids[:-1]).isdisjoint(STOP) for ids in alone)
    if name != "mbart":  # which must be told what its decoder begins with
        expected = [by_transformers(model, prompt, GREEDY) for prompt in given]
        assert written(model, given, GREEDY) == expected


def test_a_decoder_begins_with_what_the_model_reads_off_the_target():
    model = make("mbart")
    prompt = prompts()[0]
    seen = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    written(model, [prompt], GREEDY)
    assert seen[0] == [[int(prompt.target[-1])]]  # the language


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_rows_that_have_ended_leave_the_batch(name: str):
    model, given, sizes = make(name), prompts(), []
    inside = model.get_decoder() if model.config.is_encoder_decoder else model
    inside.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    answers = written(model, given, SAMPLED)
    lengths = sorted(map(len, answers))
    assert len(set(lengths)) > 1
    steps = sizes[-lengths[-1] :]  # before them padding is tried
    assert steps == [sum(length > step for length in lengths) for step in range(lengths[-1])]


def test_a_model_that_padding_changes_gets_prompts_of_one_length():
    model, widths = make("llama"), []

    def forget_the_padding(module: Any, args: Any, kwargs: Any) -> Any:
        widths.append(kwargs["input_ids"].shape)
        return args, {**kwargs, "attention_mask": None, "position_ids": None}

    alone = [written(model, [prompt], GREEDY)[0] for prompt in prompts((3, 17, 5, 3))]
    model.register_forward_pre_hook(forget_the_padding, with_kwargs=True)
    assert written(model, prompts((3, 17, 5, 3)), GREEDY) == alone
    assert {tuple(width) for width in widths[4:] if width[1] > 1} == {(1, 17), (1, 5), (2, 3)}


def test_half_as_many_share_a_batch_where_memory_does_not_suffice():
    model, given, most = make("llama"), prompts(), []
    expected, told = written(model, given, GREEDY), []

    def full(module: Any, args: Any, kwargs: Any) -> None:
        rows, width = kwargs["input_ids"].shape
        if rows > 2 and (width == 1 or not most):
            most.append(rows)
            raise torch.OutOfMemoryError("no room")

    model.register_forward_pre_hook(full, with_kwargs=True)
    found = written(model, given, GREEDY, on_token=lambda *each: told.append(each[:2]))
    assert found == expected and len(most) > 1
    for position, ids in enumerate(found):  # tokens that are written again are told once
        assert [token for at, token in told if at == position] == ids
    model.register_forward_pre_hook(_no_room)
    with pytest.raises(torch.OutOfMemoryError):
        written(model, given[:1], GREEDY)


def _no_room(*_: object) -> None:
    raise torch.OutOfMemoryError("no room")


def test_tokens_are_told_as_they_come_and_an_answer_may_be_ended():
    model, given, told = make("llama"), prompts(), []
    whole = written(model, given, GREEDY)

    def on_token(position: int, token: int, scores_V: torch.Tensor) -> bool:
        assert scores_V.shape == (VOCABULARY,) and scores_V.argmax() == token
        told.append((position, token))
        return position == 1 and sum(at == 1 for at, _ in told) == 2

    assert written(model, given, GREEDY, on_token=on_token) == [
        ids[:2] if position == 1 else ids for position, ids in enumerate(whole)
    ]


def test_draws_are_of_the_seed_and_the_rows_number():
    model, (first, *_) = make("llama"), prompts()
    same = written(model, [first], SAMPLED, seed=1)
    assert written(model, [first], SAMPLED, seed=1) == same
    assert written(model, [first], SAMPLED, seed=2) != same
    assert written(model, [replace(first, row=99)], SAMPLED, seed=1) != same
    state = torch.get_rng_state()
    written(model, [first], SAMPLED)
    assert torch.equal(torch.get_rng_state(), state)


def test_tokens_are_drawn_as_often_as_their_shares_say():
    shares = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)
    draws = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000

    def counts(temperature: float, top_p: float = 1.0) -> list[int]:
        tokens = sampled(shares.log().expand(1000, -1), draws, of_each(temperature), of_each(top_p))
        return torch.bincount(tokens, minlength=4).tolist()

    assert counts(temperature=1.0) == [100, 400, 200, 300]
    assert counts(temperature=1.0, top_p=0.7) == [0, 571, 0, 429]
    assert counts(temperature=1.0, top_p=0.71) == [0, 444, 222, 333 + 1]
    assert counts(temperature=1e-3) == [0, 1000, 0, 0]
    squares = shares.square() / shares.square().sum()
    assert counts(temperature=0.5) == pytest.approx((squares[0] * 1000).tolist(), abs=1)


def of_each(value: float, count: int = 1000) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def test_each_row_has_its_own_way_of_choosing_tokens():
    scores = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    draws = torch.tensor([0.2, 0.9, 0.5, 0.7], dtype=torch.float64)
    temperature, top_p = draws + 0.1, draws
    alone = [
        sampled(*(x[i : i + 1] for x in (scores, draws, temperature, top_p))) for i in range(4)
    ]
    assert sampled(scores, draws, temperature, top_p).tolist() == [int(each) for each in alone]


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_answers_of_unlike_settings_are_as_each_would_be_alone(name: str):
    model, given = make(name), prompts()
    if model.config.is_encoder_decoder:  # its end would be forced where the longest answer ends
        model.generation_config.forced_eos_token_id = 99
    hows: list[tuple[dict[str, Any], Sequence[int]]] = [
        ({"max_new_tokens": 16}, STOP),
        ({"max_new_tokens": 9, "temperature": 1.5}, ()),
        ({"max_new_tokens": 5}, ()),
        ({"max_new_tokens": 12, "temperature": 0.7, "top_p": 0.5}, range(12, 60)),
        ({"max_new_tokens": 16, "temperature": 2.0}, range(60, 90)),
        ({"max_new_tokens": 3, "temperature": 1.0}, ()),
    ]
    ways = [
        Decoding(settings=GenerationConfig(**how), stop=frozenset(stop), seed=seed)
        for seed, (how, stop) in enumerate(hows)
    ]
    together = generate_each(model, given, ways, pad_token_id=PAD)
    assert together == [
        written(model, [prompt], way.settings, stop=[*way.stop], seed=way.seed)[0]
        for prompt, way in zip(given, ways, strict=True)
    ]
    assert [len(together[i]) for i in (1, 2, 5)] == [9, 5, 3]


def test_what_is_not_a_number_is_written_all_the_same():
    """By a trial that has diverged."""
    draws, ones = torch.tensor([0.1, 0.9]), torch.ones(2)
    tokens = sampled(torch.full((2, 5), torch.nan), draws, ones, ones)
    assert tokens.shape == (2,)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bart"])
def test_answers_end_where_the_context_does(name: str):
    model = make(name)
    long = [prompts([length])[0] for length in (CONTEXT - 3, CONTEXT - 1, 4)]
    settings = GenerationConfig(max_new_tokens=200)
    answers = written(model, long, settings, stop=())
    if model.config.is_encoder_decoder:
        assert [len(ids) for ids in answers] == [CONTEXT - 1] * 3
    else:
        assert [len(ids) for ids in answers] == [3, 1, CONTEXT - 4]
    with pytest.raises(InputError, match=r"row 10 has 65 tokens, and the model's context of 64"):
        written(model, prompts([CONTEXT + 1]), settings)


def test_how_a_models_own_configuration_searches_is_left_aside():
    model, (prompt, *_) = make("llama"), prompts()
    expected = written(model, [prompt], GREEDY)
    own = model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.num_beams = 5.0, 1, 3
    own.do_sample, own.temperature, own.top_k, own.min_length = True, 3.0, 5, 60
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert written(model, [prompt], GREEDY) == expected
    own.suppress_tokens = [expected[0][0]]  # of its vocabulary
    assert written(model, [prompt], GREEDY)[0][0] != expected[0][0]


def test_rows_of_like_lengths_share_a_batch(monkeypatch: pytest.MonkeyPatch):
    model, widths = make("llama"), []
    write = decoding.write

    def counted(model: Any, inputs: Any, *more: Any) -> Any:
        widths.append(tuple(inputs["input_ids"].shape))
        return write(model, inputs, *more)

    monkeypatch.setattr(decoding, "write", counted)
    written(model, prompts((3, 17, 5, 16)), GREEDY, max_tokens=-(-2 * 33 // decoding.CACHED))
    assert widths[2:] == [(2, 17), (2, 5)]
