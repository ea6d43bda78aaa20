"""A judge behind a real local HTTP server."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from trainables.errors import InputError
from trainables.metrics import Answer
from trainables.metrics.judge import Judge, filled, number_in

KEY = "SWEEPS_TEST_JUDGE_KEY"


def completion(content, usage=True):
    found = {"choices": [{"message": {"role": "assistant", "content": content}}]}
    return found | ({"usage": {"prompt_tokens": 100, "completion_tokens": 10}} if usage else {})


class Server(ThreadingHTTPServer):
    """Answers with what `replies` has for the text of the answer that is judged, one after another; the last for ever."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.seen, self.headers, self.times = {}, [], [], []
        self.lock = threading.Lock()

    def next_reply(self, body, headers):
        with self.lock:
            self.seen.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            replies = self.replies.get(body["messages"][0]["content"], ["3"])
            return replies.pop(0) if len(replies) > 1 else replies[0]

    def handle_error(self, request, client_address):
        """A client that has gone is none of ours."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        reply = self.server.next_reply(body, dict(self.headers))
        status, headers = 200, {}
        match reply:
            case "drop":
                self.connection.close()
                return
            case "half":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices')
                self.close_connection = True
                return
            case int():
                status, headers = reply, {"Retry-After": "0"}
                content = json.dumps({"error": {"message": f"said {reply}"}})
            case bytes():
                content = reply.decode()
            case dict():
                content = json.dumps(reply)
            case _:
                content = json.dumps(completion(reply))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def judge(server, tmp_path):
    def make(**options):
        url = f"http://127.0.0.1:{server.server_port}/v1"
        given = {
            "url": url,
            "model": "m",
            "prompt": "{answer}",
            "cache": tmp_path / "cache",
            "backoff": 0.001,
            "parallel": 1,
        }
        return Judge(**{**given, **options})

    return make


def score(judge, *texts):
    return judge.score([Answer("p", text, "r") for text in texts]).tolist()


def test_what_is_asked_and_what_it_costs(server, judge, monkeypatch):
    monkeypatch.setenv(KEY, "sk-secret")
    server.replies = {"good": ["It is right.\n\nScore: 5/5"], "bad": ["1"]}
    own = judge(key_env=KEY, price_per_million=[2.0, 10.0], seed=7, max_tokens=50)
    assert score(own, "good", "bad", "good") == [5, 1, 5]
    assert server.seen[0] == {
        "model": "m",
        "temperature": 0,
        "seed": 7,
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "good"}],
    }
    assert len(server.seen) == 2, "the same is asked once"
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    usage = own.usage
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (2, 200, 20)
    assert usage.cost == pytest.approx((200 * 2 + 20 * 10) / 1e6)
    assert (
        own.summary()
        == "judge: 2 requests, 0 from the cache, 200 tokens read and 20 written, cost 0.0006"
    )


def test_what_was_answered_is_never_asked_again(server, judge, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "sk-secret")
    server.replies = {"a": ["4"], "b": ["no idea"]}
    assert score(judge(key_env=KEY), "a", "b") == [4, pytest.approx(np.nan, nan_ok=True)]
    again = judge(key_env=KEY, price_per_million=(1, 1))
    assert score(again, "a", "b")[0] == 4
    assert len(server.seen) == 2
    assert (again.usage.requests, again.usage.cached, again.usage.unparsed, again.usage.cost) == (
        0,
        2,
        1,
        None,
    )
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 2 and not any("sk-secret" in file.read_text() for file in files)
    for other in ({"seed": 1}, {"model": "n"}, {"max_tokens": 9}, {"prompt": "?{answer}"}):
        score(judge(**other), "a")
    assert len(server.seen) == 6, "another request is another"


def test_a_broken_cache_is_asked_anew(server, judge, tmp_path):
    score(judge(), "a")
    (file,) = (tmp_path / "cache").iterdir()
    for broken in ("", "{", "[]", '{"content": 3}', "[" * 100_000):
        file.write_text(broken)
        assert score(judge(), "a") == [3]
    file.write_bytes(b"\xff")
    assert score(judge(), "a") == [3]
    assert len(server.seen) == 7


@pytest.mark.parametrize(
    "trouble",
    [
        429,
        500,
        503,
        "drop",
        "half",
        b"<html>",
        {"choices": []},
        {"choices": [{"message": {"content": None}}]},
    ],
)
def test_a_service_that_fails_for_the_moment_is_asked_again(server, judge, trouble):
    server.replies = {"a": [trouble, trouble, "4"]}
    own = judge()
    assert score(own, "a", "b") == [4, 3]
    assert len(server.seen) == 4 and own.usage.requests == 2 and own.usage.failed == 0


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (429, "HTTP 429 said 429"),
        (500, "HTTP 500 said 500"),
        ("drop", "RemoteProtocolError"),
        ("half", "RemoteProtocolError"),
        (b"garbage\xc3\xa9" * 50, "its answer is no chat completion: 'garbageé"),
        (b"[" * 100_000, "its answer is no chat completion"),
        ({"choices": [{"message": {"content": 5}}]}, "its answer is no chat completion"),
    ],
)
def test_a_service_that_goes_on_failing_costs_its_numbers_and_one_line(
    server, judge, caplog, trouble, said
):
    server.replies = {"a": [trouble]}
    own = judge(tries=3)
    found = score(own, "x", "a", "b")
    assert np.isnan(found[1]) and (found[0], found[2]) == (3, 3)
    assert server.seen.count(server.seen[1]) == 3
    assert own.usage.failed == 1 and said in own.usage.problem
    (line,) = caplog.messages
    assert line.startswith("judge: 1 of 3 answers were not judged: ") and said in line
    assert f"; 1 requests failed: {own.usage.problem}" in own.summary()


def test_a_request_that_is_refused_is_not_tried_again_nor_are_the_others(server, judge):
    server.replies = {"a": [401]}
    own = judge()
    found = score(own, "x", "a", "b", "c")
    assert found[0] == 3 and np.isnan(found[1:]).all()
    assert len(server.seen) == 2 and own.usage.failed == 3
    assert own.usage.problem == "HTTP 401 said 401"


def test_after_three_that_failed_in_a_row_nothing_more_is_asked(server, judge):
    server.replies = {name: [500] for name in "abcdef"}
    own = judge(tries=2)
    assert np.isnan(score(own, *"abcdef")).all()
    assert len(server.seen) == 6 and own.usage.failed == 6


def test_no_service_at_all(judge, caplog):
    own = judge(url="http://127.0.0.1:9/v1", tries=2)
    assert np.isnan(score(own, "a", "b")).all()
    assert (
        own.usage.failed == 2 and "ConnectError" in own.usage.problem and len(caplog.messages) == 1
    )


def test_requests_keep_to_their_rate(server, judge):
    own = judge(requests_per_minute=1200, parallel=4)
    score(own, *"abcdef")
    gaps = np.diff(sorted(server.times))
    assert gaps.sum() >= 5 * 0.05 - 0.02, "the starts lie 50 ms apart, however many run at once"


def test_several_requests_run_at_once(server, judge):
    """Each reply waits until all have been asked."""
    barrier = threading.Barrier(4)
    reply = server.next_reply
    server.next_reply = lambda *given: (barrier.wait(30), reply(*given))[1]
    assert score(judge(parallel=4), *"abcd") == [3, 3, 3, 3]


def test_two_that_judge_the_same_share_a_cache(server, judge):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda own: score(own, *"abcdef"), [judge(), judge()]))
    assert found == [[3] * 6] * 2


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("4", 4),
        ("**4**", 4),
        ("Score: 3.5", 3.5),
        ("First 2, but then 4.", 4),
        ("4/5", 4),
        ("I give 4 out of 5.", 4),
        ("On a scale from 1 to 5, this is a 2", 2),
        ("2 (on the scale 1-5)", 2),
        ("3, though 100 words long", 3),
        ("4. It has 17 errors", 4),
        ("Score: 5\n", 5),
        ("0", None),
        ("6", None),
        ("-3", None),
        ("GPT4 or 3rd", None),
        ("none", None),
        ("", None),
        ("nan inf", None),
    ],
)
def test_the_last_number_within_the_scale_is_the_answer(reply, wanted):
    assert number_in(reply, (1, 5)) == pytest.approx(
        np.nan if wanted is None else wanted, nan_ok=True
    )


def test_scales_below_zero_and_in_fractions():
    assert number_in("-2", (-3, 3)) == -2
    assert number_in("0.25", (0, 1)) == 0.25
    assert number_in("0.7/1", (0, 1)) == 0.7
    assert number_in("10/10", (0, 10)) == 10


def test_what_fields_hold_is_no_template():
    answer = Answer("{answer}", "{reference}", "{prompt} {x}")
    template = 'P {prompt} A {answer} R {reference} {low}-{high} {"score": 1} {}'
    assert (
        filled(template, answer, (1, 5))
        == 'P {answer} A {reference} R {prompt} {x} 1-5 {"score": 1} {}'
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"url": "localhost:8000"},
            "judge.url: must be like http://localhost:8000/v1, got 'localhost:8000'",
        ),
        ({"url": "http://[::1"}, "judge.url: must be like"),
        ({"url": "http://x:port/v1"}, "judge.url: must be like"),
        (
            {"url": "http://user:secret@x/v1"},
            "judge.url: must hold no user and password: name the variable of the key by `key_env`",
        ),
        (
            {"prompt": "{reference}"},
            "judge.prompt: must hold {answer}, where the answer is to stand",
        ),
        (
            {"prompt": "{answer} {referense}"},
            "judge.prompt: must hold none but {prompt}, {answer}, {reference}, {low} and {high}, got {referense}. Did you mean 'reference'?",
        ),
        ({"scale": (5, 1)}, "judge.scale: must be like [1, 5], got [5, 1]"),
        ({"scale": (0, float("inf"))}, "judge.scale: must be like [1, 5], got [0, inf]"),
        ({"requests_per_minute": 0}, "judge.requests_per_minute: must be above 0, got 0"),
        ({"timeout": float("nan")}, "judge.timeout: must be above 0, got nan"),
        ({"max_tokens": 0}, "judge.max_tokens: must be above 0, got 0"),
        ({"tries": 0}, "judge.tries: must be at least 1, got 0"),
        ({"parallel": 0}, "judge.parallel: must be at least 1, got 0"),
        ({"backoff": -1}, "judge.backoff: must be 0 or more, got -1"),
        ({"price_per_million": (1, -1)}, "judge.price_per_million: must be 0 or more, got [1, -1]"),
        ({"key_env": KEY}, f"judge.key_env: the environment variable {KEY} is not set"),
    ],
)
def test_options_that_cannot_be(judge, options, said):
    with pytest.raises(InputError) as error:
        judge(**options)
    assert str(error.value).startswith(said)


def test_a_cache_that_cannot_be_made_is_refused(judge, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="judge.cache: cannot make"):
        judge(cache=tmp_path / "file" / "cache")


def test_the_cache_is_among_the_users_where_none_is_named(judge, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    score(judge(cache=None), "a")
    assert len(list((tmp_path / "xdg" / "finetune-sweeps" / "judge").iterdir())) == 1
