"""The doctor: CPU seconds and memory of what it looks for, by rows.

    .venv/bin/python tests/benchmarks/doctor.py --rows 10000 100000

Rows of 60 words, drawn as often as they stand in the Python manual, with five columns beside them; *templated* rows
begin with the same instruction of 300 words. In each hundredth row one word of an earlier row is another. Each part
has a process of its own; its memory is what it holds at its peak beyond what it held when it began.
"""

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

KINDS = ("untemplated", "templated")
PARTS = ("near", "columns", "labels", "shift", "secrets")
PLANTED = 100  # rows, of which one is nearly an earlier one


def make_rows(path, count, kind, words):
    counted = Counter(words)
    names, often = list(counted), list(counted.values())
    draw = random.Random(0)
    template = " ".join(draw.choices(names, often, k=300)) + " " if kind == "templated" else ""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "id", "user", "when", "channel", "score"])
        kept = []
        for number in range(count):
            text = draw.choices(names, often, k=60)
            if number % PLANTED == PLANTED - 1:
                text = list(draw.choice(kept))
                text[draw.randrange(len(text))] = "otherwise"
            elif number % 10 == 0:
                kept.append(text)
            writer.writerow(
                [
                    template + " ".join(text),
                    f"class {draw.randrange(20)}",
                    f"row-{number}",
                    f"user-{draw.randrange(max(1, count // 3))}",
                    f"2026-{draw.randrange(1, 13):02}-{draw.randrange(1, 29):02}T{number % 24:02}:00",
                    draw.choice(["mail", "web", "phone"]),
                    f"{draw.random():.6f}",
                ]
            )


def examine(part, rows, scratch):
    """CPU seconds, MiB, and how many rows were told to be nearly the same as an earlier one."""
    from trainables.data.collect import collect
    from trainables.data.config import DataConfig
    from trainables.data.doctor import columns, labels, near, secrets, shift
    from trainables.data.doctor.rows import Prepared
    from trainables.data.processes import Processes
    from trainables.data.sources import open_sources
    from trainables.tasks import TASKS

    task = "classification"
    data = DataConfig(train=str(rows), validation=0.1, duplicates="drop")
    sources = {split: open_sources(data, split) for split in ("train", "validation", "test")}
    read = collect(data, sources, TASKS[task].format, 0, scratch / "rows.arrow", Processes())
    prepared = Prepared(store=read.store, splits=read.splits, task=task, data=data, seed=0)
    look = {
        "near": near.near_duplicates,
        "columns": columns.column_findings,
        "labels": labels.label_findings,
        "shift": shift.shifts,
        "secrets": secrets.secrets,
    }[part]
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the memory (Linux)
    before, began = status("VmRSS"), time.process_time()
    found = list(look(prepared))
    seconds, memory = time.process_time() - began, status("VmHWM") - before
    near_rows = sum(each.rows for each in found if each.kind.startswith("near"))
    return seconds, memory, near_rows


def status(what):
    """Of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def measured(part, rows):
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--part", part, str(rows), scratch]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, memory, near_rows = map(float, done.stdout.split()[-3:])
    return seconds, memory, int(near_rows)


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000])
    arguments.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    arguments.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    arguments.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.part:
        part, rows, scratch = given.part
        print(*examine(part, Path(rows), Path(scratch)))
        return
    from trainables.evaluation.forgetting import default_text

    words = default_text().split()
    print("| rows | texts | looks for | CPU s | MiB | nearly the same |\n|---|---|---|---|---|---|")
    for count in given.rows:
        for kind in given.kinds:
            with tempfile.TemporaryDirectory() as folder:
                rows = Path(folder) / "rows.csv"
                make_rows(rows, count, kind, words)
                for part in given.parts:
                    seconds, memory, near_rows = measured(part, rows)
                    told = f"{near_rows:,} of {count // PLANTED:,}" if part == "near" else ""
                    print(
                        f"| {count:,} | {kind} | {part} | {seconds:.1f} | {memory:,.0f} | {told} |",
                        flush=True,
                    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
