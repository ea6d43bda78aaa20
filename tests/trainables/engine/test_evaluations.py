"""What an evaluation says beside its losses: of each slice, and what using the model will cost."""

import json
import shutil

import numpy as np
import pytest
import torch

from trainables.data.prepare import Slices
from trainables.engine.group import GroupSettings, open_group
from trainables.evaluation.forgetting import GENERAL
from trainables.models.checkpoint import load_checkpoint
from trainables.models.config import ModelConfig
from trainables.tasks import TASKS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(
        "ignore:bitsandbytes.*an autograd kernel was not registered:UserWarning"
    ),
]
CPU = torch.device("cpu")
ROWS = np.array([0, 2, 0, 2, 2, 0, 3, 2, 0])  # slice of each validation row
SLICES = Slices(values=("", "nowhere", "de", "fr"), of_rows=ROWS)
PARTS = {"": [0, 2, 5, 8], "de": [1, 3, 4, 7], "fr": [6]}
TRIALS = {
    "lora": {"method": "lora", "learning_rate": 3e-2},
    "ia3": {"method": "ia3", "learning_rate": 1e-1, "batch_size": 3},
    "adapter": {"method": "adapter", "bottleneck": 4, "learning_rate": 1e-2, "seed": 2},
}


# --- slices ---


def plain(lab, model, folder):
    """The model of a checkpoint as its user loads it."""
    return load_checkpoint(folder, lab.spec(model), CPU)


def f1(labels, predictions):
    """Mean over the classes that occur."""
    found = []
    for c in set(labels) | set(predictions):
        hits = sum(a == b == c for a, b in zip(labels, predictions, strict=True))
        found.append(2 * hits / (labels.count(c) + predictions.count(c)))
    return sum(found) / len(found)


@pytest.fixture(scope="module", params=["bert", "llama"])
def sliced(request, lab, tmp_path_factory):
    """A model; of trials that shared a base the last evaluation and where it lies."""
    folder = tmp_path_factory.mktemp("sliced")
    trials = {name: lab.params(**more, epochs=1) for name, more in TRIALS.items()}
    found = lab.together(lab.group(request.param, slices=SLICES, max_tokens=60), folder, trials)
    return request.param, {name: history[-1] for name, history in found.items()}


def test_each_slice_is_measured_as_if_it_were_all(lab, sliced):
    """From the rows' own losses, and from what the plain model of the checkpoint predicts."""
    model, found = sliced
    for evaluation, folder in found.values():
        module = plain(lab, model, folder / "checkpoint")
        assert list(evaluation.slices) == list(PARTS), "a value that no row has is no slice"
        for value, rows in PARTS.items():
            part = dict(evaluation.slices[value])
            nll, targets = evaluation.losses[rows].astype(np.float64).sum(0)
            assert part.pop("rows") == len(rows)
            loss = part.pop("loss")
            assert loss == pytest.approx(nll / targets, rel=1e-6)
            with torch.no_grad():
                assert loss == pytest.approx(
                    float(lab.loss(model, module, rows, "validation")), rel=1e-4
                )
                batch, labels = lab.batch(model, rows, "validation")
                logits = module(**batch).logits
            if model == "bert":
                predictions, labels = logits.argmax(-1).tolist(), labels.tolist()
                accuracy = np.mean([a == b for a, b in zip(predictions, labels, strict=True)])
                expected = {"accuracy": accuracy, "macro_f1": f1(labels, predictions)}
                assert part.keys() == set(TASKS["classification"].metric_names)
                part = {name: part[name] for name in expected}
            else:
                expected = {"perplexity": np.exp(nll / targets)}
            assert part == pytest.approx(expected, rel=1e-6)


def test_slices_of_a_trial_do_not_depend_on_its_company(lab, sliced, tmp_path):
    model, found = sliced
    for name, (evaluation, _) in found.items():
        ((alone, _),) = lab.run(
            lab.group(model, slices=SLICES), tmp_path / name, lab.params(**TRIALS[name], epochs=1)
        )
        for value in PARTS:
            assert evaluation.slices[value]["loss"] == pytest.approx(
                alone.slices[value]["loss"], rel=1e-3
            )
    losses = [evaluation.slices["de"]["loss"] for evaluation, _ in found.values()]
    assert len({round(loss, 4) for loss in losses}) == len(losses), "each has its own"


def test_the_whole_is_the_mean_of_its_slices(sliced):
    _, found = sliced
    for evaluation, _ in found.values():
        targets = {value: evaluation.losses[rows, 1].sum() for value, rows in PARTS.items()}
        total = sum(evaluation.slices[value]["loss"] * targets[value] for value in PARTS)
        assert total / sum(targets.values()) == pytest.approx(evaluation.val_loss, rel=1e-6)


def test_without_a_column_an_evaluation_has_no_slices(lab):
    group = lab.group("bert")
    group.join("t", lab.params("lora"))
    assert group.evaluate(["t"])["t"].slices == {}


# --- what a request costs ---

RANK, BOTTLENECK, LAYERS, WIDTH, INNER = 8, 4, 2, 32, 64
# inputs and outputs of the linear layers: query, key, value and output of the attention; and of the feed-forward two
# in BERT, three in Llama
BERT_SIDES = LAYERS * (4 * (WIDTH + WIDTH) + 2 * (WIDTH + INNER))
LLAMA_SIDES = LAYERS * (4 * (WIDTH + WIDTH) + 3 * (WIDTH + INNER))
ADAPTERS = LAYERS * (2 * WIDTH * BOTTLENECK + BOTTLENECK + WIDTH)


def arithmetic(model):
    """Parameters that a token is multiplied with: all but those of tables of embeddings."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


@pytest.mark.parametrize(
    ("model", "method", "options", "own"),
    [
        *(
            (model, method, {}, 0)
            for model in ("bert", "llama")
            for method in ("full", "partial", "lora", "ia3")
        ),
        ("llama", "adapter", {"bottleneck": BOTTLENECK}, ADAPTERS),
        ("bert", "adapter", {"bottleneck": BOTTLENECK}, ADAPTERS),
        (
            "bert-language-model",
            "adapter",
            {"bottleneck": BOTTLENECK},
            ADAPTERS,
        ),  # its pooler is new, so of the head
        ("llama", "qlora", {"rank": RANK, "bits": 4}, RANK * LLAMA_SIDES),
        ("llama", "qlora", {"rank": RANK, "bits": 8}, RANK * LLAMA_SIDES),
        (
            "bert",
            "qlora",
            {"rank": RANK, "bits": 4},
            RANK * (BERT_SIDES + 2 * WIDTH),
        ),  # its pooler is adapted
        ("bert-language-model", "qlora", {"rank": RANK, "bits": 4}, RANK * BERT_SIDES),
        ("llama", "prefix", {"virtual_tokens": 5}, 5 * 2 * LAYERS * WIDTH),
        ("bert-language-model", "qlora", {"rank": RANK, "bits": 8}, RANK * BERT_SIDES),
    ],
)
def test_what_stays_beside_the_base_costs_its_share_of_the_arithmetic(
    lab, model, method, options, own
):
    group = lab.group(model)
    group.join("t", lab.params(method, **({"layers": 1} if method == "partial" else {}), **options))
    evaluation = group.evaluate(["t"])["t"]
    assert evaluation.inference_cost == pytest.approx(
        1 + own / arithmetic(lab.plain(model)), rel=1e-12
    )
    head = evaluation.trainable_parameters - own
    if method in ("adapter", "qlora"):
        assert (head > 0) == (model != "llama"), "a classifier trains its head too"


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_virtual_tokens_cost_their_share_of_a_request(lab, model):
    """The length of which is that of the validation rows."""
    lengths = lab.split(model, "validation").lengths
    assert lengths.mean() != lab.split(model).lengths.mean()
    group = lab.group(model)
    group.join("t", lab.params("prompt", virtual_tokens=5))
    assert group.evaluate(["t"])["t"].inference_cost == pytest.approx(
        1 + 5 / lengths.mean(), rel=1e-12
    )


def test_an_mlp_that_does_not_leave_costs_a_request_nothing(lab):
    costs = []
    for projected in (False, True):
        group = lab.group("llama")
        group.join("t", lab.params("prefix", virtual_tokens=5, prefix_projection=projected))
        costs.append(group.evaluate(["t"])["t"].inference_cost)
    assert costs[0] == costs[1] > 1


def test_what_a_request_costs_depends_neither_on_company_nor_on_training(lab):
    group = lab.group("llama")
    for trial, more in {
        **TRIALS,
        "wide": {"method": "adapter", "bottleneck": 2 * BOTTLENECK},
    }.items():
        group.join(trial, lab.params(**more))
    found = []
    for _ in range(2):
        found.append(
            {trial: each.inference_cost for trial, each in group.evaluate(group.trials).items()}
        )
        group.step(group.trials)
    assert found[0] == found[1]
    parameters = arithmetic(lab.plain("llama"))
    wide = 2 * ADAPTERS - LAYERS * WIDTH
    expected = {
        "lora": 1,
        "ia3": 1,
        "adapter": 1 + ADAPTERS / parameters,
        "wide": 1 + wide / parameters,
    }
    assert found[0] == pytest.approx(expected, rel=1e-12)


# --- a folder of data ---


@pytest.fixture
def folder(lab, tmp_path):
    """As `prepare` and a sweep leave it."""
    for name in ("train", "validation"):
        lab.split("llama", name)
        shutil.copy(lab.root / f"instruction-{name}.arrow", tmp_path / f"{name}.arrow")
    lab.general()
    shutil.copy(lab.root / "general" / f"{GENERAL}.arrow", tmp_path)
    np.save(tmp_path / "validation.slices.npy", ROWS)
    (tmp_path / "manifest.json").write_text(
        json.dumps({"labels": [], "encoding": {"slices": SLICES.values}})
    )
    return tmp_path


@pytest.mark.parametrize("forgetting", [False, True])
def test_a_group_finds_slices_and_general_text_in_its_folder(lab, folder, forgetting):
    def opened():
        return open_group(
            folder,
            model=ModelConfig(name=str(lab.folder("llama"))),
            task="instruction",
            pad_token_id=0,
            settings=GroupSettings(forgetting=forgetting),
            device=CPU,
        )

    group, hp = opened(), lab.params("lora", learning_rate=3e-2)
    group.join("t", hp)
    for _ in range(3):
        group.step(["t"])
    evaluation = group.evaluate(["t"])["t"]
    assert {value: each["rows"] for value, each in evaluation.slices.items()} == {
        "": 4,
        "de": 4,
        "fr": 1,
    }
    if not forgetting:
        assert evaluation.forgetting is None and evaluation.kl is None
        return
    expected = lab.group("llama", general=lab.general())
    expected.join("t", hp)
    for _ in range(3):
        expected.step(["t"])
    same = expected.evaluate(["t"])["t"]
    assert abs(same.forgetting) > 1e-3
    assert (evaluation.forgetting, evaluation.kl) == pytest.approx(
        (same.forgetting, same.kl), rel=1e-6
    )
