"""Every mistake in a sweep file with its message, and what a right one becomes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from omegaconf import OmegaConf

from cluster.config import ClusterConfig
from search_spaces import load_space, load_tree
from sweeps.config.loading import dump, from_folder, from_tree, load, with_own_space
from sweeps.config.resuming import as_trained, check_resumable, differences
from sweeps.config.schema import (
    HYPERPARAMETERS,
    EarlyStoppingConfig,
    SearchConfig,
    SweepConfig,
    TrainConfig,
)
from sweeps.run.preparation import prepare_data
from sweeps.selection.config import LimitsConfig, SelectionConfig
from trainables.data.config import DataConfig
from trainables.data.manifest import Manifest, SplitSummary
from trainables.errors import InputError
from trainables.hyperparameters import COMMON, OPTIONS
from trainables.models.config import ModelConfig
from trainables.tasks import TASKS

ROOT = Path(__file__).resolve().parents[3]
READY = sorted((ROOT / "sweeps").glob("*.yaml"))

SPACE = "{method: lora, learning_rate: {log_uniform: [1e-5, 1e-3]}, batch_size: 8, epochs: 2}"
GOOD = f"name: quick\nmodel: {{name: tiny}}\ndata: {{train: rows.csv}}\nsearch:\n  space: {SPACE}\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def loaded(text=GOOD, *overrides):
    Path("sweep.yaml").write_text(text)
    return load(Path("sweep.yaml"), overrides)


def message(text, *overrides):
    with pytest.raises(InputError) as caught:
        loaded(text, *overrides)
    return str(caught.value)


def section(schema):
    return "a section with " + ", ".join(field.name for field in dataclasses.fields(schema))


TOP = ", ".join(field.name for field in dataclasses.fields(SweepConfig))
METHOD = f"must be one of {', '.join(OPTIONS)}"
PRESETS = ", ".join(path.stem for path in sorted((ROOT / "search_spaces").glob("*.yaml")))

# (override, what the one line says after "sweep.yaml: ")
WRONG_VALUES = [
    # the sweep
    ("name=", "name: must be text, got null"),
    ("name=a/b", "name: must be 1 to 64 letters, digits, dots, dashes or underscores, got 'a/b'"),
    (
        "name=.hidden",
        "name: must be 1 to 64 letters, digits, dots, dashes or underscores, got '.hidden'",
    ),
    (
        f"name={'a' * 65}",
        f"name: must be 1 to 64 letters, digits, dots, dashes or underscores, got '{'a' * 65}'",
    ),
    ("name=[a]", "name: must be text, got ['a']"),
    ("storage=", "storage: must be text, got null"),
    ("seed=-1", "seed: must be 0 or more, got -1"),
    ("seed=many", "seed: must be a whole number, got 'many'"),
    ("seed=true", "seed: must be a whole number, got true"),
    (
        "task=clasification",
        f"task: must be one of {', '.join(TASKS)}, got 'clasification'",
    ),
    # unknown keys
    ("serch.trials=3", "serch: unknown key. Did you mean 'search'?"),
    ("search.trails=3", "search.trails: unknown key. Did you mean 'trials'?"),
    (
        "search.early_stopping.overfitt=true",
        "search.early_stopping.overfitt: unknown key. Did you mean 'overfit'?",
    ),
    ("train.rnk=3", "train.rnk: unknown key. Did you mean 'rank'?"),
    ("model.nme=x", "model.nme: unknown key. Did you mean 'name'?"),
    ("data.txt=a", "data.txt: unknown key. Did you mean 'text'?"),
    ("tracking.wndb=off", "tracking.wndb: unknown key. Did you mean 'wandb'?"),
    ("cluster.slot=2", "cluster.slot: unknown key. Did you mean 'slots'?"),
    ("xyz=red", f"xyz: unknown key. Allowed: {TOP}"),
    # keys of another section
    ("trials_per_slot=2", "trials_per_slot: unknown key. Did you mean cluster.trials_per_slot?"),
    (
        "search.trials_per_slot=2",
        "search.trials_per_slot: unknown key. Did you mean cluster.trials_per_slot?",
    ),
    (
        "train.trials_per_slot=2",
        "train.trials_per_slot: unknown key. Did you mean cluster.trials_per_slot?",
    ),
    ("trials=30", "trials: unknown key. Did you mean search.trials?"),
    ("train.validation=0.2", "train.validation: unknown key. Did you mean data.validation?"),
    ("cluster.trails=30", "cluster.trails: unknown key. Did you mean search.trials?"),
    ("max=3", f"max: unknown key. Allowed: {TOP}"),  # of which there are several
    (
        "early_stopping={overfit: false}",
        "early_stopping: unknown key. Did you mean search.early_stopping?",
    ),
    (
        "search.diverged=false",
        "search.diverged: unknown key. Did you mean search.early_stopping.diverged?",
    ),
    ("top=3", "top: unknown key. Did you mean selection.finalists.top?"),
    ("search.cluster={slots: 2}", "search.cluster: unknown key. Did you mean cluster?"),
    ("data.name=x", "data.name: unknown key. Did you mean name or model.name?"),
    ("batch=8", "batch: unknown key. Did you mean train.batch_size or search.space.batch_size?"),
    ("search.rank=8", "search.rank: unknown key. Did you mean train.rank or search.space.rank?"),
    (
        "train.batch=8",
        "train.batch: unknown key. Did you mean 'batch_size'?",
    ),  # a near name in the same section is nearer
    ("selection.finalists.seed=3", "selection.finalists.seed: unknown key. Did you mean 'seeds'?"),
    # sections that are none
    ("model=tiny", f"model: must be {section(ModelConfig)}, got 'tiny'"),
    ("data=rows.csv", f"data: must be {section(DataConfig)}, got 'rows.csv'"),
    ("search=3", f"search: must be {section(SearchConfig)}, got 3"),
    (
        "search.early_stopping=false",
        f"search.early_stopping: must be {section(EarlyStoppingConfig)}, got false",
    ),
    ("train=", f"train: must be {section(TrainConfig)}, got null"),
    ("selection=[1]", f"selection: must be {section(SelectionConfig)}, got [1]"),
    ("cluster=auto", f"cluster: must be {section(ClusterConfig)}, got 'auto'"),
    # model
    ("model.name=", "model.name: must be a base model or {choice: [A, B]} of several, got null"),
    ("model.name=''", "model.name: not given; a hub id, a folder, or package:PACKAGE/FOLDER"),
    (
        "model.name.x=3",
        "model.name: must be a base model or {choice: [A, B]} of several, got {'x': 3}",
    ),
    ("model.dtype=fp8", "model.dtype: must be one of auto, float32, bfloat16, float16, got 'fp8'"),
    # data
    (
        "data.train=",
        "data.train: not given; a file, a folder or a pattern of files, a URL, or hf:owner/name",
    ),
    (
        "data.train=''",
        "data.train: not given; a file, a folder or a pattern of files, a URL, or hf:owner/name",
    ),
    (
        "data.validation=1.5",
        "data.validation: must be a file, or a share of train between 0 and 1 (both excluded), got 1.5",
    ),
    (
        "data.validation=0",
        "data.validation: must be a file, or a share of train between 0 and 1 (both excluded), got 0",
    ),
    (
        "data.validation=[3]",
        "data.validation: must be a file, a folder, hf:owner/name, a list of those, or {source: ..., weight: ...}, got 3",
    ),
    (
        "data.test=0.95",
        "data.validation + data.test: shares must leave rows for train, got 0.1 + 0.95",
    ),
    ("data.max_length=1", "data.max_length: must be at least 2 tokens, got 1"),
    ("data.rows=0", "data.rows: must be at least 1, got 0"),
    ("data.duplicates=keep", "data.duplicates: must be one of error, drop, got 'keep'"),
    # search
    ("search.trials=0", "search.trials: must be at least 1, got 0"),
    ("search.trials=", "search.trials: must be a whole number, got null"),
    ("search.trials=ten", "search.trials: must be a whole number, got 'ten'"),
    ("search.trials=1.5", "search.trials: must be a whole number, got 1.5"),
    ("search.sampler=tp", "search.sampler: must be one of tpe, random, grid, got 'tp'"),
    (
        "search.sampler=grid",
        "search.sampler: grid needs a finite space, got one in which a float varies; allowed: tpe, random",
    ),
    ("search.startup_trials=-1", "search.startup_trials: must be auto or 0 or more trials, got -1"),
    (
        "search.startup_trials=few",
        "search.startup_trials: must be auto or 0 or more trials, got 'few'",
    ),
    (
        "search.time_budget=8",
        "search.time_budget: must be a number with s, m, h or d, such as 8h, got '8'",
    ),
    (
        "search.time_budget=0h",
        "search.time_budget: must be a number with s, m, h or d, such as 8h, got '0h'",
    ),
    (
        "search.time_budget=8 hours",
        "search.time_budget: must be a number with s, m, h or d, such as 8h, got '8 hours'",
    ),
    (
        "search.initial=3",
        "search.initial: must be a list, each item a mapping of names to values, got 3",
    ),
    ("search.initial=[3]", "search.initial[0]: must be a mapping of names to values, got 3"),
    (
        "search.initial=[{learning_rate: 1e-4}, {rank: 3}]",
        "search.initial[1].rank: unknown parameter. The space has batch_size, epochs, learning_rate, method",
    ),
    (
        "search.initial=[{learning_rate: 1}]",
        "search.initial[0].learning_rate: got 1, allowed: log-uniform 1e-05 … 0.001",
    ),
    (
        "search.initial=[{batch_size: 4}]",
        "search.initial[0].batch_size: got 4, but it is 8 (fixed 8)",
    ),
    # early stopping
    (
        "search.early_stopping.grace_epochs=0",
        "search.early_stopping.grace_epochs: must be above 0, got 0.0",
    ),
    (
        "search.early_stopping.grace_epochs=one",
        "search.early_stopping.grace_epochs: must be a number, got 'one'",
    ),
    (
        "search.early_stopping.reduction_factor=1",
        "search.early_stopping.reduction_factor: must be above 1, got 1.0",
    ),
    (
        "search.early_stopping.overfit_patience=0",
        "search.early_stopping.overfit_patience: must be at least 1, got 0",
    ),
    (
        "search.early_stopping.overfit=maybe",
        "search.early_stopping.overfit: must be true or false, got 'maybe'",
    ),
    (
        "search.early_stopping.asha=false",
        "search.early_stopping.asha: is now called search.scheduler (true is asha, false is none)",
    ),
    (
        "search.scheduler=pbt",
        "search.scheduler: must be one of asha, freeze_thaw, none, got 'pbt'",
    ),
    ("search.patience=-1", "search.patience: must be 0 or above, got -1"),
    ("search.patience=.inf", "search.patience: must be 0 or above, got inf"),
    (
        "search={scheduler: freeze_thaw, sampler: grid}",
        "search.sampler: scheduler freeze_thaw chooses configurations itself, at random or after"
        " tpe's first ones, got grid",
    ),
    # the space
    (
        "search.space=",
        "search.space: not given; auto, the name of a preset, a YAML file, or the space itself",
    ),
    (
        "search.space=nothing",
        f"search.space: no preset and no file 'nothing'. Presets: auto, {PRESETS}",
    ),
    (
        "search.space=encoder_smal",
        f"search.space: no preset and no file 'encoder_smal'. Did you mean 'encoder_small'? Presets: auto, {PRESETS}",
    ),
    (
        "search.space=[1]",
        "search.space: give parameters, a preset's name or the path of a YAML file, got [1]",
    ),
    (
        "search.space.rnk={int: [1, 4]}",
        "search.space.rnk: not a hyperparameter. Did you mean 'rank'?",
    ),
    (
        "search.space.trials=30",
        "search.space.trials: not a hyperparameter. Did you mean search.trials?",
    ),
    (
        "search.space.trials_per_slot={choice: [1, 2]}",
        "search.space.trials_per_slot: not a hyperparameter. Did you mean cluster.trials_per_slot?",
    ),
    (
        "search.space.colour=red",
        f"search.space.colour: not a hyperparameter. Allowed: {', '.join(HYPERPARAMETERS)}",
    ),
    (
        "search.space.learning_rate={log_uniform: [1, 0.1]}",
        "search.space.learning_rate: log_uniform needs low < high, got [1.0, 0.1]; a fixed value is written alone",
    ),
    (
        "search.space.learning_rate={log_unifrm: [1e-5, 0.1]}",
        "search.space.learning_rate: unknown distribution 'log_unifrm'. Did you mean 'log_uniform'? "
        "Allowed: log_uniform, uniform, int, choice",
    ),
    (
        "search.space.method=lorra",
        f"search.space.method: {METHOD}, got 'lorra'. Did you mean 'lora'?",
    ),
    (
        "search.space.method={choice: [full, IA3]}",
        f"search.space.method: {METHOD}, got 'IA3'. Did you mean 'ia3'?",
    ),
    (
        "search.space.method={lora: {rank: 8}, qlorra: {rank: 8}}",
        f"search.space.method: {METHOD}, got 'qlorra'. Did you mean 'qlora'?",
    ),
    ("search.space.method=best", f"search.space.method: {METHOD}, got 'best'"),
    (
        "search.space.batch_size=0",
        "search.space: no configuration of method lora is valid: batch_size: must be at least 1, got 0",
    ),
    (
        "search.space.method={choice: [full, lora]}",
        None,  # right: full and lora
    ),
    # fixed and varied at once, or fixed to what no trial can have
    (
        "train.learning_rate=1e-4",
        "train.learning_rate: also varies in search.space; set it in one place",
    ),
    ("train.method=lora", "train.method: also varies in search.space; set it in one place"),
    ("train.schedule=lin", "train.schedule: must be one of linear, cosine, constant, got 'lin'"),
    ("train.weight_decay=-1", "train.weight_decay: must be at least 0, got -1.0"),
    ("train.warmup_ratio=2", "train.warmup_ratio: must be at least 0 and at most 1, got 2.0"),
    ("train.seed=-1", "train.seed: must be at least 0 and at most 4294967295, got -1"),
    ("train.rank=0", "train.rank: must be at least 1, got 0"),
    (
        "train.targets=some",
        "train.targets: must be all-linear, attention or a list of module names, got 'some'",
    ),
    # training
    ("train.rank=x", "train.rank: must be a whole number or null, got 'x'"),
    ("train.rank=2.5", "train.rank: must be a whole number or null, got 2.5"),
    ("train.weight_decay=[1]", "train.weight_decay: must be a number or null, got [1]"),
    ("train.patterns=3", "train.patterns: must be a list, each item text or null, got 3"),
    (
        "train.evaluate_every=0",
        "train.evaluate_every: must be epoch or a number of samples above 0, got 0",
    ),
    (
        "train.evaluate_every=-3",
        "train.evaluate_every: must be epoch or a number of samples above 0, got -3",
    ),
    (
        "train.evaluate_every=often",
        "train.evaluate_every: must be epoch or a number of samples above 0, got 'often'",
    ),
    ("train.evaluate_every=1.5", "train.evaluate_every: must be text or a whole number, got 1.5"),
    ("train.max_tokens=0", "train.max_tokens: must be at least 1, got 0"),
    ("train.probe_rows=0", "train.probe_rows: must be at least 1, got 0"),
    ("train.precision=fp16", "train.precision: must be one of auto, float32, bfloat16, got 'fp16'"),
    (
        "train.gradient_checkpointing=maybe",
        "train.gradient_checkpointing: must be true or false, got 'maybe'",
    ),
    # selection
    ("selection.overfit_rise=-1", "selection.overfit_rise: must be 0 or more, got -1.0"),
    ("selection.overfit_rise=x", "selection.overfit_rise: must be a number, got 'x'"),
    ("selection.overfit_gap=0", "selection.overfit_gap: must be above 0 and at most 1, got 0.0"),
    ("selection.improving=-1", "selection.improving: must be 0 or more, got -1.0"),
    ("selection.underfit=-1", "selection.underfit: must be 0 or more, got -1.0"),
    ("selection.diverge_ratio=1", "selection.diverge_ratio: must be above 1, got 1.0"),
    (
        "selection.tie_standard_errors=-1",
        "selection.tie_standard_errors: must be 0 or more, got -1.0",
    ),
    (
        "selection.pareto=size",
        "selection.pareto: must be one of trainable_parameters, inference_cost or null, got 'size'",
    ),
    ("selection.baseline_minutes=0", "selection.baseline_minutes: must be above 0, got 0.0"),
    ("selection.limits=0.5", f"selection.limits: must be {section(LimitsConfig)}, got 0.5"),
    (
        "selection.limits.forgeting=1",
        "selection.limits.forgeting: unknown key. Did you mean 'forgetting'?",
    ),
    ("forgetting=1", "forgetting: unknown key. Did you mean selection.limits.forgetting?"),
    ("selection.limits.kl=0", "selection.limits.kl: must be above 0, got 0.0"),
    ("selection.limits.kl=much", "selection.limits.kl: must be a number or null, got 'much'"),
    ("selection.limits.slice_loss=-1", "selection.limits.slice_loss: must be above 0, got -1.0"),
    ("selection.limits.slice_gap=0", "selection.limits.slice_gap: must be above 0, got 0.0"),
    (
        "selection.limits.slice_accuracy=90",
        "selection.limits.slice_accuracy: must be above 0 and at most 1, got 90.0",
    ),
    ("selection.limits.slice_rows=0", "selection.limits.slice_rows: must be at least 1, got 0"),
    (
        "selection.limits.slice_rows=null",
        "selection.limits.slice_rows: must be a whole number, got null",
    ),
    # tracking
    ("tracking.wandb=on", "tracking.wandb: must be one of auto, online, offline, off, got true"),
    (
        "tracking.project=a/b",
        r"tracking.project: must be 1 to 128 characters, none of / \ # ? % :, got 'a/b'",
    ),
    ("tracking.project=", "tracking.project: must be text, got null"),
    (
        "tracking.artifact=all",
        "tracking.artifact: must be one of auto, files, reference, off, got 'all'",
    ),
    (
        "tracking.artifact_limit_gb=0",
        "tracking.artifact_limit_gb: must be above 0, got 0.0",
    ),
    (
        "tracking.dataset=rows",
        "tracking.dataset: must be one of reference, files, off, got 'rows'",
    ),
    (
        "tracking.registry=a/b/c",
        "tracking.registry: must be COLLECTION or REGISTRY/COLLECTION without / and : in their"
        " names, got 'a/b/c'",
    ),
    ("tracking.tags=x", "tracking.tags: must be a list, each item text, got 'x'"),
    ("tracking.tags=['']", "tracking.tags: each must be 1 to 64 characters, got ''"),
    # cluster
    ("cluster.slots=0", "cluster.slots: must be auto or at least 1, got 0"),
    ("cluster.slots=many", "cluster.slots: must be a whole number or auto, got 'many'"),
    ("cluster.workers_per_slot=0", "cluster.workers_per_slot: must be at least 1, got 0"),
    (
        "cluster.resources_per_worker={}",
        "cluster.resources_per_worker: must name a resource, such as {GPU: 1}, got {}",
    ),
    (
        "cluster.resources_per_worker={GPU: 1.5}",
        "cluster.resources_per_worker.GPU: must be a whole number, or a part between 0 and 1, got 1.5",
    ),
    (
        "cluster.resources_per_worker={GPU: x}",
        "cluster.resources_per_worker.GPU: must be a number, got 'x'",
    ),
    (
        "cluster.resources_per_worker=3",
        "cluster.resources_per_worker: must be a mapping of names to values or null, got 3",
    ),
    ("cluster.address=head", "cluster.address: must be auto or the head's host:port, got 'head'"),
    (
        "cluster.address=http://head:8265",
        "cluster.address: http://head:8265 is a dashboard's: give it to `submit`; here goes auto or the head's host:port",
    ),
    # interpolation
    ("storage=${nowhere}", "storage: Interpolation key 'nowhere' not found"),
]


@pytest.mark.parametrize(
    ("override", "line"), WRONG_VALUES, ids=[override[:60] for override, _ in WRONG_VALUES]
)
def test_a_wrong_value_is_one_line_with_file_and_key(override, line):
    if line is None:
        loaded(GOOD, override)
        return
    assert message(GOOD, override) == f"sweep.yaml: {line}"


def test_a_mistake_in_the_file_reads_as_one_in_an_override():
    for override, line in WRONG_VALUES:
        key, _, value = override.partition("=")
        if line is None or "[" in key:
            continue
        tree = OmegaConf.create(GOOD)
        OmegaConf.update(
            tree,
            key,
            OmegaConf.create(f"value: {value}").value if "$" not in value else value,
            merge=False,
        )
        assert message(OmegaConf.to_yaml(tree)) == f"sweep.yaml: {line}", override


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", f"model: not given; must be {section(ModelConfig)}"),
        ("model: {name: tiny}\n", f"data: not given; must be {section(DataConfig)}"),
        (
            GOOD.replace("name: quick\n", ""),
            "name: must be 1 to 64 letters, digits, dots, dashes or underscores, got ''",
        ),
        (
            "name: q\nmodel: {}\ndata: {train: t.csv}\nsearch: {space: encoder}\n",
            "model.name: not given; a hub id, a folder, or package:PACKAGE/FOLDER",
        ),
        (
            "name: q\nmodel: {name: m}\ndata: {}\nsearch: {space: encoder}\n",
            "data.train: not given; a file, a folder or a pattern of files, a URL, or hf:owner/name",
        ),
        (
            "name: q\nmodel: {name: m}\ndata: {train: t.csv}\n",
            "search.space: not given; auto, the name of a preset, a YAML file, or the space itself",
        ),
        ("[1, 2]", "must be a mapping with name, model, task, data and search, got a list"),
        ("name: [1\n", "not valid YAML at line 2, column 1: did not find expected ',' or ']'"),
        (
            "\tname: q",
            "not valid YAML at line 1, column 1: found character that cannot start any token",
        ),
        ("name: a\nname: b\n", "not valid YAML at line 2, column 1: found duplicate key name"),
        (GOOD + "3: 4\n", f"3: unknown key. Allowed: {TOP}"),
    ],
)
def test_a_file_that_is_no_sweep(text, line):
    assert message(text) == f"sweep.yaml: {line}"


def test_a_file_that_cannot_be_read():
    with pytest.raises(InputError, match=r"^missing\.yaml: no such file$"):
        load(Path("missing.yaml"))
    with pytest.raises(InputError, match=r"^\.: no such file$"):
        load(Path("."))
    assert message("3").startswith(
        "sweep.yaml: must be a mapping with name, model, task, data and search"
    )
    control = message("name: \x01")
    assert (
        control.startswith("sweep.yaml: not valid YAML: unacceptable character #x0001")
        and "\n" not in control
    )
    Path("sweep.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(
        InputError, match="^sweep.yaml: not valid YAML: 'utf-8' codec can't decode byte 0xff"
    ):
        load(Path("sweep.yaml"))


@pytest.mark.parametrize(
    "override", ["search.trials", "=3", "search..trials=3", ".=3", "--trials=3", "a b=3"]
)
def test_an_override_that_is_none(override):
    expected = f"{override}: an override must be key=value, such as search.trials=4"
    assert message(GOOD, override) == expected


def test_an_override_that_is_no_yaml_or_has_no_place():
    expected = "not valid YAML at line 2, column 1: did not find expected ',' or ']'"
    assert message(GOOD, "search.trials=[1") == f"search.trials=[1: {expected}"
    text = GOOD.replace("search:\n", "search:\n  initial: [{learning_rate: 1e-4}]\n")
    assert message(text, "search.initial[1].learning_rate=1e-3") == (
        "search.initial[1].learning_rate=1e-3: there is no search.initial[1].learning_rate to set"
    )


# --- what a right one becomes ---


def test_the_defaults():
    config = loaded()
    assert (config.task, config.seed, config.storage) == ("classification", 0, "runs")
    assert (config.search.trials, config.search.sampler) == (20, "tpe")
    assert config.search.early_stopping == EarlyStoppingConfig()
    assert config.train.fixed() == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


def test_overrides_are_yaml_and_replace_what_was_there():
    config = loaded(
        GOOD,
        "search.trials=4",
        "search.early_stopping.grace_epochs=0.5",
        "train.weight_decay=1e-4",
        "train.targets=[q_proj, v_proj]",
        "tracking.tags=[a,b]",
        "data.train=hf:owner/name?split=train&config=plain",
        "search.space.learning_rate={choice: [1e-4, 1e-3]}",
        "search.initial=[{learning_rate: 1e-3}]",
        "search.initial[0].learning_rate=1e-4",
        "cluster.resources_per_worker={CPU: 2}",
        "search.trials=5",
    )
    assert config.search.trials == 5
    assert config.search.early_stopping.grace_epochs == 0.5
    assert config.train.weight_decay == 1e-4 and isinstance(config.train.weight_decay, float)
    assert config.train.targets == ["q_proj", "v_proj"]
    assert config.tracking.tags == ["a", "b"]
    assert config.data.train == "hf:owner/name?split=train&config=plain"
    assert config.search.space["learning_rate"] == {"choice": [1e-4, 1e-3]}
    assert config.search.initial == [{"learning_rate": 1e-4}]
    assert config.cluster.resources_per_worker == {"CPU": 2.0}


PRESET = GOOD.replace(SPACE, "encoder_small")


@pytest.mark.parametrize("preset", PRESETS.split(", "))
def test_an_override_inside_a_preset_leaves_the_rest_of_it(preset):
    text = PRESET.replace("encoder_small", preset)
    space = loaded(text).space()
    middle = space.middle()
    for name in load_tree(preset):
        if name == "method":
            continue
        config = loaded(text, f"search.space.{name}={middle[name]}")
        fixed = load_space({name: middle[name]}).parameters
        assert dict(config.space().parameters) == dict(space.parameters) | dict(fixed)
    assert from_tree(OmegaConf.create(dump(config)), (), "sweep.yaml") == config


AUTO = GOOD.replace(SPACE, "auto")


def tiny_model(folder, width=64, layers=4):
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": width, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    return f"model.name={folder}"


def test_a_space_that_follows_from_task_model_and_data(tmp_path):
    config = loaded(AUTO, tiny_model(tmp_path / "model"))
    assert with_own_space(config) is config  # the rows are not known yet
    known = with_own_space(config, 52_000)
    assert known.space().domains.keys() == config.space().domains.keys()
    assert dict(known.space().parameters)["epochs"] == "int 1 … 3"
    assert from_tree(OmegaConf.create(dump(known)), (), "sweep.yaml") == known
    fixed = loaded(AUTO, f"model.name={tmp_path}/model", "train.method=lora", "train.epochs=2")
    assert "epochs" not in dict(with_own_space(fixed, 100).space().parameters)


def test_what_does_not_go_with_a_space_that_follows(tmp_path):
    model = tiny_model(tmp_path / "model")
    assert "search.space: auto is not known before the data are read" in message(
        AUTO, "search.space.rank=8"
    )
    for override, words in [
        ("train.method=ia3", "search.space: auto has no rule for method ia3"),
        ("train.rank=0", "train.rank: must be at least 1"),
        ("search.sampler=grid", "search.sampler: grid needs a finite space"),
    ]:
        with pytest.raises(ValueError) as caught:
            with_own_space(loaded(AUTO, model, override), 100)
        assert str(caught.value).startswith(words)
    gone = loaded(AUTO, "model.name=./gone")
    with pytest.raises(InputError, match="model.name: there is no folder ./gone"):
        gone.space()


def test_an_override_of_a_presets_methods():
    config = loaded(PRESET, "search.space.method={full: {learning_rate: 1e-4}}")
    expected = [("method", "one of full"), ("full.learning_rate", "fixed 0.0001")]
    whole = loaded(PRESET).space().parameters
    assert (
        config.space().parameters
        == expected + [(key, what) for key, what in whole if "." not in key][1:]
    )


@pytest.mark.parametrize(
    "key", ["lora.rank", "method.lora.rank"]
)  # as `check` shows it, and as the preset has it
@pytest.mark.parametrize("inline", [False, True])
def test_an_override_inside_a_branch(key, inline):
    whole = loaded(PRESET).space()
    text = dump(loaded(PRESET, "search.space.batch_size={choice: [16, 32]}")) if inline else PRESET
    parameters = dict(loaded(text, f"search.space.{key}=8").space().parameters)
    assert parameters == {**dict(whole.parameters), "lora.rank": "fixed 8"}


def test_overrides_inside_a_file_and_inside_a_preset_named_by_an_override():
    Path("mine.yaml").write_text(f"{SPACE}\n")
    config = loaded(
        GOOD.replace(SPACE, "mine.yaml"), "search.space.batch_size=3", "search.space.epochs=1"
    )
    assert config.search.space == {**loaded().search.space, "batch_size": 3, "epochs": 1}
    config = loaded(
        GOOD,
        "search.space=encoder_small",
        "search.space.lora.rank=8",
        "search.space.ia3.learning_rate=1e-3",
    )
    assert dict(config.space().parameters)["lora.rank"] == "fixed 8"
    assert dict(config.space().parameters)["ia3.learning_rate"] == "fixed 0.001"
    assert len(config.space().parameters) == len(loaded(PRESET).space().parameters) + 1


def test_an_override_inside_a_preset_that_there_is_not():
    text, override = GOOD.replace(SPACE, "encoder_smal"), "search.space.batch_size=3"
    assert message(text, override) == (
        f"{override}: search.space: no preset and no file 'encoder_smal'. Did you mean 'encoder_small'? Presets: auto, {PRESETS}"
    )
    Path("list.yaml").write_text("[1, 2]\n")
    text = GOOD.replace(SPACE, "list.yaml")
    assert message(text, override) == f"{override}: there is no search.space.batch_size to set"


@pytest.mark.parametrize("word", ["off", "'off'", "Off"])
def test_tracking_can_be_switched_off_as_one_writes_it(word):
    assert loaded(GOOD + f"tracking: {{wandb: {word}}}\n").tracking.wandb == "off"
    assert loaded(GOOD, f"tracking.wandb={word}").tracking.wandb == "off"


def test_a_name_that_yaml_takes_for_a_number():
    assert loaded(GOOD, "name=2024").name == "2024"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("8h", 28800), ("2d", 172800), ("1.5h", 5400), ("8 h", 28800)],
)
def test_time_budgets(text, seconds):
    assert loaded(GOOD, f"search.time_budget={text}").search.time_budget_s() == seconds


def test_no_time_budget():
    assert loaded().search.time_budget_s() is None


def test_what_is_fixed_is_laid_under_what_is_sampled_where_the_method_has_it():
    space = "{method: {full: {}, lora: {rank: {choice: [4, 8]}}}, learning_rate: 1e-3, batch_size: 8, epochs: 2}"
    config = loaded(
        GOOD.replace(SPACE, space), "train.dropout=0.1", "train.weight_decay=0.5", "seed=7"
    )
    sampled = {"learning_rate": 1e-3, "batch_size": 8, "epochs": 2}
    full = config.complete({"method": "full", **sampled})
    assert full == {
        "method": "full",
        **sampled,
        "weight_decay": 0.5,
        "seed": 7,
    }  # full has no dropout
    lora = config.hyperparameters({"method": "lora", "rank": 4, **sampled})
    assert (lora.options.dropout, lora.options.rank, lora.weight_decay, lora.seed) == (
        0.1,
        4,
        0.5,
        7,
    )
    assert config.complete({"method": "lora", "seed": 3})["seed"] == 3


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("batch_size: {choice: [0, 8]}", "search.space.batch_size: must be at least 1, got 0"),
        (
            "batch_size: 8, weight_decay: {uniform: [-0.1, 0.1]}",
            "search.space.weight_decay: must be at least 0, got -0.1",
        ),
        (
            "batch_size: 8, rank: {choice: [8, 8.5]}",
            "search.space.rank: must be a whole number, got 8.5",
        ),
    ],
)
def test_every_value_of_a_choice_and_every_end_of_a_range_must_be_valid(space, expected):
    text = GOOD.replace(SPACE, f"{{method: lora, learning_rate: 1e-3, epochs: 2, {space}}}")
    assert message(text) == f"sweep.yaml: {expected}"


def test_a_branch_in_which_nothing_is_valid_is_refused():
    space = "{method: {full: {rank: 8}, lora: {rank: 8}}, learning_rate: 1e-3, batch_size: 8, epochs: 2}"
    assert message(GOOD.replace(SPACE, space)).startswith(
        "sweep.yaml: search.space: no configuration of method full is valid: rank: not a hyperparameter of method full."
    )


@pytest.mark.parametrize(
    ("method", "hint"),
    [("qlorra", ". Did you mean 'qlora'?"), ("IA3", ". Did you mean 'ia3'?"), ("best", "")],
)
def test_a_fixed_method_that_there_is_not(method, hint):
    text = GOOD.replace("method: lora, ", "") + f"train: {{method: {method}}}\n"
    assert message(text) == f"sweep.yaml: train.method: {METHOD}, got {method!r}{hint}"


@pytest.mark.parametrize(
    ("method", "hint"),
    [("qlorra", ". Did you mean 'qlora'?"), ("IA3", ". Did you mean 'ia3'?"), ("best", "")],
)
def test_a_method_to_try_first_that_there_is_not(method, hint):
    text = GOOD.replace("method: lora", "method: {choice: [qlora, ia3]}")
    assert message(text, f"search.initial=[{{method: {method}}}]") == (
        f"sweep.yaml: search.initial[0].method: got {method!r}, allowed: one of qlora, ia3{hint}"
    )


def test_what_is_missing_in_every_branch_is_named():
    space = "{method: lora, learning_rate: 1e-3, epochs: 2}"
    assert message(GOOD.replace(SPACE, space)) == (
        "sweep.yaml: search.space: no configuration of method lora is valid: "
        "batch_size: not given; put it into search.space or into train"
    )
    assert loaded(GOOD.replace(SPACE, space), "train.batch_size=8").train.batch_size == 8


def test_train_has_every_hyperparameter_and_no_other():
    """A method that gains an option must gain a field here too."""
    settings = (
        "evaluate_every",
        "max_tokens",
        "precision",
        "save_dtype",
        "gradient_checkpointing",
        "probe_rows",
    )
    fields = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in settings]
    assert sorted(fields) == sorted(HYPERPARAMETERS)
    options = {field.name for kind in OPTIONS.values() for field in dataclasses.fields(kind)}
    assert set(HYPERPARAMETERS) == {"method", *COMMON, *options}


INLINE = GOOD + (
    "task: instruction\n"
    "train: {targets: [q_proj, v_proj], weight_decay: 1e-5, schedule: cosine, evaluate_every: 500}\n"
    "tracking: {wandb: 'off', tags: ['2024', 'no']}\n"
    "cluster: {resources_per_worker: {GPU: 0.5}, slots: 2}\n"
)


@pytest.mark.parametrize("text", [GOOD, INLINE], ids=["small", "large"])
def test_a_dump_loads_to_the_same(text):
    config = loaded(text)
    assert loaded(dump(config)) == config
    assert from_tree(OmegaConf.create(dump(config)), (), "sweep.yaml") == config


@pytest.mark.parametrize("file", READY, ids=[file.stem for file in READY])
def test_the_ready_sweeps_are_valid_and_their_dumps_load_to_the_same(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load(file)
    assert from_tree(OmegaConf.create(dump(config)), (), file.name) == config


@pytest.mark.parametrize("name", ["selection", "tracking", "cluster"])
def test_the_reference_has_every_setting_with_its_default(name):
    """What it says of the other sections are examples, and what is required."""
    file = ROOT / "sweeps" / "reference.yaml"

    def keys(given, schema):
        assert list(sorted(given)) == sorted(field.name for field in dataclasses.fields(schema))
        for field in dataclasses.fields(schema):
            if dataclasses.is_dataclass(type(getattr(schema, field.name))):
                keys(given[field.name], getattr(schema, field.name))

    default = getattr(loaded(), name)
    keys(OmegaConf.to_container(OmegaConf.load(file))[name], default)
    assert getattr(load(file), name) == default


# --- pairs of answers ---


@pytest.mark.parametrize(
    ("space", "overrides", "where"),
    [
        ("{beta: 0.1}", [], "search.space.beta"),
        ("{}", ["train.beta=0.1"], "train.beta"),
        ("{}", ["train.loss_type=sigmoid"], "train.loss_type"),
        (
            "{loss_type: {sigmoid: {beta: 0.1}, ipo: {beta: 1.0}}}",
            [],
            "search.space.loss_type",
        ),
    ],
)
def test_what_pairs_are_trained_with_is_refused_elsewhere(space, overrides, where):
    """Also where it is what it would be anyway."""
    own = {"method": "lora", "learning_rate": 1e-3, "batch_size": 8, "epochs": 1}
    tree = {**own, **OmegaConf.to_container(OmegaConf.create(space))}
    text = GOOD.replace(SPACE, OmegaConf.to_yaml(OmegaConf.create(tree)).replace("\n", "\n    "))
    text = text.replace("  space: ", "  space:\n    ")
    for task in ("instruction", "classification"):
        found = message(text, f"task={task}", *overrides)
        assert (
            found
            == f"sweep.yaml: {where}: is for pairs of answers (task preference), got task {task}"
        )
    loaded(text, "task=preference", *overrides)


def test_the_squared_loss_of_pairs_has_no_smoothed_labels():
    text = GOOD.replace(
        "search:", "task: preference\ntrain: {loss_type: ipo, label_smoothing: 0.1}\nsearch:"
    )
    assert message(text).endswith("label_smoothing: must be 0 with loss_type: ipo, got 0.1")


# --- limits ---

OF_LANGUAGE_MODELS = (
    "selection.limits: forgetting and kl are measured of language models (task instruction or preference or causal_lm), got"
    " task classification"
)
WITHOUT_SLICES = (
    "selection.limits: limits on slices need data.slice, the column that tells them; got none"
)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["selection.limits.forgetting=0.1"], OF_LANGUAGE_MODELS),
        (["selection.limits.forgetting=0"], OF_LANGUAGE_MODELS),
        (["selection.limits.kl=0.1"], OF_LANGUAGE_MODELS),
        (["selection.limits.kl=0.1", "task=classification"], OF_LANGUAGE_MODELS),
        (["selection.limits.slice_loss=1"], WITHOUT_SLICES),
        (["selection.limits.slice_gap=1", "task=causal_lm"], WITHOUT_SLICES),
        (["selection.limits.slice_accuracy=0.5"], WITHOUT_SLICES),
        (
            ["selection.limits.slice_accuracy=0.5", "data.slice=language", "task=instruction"],
            "selection.limits.slice_accuracy: is for classification or token_classification, got task instruction; slice_loss is for all",
        ),
        (
            ["selection.limits.slice_accuracy=0.5", "data.slice=language", "task=causal_lm"],
            "selection.limits.slice_accuracy: is for classification or token_classification, got task causal_lm; slice_loss is for all",
        ),
    ],
)
def test_limits_that_do_not_fit_task_or_data_are_refused(overrides, line):
    assert message(GOOD, *overrides) == f"sweep.yaml: {line}"


@pytest.mark.parametrize(
    "overrides",
    [
        ["selection.limits.slice_rows=5"],  # no limit by itself
        ["selection.limits={forgetting: 0.1, kl: 0.2}", "task=instruction"],
        ["selection.limits={forgetting: -0.1}", "task=causal_lm"],
        [
            "selection.limits={slice_loss: 1, slice_gap: 0.5, slice_accuracy: 0.5}",
            "data.slice=language",
        ],
        [
            "selection.limits={slice_loss: 1, slice_gap: 0.5}",
            "data.slice=language",
            "task=causal_lm",
        ],
        [
            "selection.limits={kl: 0.2, slice_loss: 1, slice_rows: 9}",
            "data.slice=language",
            "task=instruction",
        ],
    ],
)
def test_limits_that_fit_task_and_data_are_kept_and_dumped(overrides):
    config = loaded(GOOD, *overrides)
    given = OmegaConf.from_dotlist(
        [o for o in overrides if o.startswith("selection.")]
    ).selection.limits
    assert config.selection.limits == LimitsConfig(**given)
    assert from_tree(OmegaConf.create(dump(config)), (), "sweep.yaml") == config


def test_a_sweep_keeps_the_space_itself_not_the_name_of_a_file_that_may_change(tmp_path):
    (tmp_path / "space.yaml").write_text(
        "{method: full, learning_rate: {log_uniform: [1e-5, 1e-4]}, batch_size: 8, epochs: 1}"
    )
    config = loaded(GOOD, f"search.space={tmp_path}/space.yaml")
    own = with_own_space(config)
    (tmp_path / "space.yaml").unlink()
    again = from_tree(OmegaConf.create(dump(own)), (), "sweep.yaml")
    assert again.search.space == {
        "method": "full",
        "learning_rate": {"log_uniform": [1e-5, 1e-4]},
        "batch_size": 8,
        "epochs": 1,
    }
    assert with_own_space(own) is own
    preset = with_own_space(loaded(GOOD, "search.space=encoder_small"))
    assert preset.draws() == loaded(GOOD, "search.space=encoder_small").draws()


def test_limits_are_off_and_the_front_has_a_cost_or_none():
    assert loaded().selection.limits == LimitsConfig()
    assert not LimitsConfig().of_forgetting and not LimitsConfig().of_slices
    assert loaded().selection.pareto is None
    for cost in ("trainable_parameters", "inference_cost"):
        assert loaded(GOOD, f"selection.pareto={cost}").selection.pareto == cost


# --- what is only known beside the model ---


@pytest.mark.parametrize(
    ("virtual_tokens", "advice"),
    [
        (
            500,
            "500 and the longest row of 16 tokens do not fit the model's context of 512; set data.max_length to 12 or less",
        ),
        (
            510,
            "510 and the longest row of 16 tokens do not fit the model's context of 512; set data.max_length to 2 or less",
        ),
        (
            511,
            "must be below the model's context of 512 tokens (at most 510: a row needs 2), got 511",
        ),
        (
            600,
            "must be below the model's context of 512 tokens (at most 510: a row needs 2), got 600",
        ),
    ],
)
def test_virtual_tokens_that_leave_no_room_for_a_row(monkeypatch, virtual_tokens, advice):
    monkeypatch.setattr("trainables.data.sources.check_sources", lambda data: None)
    manifest = Manifest(splits={"train": SplitSummary(longest=16)}, max_length=16)
    monkeypatch.setattr("trainables.data.prepare.prepare", lambda *_, **__: manifest)
    monkeypatch.setattr("sweeps.run.preparation.check_files", lambda model: None)
    monkeypatch.setattr("sweeps.run.preparation.load_tokenizer", lambda model: None)
    monkeypatch.setattr(
        "sweeps.run.preparation.load_model_config",
        lambda model: transformers.LlamaConfig(max_position_embeddings=512),
    )
    config = loaded(GOOD, "search.space.method=prompt", f"train.virtual_tokens={virtual_tokens}")
    with pytest.raises(InputError) as caught:
        prepare_data(config, Path("data"))
    assert str(caught.value) == f"virtual_tokens: {advice}"


NEW_OPTION = """
import dataclasses
from pathlib import Path
from trainables import hyperparameters

@dataclasses.dataclass(frozen=True, kw_only=True)
class WithGate(hyperparameters.LoraOptions):
    gate: float = 0.5

hyperparameters.OPTIONS["lora"] = WithGate
hyperparameters.FIELDS |= hyperparameters._declared()

from sweeps.config.loading import dump, load

config = load(Path("sweep.yaml"), ["train.gate=0.25"])
(draw, *_) = config.draws()
assert config.hyperparameters(draw).options.gate == 0.25
assert "gate: 0.25" in dump(config)
load(Path("sweep.yaml"), ["train.gate=many"])
"""


def test_a_new_option_of_a_method_is_a_setting_without_a_change_here():
    Path("sweep.yaml").write_text(GOOD)
    done = subprocess.run(
        [sys.executable, "-c", NEW_OPTION],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "train.gate: must be a number or null, got 'many'" in done.stderr, done.stderr


# --- what a sweep that is resumed may change ---


@pytest.mark.parametrize(
    "override",
    [
        "search.trials=50",
        "search.time_budget=4h",
        "search.sampler=random",
        "search.scheduler=freeze_thaw",
        "search.patience=0.1",
        "search.early_stopping.overfit=false",
        "search.space.batch_size=4",
        "train.weight_decay=0.1",
        "train.max_tokens=512",
        "train.gradient_checkpointing=true",
        "selection.overfit_rise=0.1",
        "selection.finalists={top: 2, seeds: 1}",
        "tracking.wandb=off",
        "cluster.slots=1",
    ],
)
def test_what_can_change_when_a_sweep_is_resumed(override):
    key = override.partition("=")[0]
    check_resumable(loaded(), loaded(GOOD, override))
    (words, *others) = differences(loaded(), loaded(GOOD, override))
    assert key.startswith(words.partition(": ")[0]) or words.startswith(key)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "name=other",
            "name: cannot change when a sweep is resumed ('quick' to 'other'): it names the sweep's folder",
        ),
        (
            "storage=elsewhere",
            "storage: cannot change when a sweep is resumed ('runs' to 'elsewhere'): it is where",
        ),
        (
            "seed=1",
            "seed: cannot change when a sweep is resumed (0 to 1): data, order and heads hang on it",
        ),
        ("model.name=other", "model.name: cannot change when a sweep is resumed ("),
        (
            "model.dtype=bfloat16",
            "model.dtype: cannot change when a sweep is resumed ('auto' to 'bfloat16'): losses of",
        ),
        (
            "data.rows=9",
            "data.rows: cannot change when a sweep is resumed (null to 9): losses on other data do not",
        ),
        (
            "data.test=other.csv",
            "data.test: cannot change when a sweep is resumed (null to 'other.csv'): losses on",
        ),
        (
            "train.evaluate_every=9",
            "train.evaluate_every: cannot change when a sweep is resumed ('epoch' to 9): trials",
        ),
        (
            "train.probe_rows=9",
            "train.probe_rows: cannot change when a sweep is resumed (512 to 9): probe losses on",
        ),
        (
            "train.precision=float32",
            "train.precision: cannot change when a sweep is resumed ('auto' to 'float32'): ",
        ),
    ],
)
def test_what_cannot_change_when_a_sweep_is_resumed(override, words):
    with pytest.raises(InputError) as caught:
        check_resumable(loaded(), loaded(GOOD, override, "search.trials=50"))
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_another_metric_of_a_resumed_sweep_has_its_own_direction():
    former = loaded(GOOD, "selection.metric=macro_f1", "selection.metric_mode=max")
    content = dump(former).encode()
    kept = from_folder(content, [], "sweep.yaml")
    other = from_folder(content, ["selection.metric=calibration_error"], "sweep.yaml")
    told = from_folder(content, ["selection.metric=x", "selection.metric_mode=min"], "sweep.yaml")
    modes = [each.selection.metric_mode for each in (kept, other, told)]
    assert modes == ["max", "auto", "min"]


def test_a_limit_on_what_was_not_measured_cannot_be_added_to_a_sweep_that_has_run():
    language_model = [GOOD, "task=causal_lm"]
    without, with_kl, with_both = (
        loaded(*language_model, *limits)
        for limits in (
            (),
            ["selection.limits.kl=1"],
            ["selection.limits.kl=2", "selection.limits.forgetting=1"],
        )
    )
    with pytest.raises(
        InputError,
        match=r"^selection\.limits\.kl: cannot change .*: it was not measured of the trials",
    ):
        check_resumable(without, with_kl)
    check_resumable(with_kl, without)
    check_resumable(with_kl, with_both)  # one of the two has both measured


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["train.weight_decay=0.05"], ["train.weight_decay=0.1"]),
        (["train.weight_decay=0.05"], []),
        ([], ["train.weight_decay=0.1"]),
        ([], ["search.space.weight_decay={choice: [0.1, 0.2]}"]),
        (["train.weight_decay=0.05"], ["search.space.weight_decay={choice: [0.1, 0.2]}"]),
        ([], ["train.rank=64"]),
        ([], ["train.patterns=[a, b]"]),
        (["train.targets=attention"], ["train.targets=[q_proj]"]),
        ([], ["train.schedule=cosine", "train.warmup_ratio=0.2"]),
    ],
)
def test_a_trial_keeps_what_it_was_trained_with_whatever_is_fixed_afterwards(before, after):
    former, config = loaded(GOOD, *before), loaded(GOOD, *after)
    for params in [draw for draw, _ in former.survey()][:20]:
        sampled = {
            name: value
            for name, value in params.items()
            if name not in (*former.train.fixed(), "seed")
        }
        hp = former.hyperparameters(sampled)
        restated = as_trained(former, config, sampled)
        assert config.hyperparameters(restated) == hp
        assert (
            as_trained(former, config, restated) == restated
        )  # a kill between two of them does no harm
    assert as_trained(former, former, sampled) == sampled


@pytest.mark.parametrize(
    ("task", "override", "words"),
    [
        (
            "instruction",
            "train.class_weights=balanced",
            "train.class_weights: balanced is for task classification",
        ),
        (
            "regression",
            "search.space.label_smoothing={uniform: [0.0, 0.1]}",
            "search.space.label_smoothing: above 0 is for task classification or",
        ),
    ],
)
def test_what_a_tasks_loss_is_not_trained_with_is_refused(task, override, words):
    found = message(GOOD, f"task={task}", override)
    assert found.startswith(f"sweep.yaml: {words}") and found.endswith(f"got task {task}")
    loaded(GOOD, "task=classification", override)
