"""What `check` shows of data and plan: on a terminal, as JSON, and as a page in a real browser."""

import csv
import io
import json
import shutil
import subprocess
from dataclasses import replace

import jsonschema
import pytest
from rich.console import Console

from sweeps.cli.json_output import result_schema
from sweeps.reporting.check import check_page, print_plan
from sweeps.run.plan import Plan, SplitPlan
from trainables.data.findings import Finding
from trainables.data.records import Segment
from trainables.data.showing import ShownRow
from trainables.storage.records import to_json

CHROMIUM = shutil.which("chromium")


def plan(**changes):
    return Plan(
        **{
            "sweep": "quick",
            "task": "instruction",
            "model": "some/model",
            "splits": {
                "train": SplitPlan(
                    rows=1200, tokens=40_000, targets=9000, mean_length=33.3, longest=80
                ),
                "test": SplitPlan(rows=100),
            },
            "data": ("train: 1200 rows", "test: 100 rows, sealed", "labels: a, b"),
            "findings": (
                Finding(kind="leak", severity="warning", split="test", rows=7, message="test: 7 <b>rows</b> leak",
                        examples=("a.csv row 3", "a.csv row 9"), setting="data.group: user"),
                Finding(kind="power", message="validation: few rows"),
            ),
            "plan": ("Search: 12 trials", "Slots: 2"),
            "shown": (
                ShownRow(
                    place="chat.jsonl line 1",
                    segments=(
                        Segment(text="<|user|>\nWhat is [2+2]?\n<|assistant|>\n", learnt=False),
                        Segment(text="<script>alert(4)</script>", learnt=True, weight=0.5),
                    ),
                ),
            ),
        }
        | changes
    )  # fmt: skip


def printed(made, **console):
    written = io.StringIO()
    print_plan(made, Console(file=written, width=120, **console))
    return written.getvalue()


def test_findings_are_told_with_what_mends_them():
    lines = printed(plan()).splitlines()
    assert (
        "  warning: test: 7 <b>rows</b> leak (such as a.csv row 3; a.csv row 9) [data.group: user]"
        in lines
    )
    assert "  note: validation: few rows" in lines
    assert lines[-1] == "No problem found; 1 warning(s)."


def test_rows_are_shown_with_what_is_learnt_marked():
    text = printed(plan())
    assert "--- chat.jsonl line 1 (learnt: [[so]])" in text
    assert (
        "What is [2+2]?" in text
        and "[[<script>alert(4)</script>]]×0.5" in text
        and "×1" not in text
    )
    assert "\x1b[1;32m<script>" in printed(plan(), force_terminal=True, color_system="standard")


def test_the_json_has_all_that_is_shown():
    found = json.loads(json.dumps(to_json(plan()), allow_nan=False))
    jsonschema.validate(found, result_schema("check"))
    assert found["shown"] == [
        {
            "place": "chat.jsonl line 1",
            "segments": [
                {
                    "text": "<|user|>\nWhat is [2+2]?\n<|assistant|>\n",
                    "learnt": False,
                    "weight": 1.0,
                    "heading": "",
                },
                {
                    "text": "<script>alert(4)</script>",
                    "learnt": True,
                    "weight": 0.5,
                    "heading": "",
                },
            ],
            "note": "",
        }
    ]
    assert [each["severity"] for each in found["findings"]] == ["warning", "note"]
    assert found["findings"][0]["examples"] == ["a.csv row 3", "a.csv row 9"]
    assert found["splits"]["train"]["rows"] == 1200


def test_the_page_escapes_what_rows_hold(tmp_path):
    check_page(plan(), tmp_path / "check.html")
    text = (tmp_path / "check.html").read_text()
    assert (
        "<script" not in text
        and "&lt;script&gt;alert(4)" in text
        and "×0.5" in text
        and "&lt;b&gt;rows" in text
    )


def test_errors_stand_apart_and_each_place_has_a_line_of_its_own(tmp_path):
    error = Finding(
        kind="bad", severity="error", message="train: bad", examples=("a.csv row 1: ' x'",)
    )
    check_page(plan(findings=(error, *plan().findings)), tmp_path / "check.html")
    text = (tmp_path / "check.html").read_text()
    parts = text.split("<section ")
    (errors,) = [part for part in parts if part.startswith('class="error"')]
    (warnings,) = [part for part in parts if part.startswith('class="warning"')]
    assert (
        text.index(errors) < text.index(warnings) and "<li>a.csv row 1: &#39; x&#39;</li>" in errors
    )
    assert "<li>a.csv row 3</li><li>a.csv row 9</li>" in warnings and "data.group: user" in warnings
    assert 'href="#error">1 error<' in text and 'href="#warning">1 warning<' in text


def test_a_finding_is_a_line_with_its_places():
    found = Finding(kind="a", message="two rows", rows=2, examples=("row 1", "row 2"))
    assert found.line == "two rows (row 1; row 2)"
    assert replace(found, rows=3).line == "two rows (such as row 1; row 2)"
    assert replace(found, examples=()).line == "two rows"


def test_a_plan_without_findings_and_rows_is_a_page_too(tmp_path):
    check_page(plan(findings=(), shown=()), tmp_path / "check.html")
    text = (tmp_path / "check.html").read_text()
    assert "Warnings" not in text and "Rows</h2>" not in text and "Plan</h2>" in text


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(tmp_path, width):
    if CHROMIUM is None:
        pytest.skip("needs chromium on PATH (Debian: apt-get install chromium)")
    long = Finding(
        kind="long",
        severity="error",
        message="word " * 200 + "x" * 300,
        examples=("folder/" * 40 + "a.csv row 1", "y" * 300),
        setting="data.group: " + "z" * 300,
    )
    made = plan(findings=(long, *plan().findings))
    check_page(made, tmp_path / "check.html")
    measure = (
        "<script>addEventListener('load', () => document.documentElement.dataset.width ="
        " document.documentElement.scrollWidth)</script>"
    )
    page = tmp_path / "measured.html"
    text = (tmp_path / "check.html").read_text()
    page.write_text(
        text.replace("default-src 'none'", "script-src 'unsafe-inline'").replace("</body>", f"{measure}</body>")
    )  # fmt: skip
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom", f"file://{page}"]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    assert 'data-width="' in found
    shown = int(found.split('data-width="')[1].split('"')[0])
    assert shown <= max(width, 500)  # a headless window is at least 500 wide; nothing hangs out


@pytest.mark.slow
def test_check_shows_rows_findings_and_writes_json_and_a_page(tmp_path):
    """The command itself, with a real small model."""
    from typer.testing import CliRunner

    from sweeps.cli.app import app
    from tests.trainables import zoo

    zoo.make("gpt2", "causal", tmp_path / "gpt2", length=256, n_positions=256)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion", "user"])
        writer.writerows([f"say number {i}", f"it is {i}", f"u{i % 30}"] for i in range(120))
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        json.dumps(
            {
                "name": "small",
                "task": "instruction",
                "model": {"name": str(tmp_path / "gpt2")},
                "data": {"train": str(tmp_path / "a.csv"), "validation": 0.2, "max_length": 128},
                "search": {
                    "trials": 2,
                    "space": {
                        "method": "lora",
                        "learning_rate": 1e-3,
                        "batch_size": 4,
                        "epochs": 1,
                    },
                },
            }
        )
    )
    page = tmp_path / "check.html"
    ran = CliRunner().invoke(app, ["check", str(sweep), "--json", "--rows", "2", "--html", str(page), "rehearse=false"])  # fmt: skip
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    texts = ["".join(piece["text"] for piece in row["segments"]) for row in found["shown"]]
    learnt = ["".join(p["text"] for p in row["segments"] if p["learnt"]) for row in found["shown"]]
    assert "say number 0" in texts[0] and "it is 0" in learnt[0] and "say" not in learnt[0]
    assert "no_group" in {each["kind"] for each in found["findings"]}
    assert "say number 1" in page.read_text()
