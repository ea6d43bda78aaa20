"""Other optimizers than AdamW: as the libraries' own step by step, beside others, and after a stop."""

import pytest
import torch
from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
from bitsandbytes.optim.lion import Lion32bit

from tests.trainables.engine.test_group import plain_loop, start
from trainables.errors import InputError
from trainables.hyperparameters import parse

OTHERS = ["lion", "adamw_8bit", "paged_adamw_8bit", "muon"]

# bitsandbytes says so at each step
pytestmark = [
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT's
]


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, algorithm 2, in any type."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (beta1, beta2), rate = group["betas"], group["lr"]
            for p in group["params"]:
                first = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - rate * group["weight_decay"])
                p.sub_(rate * torch.sign(beta1 * first + (1 - beta1) * p.grad))
                first.mul_(beta2).add_((1 - beta2) * p.grad)


def lion(groups, hp):
    return Lion(groups, {"lr": hp.learning_rate, "betas": (hp.beta1, hp.beta2)})


def theirs(groups, hp):
    """The library's own."""
    kind = {"lion": Lion32bit, "adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit}
    more = {} if hp.optimizer == "lion" else {"eps": hp.epsilon}
    return kind[hp.optimizer](groups, lr=hp.learning_rate, betas=(hp.beta1, hp.beta2), **more)


def finals(lab, group, folder, hp):
    (_, checkpoint) = lab.run(group, folder, hp)[-1]
    return lab.tensors(checkpoint / "checkpoint")


@pytest.mark.parametrize("model", ["bert-no-dropout", "llama"])
def test_lion_of_trials_that_share_a_base(lab, model, tmp_path):
    hp = lab.params("lora", optimizer="lion", rank=4, epochs=1)
    checkpoint = start(lab, model, torch.float64, hp, tmp_path / "start")
    steps = lab.run(lab.group(model, dtype=torch.float64), tmp_path / "run", hp)[-1][0].step
    _, losses, _ = plain_loop(
        lab, model, torch.float64, hp, checkpoint, steps=steps, optimizer=lion, total=steps
    )
    group = lab.group(model, dtype=torch.float64, evaluate_every=1)
    found = [evaluation.train_loss for evaluation, _ in lab.run(group, tmp_path / "each", hp)]
    assert found == pytest.approx(losses, rel=1e-10)


@pytest.mark.parametrize("optimizer", ["lion", "adamw_8bit", "paged_adamw_8bit"])
def test_full_fine_tuning_by_the_libraries_own(lab, optimizer, tmp_path):
    hp = lab.params("full", optimizer=optimizer, epochs=1)
    model = "bert-no-dropout"
    checkpoint = start(lab, model, torch.float32, hp, tmp_path / "start")
    group = lab.group(model, evaluate_every=1)
    found = [evaluation.train_loss for evaluation, _ in lab.run(group, tmp_path / "each", hp)]
    _, losses, _ = plain_loop(
        lab,
        model,
        torch.float32,
        hp,
        checkpoint,
        steps=len(found),
        optimizer=theirs,
        total=len(found),
    )
    assert found == pytest.approx(losses, rel=1e-4)


def test_muon_orthogonalises_hidden_matrices_alone(lab, tmp_path):
    """A step of Muon moves a matrix along all its directions alike; embeddings and head go AdamW's way."""
    settings = {"weight_decay": 0.0, "max_grad_norm": 0.0, "warmup_ratio": 0.0, "schedule": "constant", "epochs": 1}  # fmt: skip
    moved = {}
    for optimizer in ("muon", "adamw"):
        hp = lab.params("full", optimizer=optimizer, **settings)
        before = lab.tensors(
            start(lab, "llama", torch.float32, hp, tmp_path / f"{optimizer}-start")
        )
        group = lab.group("llama", evaluate_every=1)
        after = lab.tensors(lab.run(group, tmp_path / optimizer, hp)[0][1] / "checkpoint")
        moved[optimizer] = {name: after[name] - before[name] for name in after}
    spread = {}
    for optimizer, of in moved.items():
        (name,) = [name for name in of if "layers.0.self_attn.q_proj" in name]
        values = torch.linalg.svdvals(of[name].float())
        spread[optimizer] = float(values.median() / values.max())
    assert spread["muon"] > 0.5 > 2 * spread["adamw"]
    for name, difference in moved["adamw"].items():
        if "embed_tokens" in name or "norm" in name:
            torch.testing.assert_close(moved["muon"][name], difference)


def test_beside_others_as_alone(lab, tmp_path):
    trials = {
        "lion": lab.params("lora", optimizer="lion"),
        "adamw": lab.params("lora"),
        "other": lab.params("lora", optimizer="lion", learning_rate=3e-4, seed=1),
    }
    group = lab.group("bert", dtype=torch.float64, max_tokens=40)
    together = lab.together(group, tmp_path / "together", trials)
    for name, hp in trials.items():
        alone = lab.run(lab.group("bert", dtype=torch.float64), tmp_path / name, hp)
        for (one, folder), (other, other_folder) in zip(together[name], alone, strict=True):
            assert one.val_loss == pytest.approx(other.val_loss, rel=1e-8)
            of = [lab.tensors(each / "checkpoint") for each in (folder, other_folder)]
            lab.assert_close(*of, 1e-8)
    assert len({found[-1][0].val_loss for found in together.values()}) == 3


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("lora", "lion"), *(("full", name) for name in OTHERS), ("partial", "muon")],
)
def test_it_goes_on_after_a_stop_as_if_there_had_been_none(lab, tmp_path, method, optimizer):
    more = {"layers": 1} if method == "partial" else {}
    hp = lab.params(method, optimizer=optimizer, ema_decay=0.9, **more)
    whole = lab.run(lab.group("bert"), tmp_path / "whole", hp)
    rest = lab.run(lab.group("bert"), tmp_path / "rest", hp, whole[0][1])
    lab.assert_same(rest, whole[1:])


def test_lions_second_beta_is_the_papers():
    given = {"method": "full", "learning_rate": 1e-4, "batch_size": 8, "epochs": 1}
    assert parse(given).beta2 == 0.999
    assert parse(given | {"optimizer": "lion"}).beta2 == 0.99
    assert parse(given | {"optimizer": "lion", "beta2": 0.95}).beta2 == 0.95


@pytest.mark.parametrize("method", ["lora", "ia3", "prompt", "adapter"])
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "muon"])
def test_what_trials_that_share_a_base_cannot_take(method, optimizer):
    given = {"method": method, "learning_rate": 1e-4, "batch_size": 8, "epochs": 1}
    with pytest.raises(InputError) as caught:
        parse(given | {"optimizer": optimizer})
    assert str(caught.value) == (
        f"optimizer: trials of method {method} share a base and train by adamw or lion, got {optimizer}"
    )
