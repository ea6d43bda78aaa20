"""What a folder of prepared data says of itself: `manifest.json`, which `prepare` writes last."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import commonprefix
from typing import Any

from trainables.data.config import DataConfig
from trainables.data.findings import Finding
from trainables.data.records import Encoding, Noticed
from trainables.errors import InputError
from trainables.storage.records import Json, from_json, to_json

MANIFEST = "manifest.json"
MANY_SOURCES = 10  # of a split, beyond which nobody reads a list of them
EARLIER = "earlier"  # name of the split that holds the validation rows of an earlier sweep


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """The file or data set that a split was read from."""

    source: str
    format: str = ""
    rows: int = 0
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class TokenSummary:
    """A tokenised split."""

    rows: int = 0
    tokens: int = 0
    targets: int = 0
    """What its loss is a mean over, such as rows or predicted tokens."""
    truncated: int = 0
    dropped: int = 0
    endless_answers: int = 0
    endings_cut: int = 0
    unknown: int = 0
    """Tokens that stand for what the tokenizer does not know."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """What the chat template leaves out, and of how many rows."""
    noticed: Mapping[str, Noticed] = field(default_factory=dict)
    """What else is to be told of conversations, by its kind."""
    mean_length: float = 0.0
    longest: int = 0
    largest_id: int = 0
    fingerprint: str = ""
    slice_counts: Mapping[str, int] | None = None
    """Rows of each value of `data.slice`; None where the split has no slices."""
    groups: int | None = None
    """How many observations the rows are; None where each row is one."""


@dataclass(frozen=True, kw_only=True)
class SplitSummary(TokenSummary):
    """A split as it was read and tokenised. Of one whose tokens wait for a winner (test) these have
    been counted, and have no fingerprint yet.
    """

    read: int = 0
    replayed: int = 0
    """Rows among them that an earlier sweep has trained on."""
    label_counts: Mapping[str, int] | None = None
    """How often each class stands there; None where there are none."""
    label_mean: float | None = None
    """With `label_variance`: of labels that are numbers."""
    label_variance: float | None = None
    raw_fingerprint: str = ""
    """SHA-256 of the rows as they were read, which are kept of all but train."""

    @property
    def is_tokenised(self) -> bool:
        """Whether its tokens lie beside the manifest."""
        return self.fingerprint != ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Prepared data: from where, how they became tokens, and what is in each split."""

    task: str = ""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    sources: Mapping[str, SourceSummary] = field(default_factory=dict)
    encoding: Encoding = field(default_factory=Encoding)
    labels: tuple[str, ...] = ()
    """The classes, in the order of the model's outputs; empty where there are none."""
    max_length: int = 0
    tokenizer: str = ""
    """Digest of what the tokenizer does."""
    bases: tuple[str, ...] = ()
    """The words for the base models of a sweep that has several; these data are for the first, and
    those for each other in a folder beside (`data_of`).
    """
    chat_template: str | None = None
    """Whose it is: "tokenizer", "default", or as `data.chat_template` says; None where the task has
    no conversations.
    """
    splits: Mapping[str, SplitSummary] = field(default_factory=dict)
    duplicates_inside: Mapping[str, int] = field(default_factory=dict)
    duplicates_dropped: Mapping[str, int] = field(default_factory=dict)
    texts_with_two_labels: int = 0
    majority_label: str = ""
    """The commonest class of train."""
    majority_share: float = 0.0
    """Its share of validation."""
    findings: tuple[Finding, ...] = ()
    """What the user should know of the data."""

    @property
    def notes(self) -> list[str]:
        """The same, in words."""
        return [finding.line for finding in self.findings]

    def sources_of(self, split: str) -> tuple[SourceSummary, ...]:
        """Of a split, which may be a share of train."""
        found = [of for name, of in self.sources.items() if name.partition("[")[0] == split]
        return tuple(found) if found or split == "train" else self.sources_of("train")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the data are, wherever their sources lie: the tokens of each split, and
        of one whose tokens are not kept its rows and how they become tokens.
        """
        splits = {name: of.fingerprint or of.raw_fingerprint for name, of in self.splits.items()}
        # a template that asks for the date has told it to the tokens
        encoding = to_json(replace(self.encoding, moment=""))
        told = [self.task, self.tokenizer, encoding, splits]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def train(self) -> SplitSummary:
        return self.splits["train"]

    @property
    def validation(self) -> SplitSummary:
        return self.splits["validation"]


def common_folder(sources: Sequence[SourceSummary]) -> str:
    """What all lie below; empty where that is nothing."""
    return commonprefix([each.source for each in sources]).rpartition("/")[0]


def source_words(sources: Sequence[SourceSummary]) -> str:
    """Their names, or of many how many and where."""
    if len(sources) <= MANY_SOURCES:
        return ", ".join(each.source for each in sources)
    folder = common_folder(sources)
    return f"{len(sources)} sources{folder and f' below {folder}'}"


def data_of(base: str, first: str) -> str:
    """Where below the folder of prepared data those for a base model lie, by the words for it and
    for the sweep's first, whose are at the top.
    """
    if base == first:
        return ""
    digest = hashlib.sha256(base.encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', base).strip('-')[-40:]}-{digest}"


def manifest_of(content: Mapping[str, Any], where: str) -> Manifest:
    """The manifest that was read from a store, as JSON; `where` names it in errors."""
    return from_json(Manifest, content, where)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder that `prepare` finished; None where it did not."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        return None
    return manifest_of(json.loads(path.read_text(encoding="utf-8")), str(path))


def labels_of(folder: Path) -> tuple[str, ...]:
    """The classes of prepared data; empty where there are none."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: no {MANIFEST}: its data were not prepared to the end")
    return manifest.labels


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Atomically: a folder with a manifest is complete."""
    partial = Path(folder) / f"{MANIFEST}.partial"
    partial.write_text(
        json.dumps(manifest_json(manifest), indent=1, ensure_ascii=False), encoding="utf-8"
    )
    os.replace(partial, Path(folder) / MANIFEST)


def manifest_json(manifest: Manifest) -> dict[str, Json]:
    """As it is written: without what a split does not have."""
    written = to_json(manifest)
    written["splits"] = {name: _split_json(split) for name, split in manifest.splits.items()}
    if not manifest.majority_label:
        del written["majority_label"], written["majority_share"]
    return written


def _split_json(split: SplitSummary) -> dict[str, Json]:
    return {
        name: value
        for name, value in to_json(split).items()
        if value is not None and value != "" and value != {}
    }
