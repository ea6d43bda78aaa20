import re
from pathlib import Path
from typing import Any

from trainables.errors import InputError
from trainables.hyperparameters import LoraOptions
from trainables.model import BaseModel, Variant

# the query, key, value and output projections, as the architectures of transformers name them
ATTENTION = re.compile(
    r"(^|\.)(q|k|v|o|query|key|value|qkv|c_attn|query_key_value)(_proj|_lin|_attn)?$|(^|\.)out_(proj|lin)$"
    r"|attention\.(output\.)?dense$|attn\.c_proj$"
)


def target_modules(base: BaseModel, targets: str | tuple[str, ...]) -> list[str]:
    """Full names of the linear layers that `targets` means in this model; the head is never among them."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = base.model.get_output_embeddings()
    linear = [
        name
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output and not base.in_head(name)
    ]
    if targets == "all-linear":
        return linear
    if targets == "attention":
        chosen = [name for name in linear if ATTENTION.search(name)]
    else:
        chosen = [name for name in linear if any(name == t or name.endswith(f".{t}") for t in targets)]
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in linear):
                endings = sorted({name.rsplit(".", 1)[-1] for name in linear})
                raise InputError(f"targets: no linear layer is called {target!r}; this model has {', '.join(endings)}")
    if not chosen:
        raise InputError(f"targets: no attention layer found in {type(base.model).__name__}; name the modules instead")
    return chosen


class Lora:
    """LoRA over a frozen base, through PEFT; a new head is trained in full and saved with the adapter."""

    variant: Variant = "plain"

    def attach(self, base: BaseModel, options: LoraOptions) -> Any:
        from peft import LoraConfig, TaskType, get_peft_model
        from transformers.pytorch_utils import Conv1D

        targets = target_modules(base, options.targets)
        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=targets,
            fan_in_fan_out=any(
                isinstance(base.model.get_submodule(name), Conv1D) for name in targets
            ),  # GPT-2's layers
            use_rslora=options.rslora,
            modules_to_save=list(base.head) or None,
            task_type=TaskType.SEQ_CLS if base.head else TaskType.CAUSAL_LM,
        )
        return get_peft_model(base.model, config)

    def detach(self, model: Any, base: BaseModel) -> None:
        from peft.utils.other import ModulesToSaveWrapper

        # PEFT's unload would leave the trained head in the base, so the original goes back first
        heads = {}
        for name in base.head:
            wrapper = base.model.get_submodule(name)
            assert isinstance(wrapper, ModulesToSaveWrapper)
            heads[name] = wrapper.original_module
        model.unload()
        for name, original in heads.items():
            base.model.set_submodule(name, original)
        for parameter in base.model.parameters():
            parameter.requires_grad_(False)

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder, save_embedding_layers=False)

    def load(self, model: Any, folder: Path) -> None:
        from peft import load_peft_weights, set_peft_model_state_dict

        result = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        assert not result.unexpected_keys, f"{folder} does not fit the model: unexpected {result.unexpected_keys}"
