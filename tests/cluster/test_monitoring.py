"""The files in cluster/monitoring: the dashboard shows metrics that there are, and Prometheus' files are as its
documents have them.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from trainables.runtime.metrics import METRICS

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "monitoring"
EXPORTED = {metric.exported(name): metric for name, metric in METRICS.items()}
OF_RAY = {"SessionName"}


@pytest.fixture(scope="module")
def board() -> dict[str, Any]:
    return json.loads((FOLDER / "sweeps.json").read_text())


def expressions(board: dict[str, Any]) -> list[str]:
    panels = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries = [each["definition"] for each in board["templating"]["list"] if "definition" in each]
    return panels + queries


def test_the_dashboard_is_of_grafanas_own_types(board) -> None:
    """Read into them and written again nothing is missing or another."""
    register_default_plugins()
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    newer = r"\.templating\.list\[\d\]\.definition"  # what a variable's query is shown as
    assert [place for place in altered(board, again) if not re.fullmatch(newer, place)] == []
    wrong = json.loads(json.dumps(board).replace('"calcs"', '"calculations"'))
    assert any(altered(wrong, json.loads(JSONEncoder().encode(Dashboard.from_json(wrong)))))


def altered(given: object, found: object, place: str = "") -> Iterator[str]:
    if isinstance(given, dict):
        for key, value in given.items():
            inner = found.get(key) if isinstance(found, dict) else None
            yield from altered(value, inner, f"{place}.{key}")
    elif isinstance(given, list) and isinstance(found, list) and len(given) == len(found):
        for at, (one, other) in enumerate(zip(given, found, strict=True)):
            yield from altered(one, other, f"{place}[{at}]")
    elif given != found:
        yield place


def test_every_expression_asks_for_metrics_and_labels_that_there_are(board) -> None:
    for expression in expressions(board):
        names = re.findall(r"ray_\w+", expression)
        assert names and {*names} <= {*EXPORTED}, expression
        labels = {label for name in names for label in EXPORTED[name].labels} | OF_RAY
        asked = {*re.findall(r'(\w+)(?:=~|!=|=)"', expression)}
        for group in re.findall(r"by \(([^)]*)\)", expression):
            asked |= {*group.split(", ")}
        assert asked <= labels, expression


def test_all_metrics_are_shown(board) -> None:
    shown = {name for each in expressions(board) for name in re.findall(r"ray_\w+", each)}
    trains = {"ray_sweeps_trial_samples_per_second", "ray_sweeps_slot_samples_total"}
    assert shown == {*EXPORTED} and trains <= shown


def test_counters_are_shown_as_rates_and_gauges_are_not(board) -> None:
    for expression in expressions(board):
        for name in re.findall(r"ray_\w+", expression):
            assert (f"rate({name}" in expression) == EXPORTED[name].counts, expression


def test_legends_and_labels_match(board) -> None:
    for panel in board["panels"]:
        for target in panel["targets"]:
            named = {*re.findall(r"{{(\w+)}}", target.get("legendFormat", ""))}
            groups = re.findall(r"by \(([^)]*)\)", target["expr"])
            assert named <= {*groups[0].split(", ")}, panel["title"]


def test_panels_have_ids_of_their_own_and_do_not_overlap(board) -> None:
    ids = [panel["id"] for panel in board["panels"]]
    assert len({*ids}) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_all_is_read_through_the_variables_that_rays_dashboard_sets(board) -> None:
    """It opens a dashboard with `var-datasource` and `var-SessionName`."""
    variables = [each["name"] for each in board["templating"]["list"]]
    assert variables == ["datasource", "SessionName", "sweep"] and board["uid"] == "sweeps"
    for panel in board["panels"]:
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(each["uid"] == "${datasource}" for each in sources)
        letters = [target["refId"] for target in panel["targets"]]
        assert len({*letters}) == len(letters)
        for target in panel["targets"]:
            used = {*re.findall(r"\$(\w+)", target["expr"])} - {"__rate_interval"}
            assert used == {"sweep", "SessionName"}


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-cluster.yml"])
def test_prometheus_finds_nodes_by_what_ray_writes(name: str) -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE, SESSION_LATEST

    config = yaml.safe_load((FOLDER / name).read_text())
    (job,) = config["scrape_configs"]
    assert config["global"]["scrape_interval"] == "10s" and job["job_name"] == "ray"
    if name == "prometheus.yml":
        ((file,),) = [each["files"] for each in job["file_sd_configs"]]
        assert file == f"/tmp/ray/{SESSION_LATEST}/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"
    else:
        (found,) = job["http_sd_configs"]
        assert found["url"] == "http://HEAD:8265/api/prometheus/sd"


def test_the_documents_have_all_metrics() -> None:
    documents = (FOLDER.parents[1] / "docs" / "cluster.md").read_text()
    rows = re.findall(r"^\| `(ray_\w+)` \| (.*) \| (.*) \|$", documents, re.MULTILINE)
    assert rows == [
        (name, ", ".join(label for label in metric.labels if label != "sweep"), metric.words)
        for name, metric in EXPORTED.items()
    ]


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-cluster.yml"])
def test_prometheus_takes_the_files(name: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    done = subprocess.run(
        [program, "check", "config", FOLDER / name], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
