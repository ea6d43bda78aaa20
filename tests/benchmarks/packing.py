"""How far packing pays: tokens a second of K LoRA trials over one base, beside what else one could do.

    python tests/benchmarks/packing.py                       # a GPU: Llama shape of 1.1 billion parameters
    python tests/benchmarks/packing.py --shape small --batches 1 4 16 --ranks 8 64      # a CPU

For every base (bf16 and nf4 on a GPU, float32 on a CPU), batch size and rank:
  solo       one trial by peft.get_peft_model and torch.optim.AdamW, as most people train it
  packed K   K trials with `trainables.engine.group.TrialGroup`
  K at once  K processes with the solo loop, each with a base of its own, on the same device

Rows are random tokens, all of one length. Tokens a second are those of all trials together, over the steps that fit
into --seconds after two steps of warm-up. Memory is the peak that torch has reserved on a GPU (of all processes
together), and the resident set on a CPU.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SHAPES = {  # of a Llama
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 5632,
        "vocab_size": 32000,
    },
    "small": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "intermediate_size": 1024,
        "vocab_size": 8000,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 100,
    },
}
ROWS, WARM_UP, PROCESS_TIMEOUT_S = 64, 2, 600.0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cell of the table."""

    base: str  # bf16, nf4 or float32
    batch: int
    rank: int
    trials: int


@dataclass(frozen=True, kw_only=True)
class Rate:
    tokens_per_s: float
    gib: float


def make_model(shape: str, folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPES[shape], max_position_embeddings=4096, pad_token_id=0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.LlamaForCausalLM(config)
    model.to(torch.bfloat16 if torch.cuda.is_available() else torch.float32).save_pretrained(folder)


def hyperparameters(job: Job) -> Any:
    from trainables.hyperparameters import parse

    method = "qlora" if job.base == "nf4" else "lora"
    return parse(
        {
            "method": method,
            "learning_rate": 1e-4,
            "batch_size": job.batch,
            "epochs": 100_000,
            "rank": job.rank,
            "alpha": 2 * job.rank,
        }
    )


def time_steps(step: Callable[[], Any], tokens: int, seconds: float) -> float:
    """Tokens a second."""
    import torch

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    for _ in range(WARM_UP):
        step()
    wait()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or steps < 3:
        step()
        wait()
        steps += 1
    return tokens * steps / (time.perf_counter() - began)


def peak_gib() -> float:
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return psutil.Process().memory_info().rss / 2**30


def load(model: Path, job: Job) -> Any:
    import torch

    from trainables.models.base import BaseSpec
    from trainables.models.config import ModelConfig
    from trainables.models.loading import load_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = BaseSpec(
        model=ModelConfig(name=str(model)),
        auto_class="AutoModelForCausalLM",
        quantisation="nf4" if job.base == "nf4" else "none",
        dtype=torch.float32 if job.base == "float32" else torch.bfloat16,
        pad_token_id=0,
    )
    return load_model(spec, device=device, seed=0)


def packed(model: Path, job: Job, length: int, seconds: float) -> Rate:
    import numpy as np
    import torch

    from trainables.data.arrow import Split, write_split
    from trainables.data.records import Encoded
    from trainables.engine.distributed import World
    from trainables.engine.group import GroupSettings, TrialGroup
    from trainables.tasks import TASKS

    rng, vocabulary = np.random.default_rng(0), 100
    rows = [
        rng.integers(1, vocabulary, length).astype(np.int32) for _ in range(max(ROWS, job.batch))
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_split(Path(folder) / "rows.arrow", Encoded(input_ids=rows, labels=None))
        split = Split(Path(folder) / "rows.arrow")
        base = load(model, job)
        group = TrialGroup(
            load_base=lambda quantisation, dtype: base,
            base_dtype=lambda method: base.dtype,
            task=TASKS["causal_lm"],
            train=split,
            validation=split,
            pad_token_id=0,
            settings=GroupSettings(
                max_tokens=65536,
                autocast=None if job.base == "float32" else torch.bfloat16,
            ),
            device=base.model.device,
            world=World(),
        )
        names = [str(k) for k in range(job.trials)]
        for name in names:
            group.join(name, hyperparameters(job))
        rate = time_steps(lambda: group.step(names), job.trials * job.batch * length, seconds)
        return Rate(tokens_per_s=rate, gib=peak_gib())


def solo(model: Path, job: Job, length: int, seconds: float) -> Rate:
    import torch
    from peft import LoraConfig, get_peft_model

    base = load(model, job).model
    config = LoraConfig(
        r=job.rank, lora_alpha=2 * job.rank, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    module = get_peft_model(base, config)
    module.train()
    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad], lr=1e-4, fused=True
    )
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        ids = torch.randint(1, 100, (job.batch, length), generator=generator).to(base.device)
        with torch.autocast(base.device.type, dtype=torch.bfloat16, enabled=job.base != "float32"):
            loss = module(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # everyone looks at the loss

    return Rate(tokens_per_s=time_steps(step, job.batch * length, seconds), gib=peak_gib())


def in_processes(
    arm: str, count: int, model: Path, job: Job, length: int, seconds: float
) -> Rate | None:
    """`count` processes at once, their sums; None when one of them failed, most likely for memory."""
    work = [arm, str(model), json.dumps(job.__dict__), str(length), str(seconds)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if count > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // count))
    command = [sys.executable, __file__, "--child", *work]
    processes = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for _ in range(count)
    ]
    rates = []
    for process in processes:
        try:
            out, _ = process.communicate(timeout=PROCESS_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
        rates.append(
            Rate(**json.loads(out.splitlines()[-1])) if process.returncode == 0 and out else None
        )
    if None in rates:
        return None
    return Rate(
        tokens_per_s=sum(rate.tokens_per_s for rate in rates), gib=sum(rate.gib for rate in rates)
    )


def row(job: Job, alone: Rate | None, together: Rate | None, apart: Rate | None) -> str:
    """One line of the table; what did not fit is a dash."""

    def cells(rate: Rate | None) -> list[str]:
        return ["-", "-"] if rate is None else [f"{rate.tokens_per_s:,.0f}", f"{rate.gib:.1f}"]

    def ratio(other: Rate | None) -> str:
        return (
            "-"
            if together is None or other is None
            else f"{together.tokens_per_s / other.tokens_per_s:.2f}"
        )

    found = [
        job.base,
        job.batch,
        job.rank,
        job.trials,
        *cells(alone),
        *cells(together),
        ratio(alone),
    ]
    return f"| {' | '.join(map(str, [*found, *cells(apart), ratio(apart)]))} |"


HEADER = """\
| base | batch | rank | K | solo tokens/s | GiB | packed tokens/s | GiB | times solo | K processes tokens/s | GiB | packed / processes |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def machine() -> str:
    import psutil
    import torch

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine()
    )
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "transformers", "peft", "bitsandbytes")
    )
    cores, gib = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    return f"{device}, {cores} cores, {gib:.0f} GiB, load {os.getloadavg()[0]:.2f} before the start; {versions}"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--shape", choices=SHAPES, default="1b")
    found.add_argument(
        "--bases",
        nargs="+",
        choices=["bf16", "nf4", "float32"],
        help="default: bf16 nf4, or float32",
    )
    found.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    found.add_argument("--ranks", nargs="+", type=int, default=[16])
    found.add_argument(
        "--trials", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="values of K"
    )
    found.add_argument("--length", type=int, default=256, help="tokens of a row")
    found.add_argument("--seconds", type=float, default=5.0, help="of every measurement")
    found.add_argument("--no-processes", action="store_true", help="leave out K processes at once")
    found.add_argument("--out", type=Path, help="a file for the table, besides the terminal")
    found.add_argument("--child", nargs=5, help=argparse.SUPPRESS)  # ARM MODEL JOB LENGTH SECONDS
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    if given.child:
        arm, model, job, length, seconds = given.child
        measured = {"packed": packed, "solo": solo}[arm](
            Path(model), Job(**json.loads(job)), int(length), float(seconds)
        )
        print(json.dumps(measured.__dict__))
        return
    import torch

    bases = given.bases or (["bf16", "nf4"] if torch.cuda.is_available() else ["float32"])
    lines = [machine(), "", *HEADER.splitlines()]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory(prefix="packing") as folder:
        model = Path(folder)
        make_model(given.shape, model)
        for base in bases:
            for rank in given.ranks:
                for batch in given.batches:
                    alone = None
                    for trials in given.trials:
                        job = Job(base=base, batch=batch, rank=rank, trials=trials)
                        common = (model, job, given.length, given.seconds)
                        alone = alone or in_processes("solo", 1, *common)
                        together = in_processes("packed", 1, *common)
                        apart = (
                            in_processes("solo", trials, *common)
                            if trials > 1 and not given.no_processes
                            else None
                        )
                        lines.append(row(job, alone, together, apart))
                        print(lines[-1], flush=True)
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
