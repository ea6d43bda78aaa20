"""Hand over the winner: a folder that transformers or PEFT load alone, with a card; and check that it gives the number shown."""

import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from sweeps.config import ConfigError, SweepConfig, dump
from sweeps.display import (
    alternatives_columns,
    answered_words,
    expected_words,
    forgetting_words,
    slices_words,
    test_words,
    verdict_words,
)
from sweeps.ledger import Ledger
from trainables.data.sources import source_fingerprint
from trainables.data.store import split_fingerprint
from trainables.loading import base_spec, complete, load_checkpoint, loading_code
from trainables.model import BaseSpec, fingerprint, load_tokenizer, quiet
from trainables.tasks import TASKS

PEFT_METHODS = ("lora", "qlora", "ia3", "prompt")  # whose checkpoints are PEFT's
FOLDER = "winner"
TOLERANCE = 1e-5  # relative, CPU in float32
LOW_PRECISION_TOLERANCE = 2e-2  # relative: bfloat16 or 4-bit arithmetic, or another device than the one that trained


def hand_over(ledger: Ledger, config: SweepConfig, board: dict[str, Any]) -> str:
    """Write `winner/`: the checkpoint's files, the tokenizer, what was reported, README.md. Returns where it lies."""
    winner = board["winner"]
    folder = ledger.store.scratch()
    name = _relative(ledger, winner["checkpoint"])
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(ledger.store.fetch(name, Path(scratch)), folder, dirs_exist_ok=True)
    tokenizer = load_tokenizer(config.model)
    manifest = ledger.store.read_json("data/manifest.json")
    if config.task == "instruction" and not tokenizer.chat_template:
        from trainables.data.chat import default_chat_template

        tokenizer.chat_template = default_chat_template(tokenizer)
    tokenizer.save_pretrained(folder)
    spec = _spec(config, winner["params"], manifest, tokenizer.pad_token_id)
    complete(folder, spec, FOLDER)
    loading = _usage(loading_code(folder, spec, FOLDER), config, manifest)
    (folder / "README.md").write_text(card(config, board, manifest, loading), encoding="utf-8")
    ledger.store.delete(FOLDER)
    (folder / "winner.json").write_text(json.dumps(winner, indent=1))
    ledger.store.publish(folder, FOLDER, last="winner.json")
    return ledger.store.path(FOLDER)


def _spec(config: SweepConfig, params: dict[str, Any], manifest: dict[str, Any], pad_token_id: int) -> BaseSpec:
    """The base of a trial with these parameters, on this machine."""
    import torch

    hp, device = config.hyperparameters(params), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = TASKS[config.task]
    labels, precision = manifest["labels"], config.train.precision
    return base_spec(config.model, task, labels, pad_token_id, hp.method, hp.options, device, precision)


def _relative(ledger: Ledger, checkpoint: str) -> str:
    """The checkpoint's name inside the sweep's folder, wherever that folder has been moved since."""
    return "trials/" + checkpoint.rsplit("/trials/", 1)[1]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A checkpoint's reported and measured loss and metrics on one split."""

    what: str
    reported: dict[str, float]
    measured: dict[str, float]
    tolerance: float  # relative

    @property
    def agrees(self) -> bool:
        return all(
            math.isclose(self.measured.get(name, math.nan), value, rel_tol=self.tolerance, abs_tol=1e-12)
            for name, value in self.reported.items()
        )


def verify(ledger: Ledger, config: SweepConfig) -> list[Check]:
    """Load winner and finalists as a user would (transformers and PEFT alone), evaluate them again, compare.

    The winner on the validation split and, where it was scored, on the test split; finalists on the validation split.
    Raises ConfigError when there is no winner to verify.
    """
    import torch

    from trainables.data.prepare import open_split
    from trainables.pack import measure

    quiet()
    store = ledger.store
    if not store.exists("winner/winner.json"):
        raise ConfigError(
            f"{store.path('')}: there is no winner to verify; the sweep has not ended, or nothing could win"
        )
    winner = store.read_json("winner/winner.json")
    device, task = torch.device("cuda" if torch.cuda.is_available() else "cpu"), TASKS[config.task]
    manifest = store.read_json("data/manifest.json")
    pad_token_id = load_tokenizer(config.model).pad_token_id
    exact = device.type == "cpu" and config.train.precision != "bfloat16" and config.model.dtype in ("auto", "float32")
    checks: list[Check] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = store.fetch("data", Path(scratch))

        def check(name: str, folder: str, params: dict[str, Any], reported: dict[str, dict[str, float]]) -> None:
            spec = _spec(config, params, manifest, pad_token_id)
            model = load_checkpoint(store.fetch(folder, Path(scratch)), spec, device)
            for split_name, numbers in reported.items():
                split = open_split(data, split_name)
                found = measure(model, task, split, np.arange(len(split)), pad_token_id, 16384, device)
                measured = {"loss": found.loss, **task.metrics(*found.columns)}
                tolerance = TOLERANCE if exact and spec.variant == "plain" else LOW_PRECISION_TOLERANCE
                checks.append(
                    Check(what=f"{name}, {split_name}", reported=numbers, measured=measured, tolerance=tolerance)
                )

        reported = {"validation": _reported(ledger, winner["checkpoint"])}
        test = store.read_json("test.json") if store.exists("test.json") else None
        if test is not None and (test["trial"], test["step"]) == (winner["trial"], winner["step"]):
            score = test["scores"]["winner"]
            reported["test"] = {"loss": score["loss"], **score["metrics"]}
        check(f"the winner, {winner['trial']}", "winner", winner["params"], reported)
        board = ledger.board(config.name, config.selection)
        finals = {trial for final in board["finalists"] for trial in final["seeds"]} - {winner["trial"]}
        for trial in board["trials"]:
            kept = [e["checkpoint"] for e in trial["evaluations"] if e["checkpoint"] is not None]
            if trial["id"] in finals and kept:
                check(
                    f"finalist {trial['id']}",
                    _relative(ledger, kept[-1]),
                    trial["params"],
                    {"validation": _reported(ledger, kept[-1])},
                )
    return checks


def altered(ledger: Ledger, config: SweepConfig) -> list[str]:
    """What is no longer as it was when the sweep began, in words: prepared data, the files that they came from where those
    are still here, and the files of the base model.
    """
    found = []
    manifest = ledger.store.read_json("data/manifest.json")
    with tempfile.TemporaryDirectory() as scratch:
        data = ledger.store.fetch("data", Path(scratch))
        described = {name: split.get("fingerprint") for name, split in manifest["splits"].items()}
        if ledger.store.exists("test.json"):
            described["test"] = ledger.store.read_json("test.json")["split"]["fingerprint"]
        for name, expected in described.items():
            if expected is not None and split_fingerprint(data / f"{name}.arrow") != expected:
                found.append(f"data/{name}.arrow is not what the sweep prepared")
    for name, source in manifest["sources"].items():
        now = source_fingerprint(source["source"])
        if now is not None and now != source["sha256"]:
            found.append(f"data.{name}: {source['source']} is no longer the file that the sweep read")
    if ledger.store.exists("base.json"):
        before, now = ledger.store.read_json("base.json"), fingerprint(config.model)
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if changed:
            found.append(f"the base model {config.model.name} has changed: {', '.join(changed[:3])}")
    return found


def _reported(ledger: Ledger, checkpoint: str) -> dict[str, float]:
    """The evaluation as the slot wrote it when it saved the checkpoint."""
    folder = _relative(ledger, checkpoint).removesuffix("/checkpoint")
    evaluation = ledger.store.read_json(f"{folder}/evaluation.json")
    return {"loss": evaluation["val_loss"], **evaluation["metrics"]}


def card(config: SweepConfig, board: dict[str, Any], manifest: dict[str, Any], loading: list[str]) -> str:
    """README.md of the winner: what it is, how good, from what data, and the lines of Python that load it."""
    winner = board["winner"]
    trial = next(t for t in board["trials"] if t["id"] == winner["trial"])
    method = winner["params"].get("method", config.train.method)
    numbers = {
        "validation loss": winner["val_loss"],
        **({f"validation loss, {expected_words(found)}": found["mean"]} if (found := winner.get("expected")) else {}),
        "probe loss (training rows)": winner["probe_loss"],
        **winner["metrics"],
    }
    lines = [
        "---",
        f"base_model: {config.model.name}",
        f"library_name: {'peft' if method in PEFT_METHODS else 'transformers'}",
        "---",
        f"# {config.name}: the winner, trial {winner['trial']}",
        "",
        winner["reason"],
        "",
        *([f"Worth it? {board['worth']['words']}", ""] if board.get("worth") else []),
        *([f"Test: {test_words(board['test'])}.", ""] if board.get("test") else []),
        *([f"Slices: {slices_words(board['slices'])}.", ""] if board.get("slices") else []),
        *([f"Forgetting: {forgetting_words(board['forgetting'])}.", ""] if board.get("forgetting") else []),
        "## Numbers",
        "",
        "| measured | value |",
        "|---|---|",
        *(f"| {name} | {value:.6g} |" for name, value in numbers.items() if value is not None),
        *(
            f"| validation loss, {baseline.get('words', name)} | {baseline['val_loss']:.6g} |"
            for name, baseline in board["baselines"].items()
            if baseline["val_loss"] is not None
        ),
        "",
        *_alternatives(board.get("metrics")),
        "Losses are means in nats per "
        + ("example" if config.task == "classification" else "target token")
        + f". Check them with `python -m sweeps verify {board['folder']}`.",
        "",
        *_classes(board.get("metrics")),
        "## Curve",
        "",
        "| samples seen | epoch | validation loss | probe loss |",
        "|---|---|---|---|",
        *(
            f"| {e['samples_seen']} | {e['epoch']:g} | {_show(e['val_loss'])} | {_show(e['probe_loss'])} |"
            for e in trial["evaluations"]
        ),
        "",
        f"Verdict: {verdict_words(trial)} ({trial['verdict_reason']}). The checkpoint here is that of {winner['samples_seen']} samples.",
        "",
        "## How to load it",
        "",
        "From the sweep's folder, with transformers"
        + (" and PEFT:" if method in PEFT_METHODS else " and this project:" if method == "adapter" else ":"),
        "",
        "```python",
        *loading,
        "```",
        "",
        "## Data",
        "",
        "| split | rows | fingerprint (SHA-256) |",
        "|---|---|---|",
        *(
            f"| {name} | {split.get('rows', split['read'])} | {split.get('fingerprint', split.get('raw_fingerprint'))} |"
            for name, split in manifest["splits"].items()
        ),
        "",
        *(
            f"- {name}: `{source['source']}`, SHA-256 {source['sha256']}"
            for name, source in manifest["sources"].items()
        ),
        "",
        "## Configuration",
        "",
        "```json",
        json.dumps(config.complete(winner["params"]), indent=1),
        "```",
        "",
        "```yaml",
        _dump_without_nulls(config).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _alternatives(metrics: dict[str, Any] | None) -> list[str]:
    """The table of the winner and all that it is compared with, on both splits."""
    if metrics is None:
        return []
    splits = [split for split in ("validation", "test") if any(each[split] for each in metrics["alternatives"])]
    names = alternatives_columns(metrics)
    lines = [
        f"| compared | {' | '.join(f'{split} {name}' for split in splits for name in names)} |",
        f"|---|{'---|' * (len(splits) * len(names))}",
    ]
    for each in metrics["alternatives"]:
        found = [each[split] or {"loss": None, "metrics": {}} for split in splits]
        numbers = [{"loss": of["loss"], **of["metrics"]}.get(name) for of in found for name in names]
        lines.append(f"| {each['words']} | {' | '.join('' if n is None else f'{n:.4f}' for n in numbers)} |")
    return [*lines, ""]


def _classes(metrics: dict[str, Any] | None) -> list[str]:
    """What the winner answers, a table for each split."""
    lines = []
    for split, found in ((metrics or {}).get("classes") or {}).items():
        lines += [
            f"## Answers on {split}, by class",
            "",
            "| class | rows | answered | recall | precision | its rows are answered |",
            "|---|---|---|---|---|---|",
        ]
        for each in found["classes"]:
            shares = ["" if each[name] is None else f"{each[name]:.3f}" for name in ("recall", "precision")]
            cells = [each["label"], str(each["rows"]), str(each["answered"]), *shares, answered_words(each)]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return lines


def _usage(load: list[str], config: SweepConfig, manifest: dict[str, Any]) -> list[str]:
    """Python that loads the winner, from the sweep's folder, and uses it once."""
    lines = [*load, f'tokenizer = AutoTokenizer.from_pretrained("{FOLDER}")']
    if config.task != "classification":
        return lines
    cut = f'truncation=True, max_length={manifest["max_length"]}, padding=True, return_tensors="pt"'
    return [
        *lines,
        f'batch = tokenizer(["a text"], {cut})',
        "with torch.no_grad():",
        "    print([model.config.id2label[i] for i in model(**batch).logits.argmax(-1).tolist()])",
    ]


def _dump_without_nulls(config: SweepConfig) -> str:
    """The configuration as YAML, without what is not set."""

    def given(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: kept for key, value in tree.items() if (kept := given(value)) not in (None, {}, [])}
        return tree

    return OmegaConf.to_yaml(OmegaConf.create(given(OmegaConf.to_container(OmegaConf.create(dump(config))))))


def _show(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
