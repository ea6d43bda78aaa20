"""The contract that every fine-tuning method keeps, and what each says of wrong options."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import trainables.models.base
from trainables.engine.dropout import RowKeys
from trainables.engine.group import WEIGHTS_FILE
from trainables.engine.kernels import MicroBatch
from trainables.engine.shared import SharedBaseEngine
from trainables.errors import InputError
from trainables.evaluation.record import MeasuredEvaluation
from trainables.hyperparameters import OPTIONS, Hyperparameters, parse, sharing_key
from trainables.methods import ADDITIVE, REPLACING
from trainables.methods.adalora import Triplets
from trainables.methods.adapter import load_adapter
from trainables.methods.lora import target_modules

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)


PROJECTIONS = ("vera_A", "vera_B")  # drawn, the same for all trials, and never trained


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method over a model. A new method needs cases, and is then held to all that follows."""

    method: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-2  # at which four steps lower the loss

    @property
    def hyperparameters(self) -> Hyperparameters:
        """All rows at every step, at one rate; more steps than any test takes, so that state is saved."""
        constant = {"schedule": "constant", "warmup_ratio": 0.0, "batch_size": 18, "epochs": 50}
        return parse(
            {"method": self.method, "learning_rate": self.learning_rate, **constant, **self.options}
        )

    @property
    def quantisation(self) -> str:
        return self.hyperparameters.options.quantisation

    @property
    def from_base(self) -> bool:
        """Whether adapters start from the base's own weights, and the start is saved beside them."""
        return "init_lora_weights" in self.options

    @property
    def alone(self) -> bool:
        """Whether a trial needs a base for itself."""
        return self.method in REPLACING or "target_parameters" in self.options

    @property
    def made(self) -> bool:
        """Whether what leaves is made of what is trained, which the optimiser's state has."""
        return self.method == "adalora" or "prefix_projection" in self.options

    def trains(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What of a tensor in a checkpoint is trained: all but what the options freeze."""
        trained = torch.ones_like(tensor, dtype=torch.bool)
        if self.from_base and ".lora_A." in name:
            trained[len(tensor) // 2 :] = False
        if self.from_base and ".lora_B." in name:
            trained[:, tensor.shape[1] // 2 :] = False
        if "freeze_a" in self.options and ".lora_A." in name or name.endswith(PROJECTIONS):
            trained[:] = False
        return trained

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
    Case(
        method="partial", model="bert", options={"patterns": ("*.attention.*", "*LayerNorm.bias")}
    ),
    Case(method="partial", model="bert-classifier", options={"layers": 1}),
    Case(method="partial", model="llama", options={"layers": 1}),
    Case(method="partial", model="llama-tied", options={"layers": 0}),
    Case(method="partial", model="bert", options={"train": "head"}),
    Case(method="partial", model="bert-classifier", options={"train": "bias"}),
    Case(method="partial", model="gpt2", options={"train": "bias"}, learning_rate=3e-2),
    Case(method="partial", model="bert", options={"train": "norms"}),
    Case(method="partial", model="llama", options={"train": "norms"}, learning_rate=3e-2),
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
    Case(
        method="lora",
        model="llama",
        options={"targets": "attention", "rslora": True, "dropout": 0.1},
    ),
    Case(method="lora", model="llama-tied"),
    Case(method="lora", model="opt", options={"dropout": 0.1}),
    Case(method="lora", model="gpt2"),
    Case(method="lora", model="bert", options={"use_dora": True}),
    Case(method="lora", model="llama", options={"use_dora": True, "rslora": True, "rank": 4}),
    Case(method="lora", model="gpt2", options={"use_dora": True, "dropout": 0.1}),
    Case(method="lora", model="bert-classifier", options={"use_dora": True, "dropout": 0.1}),
    Case(
        method="lora",
        model="llama",
        options={"rank_pattern": ("q_proj=2", "layers.1.mlp.*=3"), "alpha_pattern": ("v_proj=3",)},
    ),
    Case(
        method="lora",
        model="bert",
        options={
            "init_lora_weights": "olora",
            "rslora": True,
            "alpha": 2,
            "rank_pattern": ("query=2",),
            "alpha_pattern": ("(query|key)=3",),
        },
        learning_rate=1e-3,
    ),
    Case(method="lora", model="bert", options={"init_lora_weights": "pissa"}),
    Case(
        method="lora",
        model="gpt2",
        options={"init_lora_weights": "pissa_niter_4", "rank": 4, "rslora": True},
    ),
    Case(method="lora", model="llama", options={"init_lora_weights": "olora", "alpha": 4}),
    Case(method="lora", model="llama", options={"init_lora_weights": "pissa", "use_dora": True}),
    Case(method="lora", model="bert", options={"freeze_a": True}, learning_rate=3e-2),
    Case(method="lora", model="llama", options={"freeze_a": True, "dropout": 0.1}),
    Case(method="qlora", model="llama"),
    Case(
        method="qlora", model="llama", options={"targets": ("q_proj", "down_proj"), "dropout": 0.1}
    ),
    Case(method="qlora", model="llama", options={"bits": 8}),
    Case(method="qlora", model="llama", options={"use_dora": True, "dropout": 0.1}),
    Case(method="qlora", model="llama", options={"use_dora": True, "bits": 8}),
    Case(method="qlora", model="bert"),
    Case(method="ia3", model="bert", learning_rate=3e-2),
    Case(method="ia3", model="llama", learning_rate=3e-2),
    Case(method="ia3", model="gpt2", learning_rate=3e-2),
    Case(method="prompt", model="bert", options={"virtual_tokens": 5}, learning_rate=3e-2),
    Case(method="prompt", model="llama", options={"virtual_tokens": 3}, learning_rate=3e-2),
    Case(method="prefix", model="bert", options={"virtual_tokens": 5}, learning_rate=3e-2),
    Case(
        method="prefix",
        model="llama",
        options={"virtual_tokens": 3, "init_weights": "zero"},
        learning_rate=3e-2,
    ),
    Case(
        method="prefix", model="roberta", options={"virtual_tokens": 4, "prefix_projection": True}
    ),
    Case(
        method="prefix",
        model="gpt2",
        options={"virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 6},
    ),
    Case(method="adapter", model="bert"),
    Case(method="adapter", model="llama", options={"bottleneck": 8}),
    Case(method="adapter", model="gpt2", options={"bottleneck": 4}),
    Case(method="adapter", model="bert", options={"placement": "houlsby", "activation": "gelu"}),
    Case(method="adapter", model="gpt2", options={"placement": "houlsby", "scale": 2.0}),
    Case(
        method="adapter",
        model="bert-classifier",
        options={"placement": "parallel", "scale": 4.0, "activation": "tanh"},
    ),
    Case(method="adapter", model="llama", options={"placement": "parallel", "activation": "silu"}),
]
CASES += [
    Case(method="vera", model="bert", options={"rank": 16}, learning_rate=3e-2),
    Case(
        method="vera",
        model="llama",
        options={"rank": 8, "dropout": 0.1, "targets": ("q_proj", "down_proj"), "d_initial": 1.0},
        learning_rate=1e-1,
    ),
    Case(method="vera", model="gpt2", options={"rank": 16}, learning_rate=3e-2),
]
CASES += [
    Case(method="full", model="t5-seq2seq"),
    Case(method="partial", model="t5-seq2seq", options={"layers": 1}),
    Case(
        method="partial",
        model="t5-seq2seq",
        options={"patterns": ("*EncDecAttention*",)},
        learning_rate=3e-2,
    ),
    Case(method="lora", model="t5-seq2seq"),
    Case(method="lora", model="t5-seq2seq", options={"use_dora": True, "dropout": 0.1}),
    Case(method="qlora", model="t5-seq2seq"),
    Case(method="ia3", model="t5-seq2seq", learning_rate=3e-2),
    Case(method="prompt", model="t5-seq2seq", options={"virtual_tokens": 3}, learning_rate=3e-2),
    Case(method="adapter", model="t5-seq2seq"),
    Case(method="vera", model="t5-seq2seq", options={"rank": 8}, learning_rate=3e-2),
    Case(method="full", model="bart-seq2seq"),
    Case(method="partial", model="bart-seq2seq", options={"train": "bias"}),
    Case(method="lora", model="bart-seq2seq", options={"targets": "attention", "dropout": 0.1}),
    Case(method="ia3", model="bart-seq2seq", learning_rate=3e-2),
    Case(method="prompt", model="bart-seq2seq", options={"virtual_tokens": 3}, learning_rate=3e-2),
    Case(method="adapter", model="bart-seq2seq", options={"placement": "houlsby"}),
]
CASES += [
    Case(method="adalora", model="bert"),
    Case(
        method="adalora",
        model="llama",
        options={
            "init_r": 5,
            "target_r": 2,
            "dropout": 0.1,
            "targets": "attention",
            "orth_reg_weight": 0.1,
            "tinit_ratio": 0.02,
        },
        learning_rate=3e-2,
    ),
    Case(method="adalora", model="gpt2", options={"init_r": 4, "target_r": 1}, learning_rate=3e-2),
]
CASES += [
    Case(
        method="lora",
        model="mixtral",
        options={"targets": (), "target_parameters": ("gate_up_proj", "down_proj"), "rank": 2},
    ),
    Case(
        method="lora",
        model="gpt-oss",
        options={
            "targets": "attention",
            "target_parameters": ("experts.down_proj", "experts.gate_up_proj"),
            "rslora": True,
            "rank": 3,
        },
    ),
    Case(
        method="lora",
        model="mixtral",
        options={"target_parameters": ("mlp.experts.down_proj",), "freeze_a": True},
        learning_rate=3e-2,
    ),
]
ADDED = [case for case in CASES if case.method in ADDITIVE]
SHARED = [case for case in ADDED if not case.alone]
OTHER_AT_FIRST = ("prompt", "prefix")  # virtual tokens change what the base gives from the start
# whose values at the start are those of the base, or the same for all
OF_THE_BASE = ("lora_magnitude_vector", *PROJECTIONS)
NOT_IN_PEFT = {"adapter": load_adapter}  # how a user loads what PEFT does not know


def test_every_method_is_in_the_contract():
    assert not ADDITIVE.keys() & REPLACING.keys()
    assert {case.method for case in CASES} == ADDITIVE.keys() | REPLACING.keys() == OPTIONS.keys()


def test_trials_that_share_a_base_have_one_sharing_key():
    """What a slot may group (told without torch) is what the methods say of their bases."""
    for case in CASES:
        found = sharing_key(case.hyperparameters)
        if case.alone:
            assert found is None
        else:
            quantisation = "plain" if case.quantisation == "none" else case.quantisation
            assert found.split(",")[0] == quantisation


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(params=ADDED, ids=str)
def added(request):
    return request.param


@pytest.fixture(params=SHARED, ids=str)
def shared(request):
    return request.param


def plain_base(lab, case, folder, dtype=torch.float32):
    """The frozen base as the group loaded it, with the head of the checkpoint in `folder`."""
    base = lab.base(case.model, quantisation=case.quantisation, dtype=dtype)
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if base.in_head(name):
                parameter.copy_(saved_as(saved_weights(folder), name))
    return base.model


def saved_as(weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The parameter `name` of the model in a checkpoint, where it may have a prefix."""
    (found,) = (tensor for key, tensor in weights.items() if f".{key}".endswith(f".{name}"))
    return found


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


# --- trained, saved, loaded ---


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A case before and after four steps: evaluations, where they were published, logits in eval mode."""

    case: Case
    before: MeasuredEvaluation
    start: Path
    start_logits: torch.Tensor
    after: MeasuredEvaluation
    folder: Path
    logits: torch.Tensor


@pytest.fixture(scope="module", params=CASES, ids=str)
def grown(request, lab, tmp_path_factory):
    case, folder = request.param, tmp_path_factory.mktemp("grown")
    group = lab.group(case.model, evaluate_every=1)
    group.join("t", case.hyperparameters)
    before, start = lab.publish(group, folder)
    start_logits = lab.logits_aboard(case.model, group, "t")
    for _ in range(4):
        group.step(["t"])
    after, saved = lab.publish(group, folder)
    logits = lab.logits_aboard(case.model, group, "t")
    return Grown(
        case=case,
        before=before,
        start=start,
        start_logits=start_logits,
        after=after,
        folder=saved,
        logits=logits,
    )


def test_what_joins_equals_the_base(lab, grown):
    """Before its first step a trial gives what the frozen base gives, under the head that the trial drew."""
    base = plain_base(lab, grown.case, grown.start / "checkpoint")
    expected = lab.logits(grown.case.model, base)
    if grown.case.from_base:  # what is added and taken off again differs by rounding
        lab.assert_close({"logits": grown.start_logits}, {"logits": expected}, 1e-5)
        return
    same = torch.equal(grown.start_logits, expected)
    assert same == (grown.case.method not in OTHER_AT_FIRST)


def test_steps_lower_the_loss(grown):
    assert grown.after.probe_loss < grown.before.probe_loss - 0.01
    assert grown.after.train_loss != grown.after.probe_loss


def test_saved_and_loaded_gives_the_same_bits(lab, grown, tmp_path):
    """In a slot that has not seen the trial: logits, losses, weights and moments."""
    case = grown.case
    group = lab.group(case.model, evaluate_every=1, seed=1)
    group.join("t", case.hyperparameters, grown.folder)
    assert torch.equal(lab.logits_aboard(case.model, group, "t"), grown.logits)
    again, folder = lab.publish(group, tmp_path)
    assert again.losses.tobytes() == grown.after.losses.tobytes()
    assert (again.val_loss, again.step) == (grown.after.val_loss, grown.after.step)
    mine, expected = lab.tensors(folder), lab.tensors(grown.folder)
    assert mine.keys() == expected.keys() and len(mine) > 0
    assert [name for name in mine if not torch.equal(mine[name], expected[name])] == []


def test_plain_libraries_load_what_is_saved(lab, grown):
    case, folder = grown.case, grown.folder / "checkpoint"
    assert not list(folder.rglob("*.bin"))
    model = (
        with_added(lab, case, folder) if case.method in ADDITIVE else lab.plain(case.model, folder)
    )
    tolerance = 1e-6 if case.quantisation == "none" else 1e-5
    lab.assert_close({"logits": lab.logits(case.model, model)}, {"logits": grown.logits}, tolerance)


def with_added(
    lab, case: Case, folder: Path, dtype: torch.dtype = torch.float32, **more: Any
) -> nn.Module:
    """What a user gets from transformers and PEFT."""
    quantised = {}
    if case.quantisation != "none":
        spec = lab.spec(case.model, quantisation=case.quantisation)
        kept = trainables.models.quantisation.unquantised(spec, spec.config())
        quantised = {
            "quantization_config": trainables.models.quantisation.quantization(
                case.quantisation, torch.device("cpu"), kept
            )
        }
    base = lab.plain(case.model, dtype=dtype, **quantised)
    trainables.models.quantisation.keep_rows_apart(
        base
    )  # the fast path of some CPUs computes in bfloat16
    return NOT_IN_PEFT.get(case.method, peft.PeftModel.from_pretrained)(base, folder, **more).eval()


def test_all_that_is_trained_is_saved_moves_and_is_counted(grown):
    """And has moments: every trained parameter got a gradient."""
    weights, start = (
        saved_weights(folder / "checkpoint") for folder in (grown.folder, grown.start)
    )
    moments = load_file(grown.folder / "training_state.safetensors")
    own = {n: moments.pop(n) for n in list(moments) if n.startswith("weights/")}
    if grown.case.made:
        before = load_file(grown.start / "training_state.safetensors")
        start, weights = (
            {n.removeprefix("weights/"): x for n, x in each.items() if n.startswith("weights/")}
            for each in (before, own)
        )
    else:
        assert not own
    importance = {n: moments.pop(n) for n in list(moments) if n.split("/")[0] in Triplets.state}
    assert len(importance) == (2 * len([n for n in own if ".lora_" in n]))
    assert all(each.any() for each in importance.values())
    trained = {name.removeprefix("exp_avg/") for name in moments if name.startswith("exp_avg/")}
    assert moments.keys() == {
        f"{twin}/{name}" for twin in ("exp_avg", "exp_avg_sq") for name in trained
    }
    assert all(moment.any() for moment in moments.values())
    assert weights.keys() == start.keys() and trained <= weights.keys()
    moved = {name for name in weights if not torch.equal(weights[name], start[name])}
    masks = {name: grown.case.trains(name, x) for name, x in weights.items()}
    if grown.case.method in ADDITIVE:
        assert trained == {name for name, mask in masks.items() if mask.any()}
    assert moved == trained
    for name, moment in moments.items():
        assert not moment[~masks[name.partition("/")[2]]].any(), name
    for name, mask in masks.items():
        assert torch.equal(weights[name][~mask], start[name][~mask]), name
    assert grown.after.trainable_parameters == sum(int(masks[name].sum()) for name in trained)


def test_every_trained_parameter_gets_a_gradient_and_no_other(lab, case):
    """Weights of the base have gradients only where the method trains them: the rest is neither computed nor kept."""
    group = lab.group(case.model)
    group.join("t", case.hyperparameters)
    for _ in range(2):  # the gradient of a low-rank A is zero until its B has moved
        group.step(["t"])
    for name, parameter in lab.bases[-1].model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        if parameter.grad is not None:
            assert case.method in REPLACING, name
            assert parameter.grad.abs().max() > 0
    if case.method in REPLACING:
        assert any(parameter.requires_grad for parameter in lab.bases[-1].model.parameters())


def test_the_head_is_always_trained(lab, grown):
    base = lab.base(grown.case.model, quantisation=grown.case.quantisation)
    if lab.task(grown.case.model).name == "classification":
        assert base.head
    weights, start = (
        saved_weights(folder / "checkpoint") for folder in (grown.folder, grown.start)
    )
    for name, _ in base.model.named_parameters():
        if base.in_head(name):
            assert not torch.equal(saved_as(weights, name), saved_as(start, name))


def test_the_seed_draws_what_a_trial_adds(lab, shared, tmp_path):
    """Two trials of one seed start equal, whoever else is in the group; another seed draws other values."""
    group = lab.group(shared.model)
    for trial, seed in {"a": 0, "b": 1, "c": 0}.items():
        group.join(trial, replace(shared.hyperparameters, seed=seed))
        group.save(trial, tmp_path / trial)
    a, b, c = (load_file(tmp_path / trial / "checkpoint" / WEIGHTS_FILE) for trial in "abc")
    assert a.keys() == b.keys() == c.keys()
    assert all(torch.equal(a[name], c[name]) for name in a)
    base = lab.base(shared.model, quantisation=shared.quantisation)
    of_the_base = (*OF_THE_BASE, *((".weight",) if shared.from_base else ()))
    for name in a:
        drawn = len(a[name].unique()) > 1 and not (
            base.in_head(name.removeprefix("base_model.model.")) or name.endswith(of_the_base)
        )
        assert not (drawn and torch.equal(a[name], b[name])), name


# --- trials that share a base ---


def test_company_changes_no_result(lab, shared, tmp_path):
    """With others of the method and LoRA of another shape; in float64, but for quantised bases."""
    hp = replace(
        shared.hyperparameters, batch_size=5, epochs=1, epsilon=1e-4
    )  # Adam divides rounding errors by it
    bits = {"none": {}, "nf4": {"bits": 4}, "int8": {"bits": 8}}[shared.quantisation]
    lora = lab.params(
        "qlora" if bits else "lora",
        rank=3,
        dropout=0.2,
        targets="attention",
        seed=2,
        batch_size=6,
        **bits,
    )
    trials = {"before": replace(hp, seed=1, batch_size=3, learning_rate=hp.learning_rate / 2)}
    if sharing_key(lora) == sharing_key(hp):
        trials["lora"] = lora
    trials |= {"t": hp, "after": replace(hp, seed=3, batch_size=7, epochs=2)}
    dtype, tolerance = (
        (torch.float64, 1e-10) if shared.quantisation == "none" else (torch.float32, 1e-5)
    )
    settings = {"dtype": dtype, "evaluate_every": 8}
    alone = lab.together(lab.group(shared.model, **settings), tmp_path / "alone", {"t": hp})
    together = lab.together(
        lab.group(shared.model, **settings), tmp_path / "together", trials, joins={"after": 2}
    )
    lab.assert_alike(together["t"], alone["t"], tolerance)


@pytest.mark.parametrize(
    "case",
    # without dropout; where PEFT's names are those of modules
    [
        c
        for c in ADDED
        if c.method in ("lora", "ia3", "vera")
        and c.model in ("bert", "llama", "llama-tied", "mixtral", "gpt-oss")
    ],
    ids=str,
)
def test_gradients_are_those_of_peft(lab, case, tmp_path):
    """At the start and after steps, in float64: PEFT computes the same function of the weights."""
    others = {"bert": "bert-no-dropout", "mixtral": "mixtral-eager", "gpt-oss": "gpt-oss-eager"}
    model = others.get(case.model, case.model)
    case = replace(
        case,
        model=model,
        options={**case.options, **({} if case.method == "ia3" else {"dropout": 0.0})},
    )
    hp = replace(case.hyperparameters, max_grad_norm=0.0, beta1=0.0)
    group = lab.group(model, dtype=torch.float64)
    group.join("t", hp)
    for steps in range(3):
        group.save("t", tmp_path / f"before-{steps}")
        group.step(["t"])
        group.save("t", tmp_path / f"after-{steps}")
        module = with_added(
            lab,
            case,
            tmp_path / f"before-{steps}" / "checkpoint",
            dtype=torch.float64,
            is_trainable=True,
        )
        batch, labels = lab.batch(model, range(18))
        logits = module.train()(**batch).logits
        if logits.ndim == 2:
            loss = nn.functional.cross_entropy(logits, labels)
        else:
            logits = logits[:, -labels.shape[1] :]
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
        loss.backward()
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        gradients |= {n: x for n, x in module.state_dict().items() if "base_model.vera_" in n}
        expected = peft.get_peft_model_state_dict(
            module, state_dict=gradients, save_embedding_layers=False
        )
        moments = load_file(tmp_path / f"after-{steps}" / "training_state.safetensors")
        found = {
            name.removeprefix("exp_avg/"): x
            for name, x in moments.items()
            if name.startswith("exp_avg/")
        }
        masks = {name: case.trains(name, x) for name, x in expected.items()}
        expected = {name: x * masks[name] for name, x in expected.items() if masks[name].any()}
        lab.assert_close(found, expected, 1e-10)


# --- the base is given back ---


def portrait(model: nn.Module) -> tuple[list[tuple[str, type]], dict[str, torch.Tensor]]:
    return (
        [(name, type(module)) for name, module in model.named_modules()],
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
    )


def hooks(model: nn.Module) -> int:
    own = (m for m in model.modules() if not m._forward_hooks_with_kwargs)
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in own)


def assert_pristine(model: nn.Module, before: tuple[list, dict], hooks_before: int = 0) -> None:
    tree, weights = portrait(model)
    assert tree == before[0]
    assert weights.keys() == before[1].keys()
    assert [name for name in weights if not torch.equal(weights[name], before[1][name])] == []
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert hooks(model) == hooks_before
    assert not any("forward" in vars(module) for module in model.modules())


def board(lab, group, case, steps=3):
    hp = replace(
        case.hyperparameters, batch_size=4, seed=3
    )  # so that a head drawn by the base is another
    group.join("t", hp)
    for _ in range(steps):
        group.step(["t"])
    group.evaluate(["t"])
    group.leave("t")


def test_the_base_is_given_back_bit_for_bit(lab, case):
    group, bases, hp = lab.group(case.model), lab.bases, case.hyperparameters
    group.untuned_results(case.method, hp.options)
    model = bases[-1].model
    before, logits, hooks_before = portrait(model), lab.logits(case.model, model), hooks(model)
    for _ in range(2):
        board(lab, group, case)
        assert bases[-1].model is model, "the slot must stay warm"
        assert_pristine(model, before, hooks_before)
        assert torch.equal(lab.logits(case.model, model), logits)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_methods_after_one_another_give_the_base_back(lab, gradient_checkpointing):
    group = lab.group("bert", gradient_checkpointing=gradient_checkpointing)
    group.untuned_results("full")
    model = lab.bases[-1].model
    before = portrait(model)
    cases = [case for case in CASES if case.model == "bert" and case.quantisation == "none"]
    for each in [*cases, *reversed(cases)]:
        board(lab, group, each, steps=2)
        assert_pristine(model, before)


def test_a_stack_alone_leaves_no_trace_on_its_base(lab, added):
    """Without the group: what a trial adds acts while it is in the group, and is gone when it has left."""
    base, hp = lab.base(added.model, quantisation=added.quantisation), added.hyperparameters
    before, logits = portrait(base.model), lab.logits(added.model, base.model)
    keys = RowKeys()
    engine = SharedBaseEngine(base, keys, compute=None, device=torch.device("cpu"))
    engine.join("t", ADDITIVE[added.method].plan(base, hp.options))
    batch, labels = lab.batch(added.model)
    keys.set(0, 0, torch.arange(len(labels)))
    engine.forward(
        batch, MicroBatch.of([0] * len(labels), torch.device("cpu"))
    ).logits.sum().backward()
    with torch.no_grad():
        own = engine.weights("t")
        if added.made:
            own = {n: x for n, x in engine.moments("t").items() if n.startswith("weights/")}
        for weight in own.values():
            weight.add_(0.1)
    group_logits = engine.forward(
        batch, MicroBatch.of([0] * len(labels), torch.device("cpu"))
    ).logits
    assert not torch.equal(group_logits[:, -1], logits[:, -1])
    engine.leave("t")
    assert_pristine(base.model, before)
    assert torch.equal(lab.logits(added.model, base.model), logits)


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
        (
            "lora",
            "llama",
            {"targets": ("lm_head",)},
            "targets: no linear layer is called 'lm_head'; this model has ",
        ),
        (
            "lora",
            "bert",
            {"targets": ("classifier",)},
            "targets: no linear layer is called 'classifier'; ",
        ),
        (
            "lora",
            "llama",
            {"rank_pattern": ("v_proj=2", "query=4")},
            "rank_pattern: 'query' fits the name of no layer that is adapted",
        ),
        ("partial", "bert", {"layers": 3}, "layers: must be at most the model's 2 layers, got 3"),
        (
            "partial",
            "bert",
            {"patterns": ("bert.*", "*.q_proj.*")},
            "patterns: '*.q_proj.*' matches no parameter of the model, "
            "whose first is 'bert.embeddings.word_embeddings.weight'",
        ),
        (
            "partial",
            "llama",
            {"train": "bias"},
            "train: LlamaForCausalLM has no bias to train beside its head; choose head or norms, or "
            "give layers",
        ),
    ],
)
def test_wrong_options_are_one_line(lab, method, model, options, message):
    group = lab.group(model)
    with pytest.raises(InputError) as caught:
        group.join("t", lab.params(method, **options))
    assert group.trials == []
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "attention"),
    [
        ("bert", {"query", "key", "value", "attention.output.dense"}),
        ("distilbert", {"q_lin", "k_lin", "v_lin", "out_lin"}),
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("opt", {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ("gpt2", {"attn.c_attn", "attn.c_proj"}),
    ],
)
def test_attention_means_the_projections_of_attention_alone(lab, model, attention):
    chosen = target_modules(lab.base(model), "attention")
    assert {next((a for a in attention if name.endswith(a)), name) for name in chosen} == attention
    assert len(chosen) == 2 * len(attention)


# --- bitsandbytes on CPUs with AVX512-BF16 (see keep_rows_apart) ---


def adapters_after_two_steps(lab, folder: Path, *, evaluate_first: bool) -> dict[str, torch.Tensor]:
    group = lab.group("llama-wide", evaluate_every=1)
    group.join("t", lab.params("qlora", max_grad_norm=0.0))
    if evaluate_first:
        group.evaluate(["t"])
    group.step(["t"])
    group.step(["t"])
    _, saved = lab.publish(group, folder)
    return lab.tensors(saved)


def test_an_evaluation_leaves_the_gradients_of_qlora_as_they_are(lab, tmp_path):
    """Weights and moments after two steps, with and without an evaluation before them."""
    expected = adapters_after_two_steps(lab, tmp_path / "without", evaluate_first=False)
    found = adapters_after_two_steps(lab, tmp_path / "with", evaluate_first=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.filterwarnings(
    "ignore:bitsandbytes.*an autograd kernel was not registered:UserWarning"
)
def test_the_guard_against_lost_gradients_is_needed(lab, tmp_path, monkeypatch):
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes repacks weights only on CPUs with AVX512-BF16")
    expected = adapters_after_two_steps(lab, tmp_path / "guarded", evaluate_first=True)
    monkeypatch.setattr(trainables.models.loading, "keep_rows_apart", lambda model: None)
    unguarded = type(lab)(tmp_path)  # with no base loaded yet
    found = adapters_after_two_steps(unguarded, tmp_path / "unguarded", evaluate_first=True)
    moments = {name: x for name, x in found.items() if "exp_avg/" in name}
    apart = max(
        float((x - expected[name]).abs().max() / expected[name].abs().max())
        for name, x in moments.items()
    )
    assert apart > 0.5, "bitsandbytes keeps the gradients by itself now: keep_rows_apart can go"
