"""Passes without padding give what padded ones give, or are not taken."""

import math

import pytest
import torch
import transformers

from trainables.engine import varlen
from trainables.engine.dropout import RowKeys, row_dropout
from trainables.models.output import hidden_states

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)
LENGTHS, PAD, CPU = (12, 3, 7, 5), 0, torch.device("cpu")
SHAPE = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.15,
}


def batch_of(lengths, device=CPU):
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 90, mask.shape, generator=generator).where(mask, torch.tensor(PAD))
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}


def hidden_of(model):
    def hidden(batch):
        with hidden_states(model.get_output_embeddings()):
            return model(**batch).logits

    return hidden


def cost_of(model, lengths=LENGTHS):
    return (
        varlen.cost(hidden_of(model), batch_of(lengths, model.device))
        if varlen.prepare(model)
        else math.inf
    )


@pytest.fixture
def counted(monkeypatch):
    """How often models attended within rows."""
    calls, within = [], varlen._within_rows

    def count(rows, *args, **how):
        calls.append(rows.lengths)
        return within(rows, *args, **how)

    monkeypatch.setattr(varlen, "_within_rows", count)
    yield calls
    varlen.passing(None)


def test_tokens_lie_one_after_another_and_come_back_padded():
    batch = batch_of(LENGTHS)
    rows = varlen.Rows.of(LENGTHS, CPU)
    inputs = rows.flatten(batch)
    assert inputs["input_ids"].tolist()[0] == [
        int(t) for t in batch["input_ids"].flatten() if t != PAD
    ]
    assert inputs["position_ids"].tolist()[0] == [t for length in LENGTHS for t in range(length)]
    assert rows.bounds.tolist() == [0, 12, 15, 22, 27] and rows.bounds.dtype is torch.int32
    padded = rows.padded(inputs["input_ids"][..., None].float())
    assert torch.equal(padded[..., 0].long(), batch["input_ids"])


def test_a_mask_of_dropout_is_the_same_without_padding():
    keys, rows = RowKeys(), varlen.Rows.of(LENGTHS, CPU)
    index = torch.tensor([4, 9, 2, 7])
    keys.set(3, 1, index)
    padded = row_dropout(torch.ones(4, 12, 8), keys, 5, torch.tensor([0.1, 0.5, 0.3, 0.2]))
    lengths = torch.tensor(LENGTHS)
    keys.set(3, 1, index.repeat_interleave(lengths), rows.positions_N)
    p_N = torch.tensor([0.1, 0.5, 0.3, 0.2]).repeat_interleave(lengths)
    found = rows.padded(row_dropout(torch.ones(1, 27, 8), keys, 5, p_N))
    real = torch.arange(12) < lengths[:, None]
    assert torch.equal(found[real], padded[real]) and 0 < (found[real] == 0).float().mean() < 0.6


@pytest.mark.parametrize("model", ["llama", "llama-tied", "gpt2", "opt"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_group_without_padding_gives_what_one_with_padding_gives(
    lab, model, checkpointing, counted, tmp_path
):
    trials = {
        "a": lab.params("lora", rank=2, dropout=0.2, batch_size=4, epochs=2, seed=1),
        "b": lab.params(
            "lora", rank=5, alpha=3, targets="attention", batch_size=7, epochs=3, seed=2
        ),
        "c": lab.params("ia3", batch_size=1, epochs=1),
        "d": lab.params("adapter", batch_size=5, epochs=2, seed=4),
    }
    settings = {"dtype": torch.float64, "max_tokens": 60, "gradient_checkpointing": checkpointing}
    padded = lab.together(lab.group(model, **settings), tmp_path / "padded", trials)
    assert not counted
    found = lab.together(lab.group(model, varlen=True, **settings), tmp_path / "flat", trials)
    assert any(len(set(lengths)) > 1 for lengths in counted)
    for trial in trials:
        lab.assert_alike(found[trial], padded[trial], 1e-9)


def test_a_trial_that_trains_the_base_may_pass_without_padding_too(lab, counted, tmp_path):
    trials = {"t": lab.params("full", batch_size=6, epochs=2)}
    padded = lab.together(lab.group("llama", dtype=torch.float64), tmp_path / "padded", trials)
    found = lab.together(
        lab.group("llama", dtype=torch.float64, varlen=True), tmp_path / "flat", trials
    )
    assert counted
    lab.assert_alike(found["t"], padded["t"], 1e-9)
    assert (
        lab.plain("llama", found["t"][-1][1] / "checkpoint").config._attn_implementation == "sdpa"
    )


def test_rows_behind_virtual_tokens_and_rows_of_classifiers_stay_padded(lab, counted, tmp_path):
    lab.together(
        lab.group("llama", varlen=True),
        tmp_path / "prompt",
        {"t": lab.params("prompt", batch_size=6, epochs=1)},
    )
    calls = len(counted)  # of the trial of the base alone
    lab.together(
        lab.group("llama", varlen=True),
        tmp_path / "again",
        {"t": lab.params("prompt", batch_size=6, epochs=1)},
    )
    assert len(counted) == 2 * calls
    counted.clear()
    lab.together(
        lab.group("bert", varlen=True),
        tmp_path / "bert",
        {"t": lab.params("lora", batch_size=6, epochs=1)},
    )
    assert not counted


def test_on_a_cpu_rows_are_padded_so_that_results_are_the_same_bit_for_bit(lab, counted, tmp_path):
    lab.together(lab.group("llama"), tmp_path, {"t": lab.params("lora", batch_size=6, epochs=1)})
    assert not counted


def test_what_a_model_cannot_do_within_rows_is_not_done():
    """A row that would see its neighbour, a window, a cap: the model's own way stays."""
    t = transformers
    few = {"num_key_value_heads": 2}
    served = t.LlamaForCausalLM(t.LlamaConfig(**{**SHAPE, "num_attention_heads": 4}, **few)).eval()
    assert 0 < cost_of(served) < math.inf
    windowed = t.MistralForCausalLM(t.MistralConfig(**SHAPE, **few, sliding_window=4)).eval()
    assert cost_of(windowed) == math.inf
    capped = t.Gemma2ForCausalLM(t.Gemma2Config(**SHAPE, **few, head_dim=16)).eval()
    assert cost_of(capped) == math.inf
    sloping = t.BloomForCausalLM(
        t.BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=2)
    ).eval()
    assert cost_of(sloping) == math.inf
    recurrent = t.MambaForCausalLM(
        t.MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2)
    ).eval()
    assert cost_of(recurrent) == math.inf


def test_a_model_whose_rows_see_their_neighbours_is_found_out():
    t = transformers
    model = t.LlamaForCausalLM(t.LlamaConfig(**SHAPE)).eval()
    hidden = hidden_of(model)

    def leaking(batch):
        x = hidden(batch)
        return x + 0.1 * x.roll(1, dims=1) if "position_ids" in batch else x

    assert varlen.prepare(model)
    assert varlen.cost(leaking, batch_of(LENGTHS)) == math.inf


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 64])
def test_a_gpu_passes_rows_without_padding(window):
    t = transformers
    shape = {**SHAPE, "hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 2}
    config = t.MistralConfig(**shape, num_key_value_heads=4, sliding_window=window)
    model = t.MistralForCausalLM(config).to("cuda", torch.bfloat16).eval()
    assert cost_of(model, (512, 20, 60, 300, 128)) < 2.0
