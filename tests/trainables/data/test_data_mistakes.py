"""Every mistake with data, and the one line that it is answered with."""
# ruff: noqa: E501 (the table has one mistake a line)

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainables.data.config import DataConfig
from trainables.data.manifest import read_manifest
from trainables.data.prepare import prepare, tokenise_split
from trainables.errors import InputError


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {
        token: i
        for i, token in enumerate(["[UNK]", "</s>", "<pad>", *map(str, range(10)), "good", "bad"])
    }
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=128,
    )


GOOD = "text,label\n" + "".join(f"good {i} {i + 20},yes\nbad {i},no\n" for i in range(20))
CHAT = "".join(
    json.dumps(
        {
            "messages": [
                {"role": "user", "content": f"good {i}"},
                {"role": "assistant", "content": "bad"},
            ]
        }
    )
    + "\n"
    for i in range(20)
)


def chat_row(*messages):
    return CHAT + json.dumps({"messages": list(messages)}) + "\n"


USER = {"role": "user", "content": "good"}
DROP = "mend it, or set data.bad_rows=drop to leave it out"
OR = f"; {DROP}"

MISTAKES = [
    # (task, {file: content}, settings, message)
    ("classify", {}, {"train": "a.csv"}, "task: 'classify' is unknown; allowed are classification, multi_label, token_classification, regression, instruction, preference, causal_lm, seq2seq. Did you mean 'classification'?"),
    ("classification", {}, {}, "data.train: no training data; give a file or hf:owner/name"),
    ("classification", {}, {"train": "a.csv", "validation": None}, "data.validation: no validation data, without which no winner can be chosen; give a file, or the share of train to set apart for it, such as 0.1"),
    ("classification", {"a.xlsx": "x"}, {"train": "a.xlsx"}, "data.train: a.xlsx: unknown kind of file '.xlsx'; allowed are .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .arrow, .txt (those of text also as .gz, .zst, .bz2, .xz), folders and patterns of those, and hf:owner/name"),
    ("classification", {"train.csv": GOOD}, {"train": "trian.csv"}, "data.train: trian.csv: no such file (looked from {cwd}). Did you mean 'train.csv'?"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "validation": "nowhere/b.csv"}, "data.validation: nowhere/b.csv: no such file (looked from {cwd})."),
    ("classification", {"f.csv/a.xlsx": "x"}, {"train": "f.csv"}, "data.train: f.csv: no file of a known kind, only .xlsx (1); allowed are .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .arrow, .txt (those of text also as .gz, .zst, .bz2, .xz), folders and patterns of those, and hf:owner/name"),
    ("classification", {"a.csv": GOOD}, {"train": "b*.csv"}, "data.train: b*.csv: no files (looked from {cwd})"),
    ("classification", {"a.csv": "  \n"}, {"train": "a.csv"}, "data.train: a.csv: the file is empty"),
    ("classification", {"a.csv": "text,label\n"}, {"train": "a.csv"}, "data.train: a.csv: no rows"),
    ("classification", {"a.json": "[]"}, {"train": "a.json"}, "data.train: a.json: no rows"),
    ("classification", {"a.csv": b"text,label\ncaf\xe9,yes\n"}, {"train": "a.csv"}, "data.train: a.csv: not UTF-8 (byte 0xe9 at offset 14, line 2); it looks like cp1252: iconv -f cp1252 -t utf-8 converts it"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "text": "txt"}, "data.text: a.csv has no column 'txt', only text, label. Did you mean 'text'?"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "label": "sentiment"}, "data.label: a.csv has no column 'sentiment', only text, label."),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "text_pair": "other"}, "data.text_pair: a.csv has no column 'other', only text, label."),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "group": "author"}, "data.group: a.csv has no column 'author', only text, label."),
    ("classification", {"a.csv": "text;label\na;x\n"}, {"train": "a.csv"}, "data.train: a.csv: its header is a single column, 'text;label': columns seem to be separated by ';', not ','; write it with ',' between them"),
    ("classification", {"a.csv": "text,text\na,b\n"}, {"train": "a.csv"}, "data.train: a.csv: two columns have the same name in the header [\"text\", \"text\"]"),
    ("classification", {"a.csv": GOOD + "good, or bad,yes\n"}, {"train": "a.csv"}, "data.train: a.csv line 42: 3 fields where the header has 2; quote text that holds ','" + OR),
    ("classification", {"a.csv": GOOD + '"good\n'}, {"train": "a.csv"}, "data.train: a.csv line 42: the quote that opens here is never closed; a quote that is text is doubled: \"\""),
    ("classification", {"a.csv": GOOD + " ,yes\n"}, {"train": "a.csv"}, "data.train: a.csv row 41: 'text' is empty" + OR),
    ("classification", {"a.csv": GOOD + "good,\n"}, {"train": "a.csv"}, "data.train: a.csv row 41: 'label' is empty" + OR),
    ("classification", {"a.jsonl": '{"text": "a", "label": 0}\n\n{"text": "b"}\n'}, {"train": "a.jsonl"}, "data.train: a.jsonl line 3: 'label' is missing" + OR),
    ("classification", {"a.jsonl": '{"text": "a", "label": NaN}\n'}, {"train": "a.jsonl"}, "data.train: a.jsonl line 1: 'label' is missing"),
    ("classification", {"a.jsonl": '{"text": "a", "label": 1.0}\n'}, {"train": "a.jsonl"}, "data.train: a.jsonl line 1: 'label' must be a string or an integer, got float 1.0"),
    ("classification", {"a.jsonl": '{"text": null, "label": 1}\n'}, {"train": "a.jsonl"}, "data.train: a.jsonl line 1: 'text' is missing"),
    ("classification", {"a.jsonl": '{"text": ["a"], "label": 1}\n'}, {"train": "a.jsonl"}, "data.train: a.jsonl line 1: 'text' must be text, got list [\"a\"]"),
    ("classification", {"a.jsonl": '{"text": "a\\ud83d", "label": 1}\n'}, {"train": "a.jsonl"}, "data.train: a.jsonl line 1: 'text' is not Unicode text: it has a lone surrogate '\\ud83d'"),
    ("classification", {"a.jsonl": '{"text": "a", "label": 1}\n{"text": "b" "label": 1}\n'}, {"train": "a.jsonl"}, "data.train: a.jsonl line 2: not JSON: Expecting ',' delimiter in column 14, between '{\"text\": \"b\" ' and '\"label\": 1}'" + OR),
    ("classification", {"a.jsonl": '{"text": "a", "text": "b", "label": 1}\n'}, {"train": "a.jsonl"}, "data.train: a.jsonl line 1: the key 'text' stands twice in an object"),
    ("classification", {"a.jsonl": '[{"text": "a", "label": 1}]'}, {"train": "a.jsonl"}, "data.train: a.jsonl: a list of objects, as .json has it, not one object a line; name it .json"),
    ("classification", {"a.jsonl": "[1, 2]\n"}, {"train": "a.jsonl"}, 'data.train: a.jsonl line 1: must be an object like {"text": ...}, got [1, 2]'),
    ("classification", {"a.json": '{"text": "a"}\n{"text": "b"}\n'}, {"train": "a.json"}, "data.train: a.json line 2: not JSON: Extra data in column 1, before '{\"text\": \"b\"}'; one object a line is .jsonl"),
    ("classification", {"a.json": '{"text": "a"}'}, {"train": "a.json"}, 'data.train: a.json: must be a list of objects like [{"text": ...}, ...], got an object with the keys ["text"]; a single row is a list of one'),
    ("classification", {"a.parquet": "text"}, {"train": "a.parquet"}, "data.train: a.parquet: not a Parquet file, or only part of one"),
    ("classification", {"a.txt": "good bad"}, {"train": "a.txt"}, "data.train: a.txt: a .txt file has no labels; classification takes a table with columns 'text' and 'label'"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "validation": 0}, "data.validation: must be a file, or a share of train between 0 and 1 (both excluded), got 0"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "validation": 1.2}, "data.validation: must be a file, or a share of train between 0 and 1 (both excluded), got 1.2"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "test": -0.1}, "data.test: must be a file, or a share of train between 0 and 1 (both excluded), got -0.1"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "validation": 0.5, "test": 0.5}, "data.validation + data.test: shares must leave rows for train, got 0.5 + 0.5"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "validation": 0.01}, "data.validation: a share of 0.01 leaves it no rows; give more rows or another share"),
    ("classification", {"a.csv": "text,label,author\n" + "".join(f"good {i},{i % 2},me\n" for i in range(9))}, {"train": "a.csv", "group": "author"}, "data.validation: a share of 0.1 leaves it no rows (rows of one 'author' stay together); give more rows or another share"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "validation": "a.csv", "duplicates": "drop"}, "data.train: no rows are left of it after splitting and dropping duplicates; give more rows or another share"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "validation": "a.csv"}, "data.duplicates: 40 row(s) of train are also in validation (case and white space ignored), such as 'good 0 20', 'bad 0', 'good 1 21'; remove them, or set data.duplicates=drop to leave them out of train"),
    ("classification", {"a.csv": "text,label\na,yes\nb,yes\n", "b.csv": GOOD}, {"train": "a.csv", "validation": "b.csv"}, "data.label: all 2 rows of train have the same label, 'yes'; classification needs at least two"),
    ("classification", {"a.csv": GOOD, "b.csv": "text,label\nx,yes\ny,maybe\n"}, {"train": "a.csv", "validation": "b.csv"}, "data.validation: b.csv row 2: label 'maybe' is nowhere in train, which has 'no', 'yes'"),
    ("classification", {"a.csv": GOOD + "rare,rare\n"}, {"train": "a.csv"}, "data.label: 'rare' (a.csv row 41) has a single row, too few to be both in train and in validation; leave it out, or give data.validation as a file"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "rows": 0}, "data.rows: must be at least 1, got 0"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "rows": 1}, "data.rows: 1 row(s) of train leave out the label(s) no; raise it"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "max_length": 1}, "data.max_length: must be at least 2 tokens, got 1"),
    ("classification", {"a.csv": GOOD}, {"train": "a.csv", "max_length": 200}, "data.max_length: the model takes at most 64 tokens, got 200"),
    ("classification", {"a.csv": GOOD}, {"train": "hf:owner/name?spilt=train"}, "data.train: hf:owner/name?spilt=train: unknown option 'spilt'; allowed are split, config, revision, streaming. Did you mean 'split'?"),
    ("causal_lm", {"a.txt": "\n \n"}, {"train": "a.txt"}, "data.train: a.txt: the file is empty"),
    ("causal_lm", {"a.txt": "good " * 3}, {"train": "a.txt", "validation": 0.01}, "data.validation: a share of 0.01 leaves it no rows; give more rows or another share"),
    ("instruction", {"a.csv": GOOD}, {"train": "a.csv"}, "data.train: a.csv: not a format of instruction data; allowed are columns 'messages' (OpenAI chat), 'conversations' (ShareGPT), 'prompt' and 'completion', or 'instruction', 'output' and perhaps 'input'; got text, label. Columns of other names are told by data.columns: {prompt: ..., completion: ...}"),
    ("instruction", {"a.jsonl": '{"promt": "a", "completion": "b"}'}, {"train": "a.jsonl"}, "data.train: a.jsonl: not a format of instruction data; allowed are columns 'messages' (OpenAI chat), 'conversations' (ShareGPT), 'prompt' and 'completion', or 'instruction', 'output' and perhaps 'input'; got promt, completion. Did you mean 'prompt'?"),
    ("instruction", {"a.jsonl": '{"prompt": "a", "completion": ""}'}, {"train": "a.jsonl"}, "data.train: a.jsonl line 1: 'completion' is empty"),
    ("instruction", {"a.jsonl": '{"prompt": "a", "completion": 5}'}, {"train": "a.jsonl"}, "data.train: a.jsonl line 1: 'completion' must be text, got int 5"),
    ("instruction", {"a.jsonl": '{"instruction": "a", "input": 3, "output": "b"}'}, {"train": "a.jsonl"}, "data.train: a.jsonl line 1: 'input' must be text, got int 3"),
    ("instruction", {"a.jsonl": '{"instruction": "a", "output": null}'}, {"train": "a.jsonl"}, "data.train: a.jsonl line 1: 'output' is missing"),
    ("instruction", {"a.jsonl": chat_row()}, {"train": "a.jsonl"}, "data.train: a.jsonl line 21: 'messages' must be a list of messages like {{\"role\": \"user\", \"content\": ...}}, got []" + OR),
    ("instruction", {"a.jsonl": chat_row(USER, {"role": "asistant", "content": "x"})}, {"train": "a.jsonl"}, "data.train: a.jsonl line 21: messages[1]: role must be one of system, developer, user, assistant, tool, got 'asistant'. Did you mean 'assistant'?" + f" M{DROP[1:]}"),
    ("instruction", {"a.jsonl": chat_row(USER, {"role": "assistant"})}, {"train": "a.jsonl"}, "data.train: a.jsonl line 21: messages[1]: the assistant's message has no 'content', only role" + OR),
    ("instruction", {"a.jsonl": chat_row(USER, {"role": "assistant", "content": {"a": 1}})}, {"train": "a.jsonl"}, "data.train: a.jsonl line 21: messages[1]: content must be text, got dict {{\"a\": 1}}" + OR),
    ("instruction", {"a.jsonl": chat_row({"role": "user", "content": [{"type": "image_url"}]}, USER)}, {"train": "a.jsonl"}, "data.train: a.jsonl line 21: messages[0]: content may hold text parts only, like {{\"type\": \"text\", \"text\": ...}}, got {{\"type\": \"image_url\"}}" + OR),
    ("instruction", {"a.jsonl": chat_row(USER)}, {"train": "a.jsonl"}, "data.train: a.jsonl line 21: no assistant message to learn from" + OR),
    ("instruction", {"a.jsonl": chat_row(USER, {"role": "assistant", "content": "x", "weight": 0})}, {"train": "a.jsonl"}, "data.train: a.jsonl line 21: nothing to learn from: its assistant message has weight 0" + OR),
    ("instruction", {"a.jsonl": chat_row(USER, {"role": "assistant", "tool_calls": [{"name": "f"}]})}, {"train": "a.jsonl"}, "data.train: a.jsonl line 21: messages[1].tool_calls[0]: must be like {{\"type\": \"function\", \"function\": {{\"name\": ..., \"arguments\": ...}}}}, got {{\"name\": \"f\"}}" + OR),
    ("instruction", {"a.jsonl": chat_row(USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{a"}}]})}, {"train": "a.jsonl"}, "data.train: a.jsonl line 21: messages[1].tool_calls[0].function.arguments: not JSON: Expecting property name enclosed in double quotes in column 2, between '{{' and 'a'" + OR),
    ("instruction", {"a.jsonl": CHAT}, {"train": "a.jsonl", "max_length": 3}, "data.max_length: in none of 18 rows (a.jsonl line 1 and on) do the first 3 tokens reach the assistant's answer; raise it"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "files", "settings", "message"), MISTAKES, ids=[m[3][:70] for m in MISTAKES]
)
def test_mistake(task, files, settings, message, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        prepare(DataConfig(**settings), task, tokenizer, 0, tmp_path / "out", context=64)
    # doubled braces where the message is formatted
    expected = message.format(cwd=tmp_path) if "{cwd}" in message or "{{" in message else message
    assert str(error.value) == expected
    assert "\n" not in str(error.value)
    assert read_manifest(tmp_path / "out") is None


def test_a_dataset_that_cannot_be_had_says_so_in_one_line(tokenizer, tmp_path):
    with pytest.raises(InputError) as error:
        prepare(
            DataConfig(train=f"hf:{tmp_path}/nothing"),
            "classification",
            tokenizer,
            0,
            tmp_path / "out",
        )
    assert str(error.value).startswith(f"data.train: hf:{tmp_path}/nothing: ")
    assert "\n" not in str(error.value)


def test_a_text_that_its_special_tokens_leave_no_room(tmp_path, tokenizer):
    from tokenizers.processors import TemplateProcessing

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(
        single="</s> $A <pad>",
        pair="</s> $A <pad> $B <pad>",
        special_tokens=[("</s>", 1), ("<pad>", 2)],
    )
    (tmp_path / "a.csv").write_text(GOOD)
    with pytest.raises(
        InputError, match="^data.max_length: must be more than the 2 tokens that the tokenizer puts"
    ):
        prepare(
            DataConfig(train=str(tmp_path / "a.csv"), max_length=2),
            "classification",
            PreTrainedTokenizerFast(tokenizer_object=backend),
            0,
            tmp_path / "out",
        )


@pytest.mark.parametrize("task", ["classification", "instruction", "causal_lm"])
def test_whatever_columns_are_called_an_error_is_a_line_that_can_be_printed(
    tokenizer, tmp_path, task
):
    file = tmp_path / "a\nb\x1f.jsonl"
    file.write_text('{"one\\ntwo\\u2028\\ud83d": "a"}\n' * 9)
    with pytest.raises(InputError) as error:
        prepare(DataConfig(train=str(file)), task, tokenizer, 0, tmp_path / "out")
    message = str(error.value)
    assert len(message.splitlines()) == 1 and message.encode().decode() == message
    assert "a b\\x1f.jsonl" in message and "two\\u2028\\ud83d" in message


@pytest.mark.parametrize("given", ["a file", "its folder", "a pattern"])
def test_a_file_whose_name_is_no_text_is_refused(tokenizer, tmp_path, given):
    """What is written down of it, such as its rows' places, must be Unicode."""
    file = tmp_path / "a\udcff.jsonl"
    file.write_text(json.dumps({"text": "w1", "label": "a"}))
    train = {"a file": file, "its folder": tmp_path, "a pattern": tmp_path / "*.jsonl"}[given]
    with pytest.raises(InputError) as error:
        prepare(DataConfig(train=str(train)), "classification", tokenizer, 0, tmp_path / "out")
    assert str(error.value) == (
        f"data.train: {tmp_path}/a\\udcff.jsonl: its name is not UTF-8; give it another"
    )


def test_a_test_split_is_tokenised_by_the_same_tokenizer_only(tokenizer, tmp_path):
    (tmp_path / "a.csv").write_text(GOOD)
    with pytest.raises(
        InputError, match=r"no manifest.json: its data were not prepared to the end"
    ):
        tokenise_split(tmp_path / "out", "test", tokenizer)
    prepare(
        DataConfig(train=str(tmp_path / "a.csv")), "classification", tokenizer, 0, tmp_path / "out"
    )
    with pytest.raises(
        InputError, match=r"^data.test: .*/out has no test split, only train, validation$"
    ):
        tokenise_split(tmp_path / "out", "test", tokenizer)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_tokens(["another"])
    with pytest.raises(InputError, match="the tokenizer is not the one that"):
        tokenise_split(
            tmp_path / "out", "validation", PreTrainedTokenizerFast(tokenizer_object=backend)
        )
