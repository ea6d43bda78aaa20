"""The model card of the winner."""

import hashlib
import json
from collections.abc import Iterator, Sequence

from omegaconf import DictKeyType, OmegaConf

from sweeps.config.loading import dump
from sweeps.config.schema import SweepConfig
from sweeps.ledger.folder import WINNER
from sweeps.ledger.leaderboard import (
    Alternative,
    Leaderboard,
    LossAndMetrics,
    MetricsReport,
    SplitName,
    WinnerRow,
)
from sweeps.reporting.words import (
    alternatives_columns,
    answered_words,
    average_words,
    earlier_words,
    expected_words,
    forgetting_words,
    harness_words,
    lineage_words,
    loss_words,
    measured_splits,
    slices_words,
    test_words,
    verdict_words,
)
from trainables.data.manifest import MANY_SOURCES, Manifest, SourceSummary, common_folder
from trainables.hyperparameters import OPTIONS
from trainables.tasks import TASKS

# whose checkpoints are PEFT's
PEFT_METHODS = [name for name, options in OPTIONS.items() if options.loaded_by == "PEFT"]


def card(config: SweepConfig, board: Leaderboard, manifest: Manifest, loading: list[str]) -> str:
    """README.md of the winner: what it is, how good, from what data, and the lines of Python that
    load it.
    """
    winner = board.winner
    assert winner is not None, "a card is a winner's"
    method = winner.params.get("method", config.train.method)
    lines = [
        *_head(config, board, winner, peft=method in PEFT_METHODS),
        *_number_lines(board, winner),
        *alternatives_lines(board.metrics),
        f"Losses are {loss_words(manifest)}."
        f" Check them with `python -m sweeps verify {board.folder}`.",
        "",
        *classes_lines(board.metrics),
        *_curve_lines(board, winner),
        *_loading_lines(str(method), loading),
        *_data_lines(manifest),
        *_configuration_lines(config, winner),
    ]
    return "\n".join(lines)


def _head(config: SweepConfig, board: Leaderboard, winner: WinnerRow, *, peft: bool) -> list[str]:
    """What it is, and what was found of it in words."""
    lines = [
        "---",
        f"base_model: {config.model.name}",
        f"library_name: {'peft' if peft else 'transformers'}",
        "---",
        f"# {config.name}: the winner, trial {winner.trial}",
        "",
    ]
    return [*lines, *found_lines(board, winner)]


def found_lines(board: Leaderboard, winner: WinnerRow) -> list[str]:
    """Why it has won, and what else was found of it, a paragraph each."""
    lines = [winner.reason, ""]
    if board.worth is not None:
        lines += [f"Worth it? {board.worth.words}", ""]
    if board.test is not None:
        lines += [f"Test: {test_words(board.test)}.", ""]
    if board.slices is not None:
        lines += [f"Slices: {slices_words(board.slices)}.", ""]
    if board.forgetting is not None:
        lines += [f"Forgetting: {forgetting_words(board.forgetting)}.", ""]
    if board.earlier_forgetting is not None:
        lines += [f"Forgetting: {earlier_words(board.earlier_forgetting)}.", ""]
    if board.harness:
        lines += [f"lm-eval: {harness_words(board.harness)}.", ""]
    if board.lineage:
        lines += [f"Went on from: {lineage_words(board.lineage)}.", ""]
    return lines


def _number_lines(board: Leaderboard, winner: WinnerRow) -> list[str]:
    numbers: dict[str, float | None] = {"validation loss": winner.val_loss}
    if (expected := winner.expected) is not None:
        numbers[f"validation loss, {expected_words(expected)}"] = expected.mean
    numbers |= {"probe loss (training rows)": winner.probe_loss, **winner.metrics}
    for name, baseline in board.baselines.items():
        numbers[f"validation loss, {board.name_of(name)}"] = baseline.val_loss
    return [
        "## Numbers",
        "",
        "| measured | value |",
        "|---|---|",
        *(f"| {name} | {value:.6g} |" for name, value in numbers.items() if value is not None),
        "",
    ]


def _curve_lines(board: Leaderboard, winner: WinnerRow) -> list[str]:
    trial = next(trial for trial in board.trials if trial.id == winner.trial)
    return [
        "## Curve",
        "",
        "| samples seen | epoch | validation loss | probe loss |",
        "|---|---|---|---|",
        *(
            f"| {e.samples_seen}{average_words(e)} | {e.epoch:g} | {_show(e.val_loss)} |"
            f" {_show(e.probe_loss)} |"
            for e in trial.evaluations
        ),
        "",
        (
            f"Verdict: {verdict_words(trial)} ({trial.verdict_reason}). The checkpoint here is"
            f" that of {winner.samples_seen} samples{average_words(winner)}."
        ),
        "",
    ]


def _loading_lines(method: str, loading: list[str]) -> list[str]:
    loaded_by = OPTIONS[method].loaded_by
    more = "" if loaded_by == "transformers" else f" and {loaded_by}"
    return [
        "## How to load it",
        "",
        f"From the sweep's folder, with transformers{more}:",
        "",
        "```python",
        *loading,
        "```",
        "",
    ]


def _data_lines(manifest: Manifest) -> list[str]:
    return [
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
        *_source_lines(manifest),
        "",
    ]


def _source_lines(manifest: Manifest) -> Iterator[str]:
    """Each source, or of many of one split how many, where, and one fingerprint of all."""
    splits: dict[str, dict[str, SourceSummary]] = {}
    for name, source in manifest.sources.items():
        splits.setdefault(name.partition("[")[0], {})[name] = source
    for split, sources in splits.items():
        if len(sources) <= MANY_SOURCES:
            for name, source in sources.items():
                yield f"- {name}: `{source.source}`, SHA-256 {source.sha256}"
            continue
        found = list(sources.values())
        folder = common_folder(found)
        sums = "".join(f"{each.sha256}\n" for each in found)
        yield (
            f"- {split}: {len(found)} sources{folder and f' below `{folder}`'} with"
            f" {sum(each.rows for each in found)} rows, SHA-256"
            f" {hashlib.sha256(sums.encode()).hexdigest()} (of the SHA-256 of each, one a line, in"
            " the order of `data/manifest.json`)"
        )


def _configuration_lines(config: SweepConfig, winner: WinnerRow) -> list[str]:
    return [
        "## Configuration",
        "",
        "```json",
        json.dumps(config.complete(winner.params), indent=1),
        "```",
        "",
        "```yaml",
        _dump_without_nulls(config).rstrip(),
        "```",
        "",
    ]


def alternatives_lines(metrics: MetricsReport | None) -> list[str]:
    """The table of the winner and all that it is compared with, on both splits."""
    if metrics is None:
        return []
    splits, names = measured_splits(metrics), alternatives_columns(metrics)
    lines = [
        f"| compared | {' | '.join(f'{split} {name}' for split in splits for name in names)} |",
        f"|---|{'---|' * (len(splits) * len(names))}",
    ]
    lines += [_alternative_line(each, splits, names) for each in metrics.alternatives]
    return [*lines, ""]


def _alternative_line(each: Alternative, splits: Sequence[SplitName], names: Sequence[str]) -> str:
    found = [each.on(split) or LossAndMetrics() for split in splits]
    numbers = [of.number(name) for of in found for name in names]
    cells = ["" if value is None else f"{value:.4f}" for value in numbers]
    return f"| {each.words} | {' | '.join(cells)} |"


def classes_lines(metrics: MetricsReport | None) -> list[str]:
    """What the winner answers, a table for each split."""
    lines = []
    for split, found in ((metrics and metrics.classes) or {}).items():
        names = ["class", "rows", "answered", "recall", "precision"]
        names += ["its rows are answered"] * found.has_confusion
        lines += [
            f"## Answers on {split}, by class",
            "",
            f"| {' | '.join(names)} |",
            f"|{'---|' * len(names)}",
        ]
        for each in found.classes:
            shares = ["" if s is None else f"{s:.3f}" for s in (each.recall, each.precision)]
            counts = [str(each.rows), str(each.answered)]
            cells = [each.label, *counts, *shares, answered_words(each)][: len(names)]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return lines


def usage_code(load: list[str], config: SweepConfig, manifest: Manifest) -> list[str]:
    """Python that loads the winner, from the sweep's folder, and uses it once."""
    cut = f'truncation=True, max_length={manifest.max_length}, padding=True, return_tensors="pt"'
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{WINNER}")'
    text = f"{config.data.source_prefix}a text"
    return [*load, tokenizer, *TASKS[config.task].usage(cut, text)]


def _dump_without_nulls(config: SweepConfig) -> str:
    """The configuration as YAML, without what is not set."""
    tree = OmegaConf.to_container(OmegaConf.create(dump(config)))
    assert isinstance(tree, dict), "a configuration is a mapping"
    return OmegaConf.to_yaml(OmegaConf.create(_without_nulls(tree)))


def _without_nulls(tree: dict[DictKeyType, object]) -> dict[DictKeyType, object]:
    inner = {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in tree.items()
    }
    return {key: value for key, value in inner.items() if value not in (None, {}, [])}


def _show(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
