"""Whole sweeps whose winner is chosen by what models write."""

import json
from pathlib import Path

import pytest

from sweeps.config.schema import SearchConfig
from sweeps.search.study import STUDY, open_study
from sweeps.use.trained import open_trained
from trainables.engine.decoding import generate
from trainables.evaluation.generation import answers_of, draw_prompts, stop_tokens
from trainables.metrics.config import GenerationConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(7200)]

SWEEP = """
name: sums
task: instruction
storage: {tmp}/runs
model: {{name: {model}}}
data: {{train: {tmp}/sums.jsonl, validation: {tmp}/held.jsonl, test: {tmp}/test.jsonl, max_length: 96}}
train: {{probe_rows: 32}}
cluster: {{slots: 1}}
search:
  trials: 2
  space:
    method: lora
    rank: 8
    learning_rate: {{log_uniform: [2e-3, 2e-2]}}
    batch_size: 8
    epochs: 1
metrics: [{metrics}]
generation: {{rows: 12, max_new_tokens: 12, when: {when}}}
selection: {{general_text: {general}, metric: {chosen}, baselines: true}}
tracking: {{wandb: off}}
"""
COUNTED = '''
def short(answers):
    """Answers of few letters are better, whatever they say."""
    return [len(each.text) for each in answers]
'''


@pytest.fixture
def write(shared_data: Path, general_text: Path, tmp_path: Path):
    for name, rows in (("sums", range(96)), ("held", range(96, 126)), ("test", range(126, 146))):
        lines = [
            json.dumps(
                {"prompt": f"What is {row} and {row % 7}?", "completion": f"It is {row + row % 7}."}
            )
            for row in rows
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "counted.py").write_text(COUNTED)

    def of(metrics: str, chosen: str, when: str = "finalists") -> Path:
        file = tmp_path / "sums.yaml"
        file.write_text(
            SWEEP.format(
                tmp=tmp_path,
                model=shared_data / "models" / "stories260K",
                general=general_text,
                metrics=metrics,
                chosen=chosen,
                when=when,
            )
        )
        return file

    return of


def read_answers(folder: str) -> dict:
    return json.loads((Path(folder) / "answers.json").read_text())


@pytest.mark.long
def test_the_winner_is_chosen_by_what_candidates_write(sweeps, write, tmp_path: Path) -> None:
    file = write("exact_match, {counted:short: {lower_is_better: true}}", "short")
    done = sweeps("run", file, PYTHONPATH=str(tmp_path))
    assert done.code == 0, done.out + done.err
    assert "answers took" in done.out
    board = json.loads(sweeps("best", done.last_line, "--json", PYTHONPATH=str(tmp_path)).out)
    assert (board["metric"], board["metric_mode"]) == ("short", "min")
    winner, trials = board["winner"], board["trials"]
    assert {*winner["metrics"]} >= {"exact_match", "short"}
    shorts = {t["id"]: t["evaluations"][-1]["metrics"]["short"] for t in trials}
    assert winner["metrics"]["short"] == min(shorts.values()) or winner["tied"]
    assert "short" in winner["reason"]
    for way in ("untuned", "few_shot", "retrieved"):  # all of them wrote answers, on both splits
        assert board["baselines"][way]["metrics"]["short"] > 0
        assert board["test"]["scores"][way]["metrics"]["short"] > 0
    assert board["test"]["scores"]["winner"]["metrics"].keys() >= {"exact_match", "short"}

    # what is written down is what the checkpoint writes by itself, row by row
    written = read_answers(
        winner["folder"]
        if Path(winner["folder"]).is_absolute()
        else f"{done.last_line}/{winner['folder']}"
    )
    with open_trained(done.last_line) as trained:
        model, split = trained.load(), trained.split()
        settings = GenerationConfig(rows=12, max_new_tokens=12)
        prompts = draw_prompts(trained.task, split, 12, trained.tokenizer, 0)
        stop = stop_tokens(
            trained.tokenizer,
            task=trained.task,
            split=split,
            generation_config=model.generation_config,
        )
        alone = [
            generate(model, [each], settings, stop=stop, pad_token_id=trained.spec.pad_token_id)[0]
            for each in prompts
        ]
        texts = [each.text for each in answers_of(prompts, alone, trained.tokenizer, stop)]
    assert written["texts"] == texts
    assert written["scores"]["short"] == [len(text) for text in texts]

    # and what `predict` writes beside these rows
    out = tmp_path / "answered.jsonl"
    call = ["predict", done.last_line, tmp_path / "held.jsonl", "--out", out]
    answered = sweeps(*call, "--max-new-tokens", "12", "--workers", "1")
    assert answered.code == 0, answered.out + answered.err
    predicted = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
    assert [predicted[row] for row in written["rows"]] == texts

    shown = sweeps("samples", done.last_line, "--rows", "2")
    assert shown.code == 0 and shown.out.count("its own answer") == 2 and texts[0] in shown.out
    page = (Path(done.last_line) / "report.html").read_text()
    assert 'id="samples"' in page

    # another metric later: rows are answered again, nothing is trained
    more = sweeps("resume", done.last_line, "metrics=[token_f1]", "selection.metric=token_f1")
    assert more.code == 0, more.out + more.err
    board = json.loads(sweeps("best", done.last_line, "--json").out)
    assert board["metric"] == "token_f1" and "token_f1" in board["winner"]["metrics"]
    assert len(board["trials"]) == 2


def test_metrics_that_cannot_be_measured_are_refused_before_anything_starts(sweeps, write) -> None:
    for changes, words in (
        (("exact_macth", "exact_macth"), "metrics[0]: must be one of"),
        (("exact_match", "f1"), "selection.metric: must be val_loss or a metric of the sweep"),
        (("exact_match", "exact_match", "winner"), "generation.when=winner"),
    ):
        done = sweeps("check", write(*changes))
        assert done.code == 2 and words in done.err and done.err.count("\n") == 1, done.err
    done = sweeps("check", "sweeps/quickstart.yaml", "metrics=[exact_match]")
    assert done.code == 2 and "metrics: are of answers that a model writes" in done.err


@pytest.mark.long
def test_every_evaluation_answers_and_the_search_is_told(sweeps, write, tmp_path: Path) -> None:
    file = write("token_f1", "token_f1", "evaluations")
    done = sweeps("run", file, "search.space.epochs=2", "selection.baselines=false")
    assert done.code == 0, done.out + done.err
    board = json.loads(sweeps("best", done.last_line, "--json").out)
    points = [e for t in board["trials"] for e in t["evaluations"]]
    assert len(points) >= 3 and all(0 <= e["metrics"]["token_f1"] <= 1 for e in points)
    assert all(read_answers(f"{done.last_line}/{e['folder']}") for e in points)
    study = open_study(Path(done.last_line) / STUDY, "", SearchConfig(), 0, read_only=True)
    # with the other sign, as Optuna minimises
    told = {round(-trial.value, 9) for trial in study.trials if trial.value is not None}
    best = {
        round(max(e["metrics"]["token_f1"] for e in t["evaluations"]), 9) for t in board["trials"]
    }
    assert told and told <= best
    refused = sweeps("resume", done.last_line, "selection.metric=null")
    assert refused.code == 2 and "selection.metric: cannot change" in refused.err
