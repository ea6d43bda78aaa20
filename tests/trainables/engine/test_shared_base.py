"""Several trials at once over one base: each gets what it would get alone, and what a plain loop over PEFT gives."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import peft
import pytest
import torch

import trainables.tasks.causal_lm.task
from trainables.data.batches import batch_indices, steps_per_epoch
from trainables.engine.group import NonFinite
from trainables.engine.schedule import total_steps
from trainables.errors import InputError
from trainables.methods.lora import target_modules

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

# unlike in all that a group mixes; the names of modules are those of (bert, llama)
UNLIKE = {
    "a": {
        "rank": 2,
        "alpha": 16,
        "batch_size": 4,
        "epochs": 2,
        "weight_decay": 0.1,
        "warmup_ratio": 0.2,
    },
    "b": {
        "rank": 16,
        "alpha": 4,
        "rslora": True,
        "targets": "attention",
        "learning_rate": 1e-3,
        "batch_size": 7,
        "epochs": 3,
        "schedule": "cosine",
        "warmup_ratio": 0.3,
        "max_grad_norm": 0,
        "beta1": 0.8,
        "beta2": 0.95,
        "epsilon": 1e-6,
        "seed": 3,
    },
    "c": {
        "rank": 8,
        "targets": (["query", "output.dense"], ["q_proj", "down_proj"]),
        "learning_rate": 1e-2,
        "batch_size": 1,
        "epochs": 0.6,
        "schedule": "constant",
        "warmup_ratio": 0,
        "weight_decay": 0,
        "max_grad_norm": 0.05,
        "loraplus_ratio": 4,
        "seed": 5,
    },
    "d": {
        "rank": 1,
        "alpha": 1,
        "targets": (["layer.1.intermediate.dense"], ["layers.1.mlp.up_proj"]),
        "learning_rate": 2e-2,
        "batch_size": 18,
        "epochs": 4,
        "max_grad_norm": 0.3,
        "loraplus_ratio": 16,
        "epsilon": 1e-5,
        "seed": 3,
    },
    "e": {
        "rank": 3,
        "rslora": True,
        "use_dora": True,
        "batch_size": 4,
        "epochs": 1.5,
        "warmup_ratio": 1,
        "beta1": 0,
        "seed": 2**32 - 1,
    },
}
DROPOUTS = {"a": 0.1, "b": 0.0, "c": 0.5, "d": 0.3, "e": 0.05}


def unlike(lab, model, *, dropout=False, method="lora", only="abcde", **more):
    """The trials of UNLIKE by name, over `model`."""
    trials = {}
    for name in only:
        params = dict(UNLIKE[name])
        if isinstance(params.get("targets"), tuple):
            params["targets"] = params["targets"][0 if model.startswith("bert") else 1]
        if dropout:
            params["dropout"] = DROPOUTS[name]
        trials[name] = lab.params(method, **params | more)
    return trials


# --- a plain loop over PEFT ---


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a plain loop found: at each evaluation validation, probe and training loss; the weights at the end."""

    losses: list[tuple[float, float, float]]
    weights: dict[str, torch.Tensor]


def nll_of(lab, model, module, rows, split="train", padding=0):
    """Summed loss of some rows, and how many targets they have; `padding`: more of it than the longest row needs."""
    batch, labels = lab.batch(model, rows, split)
    inputs = {name: torch.nn.functional.pad(x, (0, padding)) for name, x in batch.items()}
    logits = module(**inputs).logits
    if logits.ndim == 2:
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), len(labels)
    shifted = labels[:, 1:].flatten()
    logits = logits[:, : labels.shape[1] - 1].flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(logits, shifted, reduction="sum", ignore_index=-100)
    return nll, int((shifted != -100).sum())


def factor(hp, step, total):
    """Of the learning rate."""
    warmup = math.ceil(round(hp.warmup_ratio * total, 6))
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return {"linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2, "constant": 1.0}[
        hp.schedule
    ]


def solo(lab, model, dtype, hp, checkpoint, *, passes=1, padding=0):
    """Train the adapter in `checkpoint` with PEFT and torch alone."""
    module = peft.PeftModel.from_pretrained(
        lab.plain(model, dtype=dtype), checkpoint, is_trainable=True
    )
    ratio = hp.options.loraplus_ratio
    groups = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = hp.learning_rate * (ratio if "lora_B" in name else 1)
            decay = hp.weight_decay if parameter.ndim > 1 else 0.0
            groups.append(
                {"params": [parameter], "lr": rate, "full_rate": rate, "weight_decay": decay}
            )
    optimizer = torch.optim.AdamW(groups, betas=(hp.beta1, hp.beta2), eps=hp.epsilon)
    trained = [parameter for group in groups for parameter in group["params"]]
    n, n_validation = len(lab.split(model)), len(lab.split(model, "validation"))
    epoch = steps_per_epoch(n, hp.batch_size)
    total = total_steps(n, hp)
    losses, since = [], np.zeros(2)
    for step in range(total):
        module.train()
        rows = batch_indices(n, hp.batch_size, hp.seed, step)
        parts = [part for part in np.array_split(rows, passes) if len(part)]
        with torch.no_grad():
            targets = sum(nll_of(lab, model, module, part)[1] for part in parts)
        optimizer.zero_grad()
        for part in parts:
            nll, count = nll_of(lab, model, module, part, padding=padding)
            (nll / targets).backward()
            since += (nll.item(), count)
        if hp.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained, hp.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor(hp, step, total)
        optimizer.step()
        if (step + 1) % epoch == 0 or step + 1 == total:
            module.eval()
            with torch.no_grad():
                validation = nll_of(lab, model, module, range(n_validation), "validation")
                probe = nll_of(lab, model, module, range(n))
            losses.append(tuple(float(nll / count) for nll, count in (validation, probe, since)))
            since = np.zeros(2)
    weights = {
        name: tensor.detach().clone()
        for name, tensor in peft.get_peft_model_state_dict(
            module, save_embedding_layers=False
        ).items()
    }
    return Reference(losses=losses, weights=weights)


def starts(lab, model, dtype, trials, folder):
    """Where the group saved each of `trials` at its start."""
    group = lab.group(model, dtype=dtype)
    for trial, hp in trials.items():
        group.join(trial, hp)
    for trial in trials:
        group.save(trial, folder / trial)
    return {trial: folder / trial / "checkpoint" for trial in trials}


def found(lab, history):
    """The same of a trial in a group."""
    return Reference(
        losses=[(each.val_loss, each.probe_loss, each.train_loss) for each, _ in history],
        weights={
            name.split(": ")[1]: tensor
            for name, tensor in lab.tensors(history[-1][1] / "checkpoint").items()
        },
    )


def distance(one, other):
    """The largest relative difference of losses, and the relative L2 distance of all weights."""
    losses = np.abs(np.array(one.losses) / np.array(other.losses) - 1).max()
    assert one.weights.keys() == other.weights.keys()
    apart = sum(
        float((one.weights[name] - other.weights[name]).double().square().sum())
        for name in one.weights
    )
    return losses, math.sqrt(
        apart / sum(float(w.double().square().sum()) for w in other.weights.values())
    )


@pytest.mark.parametrize("model", ["bert-no-dropout", "llama"])
def test_trials_of_a_group_equal_solo_runs_with_peft(lab, model, tmp_path):
    trials = unlike(lab, model)
    checkpoints = starts(lab, model, torch.float64, trials, tmp_path / "start")
    histories = lab.together(
        lab.group(model, dtype=torch.float64, max_tokens=100), tmp_path / "group", trials
    )
    for trial, hp in trials.items():
        expected = solo(lab, model, torch.float64, hp, checkpoints[trial])
        mine = found(lab, histories[trial])
        assert len(mine.losses) == len(expected.losses) == math.ceil(hp.epochs)
        np.testing.assert_allclose(mine.losses, expected.losses, rtol=1e-10, atol=0)
        lab.assert_close(mine.weights, expected.weights, 1e-10)
        begun = {
            name.split(": ")[1]: tensor for name, tensor in lab.tensors(checkpoints[trial]).items()
        }
        with pytest.raises(AssertionError, match="differs by"):
            lab.assert_close(begun, expected.weights, 1e-3)


@pytest.mark.parametrize("model", ["bert-no-dropout", "llama"])
def test_in_float32_a_group_differs_no_more_than_a_solo_run_from_itself(lab, model, tmp_path):
    trials = unlike(lab, model, only="abde")
    checkpoints = starts(lab, model, torch.float32, trials, tmp_path / "start")
    histories = lab.together(lab.group(model, max_tokens=100), tmp_path / "group", trials)
    apart, floor = np.zeros(2), np.zeros(2)
    for trial, hp in trials.items():
        expected = solo(lab, model, torch.float32, hp, checkpoints[trial])
        for other in ({"passes": 4}, {"padding": 9}):
            again = solo(lab, model, torch.float32, hp, checkpoints[trial], **other)
            floor = np.maximum(floor, distance(again, expected))
        apart = np.maximum(apart, distance(found(lab, histories[trial]), expected))
    assert (floor > 0).all() and (floor < 1e-2).all()
    assert (apart <= 2 * floor).all(), (
        f"{apart} in the group, {floor} of a solo run with other cuts and padding"
    )


# --- other trials change nothing, with dropout on ---


@pytest.mark.parametrize("model", ["bert", "opt"])
def test_who_else_is_on_board_changes_no_result(lab, model, tmp_path):
    """Dropout in the model (of OPT: in functions) and before the adapters, with a probability of each trial's own."""
    trials = unlike(lab, model, dropout=True, targets="attention")
    together = lab.together(
        lab.group(model, dtype=torch.float64, max_tokens=100), tmp_path / "group", trials
    )
    dry = lab.together(
        lab.group(model, dtype=torch.float64),
        tmp_path / "dry",
        {"a": trials["a"]} | unlike(lab, model, only="e"),
    )
    for trial, hp in trials.items():
        alone = lab.together(
            lab.group(model, dtype=torch.float64), tmp_path / f"only-{trial}", {trial: hp}
        )
        lab.assert_alike(together[trial], alone[trial], 1e-10)
    lab.assert_alike(dry["a"], together["a"], 1e-10)


def test_equal_trials_get_equal_results(lab, tmp_path):
    """Twins have the same masks, whichever row of the matrix they have; another seed has others."""
    hp = lab.params("lora", dropout=0.3, rank=4)
    trials = {"a": hp, "other": replace(hp, seed=1), "b": hp}
    histories = lab.together(lab.group("bert", dtype=torch.float64), tmp_path, trials)
    lab.assert_alike(histories["a"], histories["b"], 1e-12)
    assert histories["other"][-1][0].train_loss != pytest.approx(
        histories["a"][-1][0].train_loss, rel=1e-3
    )


# --- coming and going ---


@pytest.mark.parametrize("model", ["bert", "opt"])
def test_joining_late_and_leaving_early_change_no_result(lab, model, tmp_path):
    """Rank 16 (b) joins rank 2 (a) and leaves it again: the matrix is laid out anew three times."""
    trials = unlike(lab, model, dropout=True, targets="attention", only="abe", epochs=2)
    together = lab.together(
        lab.group(model, dtype=torch.float64, evaluate_every=6),
        tmp_path / "group",
        trials,
        joins={"b": 3, "e": 5},
        leaves={"b": 7},
    )
    assert [len(together[trial]) for trial in trials] == [6, 4, 6]
    for trial, hp in trials.items():
        group = lab.group(model, dtype=torch.float64, evaluate_every=6)
        alone = lab.together(group, tmp_path / f"only-{trial}", {trial: hp})
        lab.assert_alike(together[trial], alone[trial][: len(together[trial])], 1e-10)


def test_resuming_in_other_company_changes_no_result(lab, tmp_path):
    settings = {"dtype": torch.float64, "evaluate_every": 9}
    trials = unlike(lab, "bert", dropout=True, only="abe", epochs=2)
    whole = lab.together(lab.group("bert", **settings), tmp_path / "whole", trials)
    others = unlike(lab, "bert", dropout=True, only="cd")
    resumed = lab.together(
        lab.group("bert", **settings),
        tmp_path / "resumed",
        {**others, "b": trials["b"], "a": trials["a"]},
        joins={"a": 2, "b": 1},
        checkpoints={"a": whole["a"][0][1], "b": whole["b"][1][1]},
    )
    lab.assert_alike(resumed["a"], whole["a"][1:], 1e-10)
    lab.assert_alike(resumed["b"], whole["b"][2:], 1e-10)


def test_a_join_that_fails_harms_no_one_on_board(lab, tmp_path):
    trials = unlike(lab, "bert", dropout=True, only="ab", epochs=1)
    expected = lab.together(lab.group("bert"), tmp_path / "undisturbed", trials)
    group = lab.group("bert")
    group.join("a", trials["a"])
    with pytest.raises(InputError):
        group.join("wrong", lab.params("lora", targets=["q_proj"]))
    assert group.trials == ["a"]
    group.join("b", trials["b"])
    with pytest.raises(FileNotFoundError):
        group.join("wrong", lab.params("lora", rank=32), tmp_path / "absent")
    assert group.trials == ["a", "b"]
    mine = lab.together(group, tmp_path / "disturbed", trials)
    for trial in trials:
        lab.assert_same(mine[trial], expected[trial])


def snapshot(group, trial):
    engine = group._engine
    return {
        name: x.clone() for name, x in {**engine.weights(trial), **engine.moments(trial)}.items()
    }


def test_a_new_layout_keeps_values_bit_for_bit(lab):
    trials = unlike(lab, "bert", dropout=True)
    group = lab.group("bert")
    group.join("a", trials["a"])
    group.join("e", trials["e"])
    for _ in range(2):
        group.step(["a", "e"])
    before = {trial: snapshot(group, trial) for trial in "ae"}
    assert all(x.any() for name, x in before["a"].items() if "exp_avg" in name)

    def unchanged(trial):
        after = snapshot(group, trial)
        return after.keys() == before[trial].keys() and all(
            torch.equal(after[n], before[trial][n]) for n in after
        )

    for change in (
        lambda: group.join("b", trials["b"]),
        lambda: group.join("d", trials["d"]),
        lambda: group.leave("b"),
        lambda: group.leave("d"),
    ):
        change()
        assert unchanged("a") and unchanged("e")
    group.leave("a")
    assert unchanged("e")


def test_padding_stays_exactly_zero(lab):
    trials = unlike(lab, "bert", dropout=True, learning_rate=0.1, weight_decay=0.5)
    group = lab.group("bert")
    for trial, hp in trials.items():
        group.join(trial, hp)
    for _ in range(3):
        group.step(list(trials))
    group.leave("c")
    del trials["c"]
    group.step(list(trials))
    engine = group._engine
    matrices = [engine._weights, *engine._moments.values()]
    assert all(matrix.any() for matrix in matrices)
    with torch.no_grad():
        for trial in trials:
            for view in {**engine.weights(trial), **engine.moments(trial)}.values():
                view.zero_()
    assert not any(matrix.any() for matrix in matrices)


# --- a trial that explodes ---


def step_until_it_explodes(group, steps):
    for _ in range(steps):
        try:
            group.step(group.trials)
        except NonFinite as error:
            return error
    raise AssertionError("it did not explode")


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_an_exploding_trial_is_named_alone_and_the_others_make_their_step(lab, model, tmp_path):
    """Rows are computed one by one, so that the others' arithmetic is the same with and without it: equal bit for bit."""
    settings = {"max_tokens": 1, "evaluate_every": 1}
    hp = lab.params("lora", dropout=0.1, rank=4)
    trials = {
        "a": hp,
        "exploding": replace(hp, learning_rate=1e30, warmup_ratio=0.0, seed=4),
        "b": replace(hp, seed=7),
    }
    group = lab.group(model, **settings)
    for trial, each in trials.items():
        group.join(trial, each)
    error = step_until_it_explodes(group, 5)
    assert list(error.reasons) == ["exploding"]
    lost = group._members["exploding"].step + 1
    assert lost > 1
    assert error.reasons["exploding"] == str(error)
    assert str(error) == f"the training loss or its gradient became non-finite at step {lost}"
    assert group.due(["a", "b"]) == ["a", "b"]
    assert [group._members[trial].step for trial in ("a", "b")] == [lost, lost]
    group.leave("exploding")

    before = lab.group(model, **settings)
    for trial, each in trials.items():
        before.join(trial, each)
    for _ in range(lost - 1):
        before.step(before.trials)
    before.leave("exploding")
    before.step(before.trials)
    for more in range(3):
        mine = lab.publish_all(group, tmp_path / f"mine-{more}", ["a", "b"])
        expected = lab.publish_all(before, tmp_path / f"expected-{more}", ["a", "b"])
        for trial in ("a", "b"):
            lab.assert_same([mine[trial]], [expected[trial]])
        group.step(["a", "b"])
        before.step(["a", "b"])


def test_what_is_not_a_number_stays_in_its_rows(lab, tmp_path):
    """Side by side in the same micro-batches and matrix products: the others' bits are those with a healthy neighbour."""
    hp = lab.params("lora", dropout=0.1, rank=4)
    groups = {}
    for name, rate in (("exploding", 1e30), ("healthy", 1e-3)):
        group = groups[name] = lab.group("bert", evaluate_every=1)
        group.join("a", hp)
        group.join("neighbour", replace(hp, learning_rate=rate, warmup_ratio=0.0))
        group.join("b", replace(hp, seed=7))
    step_until_it_explodes(groups["exploding"], 5)
    for _ in range(groups["exploding"]._members["a"].step):
        groups["healthy"].step(["a", "neighbour", "b"])
    for after in ("in the group", "gone"):
        mine, expected = (
            lab.publish_all(groups[n], tmp_path / f"{after}-{n}", ["a", "b"]) for n in groups
        )
        for trial in ("a", "b"):
            lab.assert_same([mine[trial]], [expected[trial]])
        for group in groups.values():
            if after == "in the group":
                group.leave("neighbour")
            group.step(["a", "b"])


def test_two_explode_at_once(lab):
    hp = lab.params("lora", learning_rate=1e30, warmup_ratio=0.0)
    group = lab.group("bert")
    group.join("x", hp)
    group.join("a", lab.params("lora"))
    group.join("y", hp)
    error = step_until_it_explodes(group, 5)
    assert list(error.reasons) == ["x", "y"]
    group.leave("x")
    group.leave("y")
    assert group.step(["a"]) == []


# --- evaluation ---


def watch(base, seen):
    base.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_evaluating_several_at_once_equals_one_by_one(lab, model):
    trials = unlike(lab, model, dropout=True)
    group = lab.group(model, dtype=torch.float64, max_tokens=5 * 40)
    for trial, hp in trials.items():
        group.join(trial, hp)
    for _ in range(2):
        group.step(list(trials))
    some = ["d", "a", "e"]
    together = group.evaluate(some)
    assert list(together) == some
    for trial in some:
        (alone,) = group.evaluate([trial]).values()
        for name in ("val_loss", "probe_loss"):
            assert getattr(together[trial], name) == pytest.approx(
                getattr(alone, name), rel=1e-13, abs=0
            )
        assert together[trial].metrics == pytest.approx(alone.metrics, rel=1e-12)
        np.testing.assert_allclose(together[trial].losses, alone.losses, rtol=1e-6)
    assert together["a"].val_loss != together["e"].val_loss != together["d"].val_loss


def test_every_batch_of_an_evaluation_passes_once_for_all(lab):
    trials, passes = unlike(lab, "bert"), {}
    for names in (["a"], list(trials)):
        group, seen = lab.group("bert", max_tokens=40 * len(names)), []
        for trial in names:
            group.join(trial, trials[trial])
        watch(lab.bases[-1], seen)
        group.evaluate(names)
        passes[len(names)] = seen
    alone, together = passes[1], passes[5]
    assert len(alone) > 2 and sum(rows for rows, _ in alone) == 18 + 9
    assert together == [(5 * rows, tokens) for rows, tokens in alone]


@pytest.mark.parametrize("fits", [1, 4])
def test_out_of_memory_in_an_evaluation_of_several(lab, fits):
    trials = unlike(lab, "bert")
    group = lab.group("bert", dtype=torch.float64)
    for trial, hp in trials.items():
        group.join(trial, hp)
    expected, sizes = group.evaluate(list(trials)), []

    def run_out(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. (simulated)")

    lab.bases[-1].model.register_forward_pre_hook(run_out, with_kwargs=True)
    mine = group.evaluate(list(trials))
    assert max(sizes) > 4 and sum(size for size in sizes if size <= fits) == 5 * (18 + 9)
    for trial in trials:
        assert mine[trial].val_loss == pytest.approx(expected[trial].val_loss, rel=1e-12)
        assert mine[trial].probe_loss == pytest.approx(expected[trial].probe_loss, rel=1e-12)
        assert mine[trial].metrics == expected[trial].metrics


# --- what leaves a group ---


@pytest.mark.parametrize("model", ["bert", "llama", "opt", "gpt2"])
def test_what_leaves_a_group_is_an_ordinary_peft_adapter(lab, model, tmp_path):
    choices = {
        "a": {"rank": 2, "alpha": 16},
        "b": {"rank": 8, "alpha": 4, "rslora": True, "targets": "attention", "dropout": 0.2},
    }
    trials = {
        trial: lab.params("lora", learning_rate=1e-2, **more) for trial, more in choices.items()
    }
    group = lab.group(model, dtype=torch.float64)
    for trial, hp in trials.items():
        group.join(trial, hp)
    for _ in range(4):
        group.step(["a", "b"])
    base_logits = lab.logits(model, lab.plain(model, dtype=torch.float64))
    for trial, hp in trials.items():
        group.save(trial, tmp_path / trial)
        folder = tmp_path / trial / "checkpoint"
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (
            hp.options.rank,
            hp.options.alpha,
            hp.options.rslora,
        )
        assert set(config["target_modules"]) == set(
            target_modules(lab.base(model), hp.options.targets)
        )
        assert config["lora_dropout"] == hp.options.dropout
        loaded = peft.PeftModel.from_pretrained(
            lab.plain(model, dtype=torch.float64), folder
        ).eval()
        mine, theirs = lab.logits_aboard(model, group, trial), lab.logits(model, loaded)
        assert (mine - theirs).abs().max() <= 1e-12
        assert (mine - base_logits).abs().max() > 1e-2


# --- memory settings change no result ---


def gradients(lab, group, trials):
    """Of every trial at its second step, where all of them have some; unclipped, from the first moments."""
    for trial, hp in trials.items():
        assert hp.max_grad_norm == 0 and hp.beta1 == 0
        group.join(trial, hp)
    for _ in range(2):
        group.step(list(trials))
    return {
        f"{trial}: {name}": x.clone()
        for trial in trials
        for name, x in group._engine.moments(trial).items()
        if name.startswith("exp_avg/")
    }


@pytest.fixture(scope="module", params=["bert", "llama", "opt"])
def wet(request, lab):
    """A model, unlike trials with dropout on, and their gradients in micro-batches as large as can be."""
    trials = unlike(
        lab,
        request.param,
        dropout=True,
        targets="attention",
        max_grad_norm=0,
        beta1=0,
        warmup_ratio=0,
        epochs=9,
    )
    expected = gradients(
        lab, lab.group(request.param, dtype=torch.float64, max_tokens=10**6), trials
    )
    return request.param, trials, expected


@pytest.mark.parametrize("max_tokens", [1, 20, 100])
def test_the_token_budget_changes_no_gradient_of_a_pack(lab, wet, max_tokens):
    model, trials, expected = wet
    group = lab.group(model, dtype=torch.float64, max_tokens=max_tokens)
    lab.assert_close(gradients(lab, group, trials), expected, 1e-10)


def test_gradient_checkpointing_changes_no_gradient_of_a_pack(lab, wet):
    model, trials, expected = wet
    group = lab.group(model, dtype=torch.float64, gradient_checkpointing=True)
    lab.assert_close(gradients(lab, group, trials), expected, 1e-10)


@pytest.mark.parametrize("at_pass", [0, 1, 2])
@pytest.mark.parametrize("backward", [False, True])
def test_out_of_memory_in_a_step_changes_no_gradient_of_a_pack(lab, wet, at_pass, backward):
    """In the forward pass, or in the backward pass after part of the gradients have been added."""
    model, trials, expected = wet
    group = lab.group(model, dtype=torch.float64, max_tokens=150)
    group.untuned_results("lora")
    sizes = []

    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. (simulated)")

    def run_out_once(module, args, kwargs, output):
        if module.training:
            sizes.append(kwargs["input_ids"].numel())
            if len(sizes) == at_pass + 1:
                if not backward:
                    run_out()
                first = next(iter(output.values()))
                first.register_hook(run_out)

    lab.bases[-1].model.register_forward_hook(run_out_once, with_kwargs=True)
    found = gradients(lab, group, trials)
    assert max(sizes[: at_pass + 1]) > 75 >= max(sizes[at_pass + 1 :])
    lab.assert_close(found, expected, 1e-10)


@pytest.mark.parametrize("model", ["llama", "opt", "gpt2"])
def test_chunks_of_the_loss_change_no_result(lab, model, monkeypatch, tmp_path):
    """In training and evaluation; also where the pass is recomputed."""
    trials = unlike(lab, model, dropout=True, targets="attention", only="abe")
    expected = lab.together(lab.group(model, dtype=torch.float64), tmp_path / "whole", trials)
    monkeypatch.setattr(trainables.tasks.causal_lm.task, "CHUNK_LOGITS", 7 * 100)  # 7 targets
    for checkpointing in (False, True):
        group = lab.group(model, dtype=torch.float64, gradient_checkpointing=checkpointing)
        widths = []
        group.untuned_results("lora")
        lab.bases[
            -1
        ].output.register_forward_hook(  # also called where the layer only hands on hidden states
            lambda module, args, output, w=widths: w.append(
                len(output) if output.shape[-1] == 100 else 0
            )
        )
        found = lab.together(group, tmp_path / f"chunks-{checkpointing}", trials)
        assert 0 < max(widths) <= 7
        for trial in trials:
            lab.assert_alike(found[trial], expected[trial], 1e-10)


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_bfloat16_trains_a_group_nearly_as_float32(lab, model, tmp_path):
    trials = unlike(lab, model, dropout=True, only="abe", learning_rate=3e-3)
    exact = lab.together(lab.group(model), tmp_path / "float32", trials)
    rounded = lab.together(lab.group(model, autocast=torch.bfloat16), tmp_path / "bfloat16", trials)
    for trial in trials:
        first, last = rounded[trial][0], rounded[trial][-1]
        assert last[0].probe_loss < first[0].probe_loss
        assert {tensor.dtype for tensor in lab.tensors(last[1]).values()} == {torch.float32}
        for (mine, _), (expected, _) in zip(rounded[trial], exact[trial], strict=True):
            assert mine.val_loss == pytest.approx(expected.val_loss, rel=0.03)
            assert mine.val_loss != expected.val_loss


def test_bfloat16_alone_is_bfloat16_in_company(lab, tmp_path):
    """To the floor of that arithmetic: what is rounded differs with the cut alone."""
    trials = unlike(lab, "llama", only="ab")
    together = lab.together(lab.group("llama", autocast=torch.bfloat16), tmp_path / "group", trials)
    for trial, hp in trials.items():
        alone = lab.together(
            lab.group("llama", autocast=torch.bfloat16), tmp_path / trial, {trial: hp}
        )
        for (mine, _), (expected, _) in zip(together[trial], alone[trial], strict=True):
            assert mine.val_loss == pytest.approx(expected.val_loss, rel=5e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_group_over_a_quantised_base_equals_each_alone(lab, bits, tmp_path):
    """epsilon is large: Adam divides rounding errors by it."""
    trials = unlike(lab, "llama", dropout=True, method="qlora", only="abe", bits=bits, epsilon=1e-4)
    together = lab.together(lab.group("llama"), tmp_path / "group", trials)
    for trial, hp in trials.items():
        alone = lab.together(lab.group("llama"), tmp_path / f"only-{trial}", {trial: hp})
        lab.assert_alike(together[trial], alone[trial], 1e-5)


# --- how long a step takes ---


def test_timing_a_step_leaves_everyone_as_they_are(lab, tmp_path):
    trials = unlike(lab, "bert", dropout=True, only="ae")
    groups = {}
    for name in ("timed", "untimed"):
        group = groups[name] = lab.group("bert", evaluate_every=1)
        for trial, hp in trials.items():
            group.join(trial, hp)
        group.step(["a", "e"])
        if name == "timed":
            assert (
                0
                < group.time_step(lab.params("lora", rank=16, dropout=0.2, targets="attention"), 3)
                < 60
            )
            assert group.trials == ["a", "e"]
        group.step(["a", "e"])
    mine, expected = (lab.publish_all(groups[name], tmp_path / name, ["a", "e"]) for name in groups)
    for trial in trials:
        lab.assert_same([mine[trial]], [expected[trial]])


def test_timing_an_empty_group_leaves_the_base(lab, tmp_path):
    hp = lab.params("lora")
    expected = lab.run(lab.group("bert"), tmp_path / "fresh", hp)
    group = lab.group("bert")
    for method in ("lora", "full"):
        group.time_step(lab.params(method, learning_rate=0.1), 1 if method == "full" else 2)
        assert group.trials == []
    lab.assert_same(lab.run(group, tmp_path / "after", hp), expected)


def test_a_timed_step_that_fits_in_no_pass_keeps_the_budget(lab, tmp_path):
    trials = unlike(lab, "bert", dropout=True, only="ae")
    group = lab.group("bert", max_tokens=100)
    for trial, hp in trials.items():
        group.join(trial, hp)
    before = {trial: snapshot(group, trial) for trial in trials}
    sizes, room = [], [2]

    def run_out(module, args, kwargs):
        sizes.append(kwargs["input_ids"].numel())
        if room:
            room[0] -= 1
            if room[0] < 0:
                raise torch.OutOfMemoryError("CUDA out of memory. (simulated)")

    lab.bases[-1].model.register_forward_pre_hook(run_out, with_kwargs=True)
    hp = lab.params("lora", batch_size=18)
    with pytest.raises(torch.OutOfMemoryError):
        group.time_step(hp, 4)
    assert sizes[-1] <= 25 and group.trials == ["a", "e"], (
        "smaller micro-batches were tried, as in a step"
    )
    for trial in trials:
        after = snapshot(group, trial)
        assert all(torch.equal(after[name], before[trial][name]) for name in before[trial])
    room.clear()
    sizes.clear()
    group.join("large", hp)
    group.step(["large"])
    assert max(sizes) > 50, "the budget is what it was"
