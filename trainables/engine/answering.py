"""Answers of all trials of a group: each step one forward pass of the base for the rows of all of
them, side by side. No Ray here.

Letters of shapes: K trials, N prompts, B rows of a batch, U tokens of an answer.
"""

from collections.abc import Sequence

import numpy as np
import torch

from trainables.engine import varlen
from trainables.engine.decoding import CACHED, Decoding, Padding, Rows, Writer, model_inputs, write
from trainables.engine.distributed import World
from trainables.engine.forward import Engine, ForwardPass
from trainables.engine.kernels import MicroBatch
from trainables.engine.loaded_base import LoadedBase
from trainables.evaluation.generation import Prompt

Written = list[list[int]]
"""Tokens of each prompt's answer."""


def answers(
    base: LoadedBase,
    engine: Engine,
    trials: Sequence[str],
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    forward: ForwardPass,
    max_tokens: int,
    virtual_tokens: int = 0,
    world: World,
) -> dict[str, Written]:
    """Of each of `trials`, with the weights that `engine` now has. Raises InputError for a prompt
    that leaves no room for an answer.

    max_tokens: padded tokens of a micro-batch in training; virtual_tokens: of a trial, before each
    row.
    """
    model, device, pad = base.model, forward.device, forward.pad_token_id
    lanes = np.array(sorted(engine.trials.index(trial) for trial in trials))
    model.eval()
    varlen.passing(None)

    def run(positions: np.ndarray, which: Sequence[int], rows: Rows) -> Written:
        lanes_B = np.repeat(lanes[which], len(positions))
        some = [prompts[each] for each in positions]

        def place(left: Sequence[int]) -> None:
            engine.place(MicroBatch.of(lanes_B[left], device))

        inputs = model_inputs(model, some * len(which), pad)
        with forward.precision(), torch.no_grad():
            place(rows.left)
            return write(model, engine.starting(inputs), rows, pad, place)

    writer = Writer(
        prompts=prompts,
        decodings=[decoding] * len(prompts),
        limits=[decoding.limit(prompt, model, virtual_tokens) for prompt in prompts],
        run=run,
        max_tokens=CACHED * max_tokens,
        device=device,
        copies=len(lanes),
        rounds=base.rounds,
        padding=Padding(None if base.padded else False),
    )
    by_length = np.argsort([len(prompt.ids) for prompt in prompts], kind="stable")
    found = _of_all(writer.answers(by_length[world.rank :: world.size]), decoding, world, device)
    order = {engine.trials[lane]: each for lane, each in zip(lanes, found, strict=True)}
    return {trial: order[trial] for trial in trials}


def _of_all(
    own: list[Written], decoding: Decoding, world: World, device: torch.device
) -> list[Written]:
    """Of all workers, each of which has written to prompts of its own."""
    if world.size == 1:
        return own
    most = decoding.settings.max_new_tokens
    tokens_KNU = torch.zeros(len(own), len(own[0]), most, dtype=torch.int64)
    for copy, written in enumerate(own):
        for number, ids in enumerate(written):
            tokens_KNU[copy, number, : len(ids)] = torch.tensor(ids, dtype=torch.int64) + 1
    world.sum([tokens_KNU := tokens_KNU.to(device)])
    return [
        [[token - 1 for token in ids if token] for ids in written]
        for written in tokens_KNU.tolist()
    ]
