"""Steps, evaluations and checkpoints of a group against plain reference loops, and what must not change any result."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.trainables.engine.test_shared_base import factor
from trainables.data.batches import batch_indices
from trainables.engine.distributed import World
from trainables.engine.dropout import RowDropout
from trainables.engine.group import NonFinite
from trainables.engine.schedule import learning_rate
from trainables.errors import InputError
from trainables.storage.checkpoints import begin_attempt, write_pause
from trainables.storage.store import Store
from trainables.tasks import TASKS

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

METHODS = {
    "full": ("bert", {"method": "full"}),
    "partial": ("bert", {"method": "partial", "layers": 1}),
    "lora": ("bert", {"method": "lora", "dropout": 0.1, "rank": 4}),
    "dora": ("bert", {"method": "lora", "dropout": 0.1, "rank": 4, "use_dora": True}),
    "pissa": ("llama", {"method": "lora", "init_lora_weights": "pissa", "rank": 4}),
    "full-llama": ("llama", {"method": "full"}),
    "lora-llama": ("llama", {"method": "lora", "dropout": 0.1}),
    "full-opt": ("opt", {"method": "full"}),
    "qlora-llama": ("llama", {"method": "qlora", "dropout": 0.1}),
}


@pytest.fixture(params=METHODS)
def trained(request, lab):
    """A model and the hyperparameters of one method, dropout on where model or method has any."""
    model, chosen = METHODS[request.param]
    return model, lab.params(**chosen)


# --- a result depends on nothing but the configuration ---


def test_resumed_equals_uninterrupted_bit_for_bit(lab, trained, tmp_path):
    """Weights, moments and every number of the later evaluations, from the middle of an epoch."""
    model, hp = trained
    group = lab.group(model, evaluate_every=9)
    whole = lab.run(group, tmp_path / "whole", hp)
    assert [(evaluation.step, evaluation.epoch) for evaluation, _ in whole] == [
        (3, 0.6667),
        (5, 1.0),
        (8, 1.6667),
        (10, 2.0),
    ]
    lab.assert_same(lab.run(group, tmp_path / "resumed", hp, checkpoint=whole[0][1]), whole[1:])


def test_paused_between_two_evaluations_equals_uninterrupted_bit_for_bit(lab, trained, tmp_path):
    """The training loss of the evaluation that it was on the way to, too."""
    model, hp = trained
    whole = lab.run(lab.group(model), tmp_path / "whole", hp)
    group, store = lab.group(model), Store(str(tmp_path / "sweep"))
    attempt, _ = begin_attempt(store, "t")
    group.join("t", hp)
    group.step(["t"])
    group.step(["t"])
    write_pause(store, "t", attempt, group.position("t"), lambda folder: group.save("t", folder))
    _, origin = begin_attempt(store, "t")
    paused = tmp_path / "sweep" / origin
    lab.assert_same(lab.run(lab.group(model), tmp_path / "resumed", hp, checkpoint=paused), whole)


def test_resumed_in_a_fresh_slot_equals_uninterrupted_bit_for_bit(lab, tmp_path):
    hp = lab.params("lora", dropout=0.1)
    whole = lab.run(lab.group("bert"), tmp_path / "whole", hp)
    resumed = lab.run(lab.group("bert"), tmp_path / "resumed", hp, checkpoint=whole[0][1])
    lab.assert_same(resumed, whole[1:])


def test_a_group_counts_what_its_trials_train_on_and_not_what_it_times(lab):
    group, hp = lab.group("bert"), lab.params("lora", batch_size=4)
    group.join("a", hp)
    group.join("b", hp)
    group.step(["a", "b"])
    rows = batch_indices(len(group._train), 4, hp.seed, 0)
    tokens = int(group._train.sequence_lengths[rows].sum())
    assert (group.trained_samples, group.trained_tokens) == (8, 2 * tokens)
    group.leave("b")
    group.leave("a")
    group.time_step(hp, 2)
    assert (group.trained_samples, group.trained_tokens) == (8, 2 * tokens)


def test_a_finished_trial_leaves_no_training_state(lab, tmp_path):
    history = lab.run(lab.group("bert"), tmp_path, lab.params("lora"))
    assert [(folder / "training_state.safetensors").exists() for _, folder in history] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    "order",
    [
        ("full", "full"),
        ("full", "lora", "partial"),
        ("lora", "full", "lora"),
        ("partial", "lora", "full"),
    ],
)
def test_a_warm_slot_changes_no_result(lab, order, tmp_path):
    warm = lab.group("bert")
    for i, name in enumerate(order):
        hp = lab.params(**METHODS[name][1], epochs=1, seed=i)
        expected = lab.run(lab.group("bert"), tmp_path / f"{i}-fresh", hp)
        lab.assert_same(lab.run(warm, tmp_path / f"{i}-warm", hp), expected)


def test_a_warm_slot_changes_no_result_over_a_quantised_base(lab, tmp_path):
    warm = lab.group("llama")
    for i, name in enumerate(("qlora-llama", "full-llama", "qlora-llama")):
        hp = lab.params(**METHODS[name][1], epochs=1)
        expected = lab.run(lab.group("llama"), tmp_path / f"{i}-fresh", hp)
        lab.assert_same(lab.run(warm, tmp_path / f"{i}-warm", hp), expected)


def test_each_method_gets_a_base_of_its_own_type(lab, tmp_path):
    """As on a GPU, where frozen bases are smaller: what came before must not decide in what precision a trial trains."""
    dtypes = {"full": torch.float64, "lora": torch.float32}
    warm = lab.group("bert", dtypes=dtypes)
    for i, method in enumerate(("lora", "full", "lora")):
        hp = lab.params(method, epochs=1)
        expected = lab.run(lab.group("bert", dtypes=dtypes), tmp_path / f"{i}-fresh", hp)
        lab.assert_same(lab.run(warm, tmp_path / f"{i}-warm", hp), expected)
        saved = lab.tensors(expected[-1][1]).values()
        assert {tensor.dtype for tensor in saved} == {dtypes[method]}


def untuned(group, method):
    """Validation loss, probe loss and metrics of the untuned base."""
    results, probed = group.untuned_results(method)
    return results.loss, probed.loss, group.metrics(results)


def test_a_join_that_fails_leaves_no_trace(lab, tmp_path):
    hp = lab.params("lora")
    expected = lab.run(lab.group("bert"), tmp_path / "fresh", hp)
    group = lab.group("bert")
    baseline = untuned(group, "lora")
    for wrong in (
        lab.params("lora", targets=["q_proj"], seed=5),
        lab.params("partial", layers=9, seed=6),
    ):
        with pytest.raises(InputError):
            group.join("wrong", wrong)
        assert group.trials == []
    assert untuned(group, "lora") == baseline
    lab.assert_same(lab.run(group, tmp_path / "after", hp), expected)


def test_a_join_that_breaks_half_way_leaves_no_trace(lab, tmp_path, monkeypatch):
    from trainables.methods.lora import LowRank

    hp = lab.params("lora")
    expected = lab.run(lab.group("bert"), tmp_path / "fresh", hp)
    group, installed = lab.group("bert"), []
    install = LowRank.install

    def break_at_the_third(site):
        if len(installed) == 2:
            raise RuntimeError("half way")
        installed.append(site)
        return install(site)

    group.untuned_results("lora")
    with monkeypatch.context() as patch:
        patch.setattr(LowRank, "install", break_at_the_third)
        with pytest.raises(RuntimeError, match="half way"):
            group.join("wrong", hp)
    assert group.trials == []
    lab.assert_same(lab.run(group, tmp_path / "after", hp), expected)


@pytest.mark.parametrize("name", ["full", "lora", "qlora-llama"])
def test_leaving_in_the_middle_of_training_leaves_no_trace(lab, name, tmp_path):
    model, chosen = METHODS[name]
    hp = lab.params(**chosen, epochs=1)
    expected = lab.run(lab.group(model), tmp_path / "fresh", hp)
    group = lab.group(model)
    group.join("other", replace(hp, learning_rate=0.1, seed=9))
    group.step(["other"])
    group.leave("other")
    lab.assert_same(lab.run(group, tmp_path / "after", hp), expected)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_exploding_trial_ends_alone(lab, method, tmp_path):
    model, chosen = METHODS[method]
    hp = lab.params(**chosen)
    expected = lab.run(lab.group(model), tmp_path / "fresh", hp)
    group = lab.group(model)
    group.join("exploding", replace(hp, learning_rate=1e30, warmup_ratio=0.0))
    with pytest.raises(
        NonFinite, match=r"^the training loss or its gradient became non-finite at step [2-9]$"
    ):
        for _ in range(9):
            group.step(["exploding"])
    group.leave("exploding")
    assert group.trials == []
    lab.assert_same(lab.run(group, tmp_path / "after", hp), expected)


def test_evaluating_more_often_changes_no_weight(lab, tmp_path):
    hp = lab.params("lora", dropout=0.1)
    seldom = lab.run(lab.group("bert"), tmp_path / "seldom", hp)
    often = lab.run(lab.group("bert", evaluate_every=2), tmp_path / "often", hp)
    assert (len(seldom), len(often)) == (2, 10)
    saved, expected = (lab.tensors(history[-1][1]) for history in (often, seldom))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)
    assert often[-1][0].val_loss == seldom[-1][0].val_loss


# --- the token budget is a memory setting ---

EXACT = [(torch.float32, 1e-6), (torch.float64, 1e-10)]


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("full", *EXACT[0]),
        *((name, *EXACT[1]) for name in ("full", "partial", "lora", "full-llama", "lora-llama")),
    ],
)
def test_token_budget_leaves_gradients_as_they_are(lab, name, dtype, tolerance, tmp_path):
    model, chosen = METHODS[name]
    hp = lab.params(**chosen, batch_size=7, max_grad_norm=0.0)
    found = {
        budget: lab.first_gradients(
            lab.group(model, dtype=dtype, evaluate_every=1, max_tokens=budget),
            tmp_path / str(budget),
            hp,
        )
        for budget in (1, 20, 10**6)
    }
    assert {tensor.dtype for tensor in found[1].values()} == {dtype}
    lab.assert_close(found[1], found[10**6], tolerance)
    lab.assert_close(found[20], found[10**6], tolerance)


def test_budget_bounds_the_padded_tokens_of_a_pass(lab):
    group = lab.group("bert", max_tokens=24)
    group.untuned_results("full")
    sizes = []
    lab.bases[-1].model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append((kwargs["input_ids"].numel(), module.training)),
        with_kwargs=True,
    )
    group.join("t", lab.params(batch_size=18))
    group.step(["t"])
    assert len(sizes) > 1 and all(training and size <= 24 for size, training in sizes)
    sizes.clear()
    group.evaluate(["t"])
    assert len(sizes) > 1 and all(not training and size <= 24 for size, training in sizes)


@pytest.mark.parametrize("at_pass", [0, 1])
def test_out_of_memory_halves_the_budget_and_changes_no_result(lab, at_pass, tmp_path):
    hp = lab.params(batch_size=18, max_grad_norm=0.0)
    settings = {"dtype": torch.float64, "evaluate_every": 1, "max_tokens": 96}
    expected = lab.first_gradients(lab.group("bert", **settings), tmp_path / "enough", hp)
    group = lab.group("bert", **settings)
    group.untuned_results("full")
    sizes = []

    def run_out_once(module, args, kwargs):
        if module.training:
            sizes.append(kwargs["input_ids"].numel())
            if len(sizes) == at_pass + 1:
                raise torch.OutOfMemoryError("CUDA out of memory. (simulated)")

    lab.bases[-1].model.register_forward_pre_hook(run_out_once, with_kwargs=True)
    found = lab.first_gradients(group, tmp_path / "too-little", hp)
    assert sizes[0] > 48
    assert len(sizes) > at_pass + 2 and all(size <= 48 for size in sizes[at_pass + 1 :])
    lab.assert_close(found, expected, 1e-10)
    smaller = len(sizes)
    group.join("next", replace(hp, batch_size=18))
    group.step(["next"])
    assert all(size <= 48 for size in sizes[smaller:]), "what did not fit once is not tried again"


@pytest.mark.parametrize("fits", [1, 4])
def test_out_of_memory_in_an_evaluation_takes_it_in_smaller_passes(lab, fits, tmp_path):
    (expected, _), *_ = lab.run(
        lab.group("bert", evaluate_every=8), tmp_path / "enough", lab.params()
    )
    group = lab.group("bert", evaluate_every=8)
    group.untuned_results("full")
    sizes = []

    def run_out(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if not module.training and sizes[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. (simulated)")

    lab.bases[-1].model.register_forward_pre_hook(run_out, with_kwargs=True)
    (found, _), *_ = lab.run(group, tmp_path / "too-little", lab.params())
    assert max(sizes) > fits
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    assert found.val_loss == pytest.approx(expected.val_loss, rel=1e-6)
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-6)  # calibration is of shares


def test_a_row_that_does_not_fit_ends_the_evaluation(lab):
    group = lab.group("bert")
    group.untuned_results("full")

    def run_out(module, args):
        raise torch.OutOfMemoryError("CUDA out of memory. (simulated)")

    lab.bases[-1].model.register_forward_pre_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError):
        group.untuned_results("full")


def test_a_row_that_does_not_fit_ends_the_trial(lab):
    group = lab.group("bert")
    group.untuned_results("full")

    def run_out(module, args):
        raise torch.OutOfMemoryError("CUDA out of memory. (simulated)")

    lab.bases[-1].model.register_forward_pre_hook(run_out)
    group.join("t", lab.params())
    with pytest.raises(torch.OutOfMemoryError):
        group.step(["t"])


@pytest.mark.parametrize("name", ["full", "lora", "dora", "lora-llama"])
def test_gradient_checkpointing_changes_no_result(lab, name, tmp_path):
    """The recomputed pass must draw the masks of the first."""
    model, chosen = METHODS[name]
    hp = lab.params(**chosen, max_grad_norm=0.0)
    settings = {"dtype": torch.float64, "evaluate_every": 1}
    expected = lab.first_gradients(lab.group(model, **settings), tmp_path / "kept", hp)
    group = lab.group(model, **settings, gradient_checkpointing=True)
    found = lab.first_gradients(group, tmp_path / "recomputed", hp)
    lab.assert_close(found, expected, 1e-12)


def test_autocast_computes_in_its_type_and_trains_in_float32(lab, tmp_path):
    hp = lab.params("lora", max_grad_norm=0.0)
    exact = lab.first_gradients(lab.group("bert", evaluate_every=1), tmp_path / "float32", hp)
    found = lab.first_gradients(
        lab.group("bert", evaluate_every=1, autocast=torch.bfloat16), tmp_path / "bfloat16", hp
    )
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    with pytest.raises(AssertionError, match="differs by"):
        lab.assert_close(found, exact, 1e-6)
    lab.assert_close(found, exact, 0.1)


# --- parity with a plain loop ---


def start(lab, model, dtype, hp, folder):
    """The weights from which a trial starts, written as a checkpoint."""
    group = lab.group(model, dtype=dtype)
    group.join("t", hp)
    group.save("t", folder)
    return folder / "checkpoint"


def adamw(groups, hp):
    return torch.optim.AdamW(
        groups, lr=hp.learning_rate, betas=(hp.beta1, hp.beta2), eps=hp.epsilon
    )


def plain_loop(lab, model, dtype, hp, checkpoint, *, steps, optimizer=adamw, total=10):
    """The optimizer and transformers' own loss; the gradients of the first step, the losses, the module."""
    by_peft = hp.method in ("lora", "vera")
    module = lab.plain(model, None if by_peft else checkpoint, dtype=dtype)
    if by_peft:
        from peft import PeftModel

        module = PeftModel.from_pretrained(module, checkpoint, is_trainable=True)
    module.train()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    matrices = [p for p in trained.values() if p.ndim > 1]
    vectors = [p for p in trained.values() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": hp.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = optimizer(groups, hp)
    first, losses = {}, []
    for step in range(steps):
        rows = batch_indices(len(lab.split(model)), hp.batch_size, hp.seed, step)
        batch, labels = lab.batch(model, rows)
        output = module(**batch, labels=labels)
        loss = output.loss
        if (
            dtype == torch.float64 and output.logits.ndim == 3
        ):  # transformers computes this one in float32
            loss = torch.nn.functional.cross_entropy(
                output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if not first:
            first = {_saved_name(name): p.grad.clone() for name, p in trained.items()}
        if hp.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained.values(), hp.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = hp.learning_rate * factor(hp, step, total)
        optimizer.step()
    return first, losses, module


def _saved_name(name):
    """PEFT's parameter as its checkpoints call it."""
    saved = name.replace(".modules_to_save", "").replace(".default", "")
    return saved.removesuffix(".weight") if "lora_magnitude_vector" in name else saved


PARITY = [
    ("full", "bert-no-dropout", {}),
    ("full", "llama", {}),
    ("lora", "bert-no-dropout", {"rank": 4}),
    ("lora", "llama", {"rank": 4, "rslora": True, "targets": "attention"}),
    ("lora", "llama", {"rank": 4, "use_dora": True}),
    ("vera", "llama", {"rank": 16}),
]


@pytest.mark.parametrize(("dtype", "tolerance"), EXACT, ids=str)
@pytest.mark.parametrize(("method", "model", "options"), PARITY)
def test_gradients_equal_those_of_a_plain_loop(
    lab, method, model, options, dtype, tolerance, tmp_path
):
    hp = lab.params(method, **options, max_grad_norm=0.0)
    checkpoint = start(lab, model, dtype, hp, tmp_path)
    expected, _, _ = plain_loop(lab, model, dtype, hp, checkpoint, steps=1)
    found = lab.first_gradients(
        lab.group(model, dtype=dtype, evaluate_every=1), tmp_path / "group", hp
    )
    lab.assert_close(found, expected, tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str
)
@pytest.mark.parametrize(("method", "model", "options"), PARITY)
def test_losses_and_weights_equal_those_of_a_plain_loop(
    lab, method, model, options, dtype, tolerance, tmp_path
):
    """Ten steps with clipping, weight decay and a schedule. epsilon is large: Adam divides rounding errors by it."""
    hp = lab.params(
        method, **options, warmup_ratio=0.2, epsilon=1e-4, weight_decay=0.1, max_grad_norm=0.5
    )
    _, losses, module = plain_loop(
        lab, model, dtype, hp, start(lab, model, dtype, hp, tmp_path), steps=10
    )
    history = lab.run(lab.group(model, dtype=dtype), tmp_path / "group", hp)
    split = lab.split(model)
    weights = [
        lab.task(model).target_count(split.rows(batch_indices(len(split), 4, 0, step)))
        for step in range(10)
    ]
    for (evaluation, _), part in zip(history, (slice(0, 5), slice(5, 10)), strict=True):
        assert evaluation.train_loss == pytest.approx(
            np.average(losses[part], weights=weights[part]), rel=tolerance
        )
    module.eval()
    module.save_pretrained(tmp_path / "plain")
    found, expected = lab.tensors(history[-1][1] / "checkpoint"), lab.tensors(tmp_path / "plain")
    lab.assert_close(found, expected, tolerance)
    untrained = lab.tensors(tmp_path / "checkpoint")
    with pytest.raises(AssertionError, match="differs by"):
        lab.assert_close(untrained, expected, 1e-3)


# --- validation and probe ---


def mean_over_single_rows(lab, model, module, split):
    total, targets = 0.0, 0
    for row in range(len(lab.split(model, split))):
        batch, labels = lab.batch(model, [row], split)
        with torch.no_grad():
            loss = float(module(**batch, labels=labels).loss)
        count = (
            1 if lab.task(model).name == "classification" else int((labels[:, 1:] != -100).sum())
        )
        total, targets = total + loss * count, targets + count
    return total / targets


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_losses_are_means_over_rows_or_tokens_of_the_saved_checkpoint(lab, model, tmp_path):
    group = lab.group(model, max_tokens=40, evaluate_every=8)
    (evaluation, folder), *_ = lab.run(group, tmp_path, lab.params())
    module = lab.plain(model, folder / "checkpoint")
    assert evaluation.val_loss == pytest.approx(
        mean_over_single_rows(lab, model, module, "validation"), rel=1e-6
    )
    assert evaluation.probe_loss == pytest.approx(
        mean_over_single_rows(lab, model, module, "train"), rel=1e-6
    )
    nll, targets = evaluation.losses.astype(np.float64).T
    assert evaluation.losses.dtype == np.float32 and evaluation.losses.shape == (9, 2)
    assert nll.sum() / targets.sum() == pytest.approx(evaluation.val_loss, rel=1e-6)


def test_baseline_is_the_untuned_model(lab):
    val_loss, probe_loss, metrics = untuned(lab.group("llama"), "full")
    module = lab.plain("llama")
    assert val_loss == pytest.approx(
        mean_over_single_rows(lab, "llama", module, "validation"), rel=1e-6
    )
    assert probe_loss == pytest.approx(
        mean_over_single_rows(lab, "llama", module, "train"), rel=1e-6
    )
    assert metrics["perplexity"] == pytest.approx(math.exp(val_loss), rel=1e-6)


class Recorded:
    """A split that notes which rows are read."""

    def __init__(self, split):
        self._split = self.sequences = split
        self.lengths, self.read = split.lengths, []
        self.sequence_lengths = split.sequence_lengths
        self.target_bytes, self.kinds, self.parts = split.target_bytes, split.kinds, split.parts

    def __len__(self):
        return len(self._split)

    def rows(self, indices):
        self.read.extend(int(i) for i in indices)
        return self._split.rows(indices)


def test_probe_rows_are_the_same_for_every_trial_and_slot(lab):
    def probe(trial_seed, sweep_seed, max_tokens=4096):
        train = Recorded(lab.split("bert"))
        group = lab.group("bert", train=train, probe_rows=6, seed=sweep_seed, max_tokens=max_tokens)
        group.join("t", lab.params(seed=trial_seed))
        group.step(["t"])
        train.read.clear()
        group.evaluate(["t"])
        return sorted(train.read)

    rows = probe(0, 0)
    assert len(set(rows)) == 6
    assert probe(1, 0) == probe(2, 0, max_tokens=1) == rows
    assert probe(0, 1) != rows


def test_an_evaluation_says_where_the_trial_stands(lab, tmp_path):
    hp = lab.params("lora", rank=2, targets=["query"], epochs=1.5, warmup_ratio=0.0)
    first, last = (evaluation for evaluation, _ in lab.run(lab.group("bert"), tmp_path, hp))
    assert (first.step, first.samples_seen, first.epoch, first.finished) == (5, 18, 1.0, False)
    assert (last.step, last.samples_seen, last.epoch, last.finished) == (7, 26, 1.4444, True)
    assert first.learning_rate == pytest.approx(hp.learning_rate * 3 / 7)
    assert last.learning_rate == pytest.approx(hp.learning_rate * 1 / 7)
    assert first.trainable_parameters == 2 * (2 * 32 + 32 * 2) + (32 * 3 + 3)
    assert set(first.metrics) == set(TASKS["classification"].metric_names)


# --- seeds ---


def test_the_seed_draws_head_adapters_order_and_dropout(lab, tmp_path):
    def begin(name, **more):
        group = lab.group("bert")
        group.join("t", lab.params("lora", **more))
        group.save("t", tmp_path / name / "start")
        before = lab.tensors(tmp_path / name / "start")
        train = [batch_indices(18, 4, more["seed"], step).tolist() for step in range(5)]
        return before, train

    zero, order = begin("zero", seed=0)
    again, order_again = begin("again", seed=0)
    one, other_order = begin("one", seed=1)
    assert zero.keys() == again.keys() == one.keys()
    assert all(torch.equal(zero[name], again[name]) for name in zero)
    drawn = [
        name
        for name in zero
        if "exp_avg" not in name and "lora_B" not in name and not name.endswith("bias")
    ]
    assert any("classifier" in name for name in drawn) and any("lora_A" in name for name in drawn)
    assert not any(torch.equal(zero[name], one[name]) for name in drawn)
    assert order == order_again != other_order


def test_a_trial_reads_the_rows_of_its_own_order(lab):
    for seed in (0, 3):
        train = Recorded(lab.split("bert"))
        group = lab.group("bert", train=train)
        group.join("t", lab.params(seed=seed))
        for step in range(7):
            train.read.clear()
            group.step(["t"])
            assert set(train.read) == set(batch_indices(18, 4, seed, step).tolist())


def test_every_row_of_every_step_and_seed_has_a_mask_of_its_own(lab):
    seen = []
    for seed in (0, 1):
        group = lab.group("bert", evaluate_every=1)
        group.untuned_results("full")
        dropout = next(
            module for module in lab.bases[-1].model.modules() if isinstance(module, RowDropout)
        )
        dropout.register_forward_pre_hook(
            lambda module, args: (
                seen.extend(module.keys.keys_B.tolist()) if module.training else None
            )
        )
        group.join("t", lab.params(batch_size=18, epochs=3, seed=seed))
        for _ in range(3):
            group.step(["t"])
    assert len(seen) == 2 * 3 * 18 == len(set(seen))


def test_other_seed_other_result(lab, tmp_path):
    losses = [
        lab.run(lab.group("bert"), tmp_path / str(i), lab.params("full", seed=seed))[-1][0].val_loss
        for i, seed in enumerate((0, 0, 1))
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("model", ["bert", "opt"])
def test_the_outer_generator_decides_nothing(lab, model, tmp_path):
    """OPT drops out in a function, which draws from torch's generator: it is seeded for each step."""
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(
            lab.run(lab.group(model), tmp_path / str(seed), lab.params("lora", dropout=0.1))
        )
    lab.assert_same(*results)


# --- counting ---


@pytest.mark.parametrize(
    ("batch_size", "epochs", "evaluate_every", "due"),
    [
        (4, 2, None, [5, 10]),
        (4, 0.5, None, [2]),
        (4, 1.5, None, [5, 7]),
        (4, 0.01, None, [1]),
        (18, 3, None, [1, 2, 3]),
        (100, 2, None, [1, 2]),
        (4, 1, 4, [1, 2, 3, 4, 5]),
        (4, 1, 1, [1, 2, 3, 4, 5]),
        (4, 1, 10, [3, 5]),
        (4, 2, 10, [3, 6, 8, 10]),
        (4, 2, 18, [5, 10]),
        (4, 2, 27, [8, 10]),
        (4, 2, 1000, [10]),
        (1, 0.5, 9, [9]),
        (2, 1.1, 9, [5, 9, 10]),
    ],
)
def test_evaluations_are_due_where_they_should_be(lab, batch_size, epochs, evaluate_every, due):
    hp = lab.params("partial", layers=0, batch_size=batch_size, epochs=epochs)
    group = lab.group("bert", evaluate_every=evaluate_every)
    group.join("t", hp)
    found = []
    for step in range(1, group.total_steps(hp) + 1):
        if group.step(["t"]):
            found.append(step)
        epoch, batch = divmod(step, math.ceil(18 / batch_size))
        assert group.progress("t") == epoch * 18 + batch * batch_size
    assert found == due


@pytest.mark.parametrize(
    ("epochs", "steps"), [(1, 10), (1.1, 11), (0.7, 7), (2.05, 20), (0.001, 1), (8.2, 82)]
)
def test_a_group_trains_whole_epochs_and_the_nearest_number_of_batches(lab, epochs, steps):
    assert (
        lab.group("bert", train=range(95)).total_steps(lab.params(batch_size=10, epochs=epochs))
        == steps
    )


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("linear", {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 5: 15 / 16, 12: 0.5, 19: 1 / 16}),
        (
            "cosine",
            {
                0: 0.25,
                3: 1.0,
                4: 1.0,
                8: 0.5 * (1 + math.sqrt(0.5)),
                12: 0.5,
                16: 0.5 * (1 - math.sqrt(0.5)),
                19: 0.5 * (1 + math.cos(math.pi * 15 / 16)),
            },
        ),
        ("constant", {0: 0.25, 2: 0.75, 3: 1.0, 4: 1.0, 19: 1.0}),
    ],
)
def test_schedule(lab, schedule, rates):
    """Twenty steps, four of warm-up."""
    hp = lab.params(schedule=schedule, warmup_ratio=0.2, learning_rate=0.01)
    assert {step: learning_rate(hp, step, 20) for step in rates} == pytest.approx(
        {step: 0.01 * rate for step, rate in rates.items()}
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.07, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 100])
def test_no_step_is_wasted_on_a_rate_of_zero(lab, schedule, warmup_ratio, total):
    hp = lab.params(schedule=schedule, warmup_ratio=warmup_ratio, learning_rate=1.0)
    rates = [learning_rate(hp, step, total) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = math.ceil(round(warmup_ratio * total, 6))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == 1.0


@pytest.mark.parametrize(
    "first, second", [("lora", "full"), ("full", "lora"), ("full", "full"), ("lora", "qlora")]
)
def test_who_cannot_share_a_base_is_not_let_in(lab, first, second):
    group = lab.group("llama")
    group.join("a", lab.params(first))
    with pytest.raises(AssertionError, match="b cannot share"):
        group.join("b", lab.params(second))
    assert group.trials == ["a"]


def test_one_worker_sends_nothing():
    World().sum([torch.ones(2)])  # no process group is there to send to


def test_joining_and_leaving_leave_nothing_behind(lab):
    """Not in cycles either: a copy of a base is large."""
    import gc
    import weakref

    from trainables.engine.sites import AdapterSite

    group, made, init = lab.group("bert"), [], AdapterSite.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            AdapterSite,
            "__init__",
            lambda self, *args: (init(self, *args), made.append(weakref.ref(self)))[0],
        )
        gc.collect()
        gc.disable()
        try:
            for trial in "abcd":
                group.join(trial, lab.params("lora"))
            group.step(["a", "c"])
            group.leave("b")
            alive = [site() for site in made if site() is not None]
        finally:
            gc.enable()
    assert len(alive) == len({(type(site), site.name) for site in alive}) < len(made)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_over_a_quantised_base_do_not_see_each_other(lab, bits):
    """Norms are scaled so that activations have outliers, which LLM.int8 looks for over all rows of a micro-batch."""
    base = lab.base("llama", quantisation={4: "nf4", 8: "int8"}[bits])
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if "norm" in name:
                parameter.mul_(4)
    batch, _ = lab.batch("llama", range(6))
    with torch.no_grad():
        together = base.model(**batch).logits
        alone = torch.cat(
            [base.model(**{k: v[i : i + 1] for k, v in batch.items()}).logits for i in range(6)]
        )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
