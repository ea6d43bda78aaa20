"""Where a base model comes from, what is checked before it is trained, and which of its parts are new."""

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from trainables.errors import InputError
from trainables.models.config import ModelConfig
from trainables.models.files import (
    check_architecture,
    check_files,
    load_model_config,
    load_tokenizer,
)
from trainables.models.loading import load_model
from trainables.models.origin import resolve
from trainables.models.precision import base_dtype, computes_in_bf16
from trainables.models.quantisation import quantization
from trainables.tasks import TASKS

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def package(lab, tmp_path, monkeypatch):
    """An installed package that carries a model, and breaks when it is imported."""
    root = tmp_path / "site" / "carrier_of_a_model"
    shutil.copytree(lab.folder("bert"), root / "models" / "tiny")
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(root.parent))
    return root


# --- architectures ---


def test_an_architecture_without_a_model_for_the_task_is_refused(lab):
    llama = load_model_config(ModelConfig(name=str(lab.folder("llama"))))
    check_architecture("tiny", llama, TASKS["instruction"])
    check_architecture("tiny", llama, TASKS["classification"])
    with pytest.raises(InputError) as error:
        check_architecture("tiny", llama, TASKS["seq2seq"])
    assert str(error.value) == (
        "model.name: tiny is of architecture llama, of which transformers has no"
        " AutoModelForSeq2SeqLM (task seq2seq); allowed with it: classification, multi_label,"
        " token_classification, regression, instruction, preference, causal_lm"
    )


# --- names ---


def test_a_package_is_found_and_not_imported(package):
    assert resolve("package:carrier_of_a_model/models/tiny") == str(package / "models" / "tiny")
    assert "carrier_of_a_model" not in sys.modules


def test_a_folder_is_itself(lab, tmp_path, monkeypatch):
    folder = lab.folder("bert")
    assert resolve(str(folder)) == str(folder)
    monkeypatch.chdir(folder.parent)
    assert resolve("bert") == resolve("./bert") == str(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("~/bert") == str(folder)


@pytest.mark.parametrize("name", ["gpt2", "owner/name", "owner/name.v1"])
def test_other_names_are_of_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "package:absent_package/x",
            "model.name: the package 'absent_package' is not installed; `pip install` it first",
        ),
        (
            "package:absent.inner/x",
            "model.name: the package 'absent.inner' is not installed; `pip install` it first",
        ),
        (
            "package:carrier_of_a_model/models",
            "model.name: carrier_of_a_model has no model at 'models' (no config.json there)",
        ),
        ("./absent", "model.name: there is no folder ./absent"),
        ("/absent/folder", "model.name: there is no folder /absent/folder"),
        ("a/b/c", "model.name: there is no folder a/b/c"),
        (
            "empty",
            "model.name: empty is a folder without config.json or adapter_config.json, so it holds no model",
        ),
    ],
)
def test_names_that_lead_nowhere(package, tmp_path, monkeypatch, name, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        resolve(name)
    assert str(caught.value) == message


def test_a_model_must_be_named():
    with pytest.raises(
        InputError, match=r"^model.name: not given; a hub id, a folder, or package:PACKAGE/FOLDER$"
    ):
        ModelConfig()


def test_a_hub_id_that_cannot_be_loaded_is_one_line(monkeypatch):
    for load in (load_model_config, load_tokenizer):
        with pytest.raises(InputError) as caught:
            load(ModelConfig(name="no-such-owner/no-such-model"))
        message = str(caught.value)
        assert message.startswith(
            "model.name: could not load 'no-such-owner/no-such-model' as a folder or from the hub: "
        )
        assert "\n" not in message


def test_a_broken_configuration_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="model.name: could not load") as caught:
        load_model_config(ModelConfig(name=str(tmp_path)))
    assert "\n" not in str(caught.value)


# --- files ---


def test_the_weights_are_compared_with_their_digest(lab):
    folder = lab.folder("bert")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    check_files(ModelConfig(name=str(folder), sha256=digest))
    check_files(ModelConfig(name=str(folder)))
    check_files(ModelConfig(name="owner/name"))
    with pytest.raises(InputError) as caught:
        check_files(ModelConfig(name=str(folder), sha256="0" * 64))
    assert str(caught.value) == (
        f"model.sha256: model.safetensors has {digest}, expected {'0' * 64}; the file is not the one you meant"
    )


def test_weights_that_are_not_whole_are_found_without_loading_them(lab, tmp_path):
    def complaint(change):
        folder = tmp_path / change.__name__
        shutil.copytree(lab.folder("bert"), folder)
        change(folder)
        with pytest.raises(InputError) as caught:
            check_files(ModelConfig(name=str(folder)))
        return str(caught.value).replace(str(folder), "FOLDER")

    def none(folder):
        (folder / "model.safetensors").unlink()

    def cut(folder):
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])

    def lacking(folder):
        index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    assert (
        complaint(none)
        == "model.name: FOLDER holds no weights (no *.safetensors beside its config.json)"
    )
    assert complaint(cut).startswith(
        "model.name: FOLDER: model.safetensors is damaged or cut off ("
    )
    assert complaint(lacking) == (
        "model.name: FOLDER lacks model-00002.safetensors, which its model.safetensors.index.json names"
    )


def test_a_folder_without_a_tokenizer(lab, tmp_path):
    shutil.copy(lab.folder("bert") / "config.json", tmp_path)
    with pytest.raises(
        InputError, match="has no tokenizer, or one without a vocabulary; are its files there"
    ):
        load_tokenizer(ModelConfig(name=str(tmp_path)))


def test_a_digest_needs_a_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name in (str(tmp_path), "owner/name"):
        with pytest.raises(InputError) as caught:
            check_files(ModelConfig(name=name, sha256="0" * 64))
        assert str(caught.value) == (
            f"model.sha256: needs a folder or package with model.safetensors, and {name} has none"
        )


# --- tokenizer ---


def save_tokenizer(folder, **special):
    words = tokenizers.models.WordLevel(
        {"a": 0, "b": 1, "<end>": 2, "<pad>": 3, "<unk>": 4}, unk_token="<unk>"
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), **special
    )
    fast.padding_side = "left"
    fast.save_pretrained(folder)
    return ModelConfig(name=str(folder))


def test_tokenizers_pad_on_the_right_with_some_token(lab, tmp_path):
    for number, (special, pad) in enumerate(
        [
            ({"pad_token": "<pad>", "eos_token": "<end>"}, 3),
            ({"pad_token": "<pad>"}, 3),
            ({"eos_token": "<end>"}, 2),
        ]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(lab.folder("llama"), folder)
        tokenizer = load_tokenizer(save_tokenizer(folder, **special))
        assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("right", pad)


def test_a_tokenizer_without_any_token_to_pad_with(lab, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(lab.folder("llama"), folder)
    config = save_tokenizer(folder)
    with pytest.raises(InputError) as caught:
        load_tokenizer(config)
    assert str(caught.value) == (
        f"model.name: the tokenizer of {folder} has neither a padding nor an end-of-text token"
    )


# --- the loaded base ---


@pytest.mark.parametrize(
    ("model", "head", "new"),
    [
        ("bert", {"classifier"}, {"classifier"}),
        ("bert-language-model", {"classifier", "bert.pooler"}, {"classifier", "bert.pooler"}),
        ("bert-classifier", {"classifier"}, set()),
        ("bert-two-classes", {"classifier"}, {"classifier"}),
        ("roberta", {"classifier"}, {"classifier"}),
        ("distilbert", {"classifier", "pre_classifier"}, {"classifier", "pre_classifier"}),
        ("llama", set(), set()),
    ],
)
def test_the_head_is_what_stands_above_the_backbone(lab, model, head, new):
    base = lab.load(model)
    assert (set(base.head), set(base.new)) == (head, new)
    for name, _ in base.model.named_parameters():
        assert base.in_head(name) == name.startswith(tuple(f"{h}." for h in head))


@pytest.mark.parametrize(
    "model", ["bert", "bert-language-model", "bert-classifier", "bert-two-classes", "roberta"]
)
def test_what_the_checkpoint_brought_is_loaded_and_the_rest_is_drawn_from_the_seed(lab, model):
    brought = lab.tensors(lab.folder(model))
    brought = {
        name.split(": ")[1].removeprefix("bert.").removeprefix("roberta."): t
        for name, t in brought.items()
    }
    zero, again, one = (lab.load(model, seed=seed) for seed in (0, 0, 1))
    for name, parameter in zero.model.named_parameters():
        same, other = again.model.get_parameter(name), one.model.get_parameter(name)
        assert torch.equal(parameter, same)
        drawn = any(name.startswith(f"{module}.") for module in zero.new)
        if drawn:
            assert name.endswith("bias") or not torch.equal(parameter, other)
        else:
            assert torch.equal(parameter, other)
            assert torch.equal(
                parameter, brought[name.removeprefix("bert.").removeprefix("roberta.")]
            )


@pytest.mark.parametrize("model", ["bert", "bert-language-model", "bert-classifier"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_boarding_keeps_what_the_checkpoint_brought(lab, model, method, tmp_path):
    """A trial's seed draws the new parts, and only those."""
    group = lab.group(model)
    group.untuned_results(method)
    base = lab.bases[-1]
    before = {name: parameter.clone() for name, parameter in base.model.named_parameters()}
    group.join("t", lab.params(method, seed=5))
    after = dict(base.model.named_parameters())
    for name, parameter in before.items():
        if not any(name.startswith(f"{module}.") for module in base.new):
            found = [
                p
                for n, p in after.items()
                if n.replace("base_layer.", "").replace("original_module.", "") == name
            ]
            assert len(found) == 1 and torch.equal(found[0], parameter)
    group.leave("t")


def test_loading_uses_no_outer_randomness(lab):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    base = lab.load("bert")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(base.model.classifier.weight, lab.load("bert").model.classifier.weight)


def test_the_base_is_frozen_in_eval_mode_without_dropout_inside_attention(lab):
    for model in ("bert", "distilbert", "llama"):
        base = lab.load(model)
        assert not any(module.training for module in base.model.modules())
        assert not any(parameter.requires_grad for parameter in base.model.parameters())
        config = base.model.config
        for name in ("attention_dropout", "attention_probs_dropout_prob"):
            assert getattr(config, name, 0.0) == 0.0
    assert lab.load("bert").model.config.hidden_dropout_prob == 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_base_has_the_type_that_was_asked_for(lab, dtype):
    base = lab.load("llama", dtype=dtype)
    assert base.dtype == dtype
    assert {parameter.dtype for parameter in base.model.parameters()} == {dtype}


def test_a_quantised_base_keeps_its_head_and_output_as_they_were(lab):
    llama, bert = lab.load("llama", quantisation="nf4"), lab.load("bert", quantisation="nf4")
    import bitsandbytes

    for base, whole in ((llama, "lm_head"), (bert, "classifier")):
        layers = {
            n for n, m in base.model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)
        }
        assert layers and whole not in layers
        assert not any(base.model.get_submodule(name).support_avx512bf16_for_cpu for name in layers)
    assert torch.equal(bert.model.classifier.weight, lab.load("bert").model.classifier.weight)


@pytest.mark.parametrize(
    ("dtype", "method", "expected"),
    [
        ("auto", "full", torch.float32),
        ("auto", "lora", torch.float32),
        ("bfloat16", "lora", torch.bfloat16),
        ("float16", "full", torch.float16),
    ],
)
def test_type_of_the_base_on_a_cpu(dtype, method, expected):
    assert base_dtype(ModelConfig(name="m", dtype=dtype), method, CPU) == expected


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("lora", torch.bfloat16),
        ("qlora", torch.bfloat16),
        ("prompt", torch.bfloat16),
        ("full", torch.float32),
        ("partial", torch.float32),
    ],
)
def test_only_what_stays_frozen_is_small_on_a_gpu(monkeypatch, method, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert base_dtype(ModelConfig(name="m"), method, GPU) == expected
    assert (
        base_dtype(ModelConfig(name="m"), method, GPU, "float32") == torch.float32
    )  # as the arithmetic


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32(monkeypatch, method):
    """T4 and V100, of which torch says that they support it."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert (
        torch.cuda.is_bf16_supported() and not computes_in_bf16(GPU) and not computes_in_bf16(CPU)
    )
    assert base_dtype(ModelConfig(name="m"), method, GPU) == torch.float32
    assert quantization("nf4", GPU, []).bnb_4bit_compute_dtype == torch.float32


def test_one_function_tells_whether_a_gpu_has_bfloat16():
    files = (ROOT / package for package in ("trainables", "sweeps", "cluster"))
    found = [
        file.name
        for folder in files
        for file in folder.rglob("*.py")
        if "is_bf16_supported" in file.read_text()
    ]
    assert found == ["precision.py"]


# --- weights that do not fit ---


def load_altered(lab, tmp_path, model, change):
    """`model` with other weights."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "altered"
    shutil.copytree(lab.folder(model), folder)
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return load_model(
        replace(lab.spec(model), model=ModelConfig(name=str(folder))), device=CPU, seed=0
    )


@pytest.mark.parametrize(
    ("model", "lost"),
    [
        ("bert", "layer.0."),
        ("bert", "layer.1.output.dense."),
        ("bert", "layer.1.output.dense.bias"),
        ("bert", "word_embeddings"),
        ("bert-classifier", "layer"),
        ("llama", "layers.0."),
        ("llama", "layers.1.mlp.up_proj"),
        ("llama", "lm_head"),
    ],
)
def test_half_a_checkpoint_is_refused(lab, tmp_path, model, lost):
    """A layer drawn at random is no new head."""
    with pytest.raises(InputError) as caught:
        load_altered(
            lab, tmp_path, model, lambda w: {name: t for name, t in w.items() if lost not in name}
        )
    assert str(caught.value).startswith("model.name: the weights of ")
    assert " lack " in str(caught.value) and "\n" not in str(caught.value)


def test_a_vocabulary_of_another_size_is_refused(lab, tmp_path):
    name = "embeddings.word_embeddings.weight"
    with pytest.raises(InputError, match="model.name: ") as caught:
        load_altered(
            lab, tmp_path, "bert", lambda weights: {**weights, name: weights[name][:50].clone()}
        )
    assert "\n" not in str(caught.value)


def test_an_encoder_is_no_causal_language_model(lab, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(lab.folder("llama"), folder)
    weights = lab.folder("bert") / "model.safetensors"
    shutil.copy(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match="lack .*: they are not those of such a language model$"):
        load_model(
            replace(lab.spec("llama"), model=ModelConfig(name=str(folder))), device=CPU, seed=0
        )


def test_padding_with_the_end_token_freezes_no_embedding(lab, tmp_path):
    """Where a tokenizer has no padding token the end-of-text token pads; it must still be learnt where it is read."""
    base = lab.load("llama")
    assert json.loads((lab.folder("llama") / "config.json").read_text())["pad_token_id"] == 0
    base.model.requires_grad_(True)
    rows = torch.tensor([[5, 0, 7, 8]])  # token 0 is both the padding token and part of the text
    base.model(input_ids=rows).logits.square().sum().backward()
    gradient = base.model.get_input_embeddings().weight.grad
    assert gradient[5].abs().max() > 0
    assert gradient[0].abs().max() > 0
