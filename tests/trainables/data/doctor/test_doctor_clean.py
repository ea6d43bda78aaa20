"""Data sets with nothing wrong are left in peace: no error, and at most one warning, which is true of them."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sweeps.quickstart import main as quickstart
from tests.trainables.data.doctor.clean import CLEAN
from trainables.data.config import DataConfig
from trainables.data.doctor.examine import Examination
from trainables.data.prepare import prepare

ROWS = 500
TRUE_OF = {
    "logs": ["label_in_text"],  # [ERROR] stands in each line of class error
    "intents": ["label_in_text"],  # and `weather` in each question about the weather
    "slots": ["near_duplicates_between"],  # of thirty mails, with other names and orders
}


@pytest.fixture(scope="module")
def tokenizer():
    """Of bytes, with marks that begin and end a turn."""
    special = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {
        token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=50_000,
    )


def warnings(tokenizer, folder, task, **data) -> list[str]:
    """Kinds of what is no note."""
    config = DataConfig(**{"validation": 0.1, "test": 0.1, "max_length": 50_000, **data})
    found = prepare(config, task, tokenizer, 0, folder, 50_000, Examination(others={})).findings
    assert not [each for each in found if each.severity == "error"]
    return [each.kind for each in found if each.severity == "warning"]


@pytest.mark.parametrize("name", CLEAN)
def test_clean_rows_are_left_in_peace(tokenizer, tmp_path, name):
    made, file = CLEAN[name](ROWS), tmp_path / "rows.jsonl"
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in made.rows)
    file.write_text("".join(lines), encoding="utf-8")
    found = warnings(tokenizer, tmp_path / "out", made.task, train=str(file), **made.data)
    assert found == TRUE_OF.get(name, [])


@pytest.mark.slow  # the sources of all packages are parsed
def test_the_quickstarts_data_are_left_in_peace(tokenizer, tmp_path):
    quickstart([str(tmp_path / "rows.csv")])
    data = {"train": str(tmp_path / "rows.csv"), "group": "file"}
    assert warnings(tokenizer, tmp_path / "out", "classification", **data) == []


@pytest.mark.parametrize(
    ("task", "data", "expected"),
    [
        ("instruction", {"train": "chat/toy_chat.jsonl", "validation": 0.3, "test": None}, []),
        ("instruction", {"train": "chat/drone_tool_calls.jsonl"}, []),
        ("instruction", {"train": "chat/alpaca_demo.jsonl"}, []),
        ("instruction", {"train": "preference/dpo_demo.jsonl", "columns": {"completion": "chosen"}}, []),
        ("instruction", {"train": "text_to_sql/geography.jsonl", "group": "group",
                         "columns": {"prompt": "question", "completion": "sql"}}, []),
        # the same query, asked in other words, on both sides
        ("instruction", {"train": "text_to_sql/geography.jsonl",
                         "columns": {"prompt": "question", "completion": "sql"}}, ["no_group"]),
        ("causal_lm", {"train": "text/tinyshakespeare.txt"}, []),
        ("causal_lm", {"train": "text/wikitext2_test.txt"}, []),
    ],
)  # fmt: skip
def test_real_rows_are_left_in_peace(tokenizer, shared_data, tmp_path, task, data, expected):
    data = data | {"train": str(shared_data / data["train"])}
    assert warnings(tokenizer, tmp_path / "out", task, **data) == expected
