"""Secrets and personal data, by pattern. What was found is never shown, only where."""

import re
from collections.abc import Iterator

from trainables.data.doctor.rows import Prepared
from trainables.data.findings import Finding

PATTERNS = {
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY",
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{60,})",
    "Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "OpenAI key": r"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}",
    "Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "Google API key": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    # from the beginning of a run of its characters alone: else long runs take their length squared
    "password in a URL": r"(?<![a-z0-9+.-])[0-9+.-]*[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/:@]+@",
    "e-mail address": r"(?<![\w.+-])[.+-]*\w[\w.+-]*@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b",
    "card number": r"\b\d(?:[ -]?\d){12,18}\b",
    "IBAN": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b",
    "US social security number": r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b",
    "telephone number": r"(?<![\w.])\+\d{1,3}(?:[ .()-]{0,2}\d){7,12}(?!\w)",
}
PERSONAL = ("e-mail address", "telephone number")
"""Of these, one is told; more than some are a warning."""
SOME = 0.01  # of the rows


def secrets(prepared: Prepared) -> Iterator[Finding]:
    for split in prepared.splits:
        found: dict[str, list[str]] = {}
        rows = 0
        for text in prepared.texts(split):
            rows += 1
            for name in _kinds(f"{text.asked}\n{text.answered}"):
                found.setdefault(name, []).append(text.place)
        for name, places in found.items():
            is_mild = name in PERSONAL and len(places) < SOME * rows
            yield Finding(
                kind="secrets",
                severity="note" if is_mild else "warning",
                split=split,
                rows=len(places),
                examples=tuple(places[:3]),
                message=f"{split}: {len(places)} row(s) hold what looks like a"
                f"{'n' if name[0] in 'aeiouAIO' else ''} {name} ({', '.join(places[:3])}): a model"
                " can repeat it",
            )


COMPILED = {name: re.compile(pattern) for name, pattern in PATTERNS.items()}


def _kinds(text: str) -> Iterator[str]:
    for name, pattern in COMPILED.items():
        if any(_is_real(name, match.group()) for match in pattern.finditer(text)):
            yield name


def _is_real(name: str, found: str) -> bool:
    """Whether a number's check digits are right; most numbers that look like one have others."""
    if name == "card number":
        digits = [int(c) for c in found if c.isdigit()]
        doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
        return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
    if name == "IBAN":
        turned = found.replace(" ", "")
        turned = turned[4:] + turned[:4]
        return int("".join(str(int(c, 36)) for c in turned)) % 97 == 1
    return True
