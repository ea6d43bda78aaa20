"""Which methods train which architectures: every family at its real size, rehearsed as `check` does it.

    .venv/bin/python -m tests.trainables.architectures      # writes docs/architectures.md

A family is its own configuration class with its defaults (a vocabulary of 1,000 saves time); no weights are needed.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers as t

from trainables.data.arrow import write_split
from trainables.data.records import Encoded
from trainables.errors import InputError
from trainables.models.config import ModelConfig
from trainables.models.files import quiet
from trainables.rehearsal.rehearse import rehearse

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
CLASSES = ["bad", "so so", "good"]
VOCABULARY, PAD, END = 1000, 0, 1
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "partial": {"method": "partial", "layers": 1},
    "lora": {"method": "lora"},
    "lora, attention": {"method": "lora", "targets": "attention"},
    "qlora 4": {"method": "qlora", "bits": 4},
    "qlora 8": {"method": "qlora", "bits": 8},
    "ia3": {"method": "ia3"},
    "adapter": {"method": "adapter"},
    "vera": {"method": "vera", "rank": 8},
    "adalora": {"method": "adalora", "init_r": 4, "target_r": 2},
    "prompt": {"method": "prompt", "virtual_tokens": 3},
    "prefix": {"method": "prefix", "virtual_tokens": 3},
}
TOGETHER, ALONE, REFUSED = "●", "○", "–"
LANGUAGE, CLASSIFICATION, SEQ2SEQ = "causal_lm", "classification", "seq2seq"
BOTH = (LANGUAGE, CLASSIFICATION)
# the other tasks have the models of one of these three: a family of each kind shows that
OTHER_LANGUAGE = ("instruction", "preference")
OTHER_HEADS = ("regression", "multi_label", "token_classification")


@dataclass(frozen=True)
class Family:
    config: Callable[[], Any]
    tasks: tuple[str, ...]
    models: str  # whose it is, for people


def _config(name: str, **more: Any) -> Callable[[], Any]:
    ids = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": 2}
    return lambda: getattr(t, f"{name}Config")(**ids | more)


FAMILIES = {
    "bert": Family(_config("Bert"), (CLASSIFICATION, *OTHER_HEADS), "BERT, MiniLM, BGE"),
    "roberta": Family(_config("Roberta"), (CLASSIFICATION,), "RoBERTa, BERTweet"),
    "distilbert": Family(_config("DistilBert"), (CLASSIFICATION,), "DistilBERT"),
    "electra": Family(_config("Electra"), (CLASSIFICATION,), "ELECTRA"),
    "albert": Family(_config("Albert"), (CLASSIFICATION,), "ALBERT"),
    "deberta-v2": Family(
        _config(
            "DebertaV2",
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
        ),
        (CLASSIFICATION,),
        "DeBERTa v2 and v3",
    ),
    "modernbert": Family(
        _config("ModernBert", cls_token_id=2, sep_token_id=END), (CLASSIFICATION,), "ModernBERT"
    ),
    "xlnet": Family(_config("XLNet"), (CLASSIFICATION,), "XLNet"),
    "t5": Family(
        _config("T5", decoder_start_token_id=PAD), (CLASSIFICATION, SEQ2SEQ), "T5, Flan-T5"
    ),
    "mt5": Family(_config("MT5", decoder_start_token_id=PAD), (SEQ2SEQ,), "mT5"),
    "bart": Family(_config("Bart", decoder_start_token_id=END), (CLASSIFICATION, SEQ2SEQ), "BART"),
    "mbart": Family(_config("MBart"), (SEQ2SEQ,), "mBART"),
    "pegasus": Family(_config("Pegasus", decoder_start_token_id=PAD), (SEQ2SEQ,), "Pegasus"),
    "marian": Family(
        _config("Marian", decoder_start_token_id=PAD, decoder_vocab_size=VOCABULARY),
        (SEQ2SEQ,),
        "Marian (Opus-MT)",
    ),
    "m2m_100": Family(_config("M2M100", decoder_start_token_id=END), (SEQ2SEQ,), "M2M-100, NLLB"),
    "led": Family(_config("LED", decoder_start_token_id=END), (SEQ2SEQ,), "LED"),
    "gpt2": Family(_config("GPT2"), BOTH, "GPT-2"),
    "gpt_neox": Family(_config("GPTNeoX"), BOTH, "Pythia, GPT-NeoX"),
    "opt": Family(_config("OPT"), BOTH, "OPT"),
    "bloom": Family(_config("Bloom", hidden_size=1024, n_head=16, n_layer=24), BOTH, "BLOOM"),
    "falcon": Family(_config("Falcon"), BOTH, "Falcon"),
    "mpt": Family(_config("Mpt"), BOTH, "MPT"),
    "phi": Family(_config("Phi"), BOTH, "Phi 1 and 2"),
    "llama": Family(
        _config("Llama", num_key_value_heads=8),
        (*BOTH, *OTHER_LANGUAGE, *OTHER_HEADS),
        "Llama 2 and 3, Code Llama, SmolLM, TinyLlama",
    ),
    "mistral": Family(_config("Mistral"), BOTH, "Mistral"),
    "qwen2": Family(
        _config("Qwen2", hidden_size=896, num_attention_heads=14, num_key_value_heads=2),
        BOTH,
        "Qwen2, Qwen2.5",
    ),
    "qwen3": Family(_config("Qwen3"), BOTH, "Qwen3"),
    "gemma2": Family(_config("Gemma2"), BOTH, "Gemma 2"),
    "mixtral": Family(_config("Mixtral"), BOTH, "Mixtral"),
    "qwen3_moe": Family(_config("Qwen3Moe"), BOTH, "Qwen3 MoE"),
    "deepseek_v3": Family(_config("DeepseekV3"), (LANGUAGE,), "DeepSeek V3"),
    "mamba": Family(_config("Mamba"), (LANGUAGE,), "Mamba"),
}


def found(name: str, task: str) -> dict[str, tuple[str, str]]:
    """What came of each method: its sign, and why it is refused."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        FAMILIES[name].config().save_pretrained(folder / "model")
        _write_rows(folder / "data", task)
        trials = [
            {"learning_rate": 1e-3, "batch_size": 3, "epochs": 1, **options}
            for options in METHODS.values()
        ]
        rehearsed = rehearse(
            ModelConfig(name=str(folder / "model")), task, folder / "data", trials, PAD
        )
    assert rehearsed.size is not None, f"{name} cannot be made small: {rehearsed.why_not}"
    signs = {}
    for method, each in zip(METHODS, rehearsed.found, strict=True):
        sign = REFUSED if each.problem else TOGETHER if each.shares else ALONE
        signs[method] = (sign, (each.problem or "").replace(str(folder), "…"))
    return signs


def _write_rows(folder: Path, task: str) -> None:
    folder.mkdir()
    for split, rows in (("train", 12), ("validation", 6)):
        rng = np.random.default_rng(rows)
        ids = [
            np.append(rng.integers(8, VOCABULARY, rng.integers(3, 17)), END).astype(np.int32)
            for _ in range(rows)
        ]
        write_split(folder / f"{split}.arrow", _encoded(task, ids, rng))
    classes = CLASSES if task in (CLASSIFICATION, "multi_label", "token_classification") else []
    (folder / "manifest.json").write_text(json.dumps({"labels": classes}))


def _encoded(task: str, ids: list[np.ndarray], rng: np.random.Generator) -> Encoded:
    rows, classes = len(ids), len(CLASSES)
    match task:
        case "classification":
            return Encoded(input_ids=ids, labels=rng.integers(0, classes, rows))
        case "regression":
            return Encoded(input_ids=ids, labels=rng.normal(size=rows))
        case "multi_label":
            some = [rng.integers(0, 2, classes).astype(np.int32) for _ in ids]
            return Encoded(input_ids=ids, labels=some)
        case "token_classification":
            tags = [rng.integers(0, classes, len(each)).astype(np.int32) for each in ids]
            return Encoded(input_ids=ids, labels=tags)
        case "seq2seq":
            return Encoded(input_ids=ids, target_ids=ids[::-1])
        case "preference":
            both = [np.concatenate(pair) for pair in zip(ids, ids[::-1], strict=True)]
            second = np.array(list(map(len, ids)), dtype=np.int32)
            labels = [np.where(np.arange(len(each)) % 3, each, -100) for each in both]
            labels = [each.astype(np.int32) for each in labels]
            return Encoded(input_ids=both, labels=labels, second=second)
    return Encoded(input_ids=ids, labels=ids)


def line(name: str, task: str, signs: dict[str, tuple[str, str]]) -> str:
    """A family's line of the table."""
    cells = [FAMILIES[name].models, f"`{name}`", task, *(sign for sign, _ in signs.values())]
    return f"| {' | '.join(cells)} |"


def document() -> str:
    lines: list[str] = []
    reasons: dict[str, list[str]] = {}
    for name, family in FAMILIES.items():
        for task in family.tasks:
            signs = found(name, task)
            lines.append(line(name, task, signs))
            print(lines[-1], flush=True)
            for method, (_, why) in signs.items():
                if why:
                    words = f"{method}: {re.sub(r'[A-Z][A-Za-z0-9]+For[A-Z][A-Za-z]+', 'it', why)}"
                    reasons.setdefault(words, []).append(f"`{name}` ({task})")
    return "\n".join(
        [
            "# Which methods train which architectures",
            "",
            "Every family's own configuration, shrunk and rehearsed as `check` does it (two steps on drawn weights, saved, loaded again by",
            "verification and by the card's code, resumed, and in a group of another trial).",
            "",
            f"{TOGETHER} several trials share a base, each with the result that it has alone; {ALONE} each trial has a base to itself; {REFUSED} refused",
            "before anything is spent, for the reason below. What is not in the table is rehearsed all the same.",
            "",
            f"| models | architecture | task | {' | '.join(METHODS)} |",
            f"|---|---|---|{'---|' * len(METHODS)}",
            *lines,
            "",
            "## Why some are refused",
            "",
            *(f"- {words}: {', '.join(names)}" for words, names in reasons.items()),
            "",
            "Made by `.venv/bin/python -m tests.trainables.architectures`; `tests/trainables/rehearsal/test_architectures.py` holds every line of it.",
            "",
        ]
    )


if __name__ == "__main__":
    quiet()
    try:
        DOCUMENT.write_text(document(), encoding="utf-8")
    except InputError as error:
        sys.exit(str(error))
