"""Winners that answer the page: as `chat` answers in a terminal, each in a process of its own."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from sweeps.ui.talking import Conversation
from tests.sweeps.use.tiny_sweep import tiny_sweep
from tests.trainables import zoo
from trainables.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("writer")
    zoo.make("gpt2", "causal", folder / "gpt2", length=256, n_positions=256)
    return tiny_sweep(folder, "instruction", folder / "gpt2", "lora", rank=4)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    zoo.make("bert", "classification", folder / "bert")
    return tiny_sweep(folder, "classification", folder / "bert", "full")


def in_a_terminal(folder: Path, *lines: str, options: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", "chat", str(folder), *options],
        cwd=ROOT,
        input="\n".join(lines),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def whole(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


def test_the_answers_are_those_of_the_terminal(writer):
    """With what was said before, until it is forgotten; a break between answers is none."""

    async def talk() -> list[str]:
        found = await Conversation.begin(str(writer), beside_base=False)
        try:
            first = await whole(found.answer("good bad"))
            second = await whole(found.answer("good bad"))
            found.interrupt()
            await found.forget()
            return [first, second, await whole(found.answer("good bad"))]
        finally:
            await found.end()

    said = asyncio.run(talk())
    told = in_a_terminal(writer, "good bad", "good bad", "/reset", "good bad")
    assert "".join([*said[:2], "forgotten\n", said[2]]) == told and said[0] == said[2]


def test_an_answer_can_be_stopped_and_the_talk_goes_on(writer):
    async def talk() -> tuple[str, str, str]:
        found = await Conversation.begin(str(writer), beside_base=False)
        try:
            all_of_it = await whole(found.answer("good bad"))
            await found.forget()
            stopped = ""
            async for piece in found.answer("good bad"):
                stopped += piece
                if stopped == piece:
                    found.interrupt()
            await found.forget()
            return all_of_it, stopped, await whole(found.answer("good bad"))
        finally:
            await found.end()

    all_of_it, stopped, again = asyncio.run(talk())
    assert all_of_it.startswith(stopped.strip("\n")) and len(stopped) < len(all_of_it)
    assert again == all_of_it


def test_the_untuned_model_may_stand_beside_it(writer):
    async def talk() -> str:
        found = await Conversation.begin(str(writer), beside_base=True)
        try:
            return await whole(found.answer("good bad"))
        finally:
            await found.end()

    said = asyncio.run(talk())
    assert said == in_a_terminal(writer, "good bad", options=("--base",))
    assert said.startswith("base: ") and "\nwinner: " in said


def test_a_classifier_classifies_and_what_is_wrong_is_told(classifier):
    async def talk() -> list[str]:
        found = await Conversation.begin(str(classifier), beside_base=False)
        try:
            answer = await whole(found.answer("good bad 1"))
            with pytest.raises(InputError, match="^no answer: .*empty"):
                await whole(found.answer(" "))
            return [answer, await whole(found.answer("good bad 1"))]
        finally:
            await found.end()

    said = asyncio.run(talk())
    assert "".join(said) == in_a_terminal(classifier, "good bad 1", "good bad 1")


def test_a_model_that_cannot_be_loaded_says_why_in_a_line(writer, classifier, tmp_path):
    for folder, beside, line in (
        (tmp_path, False, f"{tmp_path}: not a sweep's folder"),
        (classifier, True, "--base: the head of task classification is trained"),
    ):
        with pytest.raises(InputError) as found:
            asyncio.run(Conversation.begin(str(folder), beside_base=beside))
        assert str(found.value).startswith(line)


def test_it_goes_when_the_page_goes(writer):
    async def talk() -> int:
        found = await Conversation.begin(str(writer), beside_base=False)
        pid = found._process.pid
        assert psutil.pid_exists(pid)
        await found.end()
        await found.end()
        return pid

    assert not psutil.pid_exists(asyncio.run(talk()))
