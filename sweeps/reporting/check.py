"""What `check` found, on the terminal, as JSON and as a page."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from sweeps.reporting.html import template
from trainables.data.findings import SEVERITIES

if TYPE_CHECKING:
    from sweeps.run.plan import Plan
    from trainables.data.showing import ShownRow

STYLES = {"error": "bold red", "warning": "yellow", "note": ""}
LEARNT = "bold green"
WEIGHT = "yellow"


def print_plan(plan: Plan, console: Console) -> None:
    def line(text: str | Text, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    line(f"Sweep {plan.sweep}: {plan.task} with {plan.model}")
    for each in plan.data:
        line(f"  {each}")
    for finding in plan.findings:
        mend = f" [{finding.setting}]" if finding.setting else ""
        line(f"  {finding.severity}: {finding.line}{mend}", STYLES[finding.severity])
    for each in plan.plan:
        line(each)
    for row in plan.shown:
        line(f"--- {row.place} (learnt: {'in green' if console.is_terminal else '[[so]]'})")
        if row.note:
            line(f"    {row.note}", "yellow")
        line(_marked(row, colours=console.is_terminal))
    warnings = sum(finding.severity == "warning" for finding in plan.findings)
    line(f"No problem found; {warnings} warning(s)." if warnings else "No problem found.")


def _marked(row: ShownRow, *, colours: bool) -> Text:
    """With the weight of what does not count fully behind it."""
    text = Text()
    for segment in row.segments:
        if segment.heading:
            text.append("\n" if text else "").append(f"{segment.heading}:\n")
        if not segment.learnt:
            text.append(segment.text)
            continue
        text.append(
            segment.text if colours else f"[[{segment.text}]]", style=LEARNT if colours else ""
        )
        if segment.weight != 1:
            text.append(f"×{segment.weight:g}", style=WEIGHT if colours else "")
    return text


def check_page(plan: Plan, out: Path) -> None:
    """One HTML file that needs no network."""
    page = template("check.html.j2").render(
        plan=plan,
        severities=[
            (severity, found)
            for severity in SEVERITIES
            if (found := [each for each in plan.findings if each.severity == severity])
        ],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8", newline="\n")
    os.replace(partial, out)
