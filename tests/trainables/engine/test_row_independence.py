"""Bases whose modules do not see rows one after another: found out on the model, and trained by one trial at a time."""

import numpy as np
import pytest
import torch
from torch import nn

from trainables.data.arrow import Split, write_split
from trainables.data.records import Encoded
from trainables.engine.dropout import RowKeys, row_dropout
from trainables.engine.group import NotShared
from trainables.engine.row_independence import mixing_rows, padding_changes_losses

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)

PARAMS = {
    "lora": {"rank": 4, "dropout": 0.1},
    "ia3": {"learning_rate": 3e-2},
    "adapter": {"bottleneck": 8},
}
# in each of which something has no rows: a table of relative positions, windows, or time before rows
ALONE = ["deberta", "deberta-v2", "deberta-v3", "xlnet", "longformer"]
TOGETHER = ["bert", "distilbert", "t5", "llama", "opt", "gpt2"]


@pytest.fixture(scope="module")
def ended(lab):
    """Rows that end with the token that T5 classifies by, which stands nowhere else."""
    rng = np.random.default_rng(0)
    rows = [
        np.append(rng.integers(2, 100, rng.integers(2, 13)), 1).astype(np.int32) for _ in range(18)
    ]
    path = lab.root / "ended.arrow"
    write_split(path, Encoded(input_ids=rows, labels=(np.arange(18) % 3).astype(np.int64)))
    return Split(path)


def group_of(lab, ended, model, **settings):
    splits = {"train": ended, "validation": ended} if model == "t5" else {}
    return lab.group(model, **splits, **settings)


@pytest.mark.parametrize("model", ALONE)
def test_a_base_that_nobody_can_share_is_found_out(lab, ended, model):
    group = group_of(lab, ended, model)
    group.join("a", lab.params("lora"))
    group.step(["a"])
    before = {name: x.clone() for name, x in group._engine.weights("a").items()}
    with pytest.raises(NotShared, match="cannot be shared"):
        group.join("b", lab.params("lora"))
    assert group.trials == ["a"]
    assert all(torch.equal(x, before[name]) for name, x in group._engine.weights("a").items())
    group.step(["a"])


@pytest.mark.parametrize("method", ["lora", "ia3", "adapter"])
@pytest.mark.parametrize("model", TOGETHER)
def test_trials_that_share_a_base_have_the_losses_of_each_alone(
    lab, ended, model, method, tmp_path
):
    """With dropout wherever the model has it: T5's in its attention, in functions."""
    trials = {
        "a": lab.params(method, **PARAMS[method]),
        "b": lab.params(method, seed=1, batch_size=3, **PARAMS[method]),
    }
    together = lab.together(group_of(lab, ended, model), tmp_path / "group", trials)
    for trial, hp in trials.items():
        (alone,) = lab.together(group_of(lab, ended, model), tmp_path / trial, {trial: hp}).values()
        for (mine, _), (expected, _) in zip(together[trial], alone, strict=True):
            assert mine.val_loss == pytest.approx(expected.val_loss, rel=2e-5)
            assert mine.train_loss == pytest.approx(expected.train_loss, rel=2e-5)


@pytest.mark.parametrize("method", ["lora", "ia3", "adapter"])
@pytest.mark.parametrize("model", ["deberta", "deberta-v2", "deberta-v3"])
def test_a_base_of_which_modules_have_no_rows_is_trained_and_reloaded(
    lab, ended, model, method, tmp_path
):
    """What is saved gives the loss that was told, as PEFT loads it; and no result depends on how a step is cut."""
    from peft import PeftModel

    from trainables.methods.adapter import load_adapter

    hp = lab.params(method, **PARAMS[method])
    history = lab.run(lab.group(model), tmp_path / "whole", hp)
    base = lab.plain(model)
    folder = history[-1][1] / "checkpoint"
    loaded = (
        load_adapter(base, folder)
        if method == "adapter"
        else PeftModel.from_pretrained(base, folder).eval()
    )
    loss = lab.loss(model, loaded, range(9), "validation").detach()
    assert float(loss) == pytest.approx(history[-1][0].val_loss, rel=1e-5)
    assert history[-1][0].train_loss < history[0][0].train_loss
    runs = [
        lab.run(
            lab.group(model, dtype=torch.float64, max_tokens=tokens), tmp_path / str(tokens), hp
        )
        for tokens in (16, 999)
    ]
    lab.assert_alike(*runs, 1e-7)


@pytest.mark.parametrize("model", ["deberta-v3", "xlnet"])
def test_checkpointing_and_resuming_change_nothing_where_modules_have_no_rows(lab, model, tmp_path):
    hp = lab.params("lora", rank=4, dropout=0.1)
    expected = lab.run(lab.group(model), tmp_path / "whole", hp)
    group = lab.group(model, gradient_checkpointing=model != "xlnet")  # which has none
    lab.assert_alike(lab.run(group, tmp_path / "resumed", hp, expected[0][1]), expected[1:], 1e-4)


@pytest.mark.parametrize("model", ["deberta-v3", "t5", "xlnet"])
def test_weights_of_such_a_base_are_trained_too(lab, ended, model, tmp_path):
    history = lab.run(group_of(lab, ended, model), tmp_path, lab.params("full"))
    assert history[-1][0].train_loss < history[0][0].train_loss


# --- how it is found out ---


class Odd(nn.Module):
    """Sees rows apart, or in one of the ways that models have of not doing so."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.table = nn.Embedding(50, 8)
        self.linear = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        x_BTD = self.table(ids_BT)
        return self.linear(
            {
                "rows": lambda: x_BTD,
                "flattened": lambda: x_BTD.flatten(0, 1),
                "one of each": lambda: x_BTD[:, 0],
                "time first": lambda: x_BTD.transpose(0, 1),
                "a table": lambda: self.table.weight[:6],
                "interleaved": lambda: x_BTD.transpose(0, 1).flatten(0, 1),
                "sorted": lambda: x_BTD.flatten(0, 1)[ids_BT.flatten().argsort()],
                "a selection": lambda: x_BTD[ids_BT > 5],
                "neighbours": lambda: x_BTD + x_BTD.roll(1, 0),
                "mean of all": lambda: x_BTD - x_BTD.mean((0, 1)),
            }[self.way]()
        )


@pytest.mark.parametrize("way", ["rows", "flattened", "one of each"])
def test_modules_that_see_rows(way):
    model = Odd(way)
    ids = torch.arange(1, 9)
    assert mixing_rows(model, ["linear", "unused"], model, ids, ids.flip(0)) == {}


@pytest.mark.parametrize(
    "way",
    ["time first", "a table", "interleaved", "sorted", "a selection", "neighbours", "mean of all"],
)
def test_modules_that_do_not(way):
    model = Odd(way)
    ids = torch.arange(1, 9)
    assert mixing_rows(model, ["linear", "unused"], model, ids, ids + 3) == {"linear": (False,)}


def test_a_module_that_sees_rows_at_one_of_its_calls():
    """As DeBERTa v3's projection of queries, which projects the table of relative positions too."""

    class Twice(Odd):
        def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
            return super().forward(ids_BT).sum() + self.linear(self.table.weight).sum()

    model, ids = Twice("rows"), torch.arange(1, 9)
    assert mixing_rows(model, ["linear"], model, ids, ids + 3) == {"linear": (True, False)}


@pytest.mark.parametrize("leaks", [None, 0, 2, 4])
def test_padding_is_tried_behind_rows_of_several_lengths(leaks):
    """What leaks through a convolution shows in some rows, and hardly in others."""
    lengths = np.array([9, 3, 12, 5, 7])

    def losses(rows: np.ndarray) -> torch.Tensor:
        padding = torch.tensor(lengths[rows].max() - lengths[rows]).double()
        return 1 + 1e-2 * padding * torch.tensor(
            [leaks is not None and row == np.argsort(lengths)[leaks] for row in rows]
        )

    assert padding_changes_losses(losses, lengths, 1e-4, 64) == (
        leaks in (0, 2)
    )  # nothing stands behind the longest


def test_dropout_of_what_has_no_rows_is_a_function_of_the_step():
    """Not of the rows of the micro-batch, nor of how many."""
    keys, x = RowKeys(), torch.ones(10, 16)
    keys.mixing_rows = {3: (False,)}
    masks = []
    for seed, step, rows in ((0, 0, [1, 2, 3]), (0, 0, [4]), (0, 1, [4]), (1, 0, [4])):
        shape = torch.tensor(rows)
        keys.set(torch.full_like(shape, seed), torch.full_like(shape, step), shape)
        masks.append(row_dropout(x, keys, 3, 0.5))
        per_row = row_dropout(x, keys, 3, torch.full((len(rows),), 0.5))
        assert torch.equal(per_row, masks[-1])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2]) and not torch.equal(masks[1], masks[3])
    assert 0.3 < (masks[0] == 0).float().mean() < 0.7


def test_dropout_of_attention_weights_does_not_depend_on_padding():
    keys, whole = RowKeys(), torch.ones(2, 4, 9, 9)
    keys.set(0, 0, torch.tensor([5, 6]))
    wide = row_dropout(whole, keys, 1, 0.5)
    narrow = row_dropout(whole[:, :, :6, :6], keys, 1, 0.5)
    assert torch.equal(wide[:, :, :6, :6], narrow)
    merged = row_dropout(whole.flatten(0, 1), keys, 1, 0.5)  # as some models have them
    assert torch.equal(merged.view_as(wide), wide)
    heads = wide.flatten(2)
    assert not torch.equal(heads[:, 0], heads[:, 1])
