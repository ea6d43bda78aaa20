"""Load the base model and its tokenizer: from a hub, a folder, or a Python package that carries the
files.
"""

from dataclasses import dataclass
from typing import Any

from trainables.models.config import ModelConfig, Quantisation
from trainables.models.files import load_model_config


@dataclass(frozen=True, kw_only=True)
class BaseSpec:
    """Which base, and made fit for what. The same wherever a base is loaded, be it for training,
    for the test, for verification or by the code on a winner's card: a base that is loaded
    otherwise is another model.
    """

    model: ModelConfig
    auto_class: str  # name of the class of transformers
    quantisation: Quantisation = "none"
    # torch.dtype of the weights that are not quantised; None: that of the checkpoint
    dtype: Any = None
    pad_token_id: (
        int  # the tokenizer's, which the model's configuration need not name, or may name otherwise
    )
    labels: tuple[str, ...] = ()  # classes; none for language models

    @property
    def settings(self) -> dict[str, Any]:
        """What the task sets in the model's configuration."""
        found: dict[str, Any] = {"pad_token_id": self.pad_token_id}
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

    def config(self) -> Any:
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

    model: Any  # transformers.PreTrainedModel
    quantisation: Quantisation
    dtype: Any  # torch.dtype that was asked for
    head: tuple[str, ...] = ()
    new: tuple[
        str, ...
    ] = ()  # those of the head that the checkpoint did not bring; drawn from each trial's seed
    fixed: frozenset[str] = (
        frozenset()
    )  # parameters that the model itself never trains, such as tables of sinusoids
    spec: BaseSpec | None = None  # how it was loaded; None: it was drawn, and not loaded at all
    config: Any = None  # transformers configuration of what leaves: without what only training sets
    # a language model's output layer, where its logits are just what that layer gives: the loss is
    # then computed from
    # hidden states, of targets alone and in chunks
    output: Any = None

    def in_head(self, name: str) -> bool:
        """Whether the module or parameter `name` belongs to the head."""
        return f"{name}.".startswith(tuple(f"{module}." for module in self.head))
