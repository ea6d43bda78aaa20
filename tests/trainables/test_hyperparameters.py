"""What one trial trains with: every mistake has its message, and nothing is rounded or clamped."""

import math

import pytest

from trainables.errors import InputError
from trainables.hyperparameters import (
    OPTIONS,
    FullOptions,
    Hyperparameters,
    LoraOptions,
    PartialOptions,
    QLoraOptions,
    cost_class,
    parse,
)

FULL = {"method": "full", "learning_rate": 1e-4, "batch_size": 8, "epochs": 3}
LORA = {**FULL, "method": "lora"}
PARTIAL = {**FULL, "method": "partial", "layers": 1}


def test_defaults():
    assert parse(FULL) == Hyperparameters(
        method="full",
        learning_rate=1e-4,
        batch_size=8,
        epochs=3.0,
        weight_decay=0.01,
        warmup_ratio=0.1,
        schedule="linear",
        max_grad_norm=1.0,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        seed=0,
        options=FullOptions(),
    )
    assert parse(LORA).options == LoraOptions(
        rank=8, alpha=16.0, dropout=0.0, targets="all-linear", rslora=False
    )
    assert parse(PARTIAL).options == PartialOptions(layers=1)


@pytest.mark.parametrize(
    ("params", "name", "value"),
    [
        ({**FULL, "batch_size": 16.0}, "batch_size", 16),
        ({**FULL, "seed": 7.0}, "seed", 7),
        ({**FULL, "epochs": 2}, "epochs", 2.0),
        ({**FULL, "learning_rate": 1}, "learning_rate", 1.0),
        ({**FULL, "epochs": 0.5}, "epochs", 0.5),
        ({**FULL, "weight_decay": 0}, "weight_decay", 0.0),
        ({**FULL, "max_grad_norm": 0}, "max_grad_norm", 0.0),
        ({**FULL, "warmup_ratio": 1}, "warmup_ratio", 1.0),
        ({**FULL, "beta1": 0}, "beta1", 0.0),
        ({**FULL, "schedule": "cosine"}, "schedule", "cosine"),
        ({**LORA, "rank": 4.0}, "rank", 4),
        ({**LORA, "alpha": 32}, "alpha", 32.0),
        ({**LORA, "targets": ["q_proj", "v_proj"]}, "targets", ("q_proj", "v_proj")),
        ({**LORA, "targets": "attention"}, "targets", "attention"),
        ({**LORA, "rslora": True}, "rslora", True),
        ({**LORA, "init_lora_weights": "pissa_niter_16"}, "init_lora_weights", "pissa_niter_16"),
        ({**LORA, "rank_pattern": ["q=1", ".*k=2"]}, "rank_pattern", ("q=1", ".*k=2")),
        ({**PARTIAL, "layers": 2.0}, "layers", 2),
        ({**PARTIAL, "layers": 0}, "layers", 0),
        ({**PARTIAL, "layers": None, "patterns": ["*.bias"]}, "patterns", ("*.bias",)),
        ({**PARTIAL, "layers": None, "train": "bias"}, "train", "bias"),
        ({**PARTIAL, "train": None}, "train", None),
    ],
)
def test_values_become_the_type_of_their_field_and_nothing_else(params, name, value):
    hp = parse(params)
    found = getattr(
        hp if name in FULL or name in Hyperparameters.__dataclass_fields__ else hp.options, name
    )
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", [1e-30, 3.3e-5, 0.123456789, 1e6])
def test_extreme_values_stay_what_they_are(value):
    hp = parse(
        {
            **LORA,
            "learning_rate": value,
            "epsilon": value,
            "weight_decay": value,
            "alpha": value,
            "epochs": value,
        }
    )
    assert (hp.learning_rate, hp.epsilon, hp.weight_decay, hp.options.alpha, hp.epochs) == (
        value,
    ) * 5


ONE_OF_THREE = (
    "method=partial: give one of layers (the last n), patterns (a list) and train (head, bias or "
    "norms)"
)
MISTAKES = [
    (
        {},
        "method: must be one of full, partial, lora, qlora, ia3, prompt, prefix, adapter, vera, adalora, got None",
    ),
    (
        {"method": "lroa"},
        "method: must be one of full, partial, lora, qlora, ia3, prompt, prefix, adapter, vera, adalora, got 'lroa'. Did you mean 'lora'?",
    ),
    (
        {"method": "qlorra"},
        "method: must be one of full, partial, lora, qlora, ia3, prompt, prefix, adapter, vera, adalora, got 'qlorra'. Did you mean 'qlora'?",
    ),
    (
        {"method": "IA3"},
        "method: must be one of full, partial, lora, qlora, ia3, prompt, prefix, adapter, vera, adalora, got 'IA3'. Did you mean 'ia3'?",
    ),
    (
        {"method": "best"},
        "method: must be one of full, partial, lora, qlora, ia3, prompt, prefix, adapter, vera, adalora, got 'best'",
    ),
    (
        {"method": ["lora"]},
        "method: must be one of full, partial, lora, qlora, ia3, prompt, prefix, adapter, vera, adalora, got ['lora']",
    ),
    (
        {"method": "full", "batch_size": 8, "epochs": 1},
        "learning_rate: not given; put it into search.space or into train",
    ),
    (
        {"method": "full", "learning_rate": 1e-3},
        "batch_size: not given; put it into search.space or into train",
    ),
    (
        {**FULL, "learning_rte": 1},
        "learning_rte: not a hyperparameter of method full. Did you mean 'learning_rate'?",
    ),
    (
        {**LORA, "method": "vera", "init_lora_weights": "pissa"},
        "init_lora_weights: not a hyperparameter of method vera. Allowed: learning_rate, batch_size, epochs, weight_decay, "
        "warmup_ratio, schedule, max_grad_norm, optimizer, beta1, beta2, epsilon, label_smoothing, loss_type, beta, class_weights, "
        "neftune_alpha, ema_decay, average_last, seed, rank, d_initial, dropout, targets.",
    ),
    ({**LORA, "rnk": 8}, "rnk: not a hyperparameter of method lora. Did you mean 'rank'?"),
    (
        {**FULL, "rank": 8},
        "rank: not a hyperparameter of method full. Allowed: learning_rate, batch_size, epochs, weight_decay, "
        "warmup_ratio, schedule, max_grad_norm, optimizer, beta1, beta2, epsilon, label_smoothing, loss_type, beta, class_weights, neftune_alpha, ema_decay, average_last, seed.",
    ),
    ({**FULL, "average_last": 1}, "average_last: must be 0 or at least 2, got 1"),
    ({**FULL, "average_last": -2}, "average_last: must be at least 0, got -2"),
    ({**FULL, "average_last": 2.5}, "average_last: must be a whole number, got 2.5"),
    (
        {**LORA, "average_last": 3, "ema_decay": 0.9},
        "average_last: must be 0 where ema_decay is not, got 3 and ema_decay 0.9: either averages the weights",
    ),
    # types
    ({**FULL, "batch_size": 8.5}, "batch_size: must be a whole number, got 8.5"),
    ({**FULL, "batch_size": "8"}, "batch_size: must be a whole number, got '8'"),
    ({**FULL, "batch_size": True}, "batch_size: must be a whole number, got True"),
    ({**FULL, "batch_size": math.inf}, "batch_size: must be a whole number, got inf"),
    ({**FULL, "batch_size": None}, "batch_size: must be a whole number, got None"),
    ({**FULL, "epochs": "three"}, "epochs: must be a number, got 'three'"),
    ({**FULL, "learning_rate": False}, "learning_rate: must be a number, got False"),
    ({**FULL, "learning_rate": [1e-3]}, "learning_rate: must be a number, got [0.001]"),
    ({**FULL, "seed": 0.5}, "seed: must be a whole number, got 0.5"),
    (
        {**FULL, "schedule": "cosin"},
        "schedule: must be one of linear, cosine, constant, got 'cosin'",
    ),
    ({**LORA, "rank": 8.5}, "rank: must be a whole number, got 8.5"),
    ({**LORA, "rslora": 1}, "rslora: must be true or false, got 1"),
    (
        {**LORA, "init_lora_weights": "pisa"},
        "init_lora_weights: must be true, pissa, pissa_niter_N (N iterations) or olora, got 'pisa'",
    ),
    (
        {**LORA, "init_lora_weights": False},
        "init_lora_weights: must be true, pissa, pissa_niter_N (N iterations) or olora, got false",
    ),
    (
        {**LORA, "init_lora_weights": 1},
        "init_lora_weights: must be true or false or a word, got 1",
    ),
    (
        {**LORA, "method": "qlora", "init_lora_weights": "olora"},
        "init_lora_weights: must be true over a quantised base, got 'olora'; with method: lora it may be",
    ),
    (
        {**LORA, "init_lora_weights": "pissa", "dropout": 0.1},
        "dropout: must be 0 with init_lora_weights: pissa, got 0.1",
    ),
    (
        {**LORA, "init_lora_weights": "pissa_niter_4", "freeze_a": True},
        "freeze_a: must be false with init_lora_weights: pissa_niter_4, got true",
    ),
    (
        {**FULL, "method": "adapter", "placement": "houlsbi"},
        "placement: must be one of pfeiffer, houlsby, parallel, got 'houlsbi'",
    ),
    (
        {**FULL, "method": "adapter", "activation": "swish"},
        "activation: must be one of relu, gelu, silu, tanh, got 'swish'",
    ),
    ({**FULL, "method": "adapter", "scale": 0}, "scale: must be above 0, got 0.0"),
    *(
        (
            {**LORA, "rank_pattern": ["v_proj=2", wrong]},
            "rank_pattern: must be a list of REGEX=NUMBER, a whole number above 0, such as q_proj=16, "
            f"got {wrong!r}",
        )
        for wrong in ("q_proj", "(q_proj=4", "q_proj=1.5", "q_proj=0", "=4", "")
    ),
    (
        {**LORA, "alpha_pattern": ["q_proj=-1"]},
        "alpha_pattern: must be a list of REGEX=NUMBER, a number above 0, such as q_proj=16, got "
        "'q_proj=-1'",
    ),
    (
        {**LORA, "rank_pattern": {"q_proj": 4}},
        "rank_pattern: must be a list of names, got {'q_proj': 4}",
    ),
    ({**LORA, "method": "vera", "rank": 0}, "rank: must be at least 1, got 0"),
    ({**LORA, "method": "vera", "d_initial": 0}, "d_initial: must be above 0, got 0.0"),
    ({**LORA, "method": "vera", "dropout": 1}, "dropout: must be in [0, 1), got 1.0"),
    (
        {**LORA, "method": "vera", "targets": "q_proj"},
        "targets: must be all-linear, attention or a list of module names, got 'q_proj'",
    ),
    ({**LORA, "use_dora": 1}, "use_dora: must be true or false, got 1"),
    ({**LORA, "rslora": "yes"}, "rslora: must be true or false, got 'yes'"),
    ({**LORA, "targets": 3}, "targets: must be a word or a list of names, got 3"),
    ({**LORA, "targets": ["q", 1]}, "targets: must be a word or a list of names, got ['q', 1]"),
    ({**PARTIAL, "layers": 1.5}, "layers: must be a whole number or null, got 1.5"),
    (
        {**PARTIAL, "layers": None, "patterns": "*.bias"},
        "patterns: must be a list of names, got '*.bias'",
    ),
    # ranges
    ({**FULL, "learning_rate": 0}, "learning_rate: must be above 0, got 0.0"),
    ({**FULL, "learning_rate": -1e-4}, "learning_rate: must be above 0, got -0.0001"),
    ({**FULL, "learning_rate": math.nan}, "learning_rate: must be above 0, got nan"),
    ({**FULL, "learning_rate": math.inf}, "learning_rate: must be above 0, got inf"),
    ({**FULL, "batch_size": 0}, "batch_size: must be at least 1, got 0"),
    ({**FULL, "epochs": 0}, "epochs: must be above 0, got 0.0"),
    ({**FULL, "weight_decay": -0.1}, "weight_decay: must be at least 0, got -0.1"),
    ({**FULL, "warmup_ratio": 1.5}, "warmup_ratio: must be at least 0 and at most 1, got 1.5"),
    ({**FULL, "warmup_ratio": -0.1}, "warmup_ratio: must be at least 0 and at most 1, got -0.1"),
    ({**FULL, "max_grad_norm": -1}, "max_grad_norm: must be at least 0, got -1.0"),
    ({**FULL, "epsilon": 0}, "epsilon: must be above 0, got 0.0"),
    ({**LORA, "loraplus_ratio": 0}, "loraplus_ratio: must be above 0, got 0.0"),
    ({**FULL, "method": "qlora", "bits": 3}, "bits: must be one of 4, 8, got 3"),
    (
        {**FULL, "method": "prompt", "virtual_tokens": 0},
        "virtual_tokens: must be at least 1, got 0",
    ),
    ({**FULL, "method": "adapter", "bottleneck": 0}, "bottleneck: must be at least 1, got 0"),
    ({**LORA, "rank": 0}, "rank: must be at least 1, got 0"),
    ({**LORA, "alpha": 0}, "alpha: must be above 0, got 0.0"),
    ({**LORA, "alpha": math.nan}, "alpha: must be above 0, got nan"),
    ({**LORA, "dropout": 1}, "dropout: must be in [0, 1), got 1.0"),
    ({**LORA, "dropout": -0.1}, "dropout: must be in [0, 1), got -0.1"),
    (
        {**LORA, "targets": "atention"},
        "targets: must be all-linear, attention or a list of module names, got 'atention'",
    ),
    (
        {**PARTIAL, "layers": None, "train": "biases"},
        "train: must be one of head, bias, norms or null, got 'biases'",
    ),
    ({**PARTIAL, "train": "head"}, ONE_OF_THREE),
    ({**PARTIAL, "layers": -1}, "layers: must be 0 or more, got -1"),
    (
        {**PARTIAL, "patterns": ["*.bias"]},
        ONE_OF_THREE,
    ),
    (
        {**FULL, "method": "partial"},
        ONE_OF_THREE,
    ),
]


@pytest.mark.parametrize(
    ("params", "message"), MISTAKES, ids=[message[:60] for _, message in MISTAKES]
)
def test_every_mistake_has_its_message(params, message):
    with pytest.raises(InputError) as caught:
        parse(params)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta1", 1.0),
        ("beta2", 1.0),
        ("beta1", -0.1),
        ("seed", -1),
        ("seed", 10**13),
        ("alpha", math.inf),
        ("targets", []),
    ],
)
def test_what_would_only_fail_in_the_slot_is_refused_before(name, value):
    with pytest.raises(InputError, match=f"^{name}: must be ") as caught:
        parse({**LORA, name: value})
    assert "\n" not in str(caught.value)


def test_every_method_has_options():
    added = ["lora", "qlora", "ia3", "prompt", "prefix", "adapter", "vera", "adalora"]
    assert list(OPTIONS) == ["full", "partial", *added]
    assert parse({**FULL, "method": "qlora", "rank": 16}).options == QLoraOptions(rank=16, bits=4)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"rank": 1, "targets": "attention"}, {"rank": 16, "targets": "all-linear"}, False),
        ({"rank": 1}, {"rank": 16}, False),
        ({"rank": 8, "targets": "attention"}, {"rank": 8}, False),
        ({"rank": 8, "targets": ["q_proj"]}, {"rank": 8, "targets": ["q_proj", "v_proj"]}, False),
        ({"rank": 7}, {"rank": 9}, True),
        ({"rank": 8, "alpha": 4.0, "learning_rate": 1e-4, "epochs": 3}, {"rank": 8}, True),
        ({"batch_size": 16}, {"batch_size": 17}, True),
        ({"batch_size": 16}, {"batch_size": 32}, False),
        ({}, {"method": "qlora"}, False),
    ],
)
def test_a_cost_class_is_of_trials_that_take_about_as_much_memory_and_time(one, other, same):
    classes = {
        cost_class(
            parse({"method": "lora", "learning_rate": 1e-3, "batch_size": 8, "epochs": 1, **p})
        )
        for p in (one, other)
    }
    assert (len(classes) == 1) is same
