"""From rows to a served model: the script of the documents, as it stands there."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SWEEP = """
name: path
task: instruction
storage: {tmp}/runs
model: {{name: {model}}}
data: {{train: {tmp}/train.jsonl, validation: 0.25, test: {tmp}/test.jsonl, max_length: 96}}
train: {{probe_rows: 32}}
cluster: {{slots: 1}}
search:
  trials: 2
  space: {{method: lora, rank: 8, learning_rate: {{log_uniform: [2e-3, 2e-2]}}, batch_size: 8, epochs: 1}}
metrics: [token_f1]
generation: {{rows: 8, max_new_tokens: 12}}
selection: {{metric: token_f1, baselines: false, general_text: {tmp}/general.txt}}
tracking: {{wandb: off}}
"""


def rows(numbers) -> str:
    return "\n".join(
        json.dumps({"prompt": f"What is {n} and {n % 7}?", "completion": f"It is {n + n % 7}."})
        for n in numbers
    )


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_commands_lead_from_rows_to_a_served_model(shared_data: Path, tmp_path: Path) -> None:
    for name, numbers in (
        ("train", range(160)),
        ("test", range(160, 220)),
        ("new", range(220, 300)),
    ):
        (tmp_path / f"{name}.jsonl").write_text(rows(numbers))
    (tmp_path / "general.txt").write_text("The manual says what each word of it does. " * 80)
    (tmp_path / "sweep.yaml").write_text(
        SWEEP.format(tmp=tmp_path, model=shared_data / "models" / "stories260K")
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "out"
    files = (tmp_path / "sweep.yaml", tmp_path / "new.jsonl", tmp_path / "new.jsonl", out)
    done = subprocess.run(
        ["sh", "docs/whole-path.sh", *map(str, files)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PORT": str(port),
            "RAY_AUTH_MODE": "disabled",
        },
        capture_output=True,
        text=True,
    )
    log = out / "serve.log"
    assert done.returncode == 0, (
        done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    )
    with socket.socket() as gone:  # the script leaves nothing behind
        assert gone.connect_ex(("127.0.0.1", port)) != 0
    assert "'role': 'assistant'" in done.stdout and "ship: " in done.stdout
    assert len((out / "answers.jsonl").read_text().splitlines()) == 80
    assert (out / "model" / "config.json").is_file() and (out / "gate.md").is_file()
