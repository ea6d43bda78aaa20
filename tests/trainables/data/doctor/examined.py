"""Rows that the doctor is shown: from files to splits, without a tokenizer."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trainables.data.collect import collect
from trainables.data.config import DataConfig
from trainables.data.doctor.examine import Examination
from trainables.data.doctor.rows import Prepared
from trainables.data.processes import Processes
from trainables.data.sources import SPLITS, open_sources
from trainables.data.splits import separate
from trainables.tasks import TASKS

SYLLABLES = [f"{a}{b}" for a in "bcdfghklmnprstvz" for b in ("a", "e", "in", "o", "us", "y", "ar")]


def words(count: int, seed: int) -> list[str]:
    """Words of two to four syllables."""
    random = np.random.default_rng(seed)
    return ["".join(random.choice(SYLLABLES, random.integers(2, 5))) for _ in range(count)]


def sentences(count: int, seed: int, least: int = 8, most: int = 25) -> list[str]:
    """Of words that are used as unevenly as those of a language (Zipf)."""
    random, known = np.random.default_rng(seed), words(4000, 7)
    often = 1 / np.arange(1, len(known) + 1)
    lengths = random.integers(least, most, count)
    drawn = random.choice(known, lengths.sum(), p=often / often.sum())
    return [" ".join(part) for part in np.split(drawn, np.cumsum(lengths)[:-1])]


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    """A table, or lines of JSON, by the name of the file, which lies where the tests run."""
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path.name


def prepared(folder: Path, task: str = "classification", **data: object) -> Prepared:
    """Of a `DataConfig`, as `prepare` would split it."""
    config = DataConfig(**{"duplicates": "drop", **data})
    sources = {name: open_sources(config, name) for name in SPLITS}
    read = collect(config, sources, TASKS[task].format, 0, folder / "rows.arrow", Processes())
    splits, _ = separate(read.store, read.splits, config.duplicates)
    return Prepared(store=read.store, splits=splits, task=task, data=config, seed=0)


def examine(found: Prepared, others: dict[str, list[str]] | None = None) -> list:
    return list(Examination(others=others or {})(found))
