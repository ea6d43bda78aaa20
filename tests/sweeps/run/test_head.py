"""A cluster whose head does not answer: told once, and given up before Ray ends the process."""

import socket
import subprocess
import sys

import pytest

import cluster.connect
from sweeps.run.head import RAY_WAITS, HeadWatch


class Head:
    """What a watch says and does as seconds pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.up = 0.0, True
        self.said, self.given_up = [], []
        monkeypatch.setattr(cluster.connect, "answers", lambda address: self.up)
        self.watch = HeadWatch("head:6379", self.said.append, self.given_up.append, self.clock)

    def clock(self) -> float:
        return self.now

    def pass_seconds(self, seconds: int) -> None:
        for _ in range(0, seconds, 2):
            self.now += 2
            self.watch.look()


@pytest.fixture
def head(monkeypatch):
    monkeypatch.delenv(RAY_WAITS, raising=False)
    return Head(monkeypatch)


def test_it_is_told_within_15_s_and_given_up_before_ray_does(head):
    head.pass_seconds(100)
    assert head.said == []
    head.up = False
    head.pass_seconds(14)
    assert head.said == [
        "The cluster's head does not answer at head:6379; where it does not within 40 s, the sweep"
        " is broken off"
    ]
    head.pass_seconds(20)
    assert head.given_up == []
    head.pass_seconds(20)
    assert [str(lost) for lost in head.given_up] == ["the cluster's head has not answered for 40 s"]
    head.pass_seconds(20)
    assert len(head.said) == len(head.given_up) == 1


def test_one_that_comes_back_is_told_and_nothing_ends(head):
    head.up = False
    head.pass_seconds(30)
    head.up = True
    head.pass_seconds(2)
    assert head.said[1:] == ["The cluster's head answers again at head:6379"]
    head.up = False
    head.pass_seconds(30)
    assert len(head.said) == 3 and head.given_up == []


def test_a_ray_that_waits_longer_is_waited_for(monkeypatch):
    monkeypatch.setenv(RAY_WAITS, "300")
    head = Head(monkeypatch)
    head.up = False
    head.pass_seconds(270)
    assert head.given_up == []
    head.pass_seconds(20)
    assert len(head.given_up) == 1


def test_who_listens_answers():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert cluster.connect.answers(address)
    assert not cluster.connect.answers(address)


def test_a_process_ends_though_its_steps_wait_for_ever():
    program = """
import threading
import sweeps.run.head as head
head.END_STEP_S = 0.1
threading.Thread(target=threading.Event().wait).start()
head.end_process(7, threading.Event().wait, lambda: print("said", flush=True), own=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "said\n"), done.stderr
