"""Which base is loaded, and the base once it is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainables.models.config import ModelConfig, Quantisation
from trainables.models.files import load_model_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class BaseSpec:
    """Which base, and made fit for what. The same wherever a base is loaded, be it for training,
    for the test, for verification or by the code on a winner's card: a base that is loaded
    otherwise is another model.
    """

    model: ModelConfig
    auto_class: str  # name of the class of transformers
    quantisation: Quantisation = "none"
    # of the weights that are not quantised; None: that of the checkpoint
    dtype: "torch.dtype | None" = None
    # the tokenizer's, which the model's configuration need not name, or may name otherwise
    pad_token_id: int
    labels: tuple[str, ...] = ()  # classes; none for language models

    @property
    def settings(self) -> dict[str, object]:
        """What the task sets in the model's configuration."""
        found: dict[str, object] = {"pad_token_id": self.pad_token_id}
        if self.is_classifier:
            found |= {
                "num_labels": len(self.labels),
                "id2label": dict(enumerate(self.labels)),
                "label2id": {label: i for i, label in enumerate(self.labels)},
            }
        return found

    @property
    def is_classifier(self) -> bool:
        return self.auto_class == "AutoModelForSequenceClassification"

    def config(self) -> "PreTrainedConfig":
        """The transformers configuration with these settings."""
        config = load_model_config(self.model)
        for name, value in self.settings.items():
            setattr(config, name, value)
        return config


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A loaded base, and the names of its modules that are always trained: what stands above the
    backbone of a classifier.
    """

    model: "PreTrainedModel"
    quantisation: Quantisation
    dtype: "torch.dtype"  # that was asked for
    head: tuple[str, ...] = ()
    # those of the head that the checkpoint did not bring; drawn from each trial's seed
    new: tuple[str, ...] = ()
    # parameters that the model itself never trains, such as tables of sinusoids
    fixed: frozenset[str] = frozenset()
    spec: BaseSpec | None = None  # how it was loaded; None: it was drawn, and not loaded at all
    # transformers' configuration of what is saved: without what only training sets
    config: "PreTrainedConfig | None" = None
    # a language model's output layer, where its logits are just what that layer gives: the loss is
    # then computed from hidden states, of targets alone and in chunks
    output: "torch.nn.Linear | None" = None

    def in_head(self, name: str) -> bool:
        """Whether the module or parameter `name` belongs to the head."""
        return f"{name}.".startswith(tuple(f"{module}." for module in self.head))
