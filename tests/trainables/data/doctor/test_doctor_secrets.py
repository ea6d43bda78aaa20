"""Secrets and personal data: each pattern is found, what only looks like one is not, and none is shown."""

import numpy as np
import pytest

from tests.trainables.data.doctor.examined import prepared, sentences, write
from trainables.data.doctor.secrets import PATTERNS, secrets

# none of these opens anything
REAL = {
    "private key": "-----BEGIN RSA PRIVATE KEY-----",
    "AWS access key": "AKIAIOSFODNN7EXAMPLE",
    "GitHub token": "ghp_" + "aB3" * 12,
    "Hugging Face token": "hf_" + "aBc" * 11,
    "OpenAI key": "sk-proj-" + "aB3_" * 10,
    "Slack token": "xoxb-123456789012-abcdef",
    "Google API key": "AIza" + "aB3-x" * 7,
    "JSON web token": "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4",
    "password in a URL": "postgres://root:hunter2@db.local/x",
    "e-mail address": "someone@mail.example.org",
    "card number": "4111 1111 1111 1111",
    "IBAN": "DE89 3704 0044 0532 0130 00",
    "US social security number": "078-05-1120",
    "telephone number": "+49 (30) 1234-5678",
}


def found_in(tmp_path, planted: list[str], count: int = 300):
    """Each in a row of its own, from the sixth on."""
    texts = sentences(count, 4)
    texts[5 : 5 + len(planted)] = [
        f"{text} {each}" for text, each in zip(texts[5:], planted, strict=False)
    ]
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]
    return list(secrets(prepared(tmp_path, train=write(tmp_path / "a.csv", rows), validation=0.1)))


def told(found) -> list[str]:
    return [each.message.split(" looks like a")[1].split(":")[0].removeprefix("n ").strip() for each in found]  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_each_is_told_with_its_place_and_never_shown(tmp_path, name):
    (found,) = found_in(tmp_path, [REAL[name]])
    assert told([found]) == [name] and found.rows == 1
    assert found.examples == ("a.csv row 6",) and found.line.endswith(" (a.csv row 6)")
    assert REAL[name] not in str(vars(found)) and REAL[name][:8] not in str(vars(found))
    is_mild = name in ("e-mail address", "telephone number")
    assert found.severity == ("note" if is_mild else "warning")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((text, "card number") for text in (
            "4111111111111111", "5555-5555-5555-4444", "378282246310005", "3782 822463 10005", "6011111111111117",
            "30569309025904", "3530 1113 3330 0000", "2223003122003222", "4111111111111111,12/29", "card:4111111111111111.",
            "4111 1111 1111 1111 12/29",
        )),
        *((text, "IBAN") for text in ("DE89370400440532013000 AND", "NO9386011117947", "GB82 WEST 1234 5698 7654 32")),
        *((text, "telephone number") for text in ("+14155552671", "+44 20 7946 0958", "+1.415.555.2671")),
    ],
)  # fmt: skip
def test_other_ways_to_write_one_are_told_too(tmp_path, text, name):
    assert told(found_in(tmp_path, [text])) == [name]


@pytest.mark.parametrize(
    "text",
    [
        "1234567812345670",  # right check digit, no issuer
        "4111 1111 1111 1112",  # the other way round
        "411111111111111",  # too short
        "x4111111111111111", "0.4111111111111111", "4111111111111111.5", "94111111111111111111",
        "1234 4111 1111 1111 1111", "4111 1111 1111 1111 2345", "4111 1111-1111 1111",
        "1700000000000", "2026-03-01T12:11:02.123456Z", "20260301121102", "1740823862123456789",
        "ISBN 978-123-45-6789-1", "666-12-3456", "123-45-67890", "a-123-45-6789",
        "12:00 +0100 2026-03-01", "+12345.678901", "472547338+960397912423686", "x = a +1", "@@ -100,30 +100,40 @@",
        "DE88 3704 0044 0532 0130 00", "AB12 CDEF 3456 GHIJ 7890", "DE89 3704 0044 0532",
        "sk-vianocne-trhy-v-bratislave-a-okoli-program", "sk-toggleable__label-arrow__something-more-of-it",
        "git clone https://example.org/a:b", "@pytest.mark.slow", "left@right",
    ],
)  # fmt: skip
def test_what_only_looks_like_one_is_left_in_peace(tmp_path, text):
    assert not found_in(tmp_path, [text])


def test_numbers_of_orders_whose_check_digits_are_right_by_chance_are_no_cards(tmp_path):
    random = np.random.default_rng(0)
    orders = ["4" + "".join(map(str, random.integers(0, 10, 15))) for _ in range(200)]
    assert not found_in(tmp_path, orders)
    cards = ["4111111111111111"] * 60
    (found,) = found_in(tmp_path, [*orders, *cards])
    assert found.rows >= 60


def test_several_splits_are_told_together(tmp_path):
    rows = [{"text": f"{text} 4111111111111111", "label": "ab"[i % 2]} for i, text in enumerate(sentences(60, 1))]  # fmt: skip
    data = {
        "train": write(tmp_path / "a.csv", rows[:40]),
        "validation": write(tmp_path / "b.csv", rows[40:]),
    }
    (found,) = secrets(prepared(tmp_path, **data))
    assert found.rows == 60 and found.split == ""
    assert found.message.startswith("60 row(s) (40 of train, 20 of validation) hold what")
