"""What lm-eval gave a winner stands wherever the winner is told of."""

from pathlib import Path

import pytest
from rich.console import Console

from sweeps.ledger.opening import open_sweep
from sweeps.reporting.console import print_board
from sweeps.reporting.leaderboard import leaderboard
from sweeps.use.evaluate import evaluate
from tests.sweeps.use.tiny_sweep import TRIAL, drawn, tiny_sweep
from tests.trainables.evaluation.test_harness import write_task
from trainables.evaluation.harness import Asked
from trainables.storage.records import to_json

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]


def test_in_the_terminal_the_json_the_page_and_the_card(tmp_path, capsys):
    pytest.importorskip("lm_eval")
    folder = tiny_sweep(
        tmp_path / "s", "causal_lm", drawn(tmp_path / "m", "llama", "causal"), "lora", rank=4
    )
    before = (folder / "winner" / "README.md").read_text()
    asked = Asked(tasks=("stories",), include=write_task(tmp_path / "tasks"), limit=6)
    found = evaluate(str(folder), asked)
    ledger, config = open_sweep(str(folder))
    board = leaderboard(ledger.load(), config.name, config.selection)
    assert board.harness == found.scores and [each.trial for each in board.harness] == [TRIAL] * 2

    told = f"lm-eval: stories acc (of 6 samples) {found.scores[0].trained:.4f}, the base"
    print_board(Console(width=1000), board)
    assert told in capsys.readouterr().out
    shown = to_json(board)["harness"]
    assert isinstance(shown, list) and len(shown) == 2
    card = (folder / "winner" / "README.md").read_text()
    assert told in card
    lines = [line for line in card.splitlines() if not line.startswith("lm-eval: ")]
    assert "\n".join(lines).replace("\n\n\n", "\n\n") == before.rstrip("\n")
    assert told.removeprefix("lm-eval: ") in (Path(folder) / "report.html").read_text()


def test_of_another_checkpoint_it_is_not_the_winner_s(tmp_path):
    from dataclasses import replace

    from sweeps.ledger.harness import HarnessScore, add_harness

    folder = tiny_sweep(
        tmp_path / "s", "causal_lm", drawn(tmp_path / "m", "llama", "causal"), "lora", rank=4
    )
    ledger, config = open_sweep(str(folder))
    winner, _ = ledger.load().select(config.selection)
    assert winner is not None
    own = HarnessScore(
        trial=winner.trial,
        step=winner.point.step,
        task="a",
        filter="none",
        metric="acc",
        samples=3,
        trained=0.5,
        base=0.25,
        difference=0.25,
    )
    add_harness(ledger, [own, replace(own, step=own.step + 1), replace(own, trial="t0009")])
    assert leaderboard(ledger, config.name, config.selection).harness == (own,)
