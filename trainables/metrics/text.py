"""Metrics of wording: the answer's text against the reference's. All from 0 to 1; higher is better.

Sources: exact match and token F1: SQuAD (Rajpurkar et al. 2016, 2018), by its evaluation script;
ROUGE-L: Lin 2004, by `rouge-score`; chrF: Popović 2015, 2017, and BLEU: Papineni et al. 2002, by
`sacrebleu`, of each sentence.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainables.metrics import Answer
from trainables.metrics.rows import of_each

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def in_words(text: str) -> str:
    """Runs of white space as one space, none at the ends."""
    return " ".join(text.split())


def as_squad(text: str) -> str:
    """Lower case, without English articles and ASCII punctuation."""
    return in_words(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)))


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """1 where the answer is the reference, but for white space; with `squad`, but for case,
    punctuation and articles too.
    """

    name: str = "exact_match"
    normalisation: Literal["white_space", "squad"] = "white_space"
    lower_is_better = False

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        normal = as_squad if self.normalisation == "squad" else in_words
        return of_each(answers, lambda each: normal(each.text) == normal(each.reference))


@dataclass(frozen=True, kw_only=True)
class TokenF1:
    """F1 of the words that answer and reference share, normalised as SQuAD does."""

    name: str = "token_f1"
    lower_is_better = False

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        return of_each(answers, lambda each: token_f1(each.text, each.reference))


def token_f1(text: str, reference: str) -> float:
    """Where either has no words: 1 if both have none, else 0."""
    found, wanted = as_squad(text).split(), as_squad(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


@dataclass(frozen=True, kw_only=True)
class RougeL:
    """F-measure of the longest common subsequence of words; NaN where the reference has none of the
    letters a to z and no digits, which are all that `rouge-score` sees.
    """

    name: str = "rouge_l"
    stemmer: bool = False
    lower_is_better = False

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer

        tokenizer = DefaultTokenizer(self.stemmer)
        scorer = RougeScorer(["rougeL"], tokenizer=tokenizer)

        def value(each: Answer) -> float:
            if not tokenizer.tokenize(each.reference):
                return math.nan
            return scorer.score(each.reference, each.text)["rougeL"].fmeasure

        return of_each(answers, value)


@dataclass(frozen=True, kw_only=True)
class Chrf:
    """F-score of character n-grams; chrF++ with `word_order` 2."""

    name: str = "chrf"
    word_order: Literal[0, 1, 2] = 0
    lower_is_better = False

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        from sacrebleu.metrics.chrf import CHRF

        scorer = CHRF(word_order=self.word_order)
        return of_each(
            answers, lambda each: scorer.sentence_score(each.text, [each.reference]).score / 100
        )


@dataclass(frozen=True, kw_only=True)
class Bleu:
    """BLEU of each answer by itself, over the orders of n-grams that it has, smoothed exponentially
    (Chen & Cherry 2014).
    """

    name: str = "bleu"
    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    lowercase: bool = False
    lower_is_better = False

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        from sacrebleu.metrics.bleu import BLEU

        scorer = BLEU(tokenize=self.tokenize, lowercase=self.lowercase, effective_order=True)
        return of_each(
            answers, lambda each: scorer.sentence_score(each.text, [each.reference]).score / 100
        )
