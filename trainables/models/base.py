"""Which base is loaded, and the base once it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trainables.models.config import ModelConfig, Quantisation
from trainables.models.files import load_model_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


LANGUAGE_MODEL, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
LANGUAGE_MODELS = (LANGUAGE_MODEL, SEQ2SEQ)
# what PEFT calls the models of a class
PEFT_TASKS = {
    LANGUAGE_MODEL: "CAUSAL_LM",
    SEQ2SEQ: "SEQ_2_SEQ_LM",
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
}


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
    outputs: tuple[str, ...] = ()  # names of what the head gives; none for language models
    problem_type: str | None = None  # of the head, as transformers has it

    @property
    def settings(self) -> dict[str, object]:
        """What the task sets in the model's configuration."""
        found: dict[str, object] = {"pad_token_id": self.pad_token_id}
        if self.has_head:
            found |= {
                "num_labels": len(self.outputs),
                "id2label": dict(enumerate(self.outputs)),
                "label2id": {name: i for i, name in enumerate(self.outputs)},
                "problem_type": self.problem_type,
            }
        return found

    @property
    def has_head(self) -> bool:
        """Of the task's own, above the backbone; else it is a language model."""
        return self.auto_class not in LANGUAGE_MODELS

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
    # what every trial starts from, where an adapter is continued: its weights, by their names in a
    # checkpoint
    start: "Mapping[str, torch.Tensor]" = field(default_factory=dict)

    @property
    def revision(self) -> str | None:
        """On the hub, of its own files."""
        from trainables.models.merging import plain

        return None if self.spec is None else plain(self.spec.model).revision

    @property
    def peft_task(self) -> str:
        """What PEFT calls its kind."""
        if self.spec is None:
            return "SEQ_CLS" if self.head else "CAUSAL_LM"
        return PEFT_TASKS[self.spec.auto_class]

    def in_head(self, name: str) -> bool:
        """Whether the module or parameter `name` belongs to the head."""
        return f"{name}.".startswith(tuple(f"{module}." for module in self.head))
