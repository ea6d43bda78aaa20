"""The pages on how to add something: their code is written into a copy of the packages, and used there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the packages and their tests, with data and drawn models."""
    for package in ("cluster", "search_spaces", "sweeps", "trainables", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def follow(page: str, checkout: Path) -> None:
    """Do what the page says: write its files, and make its edits."""
    steps = FENCE.findall((ROOT / "docs" / page).read_text())
    assert steps, page
    for language, name, code in steps:
        file = checkout / name
        if language != "diff":
            assert not file.exists(), f"{page}: {name} is there already"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code)
            continue
        lines = code.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        text = file.read_text()
        assert text.count(before) == 1, f"{page}: {name} does not have, once,\n{before}"
        file.write_text(text.replace(before, after))


def python(checkout: Path, *arguments: str) -> str:
    """What it prints, of the copy's packages."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def keeps_the_contract(page: str, checkout: Path) -> None:
    """The tests that the page names pass."""
    (command,) = re.findall(r"^python -m pytest (.+)$", (ROOT / "docs" / page).read_text(), re.M)
    named = shlex.split(command)
    said = python(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", *named)
    assert re.search(r"\d+ passed", said), said


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder and a tiny language model, with a tokenizer of words."""
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("models")
    words = "[PAD] [UNK] [END] user assistant system text number what is the answer".split()
    vocabulary = {word: number for number, word in enumerate(words)}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    small = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
    }
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[END]"}
    for name, drawn in (
        ("encoder", transformers.BertModel(transformers.BertConfig(**small))),
        ("decoder", transformers.LlamaForCausalLM(transformers.LlamaConfig(**small))),
    ):
        drawn.save_pretrained(folder / name)
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(
            folder / name
        )
    return folder


def check(checkout: Path, file: str, model: Path) -> str:
    """The plan of a page's sweep over a drawn model, which is trained for two steps."""
    return python(checkout, "-m", "sweeps", "check", file, f"model.name={model}")


@pytest.mark.long
@pytest.mark.slow
def test_a_method(checkout, models) -> None:
    follow("adding-a-method.md", checkout)
    rows = "".join(f"text number {n},{'ab'[n % 2]}\n" for n in range(40))
    (checkout / "rows.csv").write_text("text,label\n" + rows)
    assert "attention" in check(checkout, "attention.yaml", models / "encoder")
    keeps_the_contract("adding-a-method.md", checkout)


ALL_TOKENS_ARE_TARGETS = """
import sys
from pathlib import Path
import transformers
from trainables.data.arrow import Split
from trainables.data.config import DataConfig
from trainables.data.prepare import prepare
from trainables.tasks import TASKS

tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
data = DataConfig(train="conversations.jsonl", validation=0.2)
for task in ("instruction", "instruction_modelling"):
    prepare(data, task, tokenizer, 0, Path(task), 128)
rows = Split(Path("instruction_modelling/train.arrow")).rows(range(8))
assert all((row["labels"] == row["input_ids"]).all() for row in rows)
fewer = Split(Path("instruction/train.arrow")).rows(range(8))
assert TASKS["instruction"].target_count(fewer) < TASKS["instruction_modelling"].target_count(rows)
"""


COUNTS = """
name: counts
task: counts
data: {train: counts.csv, validation: 0.2}
search:
  trials: 2
  space: {method: lora, learning_rate: {log_uniform: [1e-4, 1e-3]}, rank: 4, batch_size: 8, epochs: 1}
"""


def sources(checkout: Path) -> dict[str, str]:
    """Of all packages, by file."""
    files = (file for file in checkout.rglob("*.py") if "__pycache__" not in file.parts)
    return {str(file.relative_to(checkout)): file.read_text() for file in files}


@pytest.mark.long
@pytest.mark.slow
def test_a_task(checkout, models) -> None:
    before = sources(checkout)
    follow("adding-a-task.md", checkout)
    now = sources(checkout)
    assert {name for name in now if now[name] != before.get(name)} == {
        "trainables/tasks/__init__.py",
        *(
            f"trainables/tasks/{task}/{file}.py"
            for task in ("instruction_modelling", "counts")
            for file in ("__init__", "format", "task")
        ),
    }
    rows = "".join(f"text number {n},{n % 5}\n" for n in range(40))
    (checkout / "counts.csv").write_text("text,label\n" + rows)
    (checkout / "counts.yaml").write_text(COUNTS)
    assert "labels: mean " in check(checkout, "counts.yaml", models / "encoder")
    (checkout / "counts.csv").write_text("text,label\n" + rows.replace(",4", ",-4", 1))
    with pytest.raises(AssertionError, match="'label' must be 0 or more, got -4"):
        check(checkout, "counts.yaml", models / "encoder")
    row = '{{"prompt": "what is the number {}", "completion": "the answer {}"}}\n'
    text = "".join(row.format(n, n) for n in range(40))
    (checkout / "conversations.jsonl").write_text(text)
    check(checkout, "conversations.yaml", models / "decoder")
    python(checkout, "-c", ALL_TOKENS_ARE_TARGETS, str(models / "decoder"))
    keeps_the_contract("adding-a-task.md", checkout)


@pytest.mark.slow
def test_a_format(checkout, models) -> None:
    follow("adding-a-format.md", checkout)
    lines = "".join(f"__label__{'ab'[n % 2]} text number {n}\n" for n in range(40))
    (checkout / "rows.ft").write_text(lines)
    assert "lora" in check(checkout, "fasttext.yaml", models / "encoder")


FAKE_SWEEP = """
from pathlib import Path
from sweeps.config.loading import load
from sweeps.tracking.protocol import BaseSource, SweepEnd, open_tracker
from trainables.evaluation.record import Evaluation

config = load(Path("tracked.yaml")).tracking
tracker = open_tracker(config, sweep="s", folder=Path("tracking"), log=print, about={})
evaluation = Evaluation(step=3, samples_seen=24, epoch=1.0, val_loss=0.5, probe_loss=0.4)
tracker.trial_started("t0001", {"method": "lora"})
tracker.evaluation("t0001", evaluation)
tracker.trial_finished(
    "t0001", status="complete", verdict="healthy", verdict_reason="", best=evaluation
)
base = BaseSource(name="org/encoder")
end = SweepEnd(trial="t0001", reason="lowest", checkpoint="winner", paragraph="", base=base)
tracker.sweep_finished(end)
tracker.close()
"""


def test_a_tracker(checkout) -> None:
    follow("adding-a-tracker.md", checkout)
    python(checkout, "-c", FAKE_SWEEP)
    files = {file.name: file.read_text() for file in (checkout / "tracking/csv").iterdir()}
    assert files["evaluations.csv"].splitlines()[1] == "t0001,3,24,1.0,,0.4,0.5"
    assert files["trials.csv"].splitlines()[1] == "t0001,complete,healthy,0.5"
    assert files["winners.csv"].splitlines()[1] == "t0001,winner,lowest"
