"""The server as OpenAI's own client meets it: real Ray Serve on this machine."""

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil
import pytest
import requests

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]

TOKEN = "a token for the tests alone"


@dataclass(frozen=True, kw_only=True)
class Running:
    url: str
    log: Path
    process: subprocess.Popen

    def client(self, token: str = TOKEN, retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=token, timeout=600, max_retries=retries
        )

    def post(self, path: str, body: object, **headers: str) -> requests.Response:
        given = {"Authorization": f"Bearer {TOKEN}", **headers}
        return requests.post(f"{self.url}{path}", json=body, headers=given, timeout=600)

    def replicas(self) -> set[int]:
        """Processes that hold the models, as Ray's dashboard tells them."""
        (line,) = [x for x in self.log.read_text().splitlines() if x.startswith("dashboard: ")]
        url = line.split()[1].partition("/#")[0]
        told = requests.get(f"{url}/api/serve/applications/", timeout=60).json()
        (deployment,) = told["applications"]["finetune-sweeps"]["deployments"].values()
        return {each["pid"] for each in deployment["replicas"] if each["state"] == "RUNNING"}


@pytest.fixture(scope="module")
def server(
    start_sweeps, chats, classifier, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Two adapters over one base and a classifier, in one replica."""
    import socket

    tmp = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp / "token").write_text(TOKEN + "\n")
    log = tmp / "serve.log"
    process = start_sweeps(
        log,
        "serve",
        f"first={chats['alpha']}",
        chats["beta"],
        f"kinds={classifier}",
        "--port",
        str(port),
        "--token",
        str(tmp / "token"),
        "--max-new-tokens",
        "64",
    )
    running = Running(url=f"http://127.0.0.1:{port}", log=log, process=process)
    _wait_for(running, "serving at")
    yield running
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 0, log.read_text()
    assert log.read_text().splitlines()[-1] == "stopped"
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{running.url}/health", timeout=5)


def _wait_for(running: Running, words: str) -> None:
    while words not in running.log.read_text():
        assert running.process.poll() is None, running.log.read_text()
        time.sleep(0.5)


ASKED = [{"role": "user", "content": "Name a color 7"}]


def test_what_is_told_at_the_start(server: Running) -> None:
    log = server.log.read_text()
    assert "first: the winner, trial t0001" in log and "kinds: the winner" in log
    (metrics,) = [line for line in log.splitlines() if line.startswith("metrics")]
    told = requests.get(metrics.split()[-1], timeout=60)
    assert told.ok and "ray_serve" in told.text
    assert requests.get(f"{server.url}/health", timeout=60).json() == {"status": "ok"}


def test_models_and_a_wrong_token(server: Running) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["first", "beta", "kinds"]
    assert client.models.retrieve("beta").id == "beta"
    with pytest.raises(openai.AuthenticationError) as wrong:
        server.client("another token").models.list()
    assert wrong.value.status_code == 401 and wrong.value.code == "invalid_api_key"
    assert requests.get(f"{server.url}/v1/models", timeout=60).status_code == 401
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt", messages=ASKED)
    assert "there are first, beta, kinds" in str(unknown.value)
    assert server.post("/v1/nothing", {}).json()["error"]["message"].endswith("Not Found")


def test_chat_whole_and_in_a_stream_are_what_the_winner_writes(
    server: Running, chats: dict[str, Path]
) -> None:
    client = server.client()
    for model, name in (("first", "alpha"), ("beta", "beta")):
        wanted = written_by(chats[name])
        whole = client.chat.completions.create(
            model=model, messages=ASKED, temperature=0, max_tokens=16
        )
        assert whole.choices[0].message.content == wanted
        assert whole.usage.completion_tokens <= 16 and whole.usage.prompt_tokens > 10
        chunks = list(
            client.chat.completions.create(
                model=model,
                messages=ASKED,
                temperature=0,
                max_tokens=16,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == wanted
        assert chunks[0].choices[0].delta.role == "assistant" and len(chunks) > 4
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert written_by(chats["alpha"]) != written_by(chats["beta"])


def written_by(folder: Path) -> str:
    """By transformers and PEFT, in this process."""
    from sweeps.use.prompts import Prompts
    from sweeps.use.trained import open_trained

    with open_trained(str(folder)) as trained:
        import torch

        model = trained.load()
        ids = Prompts.of(trained, model).of_messages(ASKED).ids
        given = torch.from_numpy(ids).long()[None]
        found = model.generate(input_ids=given, max_new_tokens=16, do_sample=False)
        return trained.tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True)


def test_completions_seeds_stops_and_logprobs(server: Running) -> None:
    client = server.client()

    def written(**settings) -> openai.types.CompletionChoice:
        given = {"model": "first", "prompt": "Once upon a", "max_tokens": 12, **settings}
        return client.completions.create(**given).choices[0]

    assert written(seed=3).text == written(seed=3).text != written(seed=4).text
    whole = written(temperature=0).text
    assert written(temperature=0, stop=whole[3]).text == whole[: whole.index(whole[3])]
    both = client.completions.create(
        model="beta", prompt=["Once", "The dog"], max_tokens=4, temperature=0
    )
    assert [choice.index for choice in both.choices] == [0, 1]
    chunks = client.completions.create(
        model="first", prompt="Once upon a", max_tokens=12, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole
    told = client.chat.completions.create(
        model="first", messages=ASKED, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    for token in told.choices[0].logprobs.content:
        assert token.logprob <= 0 and token.top_logprobs[0].token == token.token
        assert len(token.top_logprobs) == 2


def test_classify(server: Running) -> None:
    found = server.post(
        "/classify", {"model": "kinds", "input": ["bright good", {"text": "bad 1"}]}
    ).json()
    assert found["model"] == "kinds" and [each["index"] for each in found["data"]] == [0, 1]
    first = found["data"][0]
    assert max(first["probabilities"], key=first["probabilities"].get) == first["prediction"]
    assert server.post("/classify", {"input": "bad"}).ok, "it is the only one that classifies"
    refused = server.post("/classify", {"model": "first", "input": "bad"})
    assert refused.status_code == 400 and "there are kinds" in refused.text
    refused = server.post("/classify", {"input": {"title": "bad"}})
    assert refused.status_code == 400 and "no column 'text'" in refused.text


LONG = [{"role": "user", "content": "a b c d " * 400}]
CHAT = {"model": "first", "messages": ASKED}
REFUSED = {
    "not JSON's kind": ({**CHAT, "temperature": "hot"}, "temperature: "),
    "too hot": ({**CHAT, "temperature": 3}, "less than or equal to 2"),
    "unknown": ({**CHAT, "best_of": 2}, "best_of: not supported; supported are "),
    "several": ({**CHAT, "n": 2}, "n: "),
    "penalties": ({**CHAT, "presence_penalty": 1}, "presence_penalty: "),
    "tools": ({**CHAT, "tools": [{"type": "function"}]}, "tools: not supported"),
    "no messages": ({"model": "first"}, "messages: is required"),
    "nothing to answer": (
        {"model": "first", "messages": [{"role": "assistant", "content": "a"}]},
        "no message that could be answered",
    ),
    "a strange role": ({"model": "first", "messages": [{"role": "x", "content": "a"}]}, "role"),
    "too long": ({"model": "first", "messages": LONG}, "and the model takes 512"),
    "no room": ({**CHAT, "max_tokens": 100}, "this server writes 64 at most"),
    "a classifier": ({**CHAT, "model": "kinds"}, "writes no text: use /classify"),
    "usage of no stream": ({**CHAT, "stream_options": {"include_usage": True}}, "needs stream"),
    "no object": (["a"], "the body: "),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_not_done_is_refused(server: Running, why: str) -> None:
    body, words = REFUSED[why]
    answer = server.post("/v1/chat/completions", body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and words in error["message"], answer.text
    assert error["type"] == "invalid_request_error" and "\n" not in error["message"]


def test_a_body_that_is_no_json(server: Running) -> None:
    url, token = f"{server.url}/v1/completions", {"Authorization": f"Bearer {TOKEN}"}
    broken = requests.post(
        url, data="{", headers={**token, "Content-Type": "application/json"}, timeout=60
    )
    assert broken.status_code == 400 and "not JSON" in broken.json()["error"]["message"]
    form = requests.post(
        url, data="{}", headers={**token, "Content-Type": "text/plain"}, timeout=60
    )
    assert form.status_code == 400 and "application/json" in form.json()["error"]["message"]


def test_fifty_clients_at_once_each_get_their_own_answer(server: Running) -> None:
    async def all_of_them() -> list[str]:
        client = openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=TOKEN, timeout=1800, max_retries=0
        )

        async def one(number: int) -> str:
            model = ("first", "beta")[number % 2]
            kept = {"model": model, "messages": ASKED, "temperature": 0, "max_tokens": 12}
            if number % 3:
                whole = await client.chat.completions.create(**kept)
                return whole.choices[0].message.content
            stream = await client.chat.completions.create(**kept, stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        return await asyncio.gather(*map(one, range(50)))

    found = asyncio.run(all_of_them())
    assert len(set(found[::2])) == len(set(found[1::2])) == 1
    assert found[0] != found[1] and all(found)


def test_a_killed_replica_comes_back_while_clients_ask(server: Running) -> None:
    """What was asked of it fails at once with an error, or is retried; the service goes on."""
    client, outcomes, ended = server.client(retries=0), [], threading.Event()

    def ask() -> None:
        while not ended.is_set():
            try:
                answer = client.chat.completions.create(
                    model="first", messages=ASKED, temperature=0, max_tokens=4
                )
                outcomes.append(answer.choices[0].message.content)
            except openai.APIError as error:
                outcomes.append(error)
                time.sleep(0.2)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while not any(isinstance(each, str) for each in outcomes):
        time.sleep(0.2)
    (replica,) = server.replicas()
    killed = psutil.Process(replica)
    os.kill(replica, signal.SIGKILL)
    psutil.wait_procs([killed])
    before = len(outcomes)
    while not any(isinstance(each, str) for each in outcomes[before:]) or (
        server.replicas() <= {replica}
    ):
        assert server.process.poll() is None
        time.sleep(0.2)
    ended.set()
    for thread in threads:
        thread.join()
    answers = {each for each in outcomes if isinstance(each, str)}
    assert len(answers) == 1, "no answer is half of one"
    failed = [each for each in outcomes if not isinstance(each, str)]
    assert all(isinstance(each, openai.APIError) for each in failed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--token: 0.0.0.0 is reached from other machines"),
        (["--token", "NOWHERE_TO_BE_FOUND"], "neither a variable of this shell nor a file"),
        (["--port", "70000"], "--port: must be from 1 to 65535, got 70000"),
        (["--engine", "vllm"], "--engine: vllm cannot be taken: there is no GPU"),
    ],
)
def test_a_wrong_call_is_one_line(sweeps, chats, arguments, words) -> None:
    done = sweeps("serve", chats["alpha"], *arguments)
    assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
    assert words in done.err


def test_two_models_of_one_name_and_a_port_in_use(sweeps, chats, server: Running) -> None:
    done = sweeps("serve", chats["alpha"], chats["alpha"])
    assert done.code == 2 and "two models are called 'alpha'" in done.err
    done = sweeps("serve", chats["alpha"], "--port", server.url.rpartition(":")[2])
    assert done.code == 2 and "cannot listen at 127.0.0.1" in done.err
