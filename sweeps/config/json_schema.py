"""The sweep file as a JSON Schema (draft 2020-12), by which editors complete and check it while it
is written. What `load` refuses beyond that (settings that do not go together, files that are not
there) no schema says.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from search_spaces import PRESETS
from sweeps.config.schema import AUTO, SweepConfig
from trainables.hyperparameters import COMMON, FIELDS, OPTIONS
from trainables.metrics.choosing import BUILT_IN
from trainables.tasks import TASKS

DRAFT = "https://json-schema.org/draft/2020-12/schema"
REFERENCE = Path(__file__).parents[1] / "reference.yaml"
LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?: [^#]*| \"[^\"]*\" *)?(?:# (?P<comment>.+))?")

Schema = dict[str, Any]
"""JSON, as far as it goes."""


def sweep_schema() -> Schema:
    """Of a sweep file. Its descriptions are the comments of `sweeps/reference.yaml`."""
    root = TypeAdapter(SweepConfig).json_schema()
    sections = root.pop("$defs")
    comments = dict(comments_of(REFERENCE.read_text(encoding="utf-8")))
    _describe(root, sections, comments, "")
    root["properties"]["task"]["enum"] = [*TASKS]
    root["properties"]["metrics"]["items"] = _metric()
    sections["ModelsConfig"]["properties"]["name"] |= _names()
    sections["SearchConfig"]["properties"]["space"] |= _space()
    wandb = sections["TrackingConfig"]["properties"]["wandb"]
    del wandb["type"]
    wandb["enum"].append(False)  # as YAML 1.1 reads off
    definitions = {**sections, "parameter": _parameter(), "domain": _domain()}
    about = {"$schema": DRAFT, "title": "A sweep file", "description": root.pop("description")}
    return {**about, **root, "title": about["title"], "$defs": definitions}


def comments_of(yaml: str) -> Iterator[tuple[str, str]]:
    """What stands behind each key, by its path (`search.early_stopping.overfit`)."""
    path: list[tuple[int, str]] = []
    for line in yaml.splitlines():
        if (found := LINE.fullmatch(line)) is None:
            continue
        indent = len(found["indent"])
        path = [(at, key) for at, key in path if at < indent] + [(indent, found["key"])]
        if found["comment"]:
            yield ".".join(key for _, key in path), found["comment"]


def _describe(
    section: Schema, sections: Mapping[str, Schema], comments: Mapping[str, str], at: str
) -> None:
    """Fill in what is known of a section's settings, and that there are no others."""
    section["additionalProperties"] = False
    for name, setting in section["properties"].items():
        setting.pop("title", None)
        if comment := comments.get(f"{at}{name}"):
            setting["description"] = comment
        if reference := setting.get("$ref"):
            _describe(sections[reference.rpartition("/")[2]], sections, comments, f"{at}{name}.")


def _names() -> Schema:
    """Of one base model, or of several."""
    several = {"type": ["array", "object"], "items": {"type": "string"}}
    choice = {
        "type": "object",
        "properties": {"choice": several},
        "required": ["choice"],
        "additionalProperties": False,
    }
    return {"anyOf": [{"type": "string"}, choice]}


def _metric() -> Schema:
    """A name, or one with options."""
    names = {"anyOf": [{"enum": [*BUILT_IN]}, {"type": "string", "pattern": ":"}]}
    options = {
        "type": "object",
        "propertyNames": names,
        "additionalProperties": {"type": ["object", "null"]},
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"anyOf": [*names["anyOf"], options]}


def _space() -> Schema:
    """The name of a space, a file, or the space itself: every hyperparameter of every method."""
    named = {"anyOf": [{"enum": [AUTO, *PRESETS]}, {"type": "string"}]}
    branches = {
        method: {
            "type": ["object", "null"],
            "properties": _parameters([*(each.name for each in fields(kind)), *COMMON]),
        }
        for method, kind in OPTIONS.items()
    }
    method = {
        "anyOf": [
            {"enum": [*OPTIONS]},
            {"$ref": "#/$defs/domain"},
            {"type": "object", "properties": branches, "additionalProperties": False},
        ]
    }
    itself = {
        "type": "object",
        "properties": {**_parameters(FIELDS), "method": method},
        "minProperties": 1,
    }
    return {"anyOf": [*named["anyOf"], itself]}


def _parameters(names: Iterable[str]) -> Schema:
    return {name: {"$ref": "#/$defs/parameter"} for name in names}


def _parameter() -> Schema:
    """A fixed value, one tied to others (`2 * rank`), a domain, or a choice with branches."""
    plain = {"type": ["number", "string", "boolean", "array", "null"]}
    branches = {"type": "object", "additionalProperties": {"type": ["object", "null"]}}
    return {"anyOf": [plain, {"$ref": "#/$defs/domain"}, branches]}


def _domain() -> Schema:
    bounds = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    whole = {**bounds, "items": {"type": "integer"}}
    options = {"log": {"type": "boolean"}, "step": {"type": "integer", "minimum": 1}}
    above_0 = {**bounds, "items": {"type": "number", "exclusiveMinimum": 0}}
    kinds: dict[str, Schema] = {
        "log_uniform": {"log_uniform": above_0},
        "uniform": {"uniform": bounds},
        "int": {"int": whole, **options},
        "choice": {"choice": {"type": "array", "minItems": 1}},
    }
    return {
        "oneOf": [
            {
                "type": "object",
                "properties": properties,
                "required": [kind],
                "additionalProperties": False,
            }
            for kind, properties in kinds.items()
        ]
    }
