import numpy as np
import pytest
import torch

from trainables.data.arrow import Split, write_split
from trainables.data.records import Encoded
from trainables.engine.scoring import RowResults
from trainables.models.base import BaseSpec
from trainables.models.config import ModelConfig
from trainables.tasks import TASKS, take_targets
from trainables.tasks.classification.task import Classification
from trainables.tasks.multi_label.task import MultiLabel
from trainables.tasks.regression.task import Regression

# whose losses are of tokens; of pairs see tests/trainables/engine/test_pairs.py
LM = [task for task in TASKS.values() if task.continues_text and not task.has_pairs]


def ids(*values):
    return np.array(values, dtype=np.int32)


ROWS = [
    {"input_ids": ids(5, 6, 7, 8), "labels": ids(-100, -100, 7, 8)},
    {"input_ids": ids(9, 10), "labels": ids(9, 10)},
    {
        "input_ids": ids(1, 2, 3),
        "labels": ids(1, -100, -100),
    },  # its only label is the first token: no target
]


def test_a_task_is_known_by_its_name():
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}


@pytest.mark.parametrize("task", LM)
def test_collate_pads_on_the_right_to_the_longest_row(task):
    batch = task.collate(ROWS, pad_token_id=99)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 99, 99], [1, 2, 3, 99]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [
        [-100, -100, 7, 8],
        [9, 10, -100, -100],
        [1, -100, -100, -100],
    ]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_collate_classification():
    rows = [
        {"input_ids": ids(1, 2, 3), "labels": 2, "token_type_ids": ids(0, 1, 1)},
        {"input_ids": ids(4), "labels": 0, "token_type_ids": ids(0)},
    ]
    batch = TASKS["classification"].collate(rows, pad_token_id=7)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]
    assert batch["labels"].tolist() == [2, 0]
    assert "token_type_ids" not in TASKS["classification"].collate(
        [{"input_ids": ids(1), "labels": 0}], 7
    )


@pytest.mark.parametrize("task", LM)
def test_row_losses_are_those_of_the_next_tokens(task):
    labels = task.collate(ROWS, 99)["labels"]
    logits = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nll, targets = task.row_losses(logits, labels)
    log_p = logits.log_softmax(-1)
    expected = [-(log_p[0, 1, 7] + log_p[0, 2, 8]), -log_p[1, 0, 10], torch.tensor(0.0)]
    torch.testing.assert_close(nll, torch.stack([e.double() for e in expected]))
    assert targets.tolist() == [2, 1, 0]
    assert targets.dtype == torch.int64
    assert task.target_count(ROWS) == 3
    assert task.outcomes(logits, labels, []) is None


WEIGHTED = [
    {**row, "weights": np.array(weights, dtype=np.float32)}
    for row, weights in zip(ROWS, ([9, 9, 0.25, 0.5], [9, 0.125], [9, 9, 9]), strict=True)
]


@pytest.mark.parametrize("task", LM)
def test_a_token_counts_by_its_weight(task):
    batch = task.collate(WEIGHTED, 99)
    labels, weights, _ = take_targets(batch, task, torch.nn.Identity())
    assert batch.keys() == {"input_ids", "attention_mask"} and weights.dtype is torch.float32
    assert weights.tolist() == [[9, 9, 0.25, 0.5], [9, 0.125, 0, 0], [9, 9, 9, 0]]
    logits = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nll, targets = task.row_losses(logits, labels, weights=weights)
    log_p = logits.log_softmax(-1)
    assert nll.tolist() == pytest.approx(
        [
            float(-0.25 * log_p[0, 1, 7] - 0.5 * log_p[0, 2, 8]),
            float(-0.125 * log_p[1, 0, 10]),
            0.0,
        ],
        rel=1e-12,
    )
    assert targets.tolist() == [0.75, 0.125, 0.0] and targets.dtype is torch.float64
    assert task.target_count(WEIGHTED) == 0.875
    found = RowResults(nll=nll.numpy(), targets=targets.numpy(), outcomes=None)
    assert found.metrics(task) == {"perplexity": pytest.approx(np.exp(float(nll.sum()) / 0.875))}


@pytest.mark.parametrize("task", LM)
def test_weighted_losses_in_chunks_are_those_of_the_whole(task, monkeypatch):
    labels, weights, _ = take_targets(task.collate(WEIGHTED, 99), task, torch.nn.Identity())
    torch.manual_seed(0)
    output = torch.nn.Linear(6, 20, dtype=torch.float64)

    def losses():
        x = torch.linspace(-1, 1, 72, dtype=torch.float64).view(3, 4, 6).requires_grad_()
        nll, targets = task.row_losses(x, labels, output, weights)
        (nll**2).sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(task.row_losses(x, labels, output, weights)[0], nll)
        return nll, targets, x.grad

    whole = losses()
    monkeypatch.setattr("trainables.tasks.causal_lm.task.CHUNK_LOGITS", 20)
    torch.testing.assert_close(losses(), whole, rtol=1e-12, atol=1e-14)


def test_a_split_keeps_weights_where_it_has_some(tmp_path):
    columns = {key: [row[key] for row in WEIGHTED] for key in ("input_ids", "labels", "weights")}
    digest = write_split(tmp_path / "with.arrow", Encoded(**columns))
    for row, expected in zip(Split(tmp_path / "with.arrow").rows(range(3)), WEIGHTED, strict=True):
        assert row["weights"].dtype == np.float32
        assert all(np.array_equal(row[key], expected[key]) for key in columns)
    del columns["weights"]
    assert write_split(tmp_path / "without.arrow", Encoded(**columns)) != digest
    assert "weights" not in Split(tmp_path / "without.arrow").rows([0])[0]


@pytest.mark.parametrize("task", LM)
def test_virtual_tokens_before_a_row_do_not_move_its_targets(task):
    labels = task.collate(ROWS, 99)["labels"]
    logits = torch.randn(3, 4, 20)
    prompted = torch.cat([torch.randn(3, 5, 20), logits], dim=1)
    torch.testing.assert_close(task.row_losses(prompted, labels), task.row_losses(logits, labels))


@pytest.mark.parametrize("task", LM)
def test_a_batch_without_targets_has_zero_loss_and_zero_gradient(task):
    logits = torch.randn(1, 3, 20, requires_grad=True)
    nll, targets = task.row_losses(logits, task.collate(ROWS[2:], 99)["labels"])
    nll.sum().backward()
    assert (nll.tolist(), targets.tolist()) == ([0.0], [0])
    assert torch.count_nonzero(logits.grad) == 0


LABELS = {
    Classification: torch.tensor([1, 4]),
    Regression: torch.tensor([0.5, -3.0], dtype=torch.float64),
    MultiLabel: torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.float32),
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)  # fmt: skip
def test_losses_are_computed_in_float32_at_least(task, dtype, expected):
    tokens = torch.tensor([[1, 2, 3], [0, 1, -100]])
    labels = next((own for kind, own in LABELS.items() if isinstance(task, kind)), tokens)
    logits = torch.randn(2, 3, 5) if labels is tokens else torch.randn(2, 5)
    logits = logits.to(dtype)
    nll, _ = task.row_losses(logits, labels)
    assert nll.dtype == (torch.float64 if task.has_pairs else expected)
    torch.testing.assert_close(
        nll.double(), task.row_losses(logits.double(), labels)[0], rtol=1e-5, atol=1e-5
    )


def test_row_losses_equal_the_model_s_own_on_one_row():
    """Parity with Hugging Face: a causal model's loss is the mean over targets, a classifier's the mean over rows."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(0)
    sizes = dict(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    batch = TASKS["causal_lm"].collate(ROWS[:2], 0)
    with torch.no_grad():
        output = model(**batch)
    nll, targets = TASKS["causal_lm"].row_losses(output.logits, batch["labels"])
    torch.testing.assert_close(nll.sum() / targets.sum(), output.loss)

    spec = BaseSpec(
        model=ModelConfig(name="any"),
        auto_class=TASKS["classification"].auto_class,
        pad_token_id=0,
        outputs=("bad", "good", "so so"),
    )
    model = LlamaForSequenceClassification(LlamaConfig(**{**sizes, **spec.settings})).eval()
    assert model.config.id2label == {0: "bad", 1: "good", 2: "so so"}
    assert model.config.label2id == {"bad": 0, "good": 1, "so so": 2}
    batch = TASKS["classification"].collate([{**row, "labels": i} for i, row in enumerate(ROWS)], 0)
    with torch.no_grad():
        output = model(**batch)
    nll, targets = TASKS["classification"].row_losses(output.logits, batch["labels"])
    torch.testing.assert_close(nll.mean(), output.loss)
    assert targets.tolist() == [1, 1, 1]
    assert TASKS["classification"].target_count(ROWS) == 3
    outcomes = TASKS["classification"].outcomes(output.logits, batch["labels"], spec.outputs)
    assert outcomes[:, :2].T.tolist() == [output.logits.argmax(-1).tolist(), [0, 1, 2]]
    torch.testing.assert_close(outcomes[:, 2:], output.logits.log_softmax(-1))
    many = torch.randn(3, 101)
    outcomes = TASKS["classification"].outcomes(many, batch["labels"], [])
    assert outcomes.T.tolist() == [many.argmax(-1).tolist(), [0, 1, 2]], "too many to keep"


def test_classification_metrics():
    labels, predictions = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    metrics = TASKS["classification"].metrics(np.stack([predictions, labels], 1))
    assert metrics == {
        "accuracy": 0.6,
        "macro_f1": pytest.approx((0.5 + 0.8 + 0.0) / 3),
        "weighted_f1": pytest.approx((2 * 0.5 + 2 * 0.8 + 0.0) / 5),
    }
    # A class that neither occurs nor is predicted does not count.
    assert TASKS["classification"].metrics(np.array([[0, 0], [3, 3]]))["macro_f1"] == 1.0


@pytest.mark.parametrize("task", LM)
def test_perplexity_is_of_a_token_not_of_a_row(task):
    found = RowResults(nll=np.array([2.0, 10.0]), targets=np.array([1, 5]), outcomes=None)
    assert found.metrics(task) == {"perplexity": pytest.approx(np.exp(2.0))}
    huge = RowResults(nll=np.array([1e5]), targets=np.array([1]), outcomes=None)
    assert huge.metrics(task) == {"perplexity": float("inf")}
