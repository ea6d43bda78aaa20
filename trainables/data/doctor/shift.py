"""Splits that are unlike: in their language and in the length of their rows."""

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
        yield from _of_length(prepared, name, lengths["train"], lengths[name])
        yield from _of_language(prepared, name, languages["train"], languages[name])


def _mend(prepared: Prepared, split: str) -> str:
    is_drawn = prepared.data.share(split) is not None
    return "" if is_drawn else f"data.{split}: a share of train, such as 0.1"


def _lengths(prepared: Prepared, split: str) -> np.ndarray:
    """Rows and their characters [n, 2]."""
    texts = prepared.texts(split, SAMPLE)
    return np.array([(text.row, len(text.asked) + len(text.answered)) for text in texts])


def _of_length(
    prepared: Prepared, name: str, train: np.ndarray, other: np.ndarray
) -> Iterator[Finding]:
    """By the Kolmogorov-Smirnov distance of the lengths in characters."""
    from scipy.stats import ks_2samp

    if len(other) < 2:
        return
    rows, lengths = other.T
    distance, probability = map(float, ks_2samp(train[:, 1], lengths))
    if distance > FAR and probability < UNLIKELY:
        middle, usual = int(np.median(lengths)), int(np.median(train[:, 1]))
        most = np.argsort(lengths if middle < usual else -lengths, kind="stable")[:3]
        places = prepared.places(rows[most])
        yield Finding(
            kind="length_shift",
            severity="warning",
            split=name,
            rows=len(other),
            examples=tuple(
                f"{place}: {length} characters"
                for place, length in zip(places, lengths[most], strict=True)
            ),
            message=f"{name}: rows are of other lengths than in train (median {middle} characters,"
            f" train {usual}; Kolmogorov-Smirnov distance {distance:.2f})",
            setting=_mend(prepared, name),
        )


def _languages(prepared: Prepared, split: str) -> dict[str, list[str]]:
    """Where rows of each language stand."""
    import py3langid

    found: dict[str, list[str]] = {}
    for text in prepared.texts(split, LANGUAGE_SAMPLE):
        if len(text.asked) >= SHORTEST:
            found.setdefault(py3langid.classify(text.asked[:500])[0], []).append(text.place)
    return found


def _of_language(
    prepared: Prepared, name: str, train: dict[str, list[str]], other: dict[str, list[str]]
) -> Iterator[Finding]:
    """By the total variation distance of the shares of languages."""
    from scipy.stats import chi2_contingency

    every = sorted({*train, *other})
    table = np.array([[len(found.get(each, ())) for each in every] for found in (train, other)])
    if len(every) < 2 or table.sum(axis=1).min() < 30:
        return
    shares = table / table.sum(axis=1, keepdims=True)
    apart = shares[1] - shares[0]
    if np.abs(apart).sum() / 2 <= FAR:
        return
    if float(chi2_contingency(table)[1]) < UNLIKELY:  # pyright: ignore[reportArgumentType]
        most = int(apart.argmax())
        yield Finding(
            kind="language_shift",
            severity="warning",
            split=name,
            rows=int(table[1].sum()),
            examples=tuple(other[every[most]][:3]),
            message=f"{name}: other languages than in train: {every[most]} {shares[1, most]:.0%} of"
            f" the rows, in train {shares[0, most]:.0%} (distance {np.abs(apart).sum() / 2:.2f})",
            setting=_mend(prepared, name),
        )
