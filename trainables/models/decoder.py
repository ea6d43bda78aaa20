"""What the decoder of an encoder-decoder is given to learn from."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def decoder_inputs(model: "PreTrainedModel", labels: "Tensor") -> "Tensor":
    """The tokens that come before each of the `labels` (-100: padding), both [B, U]: the labels one
    position later, after the token that the model begins with.

    The model itself is asked, since some begin with another token in each row (mBART: with that of
    the language); those that are not asked by this name do as transformers' `shift_tokens_right`.
    """
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own(labels=labels)
    config = model.config
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = config.decoder_start_token_id
    return shifted.masked_fill(shifted == -100, config.pad_token_id)
