"""Which tokens stand for which characters: by numbers of bytes as by what the tokenizer says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from trainables.tasks.instruction import positions
from trainables.tasks.instruction.layout import Span
from trainables.tasks.instruction.positions import Encoder
from trainables.tasks.instruction.rendering import Rendered

WORDS = "the cat sat on the mat\n\nlà-bas, 日本語 😀 over   there; don't  <end> stop "


def tokenizer(normalizer=None, level=None, byte_level=True):
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = level or pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel() if byte_level else decoders.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([WORDS] * 9, trainer)
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<end>", "[é]")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


PLAIN = tokenizer()


@st.composite
def rows(draw):
    """A text and one span of it, which is not empty."""
    piece = st.sampled_from(
        [*WORDS, " ", "\n", "<end>", "[é]", "the cat", "é", "e\u0301", "ﬁ", "İ", "ß"]
    )
    text = "".join(draw(st.lists(piece, min_size=1, max_size=30)))
    start = draw(st.integers(0, len(text) - 1))
    return Rendered(text=text, spans=[Span(start, draw(st.integers(start + 1, len(text))), 1.0)])


@settings(max_examples=150, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=5))
def test_both_ways_find_the_same_tokens(found):
    by_bytes, by_offsets = Encoder(PLAIN), Encoder(PLAIN)
    by_offsets._lengths = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positions, "ROWS_COMPARED", {True: 0, False: 0})
        patch.setattr(positions, "MOST_REFUSED", 10**6)
        fast = list(by_bytes.placed(found))
    for a, b in zip(fast, by_offsets.placed(found), strict=True):
        assert a.ids.tolist() == b.ids.tolist() and a.held == b.held


def placed(encoder, text, count, *span):
    row = Rendered(text=text, spans=[Span(*span, 1.0)])
    return [each.held[0] for each in encoder.placed([row] * count)]


@pytest.mark.parametrize(
    "own",
    [
        tokenizer(normalizer=normalizers.Prepend("x")),
        tokenizer(level=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        tokenizer(normalizer=normalizers.NFKC()),
    ],
)
def test_a_tokenizer_that_alters_the_text_says_itself_where_its_tokens_are(own):
    encoder, text = Encoder(own), "ﬁne ﬁsh<end>"
    assert encoder._lengths is not None
    found = placed(encoder, text, 30, 4, 12)
    assert set(found) == {found[0]} and (found[0].start, found[0].stop) == (4, 12)
    assert encoder._lengths is None  # and is not asked in vain for each row


def test_a_tokenizer_that_is_not_of_bytes_says_where_its_tokens_are():
    own = tokenizer(level=pre_tokenizers.Metaspace(), byte_level=False)
    encoder = Encoder(own)
    assert encoder._lengths is None
    assert placed(encoder, "the cat<end>", 1, 7, 12)[0].stop == 12


def test_lengths_that_are_wrong_are_found_out():
    encoder = Encoder(PLAIN)
    encoder._lengths = encoder._lengths.copy()
    a, b = PLAIN.convert_tokens_to_ids(["a", "b"])
    encoder._lengths[[a, b]] = 2, 0  # of both together as before
    (held,) = placed(encoder, "ab<end>", 1, 2, 7)
    assert (held.first, held.end) == (2, 3) and encoder._lengths is None
