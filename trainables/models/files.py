"""A model's files: from a hub, a folder, or a Python package that carries them."""

import hashlib
import importlib.util
import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.errors import InputError
from trainables.models.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


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


def resolve(name: str) -> str:
    """The folder of `package:PACKAGE/FOLDER` (the package is found, not imported) or of a path; a
    hub id as it is.
    """
    if name.startswith("package:"):
        return str(_in_package(*name.removeprefix("package:").partition("/")[::2]))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                f"model.name: {name} is an adapter, not a model by itself; give the base that it"
                " was trained over, or a folder with both merged (in PEFT: load it, then"
                " `merge_and_unload()` and `save_pretrained(FOLDER)`)"
            )
        if not (folder / "config.json").is_file():
            raise InputError(
                f"model.name: {name} is a folder without config.json, so it holds no model"
            )
        return str(folder.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"model.name: there is no folder {name}")
    return name


def _in_package(package: str, inside: str) -> Path:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(
            f"model.name: the package {package!r} is not installed; `pip install` it first"
        )
    folder = Path(spec.origin).parent / inside
    if not (folder / "config.json").is_file():
        raise InputError(f"model.name: {package} has no model at {inside!r} (no config.json there)")
    return folder


def check_files(config: ModelConfig) -> None:
    """That a folder or package has whole weights; where `config.sha256` is given, that
    `model.safetensors` has it.
    """
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


def _check_weights(name: str, folder: Path) -> None:
    """Raise InputError where `folder` holds no weights, lacks some of the files that its index
    names, or has a file that was cut off; only headers are read.
    """
    from safetensors import SafetensorError, safe_open

    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise InputError(
            f"model.name: {name} holds no weights (no *.safetensors or *.bin beside its"
            " config.json)"
        )
    for index in folder.glob("*.index.json"):
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


def fingerprint(config: ModelConfig) -> dict[str, str]:
    """What tells this base model from another: SHA-256 of its files in a folder or package, the
    commit of one on a hub.
    """
    folder = Path(resolve(config.name))
    if not folder.is_dir():
        commit = getattr(load_model_config(config), "_commit_hash", None)
        return {"commit": commit} if commit else {}
    found = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".json", ".txt", ".model"):
            with file.open("rb") as stream:
                found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def hub_error(config: ModelConfig, error: Exception) -> InputError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(
        f"model.name: could not load {config.name!r} as a folder or from the hub: {first[:300]}"
    )


def load_model_config(config: ModelConfig) -> "PreTrainedConfig":
    """The transformers configuration (architecture, context length), without weights."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            resolve(config.name),
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise hub_error(config, error) from error


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

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve(config.name),
            revision=config.revision,
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


def pad_token_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that rows are padded with; `load_tokenizer` has seen to it that there is one."""
    found = tokenizer.pad_token_id
    assert isinstance(found, int), f"a padding token has one id, not {found!r}"
    return found
