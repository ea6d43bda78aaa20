"""What the user should know of the data."""

from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[str, ...] = get_args(Severity)
"""The gravest first."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about the rows of a split, in words and in numbers."""

    kind: str
    """One word for all findings of this kind: `truncated`."""
    message: str
    """One line: what was found, and of how many rows."""
    severity: Severity = "note"
    """error: the sweep does not start; warning: likely a mistake; note: worth knowing."""
    split: str = ""
    """Empty where it is about several."""
    rows: int = 0
    """How many it is about."""
    examples: tuple[str, ...] = ()
    """Up to three, each with its place."""
    setting: str = ""
    """What mends it, as it would stand in the sweep file; empty where only the data can be
    mended.
    """

    @property
    def line(self) -> str:
        """The message with the examples, for where they have no lines of their own."""
        if not self.examples:
            return self.message
        such = "such as " if self.rows > len(self.examples) else ""
        return f"{self.message} ({such}{'; '.join(self.examples)})"
