"""Load a checkpoint as its user would: transformers and PEFT alone."""

import json
from pathlib import Path
from typing import Any

from trainables.model import ModelConfig, Variant, keep_rows_apart, quantization, resolve


def load_base_model(
    model: ModelConfig, variant: Variant, auto_class: str, model_kwargs: dict[str, Any], device: Any
) -> Any:
    """The untuned model in eval mode on `device`; the head of a classifier is new."""
    import transformers

    extra: dict[str, Any] = {}
    if variant != "plain":
        extra = {"quantization_config": quantization(variant, device), "device_map": {"": device}}
    base = getattr(transformers, auto_class).from_pretrained(
        resolve(model.name),
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        **model_kwargs,
        **extra,
    )
    if variant != "plain":
        keep_rows_apart(base)
        return base.eval()
    return base.to(device).eval()


def load_checkpoint(
    folder: Path, model: ModelConfig, variant: Variant, auto_class: str, model_kwargs: dict[str, Any], device: Any
) -> Any:
    """What a winner's card tells a user to do: `from_pretrained`, and PEFT or `load_adapter` over the base for an adapter."""
    import transformers

    described = folder / "adapter_config.json"
    if not described.is_file():
        return getattr(transformers, auto_class).from_pretrained(folder).to(device).eval()
    base = load_base_model(model, variant, auto_class, model_kwargs, device)
    if json.loads(described.read_text()).get("adapter_type") == "bottleneck":
        from trainables.methods.adapter import load_adapter

        return load_adapter(base, folder).eval()
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder)).eval()
