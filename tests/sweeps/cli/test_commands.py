"""What the outside world does to a command ends it in one line, never in a traceback."""

import importlib.util
import sys
from pathlib import Path

import fsspec
import pytest

from sweeps.__main__ import main
from sweeps.ledger.folder import Ledger

SWEEP = """\
name: quick
model: {name: MODEL}
task: classification
data: {train: rows.csv, validation: 0.2}
storage: STORAGE
search: {space: {method: lora, learning_rate: {log_uniform: [1e-5, 1e-2]}, batch_size: 8, epochs: 2}}
"""
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def sweep(lab_model: Path, tmp_path: Path, monkeypatch) -> Path:
    """A sweep's folder in which nothing has been trained yet, and quick.yaml beside it."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"text number {number},{'ab'[number % 2]}\n" for number in range(20))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    (tmp_path / "quick.yaml").write_text(
        SWEEP.replace("MODEL", str(lab_model)).replace("STORAGE", str(tmp_path / "runs"))
    )
    ledger = Ledger(str(tmp_path / "runs/quick-20260101-120000"))
    ledger.store.write_bytes("sweep.yaml", (tmp_path / "quick.yaml").read_bytes())
    ledger.set_status("finished", 1.0)
    return ledger.store.local


@pytest.fixture(scope="session")
def lab_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with a tokenizer."""
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("model")
    words = tokenizers.models.WordLevel(
        {"[PAD]": 0, "[UNK]": 1, "text": 2, "number": 3}, unk_token="[UNK]"
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def ended(monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    """Exit code and what stands on standard error."""
    monkeypatch.setattr(sys, "argv", ["sweeps", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    code = caught.value.code
    return (code if isinstance(code, int) else 1), capsys.readouterr().err


def test_a_report_that_weights_and_biases_does_not_take(sweep, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", NOBODY)
    monkeypatch.setenv("WANDB_API_KEY", "local-" + "a" * 40)
    code, said = ended(monkeypatch, capsys, "report", sweep, "--wandb")
    assert code == 1 and len(said.strip().splitlines()) == 1, said
    assert said.startswith(
        "W&B report: not saved to project 'finetune-sweeps': http://127.0.0.1:9 does not answer"
    )
    assert (sweep / "report.html").is_file(), "the page was written all the same"


COMMANDS = {
    "run": ["run", "quick.yaml", "storage=quick.yaml/runs"],
    "check": ["check", "quick.yaml", "model.name=nobody/nothing"],
    "resume": ["resume", "FOLDER"],
    "best": ["best", "FOLDER"],
    "verify": ["verify", "FOLDER"],
    "report": ["report", "FOLDER"],
    "diagnose": ["diagnose", "runs"],
    "submit": ["submit", "quick.yaml", "--address", NOBODY],
}


def broken(*_, **__):
    raise RuntimeError("the credentials have expired\nand more lines")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_line_for_what_it_cannot_reach(
    sweep, monkeypatch, capsys, command
) -> None:
    """A path through a file, a hub, an object store whose library raises its own errors, a port where nobody listens."""
    url = "memory://a-store/quick"
    fsspec.filesystem("memory").pipe_file(f"{url}/sweep.yaml", (sweep / "sweep.yaml").read_bytes())
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", broken)
    code, said = ended(
        monkeypatch, capsys, *(url if each == "FOLDER" else each for each in COMMANDS[command])
    )
    assert code in (1, 2) and len(said.strip().splitlines()) == 1 and "Traceback" not in said, said
    if "FOLDER" in COMMANDS[command]:
        assert said.strip() == f"{url}: RuntimeError: the credentials have expired"


@pytest.mark.parametrize("command", ["resume", "best", "verify", "report"])
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nosuch://a/b", "Protocol not known: nosuch"),
        ("s3://nobody/nothing", "s3fs"),
        ("runs", "not a sweep's folder"),
    ],
)
def test_a_folder_that_cannot_be_opened(sweep, monkeypatch, capsys, command, url, words) -> None:
    if url.startswith("s3") and importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    code, said = ended(monkeypatch, capsys, command, url)
    assert code == 2 and words in said and len(said.strip().splitlines()) == 1, said


@pytest.mark.parametrize("file", ["sweep.yaml", "status.json"])
def test_a_damaged_file_is_named(sweep, monkeypatch, capsys, file) -> None:
    (sweep / file).write_text("{a: [")
    code, said = ended(monkeypatch, capsys, "report", sweep)
    assert (
        code == 2 and f"{sweep}/{file}: damaged" in said and len(said.strip().splitlines()) == 1
    ), said


def test_a_page_that_cannot_be_written(sweep, monkeypatch, capsys) -> None:
    (sweep / "report.html" / "in the way").mkdir(parents=True)
    code, said = ended(monkeypatch, capsys, "report", sweep)
    assert code == 1 and "Is a directory" in said and len(said.strip().splitlines()) == 1, said
