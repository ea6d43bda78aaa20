"""Answers of a group's trials: written side by side, each is what its checkpoint writes alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from torch import Tensor

from trainables.engine.decoding import generate
from trainables.engine.distributed import World
from trainables.engine.group import TrialGroup
from trainables.evaluation.generation import Prompt
from trainables.metrics.config import GenerationConfig
from trainables.models.checkpoint import load_checkpoint

# PEFT asks for it when it loads
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

CPU, VOCABULARY, PAD = torch.device("cpu"), 100, 0
GREEDY = GenerationConfig(max_new_tokens=12)
SAMPLED = GenerationConfig(max_new_tokens=12, temperature=1.2, top_p=0.9)
STOP = (5, 6, 7, 8, 9, 10)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Trials that share a base."""

    method: str
    model: str
    trials: Sequence[dict[str, Any]] = ({}, {})
    options: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 3e-2
    dtype: torch.dtype = torch.float64

    def __str__(self) -> str:
        return "-".join([self.method, self.model, *self.options])


RANKS = ({"rank": 2}, {"rank": 5, "targets": "attention"}, {"rank": 3})
CASES = [
    Case(method="lora", model="llama", trials=RANKS),
    Case(method="lora", model="gpt2", trials=RANKS),
    Case(method="lora", model="opt", trials=RANKS),
    Case(method="lora", model="gpt-oss", trials=RANKS, dtype=torch.float32),
    Case(method="lora", model="t5-seq2seq", trials=RANKS),
    Case(method="lora", model="bart-seq2seq", trials=RANKS),
    Case(method="lora", model="llama", trials=RANKS, options={"use_dora": True}),
    Case(method="lora", model="llama", trials=RANKS, options={"ema_decay": 0.7}),
    Case(method="ia3", model="llama", learning_rate=0.3),
    Case(method="vera", model="llama", trials=({"rank": 8}, {"rank": 5}), learning_rate=0.3),
    Case(
        method="adalora",
        model="llama",
        trials=({"init_r": 4, "target_r": 2}, {"init_r": 6, "target_r": 3}),
    ),
    Case(method="adapter", model="llama", trials=({"bottleneck": 4}, {"bottleneck": 9})),
    Case(method="adapter", model="gpt2", options={"placement": "parallel"}),
    Case(method="prompt", model="llama", options={"virtual_tokens": 3}, learning_rate=0.5),
    Case(method="prompt", model="gpt2", options={"virtual_tokens": 3}, learning_rate=0.5),
    Case(method="prompt", model="t5-seq2seq", options={"virtual_tokens": 3}, learning_rate=0.5),
    Case(method="prefix", model="llama", options={"virtual_tokens": 3}, learning_rate=0.5),
    Case(method="prefix", model="opt", options={"virtual_tokens": 3}, learning_rate=0.5),
    Case(
        method="prefix",
        model="gpt-oss",
        options={"virtual_tokens": 3},
        learning_rate=0.5,
        dtype=torch.float32,
    ),
    Case(
        method="prefix",
        model="gpt2",
        options={"virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 6},
    ),
    Case(method="qlora", model="llama", trials=RANKS, dtype=torch.float32),
    Case(method="qlora", model="llama", trials=RANKS, options={"bits": 8}, dtype=torch.float32),
    Case(method="full", model="llama", trials=({},)),
    Case(method="full", model="t5-seq2seq", trials=({},), options={"ema_decay": 0.7}),
    Case(method="partial", model="gpt2", trials=({"layers": 1},)),
]


def prompts(lengths: Sequence[int] = (3, 14, 5, 9, 3)) -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [
        Prompt(ids=rng.integers(11, VOCABULARY, length).astype(np.int32), row=row)
        for row, length in enumerate(lengths)
    ]


@pytest.fixture(autouse=True)
def quiet() -> None:
    t.logging.set_verbosity_error()


def trained(lab: Any, case: Case, steps: int = 3, **group: Any) -> TrialGroup:
    """A group whose trials have learnt something, each something else."""
    found = lab.group(case.model, dtype=case.dtype, **group)
    for number, own in enumerate(case.trials):
        rate = case.learning_rate * (1 + number / 2)
        more = {"learning_rate": rate, "seed": number, "warmup_ratio": 0.0}
        found.join(f"t{number}", lab.params(case.method, **more, **case.options, **own))
    for _ in range(steps):
        found.step(found.trials)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_written_together_as_each_checkpoint_writes_alone(case: Case, lab: Any, tmp_path: Path):
    group, given = trained(lab, case), prompts()
    together = {
        settings: group.answers(group.trials, given, settings, STOP)
        for settings in (GREEDY, SAMPLED)
    }
    for trial in group.trials:
        assert group.answers([trial], given, GREEDY, STOP) == {trial: together[GREEDY][trial]}
        hp = group._members[trial].hyperparameters
        _, folder = lab.publish(group, tmp_path, trial)
        spec = lab.spec(case.model, quantisation=hp.options.quantisation, dtype=case.dtype)
        model = load_checkpoint(folder / "checkpoint", spec, CPU)
        for settings, answers in together.items():
            alone = [
                generate(model, [prompt], settings, stop=STOP, pad_token_id=PAD)[0]
                for prompt in given
            ]
            assert answers[trial] == alone
            assert generate(model, given, settings, stop=STOP, pad_token_id=PAD) == alone
    apart = {tuple(map(tuple, answers)) for answers in together[SAMPLED].values()}
    assert len(apart) == len(group.trials), "trials write the same"


ALONE = [case for case in CASES if case.method in ("lora", "prompt", "prefix", "adapter", "full")]


@pytest.mark.parametrize("case", ALONE, ids=str)
def test_training_goes_on_as_if_nothing_had_been_asked(case: Case, lab: Any, tmp_path: Path):
    saved = {}
    for asks in (False, True):
        group = trained(lab, case, steps=2, gradient_checkpointing=case.model == "llama")
        if asks:
            group.answers(group.trials, prompts(), SAMPLED, STOP)
        for _ in range(2):
            group.step(group.trials)
        if asks:
            group.answers(group.trials[:1], prompts(), GREEDY, STOP)
        for trial in group.trials:
            folder = tmp_path / str(asks) / trial
            published = lab.publish(group, folder, trial)
            saved[asks, trial] = [published]
    for trial in group.trials:
        lab.assert_same(saved[True, trial], saved[False, trial])


def test_averaged_weights_write_and_the_others_are_in_training_again(lab: Any):
    case = Case(method="lora", model="llama", options={"ema_decay": 0.99}, trials=({"rank": 2},))
    group, plain = (
        trained(lab, case),
        trained(lab, Case(method="lora", model="llama", trials=({"rank": 2},))),
    )
    before = {name: x.clone() for name, x in group._engine.training_weights("t0").items()}
    averaged = group.answers(["t0"], prompts(), GREEDY, STOP)
    assert averaged != plain.answers(["t0"], prompts(), GREEDY, STOP)
    after = group._engine.training_weights("t0")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_some_of_the_trials_in_any_order(lab: Any):
    group = trained(lab, Case(method="lora", model="llama", trials=RANKS))
    whole = group.answers(["t0", "t1", "t2"], prompts(), GREEDY, STOP)
    some = group.answers(["t2", "t0"], prompts(), GREEDY, STOP)
    assert list(some) == ["t2", "t0"] and some == {name: whole[name] for name in some}


def test_rows_of_a_trial_leave_when_they_have_ended(lab: Any):
    group = trained(lab, Case(method="lora", model="llama", trials=RANKS))
    sizes: list[int] = []
    hook = group._engine.base.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    answers = group.answers(group.trials, prompts(), SAMPLED, STOP)
    hook.remove()
    lengths = [len(ids) for each in answers.values() for ids in each]
    assert len(set(lengths)) > 1
    longest = max(lengths)
    assert sizes[-longest:] == [sum(length > step for length in lengths) for step in range(longest)]


def test_half_the_rows_and_then_half_the_trials_where_memory_does_not_suffice(lab: Any):
    group = trained(lab, Case(method="lora", model="llama", trials=RANKS))
    expected = group.answers(group.trials, prompts(), GREEDY, STOP)

    def full(module: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("no room")

    hook = group._engine.base.model.register_forward_pre_hook(full, with_kwargs=True)
    assert group.answers(group.trials, prompts(), GREEDY, STOP) == expected
    hook.remove()


class Other(World):
    """The workers of a slot, one after another: what each has is added up."""

    def __init__(self, rank: int, size: int, sums: list[Tensor]) -> None:
        super().__init__(rank=rank, size=size)
        object.__setattr__(self, "sums", sums)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self.sums.append(tensor.clone())  # pyright: ignore[reportAttributeAccessIssue]


def test_workers_share_the_prompts(lab: Any):
    group = trained(lab, Case(method="lora", model="llama", trials=RANKS))
    expected = group.answers(group.trials, prompts(), SAMPLED, STOP)
    sums: list[Tensor] = []
    for rank in range(2):
        group._world = Other(rank, 2, sums)
        own = group.answers(group.trials, prompts(), SAMPLED, STOP)
        written = [bool(ids) for ids in own["t0"]]
        assert sum(written) in (2, 3)
    whole = sum(sums).tolist()
    assert [[[x - 1 for x in ids if x] for ids in each] for each in whole] == list(
        expected.values()
    )


def test_in_half_precision(lab: Any):
    """Keys and values have the type of the arithmetic, the prefix that of the weights."""
    for method in ("lora", "prompt", "prefix"):
        case = Case(method=method, model="llama", dtype=torch.float32)
        group = trained(lab, case, autocast=torch.bfloat16)
        answers = group.answers(group.trials, prompts(), GREEDY, STOP)
        assert all(ids for each in answers.values() for ids in each)
