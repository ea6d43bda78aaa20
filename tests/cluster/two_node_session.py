"""A sweep that is submitted to a cluster of two nodes, steered, cancelled and gone on with: the
commands of a person at the cluster's head, and what they print.

    python -m tests.cluster.two_node_session

prints the session. Needs root, for network namespaces.
"""

import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.netns import Network, two_nodes

ROOT = Path(__file__).resolve().parent.parent.parent

SWEEP = """
name: session
task: causal_lm
storage: {folder}/runs
model: {{name: {data}/models/stories260K}}
data: {{train: {data}/text/tinyshakespeare.txt, validation: 0.02, max_length: 64, rows: 320}}
rehearse: false
train: {{method: lora, rank: 4, alpha: 8, batch_size: 8, evaluate_every: 64, probe_rows: 64, epochs: 6}}
cluster: {{resources_per_worker: {{CPU: 1}}, trials_per_slot: 1}}
selection: {{baselines: false, general_text: {folder}/general.txt}}
tracking: {{wandb: "off"}}
search:
  trials: 2
  scheduler: none
  early_stopping: {{overfit: false, diverged: false}}
  space: {{learning_rate: {{choice: [0.001, 0.002, 0.004]}}}}
"""


class Session:
    """Commands at the head of a cluster."""

    def __init__(self, network: Network, say: Callable[[str], None]) -> None:
        self._network, self._say = network, say

    def sweeps(self, *words: str) -> str:
        """What `python -m sweeps` prints. Raises RuntimeError: it fails."""
        self._say(f"$ python -m sweeps {shlex.join(words)}")
        done = subprocess.run(
            self._network.head.command(sys.executable, "-m", "sweeps", *words),
            cwd=ROOT,
            env=dict(self._network.env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._say(done.stdout.rstrip())
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}")
        return done.stdout


def hold(data: Path, folder: Path, say: Callable[[str], None]) -> Path:
    """The session; returns the sweep's folder. data: with a model and a text; folder: for what the
    sweep reads and writes.
    """
    (folder / "general.txt").write_text("The manual says what each word of it does. " * 60)
    file = folder / "session.yaml"
    file.write_text(SWEEP.format(data=data, folder=folder))
    with two_nodes() as network:
        at = ("--address", network.dashboard_url)
        session = Session(network, say)
        told = session.sweeps("submit", str(file), *at)
        (job,) = re.findall(r"^Job (\S+): ", told, re.MULTILINE)

        def evaluated() -> set[str]:
            found = folder.glob("runs/*/trials/*/attempt-*/step-*/evaluation.json")
            return {path.parts[-4] for path in found}

        while len(evaluated()) < 2:  # a trial on each node
            time.sleep(0.5)
        session.sweeps("ctl", job, *at, "trials=+1")
        session.sweeps("status", job, *at)
        session.sweeps("cancel", job, *at, "--wait")
        (sweep,) = folder.glob("runs/*-*")
        session.sweeps("submit", str(sweep), *at, "--wait")
    return sweep


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="session-") as made:
        hold(ROOT.parent / "shared" / "data", Path(made), lambda line: print(line, flush=True))
