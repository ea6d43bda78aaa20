"""What a sweep is trained on: the `data:` section of its YAML file."""

from dataclasses import dataclass
from typing import Literal

from trainables.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the rows are, which columns hold what, and how they are split and cut.

    A source is a file, by its extension (.csv, .tsv, .jsonl, .json, .parquet, .txt), or a dataset
    of the Hugging Face hub: `hf:owner/name?split=train&config=...&revision=...`. All files are
    UTF-8.
    """

    train: str = ""
    """Source of the training rows. Required."""
    validation: str | int | float | None = 0.1
    """Source of the validation rows, or the share of `train` that is set apart for them, in (0, 1).
    """
    test: str | int | float | None = None
    """Source of the test rows, or a share of `train`; scored once, for the winner. None: no test
    split.
    """
    text: str = "text"
    """Column of the text (classification, causal_lm)."""
    text_pair: str | None = None
    """Column of a second text that goes with the first (classification)."""
    label: str = "label"
    """Column of the class, a string or an integer (classification)."""
    group: str | None = None
    """Column naming what a row comes from (file, author, query): rows of one group never fall in
    two splits.
    """
    slice: str | None = None
    """Column whose values are also measured one by one: language, source, a protected attribute."""
    max_length: int | None = None
    """Tokens kept of a row; in causal_lm the tokens of a block. None: the model's context, but at
    most 512 (instruction: 1024).
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

    def __post_init__(self) -> None:
        self._check_shares()
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"data.max_length: must be at least 2 tokens, got {self.max_length}")
        if self.rows is not None and self.rows < 1:
            raise InputError(f"data.rows: must be at least 1, got {self.rows}")

    def _check_shares(self) -> None:
        shares = {
            name: value
            for name, value in (("validation", self.validation), ("test", self.test))
            if isinstance(value, int | float)
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
