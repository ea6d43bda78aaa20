"""What is exported is loaded again, and gives what was reported; what would not is refused."""

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import fsspec
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import sweeps.use.export
import sweeps.use.export_formats
from sweeps.__main__ import main
from sweeps.use.export import export
from sweeps.use.export_formats import PACKAGES, Request
from sweeps.use.trained import open_trained
from tests.sweeps.use.exports import loaded
from tests.sweeps.use.tiny_sweep import TRIAL, drawn, tiny_sweep
from tests.trainables import zoo
from trainables.errors import InputError, NotExported
from trainables.evaluation.reloaded import Rows, score_in_fresh_process
from trainables.models.gguf import ENVIRONMENT
from trainables.models.vllm import A, B, vllm_words
from trainables.tasks import TASKS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

FAMILIES = {"llama": ("causal", "causal_lm"), "bert": ("classification", "classification")}
METHODS = {
    "full": ("full", {"learning_rate": 1e-3}),
    "partial": ("partial", {"layers": 1, "learning_rate": 1e-3}),
    "lora": ("lora", {"rank": 4}),
    "rslora": ("lora", {"rank": 4, "rslora": True, "targets": "attention"}),
    "dora": ("lora", {"rank": 4, "use_dora": True}),
    "pissa": ("lora", {"rank": 4, "init_lora_weights": "pissa", "learning_rate": 1e-3}),
    "qlora": ("qlora", {"rank": 4}),
    "qlora-8": ("qlora", {"rank": 4, "bits": 8}),
    "ia3": ("ia3", {}),
    "vera": ("vera", {"rank": 8}),
    "adalora": ("adalora", {"init_r": 4, "target_r": 2}),
    "prompt": ("prompt", {"virtual_tokens": 3}),
    "prefix": ("prefix", {"virtual_tokens": 3}),
    "adapter": ("adapter", {"bottleneck": 4}),
}
WHOLE, BESIDE = ("full", "partial"), ("prompt", "prefix", "adapter")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of sweeps, each made once."""
    root, known = tmp_path_factory.mktemp("sweeps"), {}

    def make(method: str, family: str = "llama") -> Path:
        if (method, family) not in known:
            kind, task = FAMILIES[family]
            model = root / family
            if not model.exists():
                drawn(model, family, kind)
            name, options = METHODS[method]
            known[method, family] = tiny_sweep(
                root / f"{family}-{method}", task, model, name, **options
            )
        return known[method, family]

    return make


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(sweeps.use.export, "score_in_fresh_process", loaded)


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `export` as a user calls it."""
    monkeypatch.setattr(sys, "argv", ["sweeps", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


# --- every method over a decoder and an encoder ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_merged_weights_give_what_was_reported(made, tmp_path, in_this_process, family, method):
    out = tmp_path / "out"
    request = Request(format="transformers")
    if method in BESIDE:
        possible = "--format onnx" if method == "adapter" else "--format peft, or onnx"
        with pytest.raises(InputError, match=f"cannot be merged: .*; possible: {possible}$"):
            export(str(made(method, family)), str(out), None, request)
        assert not list(tmp_path.iterdir())
        return
    found = export(str(made(method, family)), str(out), None, request)
    (only,) = found.measured
    assert abs(only.drift) <= only.limit == 1e-5
    assert not (out / "adapter_config.json").exists()
    auto = getattr(transformers, TASKS[FAMILIES[family][1]].auto_class)
    model, told = auto.from_pretrained(out, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype is torch.float32
    if family == "bert":
        assert model.config.id2label == {0: "high", 1: "low", 2: "middle"}
    assert transformers.AutoTokenizer.from_pretrained(out)("good bad").input_ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_gives_what_was_reported(made, tmp_path, in_this_process, family, method):
    out, request = tmp_path / "out", Request(format="peft")
    folder = str(made(method, family))
    if method in (*WHOLE, "adapter"):
        what = "is a whole model" if method in WHOLE else "is no adapter that PEFT has"
        with pytest.raises(InputError, match=what):
            export(folder, str(out), None, request)
        return
    (only,) = export(folder, str(out), None, request).measured
    assert abs(only.drift) <= only.limit == (2e-2 if "qlora" in method else 1e-5)
    described = json.loads((out / "adapter_config.json").read_text())
    base = Path(described["base_model_name_or_path"])
    assert (base / "config.json").is_file()
    auto = TASKS[FAMILIES[family][1]].auto_class.replace("AutoModel", "AutoPeftModel")
    labels = {"num_labels": 3} if family == "bert" else {}
    tuned = getattr(peft, auto).from_pretrained(out, **labels)  # by the name of the base alone
    assert tuned.peft_config["default"].peft_type.value == described["peft_type"]


# --- QLoRA over both bases ---


@pytest.mark.parametrize("method", ["qlora", "qlora-8"])
def test_qlora_is_merged_over_either_base(made, tmp_path, in_this_process, method):
    """The quantised one is what it was measured over: the other is another model, and told as one."""
    folder, drifts, weights = str(made(method)), {}, {}
    for onto in ("quantised", "full"):
        out = tmp_path / onto
        found = export(folder, str(out), None, Request(merge=True, merge_onto=onto))
        drifts[onto] = abs(found.measured[0].drift)
        weights[onto] = load_file(out / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert drifts["quantised"] <= 1e-5 < drifts["full"] <= 2e-2
    assert "before quantisation (measured over the quantised)" in found.words
    assert not torch.equal(weights["full"], weights["quantised"])


def test_dora_over_a_quantised_base_is_merged_over_that_alone(tmp_path, in_this_process):
    model = drawn(tmp_path / "model", "llama", "causal")
    folder = tiny_sweep(tmp_path / "s", "causal_lm", model, "qlora", rank=4, use_dora=True)
    with pytest.raises(InputError, match="magnitudes of DoRA.*possible: --merge-onto quantised$"):
        export(str(folder), str(tmp_path / "a"), None, Request(merge=True, merge_onto="full"))
    (only,) = export(str(folder), str(tmp_path / "b"), None, Request(merge=True)).measured
    assert abs(only.drift) <= 1e-5


# --- other models and tasks ---


def resized(folder: Path) -> None:
    """With tokens of its own, and rows of the embedding that no token has."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.add_tokens(["good", "bad"])
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    for each in (tokenizer, model):
        each.save_pretrained(folder)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resized_vocabulary(tmp_path, in_this_process, method):
    model = drawn(tmp_path / "model", "llama", "causal", resized)
    _, options = METHODS[method]
    folder = tiny_sweep(tmp_path / "s", "causal_lm", model, method, **options)
    out = tmp_path / "out"
    (only,) = export(str(folder), str(out), None, Request(format="transformers")).measured
    assert abs(only.drift) <= 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    found = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert len(tokenizer) == 89 and found.get_input_embeddings().weight.shape[0] == 128
    assert tokenizer.convert_tokens_to_ids("bad") == 88


def test_a_conversation_keeps_its_template_and_how_it_generates(tmp_path, in_this_process):
    def generates(folder: Path) -> None:
        transformers.GenerationConfig(max_new_tokens=7, eos_token_id=2).save_pretrained(folder)

    model = drawn(tmp_path / "model", "qwen2", "causal", generates)
    folder = tiny_sweep(
        tmp_path / "s", "instruction", model, "lora", rank=4, data={"chat_template": "chatml"}
    )
    for name, request in {"peft": Request(), "whole": Request(merge=True)}.items():
        out = tmp_path / name
        export(str(folder), str(out), None, request)
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        said = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        assert said.startswith("<|im_start|>user\nhi<|im_end|>")
        assert transformers.GenerationConfig.from_pretrained(out).max_new_tokens == 7


@pytest.mark.parametrize(
    "request_", [Request(merge=True), Request(), Request(merge=True, dtype="bfloat16")]
)
def test_a_classifier_answers_in_the_standard_pipeline(made, tmp_path, in_this_process, request_):
    out = tmp_path / "out"
    export(str(made("lora", "bert")), str(out), None, request_)
    ask = transformers.pipeline("text-classification", model=str(out))
    assert ask("good bad fine")[0]["label"] in ("high", "low", "middle")


@pytest.mark.parametrize(
    ("task", "name", "kind"),
    [
        ("regression", "bert", "classification"),
        ("multi_label", "bert", "classification"),
        ("token_classification", "bert", "classification"),
        ("preference", "llama", "causal"),
    ],
)
def test_other_tasks(tmp_path, in_this_process, task, name, kind):
    """Of pairs with what the untuned model gives them."""
    model = drawn(tmp_path / "model", name, kind)
    folder = tiny_sweep(tmp_path / "s", task, model, "lora", rank=4)
    for number, request in enumerate([Request(), Request(merge=True)]):
        (only,) = export(str(folder), str(tmp_path / str(number)), None, request).measured
        assert abs(only.drift) <= only.limit == 1e-5


def test_an_encoder_decoder(tmp_path, in_this_process):
    """Of which the decoder reads what it has written."""
    model = tmp_path / "model"
    torch.manual_seed(0)
    config = zoo.config("t5", "classification", dropout_rate=0.0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(model)
    zoo.tokenizer("t5").save_pretrained(model)
    folder = tiny_sweep(tmp_path / "s", "seq2seq", model, "lora", rank=4)
    requests = [Request(), Request(merge=True), Request(format="onnx")]
    for number, request in enumerate(requests):
        (only,) = export(str(folder), str(tmp_path / str(number)), None, request).measured
        assert abs(only.drift) <= only.limit == 1e-5


def test_a_base_that_is_found_nowhere_else_lies_beside(tmp_path, in_this_process, monkeypatch):
    """Made of the winner of an earlier sweep."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = drawn(tmp_path / "model", "llama", "causal")
    first = tiny_sweep(tmp_path / "first", "causal_lm", model, "lora", rank=4)
    second = tiny_sweep(tmp_path / "second", "causal_lm", first, "lora", rank=2)
    out = tmp_path / "out"
    (only,) = export(str(second), str(out), None, Request()).measured
    described = json.loads((out / "adapter_config.json").read_text())
    assert abs(only.drift) <= 1e-5 and described["base_model_name_or_path"] == f"{out}/base"
    peft.AutoPeftModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_drift_and_are_held_to_what_they_can(made, tmp_path, in_this_process, dtype):
    out = tmp_path / "out"
    found = export(str(made("full")), str(out), None, Request(dtype=dtype))
    (only,) = found.measured
    assert 0 < abs(only.drift) <= only.limit == 2e-2 and only.words == f"whole model in {dtype}"
    weights = load_file(out / "model.safetensors").values()
    assert {each.dtype for each in weights} == {getattr(torch, dtype)}


# --- vLLM ---


def as_vllm_reads(folder: Path, max_lora_rank: int = 16) -> dict[str, torch.Tensor]:
    """Changes of weights [O, I] by layer, by the rules of vLLM's loader: `PEFTHelper` takes the fields r, lora_alpha
    and target_modules, refuses DoRA, modules_to_save, biases and ranks above `max_lora_rank`, and scales every layer
    by lora_alpha / r, or / sqrt(r); tensors are called LAYER.lora_A.weight and LAYER.lora_B.weight.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    if lacking := {"r", "lora_alpha", "target_modules"} - config.keys():
        raise ValueError(f"Missing required configuration fields: {lacking}")
    refused = [key for key in ("use_dora", "modules_to_save") if config.get(key)]
    if config["bias"] != "none":
        refused.append("bias")
    if config["r"] > max_lora_rank:
        refused.append("max_lora_rank")
    if refused:
        raise ValueError(f"not supported: {refused}")
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    tensors, layers = load_file(folder / "adapter_model.safetensors"), {}
    for name, tensor in tensors.items():
        if not name.endswith((A, B)):
            raise ValueError(f"{name} is unsupported LoRA weight")
        if name.endswith(A) and len(tensor) > max_lora_rank:
            raise ValueError("the tensor does not fit the buffer")
        layer = name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        other = tensors[name.replace(A, B)] if name.endswith(A) else None
        if other is not None:
            layers[layer] = scale * other @ tensor
    return layers


@pytest.mark.parametrize("method", ["lora", "rslora", "pissa", "adalora", "qlora"])
def test_vllm_reads_what_was_merged(made, tmp_path, in_this_process, method):
    folder, adapter, whole = str(made(method)), tmp_path / "adapter", tmp_path / "whole"
    notes = export(folder, str(adapter), None, Request()).notes
    over = ", over the base as it is quantised there" if method == "qlora" else ""
    assert notes == (f"vLLM loads it with --enable-lora{over}",)
    onto = "full" if method == "qlora" else None
    export(folder, str(whole), None, Request(merge=True, merge_onto=onto))
    base = load_file(made("lora").parents[2] / "llama" / "model.safetensors")
    merged, layers = load_file(whole / "model.safetensors"), as_vllm_reads(adapter)
    assert layers
    for layer, change in layers.items():
        key = f"{layer}.weight"
        torch.testing.assert_close(base[key] + change, merged[key], rtol=1e-5, atol=1e-6)


def test_a_large_rank_is_told_with_what_vllm_must_allow(tmp_path, in_this_process):
    model = drawn(tmp_path / "model", "llama", "causal")
    folder = tiny_sweep(tmp_path / "s", "causal_lm", model, "lora", rank=24)
    out = tmp_path / "out"
    found = export(str(folder), str(out), None, Request())
    assert found.notes == ("vLLM loads it with --enable-lora --max-lora-rank 32",)
    with pytest.raises(ValueError, match="max_lora_rank"):
        as_vllm_reads(out)
    assert as_vllm_reads(out, 32)


@pytest.mark.parametrize(
    ("method", "family", "words"),
    [
        ("dora", "llama", "it has no DoRA"),
        ("lora", "bert", "it takes no modules_to_save, such as classifier"),
        ("ia3", "llama", "vLLM loads LoRA adapters, and not this one (IA3)"),
        ("vera", "llama", "vLLM loads LoRA adapters, and not this one (VERA)"),
        ("prompt", "llama", "vLLM loads LoRA adapters, and not this one (PROMPT_TUNING)"),
    ],
)
def test_what_vllm_does_not_load_is_told(made, tmp_path, in_this_process, method, family, words):
    out = tmp_path / "out"
    (note,) = export(str(made(method, family)), str(out), None, Request()).notes
    instead = "cannot be merged either" if method == "prompt" else "export with --merge"
    assert words in note and note.endswith(f": {instead}")
    with pytest.raises(ValueError, match="not supported|Missing required|unsupported LoRA weight"):
        as_vllm_reads(out)


def test_vllm_would_scale_uneven_layers_wrongly(tmp_path, in_this_process):
    model = drawn(tmp_path / "model", "llama", "causal")
    uneven = {"rank_pattern": ["q_proj=2"], "rank": 4}
    folder = tiny_sweep(tmp_path / "s", "causal_lm", model, "lora", **uneven)
    out = tmp_path / "out"
    (note,) = export(str(folder), str(out), None, Request()).notes
    assert "knows nothing of rank_pattern and alpha_pattern" in note
    config = json.loads((out / "adapter_config.json").read_text())
    even = {**config, "alpha_pattern": {"q_proj": config["lora_alpha"] / 2}}
    (out / "adapter_config.json").write_text(json.dumps(even))
    with open_trained(str(folder)) as trained:
        assert vllm_words(out, trained.spec) == "vLLM loads it with --enable-lora"


# --- what is refused, and what is left ---


def test_what_is_not_what_was_reported_is_not_written(
    made, tmp_path, monkeypatch, capsys, in_this_process
):
    """A checkpoint that was damaged after it was measured."""
    folder = tmp_path / "sweep"
    fsspec.filesystem("file").copy(f"{made('full')}/", str(folder), recursive=True)
    file = folder / "winner" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1.1
    from safetensors.torch import save_file

    save_file(tensors, file, metadata={"format": "pt"})
    code, out, err = run(monkeypatch, capsys, folder, "--to", tmp_path / "out")
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert re.search(
        r"not written: whole model in float32 gives .*limit 1e-05\).*was reported", err
    )
    assert [each.name for each in tmp_path.iterdir()] == ["sweep"]
    code, out, err = run(monkeypatch, capsys, folder, "--to", tmp_path / "out", "--limit", "1")
    assert (
        code == 0 and not err and "limit 1)" in out and (tmp_path / "out" / "README.md").is_file()
    )


@pytest.mark.parametrize(
    ("method", "family", "arguments", "words"),
    [
        ("lora", "llama", ["--format", "zip"], "--format: 'zip' is not known; allowed: peft, transformers, gguf, onnx"),
        ("lora", "llama", ["--dtype", "int8"], "--dtype: 'int8' is not known; allowed: float32, bfloat16, float16"),
        ("lora", "llama", ["--limit", "-1"], "--limit: must be 0 or above, and finite, got -1"),
        ("lora", "llama", ["--quantise", "q8_0"], "--quantise: is of --format gguf"),
        ("lora", "llama", ["--format", "gguf", "--quantise", "q4_k"], "--quantise: 'q4_k' is nothing that"),
        ("lora", "bert", ["--format", "gguf", "--converter", __file__], "--format gguf: the winner, trial t0001 (lora): a GGUF file is a causal"),
        ("lora", "llama", ["--format", "onnx", "--dtype", "float16"], "--dtype: ONNX graphs are written in float32"),
        ("lora", "llama", ["--merge", "--format", "peft"], "--merge: peft takes adapters as they are"),
        ("lora", "llama", ["--merge", "--merge-onto", "full"], "--merge-onto: is of adapters that were trained over a"),
        ("qlora", "llama", ["--merge-onto", "full"], "--merge-onto: is of adapters that were trained over a"),
        ("full", "llama", ["--merge"], "--merge: is of adapters, and the winner, trial t0001 (full) is a whole model"),
        ("full", "llama", ["--format", "peft"], "--format peft: is of adapters, and the winner, trial t0001 (full)"),
        ("lora", "llama", ["--trial", "t9"], "--trial: "),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(
    made, tmp_path, monkeypatch, capsys, method, family, arguments, words
):
    code, out, err = run(
        monkeypatch, capsys, made(method, family), "--to", tmp_path / "out", *arguments
    )
    assert (code, out) == (2, "") and err.startswith(words) and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_in_use_is_left_alone(
    made, tmp_path, monkeypatch, capsys, in_this_process
):
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("mine")
    for to in (used, used / "mine.txt", "s3://bucket/out"):
        code, _, err = run(monkeypatch, capsys, made("lora"), "--to", to)
        assert code == 2 and err.startswith("--to: ")
    assert [each.name for each in used.iterdir()] == ["mine.txt"]
    (used / "mine.txt").unlink()
    assert run(monkeypatch, capsys, made("lora"), "--to", used)[0] == 0
    assert (used / "adapter_model.safetensors").is_file()


def test_a_sweep_without_a_winner_says_so_and_its_trial_can_be_had(
    tmp_path, monkeypatch, capsys, in_this_process
):
    model = drawn(tmp_path / "model", "llama", "causal")
    folder = tiny_sweep(tmp_path / "s", "causal_lm", model, "lora", won=False, rank=4)
    code, _, err = run(monkeypatch, capsys, folder, "--to", tmp_path / "out")
    assert code == 2 and "there is no winner" in err and "--trial ID" in err
    code, out, _ = run(monkeypatch, capsys, folder, "--to", tmp_path / "out", "--trial", TRIAL)
    assert code == 0 and f"trial {TRIAL} (lora)" in out and "the winner" not in out


def test_a_remote_sweep(made, tmp_path, in_this_process):
    url = f"memory://{tmp_path.name}/sweep"
    local = made("lora")
    store = fsspec.filesystem("memory")
    for file in local.rglob("*"):
        if file.is_file():
            store.pipe_file(f"/{tmp_path.name}/sweep/{file.relative_to(local)}", file.read_bytes())
    (only,) = export(url, str(tmp_path / "out"), None, Request(merge=True)).measured
    assert abs(only.drift) <= 1e-5


# --- in a fresh process ---


def test_a_fresh_process_gives_the_number(made, sweeps, tmp_path):
    """By the code that stands in what was written."""
    out = tmp_path / "out"
    done = sweeps("export", made("lora"), "--to", out, "--merge")
    assert done.code == 0 and done.out.count("\n") == 1, done.err
    assert done.out.startswith(
        f"{out}: the winner, trial t0001 (lora), loaded again in a fresh process"
    )
    record = json.loads((out / "export.json").read_text())
    assert abs(record["measured"][0]["drift"]) <= 1e-5
    card = (out / "README.md").read_text()
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], names)
    assert isinstance(names["model"], transformers.LlamaForCausalLM)
    assert names["tokenizer"]("good").input_ids


def test_what_does_not_load_in_a_fresh_process_is_told_in_a_line(made):
    rows = Rows(task="causal_lm", data=str(made("lora") / "data"), pad_token_id=0)
    with pytest.raises(NotExported, match="^ModuleNotFoundError: No module named 'nothing_such'$"):
        score_in_fresh_process(["import nothing_such as model"], rows)


# --- GGUF ---


@pytest.fixture(scope="module")
def stories(tmp_path_factory, shared_data):
    """A sweep over a model whose tokenizer llama.cpp knows."""
    model = shared_data / "models" / "stories260K"
    return tiny_sweep(tmp_path_factory.mktemp("gguf"), "causal_lm", model, "lora", rank=4)


def test_gguf_by_llama_cpp(stories, tmp_path, in_this_process):
    if ENVIRONMENT not in os.environ:
        pytest.skip(f"{ENVIRONMENT} does not name llama.cpp's convert_hf_to_gguf.py")
    out = tmp_path / "out"
    found = export(
        str(stories), str(out), None, Request(format="gguf", quantise=("f32", "f16", "q8_0"))
    )
    exact, half, eight = (abs(each.drift) for each in found.measured)
    assert exact <= 1e-5 and exact < half < eight <= 2e-2
    assert {each.name for each in out.glob("*.gguf")} == {
        f"model-{each}.gguf" for each in ("f32", "f16", "q8_0")
    }
    text = "Once upon a time there was a bear."
    own = transformers.AutoTokenizer.from_pretrained(out, gguf_file="model-q8_0.gguf")
    assert (
        own(text).input_ids
        == transformers.AutoTokenizer.from_pretrained(stories / "winner")(text).input_ids
    )


def test_a_converter_that_fails_is_told_in_a_line(stories, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "convert_hf_to_gguf.py"
    broken.write_text("raise NotImplementedError('no such tokenizer')")
    code, out, err = run(
        monkeypatch, capsys, stories, "--to", tmp_path / "out", "--format", "gguf", "--converter", broken
    )  # fmt: skip
    assert (code, out) == (1, "")
    assert (
        err == "convert_hf_to_gguf.py did not write f16: NotImplementedError: no such tokenizer\n"
    )
    assert [each.name for each in tmp_path.iterdir()] == [broken.name]


# --- ONNX ---


@pytest.mark.parametrize(
    ("method", "family"), [("lora", "bert"), ("adapter", "bert"), ("full", "llama")]
)
def test_onnx_gives_what_was_reported(made, tmp_path, in_this_process, method, family):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    out = tmp_path / "out"
    (only,) = export(str(made(method, family)), str(out), None, Request(format="onnx")).measured
    assert abs(only.drift) <= only.limit == 1e-5
    assert {"model.onnx", "config.json", "tokenizer.json"} <= {each.name for each in out.iterdir()}


def test_what_torch_cannot_trace_is_told_with_its_cause(tmp_path):
    from trainables.models.onnx_graph import write_onnx

    class Untraceable(torch.nn.Module):
        config = SimpleNamespace()

        def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
            raise ArithmeticError("of no graph\nat all")

    for name in PACKAGES["onnx"]:
        pytest.importorskip(name)
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.int64)}
    with pytest.raises(
        NotExported, match="cannot write Untraceable: ArithmeticError: of no graph$"
    ):
        write_onnx(Untraceable(), batch, tmp_path / "model.onnx")


@pytest.mark.parametrize("format_", ["onnx", "gguf"])
def test_a_format_without_its_packages_is_told_before_anything_is_fetched(
    tmp_path, monkeypatch, capsys, format_
):
    """Nor is a sweep looked for."""
    nowhere = {format_: (*PACKAGES[format_], f"{format_}_nowhere")}
    monkeypatch.setattr(sweeps.use.export_formats, "PACKAGES", nowhere)
    monkeypatch.setattr(sweeps.use.export, "open_trained", None)
    code, out, err = run(
        monkeypatch, capsys, "s3://bucket/sweep", "--to", tmp_path / "out", "--format", format_
    )
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith(f"--format: {format_} needs {format_}_nowhere, which is not installed; ")
    assert not list(tmp_path.iterdir())


def test_a_converter_is_looked_for_before_anything_is_fetched(tmp_path, monkeypatch, capsys):
    for package in PACKAGES["gguf"]:
        pytest.importorskip(package)
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(sweeps.use.export, "open_trained", None)
    for more, words in (
        ((), "--converter: give the path of llama.cpp's convert_hf_to_gguf.py"),
        (("--converter", "/no/where.py"), "--converter: there is no file /no/where.py"),
    ):
        code, out, err = run(
            monkeypatch, capsys, "s3://bucket/sweep", "--to", tmp_path / "out", "--format", "gguf", *more
        )  # fmt: skip
        assert (code, out) == (2, "") and err.startswith(words) and err.count("\n") == 1
