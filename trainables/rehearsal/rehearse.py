"""Before anything is spent: every (model, task, method) of a sweep once through its whole life, at
a size of seconds.

The model is a miniature of the real architecture (see miniature.py) with the real tokenizer's ids
and rows of the real data. Each trial takes two steps, is saved, is loaded again as verification
does and by the code on the winner's card, goes on from its checkpoint, and trains in a group. What
would fail after hours, or give other numbers when it is loaded again, fails here.
"""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainables.data.arrow import Row, Split, sequences_of, write_split
from trainables.data.manifest import Manifest, labels_of, write_manifest
from trainables.data.prepare import open_split
from trainables.data.records import Encoded
from trainables.engine.group import GroupSettings, TrialGroup, open_group
from trainables.engine.memory import estimate
from trainables.engine.scoring import RowResults, evaluate_model, with_reference
from trainables.errors import InputError
from trainables.hyperparameters import Hyperparameters, LoraOptions, PartialOptions, parse
from trainables.methods import ADDITIVE, REPLACING, quantisation_of
from trainables.models.base import BaseModel, BaseSpec
from trainables.models.checkpoint import (
    base_spec,
    complete,
    load_base_model,
    load_checkpoint,
    loading_code,
)
from trainables.models.config import ModelConfig
from trainables.models.loading import check_class, check_predicts, shapes_of
from trainables.models.structure import coverage, layer_lists
from trainables.rehearsal import miniature
from trainables.tasks import TASKS, take_targets

ROWS, VALIDATION_ROWS, TOKENS = 12, 6, 96  # of a rehearsal; longer rows are cut
STEPS = 2
CPU = torch.device("cpu")
RELOADED, QUANTISED, TOGETHER = (
    1e-4,
    2e-3,
    1e-3,
)  # relative differences of losses that rounding explains
# the same over a quantised base by the code on the card: bitsandbytes rounds activations there
BY_CARD = 2e-2


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """What came of one method over one kind of base."""

    what: str  # in words: "lora on attention", "qlora over nf4"
    problem: str | None = None  # why such trials cannot be trained, or cannot be trusted
    by_settings: bool = False  # the problem is one of the settings, on the real model's shapes
    shares: bool = False  # whether a trial in a group equals itself alone
    # share of the real backbone's weight matrices that are trained or adapted
    covers: float | None = None
    memory: float | None = (
        # what a pass took over what `trainables.engine.memory` estimates; None: it has no estimate
        None
    )
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    size: str | None  # of the miniature, in words; None: the architecture could not be made small
    why_not: str = ""  # it could not
    found: tuple[Rehearsed, ...] = ()
    seconds: float = 0.0

    @property
    def problems(self) -> list[str]:
        return [f"{each.what}: {each.problem}" for each in self.found if each.problem is not None]


class _Differs(Exception):
    """A loss is not what it should be."""


def rehearse(
    model: ModelConfig,
    task: str,
    data: Path,
    trials: Sequence[Mapping[str, Any]],
    pad_token_id: int,
) -> Rehearsal:
    """Rehearse each method and kind of base among `trials` (flat parameters), on the CPU.

    data: the folder that `trainables.data.prepare.prepare` wrote. Raises InputError for what no
    trial can do: there is no such model for the task, it sees what it is to predict, or has fewer
    layers than are asked for.
    """
    began, threads = time.perf_counter(), torch.get_num_threads()
    hps = _each_kind([parse(params) for params in trials])
    labels = labels_of(data)
    spec = base_spec(model, TASKS[task], labels, pad_token_id, hps[0].method, hps[0].options)
    check_class(spec, spec.config())
    real = shapes_of(spec)
    with (
        tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch,
        torch.random.fork_rng(devices=[]),
    ):
        folder = Path(scratch)
        excerpt(data, folder / "data", task)
        drawn, size = miniature.draw(
            spec.config(),
            spec.auto_class,
            model.trust_remote_code,
            lambda drawn: _passes(drawn, folder, task, spec),
        )
        if drawn is None:
            return Rehearsal(size=None, why_not=size, seconds=time.perf_counter() - began)
        if not spec.has_head:
            check_predicts(spec, drawn)
        drawn.save_pretrained(folder / "model")
        small = replace(
            model,
            name=str(folder / "model"),
            adapter="merge",
            revision=None,
            sha256=None,
            dtype="float32",
        )
        stage = _Stage(
            folder=folder,
            model=small,
            task=task,
            labels=labels,
            pad_token_id=pad_token_id,
        )
        torch.set_num_threads(1)  # so small a model has nothing to divide
        try:
            found = tuple(stage.rehearse(hp, real) for hp in hps)
        finally:
            torch.set_num_threads(threads)
    return Rehearsal(size=size, found=found, seconds=time.perf_counter() - began)


def _each_kind(hps: Sequence[Hyperparameters]) -> list[Hyperparameters]:
    """One for each method, kind of base and choice of modules; of a number of layers the
    largest.
    """
    kinds: dict[str, Hyperparameters] = {}
    for hp in hps:
        known = kinds.setdefault(_words(hp), hp)
        if (getattr(hp.options, "layers", None) or 0) > (
            getattr(known.options, "layers", None) or 0
        ):
            kinds[_words(hp)] = hp
    return list(kinds.values())


def _words(hp: Hyperparameters) -> str:
    quantisation, options = quantisation_of(hp.method, hp.options), hp.options
    words = hp.method
    if targets := getattr(options, "targets", None):
        words += f" on {targets if isinstance(targets, str) else ', '.join(targets)}"
    for name in ("target_parameters", "patterns", "rank_pattern", "alpha_pattern"):
        if patterns := getattr(options, name, ()):
            words += f" ({', '.join(patterns)})"
    if (kind := getattr(options, "train", None)) is not None:
        words += f" ({kind})"
    if options.form:
        words += f" ({options.form})"
    return words + (f" over {quantisation}" if quantisation != "none" else "")


def _covers(real: BaseModel, hp: Hyperparameters) -> float:
    """Share of the real backbone's weight matrices that a trial adapts or trains; InputError where
    it can do neither.
    """
    shapes = real.model
    for parameter in shapes.parameters():
        parameter.requires_grad_(False)
    if hp.method in REPLACING:
        REPLACING[hp.method].attach(real, hp.options)
        trained = {name for name, parameter in shapes.named_parameters() if parameter.requires_grad}
        return coverage(shapes, {name.removesuffix(".weight") for name in trained}, real.head)
    with torch.device("meta"):
        additions = ADDITIVE[hp.method].plan(real, hp.options)
    return coverage(shapes, {addition.site for addition in additions}, real.head)


def excerpt(data: Path, folder: Path, task: str) -> None:
    """A few short rows of train and validation, of unlike lengths, as a folder of prepared data;
    all that a rehearsal reads of them. An excerpt's own is itself.
    """
    folder.mkdir(parents=True)
    for name, count in (("train", ROWS), ("validation", VALIDATION_ROWS)):
        split = open_split(data, name)
        order = np.argsort(split.lengths, kind="stable")[: max(count, len(split) // 2)]
        rows = _cut(
            split,
            order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(int))],
        )
        targets: Any = [row["labels"] for row in rows]
        if not isinstance(targets[0], np.ndarray):  # a class, or a number
            targets = np.array(targets)
        of_a_decoder = split.parts.shape[1] > 1
        write_split(
            folder / f"{name}.arrow",
            Encoded(
                input_ids=[row["input_ids"] for row in rows],
                labels=None if of_a_decoder else targets,
                target_ids=targets if of_a_decoder else None,
                token_type_ids=_column(rows, "token_type_ids"),
                weights=_column(rows, "weights"),
                second=np.array(second, dtype=np.int32)
                if (second := _column(rows, "second"))
                else None,
            ),
        )
    write_manifest(folder, Manifest(task=task, labels=labels_of(data)))


def _column(rows: list[Row], name: str) -> list[np.ndarray] | None:
    """None: the split has no such column."""
    return [row[name] for row in rows] if name in rows[0] else None


def _cut(split: Split, chosen: np.ndarray) -> list[Row]:
    """Rows of at most `TOKENS` tokens, pairs of as many a sequence, their last ones kept: there are
    the end of the text and an answer's targets.
    """
    return [_joined(*map(_end, sequences_of(row))) for row in split.rows(chosen)]


def _end(row: Row) -> Row:
    return {
        name: value[-TOKENS:] if _is_of_tokens(name, value) else value
        for name, value in row.items()
    }


def _joined(first: Row, second: Row | None = None) -> Row:
    """A pair of its sequences; a row that is none as it is."""
    if second is None:
        return first
    both = {name: np.concatenate([first[name], second[name]]) for name in first}
    return {**both, "second": len(first["input_ids"])}


def _is_of_tokens(name: str, value: object) -> bool:
    """Labels may also be real numbers, one for each class."""
    if not isinstance(value, np.ndarray):
        return False
    return name != "labels" or np.issubdtype(value.dtype, np.integer)


def _passes(model: Any, folder: Path, task: str, spec: BaseSpec) -> None:
    """Whether a drawn model takes these rows at all, as a small one may not where the real one
    does.
    """
    batch = TASKS[task].collate(
        open_split(folder / "data", "train").sequences.rows([0, 1]), spec.pad_token_id
    )
    take_targets(batch, TASKS[task], model)
    if not bool(torch.isfinite(model(**batch).logits).all()):
        raise ArithmeticError("its logits are not finite")


@dataclass(frozen=True, kw_only=True)
class _Stage:
    folder: Path
    model: ModelConfig  # the miniature
    task: str
    labels: tuple[str, ...]
    pad_token_id: int

    def rehearse(self, hp: Hyperparameters, real: BaseModel) -> Rehearsed:
        """`real`: the shapes of the real base, on which the trial is planned first."""
        began = time.perf_counter()
        shares, memory, problem, by_settings, covers = False, None, None, False, None
        try:
            covers = _covers(real, hp)
            small = self._fitted(hp)
            if small is not None:
                shares, memory = self._life(small)
        except InputError as error:
            problem, by_settings = str(error), covers is None
        except Exception as error:  # the border: whatever it is, the sweep must hear of it now
            first = " ".join(str(error).split())[:300]
            problem = first if isinstance(error, _Differs) else f"{type(error).__name__}: {first}"
        if problem is not None:  # the miniature's folder is gone when this is read
            problem = problem.replace(
                str(self.folder / "model"), real.spec.model.name if real.spec else "the model"
            )
        return Rehearsed(
            what=_words(hp),
            problem=problem,
            by_settings=by_settings,
            shares=shares,
            covers=covers,
            memory=memory,
            seconds=time.perf_counter() - began,
        )

    def _fitted(self, hp: Hyperparameters) -> Hyperparameters | None:
        """The trial at the size of the miniature, with a rate at which two steps show; None: it
        names parameters that the miniature does not have.
        """
        options = hp.options
        if isinstance(options, LoraOptions):
            options = self._fitted_lora(hp.method, options)
        if isinstance(options, PartialOptions):
            small = shapes_of(self._spec("full"))
            if options.layers is not None:
                options = replace(
                    options, layers=min(options.layers, len(layer_lists(small.model)[0][1]))
                )
            else:
                try:
                    REPLACING[hp.method].attach(small, options)
                except InputError:
                    return None
        rate = 1e-2 if hp.method in ADDITIVE else 1e-3
        return replace(
            hp,
            options=options,
            learning_rate=rate,
            batch_size=3,
            epochs=10,
            schedule="constant",
            warmup_ratio=0.0,
        )

    def _fitted_lora(self, method: str, options: LoraOptions) -> LoraOptions:
        """Without a rank or names of layers that the miniature does not have."""
        try:
            with torch.device("meta"):
                ADDITIVE[method].plan(shapes_of(self._spec("full")), options)
        except InputError:
            return replace(options, rank=4, rank_pattern=(), alpha_pattern=())
        return options

    def _spec(self, method: str, options: Any = None) -> BaseSpec:
        return base_spec(
            self.model, TASKS[self.task], self.labels, self.pad_token_id, method, options
        )

    def _group(self) -> TrialGroup:
        settings = GroupSettings(probe_rows=VALIDATION_ROWS, varlen=False)
        return open_group(
            self.folder / "data",
            model=self.model,
            task=self.task,
            pad_token_id=self.pad_token_id,
            settings=settings,
            device=CPU,
        )

    def _life(self, hp: Hyperparameters) -> tuple[bool, float | None]:
        """Train, save, load, go on, and train in a group; whether the group changes nothing, and
        `Rehearsed.memory`.
        """
        group, saved = self._group(), self.folder / "saved"
        shutil.rmtree(saved, ignore_errors=True)
        group.join("one", hp)
        loss = _trained(group, ["one"], STEPS)["one"]
        group.save("one", saved)
        (saved / "evaluation.json").write_text(json.dumps({"step": STEPS}))
        memory = self._memory(group, hp) if hp.method in ADDITIVE else None
        alone = _trained(group, ["one"], 1)["one"]
        group.leave("one")
        spec = self._spec(hp.method, hp.options)
        tolerance = RELOADED if spec.quantisation == "none" else QUANTISED
        self._compare(
            "loaded again",
            self._loss(load_checkpoint(saved / "checkpoint", spec, CPU), spec, group),
            loss,
            tolerance,
        )
        by_card = BY_CARD if spec.quantisation != "none" else tolerance
        self._compare(
            "loaded by the code on the card",
            self._loss(self._by_the_card(saved, spec), spec, group),
            loss,
            by_card,
        )
        again = self._group()
        again.join("one", hp, saved)
        self._compare(
            "gone on from its checkpoint", _trained(again, ["one"], 1)["one"], alone, tolerance
        )
        again.leave("one")
        return hp.method in ADDITIVE and self._same_in_a_group(again, hp, alone), memory

    def _memory(self, group: TrialGroup, hp: Hyperparameters) -> float | None:
        """What a pass of the trial "one" takes over what is estimated of it."""
        took, tokens = group.memory_of_a_micro_batch("one")
        spec = self._spec(hp.method, hp.options)
        try:
            found = estimate(
                spec.config(),
                spec.auto_class,
                hp,
                dtype_bytes=4,
                compute_bytes=4,
                quantisation=spec.quantisation,
                max_tokens=tokens,
                gradient_checkpointing=False,
            )
        # an architecture that the formula does not know: `check` says so where it prints estimates
        except Exception:
            return None
        return took / found.activations

    @staticmethod
    def _same_in_a_group(group: TrialGroup, hp: Hyperparameters, alone: float) -> bool:
        try:
            group.join("one", hp)
            group.join("other", replace(hp, seed=hp.seed + 1, learning_rate=hp.learning_rate / 2))
            found = _trained(group, ["one", "other"], STEPS + 1)["one"]
        except Exception:  # whatever stands against a group: such trials have a base each
            return False
        return math.isclose(found, alone, rel_tol=TOGETHER)

    def _by_the_card(self, saved: Path, spec: BaseSpec) -> Any:
        winner = self.folder / "winner"
        shutil.rmtree(winner, ignore_errors=True)
        shutil.copytree(saved / "checkpoint", winner)
        complete(winner, spec, str(winner))
        said: dict[str, Any] = {}
        exec("\n".join(loading_code(winner, spec, str(winner))), said)
        return said["model"]

    def _loss(self, model: Any, spec: BaseSpec, group: TrialGroup) -> float:
        """In passes as those of `group`: a model that is loaded without its padding token must not
        hide it in others. spec: of its base.
        """

        def measured(model: Any, split: Split) -> RowResults:
            rows, task = np.arange(len(split)), TASKS[self.task]
            return evaluate_model(
                model, task, split, rows, self.pad_token_id, 4096, CPU, group.padded
            )

        split = open_split(self.folder / "data", "validation")
        split = with_reference(split, lambda pairs: measured(load_base_model(spec, CPU), pairs))
        return measured(model, split).loss

    @staticmethod
    def _compare(what: str, found: float, expected: float, tolerance: float) -> None:
        if not math.isclose(found, expected, rel_tol=tolerance):
            raise _Differs(f"{what} it gives a validation loss of {found:.6g}, not {expected:.6g}")


def _trained(group: TrialGroup, trials: Sequence[str], steps: int) -> dict[str, float]:
    """Validation loss of each trial after `steps` more; NaN where it is not finite."""
    for _ in range(steps):
        group.step(trials)
    return {
        trial: math.nan if evaluation.val_loss is None else evaluation.val_loss
        for trial, evaluation in group.evaluate(trials).items()
    }
