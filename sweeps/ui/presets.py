"""The sweep files and search spaces that come with the project, as something to start from."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

import search_spaces
import sweeps
from search_spaces import load_tree
from sweeps.config.schema import AUTO
from sweeps.ui.looking import Look
from sweeps.ui.yaml_text import tree_of, value_at, with_value, without, without_comment
from trainables.errors import InputError
from trainables.tasks import TASKS

SHORT_FILE = "short"
OWN = "own"
"""The search space that stands in the preset itself."""
OF_AUTO = ("lora", "full", "partial", "qlora")
"""Methods that it has rules for."""
REFERENCE = "reference"  # every setting, no sweep
COLUMN_SETTINGS = (
    *("text", "text_pair", "label", "labels", "separator", "tokens", "tags", "columns"),
    *("group", "slice"),
)

SHORT = """\
name: sweep
storage: runs
task: classification
model: {name: ''}

data:
  train: ''
  validation: 0.1  # of the rows, by which trials are compared
  test: 0.1        # sealed until there is a winner, and scored once

search:
  space: auto      # ranges that follow from task, model and data, by published rules
  trials: 20
"""

ROW_SETTINGS = ("rows", "max_length", "duplicates")
"""Those that suit the rows that a preset was made for."""
OF_ANY_TEXT = ("exact_match", "token_f1", "rouge_l", "chrf", "bleu")
"""Metrics that ask for no file and no form of the answers."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A shipped file."""

    name: str
    words: str
    """Its first line."""
    task: str
    text: str


def shipped() -> list[Preset]:
    """The ready sweeps."""
    found = []
    for file in sorted(Path(str(sweeps.__file__)).parent.glob("*.yaml")):
        if file.stem != REFERENCE:
            text = file.read_text(encoding="utf-8")
            task = str(tree_of(text).get("task"))
            found.append(Preset(name=file.stem, words=_first_line(text), task=task, text=text))
    return found


def presets_for(task: str) -> dict[str, str]:
    """What a sweep of a task can start from, in words, the usual one first."""
    short = {SHORT_FILE: "A short file: ranges by published rules for task, model and data"}
    own = {each.name: f"{each.name}: {each.words}" for each in shipped() if each.task == task}
    # a task of language models has one that is meant for it; those of heads are each for one model
    return {**own, **short} if TASKS[task].is_language_model else {**short, **own}


def spaces_for(task: str) -> dict[str, str]:
    """The search spaces that suit a task, in words."""
    of = TASKS[task]
    kinds = ("encoder", "gpt2") if not of.is_language_model else ("llm", "gpt2")
    if not of.continues_text and of.is_language_model:
        kinds = ("seq2seq",)
    found = {AUTO: "auto: ranges by published rules for task, model and data"}
    for file in sorted(Path(str(search_spaces.__file__)).parent.glob("*.yaml")):
        if file.stem.startswith(kinds) and not of.has_pairs:
            found[file.stem] = f"{file.stem}: {_first_line(file.read_text(encoding='utf-8'))}"
    return found


def begun_from(preset: str, look: Look, task: str, model: str, storage: str) -> str:
    """The text of a new sweep file: a preset with the user's own model, rows and columns."""
    known = {each.name: each.text for each in shipped()}
    text = _without_head(known.get(preset, SHORT))
    for key in ("model.sha256", "model.revision"):
        text = without(text, key)
    for name in (*COLUMN_SETTINGS, *ROW_SETTINGS):
        text = without(text, f"data.{name}")
    text = without(text, "train.probe_rows")
    if not _are_anybodys(value_at(tree_of(text), "metrics")):
        for key in ("metrics", "selection.metric", "generation"):
            text = without(text, key)
    for split in ("validation", "test"):
        if isinstance(value_at(tree_of(text), f"data.{split}"), str):
            text = with_value(text, f"data.{split}", 0.1)
    given = {
        "name": name_from(look.source),
        "storage": storage,
        "task": task,
        "model.name": model,
        "data.train": look.source,
        **look.settings_of(task),
    }
    for key, value in given.items():
        text = with_value(without_comment(text, key), key, value)
    return text


def _are_anybodys(metrics: object) -> bool:
    return isinstance(metrics, list) and all(each in OF_ANY_TEXT for each in metrics)


def name_from(source: str) -> str:
    """A sweep's name after the file that it learns from."""
    stem = source.rstrip("/").rsplit("/", 1)[-1].split("?")[0].split(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:48] or "sweep"


def methods_of(space: object) -> list[str]:
    """That a search space tries."""
    if space == AUTO:
        return [*OF_AUTO]
    tree = load_tree(space) if isinstance(space, str) else space
    found = tree.get("method") if isinstance(tree, Mapping) else None
    return [*map(str, found)] if isinstance(found, Mapping) else [str(found)] if found else []


def with_space(
    text: str, space: object, methods: Collection[str] = (), epochs: int | None = None
) -> str:
    """With a search space by its name or as it is, of which only some methods are tried (none
    named: all), and trained for so many epochs (None: as many as the space says).
    """
    some = [name for name in methods_of(space) if name in methods]
    if space == AUTO and len(some) > 1:
        raise InputError(
            f"methods: ranges by rules are for one method, or for those that the rules choose; got"
            f" {', '.join(some)}: take one, none, or another search space"
        )
    if len(some) == len(methods_of(space)):
        some = []
    before = value_at(tree_of(text), "search.space")
    fixed = {"train.method": some[0] if some and space == AUTO else None, "train.epochs": epochs}
    for key, value in fixed.items():
        text = without(text, key) if value is None else with_value(text, key, value)
    if space != AUTO and (some or epochs):
        space = _cut(space, some, without_epochs=bool(epochs))
    if space == before:
        return text
    # which may name what is no longer there
    text = without_comment(without(text, "search.initial"), "search.space")
    return with_value(text, "search.space", space)


def _cut(space: object, methods: Collection[str], *, without_epochs: bool) -> object:
    """Inline, with some methods alone (none named: all)."""
    tree = load_tree(space) if isinstance(space, str) else space
    assert isinstance(tree, Mapping), "a search space is a mapping"
    found = dict(tree)
    branches = found.get("method")
    if methods and isinstance(branches, Mapping):
        found["method"] = {name: branches[name] for name in branches if name in methods}
    if without_epochs:
        found.pop("epochs", None)
    return found


def _first_line(text: str) -> str:
    """Of the comment at its head, up to the end of a sentence."""
    head = []
    for line in text.splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        head.append(line.strip("# "))
    return re.split(r"(?<=[.:]) ", " ".join(head))[0].rstrip(".:")


def _without_head(text: str) -> str:
    """Without the comment at its head, which is about the file as it is shipped."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "a sweep file is a mapping"
    return text[root.start_mark.index :]
