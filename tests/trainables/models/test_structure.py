"""What is asked of a model, of transformers and of PEFT, over the zoo: shapes alone, nothing is trained."""

import pytest
import transformers

from tests.trainables import zoo
from trainables.errors import InputError
from trainables.models.structure import (
    above_backbone,
    attends,
    coverage,
    in_layers,
    layer_lists,
    linear_layers,
    on_meta,
    outside_layers,
    served_by_peft,
    stacks,
    sublayers,
)


def shapes(name, task):
    return on_meta(getattr(transformers, zoo.AUTO_CLASSES[task]), zoo.config(name, task))


def endings(names, parts=1):
    return {".".join(name.split(".")[-parts:]) for name in names}


ATTENTION = [
    ("bert", {"query", "key", "value", "dense"}),
    ("distilbert", {"q_lin", "k_lin", "v_lin", "out_lin"}),
    ("modernbert", {"Wqkv", "Wo"}),
    ("deberta", {"in_proj", "pos_proj", "pos_q_proj", "dense"}),
    (
        "deberta-v2",
        {"query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj", "dense"},
    ),
    ("gpt2", {"c_attn", "c_proj"}),
    ("gpt_neox", {"query_key_value", "dense"}),
    ("bloom", {"query_key_value", "dense"}),
    ("falcon", {"query_key_value", "dense"}),
    ("mpt", {"Wqkv", "out_proj"}),
    ("phi", {"q_proj", "k_proj", "v_proj", "dense"}),
    ("phi3", {"qkv_proj", "o_proj"}),
    ("llama", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ("deepseek_v2", {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}),
    ("t5", {"q", "k", "v", "o"}),
    ("bart", {"q_proj", "k_proj", "v_proj", "out_proj"}),
    ("albert", {"query", "key", "value", "dense"}),
]


@pytest.mark.parametrize(("name", "expected"), ATTENTION, ids=[name for name, _ in ATTENTION])
def test_attention_is_found_whatever_it_is_called(name, expected):
    model = shapes(name, "classification" if "classification" in zoo.tasks(name) else "causal")
    linear = linear_layers(model, above_backbone(model))
    found = attends(model, linear)
    assert endings(found) == expected
    # of a feed-forward, nothing: its layers are as wide inside as attention never is
    assert not {
        name
        for name in found
        if any(part in name for part in ("mlp", "intermediate", "ffn", "fc1", "fc2"))
    }


SUBLAYERS = [  # of the last layer: last projections of attention and feed-forward, first of the latter
    ("bert", ["attention.output.dense"], "output.dense", "intermediate.dense"),
    ("distilbert", ["attention.out_lin"], "ffn.lin2", "ffn.lin1"),
    ("modernbert", ["attn.Wo"], "mlp.Wo", "mlp.Wi"),
    ("deberta-v2", ["attention.output.dense"], "output.dense", "intermediate.dense"),
    ("gpt2", ["attn.c_proj"], "mlp.c_proj", "mlp.c_fc"),
    ("gpt_neox", ["attention.dense"], "mlp.dense_4h_to_h", "mlp.dense_h_to_4h"),
    ("bloom", ["self_attention.dense"], "mlp.dense_4h_to_h", "mlp.dense_h_to_4h"),
    ("falcon", ["self_attention.dense"], "mlp.dense_4h_to_h", "mlp.dense_h_to_4h"),
    ("mpt", ["attn.out_proj"], "ffn.down_proj", "ffn.up_proj"),
    ("phi", ["self_attn.dense"], "mlp.fc2", "mlp.fc1"),
    ("phi3", ["self_attn.o_proj"], "mlp.down_proj", "mlp.gate_up_proj"),
    ("llama", ["self_attn.o_proj"], "mlp.down_proj", "mlp.gate_proj"),
    (
        "t5",
        ["layer.0.SelfAttention.o", "layer.1.EncDecAttention.o"],
        "layer.2.DenseReluDense.wo",
        "layer.2.DenseReluDense.wi",
    ),
    ("bart", ["self_attn.out_proj", "encoder_attn.out_proj"], "fc2", "fc1"),
]


@pytest.mark.parametrize(
    ("name", "attention", "feed_forward", "given"), SUBLAYERS, ids=[row[0] for row in SUBLAYERS]
)
def test_where_a_layer_adds_to_its_hidden_states(name, attention, feed_forward, given):
    model = shapes(name, "classification" if "classification" in zoo.tasks(name) else "causal")
    ((stack, layers),) = layer_lists(model)
    found = sublayers(model)
    assert len(found) == sum(len(layers) for ((_, layers),) in stacks(model))
    prefix = f"{stack}.{len(layers) - 1}."
    assert found[-1] == (
        [prefix + each for each in attention],
        prefix + feed_forward,
        prefix + given,
    )


@pytest.mark.parametrize("name", ["mixtral", "mamba"])
def test_layers_of_other_parts_have_no_such_places(name):
    with pytest.raises(InputError, match="has layers without an attention, or without one"):
        sublayers(shapes(name, "causal"))


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("t5", "transformer.decoder.block"),
        ("bart", "model.decoder.layers"),
        ("llama", "model.layers"),
    ],
)
def test_the_last_layers_are_those_before_the_output(name, where):
    task = "classification"
    assert [found for found, _ in layer_lists(shapes(name, task))] == [where]


def test_an_encoder_has_a_stack_before_the_decoder_s():
    found = [[name for name, _ in lists] for lists in stacks(shapes("t5", "classification"))]
    assert found == [["transformer.encoder.block"], ["transformer.decoder.block"]]
    assert [[name for name, _ in lists] for lists in stacks(shapes("llama", "causal"))] == [
        ["model.layers"]
    ]


def test_a_layer_whose_parts_lie_side_by_side_is_all_of_them():
    found = [name.rsplit(".", 1)[-1] for name, _ in layer_lists(shapes("xlm", "classification"))]
    assert found == ["attentions", "layer_norm1", "ffns", "layer_norm2"]


@pytest.mark.parametrize(
    "name",
    ["bert", "modernbert", "t5", "bart", "deberta", "deberta-v2", "distilbert", "gpt2", "llama"],
)
def test_heads_are_never_quantised(name):
    """Nor whatever else stands outside the layers."""
    model = shapes(name, "classification")
    kept = set(outside_layers(model))
    for head in above_backbone(model):
        assert {
            found for found in linear_layers(model) if f"{found}.".startswith(f"{head}.")
        } <= kept
    assert in_layers(model) and not kept & set(in_layers(model))


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("llama", set()),
        ("mixtral", set()),
        ("mamba", {"out_proj"}),
        ("falcon_mamba", {"out_proj"}),
        ("deepseek_v2", {"gate_proj", "up_proj", "down_proj"}),
        ("glm4_moe", {"gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_peft_is_asked_what_it_loads(name, refused):
    model = shapes(name, "causal")
    linear = linear_layers(model)
    served = served_by_peft(model, linear)
    assert endings(set(linear) - set(served)) == refused
    assert served == [name for name in linear if name in set(served)] and served


def test_fused_experts_count_as_weights_that_are_not_reached():
    model = shapes("mixtral", "causal")
    assert coverage(model, linear_layers(model)) < 0.2
    assert coverage(model, [name for name, _ in model.named_parameters()]) == 1.0
    layers = range(len(model.model.layers))
    experts = [
        f"model.layers.{n}.mlp.experts.{x}_proj" for n in layers for x in ("down", "gate_up")
    ]
    assert coverage(model, [*linear_layers(model), *experts]) > 0.99
    whole = shapes("llama", "causal")
    assert coverage(whole, linear_layers(whole)) == 1.0
    assert coverage(whole, attends(whole, linear_layers(whole))) == pytest.approx(1 / 3, abs=0.02)


def test_a_model_without_lists_of_layers_says_so():
    model = shapes("bert", "classification")
    model.bert.encoder = None
    with pytest.raises(
        InputError,
        match="^layers: BertForSequenceClassification has no list of layers; name parameters",
    ):
        layer_lists(model)
