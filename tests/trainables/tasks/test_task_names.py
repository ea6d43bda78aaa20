"""Only a task knows its name: what others do for it follows from what it says of itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from trainables.data.findings import SEVERITIES
from trainables.evaluation.bench import WORDS
from trainables.models.base import PEFT_TASKS
from trainables.tasks import TASKS

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("sweeps", "trainables", "search_spaces", "cluster")


def asked(source: str) -> list[str]:
    """Comparisons with, choices by and lookups of a task's name in Python source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(left=left, comparators=others):
                parts = [left, *others]
            case ast.match_case(pattern=pattern):
                parts = [pattern]
            case ast.Dict(keys=keys):
                parts = keys
            case ast.Subscript(slice=key):
                parts = [key]
            case _:
                continue
        inside = [each for part in parts if part is not None for each in ast.walk(part)]
        if any(isinstance(each, ast.Constant) and each.value in set(TASKS) for each in inside):
            line = getattr(node, "lineno", 0) or parts[0].lineno
            found.append(f"{line}: {ast.unparse(parts[0])}")
    return found


def test_nobody_but_a_task_asks_which_task_it_is():
    own = ROOT / "trainables" / "tasks"
    files = [file for top in PACKAGES for file in (ROOT / top).rglob("*.py")]
    others = {file: file.read_text() for file in files if not file.is_relative_to(own)}
    assert len(others) > 100
    assert {str(file): found for file, source in others.items() if (found := asked(source))} == {}


@pytest.mark.parametrize(
    "source",
    [
        'if manifest.task == "causal_lm": pass',
        'x = 1 if "classification" != config.task else 2',
        'wanted = task in ("instruction", "causal_lm")',
        'match task:\n    case "instruction" | "other": pass',
        'ways = {"classification": 1}[task]',
        'TASKS["causal_lm"]',
    ],
)
def test_a_question_for_a_task_is_found(source):
    assert len(asked(source)) == 1


def test_a_name_that_is_no_question_is_not_found():
    assert asked('def f(task: str = "classification"): return TASKS[task].has_classes') == []


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_baselines_of_a_task_are_known_and_can_be_measured(task):
    """A language model answers with tokens, which embeddings do not tell, and zero-shot is the untuned model."""
    known = {"few_shot", "retrieved"} if task.is_language_model else set(WORDS)
    assert set(task.baselines) <= known
    assert task.targets_are_answers or not task.baselines


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_a_task_says_of_itself_holds_together(task):
    assert task.lower_is_better <= set(task.metric_names) and task.loss.words
    named = ("a", "b")
    assert bool(task.outputs(named)) != task.is_language_model
    assert task.is_language_model or not task.continues_text
    assert not task.has_classes or task.outputs(named) == named
    assert all(words.severity in SEVERITIES for words in task.notices().values())
    assert task.auto_class in PEFT_TASKS
    assert task.loss_metrics(0.5).keys() <= set(task.metric_names)
    compile("\n".join(task.usage("truncation=True", "a text")), "card", "exec")


def test_tasks_are_there_without_torch():
    code = (
        "import sys, trainables.tasks, sweeps.reporting.leaderboard; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
