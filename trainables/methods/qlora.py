from trainables.methods.lora import Lora


class QLora(Lora):
    """LoRA over a base in 4-bit NormalFloat with double quantisation, or in 8-bit integers."""

    stays_beside = True  # its base has no weights that it could be added to
