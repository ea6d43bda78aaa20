"""Load the base model and its tokenizer: from a hub, a folder, or a Python package that carries the files."""

import copy
import hashlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from trainables.errors import InputError

Variant = Literal["plain", "nf4", "int8"]  # how the base lies in memory; trials of one variant share a loaded base


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """`model` in the sweep file."""

    name: str = ""  # hub id, folder, or package:PACKAGE/FOLDER for a model that an installed Python package carries
    revision: str | None = None  # branch, tag or commit on the hub
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the base weights; auto: see `base_dtype`
    trust_remote_code: bool = False  # run Python code that comes with the model
    sha256: str | None = None  # of model.safetensors (folder or package); checked before the weights are loaded

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("model.name: not given; a hub id, a folder, or package:PACKAGE/FOLDER")


@dataclass(frozen=True, kw_only=True)
class BaseSpec:
    """Which base, and made fit for what. The same wherever a base is loaded, be it for training, for the test, for
    verification or by the code on a winner's card: a base that is loaded otherwise is another model.
    """

    model: ModelConfig
    auto_class: str  # name of the class of transformers
    variant: Variant = "plain"
    dtype: Any = None  # torch.dtype of the weights that are not quantised; None: that of the checkpoint
    pad_token_id: int  # the tokenizer's, which the model's configuration need not name, or may name otherwise
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
    """A loaded base, and the names of its modules that are always trained: what stands above the backbone of a classifier."""

    model: Any  # transformers.PreTrainedModel
    variant: Variant
    dtype: Any  # torch.dtype that was asked for
    head: tuple[str, ...] = ()
    new: tuple[str, ...] = ()  # those of the head that the checkpoint did not bring; drawn from each trial's seed
    fixed: frozenset[str] = frozenset()  # parameters that the model itself never trains, such as tables of sinusoids
    spec: BaseSpec | None = None  # how it was loaded; None: it was drawn, and not loaded at all
    config: Any = None  # transformers configuration of what leaves: without what only training sets
    # a language model's output layer, where its logits are just what that layer gives: the loss is then computed from
    # hidden states, of targets alone and in chunks
    output: Any = None

    def in_head(self, name: str) -> bool:
        """Whether the module or parameter `name` belongs to the head."""
        return f"{name}.".startswith(tuple(f"{module}." for module in self.head))


def quiet() -> None:
    """No progress bars and advice from libraries in logs that people read; their errors still come."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in ("bitsandbytes", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def resolve(name: str) -> str:
    """The folder of `package:PACKAGE/FOLDER` (the package is found, not imported) or of a path; a hub id as it is."""
    if name.startswith("package:"):
        package, _, inside = name.removeprefix("package:").partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.origin is None:
            raise InputError(f"model.name: the package {package!r} is not installed; `pip install` it first")
        folder = Path(spec.origin).parent / inside
        if not (folder / "config.json").is_file():
            raise InputError(f"model.name: {package} has no model at {inside!r} (no config.json there)")
        return str(folder)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                f"model.name: {name} is an adapter, not a model by itself; give the base that it was trained over, or a folder "
                "with both merged (in PEFT: load it, then `merge_and_unload()` and `save_pretrained(FOLDER)`)"
            )
        if not (folder / "config.json").is_file():
            raise InputError(f"model.name: {name} is a folder without config.json, so it holds no model")
        return str(folder.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"model.name: there is no folder {name}")
    return name


def check_files(config: ModelConfig) -> None:
    """That a folder or package has whole weights; where `config.sha256` is given, that `model.safetensors` has it."""
    folder = Path(resolve(config.name))
    if config.sha256 is None:
        if folder.is_dir():
            _check_weights(config.name, folder)
        return
    file = folder / "model.safetensors"
    if not file.is_file():
        raise InputError(f"model.sha256: needs a folder or package with model.safetensors, and {config.name} has none")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != config.sha256:
        raise InputError(
            f"model.sha256: {file.name} has {found}, expected {config.sha256}; the file is not the one you meant"
        )


def _check_weights(name: str, folder: Path) -> None:
    """Raise InputError where `folder` holds no weights, lacks some of the files that its index names, or has a file that was
    cut off; only headers are read.
    """
    from safetensors import SafetensorError, safe_open

    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise InputError(f"model.name: {name} holds no weights (no *.safetensors or *.bin beside its config.json)")
    for index in folder.glob("*.index.json"):
        shards = json.loads(index.read_text()).get("weight_map", {}).values()
        if lacking := sorted({shard for shard in shards if not (folder / shard).is_file()}):
            raise InputError(f"model.name: {name} lacks {', '.join(lacking[:3])}, which its {index.name} names")
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise InputError(
                f"model.name: {name}: {file.name} is damaged or cut off ({error}); copy it again"
            ) from error


def fingerprint(config: ModelConfig) -> dict[str, str]:
    """What tells this base model from another: SHA-256 of its files in a folder or package, the commit of one on a hub."""
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


def _hub_error(config: ModelConfig, error: Exception) -> InputError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InputError(f"model.name: could not load {config.name!r} as a folder or from the hub: {first[:300]}")


def load_model_config(config: ModelConfig) -> Any:
    """The transformers configuration (architecture, context length), without weights."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            resolve(config.name), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _hub_error(config, error) from error


def context_length(config: Any) -> int | None:
    """Tokens that a model of this transformers configuration takes; None where it does not say, or takes any number."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer, padding on the right, with a padding token (the end-of-text token where the model names none)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve(config.name), revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _hub_error(config, error) from error
    if not set(tokenizer.get_vocab()) - set(
        tokenizer.all_special_tokens
    ):  # transformers makes one up where there is none
        raise InputError(
            f"model.name: {config.name} has no tokenizer, or one without a vocabulary; are its files there?"
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"model.name: the tokenizer of {config.name} has neither a padding nor an end-of-text token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def computes_in_bf16(device: Any) -> bool:
    """Whether `device` is a GPU that multiplies in bfloat16 itself. Older ones (T4, V100) emulate it, slower than float32."""
    import torch

    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def base_dtype(config: ModelConfig, method: str, device: Any, precision: str = "auto") -> Any:
    """Type of the base weights for `method` on `device`. precision: of the arithmetic, `train.precision`; without autocast
    that is the type of the weights, so who asks for float32 gets them so.

    auto: bfloat16 for frozen bases on GPUs that have it, since what trials add to them, heads too, is kept in float32
    (trainables.stack); float32 on CPUs and where weights of the base are trained (full and partial fine-tuning: bfloat16
    weights lose small updates).
    """
    import torch

    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    frozen = method not in ("full", "partial") and precision != "float32"
    return torch.bfloat16 if frozen and computes_in_bf16(device) else torch.float32


def load_pretrained(
    spec: BaseSpec, device: Any, *, source: str | Path | None = None, config: Any = None
) -> tuple[Any, dict[str, Any]]:
    """The model of `spec` on `device` in eval mode, and what transformers tells of loading it.

    source: a folder that holds the same model with other weights, as full fine-tuning leaves it. config: instead of
    that which `spec` gives, or the folder has.
    """
    import transformers

    extra: dict[str, Any] = {}
    if source is None:
        config = config or spec.config()
        check_class(spec, config)
    if config is not None:
        extra["config"] = config
    if spec.variant != "plain" and source is None:
        extra["quantization_config"] = quantization(spec.variant, device, unquantised(spec, config))
        extra["device_map"] = {"": device}
    try:
        model, info = getattr(transformers, spec.auto_class).from_pretrained(
            source or resolve(spec.model.name),
            revision=spec.model.revision if source is None else None,
            trust_remote_code=spec.model.trust_remote_code,
            dtype=spec.dtype or "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=spec.is_classifier,
            **extra,
        )
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        if source is not None:
            raise InputError(f"{source}: could not load the trained model: {str(error).splitlines()[0][:300]}") from error
        raise _hub_error(spec.model, error) from error
    if spec.variant != "plain" and source is None:
        keep_rows_apart(model)
    else:
        model.to(device)
    return model.eval(), info


def check_class(spec: BaseSpec, config: Any) -> None:
    """Raise InputError where transformers has no model of this architecture for the task."""
    import transformers

    known = getattr(transformers, spec.auto_class)._model_mapping
    own_code = getattr(config, "auto_map", None) or {}
    if type(config) not in known and spec.auto_class not in own_code:
        what = "classifies texts" if spec.is_classifier else "is a causal language model"
        raise InputError(
            f"model.name: transformers has no {config.model_type} that {what} ({spec.auto_class}); choose another model, "
            "or another task"
        )


def unquantised(spec: BaseSpec, config: Any) -> list[str]:
    """Names of the linear layers that a quantised base keeps as they are."""
    import transformers

    from trainables.structure import on_meta, outside_layers

    return outside_layers(on_meta(getattr(transformers, spec.auto_class), config, spec.model.trust_remote_code))


def load_model(spec: BaseSpec, *, device: Any, seed: int) -> BaseModel:
    """The base in eval mode on `device`, for training. A new head is drawn from `seed`, so every load gives the same one.

    A classifier whose head has other classes than the data gets a new head.

    Attention dropout is set to 0 (inside fused attention it cannot be drawn per row); other dropout stays as configured.
    Raises InputError where the weights are not those of the task's architecture, or where a language model sees what it
    is to predict.
    """
    import torch

    from trainables.structure import above_backbone

    leaves = spec.config()
    config = copy.deepcopy(leaves)
    for name in ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop"):
        if getattr(config, name, 0):
            setattr(config, name, 0.0)
    if not spec.is_classifier:
        config.use_cache = False
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a new head is announced as a warning; here it is what was asked for
        torch.manual_seed(seed)
        model, info = load_pretrained(spec, device, config=config)
    missing = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    new: tuple[str, ...] = ()
    if spec.is_classifier:
        # above the backbone, or its pooler: anything else that is missing would be trained from scratch unnoticed
        outside = (f"{model.base_model_prefix}.",)
        new = tuple(
            name for name in _new_modules(model, missing) if not name.startswith(outside) or name.endswith(".pooler")
        )
    lacking = sorted(key for key in missing if not key.startswith(tuple(f"{module}." for module in new)))
    if lacking:
        what = "this architecture" if spec.is_classifier else "a causal language model"
        raise InputError(
            f"model.name: the weights of {spec.model.name} lack {', '.join(lacking[:3])}: they are not those of {what}"
        )
    head: tuple[str, ...] = ()
    if spec.is_classifier:
        above = above_backbone(model)
        head = (*above, *(name for name in new if name.split(".")[0] not in above))
    else:
        # the padding token is often the end-of-text token too, and torch gives the row of a padding index no gradient
        model.get_input_embeddings().padding_idx = None
    fixed = frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if not spec.is_classifier:
        check_causal(model, spec.model.name)
    output = None if spec.is_classifier else output_layer(model)
    return BaseModel(
        model=model,
        variant=spec.variant,
        dtype=spec.dtype,
        head=head,
        new=new,
        output=output,
        fixed=fixed,
        spec=spec,
        config=leaves,
    )


def check_causal(model: Any, name: str) -> None:
    """Raise InputError where a token has a say in what the model predicts before it: such a model reaches any loss
    without learning anything.
    """
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(8, device=model.device)[None] * 7 + 3) % vocabulary
    changed, at = ids.clone(), 5
    changed[0, at] = (changed[0, at] + 1 + vocabulary // 2) % vocabulary
    mask = torch.ones_like(ids)
    with torch.no_grad():
        before, after = (model(input_ids=x, attention_mask=mask).logits[0].float() for x in (ids, changed))
    moved = (after - before).abs().amax(dim=-1)
    # what cannot see it computes the same; a thousandth is room for kernels that round otherwise
    if bool(moved[:at].max() > 1e-3 * moved[at:].max()):
        raise InputError(
            f"model.name: {name} ({type(model).__name__}) sees the tokens that it is to predict; choose a causal language "
            "model, or task classification"
        )


def quantization(variant: Variant, device: Any, skipped: list[str]) -> Any:
    """What transformers needs to load a base as `variant`. `skipped`: names of the modules that stay as they are.

    Without bfloat16, 4-bit weights are multiplied in float32: in float16, activations of some models overflow, and small
    gradients vanish where no loss is scaled.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if variant == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if computes_in_bf16(device) else torch.float32,
        llm_int8_skip_modules=skipped,
    )


@contextmanager
def hidden_states(output: Any) -> Iterator[None]:
    """Inside, a language model gives the inputs of its `output` layer in the place of its logits; None: its logits."""
    if output is None:
        yield
        return
    output.forward = lambda hidden: hidden
    try:
        yield
    finally:
        del output.forward


def output_layer(model: Any) -> Any:
    """The output layer of a language model, unless the model does something with what comes out of it (some cap or scale their logits)."""
    import torch

    output = model.get_output_embeddings()
    if output is None or "forward" in vars(output):
        return None
    ids = torch.arange(4, device=model.device)[None] % model.config.vocab_size
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        with hidden_states(output):
            hidden = model(input_ids=ids).logits
        same = hidden.shape[-1] == output.weight.shape[-1] and torch.allclose(
            output(hidden), logits, rtol=1e-3, atol=1e-3
        )
    return output if same else None


def _new_modules(model: Any, missing: set[str]) -> tuple[str, ...]:
    """The outermost modules of which the checkpoint brought nothing."""
    names = [name for name, _ in model.named_parameters()]
    found: list[str] = []
    for module, _ in model.named_modules():  # outer ones come before inner ones
        inside = [name for name in names if name.startswith(f"{module}.")]
        if (
            module
            and inside
            and missing.issuperset(inside)
            and not module.startswith(tuple(f"{outer}." for outer in found))
        ):
            found.append(module)
    return tuple(found)


def keep_rows_apart(model: Any) -> None:
    """Make 4-bit and 8-bit layers compute every row by itself, with its gradient.

    4 bits: switches off a CPU fast path of bitsandbytes that repacks weights in eval mode and then drops the input's
    gradient. 8 bits: LLM.int8 looks for outliers over all rows of a pass and rounds activations, so that a row's result
    would depend on its company; here weights are dequantised and activations left as they are.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            module.__class__ = _weight_only()


@cache
def _weight_only() -> Any:
    import bitsandbytes
    import torch

    def weights(codes: Any, scales: Any, dtype: Any) -> Any:
        return (codes * (scales / 127)[:, None]).to(dtype)

    class Product(torch.autograd.Function):
        """x W^T + b. The weights are dequantised again for the gradient: kept, they would be the whole base."""

        @staticmethod
        def forward(ctx: Any, x: Any, codes: Any, scales: Any, bias: Any) -> Any:
            ctx.codes, ctx.scales = codes, scales
            return torch.nn.functional.linear(x, weights(codes, scales, x.dtype), bias)

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            return dy @ weights(ctx.codes, ctx.scales, dy.dtype), None, None, None

    class Linear8bitWeights(bitsandbytes.nn.Linear8bitLt):
        def forward(self, x: Any) -> Any:
            if self.weight.CB is not None:
                self.init_8bit_state()
            dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
            bias = None if self.bias is None else self.bias.to(dtype)
            return Product.apply(x.to(dtype), self.state.CB, self.state.SCB, bias)

    return Linear8bitWeights
