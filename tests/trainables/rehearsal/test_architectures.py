"""The table of docs/architectures.md is what a rehearsal gives: lines of every kind; all of them take minutes."""

import pytest

from tests.trainables.architectures import DOCUMENT, FAMILIES, found, line

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]
ALL = [(name, task) for name, family in FAMILIES.items() for task in family.tasks]
KINDS = (
    "bert",
    "deberta-v2",
    "modernbert",
    "xlnet",
    "t5",
    "mbart",
    "gpt2",
    "gpt_neox",
    "mixtral",
    "deepseek_v3",
    "mamba",
)
ROWS = [(name, FAMILIES[name].tasks[-1]) for name in KINDS] + [("llama", "causal_lm")]


@pytest.mark.parametrize(("name", "task"), ROWS, ids=[f"{name}-{task}" for name, task in ROWS])
def test_a_line_of_the_table(name, task):
    assert line(name, task, found(name, task)) in DOCUMENT.read_text(encoding="utf-8").splitlines()


def test_nothing_else_stands_in_the_table():
    lines = [
        each for each in DOCUMENT.read_text(encoding="utf-8").splitlines() if each.startswith("| ")
    ]
    assert len(lines) == 1 + len(ALL)
