"""Text that must not be trained on: what a measure is taken on stands in train, told by runs of
words that two texts share (Brown et al. 2020, appendix C).
"""

import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from trainables.data.doctor.rows import Prepared
from trainables.data.findings import Finding

WORDS = 13


def overlap(prepared: Prepared, texts: Iterable[str], what: str) -> Iterator[Finding]:
    """Texts that share a run of 13 words with a row of train. what: whose texts they are."""
    texts = list(texts)
    wanted: dict[int, set[int]] = {}
    for number, text in enumerate(texts):
        for run in _runs(text):
            wanted.setdefault(run, set()).add(number)
    found: dict[int, str] = {}
    for row in prepared.texts("train"):
        for run in _runs(f"{row.asked} {row.answered}"):
            for number in wanted.get(run, ()):
                found.setdefault(number, row.place)
    if found:
        places = list(dict.fromkeys(found.values()))
        yield Finding(
            kind="contamination",
            severity="warning",
            split="train",
            rows=len(found),
            examples=tuple(places[:3]),
            message=f"train: {len(found)} of {len(texts)} text(s) of {what} share a run of {WORDS}"
            f" words with it: what is measured on {what} is in part what was learnt by heart",
        )


def _runs(text: str) -> Iterator[int]:
    words = re.findall(r"\w+", text.casefold())
    for i in range(len(words) - WORDS + 1):
        run = " ".join(words[i : i + WORDS]).encode()
        yield int.from_bytes(blake2b(run, digest_size=8).digest(), "little")
