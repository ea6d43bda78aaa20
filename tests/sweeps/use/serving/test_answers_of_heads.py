"""What trained models with a head answer: what their evaluation recorded."""

import json

import numpy as np
import pytest
from finished import classes, texts

from sweeps.use.answers import answerer
from sweeps.use.generation import Sampling
from sweeps.use.rows import open_file, read_rows
from sweeps.use.trained import Trained, open_trained
from trainables.data.rows import BadRow
from trainables.errors import InputError

ROWS = {
    "classification": classes(),
    "regression": [{"text": " ".join(words), "label": len(words[0]) / 2 - 2} for words in texts()],
    "multi_label": [
        {
            "text": " ".join(words),
            "labels": ["long", "tall"] if len(words[0]) > 4 else [],
        }
        for words in texts()
    ],
    "token_classification": [
        {"tokens": words, "tags": ["B-LONG" if len(w) > 5 else "O" for w in words]}
        for words in texts()
    ],
}


def raw_validation(trained: Trained) -> list[dict[str, object]]:
    return [
        json.loads(line) for line in (trained.data / "validation.jsonl").read_text().splitlines()
    ]


def answers_of(trained: Trained, rows: list[dict[str, object]], tmp_path) -> list[dict]:
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (source,) = open_file(str(file))
    asked = [each.record for each in read_rows(source, trained.task, trained.config.data)]
    assert not [each for each in asked if isinstance(each, BadRow)]
    return list(answerer(trained, Sampling())(list(enumerate(asked))))


def without_answer(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name in ("text", "tokens")}


@pytest.mark.parametrize("task", ROWS)
def test_answers_are_those_that_the_evaluation_recorded(make_heads, tmp_path, task):
    with open_trained(str(make_heads(task, ROWS[task]))) as trained:
        rows = raw_validation(trained)
        found = answers_of(trained, [without_answer(row) for row in rows], tmp_path)
        assert found == answers_of(trained, rows, tmp_path), (
            "an answer in the file is not looked at"
        )
        folder = trained.evaluation.folder
        outcomes = trained.ledger.outcomes(folder)
        labels = trained.manifest.labels
        said = [answer["prediction"] for answer in found]
        if task == "classification":
            assert [labels.index(each) for each in said] == outcomes[:, 0].tolist()
            assert len(set(said)) == 2
            for answer in found:
                shares = {k: v for k, v in answer.items() if k.startswith("probability_")}
                assert sum(shares.values()) == pytest.approx(1)
                assert max(shares, key=shares.get) == f"probability_{answer['prediction']}"
        elif task == "regression":
            assert np.allclose(said, outcomes[:, 0], atol=1e-5)
        elif task == "multi_label":
            marked = [[float(label in each) for label in labels] for each in said]
            assert np.array_equal(marked, outcomes[:, : len(labels)])
        else:
            right = [
                sum(a == b for a, b in zip(each, row["tags"], strict=True))
                for each, row in zip(said, rows, strict=True)
            ]
            assert right == outcomes[:, 0].tolist()
            assert all(len(a["probabilities"]) == len(a["prediction"]) for a in found)


def test_words_beyond_the_models_length_have_no_tag(make_heads, tmp_path):
    with open_trained(str(make_heads("token_classification", ROWS["token_classification"]))) as it:
        (answer,) = answers_of(it, [{"tokens": ["good"] * 50}], tmp_path)
    assert len(answer["prediction"]) == 50
    assert None not in answer["prediction"][:32] and set(answer["prediction"][32:]) == {None}


def test_a_file_of_answers_is_not_written_over(classifier, tmp_path):
    from sweeps.use.answers import check_columns

    with pytest.raises(InputError, match="has a column 'error' already|a name that answers have"):
        check_columns(["text", "error"], "rows.csv")
    with pytest.raises(InputError, match="must be a table"):
        (tmp_path / "a.txt").write_text("x")
        open_file(str(tmp_path / "a.txt"))
