"""Splits that are unlike: in their language and in the length of their rows."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from trainables.data.doctor.rows import SAMPLE, Prepared
from trainables.data.findings import Finding

LANGUAGE_SAMPLE, SHORTEST = 1000, 20  # rows, and characters in which a language can be told
FAR, UNLIKELY = 0.1, 1e-4  # distance of two distributions, and how probable it is by chance


def shifts(prepared: Prepared) -> Iterator[Finding]:
    lengths = {name: _lengths(prepared, name) for name in prepared.splits}
    languages = {name: _languages(prepared, name) for name in prepared.splits}
    for name in list(prepared.splits)[1:]:
        yield from _of_length(name, lengths["train"], lengths[name])
        yield from _of_language(name, languages["train"], languages[name])


def _lengths(prepared: Prepared, split: str) -> np.ndarray:
    return np.array(
        [len(text.asked) + len(text.answered) for text in prepared.texts(split, SAMPLE)]
    )


def _of_length(name: str, train: np.ndarray, other: np.ndarray) -> Iterator[Finding]:
    """By the Kolmogorov-Smirnov distance of the lengths in characters."""
    from scipy.stats import ks_2samp

    if len(other) < 2:
        return
    distance, probability = map(float, ks_2samp(train, other))
    if distance > FAR and probability < UNLIKELY:
        yield Finding(
            kind="length_shift",
            severity="warning",
            split=name,
            rows=len(other),
            message=f"{name}: rows are of other lengths than in train (median"
            f" {int(np.median(other))} characters, train {int(np.median(train))};"
            f" Kolmogorov-Smirnov distance {distance:.2f})",
        )


def _languages(prepared: Prepared, split: str) -> Counter[str]:
    import py3langid

    texts = (text.asked for text in prepared.texts(split, LANGUAGE_SAMPLE))
    return Counter(py3langid.classify(text[:500])[0] for text in texts if len(text) >= SHORTEST)


def _of_language(name: str, train: Counter[str], other: Counter[str]) -> Iterator[Finding]:
    """By the total variation distance of the shares of languages."""
    from scipy.stats import chi2_contingency

    if min(train.total(), other.total()) < 30:
        return
    every = sorted(train | other)
    table = np.array([[found[each] for each in every] for found in (train, other)])
    shares = table / table.sum(axis=1, keepdims=True)
    apart = np.abs(shares[0] - shares[1])
    if len(every) < 2 or apart.sum() / 2 <= FAR:
        return
    if float(chi2_contingency(table)[1]) < UNLIKELY:  # pyright: ignore[reportArgumentType]
        most = int(apart.argmax())
        yield Finding(
            kind="language_shift",
            severity="warning",
            split=name,
            rows=other.total(),
            message=f"{name}: other languages than in train: {every[most]} {shares[1, most]:.0%} of"
            f" the rows, in train {shares[0, most]:.0%} (distance {apart.sum() / 2:.2f})",
        )
