"""Tiny random models, splits for them, and groups over both."""

import copy
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from trainables.data.arrow import Split, write_split
from trainables.data.prepare import Slices
from trainables.data.records import Encoded
from trainables.engine.distributed import World
from trainables.engine.group import GroupSettings, TrialGroup
from trainables.engine.kernels import MicroBatch
from trainables.evaluation.forgetting import GENERAL, write_general
from trainables.evaluation.record import MeasuredEvaluation
from trainables.hyperparameters import Hyperparameters, parse
from trainables.models.base import BaseModel, BaseSpec
from trainables.models.config import ModelConfig
from trainables.models.loading import load_model
from trainables.storage.checkpoints import STATE, write_evaluation
from trainables.storage.store import Store
from trainables.tasks import TASKS, Task, take_targets

CPU = torch.device("cpu")
VOCABULARY, PAD, ROWS, VALIDATION_ROWS = 100, 0, 18, 9
PAIRS, VALIDATION_PAIRS = 10, 6
CLASSES = {"labels": ["a", "b", "c"]}
# weights well away from zero, so that every layer matters to the loss
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.15,
    "pad_token_id": PAD,
}
DISTIL = {
    "vocab_size": VOCABULARY,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 64,
    "pad_token_id": PAD,
}
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 40,
    "dropout": 0.1,
    "pad_token_id": PAD,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 40,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": PAD,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 32}
DEBERTA_V3 = {
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "pad_token_id": PAD,
    "eos_token_id": 1,
    "decoder_start_token_id": PAD,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 40,
    "init_std": 0.15,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "forced_eos_token_id": 1,
    "decoder_start_token_id": 1,
}
XLNET = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "n_layer": 2,
    "n_head": 2,
    "d_inner": 64,
    "pad_token_id": PAD,
}
EXPERTS = {
    **SHAPE,
    "intermediate_size": 16,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
# whose experts' matrices are transposed
GPT_OSS = {**EXPERTS, "head_dim": 16, "sliding_window": 8, "eos_token_id": 1}
LANGUAGE_MODELS = ("llama", "opt", "gpt2", "mixtral", "gpt-oss")


def _build(name: str) -> Any:
    t = transformers
    return {
        "bert": lambda: t.BertModel(t.BertConfig(**SHAPE)),
        "bert-no-dropout": lambda: t.BertModel(
            t.BertConfig(**SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        ),
        "bert-language-model": lambda: t.BertForMaskedLM(t.BertConfig(**SHAPE)),
        "bert-classifier": lambda: t.BertForSequenceClassification(
            t.BertConfig(**SHAPE, num_labels=3)
        ),
        "bert-two-classes": lambda: t.BertForSequenceClassification(
            t.BertConfig(**SHAPE, num_labels=2)
        ),
        "roberta": lambda: t.RobertaModel(t.RobertaConfig(**SHAPE), add_pooling_layer=False),
        "distilbert": lambda: t.DistilBertModel(t.DistilBertConfig(**DISTIL)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SHAPE)),
        "llama-wide": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**{**SHAPE, "hidden_size": 128, "intermediate_size": 256})
        ),
        "opt": lambda: t.OPTForCausalLM(t.OPTConfig(**OPT)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT2)),
        "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**EXPERTS)),
        "mixtral-eager": lambda: t.MixtralForCausalLM(_eager(t.MixtralConfig(**EXPERTS))),
        "gpt-oss": lambda: t.GptOssForCausalLM(t.GptOssConfig(**GPT_OSS)),
        "gpt-oss-eager": lambda: t.GptOssForCausalLM(_eager(t.GptOssConfig(**GPT_OSS))),
        "deberta": lambda: t.DebertaModel(t.DebertaConfig(**SHAPE, **RELATIVE)),
        "deberta-v2": lambda: t.DebertaV2Model(t.DebertaV2Config(**SHAPE, **RELATIVE)),
        "deberta-v3": lambda: t.DebertaV2Model(
            t.DebertaV2Config(**SHAPE, **RELATIVE, **DEBERTA_V3)
        ),
        "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**T5)),
        "t5-seq2seq": lambda: t.T5ForConditionalGeneration(t.T5Config(**T5)),
        "bart-seq2seq": lambda: t.BartForConditionalGeneration(t.BartConfig(**BART)),
        "xlnet": lambda: t.XLNetModel(t.XLNetConfig(**XLNET)),
        "longformer": lambda: t.LongformerModel(
            t.LongformerConfig(**{**SHAPE, "max_position_embeddings": 64}, attention_window=[4, 4])
        ),
        "llama-deep": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**{**SHAPE, "num_hidden_layers": 16})
        ),
        "llama-tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    }[name]()


def _eager(config: Any) -> Any:
    """Experts one after another: torch has no grouped product in float64."""
    config.experts_implementation = "eager"
    return config


def last_positions(logits: Tensor, labels: Tensor) -> Tensor:
    return logits if logits.ndim == 2 else logits[:, -labels.shape[1] :]


def _pairs(count: int, seed: int) -> Encoded:
    rng = np.random.default_rng(seed)
    ids, labels, second = [], [], []
    for _ in range(count):
        prompt = rng.integers(1, VOCABULARY, rng.integers(2, 6))
        answers = [rng.integers(1, VOCABULARY, rng.integers(1, 8)) for _ in range(2)]
        ids.append(np.concatenate([prompt, answers[0], prompt, answers[1]]).astype(np.int32))
        ignored = np.full(len(prompt), -100)
        labels.append(np.concatenate([ignored, answers[0], ignored, answers[1]]).astype(np.int32))
        second.append(len(prompt) + len(answers[0]))
    return Encoded(input_ids=ids, labels=labels, second=np.array(second, dtype=np.int32))


class Lab:
    """Models by name: language models train on instructions, those that are called so on pairs of
    texts, the others classify into three classes.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self._splits: dict[tuple[str, str], Split] = {}
        self._loaded: dict[tuple[Any, ...], BaseModel] = {}
        self.bases: list[BaseModel] = []  # that groups have loaded

    def folder(self, model: str) -> Path:
        """A model as transformers saves it, the same at every call."""
        folder = self.root / model
        if not folder.exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                _build(model).save_pretrained(folder)
        return folder

    def task(self, model: str) -> Task:
        if model.endswith("-seq2seq"):
            return TASKS["seq2seq"]
        return TASKS["instruction" if model.startswith(LANGUAGE_MODELS) else "classification"]

    def split(self, model: str, name: str = "train") -> Split:
        """Rows of 3 to 12 tokens; of an instruction the first third has no loss; of a pair as many
        again are its target.
        """
        task = self.task(model).name
        if (task, name) not in self._splits:
            rng = np.random.default_rng([len(task), len(name)])
            rows = ROWS if name == "train" else VALIDATION_ROWS
            ids = [
                rng.integers(1, VOCABULARY, rng.integers(3, 13)).astype(np.int32)
                for _ in range(rows)
            ]
            labels: Any = rng.integers(0, len(CLASSES["labels"]), rows).astype(np.int64)
            if task == "instruction":
                labels = [
                    np.where(np.arange(len(row)) < len(row) // 3, -100, row).astype(np.int32)
                    for row in ids
                ]
            encoded = Encoded(input_ids=ids, labels=labels)
            if task == "seq2seq":
                targets = [
                    rng.integers(1, VOCABULARY, rng.integers(3, 13)).astype(np.int32) for _ in ids
                ]
                encoded = Encoded(input_ids=ids, target_ids=targets)
            path = self.root / f"{task}-{name}.arrow"
            if not path.exists():
                write_split(path, encoded)
            self._splits[task, name] = Split(path)
        return self._splits[task, name]

    def weighted(self, model: str) -> dict[str, Split]:
        """Train and validation of a language model with a weight for each token; of two rows in
        three all are small.
        """
        found = {}
        for name in ("train", "validation"):
            path = self.root / f"weighted-{name}.arrow"
            if not path.exists():
                rows = self.split(model, name).rows(range(len(self.split(model, name))))
                rng = np.random.default_rng([1, len(name)])
                weights = [
                    (rng.uniform(0.1, 1.0, len(row["labels"])) * (0.05 if i % 3 else 1.0)).astype(
                        np.float32
                    )
                    for i, row in enumerate(rows)
                ]
                columns = [[row[key] for row in rows] for key in ("input_ids", "labels")]
                ids, labels = columns
                write_split(path, Encoded(input_ids=ids, labels=labels, weights=weights))
            found[name] = Split(path)
        return found

    def pairs(self) -> dict[str, Split]:
        """Train and validation of preference: prompts of 2 to 5 tokens with two answers of 1 to 7
        tokens each.
        """
        found = {}
        for name, count in (("train", PAIRS), ("validation", VALIDATION_PAIRS)):
            path = self.root / f"pairs-{name}.arrow"
            if not path.exists():
                write_split(path, _pairs(count, seed=len(name)))
            found[name] = Split(path)
        return found

    def general(self) -> Split:
        """General text for language models, one token a letter, in blocks as long as the models read."""

        def letters(text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [1 + ord(letter) % (VOCABULARY - 1) for letter in text]}

        folder = self.root / "general"
        if not folder.exists():
            folder.mkdir()
            write_general(
                "What was known before, and may be lost. " * 6,
                letters,
                SHAPE["max_position_embeddings"],
                folder,
            )
        return Split(folder / f"{GENERAL}.arrow")

    def base(
        self,
        model: str,
        *,
        quantisation: Any = "none",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> BaseModel:
        """A base as `load` gives it, without reading it from disk each time."""
        key = (model, quantisation, dtype, seed)
        if key not in self._loaded:
            self._loaded[key] = self.load(model, quantisation=quantisation, dtype=dtype, seed=seed)
        return copy.deepcopy(self._loaded[key])

    def load(
        self,
        model: str,
        *,
        quantisation: Any = "none",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> BaseModel:
        return load_model(
            self.spec(model, quantisation=quantisation, dtype=dtype), device=CPU, seed=seed
        )

    def spec(
        self, model: str, *, quantisation: Any = "none", dtype: torch.dtype = torch.float32
    ) -> BaseSpec:
        task = self.task(model)
        return BaseSpec(
            model=ModelConfig(name=str(self.folder(model))),
            auto_class=task.auto_class,
            quantisation=quantisation,
            dtype=dtype,
            pad_token_id=PAD,
            outputs=task.outputs(CLASSES["labels"]),
        )

    def plain(
        self,
        model: str,
        folder: Path | None = None,
        dtype: torch.dtype = torch.float32,
        **more: Any,
    ) -> Any:
        """What a user gets from transformers, in eval mode."""
        task = self.task(model)
        if task.name == "classification":
            more = {"num_labels": len(CLASSES["labels"]), **more}
        auto_class = getattr(transformers, task.auto_class)
        return auto_class.from_pretrained(folder or self.folder(model), dtype=dtype, **more).eval()

    def group(
        self,
        model: str,
        *,
        dtype: torch.dtype = torch.float32,
        dtypes: Mapping[str, torch.dtype] = MappingProxyType({}),
        world: World | None = None,
        train: Any = None,
        validation: Any = None,
        slices: Slices | None = None,
        general: Split | None = None,
        task: str | None = None,
        seed: int = 0,
        device: torch.device = CPU,
        **settings: Any,
    ) -> TrialGroup:

        def load_base(quantisation: Any, dtype: torch.dtype) -> BaseModel:
            base = self.base(model, quantisation=quantisation, dtype=dtype, seed=seed)
            if device != CPU:
                base.model.to(device)
                base.model.tie_weights()  # which a device of another type takes apart
            self.bases.append(base)
            return base

        return TrialGroup(
            load_base=load_base,
            base_dtype=lambda method: dtypes.get(method, dtype),
            task=TASKS[task] if task else self.task(model),
            train=train or self.split(model),
            validation=validation or self.split(model, "validation"),
            slices=slices,
            general=general,
            pad_token_id=PAD,
            settings=GroupSettings(seed=seed, **settings),
            device=device,
            world=world or World(),
        )

    def batch(
        self, model: str, rows: Sequence[int] = range(6), split: str = "train"
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs and labels of some rows."""
        task = self.task(model)
        batch = task.collate(self.split(model, split).rows(list(rows)), PAD)
        config = SimpleNamespace(config=AutoConfig.from_pretrained(self.folder(model)))
        labels, *_ = take_targets(batch, task, cast("Any", config))
        return batch, labels

    def loss(
        self, model: str, module: Any, rows: Sequence[int] = range(6), split: str = "train"
    ) -> Tensor:
        """Mean over the targets of some rows."""
        batch, labels = self.batch(model, rows, split)
        nll, targets = self.task(model).row_losses(module(**batch).logits, labels)
        return nll.sum() / targets.sum()

    def logits(self, model: str, module: Any) -> Tensor:
        """Of some rows; without those of virtual tokens that a method puts before a row."""
        batch, labels = self.batch(model)
        with torch.no_grad():
            return last_positions(module(**batch).logits, labels)

    def logits_aboard(self, model: str, group: TrialGroup, trial: str) -> Tensor:
        """What `logits` gives, of a trial on board of `group`, in eval mode."""
        engine = group._engine
        batch, labels = self.batch(model)
        micro_batch = MicroBatch.of([engine.trials.index(trial)] * len(labels), CPU)
        engine.base.model.eval()
        with torch.no_grad():
            return last_positions(engine.forward(batch, micro_batch).logits, labels)

    @staticmethod
    def params(method: str = "full", **more: Any) -> Hyperparameters:
        """Hyperparameters as a search space samples them: five steps an epoch, ten in all."""
        return parse(
            {"method": method, "learning_rate": 3e-3, "batch_size": 4, "epochs": 2, **more}
        )

    def publish(
        self, group: TrialGroup, folder: Path, trial: str = "t"
    ) -> tuple[MeasuredEvaluation, Path]:
        """Evaluate and save a trial as a slot does; the evaluation and the folder that it was published in."""
        return self.publish_all(group, folder, [trial])[trial]

    @staticmethod
    def publish_all(
        group: TrialGroup, folder: Path, trials: Sequence[str]
    ) -> dict[str, tuple[MeasuredEvaluation, Path]]:
        published = {}
        for trial, evaluation in group.evaluate(trials).items():
            save = functools.partial(group.save, trial)
            record = write_evaluation(Store(str(folder)), trial, 1, evaluation, save)
            published[trial] = (evaluation, folder / record.folder)
        return published

    def run(
        self,
        group: TrialGroup,
        folder: Path,
        hyperparameters: Hyperparameters,
        checkpoint: Path | None = None,
    ) -> list[tuple[MeasuredEvaluation, Path]]:
        """Train one trial to its end; what `publish` gave at each of its evaluations."""
        group.join("t", hyperparameters, checkpoint)
        history: list[tuple[MeasuredEvaluation, Path]] = []
        while not (history and history[-1][0].finished):
            while not group.step(["t"]):
                pass
            history.append(self.publish(group, folder))
        group.leave("t")
        return history

    def together(
        self,
        group: TrialGroup,
        folder: Path,
        trials: Mapping[str, Hyperparameters],
        *,
        joins: Mapping[str, int] = MappingProxyType({}),
        leaves: Mapping[str, int] = MappingProxyType({}),
        checkpoints: Mapping[str, Path] = MappingProxyType({}),
    ) -> dict[str, list[tuple[MeasuredEvaluation, Path]]]:
        """Train `trials` side by side as a slot does; of each what `publish` gave at its evaluations.

        joins, leaves: in which turn of the group a trial comes, and before which it goes; else in the first, and when it
        has finished.
        """
        histories: dict[str, list[tuple[MeasuredEvaluation, Path]]] = {
            trial: [] for trial in trials
        }
        waiting = sorted(trials, key=lambda trial: joins.get(trial, 0))
        for turn in itertools.count():
            while waiting and joins.get(waiting[0], 0) <= turn:
                trial = waiting.pop(0)
                if trial not in group.trials:
                    group.join(trial, trials[trial], checkpoints.get(trial))
            for trial in group.trials:
                if leaves.get(trial) == turn:
                    group.leave(trial)
            if not (group.trials or waiting):
                return histories
            due = group.step(group.trials) if group.trials else []
            for trial, published in (self.publish_all(group, folder, due) if due else {}).items():
                histories[trial].append(published)
                if published[0].finished:
                    group.leave(trial)
        raise AssertionError

    @staticmethod
    def tensors(folder: Path) -> dict[str, Tensor]:
        """All tensors that were written below a folder, weights and optimiser state, by file and name."""
        return {
            f"{file.relative_to(folder)}: {name}": tensor
            for file in sorted(folder.rglob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }

    def assert_same(
        self,
        one: list[tuple[MeasuredEvaluation, Path]],
        other: list[tuple[MeasuredEvaluation, Path]],
    ) -> None:
        """Two histories are equal bit for bit: every number of the evaluations, every tensor of the folders."""
        assert len(one) == len(other) > 0
        for (evaluation, folder), (other_evaluation, other_folder) in zip(one, other, strict=True):
            mine, theirs = asdict(evaluation), asdict(other_evaluation)
            for name in ("losses", "outcomes"):
                one, other = mine.pop(name), theirs.pop(name)
                assert (one is None and other is None) or np.array_equal(one, other), name
            assert mine == theirs
            saved, expected = self.tensors(folder), self.tensors(other_folder)
            assert saved.keys() == expected.keys() and len(saved) > 0
            different = [name for name in saved if not torch.equal(saved[name], expected[name])]
            assert not different

    def first_gradients(
        self, group: TrialGroup, folder: Path, hyperparameters: Hyperparameters
    ) -> dict[str, Tensor]:
        """Gradient of each parameter at the first step, unclipped, read from the saved first moments."""
        assert hyperparameters.max_grad_norm == 0
        group.join("t", hyperparameters)
        group.step(["t"])
        _, saved = self.publish(group, folder)
        group.leave("t")
        prefix = "exp_avg/"
        return {
            name.removeprefix(prefix): moment / (1 - hyperparameters.beta1)
            for name, moment in load_file(saved / STATE).items()
            if name.startswith(prefix)
        }

    def assert_alike(
        self,
        one: list[tuple[MeasuredEvaluation, Path]],
        other: list[tuple[MeasuredEvaluation, Path]],
        tolerance: float,
    ) -> None:
        """Two histories are equal but for rounding: losses relative to themselves; weights, and each of the moments,
        relative to the largest element.
        """
        assert len(one) == len(other) > 0
        for (evaluation, folder), (expected, other_folder) in zip(one, other, strict=True):
            losses = ["val_loss", "probe_loss", "train_loss"]
            if expected.averaged:  # made without training
                losses.remove("train_loss")
                assert evaluation.train_loss is expected.train_loss is None
            for name in losses:
                assert getattr(evaluation, name) == pytest.approx(
                    getattr(expected, name), rel=tolerance, abs=0
                ), name
            for name in (
                "step",
                "samples_seen",
                "learning_rate",
                "finished",
                "trainable_parameters",
                "averaged",
            ):
                assert getattr(evaluation, name) == getattr(expected, name), name
            np.testing.assert_allclose(
                evaluation.losses, expected.losses, rtol=max(tolerance, 1e-6), atol=1e-6
            )
            saved, wanted = self.tensors(folder), self.tensors(other_folder)
            assert saved.keys() == wanted.keys()
            for kind in ("checkpoint/", "exp_avg/", "exp_avg_sq/"):
                mine = {name: tensor for name, tensor in saved.items() if kind in name}
                if mine:
                    self.assert_close(mine, {name: wanted[name] for name in mine}, tolerance)

    @staticmethod
    def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
        """Each tensor differs by at most `tolerance` times the largest element of all."""
        assert one.keys() == other.keys() and len(one) > 0
        scale = max(float(tensor.abs().max()) for tensor in other.values())
        assert scale > 0
        worst = max((float((one[name] - other[name]).abs().max()), name) for name in one)
        assert worst[0] <= tolerance * scale, (
            f"{worst[1]} differs by {worst[0]:.3g}, scale {scale:.3g}"
        )


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    return Lab(tmp_path_factory.mktemp("lab"))
