from trainables.hyperparameters import QLoraOptions
from trainables.methods.lora import Lora
from trainables.models.config import Quantisation


class QLora(Lora):
    """LoRA over a base in 4-bit NormalFloat with double quantisation, or in 8-bit integers."""

    stays_beside = True  # its base has no weights that it could be added to

    def quantisation(self, options: QLoraOptions) -> Quantisation:
        return "nf4" if options.bits == 4 else "int8"
