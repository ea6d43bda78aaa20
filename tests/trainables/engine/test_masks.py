"""Where the host knows how long rows are, a model gives what it gives where its mask tells."""

import pytest
import torch
import transformers

from trainables.engine import masks

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
}
MODELS = {
    "causal": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)),
    "window": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SHAPE, sliding_window=3)
    ),
    "wide window": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**SHAPE, sliding_window=30)
    ),
    "both ways": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SHAPE)),
}
PADDED = torch.tensor([4, 5])


@pytest.mark.parametrize("lengths", [(6, 6, 6), (6, 2, 4), (1, 1)])
@pytest.mark.parametrize("kind", MODELS)
def test_masks_are_those_that_are_read(kind, lengths):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    assert model.config._attn_implementation == "sdpa"
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    batch = {"input_ids": torch.randint(1, 50, mask.shape), "attention_mask": mask}
    with torch.no_grad():
        expected = model(**batch).logits
        with masks.known(lengths):
            found = model(**batch).logits
        after = model(**batch).logits  # nothing is known any more
    assert torch.equal(found, expected) and torch.equal(after, expected)


def test_a_mask_over_more_than_the_rows_is_kept():
    """Of a cache with room for tokens that have not come; of rows that a model has padded."""
    for seen, kv_length in ((torch.ones(2, 4), 6), (torch.ones(2, 6).index_fill(1, PADDED, 0), 6)):
        how = {"batch_size": 2, "q_length": 1, "kv_length": kv_length, "q_offset": 3}
        expected = masks.mask(attention_mask=seen.bool(), **how)
        with masks.known((4, 4)):
            found = masks.mask(attention_mask=seen.bool(), **how)
        assert found is not None and expected is not None and torch.equal(found, expected)
