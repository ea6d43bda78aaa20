"""A language model's output layer, and the hidden states that go into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PreTrainedModel


class ModelOutput(Protocol):
    """What a model gives, as far as it is read here."""

    logits: "Tensor"


def output_names(model: "PreTrainedModel") -> list[str]:
    """What the outputs of a model's head are called, in their order."""
    names = model.config.id2label or {}
    return [str(name) for _, name in sorted(names.items())]


@contextmanager
def hidden_states(output: "Linear | None") -> Iterator[None]:
    """Inside, a language model gives the inputs of its `output` layer instead of its logits;
    None: its logits.
    """
    if output is None:
        yield
        return
    output.forward = lambda input: input
    try:
        yield
    finally:
        del output.forward


def output_layer(model: "PreTrainedModel") -> "Linear | None":
    """The output layer of a language model, unless the model does something with what comes out of
    it (some cap or scale their logits).
    """
    import torch

    output = model.get_output_embeddings()
    # what is added to the logits (BART) cannot be added to hidden states
    if output is None or "forward" in vars(output) or hasattr(model, "final_logits_bias"):
        return None
    ids = torch.arange(4, device=model.device)[None] % model.config.vocab_size
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        logits = model(**inputs).logits
        with hidden_states(output):
            hidden = model(**inputs).logits
        same = hidden.shape[-1] == output.weight.shape[-1] and torch.allclose(
            output(hidden), logits, rtol=1e-3, atol=1e-3
        )
    return output if same else None
