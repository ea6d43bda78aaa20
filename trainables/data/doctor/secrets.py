"""Secrets and personal data, by pattern. What was found is never shown, only where."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from trainables.data.doctor.rows import Prepared
from trainables.data.findings import Finding

CARD = r"(?<![\w+-])(?<!\d\.)(?<!\d\d[ -])(?:{})(?!\w|-\w|\.\d|[ -]\d{{3}})".format(
    "|".join(
        (
            r"\d{14,19}",
            r"\d{4}(?P<of_four>[ -])\d{4}(?P=of_four)\d{4}(?P=of_four)\d{4}",
            r"\d{4}(?P<of_six>[ -])\d{6}(?P=of_six)\d{4,5}",
        )
    )
)
IN_URL = "password in a URL"
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
    IN_URL: r"(?<![a-z0-9+.-])[0-9+.-]*[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/:@]+@",
    "e-mail address": r"(?<![\w.+-])[.+-]*\w[\w.+-]*@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b",
    "card number": CARD,
    "IBAN": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
    "US social security number": r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])",
    "telephone number": r"(?<![\w.])\+[1-9]\d{0,2}(?:[ .()-]{0,2}\d){7,11}(?!\w)",
}
COMPILED = {name: re.compile(pattern) for name, pattern in PATTERNS.items()}
PERSONAL = ("e-mail address", "telephone number")
"""Of these, one is told; more than some are a warning."""
SOME = 0.01  # of the rows
ISSUERS = {
    14: re.compile(r"30[0-5]|3[689]"),  # Diners Club
    15: re.compile(r"3[47]"),  # American Express
    # Visa, Mastercard, Discover, JCB, UnionPay
    16: re.compile(
        r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|6011|64[4-9]|65|35(?:2[89]|[3-8])|62"
    ),
    19: re.compile(r"4|62"),
}
"""How the number of a card begins, by its digits (ISO 7812)."""
IBANS = {
    each[:2]: int(each[2:])
    for each in (
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28"
        " EE20 EG29 ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26"
        " IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30"
        " NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23"
        " TN24 TR26 UA29 VA22 VG24 XK20"
    ).split()
}
"""Characters of an account's number, by its country (ISO 13616)."""
BY_CHANCE = {"card number": 0.1, "IBAN": 1 / 97}
"""How many numbers of the right form have the right check digits without being one."""
UNLIKELY = 1e-3  # probability that so many have


@dataclass(kw_only=True)
class _Found:
    """Of one kind, in all splits."""

    places: list[str] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    """By split."""
    numbers: int = 0
    """How many have the form of one, and..."""
    checked: int = 0
    """...of those the right beginning, length and check digits."""

    def add(self, split: str, place: str, checks: list[bool]) -> None:
        self.numbers += len(checks)
        self.checked += sum(checks)
        if any(checks):
            self.places.append(place)
            self.rows[split] += 1

    def is_by_chance(self, name: str) -> bool:
        """Whether so many numbers do not check out that those which do are likely no other: the
        numbers of orders and parcels.
        """
        from scipy.stats import binom

        if name not in BY_CHANCE or 2 * self.checked >= self.numbers:
            return False
        return bool(binom.sf(self.checked - 1, self.numbers, BY_CHANCE[name]) > UNLIKELY)


def secrets(prepared: Prepared) -> Iterator[Finding]:
    found: dict[str, _Found] = {name: _Found() for name in PATTERNS}
    rows = 0
    for split in prepared.splits:
        for text in prepared.texts(split):
            rows += 1
            for name, checks in _kinds(f"{text.asked}\n{text.answered}"):
                found[name].add(split, text.place, checks)
    for name, each in found.items():
        if each.places and not each.is_by_chance(name):
            yield _finding(name, each, rows)


def _finding(name: str, found: _Found, rows: int) -> Finding:
    count = len(found.places)
    is_mild = name in PERSONAL and count < SOME * rows
    split, *others = found.rows
    by_split = ", ".join(f"{of} of {each}" for each, of in found.rows.items())
    where = f"{count} row(s) ({by_split})" if others else f"{split}: {count} row(s)"
    return Finding(
        kind="secrets",
        severity="note" if is_mild else "warning",
        split="" if others else split,
        rows=count,
        examples=tuple(found.places[:3]),
        message=f"{where} hold what looks like a{'n' if name[0] in 'aeiouAIO' else ''} {name}:"
        " a model can repeat it",
    )


def _kinds(text: str) -> Iterator[tuple[str, list[bool]]]:
    """What the text has something of the form of, and whether each of these is that."""
    for name, pattern in COMPILED.items():
        is_real = CHECKS.get(name, bool)
        if checks := [is_real(match.group()) for match in pattern.finditer(text)]:
            yield name, checks
            if name == IN_URL:  # the end of which looks like an address
                text = pattern.sub(" ", text)


def _is_card(found: str) -> bool:
    number = re.sub(r"\D", "", found)
    digits = list(map(int, number))
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    is_issued = len(number) in ISSUERS and ISSUERS[len(number)].match(number) is not None
    return is_issued and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(found: str) -> bool:
    number = found.replace(" ", "")
    number = number[: IBANS.get(number[:2], 0)]  # what stands behind it may look like more of it
    turned = number[4:] + number[:4]
    is_whole = len(number) == IBANS.get(number[:2])
    return is_whole and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _is_drawn(found: str) -> bool:
    """Whether a key has capitals, small letters and digits, as one that was drawn has."""
    return all(re.search(each, found) for each in ("[A-Z]", "[a-z]", "[0-9]"))


def _is_dialled(found: str) -> bool:
    """Not a sum or a decimal number."""
    return not re.fullmatch(r"\+\d+\.\d+|\+\d{14,}", found)


CHECKS: dict[str, Callable[[str], bool]] = {
    "card number": _is_card,
    "IBAN": _is_iban,
    "OpenAI key": _is_drawn,
    "telephone number": _is_dialled,
}
