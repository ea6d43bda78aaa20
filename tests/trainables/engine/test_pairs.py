"""Preference pairs in a trial group: two sequences a row, and what the untuned base makes of them."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainables.conftest import CPU, PAD, PAIRS, VALIDATION_PAIRS
from trainables.data.arrow import Sequences, Split
from trainables.data.batches import batch_indices
from trainables.engine.schedule import learning_rate
from trainables.engine.scoring import padded_lengths, with_reference
from trainables.hyperparameters import Hyperparameters
from trainables.models.checkpoint import load_checkpoint
from trainables.tasks import TASKS, take_targets
from trainables.tasks.preference.losses import BETA, pair_losses

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)
TASK = TASKS["preference"]
METHODS: dict[str, dict[str, object]] = {
    "lora": {"rank": 4},
    "dora": {"method": "lora", "rank": 4, "use_dora": True},
    "ia3": {},
    "adapter": {"bottleneck": 4},
    "vera": {"rank": 8, "learning_rate": 3e-2},
    "prompt": {"virtual_tokens": 3, "learning_rate": 1e-1},
    "full": {},
    "partial": {"layers": 1},
}


@pytest.fixture(scope="module")
def data(lab) -> Mapping[str, Split]:
    return lab.pairs()


def group_of(lab, data, *, dtype=torch.float64, **settings):
    return lab.group("llama", task="preference", dtype=dtype, **data, **settings)


def hp_of(lab, way="lora", **more):
    return lab.params(**{"method": way, **METHODS.get(way, {}), "batch_size": 3, **more})


def log_probabilities(model, split):
    """Of each pair's answers, one sequence at a time [N, 2]."""
    found = []
    for row in Sequences(split).rows(range(2 * len(split))):
        ids = torch.from_numpy(row["input_ids"].astype(np.int64))[None]
        labels = torch.from_numpy(row["labels"].astype(np.int64))[0:]
        logits = model(input_ids=ids).logits[0, -ids.shape[1] :]
        logp = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        found.append(logp[labels[1:] != -100].sum())
    return torch.stack(found).view(-1, 2)


def test_a_row_of_pairs_is_two_sequences(data):
    split = data["train"]
    (row,) = split.rows([3])
    at = row["second"]
    assert split.sequence_lengths[3].tolist() == [at, len(row["input_ids"]) - at]
    assert split.lengths[3] == len(row["input_ids"])
    both = split.sequences.rows([6, 7])
    assert (
        np.concatenate([each["input_ids"] for each in both]).tolist() == row["input_ids"].tolist()
    )
    assert padded_lengths(split, np.array([3]), 5) == [2 * (split.sequence_lengths[3].max() + 5)]
    batch = TASK.collate(split.beside(reference=np.zeros((PAIRS, 2))).rows([3, 4]), PAD)
    assert batch["input_ids"].shape[0] == 4 and batch["reference"].shape == (2, 2)


def test_untuned_base_knows_no_preference(lab, data):
    results, probed = group_of(lab, data).untuned_results("lora")
    for found in (results, probed):
        assert found.loss == pytest.approx(np.log(2), abs=1e-12)
        assert found.metrics(TASK) == {
            "reward_accuracy": 0.5, "reward_margin": 0.0, "chosen_change": 0.0
        }  # fmt: skip


@pytest.mark.parametrize("way", METHODS)
def test_losses_of_a_trial_are_those_of_plain_models(lab, data, tmp_path, way):
    """Of a checkpoint as a user loads it, and of the untuned model, one sequence at a time."""
    group, hp = group_of(lab, data), hp_of(lab, way)
    history = lab.run(group, tmp_path, hp)
    evaluation, folder = history[-1]
    spec = replace(lab.spec("llama", dtype=torch.float64), quantisation="none")
    tuned, base = (
        load_checkpoint(folder / "checkpoint", spec, CPU),
        lab.plain("llama", dtype=torch.float64),
    )
    with torch.no_grad():
        after, before = (
            log_probabilities(each.double(), data["validation"]) for each in (tuned, base)
        )
    changes = (after - before).numpy()
    losses = np.logaddexp(0, -BETA * (changes[:, 0] - changes[:, 1]))
    rounding = 1e-5 if way in ("full", "partial") else 1e-8  # of what is saved in the base's type
    np.testing.assert_allclose(evaluation.outcomes, changes, rtol=1e-5, atol=1e-5)
    assert evaluation.val_loss == pytest.approx(losses.mean(), abs=rounding)
    assert evaluation.val_loss != pytest.approx(np.log(2), abs=1e-4)
    assert evaluation.metrics == pytest.approx(TASK.metrics(changes), abs=1e-5)


# --- the loss is TRL's ---


def trl_loss(log_probs_2BT, is_answer_2BT, reference_B2, loss_type, beta):
    """TRL's own lines, over log-probabilities of tokens that are given; sequences as here, [chosen, rejected] by pair."""
    trainer = pytest.importorskip(
        "trl.trainer.dpo_trainer", reason="TRL is not installed"
    ).DPOTrainer

    def by_side(x):
        return torch.cat([x[::2], x[1::2]])

    some = torch.zeros(1)
    accelerator = SimpleNamespace(device=CPU, gather=lambda x: x, gather_for_metrics=lambda x: x)
    own = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[loss_type], loss_weights=[1.0],
        beta=beta, label_smoothing=0.0, use_weighting=False, _total_train_tokens=0, _tp_size=1,
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    mask = by_side(is_answer_2BT).long()
    log_probs = by_side(log_probs_2BT)[:, 1:] * mask[:, 1:]
    beside = {name: torch.zeros_like(log_probs) for name in ("entropy", "mean_logits")}
    output = SimpleNamespace(log_probs=log_probs, is_top1=mask[:, 1:].bool(), **beside)
    inputs = {
        "input_ids": mask, "attention_mask": some, "completion_mask": mask,
        "ref_chosen_logps": reference_B2[:, 0], "ref_rejected_logps": reference_B2[:, 1],
    }  # fmt: skip
    return trainer._compute_loss(own, lambda **_: output, inputs, False)


@pytest.mark.parametrize("loss_type", get_args(get_type_hints(Hyperparameters)["loss_type"]))
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_losses_and_gradients_are_trl_s(lab, loss_type, beta):
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(8, 6, generator=generator, dtype=torch.float64) * 4
    is_answer = torch.arange(6) < torch.tensor([4, 2, 6, 6, 3, 5, 2, 6])[:, None]
    is_answer &= torch.arange(6) > 0
    reference = -torch.rand(4, 2, generator=generator, dtype=torch.float64) * 9
    hps = [lab.params("lora", loss_type=loss_type, beta=beta)] * 4
    found = []
    for ours in (True, False):
        x = log_probs.clone().requires_grad_()
        if ours:
            sums = -(x * is_answer).sum(1)
            losses, targets, changes = pair_losses(sums, is_answer.sum(1), reference, hps)
            assert targets.tolist() == [1] * 4 and not changes.requires_grad
            loss = losses.mean()
        else:
            loss = trl_loss(x, is_answer, reference, loss_type, beta)
        loss.backward()
        found.append((float(loss.detach()), x.grad))
    (mine, my_gradient), (theirs, their_gradient) = found
    assert mine == pytest.approx(theirs, rel=1e-12)
    torch.testing.assert_close(my_gradient, their_gradient, rtol=1e-10, atol=1e-14)


def test_losses_by_hand(lab):
    """What TRL's formulas give where it is not there to be asked."""
    nll, tokens = torch.tensor([3.0, 6.0]), torch.tensor([2, 4])
    reference = torch.tensor([[-5.0, -4.0]], dtype=torch.float64)
    # changes: chosen -3 + 5 = 2, rejected -6 + 4 = -2; margin 4, of means 1 + 0.5 = 1.5

    def loss(**more):
        hps = None if more == {} else [lab.params("lora", **more)]
        return float(pair_losses(nll, tokens, reference, hps)[0])

    def surprise(x):
        return math.log1p(math.exp(-x))

    assert loss() == pytest.approx(surprise(0.4))
    assert loss(beta=0.5) == pytest.approx(surprise(2.0))
    assert loss(beta=0.5, loss_type="sigmoid_norm") == pytest.approx(surprise(0.75))
    assert loss(beta=0.5, loss_type="ipo") == pytest.approx((1.5 - 1.0) ** 2)
    smooth = loss(beta=0.5, label_smoothing=0.1)
    assert smooth == pytest.approx(0.9 * surprise(2.0) + 0.1 * surprise(-2.0))


@pytest.mark.parametrize("loss_type", get_args(get_type_hints(Hyperparameters)["loss_type"]))
def test_a_trial_is_a_loop_over_peft_and_trl(lab, data, tmp_path, loss_type):
    """Four steps, each with its own pairs, of `torch.optim.AdamW`."""
    from peft import PeftModel

    hp = hp_of(lab, beta=0.5, loss_type=loss_type, epochs=1, max_grad_norm=0, weight_decay=0.1)
    group = group_of(lab, data, max_tokens=30)
    group.join("t", hp)
    group.save("t", tmp_path / "start")
    base = lab.plain("llama", dtype=torch.float64)
    split = data["train"]
    with torch.no_grad():
        reference = log_probabilities(base, split)
    module = PeftModel.from_pretrained(base, tmp_path / "start/checkpoint", is_trainable=True)
    optimiser = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad], weight_decay=0.1
    )
    losses = []
    for step in range(group.total_steps(hp)):
        rows = batch_indices(len(split), 3, hp.seed, step)
        batch = TASK.collate(split.beside(reference=reference.numpy()).rows(rows), PAD)
        labels, _, own = take_targets(batch, TASK, base)
        ids = batch["input_ids"]
        log_probs = module(**batch).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])
        log_probs = torch.cat([torch.zeros(len(ids), 1), log_probs[..., 0]], 1)
        loss = trl_loss(log_probs, labels != -100, own, loss_type, 0.5)
        optimiser.param_groups[0]["lr"] = learning_rate(hp, step, group.total_steps(hp))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()) * len(rows))
        group.step(["t"])
    found = group.evaluate(["t"])["t"]
    assert found.train_loss == pytest.approx(sum(losses) / len(split), rel=1e-6)
    group.save("t", tmp_path / "end")
    mine = load_file(tmp_path / "end/checkpoint/adapter_model.safetensors")
    theirs = {
        name.replace(".default", ""): p.detach()
        for name, p in module.named_parameters()
        if p.requires_grad
    }
    lab.assert_close(mine, theirs, 1e-7)
    assert found.val_loss != pytest.approx(math.log(2), abs=1e-5)


# --- in company, in pieces, by several workers, after a stop ---

WAYS = {
    "plain": {},
    "mild": {"beta": 0.01},
    "strict": {"beta": 1.0, "dropout": 0.2},
    "means": {"loss_type": "sigmoid_norm", "beta": 2.0},
    "ipo": {"loss_type": "ipo"},
    "doubtful": {"label_smoothing": 0.2},
    "noisy": {"neftune_alpha": 10.0},
}


def test_in_company_each_gets_what_it_gets_alone(lab, data, tmp_path):
    trials = {name: hp_of(lab, **way) for name, way in WAYS.items()}
    trials |= {name: hp_of(lab, name, beta=0.3) for name in ("ia3", "adapter", "vera", "dora")}
    together = lab.together(group_of(lab, data, max_tokens=60), tmp_path / "together", trials)
    for name, hp in trials.items():
        alone = lab.run(group_of(lab, data), tmp_path / name, hp)
        lab.assert_alike(together[name], alone, 1e-8)
    finals = {name: found[-1][0].val_loss for name, found in together.items()}
    assert len(set(finals.values())) == len(finals)  # each of them does something


@pytest.mark.parametrize("way", ["lora", "prompt"])
def test_rows_without_padding_give_the_same(lab, data, tmp_path, way):
    hp = hp_of(lab, way, beta=0.5, neftune_alpha=5.0, **({"dropout": 0.2} if way == "lora" else {}))
    padded = lab.run(group_of(lab, data, varlen=False), tmp_path / "padded", hp)
    flat = lab.run(group_of(lab, data, varlen=True, max_tokens=50), tmp_path / "flat", hp)
    lab.assert_alike(flat, padded, 1e-8)


def test_answers_of_a_pair_drop_out_apart(lab, data):
    """As two rows would: else the same mask would stand for both in the margin."""
    group = group_of(lab, data)
    group.join("t", hp_of(lab, dropout=0.5))
    keys = []
    group._keys.set, kept = lambda *given: keys.append(given[2]) or kept(*given), group._keys.set
    group.step(["t"])
    named = torch.cat(keys).tolist()
    rows = batch_indices(PAIRS, 3, 0, 0).tolist()
    assert sorted(named) == sorted([2 * r for r in rows] + [2 * r + 1 for r in rows])


@pytest.mark.parametrize("way", ["lora", "full"])
def test_it_goes_on_after_a_stop_as_if_there_had_been_none(lab, data, tmp_path, way):
    """The reference is then that of the base before the checkpoint is put into it."""
    hp = hp_of(lab, way, beta=0.5)
    whole = lab.run(group_of(lab, data, dtype=torch.float32), tmp_path / "whole", hp)
    rest = lab.run(group_of(lab, data, dtype=torch.float32), tmp_path / "rest", hp, whole[0][1])
    lab.assert_same(rest, whole[1:])


def test_reference_is_computed_once_for_a_base(lab, data, tmp_path, monkeypatch):
    """Of train and validation, whatever trains over it, also after trials that changed it."""
    made = []
    monkeypatch.setattr(
        "trainables.engine.group.with_reference",
        lambda split, measure: made.append(len(split)) or with_reference(split, measure),
    )
    group = group_of(lab, data)
    first = lab.run(group, tmp_path / "first", hp_of(lab))
    lab.run(group, tmp_path / "changed", hp_of(lab, "full"))
    again = lab.run(group, tmp_path / "again", hp_of(lab))
    group.forget_base()
    loaded = lab.run(group, tmp_path / "loaded", hp_of(lab))
    lab.assert_same(first, again)
    lab.assert_same(first, loaded)
    assert made == [PAIRS, VALIDATION_PAIRS]


def test_memory_that_does_not_suffice_halves_pairs(lab, data, monkeypatch):
    """A pair is not cut: a single one that does not fit is an error."""
    group = group_of(lab, data)
    group.join("t", hp_of(lab))
    expected = group.evaluate(["t"])["t"]
    sizes, forward, most = [], group._engine.forward, 4

    def tight(batch, micro_batch):
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError
        return forward(batch, micro_batch)

    monkeypatch.setattr(group._engine, "forward", tight)
    assert group.evaluate(["t"])["t"].val_loss == pytest.approx(expected.val_loss, rel=1e-12)
    assert max(sizes) > most and set(sizes[-3:]) <= {2, 4}
    most = 1
    with pytest.raises(torch.OutOfMemoryError):
        group.evaluate(["t"])


def test_forgetting_is_measured_of_prompts_and_general_text(lab, data):
    group = group_of(lab, data, general=lab.general())
    group.join("t", hp_of(lab, learning_rate=3e-2, epochs=10))
    start = group.evaluate(["t"])["t"]
    assert start.forgetting == pytest.approx(0, abs=1e-12) and start.kl == pytest.approx(
        0, abs=1e-12
    )
    for _ in range(20):
        group.step(["t"])
    assert abs(group.evaluate(["t"])["t"].forgetting) > 1e-3


def test_pairs_are_learnt(lab, data):
    group = group_of(lab, data)
    group.join("t", hp_of(lab, learning_rate=1e-2, epochs=20, beta=0.5))
    while not (found := group.evaluate(["t"])["t"]).finished:
        group.step(["t"])
    assert found.probe_loss < 0.5 * math.log(2)
