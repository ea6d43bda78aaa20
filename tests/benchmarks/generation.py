"""How fast the trials of a group write answers: side by side over one base, and one after another.

    .venv/bin/python tests/benchmarks/generation.py                          # a tiny Llama, on the CPU
    .venv/bin/python tests/benchmarks/generation.py --model ../shared/data/models/stories260K

K LoRA trials of unlike ranks write to the same prompts:
  together       `TrialGroup.answers`: one forward pass a step for the rows of all trials
  one by one     `TrialGroup.answers` of one trial after another
  PEFT, batched  each saved checkpoint by `model.generate` of PEFT, in the batches that `together` has of one trial
  PEFT, alone    likewise, one prompt at a time, as a loop over rows has it

All write as many tokens (no token ends an answer, unless --stop). Tokens a second of all trials, the best of --repeats.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 172,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
PAD, ROWS = 0, 24


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="a folder; default: a tiny Llama that is drawn")
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--prompts", type=int, default=ROWS)
    parser.add_argument("--tokens", type=int, default=48, help="written to each prompt")
    parser.add_argument("--stop", type=int, nargs="*", default=[], help="tokens that end an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def write_data(folder: Path, vocabulary: int) -> None:
    """Rows of random tokens, some of them targets."""
    import numpy as np

    from trainables.data.arrow import write_split
    from trainables.data.records import Encoded

    rng = np.random.default_rng(0)
    for name in ("train", "validation"):
        ids = [
            rng.integers(3, vocabulary, length).astype(np.int32)
            for length in rng.integers(24, 64, ROWS)
        ]
        labels = [
            np.where(np.arange(len(row)) < len(row) // 2, -100, row).astype(np.int32) for row in ids
        ]
        write_split(folder / f"{name}.arrow", Encoded(input_ids=ids, labels=labels))
    (folder / "manifest.json").write_text(json.dumps({"labels": []}))


def seconds(run: Callable[[], Any], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    return best


def measure(arguments: argparse.Namespace, folder: Path, trials: int) -> dict[str, float]:
    """Seconds of each way."""
    import torch

    from trainables.data.prepare import open_split
    from trainables.engine.group import open_group
    from trainables.engine.settings import GroupSettings
    from trainables.evaluation.generation import Prompt
    from trainables.hyperparameters import parse
    from trainables.metrics.config import GenerationConfig
    from trainables.models.checkpoint import base_spec, load_checkpoint
    from trainables.models.config import ModelConfig
    from trainables.tasks import TASKS

    device, model = torch.device("cpu"), ModelConfig(name=str(arguments.model or folder / "model"))
    group = open_group(
        folder,
        model=model,
        task="instruction",
        pad_token_id=PAD,
        settings=GroupSettings(),
        device=device,
    )
    names = [f"t{number}" for number in range(trials)]
    for number, name in enumerate(names):
        given = {"learning_rate": 1e-2, "batch_size": 8, "epochs": 50, "rank": 4 + 4 * (number % 3)}
        group.join(name, parse({"method": "lora", **given, "seed": number}))
    for _ in range(3):
        group.step(names)
    spec = base_spec(model, TASKS["instruction"], (), PAD, "lora", precision="float32")
    loaded = {}
    for name in names:
        group.save(name, folder / name)
        loaded[name] = load_checkpoint(folder / name / "checkpoint", spec, device)
    rows = open_split(folder, "validation").rows(range(ROWS))
    prompts = [Prompt(ids=rows[i % ROWS]["input_ids"], row=i) for i in range(arguments.prompts)]
    settings = GenerationConfig(max_new_tokens=arguments.tokens)

    def together() -> Any:
        return group.answers(names, prompts, settings, arguments.stop)

    def one_by_one() -> Any:
        return {
            name: group.answers([name], prompts, settings, arguments.stop)[name] for name in names
        }

    def by_peft(size: int) -> Any:
        return {
            name: _by_peft(each, prompts, arguments.tokens, size, arguments.stop)
            for name, each in loaded.items()
        }

    expected = together()
    assert one_by_one() == expected and by_peft(len(prompts)) == expected, "answers differ"
    ways = {
        "together": together,
        "one by one": one_by_one,
        "PEFT, batched": lambda: by_peft(len(prompts)),
        "PEFT, alone": lambda: by_peft(1),
    }
    written = sum(len(ids) for each in expected.values() for ids in each)
    return {way: written / seconds(run, arguments.repeats) for way, run in ways.items()}


def _by_peft(model: Any, prompts: Any, tokens: int, size: int, stop: list[int]) -> list[list[int]]:
    """As people write it: prompts sorted by length, padded on the left."""
    from trainables.engine.decoding import model_inputs

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    found: dict[int, list[int]] = {}
    for start in range(0, len(order), size):
        part = order[start : start + size]
        inputs = model_inputs(model, [prompts[i] for i in part], PAD)
        written = model.generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=stop or -1,
            pad_token_id=PAD,
        )
        for i, ids in zip(part, written[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            ends = [at for at, token in enumerate(ids) if token in stop]
            found[i] = ids[: ends[0] + 1] if ends else ids
    return [found[i] for i in range(len(prompts))]


def main() -> None:
    import torch
    import transformers

    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    ways = ("together", "one by one", "PEFT, batched", "PEFT, alone")
    print(f"| trials | {' | '.join(ways)} | together / PEFT, batched | together / PEFT, alone |")
    print("|---|" + "---|" * (len(ways) + 2))
    for trials in arguments.trials:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            if arguments.model is None:
                torch.manual_seed(0)
                config = transformers.LlamaConfig(**TINY)
                transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
            write_data(folder, TINY["vocab_size"])
            found = measure(arguments, folder, trials)
        ratios = [found["together"] / found[way] for way in ("PEFT, batched", "PEFT, alone")]
        cells = [f"{found[way]:,.0f}" for way in ways] + [f"{ratio:.2f}" for ratio in ratios]
        print(f"| {trials} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
