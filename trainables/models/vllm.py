"""What vLLM takes of a LoRA adapter, by the checks of its loader (`PEFTHelper.validate_legal`,
`LoRAModel.from_local_checkpoint`, `LoRAConfig`), read in the sources of about version 0.27, and by
the column "LoRA" of its list of supported models.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

from trainables.models.base import SEQ2SEQ, BaseSpec
from trainables.models.origin import ADAPTER, WEIGHTS, why_not_exact
from trainables.storage.records import from_json

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be."""
DEFAULT_MAX_RANK = 16
MERGE = "export with --merge"
A, B = ".lora_A.weight", ".lora_B.weight"

_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_GATED = frozenset({"gate_proj", "up_proj", "down_proj"})
_LATENT = frozenset({"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"})
_PLAIN = frozenset({"q_proj", "k_proj", "v_proj", "fc1", "fc2"})
LAYERS: Mapping[str, frozenset[str]] = {
    "llama": _ATTENTION | _GATED,
    "mistral": _ATTENTION | _GATED,
    "qwen2": _ATTENTION | _GATED,
    "qwen3": _ATTENTION | _GATED,
    "gemma": _ATTENTION | _GATED,
    "gemma2": _ATTENTION | _GATED,
    "mixtral": _ATTENTION,
    "qwen3_moe": _ATTENTION | _GATED,
    "deepseek_v3": _ATTENTION | _GATED | _LATENT,
    "phi": _PLAIN | {"dense"},
    "opt": _PLAIN | {"out_proj"},
    # it has these models, and adapts nothing of them
    **dict.fromkeys(
        ("bloom", "falcon", "gpt2", "gpt_neox", "gptj", "mamba", "mamba2", "mpt", "olmoe"),
        frozenset(),
    ),
}
"""How the layers are called that it adapts, by `model_type`, as far as it was looked up."""


@dataclass(frozen=True, kw_only=True)
class _LoraConfig:
    """What is read here of `adapter_config.json`."""

    r: int
    lora_alpha: float
    bias: str = "none"
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: list[str] | None = None
    target_parameters: list[str] | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / (sqrt(rank) if self.use_rslora else rank)


def vllm_words(folder: Path, spec: BaseSpec) -> str:
    """In a line, how vLLM loads the adapter in `folder`, or why it does not. spec: of the base that
    the adapter was trained over.
    """
    described = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    peft_type = described.get("peft_type")
    if peft_type != "LORA":
        instead = "cannot be merged either" if why_not_exact(described, "none") else MERGE
        return f"vLLM loads LoRA adapters, and not this one ({peft_type}): {instead}"
    config = from_json(_LoraConfig, described, str(folder / ADAPTER))
    ranks, kind = _ranks(folder), spec.config().get_text_config().model_type
    if spec.auto_class == SEQ2SEQ:
        return f"vLLM has no encoder-decoders such as {kind}"
    if problems := _problems(config, ranks, kind):
        return f"vLLM does not load it ({'; '.join(problems)}): {MERGE}"
    words = "vLLM loads it with --enable-lora"
    if (largest := max(ranks.values())) > DEFAULT_MAX_RANK:
        needed = next(rank for rank in MAX_RANKS if rank >= largest)
        words += f" --max-lora-rank {needed}"
    if spec.quantisation != "none":
        words += ", over the base as it is quantised there"
    return words if kind in LAYERS else f"{words}, where it adapts {kind} (not looked up)"


def _ranks(folder: Path) -> dict[str, int]:
    """Of each layer, by the name of what its tensors are called."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as file:
        names = [name for name in file.keys() if name.endswith(A)]  # noqa: SIM118
        return {name.removesuffix(A): file.get_slice(name).get_shape()[0] for name in names}


def _problems(config: _LoraConfig, ranks: Mapping[str, int], kind: str) -> list[str]:
    """kind: the base's `model_type`."""
    called = {name.rpartition(".")[2] for name in ranks}
    unknown = ", ".join(sorted(called - LAYERS.get(kind, called)))
    found = {
        f"it adapts no layers of {kind} that are called {unknown}": bool(unknown),
        "it has no DoRA": config.use_dora,
        f"it takes no modules_to_save, such as {', '.join(config.modules_to_save or ())}": bool(
            config.modules_to_save
        ),
        "it takes no trained biases": config.bias != "none",
        "adapters of fused experts have not been tried": bool(config.target_parameters),
        f"its ranks end at {MAX_RANKS[-1]}": max(ranks.values(), default=0) > MAX_RANKS[-1],
        "it scales all layers alike, and knows nothing of rank_pattern and alpha_pattern": (
            _is_uneven(config, ranks)
        ),
    }
    return [words for words, holds in found.items() if holds]


def _is_uneven(config: _LoraConfig, ranks: Mapping[str, int]) -> bool:
    """Whether some layer has another scale than `lora_alpha` and `r` give."""
    from peft.utils.other import get_pattern_key

    expected = config.scale(config.lora_alpha, config.r)
    for name, rank in ranks.items():
        layer = name.removeprefix("base_model.model.")
        key = get_pattern_key(list(config.alpha_pattern), layer)
        alpha = config.alpha_pattern.get(key, config.lora_alpha)
        if abs(config.scale(alpha, rank) - expected) > 1e-6 * expected:
            return True
    return False
