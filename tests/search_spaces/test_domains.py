import random
import re
from pathlib import Path

import pytest

from search_spaces import Choice, Int, LogUniform, Space, SpaceError, Uniform, load_space, load_tree

EXAMPLE = """
method:
  full:
    learning_rate: {log_uniform: [1e-5, 3e-4]}
  lora:
    learning_rate: {log_uniform: [1e-4, 3e-3]}
    rank: {choice: [4, 8, 16]}
    alpha: 2 * rank
    dropout: {uniform: [0.0, 0.1]}
batch_size: {choice: [16, 32]}
epochs: {int: [1, 4]}
weight_decay: 0.01
"""


@pytest.fixture
def example(tmp_path: Path) -> Space:
    (tmp_path / "space.yaml").write_text(EXAMPLE)
    return load_space("space.yaml", folder=tmp_path)


def answers(**given):
    """A suggest that answers from what is given, and keeps what it was asked."""

    def suggest(name, domain):
        suggest.asked[name] = domain
        return given[name.replace(".", "__")]

    suggest.asked = {}
    return suggest


def pick(name, domain):
    match domain:
        case LogUniform() | Uniform():
            return random.uniform(domain.low, domain.high)
        case Int():
            return random.randrange(domain.low, domain.high + 1, domain.step)
        case Choice():
            return random.choice(domain.values)


def test_sample_takes_one_branch_and_asks_only_for_what_is_in_it(example):
    suggest = answers(
        method="lora",
        lora__learning_rate=1e-3,
        lora__rank=8,
        lora__dropout=0.05,
        batch_size=16,
        epochs=3,
    )
    params = example.sample(suggest)
    assert list(params.items()) == [
        ("method", "lora"),
        ("learning_rate", 1e-3),
        ("rank", 8),
        ("alpha", 16),
        ("dropout", 0.05),
        ("batch_size", 16),
        ("epochs", 3),
        ("weight_decay", 0.01),
    ]
    assert isinstance(params["alpha"], int)
    assert suggest.asked == {
        "method": Choice(("full", "lora")),
        "lora.learning_rate": LogUniform(1e-4, 3e-3),
        "lora.rank": Choice((4, 8, 16)),
        "lora.dropout": Uniform(0.0, 0.1),
        "batch_size": Choice((16, 32)),
        "epochs": Int(1, 4),
    }
    full = example.sample(answers(method="full", full__learning_rate=1e-5, batch_size=32, epochs=1))
    assert list(full) == ["method", "learning_rate", "batch_size", "epochs", "weight_decay"]


def test_parameters_lists_what_varies(example):
    assert example.parameters == [
        ("method", "one of full, lora"),
        ("full.learning_rate", "log-uniform 1e-05 … 0.0003"),
        ("lora.learning_rate", "log-uniform 0.0001 … 0.003"),
        ("lora.rank", "one of 4, 8, 16"),
        ("lora.alpha", "= 2 * rank"),
        ("lora.dropout", "uniform 0.0 … 0.1"),
        ("batch_size", "one of 16, 32"),
        ("epochs", "int 1 … 4"),
        ("weight_decay", "fixed 0.01"),
    ]


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"int": [1, 64], "log": True}, "int 1 … 64 (log)"),
        ({"int": [0, 10], "step": 2}, "int 0 … 10 in steps of 2"),
        (
            {"choice": [None, True, 0.5, "a", ["q_proj", "v_proj"]]},
            "one of null, true, 0.5, a, [q_proj, v_proj]",
        ),
        ([], "fixed []"),
        (None, "fixed null"),
        ("all-linear", "fixed all-linear"),
        ("cosine", "fixed cosine"),
        ("1e-5", "fixed 1e-05"),
        ("2 ** 4", "fixed 16"),
    ],
)
def test_descriptions(tree, text):
    assert Space.from_dict({"x": tree}).parameters == [("x", text)]


def test_the_same_draws_come_back_from_encode(example):
    random.seed(0)
    for _ in range(100):
        drawn = {}

        def suggest(name, domain, drawn=drawn):
            return drawn.setdefault(name, pick(name, domain))

        params = example.sample(suggest)
        assert example.encode(params) == drawn
        assert example.sample(lambda name, domain, drawn=drawn: drawn[name]) == params


def test_branches_nest_and_stand_under_any_parameter():
    space = Space.from_dict(
        {
            "method": {
                "full": None,
                "lora": {
                    "init": {"pissa": {"steps": {"int": [1, 4]}}, "default": {}},
                    "rank": 8,
                    "cost": "rank * scale",
                },
            },
            "rslora": {True: {"scale": 2}, False: {"scale": {"choice": [1, 3]}}},
        }
    )
    params = space.sample(
        answers(
            method="lora", lora__init="pissa", lora__pissa__steps=2, rslora=False, false__scale=3
        )
    )
    assert params == {
        "method": "lora",
        "init": "pissa",
        "steps": 2,
        "rank": 8,
        "cost": 24,
        "rslora": False,
        "scale": 3,
    }
    assert space.encode(params) == {
        "method": "lora",
        "lora.init": "pissa",
        "lora.pissa.steps": 2,
        "rslora": False,
        "false.scale": 3,
    }
    # full alone, or lora with four numbers of steps or the default; each with true or one of two scales.
    assert space.size() == (1 + 4 + 1) * (1 + 2)


def test_size(example):
    assert example.size() is None
    assert (
        Space.from_dict(
            {"a": {"int": [0, 10], "step": 2}, "b": {"choice": [1, 2]}, "c": "a + b"}
        ).size()
        == 12
    )
    assert Space.from_dict({"a": 1}).size() == 1
    assert (
        Space.from_dict({"method": {"full": {"rate": {"uniform": [0, 1]}}, "lora": None}}).size()
        is None
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 * rank", 16),
        ("rank / 2", 4),
        ("rank / 3", 8 / 3),
        ("rank // 3", 2),
        ("-(rank + 1) - 1", -10),
        ("rank ** 2", 64),
        ("rank ** -1", 0.125),
        ("rank * 1.0", 8.0),
        ("rank * rate", 0.8),
        ("rate / rate", 1.0),
        ("rank", 8),
        ("targets", ["q", "v"]),
        ("rank-rate", 7.9),
        ("low-rank", "low-rank"),
        ("3 ** (5 * rank)", 12157665459056928801),
    ],
)
def test_tied_values(text, value):
    space = Space.from_dict({"x": text, "rank": 8, "rate": 0.1, "targets": ["q", "v"]})
    x = space.sample(pick)["x"]
    assert type(x) is type(value) and x == (
        pytest.approx(value) if isinstance(value, float) else value
    )


def test_a_tied_value_may_use_what_every_branch_sets_and_need_not_come_after_it():
    space = Space.from_dict(
        {"floor": "rate / 10", "method": {"a": {"rate": 1.0}, "b": {"rate": "2 * base"}}, "base": 2}
    )
    assert space.sample(answers(method="a")) == {
        "floor": 0.1,
        "method": "a",
        "rate": 1.0,
        "base": 2,
    }
    assert space.sample(answers(method="b"))["floor"] == 0.4


def test_branches_may_tie_a_pair_either_way_round():
    space = Space.from_dict(
        {"by": {"rate": {"r": 2, "n": "r * 3"}, "number": {"n": 6, "r": "n / 3"}}}
    )
    assert space.sample(answers(by="number")) == {"by": "number", "n": 6, "r": 2}


def test_values_tied_across_exclusive_branches_are_no_circle():
    space = Space.from_dict({"z": "x", "m": {"a": {"x": "w + 1", "w": 1}, "b": {"x": 3, "w": "z"}}})
    assert space.sample(answers(m="a")) == {"z": 2, "m": "a", "x": 2, "w": 1}
    assert space.sample(answers(m="b")) == {"z": 3, "m": "b", "x": 3, "w": 3}


def test_lists_are_handed_out_as_copies():
    space = Space.from_dict({"fixed": ["a"], "chosen": {"choice": [["b"], "c"]}})
    params = space.sample(answers(chosen=["b"]))
    params["fixed"].append("x"), params["chosen"].append("x")
    assert space.sample(answers(chosen=["b"])) == {"fixed": ["a"], "chosen": ["b"]}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "search.space: the space is empty; give at least one parameter"),
        ([1], "search.space: a space maps parameter names to what they may be, got [1]"),
        ({3: 1}, "search.space: parameter names are words of letters, digits and _, got 3"),
        ({"a.b": 1}, "search.space: parameter names are words of letters, digits and _, got 'a.b'"),
        (
            {"uniform": [0, 1]},
            "search.space: 'uniform' is a distribution and needs a parameter: NAME: {uniform: …}",
        ),
        (
            {"method": {"lora": {"choice": [4, 8]}, "full": {}}},
            "search.space.method.lora: 'choice' is a distribution and needs a parameter: NAME: {choice: …}",
        ),
        (
            {"x": float("nan")},
            "search.space.x: a fixed value is a finite scalar or a list of them, got nan",
        ),
        (
            {"x": [[1]]},
            "search.space.x: a fixed value is a finite scalar or a list of them, got [[1]]",
        ),
        (
            {"x": {}},
            "search.space.x: empty; give a distribution (log_uniform, uniform, int, choice) or branches",
        ),
        (
            {"x": {"log_unifrom": [1e-5, 1e-3]}},
            "search.space.x: unknown distribution 'log_unifrom'. Did you mean 'log_uniform'? "
            "Allowed: log_uniform, uniform, int, choice",
        ),
        (
            {"x": {"gamma": [0, 1]}},
            "search.space.x: unknown distribution 'gamma'. Allowed: log_uniform, uniform, int, choice",
        ),
        (
            {"x": {"int": [1, 2], "uniform": [0, 1]}},
            "search.space.x: one distribution only, got int, uniform",
        ),
        (
            {"x": {"uniform": [2, 1]}},
            "search.space.x: uniform needs low < high, got [2.0, 1.0]; a fixed value is written alone",
        ),
        (
            {"x": {"int": [4, 4]}},
            "search.space.x: int needs low < high, got [4, 4]; a fixed value is written alone",
        ),
        ({"x": {"log_uniform": [0, 1]}}, "search.space.x: log_uniform needs low > 0, got 0.0"),
        (
            {"x": {"log_uniform": [1, 2, 3]}},
            "search.space.x: log_uniform takes two bounds [low, high], got [1, 2, 3]",
        ),
        ({"x": {"uniform": 0.1}}, "search.space.x: uniform takes two bounds [low, high], got 0.1"),
        (
            {"x": {"uniform": ["0", 1]}},
            "search.space.x: uniform takes finite numbers as bounds, got '0'",
        ),
        (
            {"x": {"uniform": [0, True]}},
            "search.space.x: uniform takes finite numbers as bounds, got True",
        ),
        (
            {"x": {"uniform": [0, float("inf")]}},
            "search.space.x: uniform takes finite numbers as bounds, got inf",
        ),
        ({"x": {"int": [1, 2.5]}}, "search.space.x: int takes whole numbers as bounds, got 2.5"),
        ({"x": {"int": [0, 8], "log": True}}, "search.space.x: int with log needs low >= 1, got 0"),
        (
            {"x": {"int": [1, 8], "log": "yes"}},
            "search.space.x: int: log must be true or false, got yes",
        ),
        (
            {"x": {"int": [1, 9], "log": True, "step": 2}},
            "search.space.x: int takes log or step, not both",
        ),
        (
            {"x": {"int": [0, 8], "step": 0}},
            "search.space.x: int: step must be a whole number of at least 1, got 0",
        ),
        ({"x": {"int": [0, 9], "step": 2}}, "search.space.x: int: steps of 2 from 0 do not meet 9"),
        (
            {"x": {"int": [0, 8], "stpe": 2}},
            "search.space.x: unknown option 'stpe'. Did you mean 'step'? int takes log and step",
        ),
        (
            {"x": {"uniform": [1, 8], "log": True}},
            "search.space.x: unknown option 'log'. uniform takes no options",
        ),
        ({"x": {"choice": []}}, "search.space.x: choice needs at least one value"),
        ({"x": {"choice": 8}}, "search.space.x: choice takes a list of values, got 8"),
        ({"x": {"choice": [4, 8, 4]}}, "search.space.x: choice has 4 twice"),
        ({"x": {"choice": [1, True]}}, "search.space.x: choice has true twice"),
        (
            {"x": {"choice": [{"a": 1}]}},
            "search.space.x: choice takes finite scalars or lists of them, got {'a': 1}",
        ),
        (
            {"m": {"a": {}, "b": 5}},
            "search.space.m.b: a branch holds parameters (NAME: …) or nothing, got 5",
        ),
        (
            {"m": {"a b": {}}},
            "search.space.m: a branch is named by letters, digits and ~ . / : @ _ -, got 'a b'",
        ),
        (
            {"m": {"a": {"n": {"b": 5, "c": {}}}}},
            "search.space.m.a.n.b: a branch holds parameters (NAME: …) or nothing, got 5",
        ),
        (
            {"m": {"a": {"x": 1}, "b": {}}, "x": 2},
            "search.space.x: set twice on one path, also at search.space.m.a.x",
        ),
        (
            {"m": {"m": {}, "b": {"m": 1}}},
            "search.space.m.b.m: set twice on one path, also at search.space.m",
        ),
        (
            {"m": {"a": {"x": 1}}, "n": {"c": {"o": {"d": {"x": 2}}}}},
            "search.space.n.c.o.d.x: set twice on one path, also at search.space.m.a.x",
        ),
        (
            {"rank": 8, "alpha": "2 * rnk"},
            "search.space.alpha: unknown name 'rnk' in '2 * rnk'. Did you mean 'rank'?",
        ),
        (
            {"rank": 8, "x": "linear+cosine"},
            "search.space.x: unknown name 'linear' in 'linear+cosine'. It may use rank; "
            "plain text is written {choice: ['linear+cosine']}",
        ),
        (
            {"m": {"lora": {"rank": 8}, "full": {}}, "alpha": "2 * rank"},
            "search.space.alpha: 'rank' in '2 * rank' is not set on every path here, only at search.space.m.lora.rank",
        ),
        (
            {"m": {"lora": {"rank": 8}, "full": {"x": "rank"}}},
            "search.space.m.full.x: 'rank' in 'rank' is not set on every path here, only at search.space.m.lora.rank",
        ),
        (
            {"x": "2 * m", "m": {"choice": ["a", "b"]}},
            "search.space.x: 'm' in '2 * m' is not a number but one of a, b",
        ),
        ({"x": "x + 1"}, "search.space.x: tied in a circle: x -> x"),
        (
            {"x": "y + 1", "y": "z", "z": "x / 2"},
            "search.space.x: tied in a circle: x -> y -> z -> x",
        ),
        (
            {"m": {"a": {"x": "2 * y"}, "b": {"x": 1}}, "y": "x + 1"},
            "search.space.m.a.x: tied in a circle: x -> y -> x",
        ),
        ({"x": "1 / 0"}, "search.space.x: '1 / 0' has no value: division by zero"),
        *(
            (
                {"rank": 8, "x": text},
                f"search.space.x: {text!r} is not arithmetic on parameters; allowed: + - * / // ** ( ), numbers and "
                f"parameter names; plain text with such signs is written {{choice: [{text!r}]}}",
            )
            for text in [
                "2 *",
                "rank % 2",
                "rank.real + 1",
                "max(rank, 2)",
                "__import__('os')",
                "rank * 'a'",
                "h.11.*",
                "2j * 2",
            ]
        ),
    ],
)
def test_every_mistake_has_its_message(tree, message):
    with pytest.raises(SpaceError) as caught:
        Space.from_dict(tree)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"x": "1 / y", "y": 0},
            "search.space.x: '1 / y' with y = 0 has no value: division by zero",
        ),
        (
            {"x": "y ** 0.5", "y": -1},
            "search.space.x: 'y ** 0.5' with y = -1 is (6.123233995736766e-17+1j), ",
        ),
        ({"x": "9 ** 9 ** y", "y": 9}, "search.space.x: '9 ** 9 ** y' with y = 9 has no value: "),
        (
            {"x": "y + 1", "y": "z", "z": ["a"]},
            "search.space.x: 'y + 1': y is not a number but [a]",
        ),
    ],
)
def test_a_tied_value_that_cannot_be_computed_says_why(tree, message):
    with pytest.raises(SpaceError, match=re.escape(message)):
        Space.from_dict(tree).sample(pick)


def test_a_suggestion_outside_its_domain_is_refused(example):
    with pytest.raises(
        SpaceError, match=re.escape("space.method: got 'qlora', allowed: one of full, lora")
    ):
        example.sample(answers(method="qlora"))


def test_rounding_at_a_bound_is_no_error():
    assert Space.from_dict({"x": {"log_uniform": [1e-4, 1e-3]}}).encode({"x": 1e-4 * (1 - 1e-15)})


def test_encode_takes_partial_configurations_and_consistent_fixed_and_tied_values(example):
    assert example.encode({}) == {}
    assert example.encode({"epochs": 2, "weight_decay": 0.01}) == {"epochs": 2}
    given = {"alpha": 16.0, "rank": 8, "dropout": 0, "method": "lora"}
    encoded = example.encode(given)
    assert encoded == {"method": "lora", "lora.rank": 8, "lora.dropout": 0.0}
    assert isinstance(encoded["lora.dropout"], float)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"epoch": 3},
            "try[0].epoch: unknown parameter. Did you mean 'epochs'? The space has alpha, batch_size, dropout, epochs, "
            "learning_rate, method, rank, weight_decay",
        ),
        ({"rank": 8}, "try[0].rank: only some branches of 'method' have it; give 'method' as well"),
        (
            {"method": "full", "rank": 8},
            "try[0].rank: not a parameter where method is full, only where method is lora",
        ),
        (
            {"method": "lorra"},
            "try[0].method: got 'lorra', allowed: one of full, lora. Did you mean 'lora'?",
        ),
        (
            {"method": "FULL"},
            "try[0].method: got 'FULL', allowed: one of full, lora. Did you mean 'full'?",
        ),
        ({"method": "prompt"}, "try[0].method: got 'prompt', allowed: one of full, lora"),
        ({"method": 3}, "try[0].method: got 3, allowed: one of full, lora"),
        ({"method": "lora", "rank": 7}, "try[0].rank: got 7, allowed: one of 4, 8, 16"),
        ({"epochs": 2.0}, "try[0].epochs: got 2.0, allowed: int 1 … 4"),
        ({"epochs": True}, "try[0].epochs: got True, allowed: int 1 … 4"),
        (
            {"method": "full", "learning_rate": 1e-3},
            "try[0].learning_rate: got 0.001, allowed: log-uniform 1e-05 … 0.0003",
        ),
        (
            {"method": "lora", "dropout": "0.1"},
            "try[0].dropout: got '0.1', allowed: uniform 0.0 … 0.1",
        ),
        ({"weight_decay": 0.1}, "try[0].weight_decay: got 0.1, but it is 0.01 (fixed 0.01)"),
        (
            {"method": "lora", "rank": 8, "alpha": 8},
            "try[0].alpha: got 8, but it is 16 (= 2 * rank)",
        ),
        (
            {"method": "lora", "alpha": 8},
            "try[0].alpha: follows from 'rank'; give 'rank' as well, or leave both out",
        ),
    ],
)
def test_encode_refuses_what_the_space_cannot_give(example, params, message):
    with pytest.raises(SpaceError) as caught:
        example.encode(params, "try[0]")
    assert str(caught.value) == message


def test_encode_allows_for_rounding_in_tied_values():
    assert Space.from_dict({"rate": {"choice": [0.1]}, "x": "3 * rate"}).encode(
        {"rate": 0.1, "x": 0.3}
    ) == {"rate": 0.1}


def test_encode_tells_true_from_one():
    space = Space.from_dict({"rslora": {"choice": [True, False]}, "n": {"choice": [0, 1]}})
    assert space.encode({"rslora": True, "n": 1}) == {"rslora": True, "n": 1}
    for params in ({"rslora": 1}, {"n": True}):
        with pytest.raises(SpaceError, match="allowed: one of"):
            space.encode(params)


def test_suggestions_do_not_mind_case_and_keep_that_of_what_is_known():
    space = Space.from_dict(
        {"method": {"IA3": {}, "LoRA": {}}, "targets": {"choice": ["Wqkv", ["q", "v"], 3]}}
    )
    for params, name in (
        ({"method": "ia3"}, "IA3"),
        ({"method": "lorra"}, "LoRA"),
        ({"targets": "wqv"}, "Wqkv"),
    ):
        with pytest.raises(SpaceError, match=rf"\. Did you mean '{name}'\?$"):
            space.encode(params)


def test_load_tree_gives_what_a_preset_or_a_file_holds(tmp_path):
    (tmp_path / "space.yaml").write_text(EXAMPLE)
    tree = load_tree("space.yaml", folder=tmp_path)
    assert tree["method"]["lora"]["alpha"] == "2 * rank" and tree["weight_decay"] == 0.01
    assert list(tree) == ["method", "batch_size", "epochs", "weight_decay"]
    for preset in ("encoder_small", "llm_qlora"):
        assert Space.from_dict(load_tree(preset)).parameters == load_space(preset).parameters


def test_load_space_takes_mappings_presets_and_files(tmp_path):
    assert load_space({"a": 1}).parameters == [("a", "fixed 1")]
    assert load_space("encoder_small").parameters[0] == ("method", "one of full, partial, lora")
    path = tmp_path / "mine.yaml"
    path.write_text("rate: 1e-5\n")
    for source in ("mine.yaml", str(path)):
        assert load_space(source, folder=tmp_path).sample(pick) == {"rate": 1e-5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "rate: {uniform: [1, 0]}",
            "search.space: {path}: space.rate: uniform needs low < high, got [1.0, 0.0]; ",
        ),
        ("a: 1\na: 2", "search.space: {path} is not readable: while constructing a mapping "),
        ("a: [1", "search.space: {path} is not readable: while parsing "),
        ("a: ${b}", "search.space: {path} is not readable: Interpolation key 'b' not found "),
        ("", "search.space: {path}: space: the space is empty; give at least one parameter"),
        (
            "- 1",
            "search.space: {path}: space: a space maps parameter names to what they may be, got [1]",
        ),
    ],
)
def test_mistakes_in_a_file_name_the_file(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(SpaceError) as caught:
        load_space(str(path))
    assert str(caught.value).startswith(message.format(path=path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "encoder_smal",
            "search.space: no preset and no file 'encoder_smal'. Did you mean 'encoder_small'? "
            "Presets: auto, encoder, encoder_additive, encoder_small, gpt2, llm_additive, llm_lora, llm_qlora, llm_small, seq2seq",
        ),
        (
            "spaces/mine.yaml",
            "search.space: no preset and no file 'spaces/mine.yaml'. "
            "Presets: auto, encoder, encoder_additive, encoder_small, gpt2, llm_additive, llm_lora, llm_qlora, llm_small, seq2seq",
        ),
        (
            None,
            "search.space: give parameters, a preset's name or the path of a YAML file, got None",
        ),
    ],
)
def test_an_unknown_source_lists_the_presets(source, message):
    with pytest.raises(SpaceError) as caught:
        load_space(source)
    assert str(caught.value) == message
