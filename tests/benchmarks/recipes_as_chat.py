"""A recipe assistant: the shipped sweep on made-up recipes and a model of 260,000 parameters, chosen by F1 of the ingredients, with what
the untuned model, prompts with examples and the default configuration reach on the same rows; then a question in `chat`.

    .venv/bin/python tests/benchmarks/recipes_as_chat.py --trials 6
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from arms import DATA, ROOT, machine, require
from text_to_sql import tell
from tweets import call

sys.path.insert(0, str(ROOT / "tests" / "sweeps"))
from recipes import conversations

SPACE = {
    "method": {
        "full": {"learning_rate": {"log_uniform": [1e-3, 6e-3]}},
        "lora": {"rank": 16, "learning_rate": {"log_uniform": [5e-3, 3e-2]}},
    },
    "batch_size": 8,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=6)
    given = parser.parse_args()
    model = DATA / "models" / "stories260K"
    require(model / "config.json")
    print(machine(), flush=True)
    work = Path(tempfile.mkdtemp(prefix="recipes", dir="/tmp"))
    try:
        rows = conversations(given.rows + 1)
        asked = rows.pop()["messages"][1]["content"]
        data = work / "recipes.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "storage": work / "runs",
            "model.name": model,
            "data.train": data,
            "data.max_length": 384,
            "search.space": json.dumps({**SPACE, "epochs": given.epochs}),
            "search.trials": given.trials,
            "tracking.wandb": "off",
        }
        overrides = [f"{key}={value}" for key, value in settings.items()]
        folder = call("run", ROOT / "sweeps" / "recipe_assistant.yaml", *overrides)[-1]
        tell(folder)
        command = [sys.executable, "-m", "sweeps", "chat", folder, "--base"]
        line = " ".join(asked.split()) + "\n"
        print(line, end="", flush=True)
        subprocess.run(command, cwd=ROOT, input=line, text=True, check=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
