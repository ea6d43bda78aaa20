"""What a check has found."""

from nicegui import html

from sweeps.run.plan import Plan
from sweeps.ui.pages.frame import pill


def show_plan(plan: Plan, page: str) -> None:
    """page: the address of all of it."""
    warnings = sum(finding.severity == "warning" for finding in plan.findings)
    html.p(
        f"No problem found; {warnings} warning(s)." if warnings else "No problem found."
    ).classes("right")
    html.a("The whole check, with rows as the model reads them", href=page, target="_blank")
    html.h3("Data")
    with html.ul().classes("plan"):
        for line in plan.data:
            html.li(line)
    with html.ul().classes("found"):
        for finding in plan.findings:
            with html.li():
                pill(finding.severity)
                html.span(f" {finding.line}")
                if finding.setting:
                    with html.p().classes("muted"):
                        html.span("Mend: ")
                        html.code(finding.setting)
    html.h3("Plan")
    with html.ul().classes("plan"):
        for line in plan.plan:
            html.li(line)
