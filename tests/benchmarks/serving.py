"""How fast a server answers: `.venv/bin/python -m tests.benchmarks.serving URL MODEL`.

Against a server that runs (`python -m sweeps serve`): closed-loop clients, each of which asks again as soon as it has its
answer. Prints a table: requests and tokens a second, time to the first token and to the whole answer.
"""

import argparse
import asyncio
import os
import time
from dataclasses import dataclass

import numpy as np
import openai

QUESTION = [{"role": "user", "content": "Name a color"}]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One request, in seconds."""

    first_s: float
    whole_s: float
    tokens: int


async def ask(client: openai.AsyncOpenAI, model: str, tokens: int, seed: int) -> Answered:
    began, first, written = time.perf_counter(), 0.0, 0
    stream = await client.chat.completions.create(
        model=model,
        messages=QUESTION,
        max_tokens=tokens,
        seed=seed,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - began
        if chunk.usage is not None:
            written = chunk.usage.completion_tokens
    whole = time.perf_counter() - began
    return Answered(first_s=first or whole, whole_s=whole, tokens=written)


async def load(url: str, model: str, token: str, clients: int, each: int, tokens: int) -> str:
    """A line of the table."""
    client = openai.AsyncOpenAI(base_url=url, api_key=token, timeout=3600, max_retries=0)

    async def one(number: int) -> list[Answered]:
        return [await ask(client, model, tokens, number * each + i) for i in range(each)]

    began = time.perf_counter()
    found = [answer for of in await asyncio.gather(*map(one, range(clients))) for answer in of]
    took = time.perf_counter() - began
    first = np.percentile([answer.first_s for answer in found], [50, 95])
    whole = np.percentile([answer.whole_s for answer in found], [50, 95])
    written = sum(answer.tokens for answer in found)
    return (
        f"| {clients} | {len(found)} | {len(found) / took:.2f} | {written / took:.1f} |"
        f" {first[0]:.2f} / {first[1]:.2f} | {whole[0]:.2f} / {whole[1]:.2f} |"
    )


async def main(arguments: argparse.Namespace) -> None:
    token = os.environ.get("SERVING_TOKEN", "none")
    await load(arguments.url, arguments.model, token, 1, 2, 4)  # what is imported at first use
    print(
        "| clients | requests | requests/s | tokens/s | first token, s (median / 95%) |"
        " whole answer, s (median / 95%) |"
    )
    print("|---|---|---|---|---|---|")
    for clients in arguments.clients:
        line = await load(
            arguments.url, arguments.model, token, clients, arguments.each, arguments.tokens
        )
        print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url", help="such as http://127.0.0.1:8000/v1")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 50])
    parser.add_argument("--each", type=int, default=4, help="requests of a client")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer, at most")
    asyncio.run(main(parser.parse_args()))
