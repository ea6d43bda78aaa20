"""Verdicts over curves that real models trained: what was set up to overfit is called overfit, and so on."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sweeps.ledger.folder import label_prior
from sweeps.selection.config import SelectionConfig
from sweeps.selection.curves import Curve, Reference
from sweeps.selection.diagnose import diagnose
from sweeps.selection.verdicts import verdict
from trainables.data.config import DataConfig
from trainables.data.prepare import prepare
from trainables.engine.group import GroupSettings, NonFinite, open_group
from trainables.evaluation.record import Evaluation
from trainables.hyperparameters import parse
from trainables.models.config import ModelConfig
from trainables.models.files import load_tokenizer

pytestmark = pytest.mark.slow
BASE = {"method": "full", "batch_size": 16, "epochs": 3, "schedule": "constant"}


class Trained:
    """A prepared folder, and the curves of what is trained on it."""

    def __init__(self, shared: Path, folder: Path, task: str, data: DataConfig) -> None:
        model = ModelConfig(name=str(shared / "models" / "stories260K"))
        tokenizer = load_tokenizer(model)
        self.manifest = prepare(data, task, tokenizer, 0, folder, 512)
        self.group = open_group(
            folder,
            model=model,
            task=task,
            pad_token_id=tokenizer.pad_token_id,
            settings=GroupSettings(probe_rows=128),
            device=torch.device("cpu"),
        )
        results, probed = self.group.untuned_results("full")
        prior = label_prior(self.manifest)
        self.reference = Reference(
            val_loss=results.loss,
            probe_loss=probed.loss,
            prior_loss=prior.val_loss if prior else None,
        )

    def curve(self, name: str, **params) -> Curve:
        hp, points, reason, finished = parse({**BASE, **params}), [], None, False
        self.group.join(name, hp)
        try:
            while not finished:
                if self.group.step([name]):
                    (found,) = self.group.evaluate([name]).values()
                    finished = found.finished
                    points.append(
                        Evaluation(
                            step=found.step,
                            samples_seen=found.samples_seen,
                            epoch=found.epoch,
                            val_loss=found.val_loss,
                            probe_loss=found.probe_loss,
                            train_loss=found.train_loss,
                            majority_share=found.majority_share,
                        )
                    )
        except NonFinite as error:
            reason = f"diverged: {error}"
        self.group.leave(name)
        return Curve(
            id=name, status="pruned" if reason else "complete", points=tuple(points), reason=reason
        )


@pytest.fixture(scope="module")
def curves(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Curve, Reference]]:
    """By what they were set up to be."""
    tmp, text = tmp_path_factory.mktemp("curves"), str(shared_data / "text" / "tinyshakespeare.txt")
    texts = DataConfig(train=text, validation=0.01, max_length=64, rows=1200)
    many = Trained(shared_data, tmp / "many", "causal_lm", texts)
    few = Trained(shared_data, tmp / "few", "causal_lm", replace(texts, rows=300))
    tweets = DataConfig(
        train=str(shared_data / "tweets" / "train.csv"), validation=0.1, max_length=32, rows=600
    )
    classes = Trained(
        shared_data, tmp / "classes", "classification", replace(tweets, duplicates="drop")
    )
    made = {
        "healthy": (many, {"learning_rate": 1e-3, "epochs": 2}),
        "underfit": (few, {"learning_rate": 1e-7}),
        "overfit": (few, {"learning_rate": 5e-3, "epochs": 14}),
        "diverged": (few, {"learning_rate": 3.0, "max_grad_norm": 0, "epochs": 2}),
        "collapsed": (classes, {"learning_rate": 0.1, "warmup_ratio": 0.0}),
    }
    return {name: (on.curve(name, **params), on.reference) for name, (on, params) in made.items()}


ALLOWED = {"healthy": ("healthy", "still improving")}
SET_UP = ("healthy", "underfit", "overfit", "diverged", "collapsed")


@pytest.mark.parametrize("name", SET_UP)
def test_a_real_curve_is_called_what_it_was_set_up_to_be(curves, name):
    curve, reference = curves[name]
    found = verdict(curve, reference, SelectionConfig())
    assert found.word in ALLOWED.get(name, (name,)), (found, curve)


def test_the_same_curves_as_a_csv_without_any_reference(curves, tmp_path):
    """What only a sweep knows is missing there: a single flat curve could be anything."""
    file = tmp_path / "curves.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["trial", "samples_seen", "train_loss", "probe_loss", "val_loss"])
        for name in ("healthy", "underfit", "overfit"):
            for p in curves[name][0].points:
                writer.writerow([name, p.samples_seen, p.train_loss, p.probe_loss, p.val_loss])
    found = {trial.id: trial.verdict for trial in diagnose(file, SelectionConfig()).trials}
    assert found.pop("healthy") in ALLOWED["healthy"] and found == {
        "underfit": "underfit",
        "overfit": "overfit",
    }
