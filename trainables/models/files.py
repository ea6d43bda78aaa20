"""A model's files: from a hub, a folder, or a Python package that carries them."""

import hashlib
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.errors import InputError
from trainables.models.config import ModelConfig
from trainables.models.lineage import LINEAGE
from trainables.models.origin import Adapter, adapter_of, resolve, why_not_merged, with_files
from trainables.models.weights import NO_SAFETENSORS, pickled_on_hub, refuse_pickled

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from trainables.tasks import Task


def quiet() -> None:
    """No progress bars and advice from libraries in logs that people read; their errors still
    come.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("bitsandbytes", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def check_files(config: ModelConfig) -> None:
    """That a folder or package has whole weights, an adapter can be used as it is to be, and so can
    its base; where `config.sha256` is given, that `model.safetensors` has it.
    """
    if (adapter := adapter_of(config)) is not None:
        _check_adapter(config, adapter)
        if not adapter.is_beside:
            check_files(adapter.base)
        return
    folder = Path(resolve(config.name))
    if config.sha256 is None:
        if folder.is_dir():
            _check_weights(config.name, folder)
        return
    file = folder / "model.safetensors"
    if not file.is_file():
        raise InputError(
            f"model.sha256: needs a folder or package with model.safetensors, and {config.name} has"
            " none"
        )
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != config.sha256:
        raise InputError(
            f"model.sha256: {file.name} has {found}, expected {config.sha256}; the file is not the"
            " one you meant"
        )


def _check_adapter(config: ModelConfig, adapter: Adapter) -> None:
    if config.sha256 is not None:
        raise InputError(
            f"model.sha256: is of the weights of a whole model, and {config.name} is an adapter"
        )
    _check_weights(config.name, adapter.weights.parent)
    if config.adapter == "merge" and (why := why_not_merged(adapter)) is not None:
        raise InputError(
            f"model.name: {config.name} cannot be merged into its base: {why}; set model.adapter:"
            " continue to train it further"
        )


def _check_weights(name: str, folder: Path) -> None:
    """Raise InputError where `folder` holds no weights, lacks some of the files that its index
    names, or has a file that was cut off; only headers are read.
    """
    from safetensors import SafetensorError, safe_open

    refuse_pickled(name, folder)
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"model.name: {name} holds no weights (no *.safetensors beside its config.json)"
        )
    for index in folder.glob("*.safetensors.index.json"):
        shards = json.loads(index.read_text()).get("weight_map", {}).values()
        if lacking := sorted({shard for shard in shards if not (folder / shard).is_file()}):
            raise InputError(
                f"model.name: {name} lacks {', '.join(lacking[:3])}, which its {index.name} names"
            )
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise InputError(
                f"model.name: {name}: {file.name} is damaged or cut off ({error}); copy it again"
            ) from error


def digest_of(base: Mapping[str, str]) -> str | None:
    """What tells a base from others in a word: its commit on the hub, or SHA-256 of what
    `fingerprint` gave; None where nothing is known.
    """
    files = hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest()
    return base.get("commit", files) if base else None


def fingerprint(config: ModelConfig) -> dict[str, str]:
    """What tells this base model from another: SHA-256 of its files in a folder or package, the
    commit of one on a hub; of an adapter those of its base, and its own files.
    """
    if (adapter := adapter_of(config)) is not None:
        below = {} if adapter.is_beside else fingerprint(adapter.base)
        own = {f"adapter/{name}": of for name, of in _digests(adapter.folder).items()}
        return {**below, **own, "adapter": config.adapter}
    folder = Path(resolve(config.name))
    if folder.is_dir():
        return _digests(folder)
    commit = getattr(load_model_config(config), "_commit_hash", None)
    return {"commit": commit} if commit else {}


# beside a winner, about how it came to be
ABOUT = ("winner.json", LINEAGE)


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for file in sorted(folder.iterdir()):
        if file.name in ABOUT:
            continue
        if file.suffix in (".safetensors", ".bin", ".json", ".txt", ".model"):
            with file.open("rb") as stream:
                found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def hub_error(config: ModelConfig, error: Exception) -> InputError:
    if NO_SAFETENSORS in str(error):
        return pickled_on_hub(config.name)
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(
        f"model.name: could not load {config.name!r} as a folder or from the hub: {first[:300]}"
    )


def load_model_config(config: ModelConfig) -> "PreTrainedConfig":
    """The transformers configuration (architecture, context length), without weights."""
    from transformers import AutoConfig

    model = with_files(config)
    try:
        return AutoConfig.from_pretrained(
            resolve(model.name),
            revision=model.revision,
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise hub_error(config, error) from error


def check_architecture(model: str, config: "PreTrainedConfig", task: "Task") -> None:
    """Raise InputError where transformers has none for this task of the architecture of `model`."""
    import transformers

    from trainables.tasks import TASKS

    def trains(task: "Task") -> bool:
        return type(config) in getattr(transformers, task.auto_class)._model_mapping

    if trains(task) or getattr(config, "auto_map", None):  # or code of its own has it
        return
    allowed = ", ".join(name for name, each in TASKS.items() if trains(each))
    raise InputError(
        f"model.name: {model} is of architecture {config.model_type}, of which transformers"
        f" has no {task.auto_class} (task {task.name}); allowed with it: {allowed or 'no task'}"
    )


def context_length(config: "PreTrainedConfig") -> int | None:
    """Tokens that a model of this transformers configuration takes; None where it does not say, or
    takes any number.
    """
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def width_and_layers(config: ModelConfig) -> tuple[int, int]:
    """Hidden size and number of layers, of the decoder where there are two stacks."""
    text = load_model_config(config).get_text_config()
    return text.hidden_size, text.num_hidden_layers


def load_tokenizer(config: ModelConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer, padding on the right, with a padding token (the end-of-text token where the
    model names none).
    """
    from transformers import AutoTokenizer

    model = _with_tokenizer(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve(model.name),
            revision=model.revision,
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise hub_error(config, error) from error
    # transformers makes one up where there is none
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise InputError(
            f"model.name: {config.name} has no tokenizer, or one without a vocabulary; are its"
            " files there?"
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"model.name: the tokenizer of {config.name} has neither a padding nor an"
                " end-of-text token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _with_tokenizer(config: ModelConfig) -> ModelConfig:
    """The model whose files have the tokenizer: the adapter's own, as it was trained with, else its
    base's.
    """
    adapter = adapter_of(config)
    if adapter is None or (adapter.folder / "tokenizer_config.json").is_file():
        return config if adapter is None else replace(config, revision=None)
    return _with_tokenizer(adapter.base)


def pad_token_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that rows are padded with; `load_tokenizer` has seen to it that there is one."""
    found = tokenizer.pad_token_id
    assert isinstance(found, int), f"a padding token has one id, not {found!r}"
    return found
