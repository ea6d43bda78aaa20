"""Tokens, hosts, requests and tables: what is taken, and what is refused in one line."""

import json
from types import SimpleNamespace

import pytest
from pyarrow import parquet

from sweeps.use.serving.address import Address, is_loopback, read_token
from sweeps.use.serving.models import Base
from sweeps.use.serving.requests import ChatRequest, Refused, parsed
from sweeps.use.serving.vllm import is_taken
from sweeps.use.tables import check_table, write_table
from trainables.errors import InputError


def test_a_token_is_a_variable_or_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("SERVING_TOKEN", "0123456789abcdef\n")
    (tmp_path / "token").write_text("fedcba9876543210\n")
    assert read_token("SERVING_TOKEN") == "0123456789abcdef"
    assert read_token(str(tmp_path / "token")) == "fedcba9876543210"
    assert read_token(None) is None
    (tmp_path / "short").write_text("abc")
    for given, words in (
        ("NOWHERE", "neither a variable"),
        (str(tmp_path / "short"), "at least 16"),
    ):
        with pytest.raises(InputError, match=words):
            read_token(given)


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_beyond_loopback_a_token_is_required(host, inside):
    assert is_loopback(host) == inside
    assert Address(host=host, port=1, token="x").url.startswith("http://")
    if not inside:
        with pytest.raises(InputError, match="--token: .* is reached from other machines"):
            Address(host=host, port=1, token=None)


def test_vllm_is_taken_only_where_it_can_be():
    models = [SimpleNamespace()]
    assert not is_taken("transformers", models) and not is_taken("auto", models)
    with pytest.raises(InputError, match="--engine: vllm cannot be taken: there is no GPU"):
        is_taken("vllm", models)


def test_requests_are_strict():
    chat = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    assert parsed(ChatRequest, {**chat, "temperature": 1, "stop": "x"}).stops == ("x",)
    assert parsed(ChatRequest, {**chat, "max_completion_tokens": 5}).tokens == 5
    for more, words in (
        ({"max_tokens": 0}, "max_tokens: "),
        ({"max_tokens": "5"}, "max_tokens: "),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"logit_bias": {"5": 1}}, "logit_bias: not supported"),
    ):
        with pytest.raises(Refused, match=words) as refused:
            parsed(ChatRequest, chat | more)
        assert refused.value.status == 400
        assert refused.value.body()["error"]["type"] == "invalid_request_error"


def test_adapters_that_cannot_share_a_batch_are_written_one_after_the_other(monkeypatch):
    calls = []
    model = SimpleNamespace(set_adapter=lambda name: calls.append(name))
    monkeypatch.setattr(
        "sweeps.use.serving.models.generate",
        lambda model, replies, pad, **how: calls.append([r.id for r in replies]),
    )
    replies = [SimpleNamespace(id=i, adapter=f"adapter{i % 2}") for i in range(4)]
    Base(model=model, pad_token_id=0, adapters=["adapter0", "adapter1"], mixes=False).write(replies)
    assert calls == ["adapter0", [0, 2], "adapter1", [1, 3]]


def test_tables_of_mixed_values(tmp_path):
    rows = [{"a": 1, "b": "x", "c": [1]}, {"a": 2.5, "b": None, "c": {"k": "v"}}, {"a": None}]
    written = {}
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        write_table(str(tmp_path / name), ["a", "b", "c"], lambda: iter(rows))
        written[name] = tmp_path / name
    assert written["t.csv"].read_text().splitlines() == [
        "a,b,c",
        "1,x,[1]",
        '2.5,,"{""k"": ""v""}"',
        ",,",
    ]
    assert [json.loads(line) for line in written["t.jsonl"].read_text().splitlines()] == rows
    found = parquet.read_table(written["t.parquet"]).to_pylist()
    assert [row["a"] for row in found] == [1.0, 2.5, None]
    assert [json.loads(row["c"]) for row in found] == [[1], {"k": "v"}, None]
    assert sorted(tmp_path.iterdir()) == sorted(written.values()), "no half of a file stays"
    with pytest.raises(InputError, match="is there already"):
        check_table(str(written["t.csv"]), "--out")
    with pytest.raises(InputError, match="unknown kind of file '.xls'"):
        check_table(str(tmp_path / "t.xls"), "--out")
    with pytest.raises(InputError, match="there is no folder"):
        check_table(str(tmp_path / "no" / "t.csv"), "--out")
