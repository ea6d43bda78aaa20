"""The contract that every fine-tuning method keeps, and what each says of wrong options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import trainables.model
from trainables.errors import InputError
from trainables.hyperparameters import OPTIONS
from trainables.methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


@dataclass(frozen=True, kw_only=True)
class Case:
    method: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        return METHODS[self.method].variant

    def __str__(self) -> str:
        words = "-".join(f"{key}={value}" for key, value in self.options.items())
        return "-".join(filter(None, (self.method, self.model, words)))


CASES = [
    Case(method="full", model="bert"),
    Case(method="full", model="llama"),
    Case(method="full", model="llama-tied"),
    Case(method="full", model="bert-language-model"),
    Case(method="full", model="bert-classifier"),
    Case(method="partial", model="bert", options={"layers": 1}),
    Case(method="partial", model="bert", options={"layers": 0}),
    Case(method="partial", model="bert", options={"patterns": ("*.attention.*", "*LayerNorm.bias")}),
    Case(method="partial", model="bert-classifier", options={"layers": 1}),
    Case(method="partial", model="llama", options={"layers": 1}),
    Case(method="partial", model="llama-tied", options={"layers": 0}),
    Case(method="lora", model="bert"),
    Case(method="lora", model="bert", options={"targets": "attention", "rank": 2}),
    Case(method="lora", model="bert", options={"targets": ("query", "intermediate.dense")}),
    Case(method="lora", model="bert", options={"rslora": True, "rank": 4}),
    Case(method="lora", model="bert", options={"dropout": 0.1}),
    Case(method="lora", model="bert-language-model"),
    Case(method="lora", model="bert-classifier"),
    Case(method="lora", model="roberta"),
    Case(method="lora", model="distilbert", options={"targets": "attention"}),
    Case(method="lora", model="llama"),
    Case(method="lora", model="llama", options={"targets": "attention", "rslora": True, "dropout": 0.1}),
    Case(method="lora", model="llama-tied"),
    Case(method="qlora", model="llama"),
    Case(method="qlora", model="llama", options={"targets": ("q_proj", "down_proj"), "dropout": 0.1}),
    Case(method="qlora", model="bert"),
]


def test_every_method_is_in_the_contract():
    assert {case.method for case in CASES} == set(METHODS) == set(OPTIONS)


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


def attach(lab, case, seed=0):
    """A base, and the module that `case` trains over it; `seed` draws the new head and the adapters."""
    base = lab.base(case.model, variant=case.variant, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return base, METHODS[case.method].attach(base, OPTIONS[case.method](**case.options))


def train(lab, case, model, steps=4):
    """A few plain steps in training mode; what is left has other logits than what was there."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        lab.loss(case.model, model).backward()
        optimizer.step()
    model.eval()


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A case that was attached, trained and saved; logits and losses in eval mode."""

    case: Case
    base_logits: torch.Tensor
    attached_logits: torch.Tensor
    trained_logits: torch.Tensor
    attached_loss: float
    trained_loss: float
    folder: Path


@pytest.fixture(scope="module", params=CASES, ids=str)
def grown(request, lab, tmp_path_factory):
    case, folder = request.param, tmp_path_factory.mktemp("grown") / "checkpoint"
    base_logits = lab.logits(case.model, lab.base(case.model, variant=case.variant).model)
    _, model = attach(lab, case)
    attached_logits, attached_loss = lab.logits(case.model, model.eval()), loss(lab, case, model)
    train(lab, case, model)
    METHODS[case.method].save(model, folder)
    return Grown(
        case=case,
        base_logits=base_logits,
        attached_logits=attached_logits,
        trained_logits=lab.logits(case.model, model),
        attached_loss=attached_loss,
        trained_loss=loss(lab, case, model),
        folder=folder,
    )


def loss(lab, case, model):
    with torch.no_grad():
        return float(lab.loss(case.model, model))


def test_what_is_attached_equals_the_base(grown):
    assert torch.equal(grown.attached_logits, grown.base_logits)


def test_steps_lower_the_loss(grown):
    assert grown.trained_loss < grown.attached_loss - 0.01


def test_saved_and_loaded_gives_the_same_bits(lab, grown):
    _, fresh = attach(lab, grown.case, seed=1)
    METHODS[grown.case.method].load(fresh, grown.folder)
    assert torch.equal(lab.logits(grown.case.model, fresh.eval()), grown.trained_logits)


def test_plain_libraries_load_what_is_saved(lab, grown):
    case = grown.case
    assert not list(grown.folder.rglob("*.bin"))
    if case.variant == "nf4":
        model = with_adapter(lab, case, grown.folder, quantization_config=nf4())
    elif case.method == "lora":
        model = with_adapter(lab, case, grown.folder)
    else:
        model = lab.plain(case.model, grown.folder)
    tolerance = 1e-5 if case.variant == "nf4" else 1e-6
    torch.testing.assert_close(lab.logits(case.model, model), grown.trained_logits, rtol=tolerance, atol=tolerance)


def with_adapter(lab, case: Case, folder: Path, **more: Any) -> nn.Module:
    from peft import PeftModel

    base = lab.plain(case.model, **more)
    trainables.model.keep_gradients_on_cpu(base)  # the fast path of some CPUs computes in bfloat16
    return PeftModel.from_pretrained(base, folder).eval()


def nf4() -> transformers.BitsAndBytesConfig:
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["classifier", "lm_head"],
    )


def test_every_trained_parameter_gets_a_gradient_and_no_other(lab, case):
    _, model = attach(lab, case)
    model.train()
    for _ in range(2):  # the gradient of a low-rank A is zero until its B has moved
        lab.loss(case.model, model).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    assert parameter.grad is not None
                    parameter -= 1e-2 * parameter.grad
    for parameter in model.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        if parameter.grad is not None:
            assert parameter.grad.abs().max() > 0


def test_the_head_is_always_trained(lab, case):
    base, model = attach(lab, case)
    if lab.task(case.model).name == "classification":
        assert base.head
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for head in base.head:
        assert any(f"{head}." in name for name in trained)


# --- the base is given back ---


def portrait(model: nn.Module) -> tuple[list[tuple[str, type]], dict[str, torch.Tensor]]:
    return (
        [(name, type(module)) for name, module in model.named_modules()],
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
    )


def assert_pristine(model: nn.Module, before: tuple[list, dict]) -> None:
    tree, weights = portrait(model)
    assert tree == before[0]
    assert weights.keys() == before[1].keys()
    assert [name for name in weights if not torch.equal(weights[name], before[1][name])] == []
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def board(lab, pack, case, steps=3):
    pack.join("t", lab.params(case.method, **case.options, seed=3))  # so that a head drawn by the base is another
    for _ in range(steps):
        pack.step(["t"])
    pack.evaluate(["t"])
    pack.leave("t")


def test_detached_base_is_the_old_base_bit_for_bit(lab, case):
    pack, bases = lab.pack(case.model), lab.bases
    pack.evaluate_base(case.method)
    model = bases[-1].model
    before, logits = portrait(model), lab.logits(case.model, model)
    for _ in range(2):
        board(lab, pack, case)
        assert bases[-1].model is model, "the slot must stay warm"
        assert_pristine(model, before)
        assert torch.equal(lab.logits(case.model, model), logits)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_methods_after_one_another_give_the_base_back(lab, gradient_checkpointing):
    pack = lab.pack("bert", gradient_checkpointing=gradient_checkpointing)
    pack.evaluate_base("full")
    model = lab.bases[-1].model
    before = portrait(model)
    cases = [case for case in CASES if case.model == "bert" and case.variant == "plain"]
    for each in [*cases, *reversed(cases)]:
        board(lab, pack, each, steps=2)
        assert_pristine(model, before)


def test_detach_alone_undoes_a_trained_adapter(lab):
    """Without the pack: the frozen base, its old head and its module tree."""
    for each in CASES:
        if each.method in ("lora", "qlora") and each.model in ("bert", "llama"):
            base = lab.base(each.model, variant=each.variant)
            before = portrait(base.model)
            model = METHODS[each.method].attach(base, OPTIONS[each.method](**each.options))
            train(lab, each, model)
            METHODS[each.method].detach(model, base)
            base.model.eval()
            assert_pristine(base.model, before)


# --- what users get wrong ---


@pytest.mark.parametrize(
    ("method", "model", "options", "message"),
    [
        (
            "lora",
            "bert",
            {"targets": ("query", "q_proj")},
            "targets: no linear layer is called 'q_proj'; this model has dense, key, query, value",
        ),
        (
            "lora",
            "llama",
            {"targets": ("query",)},
            "targets: no linear layer is called 'query'; "
            "this model has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
        ),
        ("lora", "llama", {"targets": ("lm_head",)}, "targets: no linear layer is called 'lm_head'; this model has "),
        ("lora", "bert", {"targets": ("classifier",)}, "targets: no linear layer is called 'classifier'; "),
        ("partial", "bert", {"layers": 3}, "layers: the model has 2 layers, got 3"),
        (
            "partial",
            "bert",
            {"patterns": ("bert.*", "*.q_proj.*")},
            "patterns: '*.q_proj.*' matches no parameter of the model, "
            "whose first is 'bert.embeddings.word_embeddings.weight'",
        ),
    ],
)
def test_wrong_options_are_one_line(lab, method, model, options, message):
    with pytest.raises(InputError) as caught:
        METHODS[method].attach(lab.base(model), OPTIONS[method](**options))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "attention"),
    [
        ("bert", {"query", "key", "value", "attention.output.dense"}),
        ("distilbert", {"q_lin", "k_lin", "v_lin", "out_lin"}),
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
def test_attention_means_the_projections_of_attention_alone(lab, model, attention):
    from trainables.methods.lora import target_modules

    chosen = target_modules(lab.base(model), "attention")
    assert {next((a for a in attention if name.endswith(a)), name) for name in chosen} == attention
    assert len(chosen) == 2 * len(attention)


# --- bitsandbytes on CPUs with AVX512-BF16 (see keep_gradients_on_cpu) ---


def adapters_after_two_steps(lab, folder: Path, *, evaluate_first: bool) -> dict[str, torch.Tensor]:
    pack = lab.pack("llama-wide", evaluate_every=1)
    pack.join("t", lab.params("qlora", max_grad_norm=0.0))
    if evaluate_first:
        pack.evaluate(["t"])
    pack.step(["t"])
    pack.step(["t"])
    _, saved = lab.publish(pack, folder)
    return lab.tensors(saved)


def gradients_survive_an_evaluation(lab, folder: Path) -> bool:
    expected = adapters_after_two_steps(lab, folder / "without", evaluate_first=False)
    found = adapters_after_two_steps(lab, folder / "with", evaluate_first=True)
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in found)


def test_an_evaluation_leaves_the_gradients_of_qlora_as_they_are(lab, tmp_path):
    """Weights and moments after two steps, with and without an evaluation before them."""
    assert gradients_survive_an_evaluation(lab, tmp_path)


@pytest.mark.filterwarnings("ignore:bitsandbytes.*an autograd kernel was not registered:UserWarning")
def test_the_guard_against_lost_gradients_is_needed(lab, tmp_path, monkeypatch):
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes repacks weights only on CPUs with AVX512-BF16")
    monkeypatch.setattr(trainables.model, "keep_gradients_on_cpu", lambda model: None)
    unguarded = type(lab)(tmp_path)  # with no base loaded yet
    survived = gradients_survive_an_evaluation(unguarded, tmp_path)
    assert not survived, "bitsandbytes keeps the gradients by itself now: keep_gradients_on_cpu can go"
