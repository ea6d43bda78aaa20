"""A sweep that goes on from a sweep, and one that goes on from that."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from trainables.data.arrow import Split
from trainables.data.manifest import read_manifest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]

SWEEP = """
name: {name}
task: classification
storage: {tmp}/runs
model: {model}
data: {{train: {tweets}/{rows}.csv, validation: 0.2, test: 0.1, rows: 120, max_length: 32, duplicates: drop, replay: {replay}}}
train: {{probe_rows: 32, batch_size: 16}}
cluster: {{slots: 1}}
selection: {{baselines: false}}
search:
  trials: 2
  startup_trials: 1
  space: {space}
"""
RATES = "{log_uniform: [5e-3, 2e-2]}"
SPACE = f"{{method: lora, learning_rate: {RATES}, rank: 4, alpha: 8, targets: attention, epochs: {{int: [2, 3]}}}}"
EITHER = f"{{model: {{old: {{learning_rate: {RATES}}}, bare: {{learning_rate: 1e-7}}}}, method: full, epochs: 1}}"


class Sweeps:
    """Runs them one after another."""

    def __init__(self, sweeps, shared_data: Path, tmp: Path) -> None:
        self._sweeps, self._data, self._tmp = sweeps, shared_data, tmp

    def run(
        self, name: str, model: str, rows: str, replay: str = "null", *, space: str = SPACE
    ) -> Path:
        file = self._tmp / f"{name}.yaml"
        given = {"name": name, "model": model, "rows": rows, "replay": replay, "space": space}
        file.write_text(SWEEP.format(tmp=self._tmp, tweets=self._data / "tweets", **given))
        return Path(self.done("run", file).last_line)

    def done(self, *arguments) -> Any:
        done = self._sweeps(*arguments)
        assert done.code == 0, done.out + done.err
        return done

    def board(self, folder: Path) -> dict[str, Any]:
        return json.loads(self.done("best", folder, "--json").out)


@pytest.fixture(scope="module")
def chain(sweeps, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """Three sweeps: the second trains over the first one's winner, the third goes on with its adapter."""
    tmp = tmp_path_factory.mktemp("chain")
    runner = Sweeps(sweeps, shared_data, tmp)
    first = runner.run("first", f"{{name: {shared_data}/models/stories260K}}", "train")
    second = runner.run("second", f"{{name: {first}}}", "validation", "0.25")
    third = runner.run("third", f"{{name: {second}, adapter: continue}}", "test")
    return runner, first, second, third


def loss(model: Any, split: Path) -> float:
    """Of a classifier, by transformers alone."""
    rows = Split(split)
    losses = []
    for row in rows.rows(range(len(rows))):
        with torch.no_grad():
            ids = torch.from_numpy(row["input_ids"].astype(np.int64))[None]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([row["labels"]])))
    return float(torch.stack(losses).mean())


def by_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)
    code = (folder / "winner" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    said: dict[str, Any] = {}
    exec(code, said)
    return said["model"]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_second_begins_where_the_first_has_ended(chain, monkeypatch) -> None:
    runner, first, second, third = chain
    for former, later in ((first, second), (second, third)):
        board = runner.board(later)
        winner = by_the_card(former, monkeypatch)
        untuned = loss(winner, later / "data" / "validation.arrow")
        assert board["baselines"]["untuned"]["val_loss"] == pytest.approx(untuned, rel=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_what_is_forgotten_is_what_plain_transformers_give(chain, monkeypatch) -> None:
    runner, first, second, third = chain
    for former, later in ((first, second), (second, third)):
        found = runner.board(later)["earlier_forgetting"]
        own = runner.board(former)["winner"]["val_loss"]
        assert found["sweep"] == former.name
        assert found["before"]["loss"] == pytest.approx(own, rel=1e-4)
        rows = former / "data" / "validation.arrow"
        after = loss(by_the_card(later, monkeypatch), rows)
        assert found["after"]["loss"] == pytest.approx(after, rel=1e-4)
        low, high = found["interval"]
        assert low <= found["after"]["loss"] - found["before"]["loss"] <= high
        assert "loss on the validation rows of" in (later / "report.html").read_text()


def test_rows_are_replayed_that_are_not_measured(chain) -> None:
    _, first, second, third = chain
    own = read_manifest(second / "data")
    assert own is not None and own.train.replayed == 40 and own.train.rows == 160
    earlier, train = Split(first / "data" / "train.arrow"), Split(second / "data" / "train.arrow")
    known = {row["input_ids"].tobytes() for row in earlier.rows(range(len(earlier)))}
    replayed = [row["input_ids"].tobytes() for row in train.rows(range(120, 160))]
    assert set(replayed) <= known
    untouched = read_manifest(third / "data")
    assert untouched is not None and untouched.train.replayed == 0


def test_the_chain_is_told(chain) -> None:
    runner, first, second, third = chain
    lineage = runner.board(third)["lineage"]
    assert [each["sweep"] for each in lineage] == [first.name, second.name]
    winner = runner.board(first)["winner"]
    assert (lineage[0]["trial"], lineage[0]["step"]) == (winner["trial"], winner["step"])
    assert lineage[0]["val_loss"] == winner["val_loss"]
    assert set(lineage[0]["data"]) == {"train", "validation", "test"}
    card = (third / "winner" / "README.md").read_text()
    assert f"Went on from: {second.name} (trial " in card
    assert f"which went on from {first.name} (trial " in card
    assert runner.board(first)["lineage"] == [] and not (first / "lineage.json").exists()


def test_a_winner_may_be_one_base_of_a_choice(chain, monkeypatch) -> None:
    """Where it is what the new winner was trained over, all is told as of the only base."""
    runner, first, *_ = chain
    bare = yaml.safe_load((first / "sweep.yaml").read_text())["model"]["name"]
    model = f"{{name: {{choice: {{old: {first}, bare: {bare}}}}}}}"
    name = runner.run("either", model, "test", space=EITHER)
    board = runner.board(name)
    assert board["winner"]["params"]["model"] == "old"
    assert [each["sweep"] for each in board["lineage"]] == [first.name]
    lineage = json.loads((name / "lineage.json").read_text())
    assert list(lineage) == ["old"]
    own = json.loads((name / "winner" / "lineage.json").read_text())
    assert [each["sweep"] for each in own] == [first.name, name.name]
    found = board["earlier_forgetting"]
    assert found["sweep"] == first.name
    before = runner.board(first)["winner"]["val_loss"]
    assert found["before"]["loss"] == pytest.approx(before, rel=1e-4)
    after = loss(by_the_card(name, monkeypatch), first / "data" / "validation.arrow")
    assert found["after"]["loss"] == pytest.approx(after, rel=1e-4)
    assert f"Went on from: {first.name} (trial " in (name / "winner" / "README.md").read_text()
    runner.done("verify", name)


def test_they_are_verified_and_resumed(chain) -> None:
    runner, _, second, third = chain
    runner.done("verify", second)
    runner.done("verify", third)
    out = runner.done("resume", second, "search.trials=3").out
    assert "model: the head goes on, as task and labels are the same" in out
    assert len(runner.board(second)["trials"]) == 3
    runner.done("verify", second)
