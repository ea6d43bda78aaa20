"""Preparing conversations: rows per second and memory, beside the bare tokenizer and `datasets.map`.

    .venv/bin/python tests/benchmarks/preparation.py --rows 10000 100000

Each way has a process of its own, and as many workers; memory is that of its whole process tree. The rows are
conversations of two turns cut from the Python manual, some 300 tokens each by a byte-level BPE that is trained on it.
"""

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\\n' + m.content }}<|im_end|>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WAYS = ("bare", "datasets", "platform", "again")


def make_tokenizer(folder, words):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([" ".join(words)], trainer)
    backend.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", model_max_length=2048
    )
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)


def make_rows(path, count, words):
    draw = random.Random(0)

    def text(length):
        start = draw.randrange(len(words) - length)
        return " ".join(words[start : start + length])

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            messages = [
                {"role": "user", "content": f"{number}: {text(30)}"},
                {"role": "assistant", "content": text(60)},
                {"role": "user", "content": text(20)},
                {"role": "assistant", "content": text(50)},
            ]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def load(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def tokenise_texts(folder, texts):
    """Nothing but the tokenizer, of texts that are rendered already."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    backend = load(folder).backend_tokenizer
    began = time.perf_counter()
    for i in range(0, len(texts), 1000):
        backend.encode_batch_fast(texts[i : i + 1000], add_special_tokens=False)
    return time.perf_counter() - began


def bare(folder, rows, out):
    """Seconds of the slower worker, without starting and rendering."""
    tokenizer = load(folder)
    texts = [
        "".join(
            f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
            for m in json.loads(line)["messages"]
        )
        for line in rows.read_text(encoding="utf-8").splitlines()
    ]
    assert texts[0] == tokenizer.apply_chat_template(
        json.loads(rows.open().readline())["messages"], tokenize=False
    )
    middle = len(texts) // 2
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return max(
            pool.starmap(tokenise_texts, [(folder, texts[:middle]), (folder, texts[middle:])])
        )


def with_datasets(folder, rows, out):
    """What a script does: load, render with the template, tokenise, keep the assistant's tokens as labels as far as the
    template marks them (here not at all, so all tokens are labels)."""
    import datasets

    datasets.disable_progress_bars()
    tokenizer = load(folder)
    began = time.perf_counter()
    data = datasets.load_dataset("json", data_files=str(rows), cache_dir=str(out), split="train")

    def encode(batch):
        texts = tokenizer.apply_chat_template(batch["messages"], tokenize=False)
        found = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=1024)
        return {"input_ids": found["input_ids"], "labels": found["input_ids"]}

    data.map(encode, batched=True, num_proc=2, remove_columns=data.column_names)
    return time.perf_counter() - began


def platform(folder, rows, out):
    from trainables.data.config import DataConfig
    from trainables.data.prepare import prepare

    tokenizer = load(folder)
    data = DataConfig(train=str(rows), validation=0.01, duplicates="drop", max_length=1024)
    began = time.perf_counter()
    prepare(data, "instruction", tokenizer, 0, out / "data")
    return time.perf_counter() - began


RUN = {"bare": bare, "datasets": with_datasets, "platform": platform, "again": platform}


def measured(way, folder, rows, out):
    """Seconds and the greatest memory of the process tree in MiB, above what the process had when it began."""
    command = [sys.executable, __file__, "--way", way, str(folder), str(rows), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most, done = [0], threading.Event()

    def watch():
        tree = psutil.Process(process.pid)
        while not done.wait(0.2):
            try:
                found = [tree, *tree.children(recursive=True)]
                most[0] = max(most[0], sum(each.memory_full_info().uss for each in found))
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    text, _ = process.communicate()
    done.set()
    watcher.join()
    assert process.returncode == 0, way
    return float(text.split()[-1]), most[0] / 2**20


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000])
    arguments.add_argument("--way", nargs=4, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.way:
        way, folder, rows, out = given.way
        print(RUN[way](folder, Path(rows), Path(out)))
        return
    from trainables.evaluation.forgetting import default_text

    words = default_text().split()
    print(
        "| rows | way | seconds | rows/s | of the bare tokenizer | memory of all processes, MiB |\n|---|---|---|---|---|---|"
    )
    for count in given.rows:
        with tempfile.TemporaryDirectory() as scratch:
            scratch = Path(scratch)
            os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
            make_tokenizer(scratch / "tokenizer", words)
            make_rows(scratch / "rows.jsonl", count, words)
            first = None
            for way in WAYS:
                out = scratch / way
                out.mkdir()
                seconds, memory = measured(way, scratch / "tokenizer", scratch / "rows.jsonl", out)
                first = first or seconds
                print(
                    f"| {count:,} | {way} | {seconds:.1f} | {count / seconds:,.0f} | {first / seconds:.0%} | {memory:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
