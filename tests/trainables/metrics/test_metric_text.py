"""Metrics of wording, against the packages and reference code that define them."""

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from torchmetrics.functional.text import squad

from trainables.metrics import Answer
from trainables.metrics.text import Bleu, Chrf, ExactMatch, RougeL, TokenF1

WORDS = st.lists(
    st.sampled_from(
        ["the", "The", "a", "cat", "cats", "sat.", "on", "it's", "12", "ärger", "  ", "\n", "猫"]
    )
).map(" ".join)
PAIRS = st.tuples(WORDS, WORDS)


def score(metric, *pairs):
    found = metric.score([Answer("", text, reference) for text, reference in pairs])
    assert found.dtype == np.float64 and found.shape == (len(pairs),)
    return found.tolist()


def test_exact_match_looks_through_white_space_and_nothing_else():
    metric = ExactMatch()
    assert score(metric, (" a\n b ", "a b"), ("A b", "a b"), ("a b.", "a b"), ("", " ")) == [
        1,
        0,
        0,
        1,
    ]
    assert score(ExactMatch(normalisation="squad"), ("The Cat!", "cat"), ("cats", "cat")) == [1, 0]


@settings(deadline=None)
@given(PAIRS)
def test_exact_match_and_f1_are_those_of_squad(pair):
    text, reference = pair
    answers = {"answers": {"answer_start": [0], "text": [reference]}, "id": "0"}
    wanted = squad([{"prediction_text": text, "id": "0"}], [answers])
    assert score(ExactMatch(normalisation="squad"), pair) == [float(wanted["exact_match"]) / 100]
    # where both have no words, SQuAD 2.0 says 1 and the code of 1.1 says 0
    f1 = 1.0 if wanted["exact_match"] else float(wanted["f1"]) / 100
    assert score(TokenF1(), pair) == [pytest.approx(f1, abs=1e-6)]


@settings(deadline=None)
@given(PAIRS, st.booleans())
def test_rouge_l_is_that_of_rouge_score(pair, stemmer):
    (found,) = score(RougeL(stemmer=stemmer), pair)
    wanted = RougeScorer(["rougeL"], use_stemmer=stemmer).score(pair[1], pair[0])["rougeL"].fmeasure
    assert found == wanted or (np.isnan(found) and wanted == 0)


def test_rouge_l_is_not_told_of_a_reference_without_a_word_that_it_sees():
    found = score(RougeL(), ("猫", "猫"), ("", "cat"), ("cat", ""))
    assert np.isnan(found[0]) and found[1] == 0 and np.isnan(found[2])


@settings(deadline=None)
@given(PAIRS, st.sampled_from([0, 1, 2]))
def test_chrf_is_that_of_sacrebleu(pair, word_order):
    wanted = sacrebleu.sentence_chrf(pair[0], [pair[1]], word_order=word_order).score / 100
    assert score(Chrf(word_order=word_order), pair) == [wanted]


@settings(deadline=None)
@given(PAIRS, st.booleans())
def test_bleu_is_that_of_sacrebleu(pair, lowercase):
    wanted = sacrebleu.sentence_bleu(pair[0], [pair[1]], lowercase=lowercase).score / 100
    assert score(Bleu(lowercase=lowercase), pair) == [wanted]
    assert score(Bleu(), ("the cat sat on it", "the cat sat on it")) == [pytest.approx(1)]


@pytest.mark.parametrize("metric", [ExactMatch(), TokenF1(), RougeL(), Chrf(), Bleu()])
@given(text=WORDS)
@settings(deadline=None)
def test_a_reference_is_the_best_answer(metric, text):
    (found,) = score(metric, (text, text))
    assert np.isnan(found) or found == pytest.approx(1) or (found == 0 and not text.strip())
    assert score(metric) == []
