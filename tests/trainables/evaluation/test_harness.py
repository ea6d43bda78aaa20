"""Tasks of one's own, by the real lm-eval with a tiny real language model."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainables.errors import InputError
from trainables.evaluation.harness import Asked, TaskScore, difference, open_tasks, run_tasks

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 2}}
"""
QUESTIONS = [
    ("Once upon a", [" time", " xylophone"]),
    ("The little girl was very", [" happy", " quantum"]),
    ("Tom and his mom went to the", [" park", " parliament"]),
    ("The dog likes to", [" play", " legislate"]),
    ("They lived happily ever", [" after", " integer"]),
    ("One day, a big", [" bear", " quorum"]),
] * 2


def write_task(folder: Path, name: str = "stories") -> Path:
    """A task whose right answer is always the first; answers of children's stories are likely ones."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"question": question, "choices": choices, "answer": 0} for question, choices in QUESTIONS
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = TASK.format(name=name, rows=folder / f"{name}.jsonl")
    (folder / f"{name}.yaml").write_text(task)
    return folder


@pytest.mark.slow
def test_what_is_not_there_is_said_in_one_line(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    write_task(tmp_path / "own")
    asked = Asked(tasks=("storis",), include=tmp_path / "own")
    with pytest.raises(InputError, match=r"'storis' is none of the \d+ tasks .* Did you mean"):
        open_tasks(asked)
    with pytest.raises(InputError, match=r"--include: .*/nowhere: no such file or folder"):
        open_tasks(Asked(tasks=("stories",), include=tmp_path / "nowhere"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs EleutherAI's lm-eval, which is not installed"):
        open_tasks(asked)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_language_model_is_scored_and_its_samples_are_paired(tmp_path, shared_data):
    pytest.importorskip("lm_eval")
    import transformers

    folder = shared_data / "models" / "stories260K"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked = Asked(
        tasks=("stories",), include=write_task(tmp_path / "own") / "stories.yaml", limit=6
    )
    scores = {each.metric: each for each in run_tasks(model, tokenizer, open_tasks(asked), asked)}
    assert set(scores) == {"acc", "acc_norm"}
    accuracy = scores["acc"]
    assert accuracy.samples == 6 and accuracy.version == "2" and accuracy.higher_is_better
    assert accuracy.each is not None and accuracy.value == accuracy.each.mean() > 0.5
    assert difference(accuracy, accuracy) == (0.0, 0.0, True)


def score(value: float, error: float | None, each: list[float] | None) -> TaskScore:
    return TaskScore(
        task="t",
        filter="none",
        metric="acc",
        value=value,
        standard_error=error,
        each=None if each is None else np.array(each),
        samples=4,
        shots=0,
        version="1",
        higher_is_better=True,
    )


def test_a_difference_is_paired_where_samples_are_known():
    after, before = score(0.75, 0.2, [1, 1, 1, 0]), score(0.5, 0.3, [1, 1, 0, 0])
    gain, error, paired = difference(after, before)
    assert (gain, paired) == (0.25, True) and error == pytest.approx(0.25)
    gain, error, paired = difference(score(12.0, 0.3, None), score(10.0, 0.4, None))
    assert (gain, paired) == (2.0, False) and error == pytest.approx(0.5)
    assert difference(score(1.0, None, None), before)[1:] == (None, False)
