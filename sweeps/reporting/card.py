"""The model card of the winner."""

import json
from typing import Any

from omegaconf import OmegaConf

from sweeps.config.loading import dump
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import WINNER
from sweeps.reporting.words import (
    alternatives_columns,
    answered_words,
    expected_words,
    forgetting_words,
    slices_words,
    test_words,
    verdict_words,
)
from trainables.data.manifest import Manifest
from trainables.hyperparameters import OPTIONS

# whose checkpoints are PEFT's
PEFT_METHODS = [name for name, options in OPTIONS.items() if options.loaded_by == "PEFT"]


def card(config: SweepConfig, board: dict[str, Any], manifest: Manifest, loading: list[str]) -> str:
    """README.md of the winner: what it is, how good, from what data, and the lines of Python that
    load it.
    """
    winner = board["winner"]
    trial = next(t for t in board["trials"] if t["id"] == winner["trial"])
    method = winner["params"].get("method", config.train.method)
    numbers = {
        "validation loss": winner["val_loss"],
        **(
            {f"validation loss, {expected_words(found)}": found["mean"]}
            if (found := winner.get("expected"))
            else {}
        ),
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
        *(
            [f"Forgetting: {forgetting_words(board['forgetting'])}.", ""]
            if board.get("forgetting")
            else []
        ),
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
        *alternatives_lines(board.get("metrics")),
        "Losses are means in nats per "
        + ("example" if config.task == "classification" else "target token")
        + f". Check them with `python -m sweeps verify {board['folder']}`.",
        "",
        *classes_lines(board.get("metrics")),
        "## Curve",
        "",
        "| samples seen | epoch | validation loss | probe loss |",
        "|---|---|---|---|",
        *(
            f"| {e['samples_seen']} | {e['epoch']:g} | {_show(e['val_loss'])} |"
            f" {_show(e['probe_loss'])} |"
            for e in trial["evaluations"]
        ),
        "",
        (
            f"Verdict: {verdict_words(trial)} ({trial['verdict_reason']}). The checkpoint here is"
            f" that of {winner['samples_seen']} samples."
        ),
        "",
        "## How to load it",
        "",
        "From the sweep's folder, with transformers"
        + (
            " and PEFT:"
            if method in PEFT_METHODS
            else " and this project:"
            if OPTIONS[method].loaded_by == "this project"
            else ":"
        ),
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
            f"| {name} | {split.rows or split.read} |"
            f" {split.fingerprint or split.raw_fingerprint} |"
            for name, split in manifest.splits.items()
        ),
        "",
        *(
            f"- {name}: `{source.source}`, SHA-256 {source.sha256}"
            for name, source in manifest.sources.items()
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


def alternatives_lines(metrics: dict[str, Any] | None) -> list[str]:
    """The table of the winner and all that it is compared with, on both splits."""
    if metrics is None:
        return []
    splits = [
        split
        for split in ("validation", "test")
        if any(each[split] for each in metrics["alternatives"])
    ]
    names = alternatives_columns(metrics)
    lines = [
        f"| compared | {' | '.join(f'{split} {name}' for split in splits for name in names)} |",
        f"|---|{'---|' * (len(splits) * len(names))}",
    ]
    for each in metrics["alternatives"]:
        found = [each[split] or {"loss": None, "metrics": {}} for split in splits]
        numbers = [
            {"loss": of["loss"], **of["metrics"]}.get(name) for of in found for name in names
        ]
        lines.append(
            f"| {each['words']} | {' | '.join('' if n is None else f'{n:.4f}' for n in numbers)} |"
        )
    return [*lines, ""]


def classes_lines(metrics: dict[str, Any] | None) -> list[str]:
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
            shares = [
                "" if each[name] is None else f"{each[name]:.3f}"
                for name in ("recall", "precision")
            ]
            cells = [
                each["label"],
                str(each["rows"]),
                str(each["answered"]),
                *shares,
                answered_words(each),
            ]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return lines


def usage_code(load: list[str], config: SweepConfig, manifest: Manifest) -> list[str]:
    """Python that loads the winner, from the sweep's folder, and uses it once."""
    lines = [*load, f'tokenizer = AutoTokenizer.from_pretrained("{WINNER}")']
    if config.task != "classification":
        return lines
    cut = f'truncation=True, max_length={manifest.max_length}, padding=True, return_tensors="pt"'
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
            return {
                key: kept
                for key, value in tree.items()
                if (kept := given(value)) not in (None, {}, [])
            }
        return tree

    return OmegaConf.to_yaml(
        OmegaConf.create(given(OmegaConf.to_container(OmegaConf.create(dump(config)))))
    )


def _show(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
