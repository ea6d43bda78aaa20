"""What a micro-batch and a trial take, against shapes that are counted by hand and micro-batches that are profiled."""

import json
import time
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import sweeps.run.plan
from sweeps.config.loading import load
from trainables.engine.dropout import RowKeys, replace_dropout
from trainables.engine.memory import GB, MemoryEstimate, estimate, gpu_table
from trainables.errors import InputError
from trainables.hyperparameters import parse
from trainables.methods import REPLACING
from trainables.models.base import BaseModel
from trainables.models.config import ModelConfig
from trainables.models.files import load_model_config
from trainables.rehearsal.peak import Peak
from trainables.tasks import TASKS

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

CAUSAL, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
CODE_LLAMA = {  # config.json of codellama/CodeLlama-7b-hf, as far as shapes go
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32016,
}
WIDTH, LAYERS, VOCABULARY, ROWS, TOKENS = 64, 3, 300, 4, 64
SHAPES: dict[str, Any] = {
    "llama": transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=172,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        use_cache=False,
    ),
    "bert": transformers.BertConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    ),
    "gpt2": transformers.GPT2Config(
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        vocab_size=VOCABULARY,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=1,
    ),
}
# parameters by hand: of the backbone's linear layers, of its norms and biases, of all embeddings
LLAMA_LINEAR = LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 2 + 3 * WIDTH * 172)
LLAMA_REST = 2 * VOCABULARY * WIDTH + (2 * LAYERS + 1) * WIDTH


def hyperparameters(method: str = "lora", **options: Any) -> Any:
    return parse({"method": method, "learning_rate": 1e-4, "batch_size": 4, "epochs": 1, **options})


def of(
    name: str = "llama", method: str = "lora", options: Any = None, **settings: Any
) -> MemoryEstimate:
    """The estimate for one of the small shapes, in float32 unless `settings` say else."""
    defaults: dict[str, Any] = {
        "dtype_bytes": 4,
        "compute_bytes": 4,
        "quantisation": "none",
        "gradient_checkpointing": False,
    }
    return estimate(
        SHAPES[name],
        CLASSIFIER if name == "bert" else CAUSAL,
        hyperparameters(method, **(options or {})),
        max_tokens=ROWS * TOKENS,
        **{**defaults, **settings},
    )


# --- weights ---


def test_the_base_is_counted_exactly_without_loading_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CODE_LLAMA))
    config = load_model_config(ModelConfig(name=str(tmp_path)))
    settings = {"max_tokens": 4096, "compute_bytes": 2, "gradient_checkpointing": True}
    started = time.process_time()  # of this process: what else the machine does is not counted
    found = estimate(
        config, CAUSAL, hyperparameters(rank=64), dtype_bytes=2, quantisation="none", **settings
    )
    assert time.process_time() - started < 10
    assert found.base == 2 * 6_738_546_688
    # rank 64 at q, k, v, o (4096 to 4096), gate, up and down (4096 to 11008, and back) of 32 layers
    assert found.per_trial == 18 * 32 * 64 * (4 * (4096 + 4096) + 3 * (4096 + 11008))


@pytest.mark.parametrize(
    ("quantisation", "settings", "expected"),
    [
        ("none", {"dtype_bytes": 4}, 4 * (LLAMA_LINEAR + LLAMA_REST)),
        ("none", {"dtype_bytes": 2}, 2 * (LLAMA_LINEAR + LLAMA_REST)),
        # 4 bits, one 8-bit scale for 64 weights, one 32-bit scale for 256 scales
        (
            "nf4",
            {"dtype_bytes": 2},
            int(LLAMA_LINEAR * (4 + 8 / 64 + 32 / 64 / 256) / 8) + 2 * LLAMA_REST,
        ),
        # one byte; a 32-bit scale for each output of q, k, v, o, gate, up and down
        (
            "int8",
            {"dtype_bytes": 2},
            LLAMA_LINEAR + 4 * LAYERS * (4 * WIDTH + 2 * 172) + 2 * LLAMA_REST,
        ),
    ],
)
def test_bytes_of_the_base(quantisation, settings, expected):
    assert of(quantisation=quantisation, **settings).base == expected


def test_tied_embeddings_count_once():
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(SHAPES["gpt2"])
    assert model.lm_head.weight is model.transformer.wte.weight
    assert of("gpt2").base == 4 * sum(parameter.numel() for parameter in model.parameters())


# --- a trial ---


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("targets", ["all-linear", "attention"])
def test_a_trial_has_what_peft_trains(name, targets):
    """float32: the weight, its gradient and two moments."""
    model, _ = adapted(name, targets=targets)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert of(name, options={"rank": 8, "targets": targets}).per_trial == 16 * trained


def test_a_trial_also_has_its_weights_in_the_type_of_the_arithmetic():
    assert of(compute_bytes=2).per_trial == of(compute_bytes=4).per_trial * 18 / 16


def test_a_trial_that_trains_the_base_has_gradients_and_moments():
    everything = LLAMA_LINEAR + LLAMA_REST
    assert of(method="full").per_trial == 12 * everything
    assert of(method="full", dtype_bytes=2, compute_bytes=2).per_trial == 6 * everything
    # the last layer, and the head
    partial = of(method="partial", options={"layers": 1}).per_trial
    assert partial == 12 * (LLAMA_LINEAR // LAYERS + 2 * WIDTH + VOCABULARY * WIDTH)


# --- a micro-batch ---


def adapted(
    name: str, targets: str = "all-linear", dtype: torch.dtype = torch.float32, dropout: float = 0.0
) -> tuple[Any, Any]:
    """LoRA by PEFT over a frozen base, and the task that it has."""
    config = SHAPES[name]
    auto_class = (
        transformers.AutoModelForSequenceClassification
        if name == "bert"
        else transformers.AutoModelForCausalLM
    )
    model = auto_class.from_config(config).to(dtype)
    linear = {
        "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "bert": [
            "query",
            "key",
            "value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
            "pooler.dense",
        ],
        "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    }[name]
    if targets == "attention":
        linear = linear[: {"llama": 4, "bert": 4, "gpt2": 2}[name]]
    modules = [
        path
        for path, _ in model.named_modules()
        if path.endswith(tuple(f".{end}" for end in linear))
    ]
    config = peft.LoraConfig(
        r=8,
        lora_dropout=dropout,
        target_modules=modules,
        fan_in_fan_out=name == "gpt2",
        modules_to_save=["classifier"] if name == "bert" else None,
        task_type="SEQ_CLS" if name == "bert" else "CAUSAL_LM",
    )
    return peft.get_peft_model(model, config), TASKS[
        "classification" if name == "bert" else "causal_lm"
    ]


def measured(model: Any, task: Any, autocast: bool = False) -> int:
    """Bytes that a forward and backward pass takes at its peak."""
    model.train()
    ids = torch.randint(1, VOCABULARY, (ROWS, TOKENS))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    labels = torch.zeros(ROWS, dtype=torch.int64) if task.name == "classification" else ids
    with Peak() as live:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids, attention_mask=mask).logits
        nll, _ = task.row_losses(logits, labels)
        nll.sum().backward()
    return live.bytes


FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True], ids=["kept", "recomputed"])
def test_the_estimate_is_between_three_quarters_and_three_halves_of_what_a_pass_takes(
    name, autocast, gradient_checkpointing
):
    # a frozen language model is held in bfloat16 where the arithmetic is, a classifier in float32
    dtype = BFLOAT16 if autocast and name != "bert" else FLOAT32
    model, task = adapted(name, dtype=dtype)
    if gradient_checkpointing:
        model.base_model.model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    found = of(
        name,
        dtype_bytes=dtype.itemsize,
        compute_bytes=2 if autocast else 4,
        gradient_checkpointing=gradient_checkpointing,
    )
    assert 0.75 < found.activations / measured(model, task, autocast) < 1.5


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_pass_with_dropout_before_the_adapters(recomputed):
    """Recomputed in bfloat16, the integers that masks are drawn from are the most of it."""
    model, task = adapted("llama", dropout=0.1, dtype=BFLOAT16 if recomputed else FLOAT32)
    keys = RowKeys()
    replace_dropout(model, keys)
    keys.set(0, 0, torch.arange(ROWS))
    size = 2 if recomputed else 4
    if recomputed:
        model.base_model.model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    found = of(
        options={"dropout": 0.1},
        dtype_bytes=size,
        compute_bytes=size,
        gradient_checkpointing=recomputed,
    ).activations
    assert 0.85 < found / measured(model, task, autocast=recomputed) < 1.15


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_a_start_beside_an_adapter_takes_as_much_as_twice_the_rank(start):
    """And is known from shapes alone."""
    found = of(options={"rank": 4, "init_lora_weights": start, "use_dora": True})
    assert found.per_trial == of(options={"rank": 8, "use_dora": True}).per_trial


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("model", ["bert-no-dropout", "llama"])
def test_what_magnitudes_keep_beside_an_adapter(lab, model, dropout):
    """Of DoRA the estimate is as near as it is of LoRA."""
    shares = []
    for use_dora in (False, True):
        group = lab.group(model, max_tokens=200)
        hp = lab.params("lora", use_dora=use_dora, dropout=dropout, batch_size=18)
        group.join("t", hp)
        bytes_taken, tokens = group.memory_of_a_micro_batch("t")
        spec = lab.spec(model)
        found = estimate(
            spec.config(),
            spec.auto_class,
            hp,
            dtype_bytes=4,
            compute_bytes=4,
            quantisation="none",
            max_tokens=tokens,
            gradient_checkpointing=False,
        )
        shares.append(bytes_taken / found.activations)
    assert 0.85 < shares[1] / shares[0] < 1.15


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("full", {}),
        ("partial", {"layers": 1}),
        ("partial", {"train": "bias"}),
        ("partial", {"train": "norms"}),
    ],
    ids=["full", "layers", "bias", "norms"],
)
@pytest.mark.parametrize("name", SHAPES)
def test_a_pass_that_trains_the_base(name, method, options):
    if (name, options) == ("llama", {"train": "bias"}):
        pytest.skip("it has no biases")
    config, auto_class = SHAPES[name], CLASSIFIER if name == "bert" else CAUSAL
    model = getattr(transformers, auto_class).from_config(config)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head = ("classifier",) if name == "bert" else ()
    base = BaseModel(model=model, quantisation="none", dtype=FLOAT32, head=head)
    REPLACING[method].attach(base, hyperparameters(method, **options).options)
    took = measured(model, TASKS["classification" if name == "bert" else "causal_lm"])
    # wider than above: measured with the gradients of the weights, and the estimate of a single layer is generous
    assert 0.75 < of(name, method, options).activations / took < 1.6


EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_experts_with_a_trials_own_in_them_are_as_large_as_they(lab, gradient_checkpointing):
    """Beside what a LoRA of the other layers takes: those of all layers, or of one, and a gradient."""
    config = lab.spec("mixtral").config()

    def found(**options: Any) -> MemoryEstimate:
        return estimate(
            config,
            CAUSAL,
            hyperparameters(rank=2, **options),
            dtype_bytes=2,
            compute_bytes=2,
            quantisation="none",
            max_tokens=64,
            gradient_checkpointing=gradient_checkpointing,
        )

    plain, both = found(), found(target_parameters=EXPERTS)
    up, down = 4 * 32 * 32, 4 * 32 * 16  # of four experts
    layers = 1 if gradient_checkpointing else 2
    assert both.activations - plain.activations == 2 * (layers * (up + down) + up)
    assert both.base == plain.base
    # A and B of each expert in both layers: weight, gradient, two moments, and the weight in 2 bytes
    assert both.per_trial - plain.per_trial == 18 * 2 * 4 * 2 * ((32 + 32) + (32 + 16))
    assert plain.shared and not both.shared
    assert both.trials(80 * GB, 16) == 1


def test_a_pass_over_experts(lab):
    shares = []
    for options in ({}, {"target_parameters": EXPERTS}, {"target_parameters": EXPERTS, "rank": 1}):
        group, hp = lab.group("mixtral"), lab.params("lora", **options)
        group.join("t", hp)
        took, tokens = group.memory_of_a_micro_batch("t")
        found = estimate(
            lab.spec("mixtral").config(),
            CAUSAL,
            hp,
            dtype_bytes=4,
            compute_bytes=4,
            quantisation="none",
            max_tokens=tokens,
            gradient_checkpointing=False,
        )
        shares.append(took / found.activations)
    assert all(0.6 < share < 1.5 for share in shares), shares


def test_a_pass_grows_with_its_tokens_and_not_with_the_loss_of_all():
    small, large = (
        estimate(
            transformers.LlamaConfig(
                vocab_size=1 << 20, hidden_size=64, num_hidden_layers=1, intermediate_size=64
            ),
            CAUSAL,
            hyperparameters(),
            dtype_bytes=2,
            compute_bytes=2,
            quantisation="none",
            max_tokens=tokens,
            gradient_checkpointing=False,
        ).activations
        for tokens in (1 << 10, 1 << 11)
    )
    # logits of 2^25 elements at once: 2 bytes each, and three times 4 for the loss
    assert small - (large - small) == (1 << 25) * (2 + 12)


def test_a_model_that_keeps_its_attention_matrices_has_no_estimate():
    config = transformers.DebertaV2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    with pytest.raises(InputError) as error:
        estimate(
            config,
            CLASSIFIER,
            hyperparameters(),
            dtype_bytes=4,
            compute_bytes=2,
            quantisation="none",
            max_tokens=512,
            gradient_checkpointing=False,
        )
    assert str(error.value) == (
        "DebertaV2ForSequenceClassification has no fused attention; what its attention takes depends on the rows"
    )


# --- devices ---


def test_trials_that_fit():
    found = MemoryEstimate(base=10 * GB, activations=5 * GB, per_trial=1 * GB, shared=True)
    assert [found.trials(size * GB, 16) for size in (16, 17, 18, 20, 24, 40, 80)] == [
        0,
        0,
        1,
        3,
        6,
        16,
        16,
    ]
    assert found.trials(80 * GB, 4) == 4
    alone = MemoryEstimate(base=10 * GB, activations=5 * GB, per_trial=1 * GB, shared=False)
    assert [alone.trials(size * GB, 16) for size in (16, 18, 80)] == [0, 1, 1]


def test_the_table_of_gpus():
    found = MemoryEstimate(base=13 * GB, activations=5 * GB, per_trial=2 * GB, shared=True)
    assert (
        gpu_table(found, 16)
        == "T4 16 GB 0, L4/A10G 24 GB 1, A100 40 GB 9, A100/H100 80 GB 16, H200 141 GB 16"
    )


# --- what `check` says ---


def lines_of(config):
    return sweeps.run.estimates.memory_lines(config, config.draws())


@pytest.fixture
def sweep(tmp_path):
    """The Code Llama sweep, its model a folder that holds shapes alone."""

    def make(*overrides: str, **shape: Any) -> Any:
        (tmp_path / "config.json").write_text(json.dumps({**CODE_LLAMA, **shape}))
        shipped = Path(sweeps.run.plan.__file__).parents[1] / "codellama_text_to_sql.yaml"
        return load(shipped, [f"model.name={tmp_path}", *overrides])

    return make


HEADER = "Memory on GPUs (an estimate; a slot measures it), micro-batches of 4096 tokens:"


def test_check_says_how_many_trials_fit(sweep):
    header, line = lines_of(sweep())
    assert header == HEADER
    assert line.startswith("  qlora at rank 64 over nf4: base 3.6 GiB, a micro-batch ")
    assert " GiB, a trial 2.7 GiB; trials at once: T4 16 GB " in line


def test_check_says_of_how_many_tokens_a_pass_is(sweep):
    (header, line), (small, other) = (
        lines_of(sweep(f"train.max_tokens={n}")) for n in (4096, 1024)
    )
    assert header == HEADER and small == HEADER.replace("4096", "1024")
    assert line.split(", a micro-batch ")[0] == other.split(", a micro-batch ")[0] and line != other


def test_check_has_a_line_for_each_method_that_shares_at_its_largest_size(sweep):
    """One header for all; what lies unquantised says so by saying nothing, and small sizes are in MiB."""
    space = (
        "{method: {full: {}, lora: {rank: {choice: [16, 8]}}, prompt: {virtual_tokens: {choice: [4, 20]}}}, "
        "learning_rate: 1e-4, batch_size: 8, epochs: 1}"
    )
    header, *lines = lines_of(sweep(f"search.space={space}", "search.initial=[]"))
    assert header == HEADER and len(lines) == 2
    assert lines[0].startswith("  lora at rank 16: base 12.6 GiB, a micro-batch ")
    assert lines[1].startswith("  prompt at virtual tokens 20: base 12.6 GiB, a micro-batch ")
    # 20 vectors of 4096: weight, gradient and two moments in 4 bytes, and the weight in 2
    assert ", a trial 1.4 MiB; " in lines[1]


def test_check_tells_trials_with_experts_apart(sweep):
    space = (
        "{method: lora, rank: 8, target_parameters: {choice: [[], [down_proj]]}, learning_rate: 1e-4,"
        " batch_size: 8, epochs: 1}"
    )
    _, *lines = lines_of(sweep(f"search.space={space}", "search.initial=[]"))
    assert [line.split(":")[0] for line in lines] == [
        "  lora at rank 8",
        "  no estimate for lora at rank 8 with experts",
    ]
    assert "no experts' weights are called 'down_proj'; this model has none" in lines[1]


def test_check_counts_no_more_trials_than_a_slot_may_take(sweep):
    _, line = lines_of(sweep("cluster.trials_per_slot=3"))
    assert "H200 141 GB 3" in line and line.endswith(" 3")


def test_check_has_no_line_for_methods_that_do_not_share(sweep):
    space = "{method: full, learning_rate: 1e-5, batch_size: 8, epochs: 1}"
    assert lines_of(sweep(f"search.space={space}", "search.initial=[]")) == []


def test_check_goes_on_without_an_estimate(sweep):
    header, line = lines_of(sweep(model_type="distilbert"))
    assert header == HEADER
    assert line.startswith(
        "  no estimate for qlora at rank 64 over nf4: Unrecognized configuration class"
    )
