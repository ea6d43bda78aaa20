import random
import re
from pathlib import Path

import pytest

import search_spaces
from search_spaces import Choice, Int, LogUniform, Uniform, load_space

FILES = sorted(Path(search_spaces.__file__).parent.glob("*.yaml"))
PRESETS = [path.stem for path in FILES]

COMMON = {
    "method",
    "learning_rate",
    "batch_size",
    "epochs",
    "weight_decay",
    "warmup_ratio",
    "schedule",
    "max_grad_norm",
}
OWN = {
    "full": set(),
    "partial": {"layers"},
    "lora": {"rank", "alpha", "dropout", "targets", "rslora"},
    "qlora": {"rank", "alpha", "dropout", "targets", "rslora"},
    "adapter": {"bottleneck"},
    "ia3": set(),
    "prompt": {"virtual_tokens"},
    "prefix": {"virtual_tokens"},
    "adalora": {"init_r", "target_r", "targets"},
}
HIGHEST_RATE = {
    "ia3": 0.05,
    "prompt": 0.5,
    "prefix": 0.05,
}  # few numbers, each of which must move far
SOURCE = re.compile(r"\b(19|20)\d\d\b|Hugging Face|\w+/[\w-]+")


def draw(name, domain):
    match domain:
        case LogUniform() | Uniform():
            return random.uniform(domain.low, domain.high)
        case Int():
            return random.randrange(domain.low, domain.high + 1, domain.step)
        case Choice():
            return random.choice(domain.values)


def learning_rates(preset: str) -> dict[str, LogUniform]:
    """Each method's learning rate domain, as a suggest meets it."""
    found = {}
    for _ in range(50):
        asked = {}

        def suggest(name, domain, asked=asked):
            asked[name] = domain
            return draw(name, domain)

        method = load_space(preset).sample(suggest)["method"]
        found[method] = next(
            domain for name, domain in asked.items() if name.endswith("learning_rate")
        )
    return found


def test_the_presets_are_there():
    assert PRESETS == [
        "encoder",
        "encoder_additive",
        "encoder_small",
        "gpt2",
        "llm_additive",
        "llm_lora",
        "llm_qlora",
        "llm_small",
        "seq2seq",
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_configurations_hold_what_the_methods_take_and_can_be_tried_first(preset):
    random.seed(0)
    space = load_space(preset)
    assert space.size() is None
    for _ in range(50):
        drawn = {}

        def suggest(name, domain, drawn=drawn):
            value = drawn[name] = draw(name, domain)
            assert domain.match(value) == value
            return value

        params = space.sample(suggest)
        assert COMMON <= set(params) <= COMMON | OWN[params["method"]]
        assert space.encode(params) == drawn
        assert 0 < params["learning_rate"] < HIGHEST_RATE.get(params["method"], 0.01)
        assert params["schedule"] in ("linear", "cosine", "constant")
        assert 0 <= params["warmup_ratio"] <= 0.1
        for whole in {
            "batch_size",
            "epochs",
            "layers",
            "rank",
            "alpha",
            "bottleneck",
            "virtual_tokens",
            "init_r",
            "target_r",
        } & set(params):
            assert type(params[whole]) is int and params[whole] >= 1


@pytest.mark.parametrize("path", FILES, ids=PRESETS)
def test_every_value_stands_under_a_comment_with_its_source(path):
    comment = ""
    for line in path.read_text().splitlines():
        text = line.strip()
        if text.startswith("#"):
            comment += text
        elif text and not text.endswith(":") and not text.startswith("method:"):
            assert SOURCE.search(comment), f"{path.name}: no source above {text!r}"
            comment = ""
        else:
            comment = ""


@pytest.mark.parametrize("preset", ["encoder_additive", "llm_additive"])
def test_what_trains_fewer_numbers_has_higher_learning_rates(preset):
    random.seed(0)
    rates = learning_rates(preset)
    assert rates.keys() == {"lora", "adalora", "adapter", "ia3", "prompt", "prefix"}
    middle = {method: (domain.low * domain.high) ** 0.5 for method, domain in rates.items()}
    assert max(middle["lora"], middle["adapter"]) < middle["ia3"] < middle["prompt"]


@pytest.mark.parametrize("preset", PRESETS)
def test_full_fine_tuning_has_lower_learning_rates_than_lora(preset):
    random.seed(0)
    rates = learning_rates(preset)
    if "full" not in rates:
        assert preset in ("encoder_additive", "llm_additive", "llm_lora", "llm_qlora")
        return
    full, partial, lora = rates["full"], rates["partial"], rates["lora"]
    assert full.low < lora.low and full.high < lora.high
    assert full.low <= partial.low <= lora.low and full.high <= partial.high <= lora.high
    # The middle of LoRA's range is about ten times that of full fine-tuning (Schulman et al. 2025).
    assert 5 < (lora.low * lora.high / full.low / full.high) ** 0.5 < 20
