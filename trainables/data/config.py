"""What a sweep is trained on: the `data:` section of its YAML file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainables.errors import InputError, did_you_mean

COLUMNS = (
    "messages",
    "prompt",
    "completion",
    "system",
    "tools",
    "reasoning_content",
    "history",
    "chosen",
    "rejected",
    "weight",
)
"""Of the formats of conversations, as `DataConfig.columns` may rename them."""
PAIR = ("source", "target")
"""Of the format of a text for a text, likewise."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a split."""

    source: str
    weight: float = 1.0
    """How often each of its rows stands in an epoch."""

    @classmethod
    def of(cls, given: object, key: str) -> "Part":
        """Of what stands in the sweep file. Raises InputError."""
        if isinstance(given, str) and given:
            return cls(source=given)
        if not isinstance(given, Mapping) or not {"source"} <= set(given) <= {"source", "weight"}:
            raise InputError(
                f"{key}: must be a file, a folder, hf:owner/name, a list of those, or {{source:"
                f" ..., weight: ...}}, got {given!r}"
            )
        source, weight = given["source"], given.get("weight", 1.0)
        if not isinstance(source, str) or not source:
            raise InputError(f"{key}: source must be a file or hf:owner/name, got {source!r}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 100:
            raise InputError(f"{key}: weight must be a number in (0, 100], got {weight!r}")
        return cls(source=source, weight=float(weight))


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Rows that an earlier sweep has trained on, among those of train."""

    share: float
    """Of the rows of train, in (0, 1)."""
    source: str | None = None
    """That sweep's folder; None: the one whose winner `model.name` is."""

    @classmethod
    def of(cls, given: object) -> "Replay":
        """Of what stands in the sweep file. Raises InputError."""
        parts: Mapping[str, Any] = given if isinstance(given, Mapping) else {"share": given}
        if set(parts) <= {"share", "source"}:
            share, source = parts.get("share"), parts.get("source")
            if not isinstance(source, str | None):
                source = share = None
            if isinstance(share, float) and 0 < share < 1:
                return cls(share=share, source=source)
        raise InputError(
            "data.replay: must be the share of train's rows that are an earlier sweep's, in (0, 1),"
            f" or {{source: SWEEP_DIR, share: ...}}, got {given!r}"
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the rows are, which columns hold what, and how they are split and cut.

    A source is a file, by its extension (.csv, .tsv, .jsonl, .ndjson, .json, .parquet, .arrow,
    .txt, each also as .gz or .zst), a folder or a pattern (`data/*.jsonl`) of such files, any URL
    that fsspec opens, or a dataset of the Hugging Face hub:
    `hf:owner/name?split=train&config=...&revision=...`. Text files are UTF-8.
    """

    train: Any = ""
    """Source of the training rows, or a list of sources, of which each may be `{source: ...,
    weight: ...}`: how often each of its rows stands in an epoch (0.5: half of its rows, drawn by
    the seed). Required.
    """
    validation: Any = 0.1
    """Sources of the validation rows, or the share of `train` that is set apart for them, in (0,
    1).
    """
    test: Any = None
    """Sources of the test rows, or a share of `train`; scored once, for the winner. None: no test
    split.
    """
    text: str = "text"
    """Column of the text (classification, multi_label, regression, causal_lm)."""
    text_pair: str | None = None
    """Column of a second text that goes with the first (classification, multi_label, regression).
    """
    label: str = "label"
    """Column of the class, a string or an integer (classification), or of the number (regression).
    """
    labels: str = "labels"
    """Column of the names of a row's classes, a list or a text (multi_label)."""
    separator: str = ","
    """What stands between the names, where `labels` is a text."""
    tokens: str = "tokens"
    """Column of a row's words, a list (token_classification)."""
    tags: str = "tags"
    """Column of their tags, a list as long (token_classification)."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which column of the file is meant by a column of a known format, where it has another name:
    {prompt: question, completion: answer} (instruction), {source: en, target: de} (seq2seq).
    """
    source_prefix: str = ""
    """What stands before every source (seq2seq), as T5 was trained with: "translate English to
    German: ".
    """
    group: str | None = None
    """Column naming what a row comes from (file, author, query): rows of one group never fall in
    two splits.
    """
    slice: str | None = None
    """Column whose values are also measured one by one: language, source, a protected attribute."""
    max_length: int | None = None
    """Tokens kept of a row; in causal_lm the tokens of a block, in seq2seq those of a source and
    those of a target. None: the model's context, but at most 512 (instruction: 1024).
    """
    chat_template: str | None = None
    """How conversations become text: a file of Jinja, a preset's name, or "none" for a prompt and
    its completion as they are. None: the tokenizer's own template, else a plain default. It is
    saved with the winner.
    """
    reasoning: Literal["train", "keep", "drop"] = "train"
    """What becomes of the assistant's thoughts (`reasoning_content`, or <think> in a content):
    learnt, kept as context without loss, or removed.
    """
    train_on: Literal["all_answers", "last_answer"] = "all_answers"
    """Which of the assistant's messages of a conversation are learnt."""
    unrendered: Literal["note", "error"] = "note"
    """Parts of a conversation that the chat template leaves out (a system message, tools,
    thoughts): name and count them, or refuse to start.
    """
    bad_rows: Literal["error", "drop"] = "error"
    """Rows that cannot be used: refuse to start and name the first, or leave them out and count
    them.
    """
    cross_documents: bool = False
    """Let a block of causal_lm run on into the next document instead of ending with its own."""
    duplicates: Literal["error", "drop"] = "error"
    """A row that is in two splits (case and white space ignored): refuse it, or drop it (test keeps
    its rows, train loses them first).
    """
    rows: int | None = None
    """Use at most this many training rows (causal_lm: documents and blocks), drawn by the seed with
    the classes' shares kept. None: all.
    """

    replay: Any = None
    """Share of the training rows that are taken from what an earlier sweep has trained on, drawn by
    the seed: of the one whose winner `model.name` is, or {source: SWEEP_DIR, share: ...}.
    """

    def __post_init__(self) -> None:
        self._check_shares()
        self._check_columns()
        for split in ("train", "validation", "test"):
            if any(part.weight != 1 for part in self.parts(split)) and split != "train":
                raise InputError(
                    f"data.{split}: a weight says how often rows stand in an epoch of training;"
                    " what is measured has none"
                )
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"data.max_length: must be at least 2 tokens, got {self.max_length}")
        if not self.separator:
            raise InputError("data.separator: must be one character or more, got ''")
        if self.rows is not None and self.rows < 1:
            raise InputError(f"data.rows: must be at least 1, got {self.rows}")

    def _check_shares(self) -> None:
        if self.replay is not None:
            Replay.of(self.replay)
        shares = {
            name: value
            for name in ("validation", "test")
            if isinstance(value := getattr(self, name), int | float)
        }
        for name, share in shares.items():
            if isinstance(share, bool) or not 0 < share < 1:
                raise InputError(
                    f"data.{name}: must be a file, or a share of train between 0 and 1 (both"
                    f" excluded), got {share!r}"
                )
        if sum(shares.values()) >= 1:
            got = " + ".join(map(str, shares.values()))
            raise InputError(
                f"data.validation + data.test: shares must leave rows for train, got {got}"
            )

    def _check_columns(self) -> None:
        for ours in self.columns:
            if ours not in (known := (*COLUMNS, *PAIR)):
                raise InputError(
                    f"data.columns: {ours!r} is not a column of a known format; allowed are"
                    f" {', '.join(known)}.{did_you_mean(ours, known)}"
                )

    def parts(self, split: str) -> tuple["Part", ...]:
        """The sources of a split; none where it is a share of train or not given."""
        given = getattr(self, split)
        if isinstance(given, int | float) or not given:
            return ()
        return tuple(
            Part.of(each, f"data.{split}")
            for each in (given if isinstance(given, list) else [given])
        )

    def share(self, split: str) -> float | None:
        """The share of train that a split is."""
        given = getattr(self, split)
        return float(given) if isinstance(given, int | float) else None
