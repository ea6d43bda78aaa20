"""Masks are a pure function of (seed, step, row, layer, position)."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainables.engine.dropout import RowDropout, RowKeys, replace_dropout

WIDTH = 16


def mask(p=0.3, *, rows=(0, 1, 2), seed=0, step=0, layer=0, tokens=8):
    """What is kept of a batch [B, T, WIDTH]: bool of the same shape."""
    keys = RowKeys()
    keys.set(seed, step, torch.tensor(rows))
    dropped = RowDropout(p, layer, keys)(torch.ones(len(rows), tokens, WIDTH))
    kept = dropped != 0
    assert torch.equal(dropped, kept / (1 - p)), "what is kept is scaled by 1 / (1 - p)"
    return kept


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_share_kept_is_one_minus_p_everywhere(p):
    kept = mask(p, rows=range(200), tokens=50).double()
    for dimensions in (
        (0, 1, 2),
        (1, 2),
        (0, 2),
        (0, 1),
    ):  # overall, and by row, position and channel
        share = kept.mean(dim=dimensions)
        count = kept.numel() / share.numel()
        sigmas = (share - (1 - p)).abs().max() / math.sqrt(p * (1 - p) / count)
        assert sigmas < (4 if share.numel() == 1 else 5)


def test_neighbours_in_every_direction_are_independent():
    p = 0.5
    many = torch.stack(
        [mask(p, rows=range(40), tokens=20, layer=layer) for layer in range(8)]
    ).double() - (1 - p)
    for dimension in range(many.ndim):
        near, far = (
            many.narrow(dimension, 0, many.shape[dimension] - 1),
            many.narrow(dimension, 1, many.shape[dimension] - 1),
        )
        correlation = (near * far).mean() / (p * (1 - p))
        assert abs(correlation) * math.sqrt(near.numel()) < 4


def test_mask_depends_on_nothing_but_its_place():
    expected = mask(rows=(5, 9, 2))
    assert torch.equal(mask(rows=(5, 9, 2)), expected)
    assert torch.equal(mask(rows=(2, 5, 9)), expected[[2, 0, 1]]), "order of the rows"
    assert torch.equal(mask(rows=(9,)), expected[1:2]), "other rows"
    assert torch.equal(mask(rows=(5, 9, 2), tokens=13)[:, :8], expected), "padding"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        assert torch.equal(mask(rows=(5, 9, 2)), expected), "torch's generator"


def test_pooled_rows_have_masks_too():
    keys = RowKeys()
    keys.set(0, 0, torch.arange(500))
    assert (
        RowDropout(0.25, 0, keys)(torch.ones(500, WIDTH)) != 0
    ).double().mean() == pytest.approx(0.75, abs=0.02)


def test_flattened_rows_have_the_masks_of_rows():
    """Some models run their linear layers over [B * T, D]."""
    keys = RowKeys()
    keys.set(0, 0, torch.tensor([5, 9, 2]))
    dropout = RowDropout(0.3, 0, keys)
    x = torch.randn(3, 8, WIDTH)
    assert torch.equal(dropout(x.reshape(-1, WIDTH)).view(x.shape), dropout(x))


def test_seed_step_row_and_layer_each_draw_anew():
    masks = [
        mask(rows=(row,), seed=seed, step=step, layer=layer, tokens=20).double() - 0.7
        for row in (0, 1, 1000)
        for seed in (0, 1)
        for step in (0, 1, 2)
        for layer in (0, 1)
    ]
    size = masks[0].numel()
    for i, one in enumerate(masks):
        for other in masks[:i]:
            correlation = (one * other).mean() / (0.3 * 0.7)
            assert abs(correlation) < 5 / math.sqrt(size)


def test_evaluation_and_zero_probability_are_the_identity():
    x = torch.randn(2, 3, 4)
    keys = RowKeys()  # names no rows: none are needed
    assert RowDropout(0.5, 0, keys).eval()(x) is x
    assert RowDropout(0.0, 0, keys)(x) is x


def test_rows_must_be_named():
    keys = RowKeys()
    with pytest.raises(AssertionError, match="must name the rows"):
        RowDropout(0.5, 0, keys)(torch.ones(2, 3))
    keys.set(0, 0, torch.arange(3))
    with pytest.raises(AssertionError, match="must name the rows"):
        RowDropout(0.5, 0, keys)(torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_type_and_gradient(dtype):
    keys = RowKeys()
    keys.set(0, 0, torch.arange(4))
    x = torch.ones(4, 5, dtype=dtype, requires_grad=True)
    y = RowDropout(0.5, 0, keys)(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert torch.equal(x.grad, y.detach())
    assert 0 < (y == 0).sum() < y.numel()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.second = nn.Dropout(0.25)
        self.other = nn.Dropout1d(0.5)

    def forward(self, x):
        return self.second(self.first(x))


def test_every_dropout_is_replaced_once_and_numbered_by_name():
    model, keys = nn.ModuleList([Block(), Block()]), RowKeys()
    model[1].eval()
    replace_dropout(model, keys)
    found = {
        name: module for name, module in model.named_modules() if isinstance(module, RowDropout)
    }
    assert {name: (m.p, m.layer, m.training) for name, m in found.items()} == {
        "0.second": (0.25, 0, True),
        "0.first.1": (0.5, 1, True),
        "1.second": (0.25, 2, False),
        "1.first.1": (0.5, 3, False),
    }
    replace_dropout(model, keys)
    assert {n: m for n, m in model.named_modules() if isinstance(m, RowDropout)} == found
    model.append(Block())
    replace_dropout(model, keys)
    assert sorted(m.layer for m in model.modules() if isinstance(m, RowDropout)) == list(range(6))


def test_a_copied_module_sees_the_rows_of_the_pass():
    """PEFT trains a deep copy of a new head, and some heads have dropout inside."""
    model, keys = Block(), RowKeys()
    replace_dropout(model, keys)
    twin = copy.deepcopy(model)
    keys.set(0, 3, torch.arange(2))
    x = torch.randn(2, 3, 4)
    assert torch.equal(twin(x), model(x))


def test_recomputation_draws_the_same_mask():
    model, keys = Block(), RowKeys()
    replace_dropout(model, keys)
    keys.set(0, 3, torch.arange(2))
    gradients = []
    for recompute in (False, True):
        x = torch.linspace(-1, 1, 24).view(2, 3, 4).requires_grad_(True)
        y = checkpoint(model, x, use_reentrant=False) if recompute else model(x)
        y.square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[0].abs().max() > 0
