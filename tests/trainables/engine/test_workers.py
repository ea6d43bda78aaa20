"""Two workers of a slot give what one gives: rows are split over them, gradients and losses summed."""

import importlib.util
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from safetensors.torch import load_file

from trainables.engine.distributed import World
from trainables.engine.group import WEIGHTS_FILE, NonFinite

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]

WORKERS = 2
# dropout is on wherever model or method has any; batches of 5 and 1 do not divide by the workers
CASES: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "full": ("bert", torch.float64, {"method": "full", "batch_size": 5}),
    "full-float32": ("bert", torch.float32, {"method": "full", "batch_size": 5}),
    "partial": ("bert", torch.float64, {"method": "partial", "layers": 1, "batch_size": 5}),
    "lora": ("bert", torch.float64, {"method": "lora", "dropout": 0.1, "batch_size": 5}),
    "lora-of-one-row": (
        "bert",
        torch.float64,
        {"method": "lora", "dropout": 0.1, "batch_size": 1, "epochs": 0.5},
    ),
    "full-llama": ("llama", torch.float64, {"method": "full", "batch_size": 5}),
    "lora-llama": ("llama", torch.float64, {"method": "lora", "dropout": 0.1, "batch_size": 5}),
    "lora-llama-float32": (
        "llama",
        torch.float32,
        {"method": "lora", "dropout": 0.1, "batch_size": 5},
    ),
    "weighted": ("llama", torch.float64, {"method": "lora", "dropout": 0.1, "batch_size": 5}),
    "pairs": (
        "llama",
        torch.float64,
        {"method": "lora", "dropout": 0.1, "batch_size": 3, "beta": 0.5, "epochs": 1},
    ),
}
PACKED = ("bert", "llama", "opt")
UNLIKE: dict[str, dict[str, Any]] = {
    "a": {"rank": 2, "dropout": 0.1, "batch_size": 5, "targets": "attention"},
    "b": {
        "rank": 16,
        "dropout": 0.3,
        "batch_size": 1,
        "epochs": 0.5,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.1,
    },
    "c": {
        "rank": 4,
        "batch_size": 7,
        "epochs": 3,
        "schedule": "cosine",
        "seed": 3,
        "loraplus_ratio": 4,
    },
}


def lab_of(folder: Path) -> Any:
    """The laboratory of conftest.py in a process that pytest did not start."""
    spec = importlib.util.spec_from_file_location(
        "lab_of_workers", Path(__file__).parents[1] / "conftest.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Lab(folder)


def data_of(lab: Any, case: str) -> dict[str, Any]:
    """What a group of the case has beside its model."""
    if case == "pairs":
        return {"task": "preference", **lab.pairs()}
    return lab.weighted("llama") if case == "weighted" else {}


def train_all(lab: Any, folder: Path, world: World) -> None:
    """Gradients and whole trials of all cases, and the step at which a trial explodes, written below `folder`."""
    found = {}
    for name, (model, dtype, chosen) in CASES.items():
        hp = lab.params(**chosen)
        data = data_of(lab, name)
        stepwise = lab.group(model, dtype=dtype, world=world, evaluate_every=1, **data)
        gradients = lab.first_gradients(stepwise, folder / name, replace(hp, max_grad_norm=0.0))
        group = lab.group(model, dtype=dtype, world=world, max_tokens=24, **data)
        results, probed = group.untuned_results(hp.method)
        baseline, history = (results.loss, probed.loss, group.metrics(results)), []
        group.join("t", hp)
        for _ in range(group.total_steps(hp)):
            if group.step(["t"]):
                history.append(group.evaluate(["t"])["t"])
        weights = {
            name: parameter.detach() for name, parameter in lab.bases[-1].model.named_parameters()
        }
        if world.rank == 0:  # as in a slot: saving must not wait for the others
            group.save("t", folder / name / "saved")
        found[name] = (gradients, baseline, history, weights)
    packed = {}
    for model in PACKED:
        group = lab.group(model, dtype=torch.float64, world=world, max_tokens=60)
        trials = {name: lab.params("lora", **params) for name, params in UNLIKE.items()}
        packed[model] = train_pack(group, trials, folder / model)
    group = lab.group("bert", world=world)
    group.join("t", lab.params(learning_rate=1e30, warmup_ratio=0.0))
    exploded = None
    try:
        for _ in range(9):
            group.step(["t"])
    except NonFinite as error:
        exploded = str(error)
    torch.save(
        (found, exploded, packed, explode_beside_another(lab, world), forget(lab, world)),
        folder / "found.pt",
    )


def train_pack(
    group: Any, trials: dict[str, Any], folder: Path
) -> tuple[dict[str, list[Any]], dict[str, dict[str, torch.Tensor]]]:
    """Evaluations and last weights of trials side by side; the last of them comes late."""
    *first, late = trials
    histories, weights = {trial: [] for trial in trials}, {}
    for trial in first:
        group.join(trial, trials[trial])
    for turn in itertools.count():
        if turn == 2:
            group.join(late, trials[late])
        if not group.trials:
            return histories, weights
        due = group.step(group.trials)
        for trial, evaluation in (group.evaluate(due) if due else {}).items():
            histories[trial].append(evaluation)
            if evaluation.finished:
                group.save(trial, folder / trial)
                weights[trial] = load_file(folder / trial / "checkpoint" / WEIGHTS_FILE)
                group.leave(trial)
    raise AssertionError


def forget(lab: Any, world: World) -> dict[str, tuple[float, float]]:
    """What trials have forgotten of their base after some steps. Workers left to themselves would draw unlike tokens."""
    group = lab.group(
        "llama", dtype=torch.float64, world=world, general=lab.general(), seed=world.rank
    )
    for trial, rank in {"a": 2, "b": 8}.items():
        group.join(trial, lab.params("lora", rank=rank, learning_rate=3e-2))
    for _ in range(3):
        group.step(group.trials)
    return {
        trial: (each.forgetting, each.kl) for trial, each in group.evaluate(group.trials).items()
    }


def explode_beside_another(lab: Any, world: World) -> tuple[dict[str, str], float]:
    """Who explodes beside a trial that does not, and that one's validation loss when it went on."""
    group = lab.group("bert", dtype=torch.float64, world=world)
    group.join("healthy", lab.params("lora"))
    group.join("exploding", lab.params("lora", learning_rate=1e300, warmup_ratio=0.0, batch_size=1))
    for _ in range(9):
        try:
            group.step(group.trials)
        except NonFinite as error:
            group.leave("exploding")
            group.step(["healthy"])
            return error.reasons, group.evaluate(["healthy"])["healthy"].val_loss
    raise AssertionError


def work(rank: int, folder: Path, models: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORKERS
    )
    mine = folder / f"rank-{rank}"
    mine.mkdir()
    train_all(lab_of(models), mine, World(rank=rank, size=WORKERS))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folders(lab, tmp_path_factory):
    """Where one worker wrote what it found, and where each of two did."""
    top = tmp_path_factory.mktemp("workers")
    (top / "alone").mkdir()
    train_all(lab, top / "alone", World())
    torch.multiprocessing.spawn(work, (top, lab.root), nprocs=WORKERS)
    return [top / "alone", *(top / f"rank-{rank}" for rank in range(WORKERS))]


@pytest.fixture(scope="module")
def results(folders):
    """What is in those folders: of every case the first gradients, the baseline, the evaluations and the weights."""
    return [torch.load(folder / "found.pt", weights_only=False) for folder in folders]


@pytest.mark.parametrize("name", CASES)
def test_two_workers_give_the_gradients_of_one(lab, results, name):
    (alone, *_), *ranks = results
    tolerance = 1e-10 if CASES[name][1] == torch.float64 else 1e-6
    for found, *_ in ranks:
        lab.assert_close(found[name][0], alone[name][0], tolerance)


@pytest.mark.parametrize("name", CASES)
def test_two_workers_give_the_evaluations_and_weights_of_one(lab, results, name):
    (alone, *_), *ranks = results
    tolerance = 1e-10 if CASES[name][1] == torch.float64 else 1e-5
    for found, *_ in ranks:
        _, baseline, history, weights = found[name]
        _, expected_baseline, expected_history, expected_weights = alone[name]
        assert baseline[:2] == pytest.approx(expected_baseline[:2], rel=tolerance)
        assert baseline[2] == pytest.approx(expected_baseline[2], rel=tolerance)
        assert len(history) == len(expected_history) > 0
        for evaluation, expected in zip(history, expected_history, strict=True):
            for key in ("val_loss", "probe_loss", "train_loss"):
                assert getattr(evaluation, key) == pytest.approx(
                    getattr(expected, key), rel=tolerance
                )
            assert evaluation.metrics == pytest.approx(expected.metrics, rel=tolerance)
            np.testing.assert_allclose(evaluation.losses, expected.losses, rtol=1e-5, atol=1e-6)
            assert (evaluation.step, evaluation.finished) == (expected.step, expected.finished)
        if (
            CASES[name][1] == torch.float64
        ):  # in float32 Adam divides rounding errors by small moments
            lab.assert_close(weights, expected_weights, tolerance)


@pytest.mark.parametrize("name", CASES)
def test_the_workers_hold_the_same_weights_bit_for_bit(results, name):
    _, (zero, *_), (one, *_) = results
    (_, baseline, history, weights), (_, other_baseline, other_history, other_weights) = (
        zero[name],
        one[name],
    )
    assert baseline == other_baseline
    for evaluation, other in zip(history, other_history, strict=True):
        assert (evaluation.val_loss, evaluation.probe_loss) == (other.val_loss, other.probe_loss)
        assert evaluation.metrics == other.metrics
        assert np.array_equal(evaluation.losses, other.losses)
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)


@pytest.mark.parametrize("name", CASES)
def test_the_first_worker_saves_alone(lab, results, folders, name):
    saved, expected = (lab.tensors(folder / name / "saved") for folder in folders[1::-1])
    assert saved.keys() == expected.keys() and len(saved) > 0
    if CASES[name][1] == torch.float64:
        lab.assert_close(saved, expected, 1e-10)


def test_a_trial_explodes_on_every_worker_at_the_same_step(results):
    alone, zero, one = (exploded for _, exploded, *_ in results)
    assert alone is not None and alone == zero == one


@pytest.mark.parametrize("model", PACKED)
def test_a_group_over_two_workers_equals_one_over_one(lab, results, model):
    """Some passes have no row of some trial on some worker."""
    alone, *ranks = (packed[model] for _, _, packed, *_ in results)
    expected_histories, expected_weights = alone
    for histories, weights in ranks:
        for trial in UNLIKE:
            assert len(histories[trial]) == len(expected_histories[trial]) > 0
            for evaluation, expected in zip(
                histories[trial], expected_histories[trial], strict=True
            ):
                for key in ("val_loss", "probe_loss", "train_loss"):
                    assert getattr(evaluation, key) == pytest.approx(
                        getattr(expected, key), rel=1e-10, abs=0
                    )
                assert evaluation.step == expected.step
            lab.assert_close(weights[trial], expected_weights[trial], 1e-10)
    (_, zero), (_, one) = ranks
    assert all(
        torch.equal(zero[trial][name], one[trial][name]) for trial in UNLIKE for name in zero[trial]
    )


def test_a_trial_of_a_group_explodes_alone_on_every_worker(results):
    (reasons, loss), *ranks = (exploded for _, _, _, exploded, _ in results)
    assert list(reasons) == ["exploding"]
    for their_reasons, their_loss in ranks:
        assert their_reasons == reasons
        assert their_loss == pytest.approx(loss, rel=1e-10)


def test_two_workers_find_forgotten_what_one_finds(results):
    """The first worker's draws are on both; each passes a part of the rows."""
    alone, *ranks = (forgotten for *_, forgotten in results)
    assert all(abs(number) > 1e-4 for pair in alone.values() for number in pair)
    for forgotten in ranks:
        assert forgotten.keys() == alone.keys()
        for trial in alone:
            assert forgotten[trial] == pytest.approx(alone[trial], rel=1e-8)
