"""Families that are each awkward to export in a way of their own; all of them, by all methods: see exports.py."""

import pytest
import transformers

import sweeps.use.export
from sweeps.use.export import export
from sweeps.use.export_formats import Request
from tests.sweeps.use import exports
from tests.sweeps.use.exports import checkpoint, drawn_family, loaded
from trainables.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
AWKWARD = [
    ("gpt2", "causal_lm", "lora"),  # layers that are stored [I, O], a tied output layer
    ("gpt2", "classification", "ia3"),
    ("gemma2", "causal_lm", "dora"),  # soft-capped, tied
    ("qwen2", "causal_lm", "vera"),  # keys and values narrower than queries, biases
    ("t5", "seq2seq", "adalora"),  # one table of embeddings in three places
    ("mixtral", "causal_lm", "experts"),  # which are fused
    ("distilbert", "classification", "lora"),  # a head of two layers
    ("deberta-v2", "classification", "qlora 4"),  # quantised and scaled by width
    ("roberta", "classification", "vera"),  # the same, in a module of its own
    ("xlnet", "classification", "partial"),
    ("bert", "token_classification", "prefix"),
]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(sweeps.use.export, "score_in_fresh_process", loaded)


@pytest.mark.parametrize(("name", "task", "method"), AWKWARD, ids=[" ".join(x) for x in AWKWARD])
def test_all_ways_to_export_give_what_was_reported(tmp_path, name, task, method):
    """Over bases whose heads, where they have one, are of another task."""
    model = drawn_family(name, task, tmp_path / "model")
    found = list(
        exports.exports(checkpoint(tmp_path / "sweep", task, model, method), method, tmp_path)
    )
    assert [each.way for each in found] == [*exports.ways(method)] != []
    assert not [str(each) for each in found if not each.holds]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resized_vocabulary_of_tied_embeddings(tmp_path, method):
    model = drawn_family("gpt2", "causal_lm", tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    resized = transformers.AutoModelForCausalLM.from_pretrained(model)
    tokenizer.add_tokens(["good", "bad"])
    resized.resize_token_embeddings(1024)
    for each in (tokenizer, resized):
        each.save_pretrained(model)
    found = list(
        exports.exports(checkpoint(tmp_path / "s", "causal_lm", model, method), method, tmp_path)
    )
    assert found and not [str(each) for each in found if not each.holds]
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / found[0].way.name)
    table, output = whole.get_input_embeddings(), whole.get_output_embeddings()
    assert table.weight.shape[0] == 1024 and output.weight is table.weight


@pytest.mark.parametrize(
    ("name", "task", "method", "words"),
    [
        ("t5", "seq2seq", "prompt", "PROMPT_TUNING stands before the text, or beside the weights"),
        ("gpt2", "causal_lm", "prefix", "PREFIX_TUNING stands before the text, or beside"),
        ("distilbert", "classification", "adapter", "bottleneck adapters compute something of"),
    ],
)
def test_what_cannot_be_merged_says_so_in_a_line(tmp_path, name, task, method, words):
    model = drawn_family(name, task, tmp_path / "model")
    sweep, out = checkpoint(tmp_path / "sweep", task, model, method), tmp_path / "out"
    with pytest.raises(InputError, match=f"cannot be merged: {words}") as caught:
        export(str(sweep), str(out), None, Request(merge=True))
    assert "\n" not in str(caught.value) and not out.exists()
