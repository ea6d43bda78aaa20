"""Who may import whom (see docs/architecture.md), read from the sources with `ast`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cluster", "search_spaces", "sweeps", "trainables")
LEAVES = ("cluster", "search_spaces", "trainables")

RAY = ("sweeps/", "cluster/", "trainables/runtime/")
WANDB = ("sweeps/tracking/", "sweeps/reporting/wandb_report.py")


def imports_of(source: str, file: str) -> set[str]:
    """Dotted names of all modules that a file imports: relative ones resolved, those inside functions included.

    `import_module("x")` and `__import__("x")` with a literal name count too.
    """
    package = file.removesuffix(".py").split("/")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source, file)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package[: len(package) - level + 1] if level else []
                base = [*above, *(module.split(".") if module else [])]
                found |= {".".join([*base, alias.name]) for alias in names}
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                found.add(name)
    return found


def breaches(file: str, source: str) -> list[str]:
    """What a file imports that it may not, in words."""
    own = file.split("/")[0]
    tops = {name.split(".")[0] for name in imports_of(source, file)}
    found = [
        f"{file} imports {other}"
        for other in LEAVES
        if own in LEAVES and other != own and other in tops
    ]
    rules = {
        "sweeps": own == "sweeps",
        "ray": file.startswith(RAY),
        "wandb": file.startswith(WANDB),
        "wandb_workspaces": file.startswith(WANDB),
        "optuna": own == "sweeps",
        "nicegui": file.startswith("sweeps/ui/"),
        "tests": False,
    }
    return found + [
        f"{file} imports {name}" for name, allowed in rules.items() if name in tops and not allowed
    ]


def test_every_file_keeps_the_import_rules():
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 30
    broken = [
        line
        for file in files
        for line in breaches(file.relative_to(ROOT).as_posix(), file.read_text())
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("file", "source", "broken"),
    [
        ("trainables/engine/group.py", "import search_spaces", "search_spaces"),
        ("trainables/data/batches.py", "from cluster.config import ClusterConfig", "cluster"),
        ("search_spaces/space.py", "def f():\n    from trainables import model", "trainables"),
        ("cluster/connect.py", "if True:\n    import sweeps.config.schema as c", "sweeps"),
        ("trainables/methods/lora.py", "from ... import sweeps", "sweeps"),
        ("trainables/engine/group.py", "import ray.train", "ray"),
        ("trainables/data/trial.py", "import ray", "ray"),
        ("search_spaces/space.py", "from ray import tune", "ray"),
        ("sweeps/run/sweep.py", "import wandb", "wandb"),
        (
            "sweeps/search/study.py",
            "def f():\n    import wandb_workspaces.reports.v2",
            "wandb_workspaces",
        ),
        ("sweeps/cli/ui.py", "from nicegui import ui", "nicegui"),
        ("search_spaces/domains.py", "from optuna.distributions import IntDistribution", "optuna"),
        (
            "trainables/runtime/trial.py",
            "import importlib\nimportlib.import_module('optuna')",
            "optuna",
        ),
    ],
)
def test_the_rules_see_a_breach(file, source, broken):
    assert breaches(file, source) == [f"{file} imports {broken}"]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("trainables/methods/lora.py", "from ..errors import InputError\nfrom . import full"),
        ("trainables/runtime/slot.py", "import ray"),
        (
            "sweeps/search/study.py",
            "import optuna\nimport ray\nfrom search_spaces import Space\nfrom trainables import model",
        ),
        ("sweeps/reporting/wandb_report.py", "import wandb_workspaces.reports.v2 as wr"),
        ("cluster/connect.py", "import ray\nfrom cluster import ClusterError"),
        ("trainables/engine/group.py", "'import ray'  # ray is not imported here\nraymond = 1"),
    ],
)
def test_the_rules_let_pass_what_is_allowed(file, source):
    assert breaches(file, source) == []


def test_a_finished_sweep_is_read_without_ray_or_torch():
    """`best` answers at once, and on a machine where neither is installed."""
    heavy = ("ray", "torch", "transformers", "peft", "datasets", "optuna", "wandb")
    lines = [
        "import sys",
        "import sweeps.__main__, sweeps.cli.app, sweeps.ledger.folder, sweeps.selection.ranking, sweeps.reporting.console, sweeps.run.sweep",
        f"print([name for name in {heavy} if name in sys.modules])",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
