"""What the outside world does to a command ends it in one line, never in a traceback."""

import importlib.util
import json
import sys
from pathlib import Path

import fsspec
import pytest

from sweeps.cli.app import main
from sweeps.ledger.folder import Ledger
from sweeps.ledger.opening import open_sweep

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
    "sync": ["sync", "FOLDER"],
    "pick": ["pick", "FOLDER", "--to", "picked"],
    "diagnose": ["diagnose", "runs"],
    "submit": ["submit", "quick.yaml", "--address", NOBODY],
    "submit a folder": ["submit", "s3://bucket/quick-20260101-120000", "--address", NOBODY],
    "submit with a value": ["submit", "quick.yaml", "--address", NOBODY, "--env", "KEY=value"],
    "status": ["status", "--address", NOBODY],
    "logs": ["logs", "quick-1", "--address", NOBODY, "--follow"],
    "cancel": ["cancel", "quick-1", "--address", NOBODY],
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["xyzzy"], "python -m sweeps: No such command 'xyzzy'; usage: python -m sweeps "),
        (["run"], "python -m sweeps run: Missing argument 'file'; usage: python -m sweeps run "),
        (
            ["best", "x", "--jsn"],
            "python -m sweeps best: No such option: --jsn (Possible options: ",
        ),
    ],
)
def test_a_wrong_call_ends_in_one_line(monkeypatch, capsys, arguments, words) -> None:
    monkeypatch.setattr("typer.core._click.utils._detect_program_name", lambda: "python -m sweeps")
    code, said = ended(monkeypatch, capsys, *arguments)
    assert code == 2 and said.startswith(words) and len(said.strip().splitlines()) == 1, said


FORMER = """\
name: quick
storage: runs
seed: 0
rehearse: true
task: classification
model: {name: tiny, revision: null, dtype: auto, trust_remote_code: false}
data: {train: rows.csv, validation: 0.2, test: null}
search:
  space: {method: lora, learning_rate: {log_uniform: [1e-5, 1e-2]}, batch_size: 8, epochs: 2}
  trials: 3
train: {evaluate_every: epoch, max_tokens: null, precision: auto, rank: null}
cluster: {address: null, workers_per_slot: 1, slots: auto, pack: 2}
"""


def test_a_folder_of_the_former_layout_is_read_in_the_words_of_today(
    tmp_path, monkeypatch, capsys
) -> None:
    """`cluster.pack` is now `cluster.trials_per_slot`: of a sweep that has run it is read, in an
    override or a new sweep file it is refused."""
    folder = tmp_path / "runs/quick-20260101-120000"
    ledger = Ledger(str(folder))
    ledger.store.write_bytes("sweep.yaml", FORMER.encode())
    ledger.set_status("finished", 1.0)
    assert open_sweep(str(folder))[1].cluster.trials_per_slot == 2
    _, extended = open_sweep(str(folder), ["cluster.trials_per_slot=4"])
    assert extended.cluster.trials_per_slot == 4

    monkeypatch.setattr(sys, "argv", ["sweeps", "best", str(folder), "--json"])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    assert caught.value.code == 1 and not err  # it has no trials, so there is no winner
    assert json.loads(out)["winner"] is None

    renamed = "cluster.pack: is now called cluster.trials_per_slot"
    code, said = ended(monkeypatch, capsys, "resume", folder, "cluster.pack=4")
    assert (code, said) == (2, f"{folder}/sweep.yaml: {renamed}\n")
    (tmp_path / "former.yaml").write_text(FORMER)
    code, said = ended(monkeypatch, capsys, "check", tmp_path / "former.yaml")
    assert (code, said) == (2, f"{tmp_path}/former.yaml: {renamed}\n")


def test_a_page_that_cannot_be_written(sweep, monkeypatch, capsys) -> None:
    (sweep / "report.html" / "in the way").mkdir(parents=True)
    code, said = ended(monkeypatch, capsys, "report", sweep)
    assert code == 1 and "Is a directory" in said and len(said.strip().splitlines()) == 1, said
