"""Bytes of the text that targets are: the same whatever the tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trainables.data.arrow import open_split
from trainables.data.config import DataConfig
from trainables.data.prepare import prepare

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Größe zählt nicht, sagt die Schnecke. 🐌 ",
    "  A text that begins and ends with spaces.  ",
    "雪が降る",
] * 5
TEMPLATES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
)


def tokenizer(vocabulary: int, template: str | None = None) -> transformers.PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "</s>", "<|im_start|>", "<|im_end|>"]
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>"
    )
    made.chat_template = template
    return made


def prepared(folder: Path, rows: list[dict], task: str, made, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DataConfig(
        train=str(folder / "rows.jsonl"), validation=0.25, duplicates="keep", **settings
    )
    prepare(data, task, made, 0, folder / "out", 512, in_bytes=True)
    return open_split(folder / "out", "validation")


@pytest.mark.parametrize("vocabulary", [261, 320])
def test_blocks_of_documents_count_all_but_their_first_tokens(tmp_path: Path, vocabulary: int):
    made = tokenizer(vocabulary)
    split = prepared(
        tmp_path,
        [{"text": f"{text}{n}"} for n, text in enumerate(TEXTS)],
        "causal_lm",
        made,
        max_length=16,
    )
    assert split.target_bytes is not None
    for row, counted in zip(split.rows(range(len(split))), split.target_bytes, strict=True):
        ids = [int(i) for i in row["input_ids"][1:] if i != made.eos_token_id]
        pieces = sum(len(made.convert_ids_to_tokens(i)) for i in ids)  # a character for each byte
        # a character of several bytes that several tokens share is of the first of them
        assert abs(counted - pieces) <= 3
    whole = prepared(
        tmp_path,
        [{"text": f"{text}{n}"} for n, text in enumerate(TEXTS)],
        "causal_lm",
        made,
        max_length=512,
    )
    first = [made.decode(row["input_ids"][:1]) for row in whole.rows(range(len(whole)))]
    texts = [
        made.decode(row["input_ids"], skip_special_tokens=True)
        for row in whole.rows(range(len(whole)))
    ]
    for counted, text, begun in zip(whole.target_bytes, texts, first, strict=True):
        if "\ufffd" not in begun:
            assert counted == len(text.encode()) - len(begun.encode())


def test_documents_that_run_on_count_as_much(tmp_path: Path):
    made, rows = tokenizer(261), [{"text": f"{text}{n}"} for n, text in enumerate(TEXTS)]
    across = prepared(tmp_path, rows, "causal_lm", made, max_length=32, cross_documents=True)
    assert across.target_bytes is not None
    for row, counted in zip(across.rows(range(len(across))), across.target_bytes, strict=True):
        ids = [int(i) for i in row["input_ids"][1:] if i != made.eos_token_id]
        assert abs(counted - sum(len(made.convert_ids_to_tokens(i)) for i in ids)) <= 3


def test_answers_count_alike_under_every_tokenizer_and_template(tmp_path: Path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}"},
                {"role": "assistant", "content": text, "weight": 0 if n % 3 == 0 else 1},
                {"role": "user", "content": "And again?"},
                {"role": "assistant", "content": f"{text}{n}"},
            ]
        }
        for n, text in enumerate(TEXTS)
    ]
    found = []
    for number, template in enumerate(TEMPLATES):
        made = tokenizer(261 + 60 * number, template)
        found.append(prepared(tmp_path / str(number), rows, "instruction", made).target_bytes)
    assert np.array_equal(*found) and len(set(found[0])) > 2
    assert set(found[0]) <= {
        float(
            sum(
                len(m["content"].strip().encode()) * m.get("weight", 1) for m in r["messages"][1::2]
            )
        )
        for r in rows
    }


def test_nobody_counts_where_nobody_asks(tmp_path: Path):
    made = tokenizer(261)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    data = DataConfig(train=str(tmp_path / "rows.jsonl"), validation=0.25, duplicates="keep")
    prepare(data, "causal_lm", made, 0, tmp_path / "out", 512)
    assert open_split(tmp_path / "out", "validation").target_bytes is None
