"""What a gate says."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a winner must keep to."""

    name: str
    passed: bool
    words: str
    """What was found, and what is asked."""
    is_minor: bool = False
    """Whether it goes without saying, where it has passed."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Whether a winner may ship."""

    sweep: str
    trial: str | None
    """Its winner's; None where it has none."""
    checks: tuple[Check, ...]

    @property
    def ships(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def words(self) -> str:
        """One paragraph: what decided, and then the rest."""
        named = f"{self.trial} of {self.sweep}" if self.trial else self.sweep
        failed = [check.words for check in self.checks if not check.passed]
        passed = [check.words for check in self.checks if check.passed and not check.is_minor]
        if not failed:
            return f"Ship {named}: {'; '.join(passed)}."
        also = f" What it keeps to: {'; '.join(passed)}." if passed else ""
        return f"Do not ship {named}: {'; '.join(failed)}.{also}"


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What `gate --json` prints."""

    ships: bool
    words: str
    sweep: str
    trial: str | None
    checks: tuple[Check, ...]

    @classmethod
    def by(cls, gate: Gate) -> "Decided":
        return cls(
            ships=gate.ships,
            words=gate.words,
            sweep=gate.sweep,
            trial=gate.trial,
            checks=gate.checks,
        )
