"""Preference pairs: both sequences in one row, what of them is learnt, and what is told."""

import json

import numpy as np
import pytest

from tests.trainables.tasks.test_chat_format import CHATML, bytes_tokenizer
from trainables.data.config import DataConfig
from trainables.data.prepare import open_split, prepare
from trainables.data.records import IGNORED
from trainables.data.showing import shown_rows
from trainables.errors import InputError
from trainables.tasks import TASKS

TASK = TASKS["preference"]


def say(role, content):
    return {"role": role, "content": content}


def pair(number, chosen="Ho", rejected="Hum", **more):
    prompt = [say("user", f"Hi {number}"), say("assistant", "Yes?"), say("user", "Well")]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def prepared(folder, rows, max_length=200, **settings):
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(train=str(file), **{"validation": 0.3, "max_length": max_length, **settings})
    manifest = prepare(data, "preference", bytes_tokenizer(CHATML), 0, folder / "data")
    return manifest, data


def told(manifest):
    return [finding.line for finding in manifest.findings]


def test_a_row_holds_both_sequences_and_learns_the_answers_alone(tmp_path):
    rows = [pair(number, chosen="H" + "o" * number) for number in range(10)]
    manifest, _ = prepared(tmp_path, rows)
    tokenizer, split = bytes_tokenizer(CHATML), open_split(tmp_path / "data", "train")
    assert manifest.train.rows == manifest.train.targets == len(split) == 7
    assert manifest.train.tokens == int(split.lengths.sum())
    assert manifest.train.longest == split.sequence_lengths.max()
    for chosen, rejected in np.arange(14).reshape(-1, 2):
        for number, begin in ((chosen, "Ho"), (rejected, "Hum")):
            (row,) = split.sequences.rows([number])
            text = tokenizer.decode(row["input_ids"])
            assert text.startswith("<|im_start|>user\nHi ") and text.count("Yes?") == 1
            learnt = tokenizer.decode(row["labels"][row["labels"] != IGNORED])
            assert learnt.startswith(begin[:1]) and learnt.endswith("<|im_end|>")
            assert text.rstrip().endswith(learnt) and "Yes?" not in learnt
    # earlier answers of the prompt are context by our own doing, of which nothing is told
    assert not any("weight 0" in line for line in told(manifest))


def test_what_is_cut_counts_pairs(tmp_path):
    rows = [pair(number, chosen="o" * 300) for number in range(4)]
    rows += [pair(number, chosen="x" * 300, rejected="x" * 299 + "!") for number in range(4, 8)]
    rows += [pair(number) for number in range(8, 12)]
    manifest, _ = prepared(tmp_path, rows)
    splits = manifest.splits.values()
    assert sum(split.truncated for split in splits) == 8
    assert sum(split.rows for split in splits) == 12
    same = [finding for finding in manifest.findings if finding.kind == "same_answers"]
    assert sum(finding.rows for finding in same) == 4 and same[0].severity == "warning"
    assert "two answers that are the same tokens" in same[0].message
    assert all(split.longest <= 200 for split in splits)


def test_a_pair_of_which_one_answer_is_beyond_max_length_is_dropped(tmp_path):
    rows = [pair(number) for number in range(6)]
    rows += [pair(6, chosen=[say("user", "x" * 500), say("assistant", "a")])]
    manifest, _ = prepared(tmp_path, rows)
    assert sum(split.dropped for split in manifest.splits.values()) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (pair(9, rejected="Ho"), "line 10: 'chosen' and 'rejected' are the same"),
        (pair(9, rejected=""), "line 10: 'rejected' is empty"),
        (pair(9, weight=0.5), "line 10: a pair and its messages have no weights but 1, got 0.5"),
    ],
)
def test_a_row_that_is_no_pair_is_refused_with_its_place(tmp_path, row, message):
    rows = [*map(pair, range(9)), row]
    with pytest.raises(InputError) as error:
        prepared(tmp_path, rows)
    assert message in str(error.value)
    manifest, _ = prepared(tmp_path, rows, bad_rows="drop")
    assert sum(split.rows for split in manifest.splits.values()) == 9


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("a.txt", {}, "a .txt file has no preference pairs"),
        ("a.jsonl", {"chat_template": "none"}, "data.chat_template: preference renders its pairs"),
    ],
)
def test_sources_that_hold_no_pairs(tmp_path, name, settings, message):
    (tmp_path / name).write_text(json.dumps(pair(1)))
    data = DataConfig(train=str(tmp_path / name), validation=0.5, **settings)
    with pytest.raises(InputError, match=message):
        prepare(data, "preference", bytes_tokenizer(CHATML), 0, tmp_path / "data")


def test_both_sequences_are_shown_with_what_is_learnt(tmp_path):
    manifest, data = prepared(tmp_path, [*map(pair, range(6))])
    (row,) = shown_rows(data, "preference", bytes_tokenizer(CHATML), manifest.encoding, 1)
    headed = [segment.heading for segment in row.segments if segment.heading]
    learnt = [segment.text for segment in row.segments if segment.learnt]
    assert headed == ["chosen", "rejected"] and learnt == ["Ho<|im_end|>", "Hum<|im_end|>"]
    assert "".join(segment.text for segment in row.segments).count("Yes?") == 2


def test_metrics_of_pairs():
    """Margins 3, 0 but for rounding, and -1."""
    found = TASK.metrics(np.array([[1.0, -2.0], [-4.0, -4.0005], [-6.0, -5.0]]))
    assert found == {
        "reward_accuracy": 0.5,
        "reward_margin": pytest.approx(0.1 * (3 + 0.0005 - 1) / 3),
        "chosen_change": -3.0,
    }
    assert found.keys() == set(TASK.metric_names)
