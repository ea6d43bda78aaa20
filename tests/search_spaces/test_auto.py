"""Ranges that follow from task, model and data hold what has been published of such."""

import random

import pytest

from search_spaces import Setting, SpaceError, auto_space, load_space, rules
from trainables.hyperparameters import parse

BERT_BASE = Setting(classifies=True, width=768, layers=12, rows=8500)


def rates(setting, method):
    return load_space(auto_space(setting, {"method": method})).domains["learning_rate"]


@pytest.mark.parametrize(
    "width, rate",
    [
        (768, 2e-5),  # Devlin et al. 2019, BERT-base
        (768, 5e-5),
        (1024, 1e-5),  # Liu et al. 2019, RoBERTa-large
        (1024, 3e-5),
        (512, 3e-5),  # Turc et al. 2019, BERT-Small
        (512, 1e-4),
    ],
)
def test_rates_of_classifiers(width, rate):
    found = rates(Setting(classifies=True, width=width, layers=12), "full")
    assert found.low <= rate <= found.high


@pytest.mark.parametrize(
    "method, width, rate",
    [
        ("full", 4096, 2e-5),  # Taori et al. 2023, Alpaca 7B
        ("full", 768, 6.25e-5),  # Radford et al. 2018, GPT
        ("qlora", 4096, 2e-4),  # Dettmers et al. 2023, 7B
        ("lora", 4096, 3e-4),  # alpaca-lora, 7B
        ("lora", 2048, 4.9e-4),  # Schulman et al. 2025, Llama 1B
    ],
)
def test_rates_of_language_models(method, width, rate):
    found = rates(Setting(classifies=False, width=width, layers=32), method)
    assert found.low <= rate <= found.high


@pytest.mark.parametrize(
    "method, width, rate",
    [
        ("full", 4096, 5e-7),  # Tunstall et al. 2023, Zephyr 7B; Ivison et al. 2023, Tulu 2
        ("qlora", 4096, 5e-6),  # the recipe of Zephyr 7B with QLoRA
        ("lora", 4096, 1e-5),
        ("lora", 2048, 2e-5),
    ],
)
def test_rates_on_pairs(method, width, rate):
    setting = Setting(classifies=False, compares=True, width=width, layers=32, rows=10_000)
    found = rates(setting, method)
    assert found.low <= rate <= found.high
    space = load_space(auto_space(setting, {"method": method}))
    assert space.domains["beta"].low < 0.1 < space.domains["beta"].high
    assert setting.epochs == (1, 3)
    words = list(rules(setting, {}))
    assert "on pairs" in words[0] and words[-1].startswith("beta 0.01 to 0.5")


def test_the_first_guess_is_what_the_rules_say():
    setting = Setting(classifies=False, width=4096, layers=32, rows=52_000)
    first = load_space(auto_space(setting, {})).middle()
    assert first["method"] == "lora" and first["rank"] == 16 and first["batch_size"] == 16
    assert first["learning_rate"] == pytest.approx(5e-4 * (2000 / 4096) ** 0.781, rel=0.05)
    small = load_space(auto_space(BERT_BASE, {"method": "full"})).middle()
    assert small["learning_rate"] == pytest.approx(3e-5, rel=0.01)


@pytest.mark.parametrize(
    "rows, most", [(100, 20), (1_000, 15), (2_500, 10), (52_000, 3), (10**7, 2)]
)
def test_epochs_fall_with_the_rows(rows, most):
    low, high = Setting(classifies=True, width=768, layers=12, rows=rows).epochs
    assert high == most and 1 <= low < high


@pytest.mark.parametrize("rows, sizes", [(10, [1]), (100, [5]), (480, [16]), (640, [16, 32])])
def test_an_epoch_of_few_rows_has_some_steps(rows, sizes):
    assert Setting(classifies=True, width=768, layers=12, rows=rows).batch_sizes == sizes


def test_what_is_fixed_takes_the_place_of_what_would_vary():
    tree = auto_space(BERT_BASE, {"epochs": 3, "rank": 8, "weight_decay": 0.1})
    assert not {"epochs", "weight_decay"} & tree.keys()
    assert "rank" not in tree["method"]["lora"]
    assert "layers" in auto_space(BERT_BASE, {"method": "partial"})


def test_large_models_are_not_fine_tuned_whole_unless_one_says_so():
    large = Setting(classifies=False, width=4096, layers=32)
    assert list(auto_space(large, {})["method"]) == ["lora"]
    assert "rank" not in auto_space(large, {"method": "full"})


@pytest.mark.parametrize(
    "fixed, methods",
    [
        ({"optimizer": "muon"}, ["full"]),
        ({"optimizer": "lion"}, ["lora", "full"]),
        ({"method": "partial", "train": "bias"}, None),
        ({"method": "partial", "patterns": ["*bias*"]}, None),
        ({"method": "lora", "init_lora_weights": "pissa"}, None),
        ({"method": "lora", "freeze_a": True}, None),
    ],
)
def test_what_is_fixed_leaves_only_what_goes_with_it(fixed, methods):
    generator = random.Random(0)
    for width in (768, 4096):
        setting = Setting(classifies=True, width=width, layers=12, rows=8500)
        tree = auto_space(setting, fixed)
        if methods and width < 2048:
            assert list(tree["method"]) == methods
        space = load_space(tree)
        for _ in range(20):
            parse(fixed | space.sample(lambda key, domain: domain.draw(generator)))
        parse(fixed | space.middle())


def test_lions_rates_are_lower():
    adamw, lion = (auto_space(BERT_BASE, {"optimizer": name}) for name in ("adamw", "lion"))
    for method in ("lora", "full"):
        low, high = adamw["method"][method]["learning_rate"]["log_uniform"]
        found = lion["method"][method]["learning_rate"]["log_uniform"]
        assert found == pytest.approx([low / 5, high / 5], rel=0.05)
    assert any(
        "both times 0.2 for lion" in rule for rule in rules(BERT_BASE, {"optimizer": "lion"})
    )


def test_a_method_without_a_rule():
    with pytest.raises(SpaceError) as raised:
        auto_space(BERT_BASE, {"method": "qlorra"})
    assert str(raised.value) == (
        "search.space: auto has no rule for method qlorra, only for lora, full, partial, qlora; a preset or"
        " ranges of your own say what varies. Did you mean 'qlora'?"
    )


@pytest.mark.parametrize("classifies", [True, False])
@pytest.mark.parametrize("width, layers", [(2, 1), (64, 2), (768, 12), (8192, 80)])
@pytest.mark.parametrize("rows", [None, 1, 300, 10**6])
@pytest.mark.parametrize("method", [None, "lora", "full", "partial", "qlora"])
def test_every_configuration_can_be_trained(classifies, width, layers, rows, method):
    setting = Setting(classifies=classifies, width=width, layers=layers, rows=rows)
    fixed = {"method": method} if method else {}
    space, generator = load_space(auto_space(setting, fixed)), random.Random(0)
    for _ in range(20):
        parse(fixed | space.sample(lambda key, domain: domain.draw(generator)))
    parse(fixed | space.middle())
    assert len(list(rules(setting, fixed))) == (2 if rows is None else 3)
