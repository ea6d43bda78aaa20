"""What a fine-tuned language model has lost of what its base knew."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import trainables.engine.group
from trainables.data.arrow import Split, open_split, write_split
from trainables.data.records import Encoded
from trainables.engine.distributed import World
from trainables.errors import InputError
from trainables.evaluation.forgetting import (
    BLOCK,
    BLOCKS,
    GENERAL,
    PROMPTS,
    Drawn,
    default_text,
    draw_continuations,
    measure_forgetting,
    write_general,
)
from trainables.models.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(
        "ignore:bitsandbytes.*an autograd kernel was not registered:UserWarning"
    ),
]
CPU, DOUBLE = torch.device("cpu"), torch.float64
TEXT = "some words, and some more of them. " * 40
ADDED = {"lora": {"rank": 4}, "ia3": {}, "adapter": {"bottleneck": 4}}
METHODS = {**ADDED, "full": {}}
FAST = {
    "learning_rate": 3e-2,
    "schedule": "constant",
    "warmup_ratio": 0.0,
}  # so that much is forgotten


def tokenizer(text, **_):
    return {"input_ids": [1 + ord(letter) % 90 for letter in text]}


def written(folder, text, context=None):
    """The split of general text of `text`."""
    write_general(text, tokenizer, context, folder)
    return open_split(folder, GENERAL)


def loaded(lab, folder, method, dtype=torch.float32):
    """A checkpoint as its user loads it."""
    if method == "full":
        return lab.plain("llama", folder, dtype=dtype)
    return load_checkpoint(folder, lab.spec("llama"), CPU).to(dtype)


def trained(lab, tmp_path, method, **params):
    group = lab.group("llama")
    group.join("t", lab.params(method, learning_rate=3e-2, **params))
    for _ in range(4):
        group.step(["t"])
    group.save("t", tmp_path)
    return loaded(lab, tmp_path / "checkpoint", method)


def log_probabilities(model, row):
    """Of the token after each of a row [T, V]."""
    with torch.no_grad():
        return (
            model(input_ids=torch.from_numpy(row["input_ids"].astype(np.int64))[None])
            .logits[0]
            .log_softmax(-1)
        )


def mean_loss(model, split):
    """Over all tokens of a split of text."""
    total = count = 0
    for row in split.rows(range(len(split))):
        said = torch.from_numpy(row["input_ids"].astype(np.int64))[1:]
        total -= float(log_probabilities(model, row)[:-1].gather(1, said[:, None]).double().sum())
        count += len(said)
    return total / count


# --- general text ---


def test_general_text_is_cut_into_blocks_that_the_model_reads(tmp_path):
    """Nothing of it is lost or repeated but an end of one token, which predicts nothing."""
    split = written(tmp_path, TEXT[:401], 40)
    assert split.lengths.tolist() == [40] * 10
    read = np.concatenate([row["input_ids"] for row in split.rows(range(len(split)))])
    assert read.tolist() == tokenizer(TEXT[:400])["input_ids"]
    assert written(tmp_path, TEXT[:402], 40).lengths.tolist() == [40] * 10 + [2]


@pytest.mark.parametrize("context", [None, 4096])
def test_a_block_of_general_text_has_at_most_512_tokens(tmp_path, context):
    assert BLOCK == 512
    assert written(tmp_path, TEXT, context).lengths.tolist() == [512, 512, len(TEXT) - 1024]


def test_of_a_long_text_blocks_from_all_over_are_read(tmp_path):
    split = written(tmp_path, "".join(f"{number:010d}" for number in range(500)), 10)
    assert len(split) == BLOCKS == 128
    zero = tokenizer("0")["input_ids"][0]
    digits = [row["input_ids"] - zero for row in split.rows(range(len(split)))]
    numbers = [int("".join(map(str, each))) for each in digits]
    assert (numbers[0], numbers[-1]) == (0, 499) and set(np.diff(numbers)) == {3, 4}


@pytest.mark.parametrize("text", ["", "a"])
def test_general_text_that_predicts_nothing_is_refused(tmp_path, text):
    with pytest.raises(InputError) as error:
        written(tmp_path, text)
    assert (
        str(error.value)
        == f"selection.general_text: must be at least 2 tokens long, got {len(text)}"
    )


def test_there_is_text_on_every_machine():
    text = default_text()
    assert len(text) > 50 * BLOCK and text == default_text() and "assignment" in text


# --- the winner against its base, exactly ---


@pytest.mark.parametrize("method", ["lora", "full"])
def test_losses_before_and_after_and_the_divergence_are_those_of_plain_models(
    lab, method, tmp_path
):
    tuned, base = trained(lab, tmp_path, method), lab.plain("llama")
    general, validation = written(tmp_path, TEXT[:30]), lab.split("llama", "validation")
    found, losses = measure_forgetting(tuned, lambda: base, general, validation, CPU)
    ids = torch.tensor(tokenizer(TEXT[:30])["input_ids"])
    with torch.no_grad():
        for model, name in ((base, "before"), (tuned, "after")):
            expected = torch.nn.functional.cross_entropy(
                model(input_ids=ids[None]).logits[0, :-1], ids[1:]
            )
            assert getattr(found, name) == pytest.approx(float(expected), rel=1e-5)
    total, count = 0.0, 0
    for row in validation.rows(range(9)):
        p, q = (
            log_probabilities(model, row)[torch.tensor(row["labels"] == -100)]
            for model in (base, tuned)
        )
        total += float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum"))
        count += len(p)
    assert found.kl == pytest.approx(total / count, rel=1e-4) and found.kl > 1e-4
    assert losses.shape == (2, 1, 2) and losses[0, 0, 1] == 29


def test_the_loss_of_all_blocks_is_the_mean_over_their_tokens(lab, tmp_path):
    """A short block counts by its tokens."""
    base, general = lab.plain("llama"), written(tmp_path, TEXT[:100], 40)
    found, losses = measure_forgetting(
        base, lambda: base, general, lab.split("llama", "validation"), CPU
    )
    assert losses[0, :, 1].tolist() == [39, 39, 19]
    assert found.before == pytest.approx(mean_loss(base, general), rel=1e-5)


def test_virtual_tokens_before_a_text_are_no_part_of_it(lab, tmp_path):
    tuned, base = trained(lab, tmp_path, "prompt", virtual_tokens=5), lab.plain("llama")
    general, validation = written(tmp_path, TEXT[:100], 35), lab.split("llama", "validation")
    found, losses = measure_forgetting(tuned, lambda: base, general, validation, CPU)

    def after(row):
        return log_probabilities(tuned, row)[5:]

    nll = count = total = places = 0
    for row in general.rows(range(len(general))):
        said = torch.from_numpy(row["input_ids"].astype(np.int64))[1:]
        nll, count = nll - float(after(row)[:-1].gather(1, said[:, None]).sum()), count + len(said)
    for row in validation.rows(range(9)):
        p, q = (
            each[torch.tensor(row["labels"] == -100)]
            for each in (log_probabilities(base, row), after(row))
        )
        total, places = total + float((p.exp() * (p - q)).sum()), places + len(p)
    assert found.before == pytest.approx(mean_loss(base, general), rel=1e-5)
    assert found.after == pytest.approx(nll / count, rel=1e-5) and found.after != found.before
    assert found.kl == pytest.approx(total / places, rel=1e-4) and found.kl > 1e-4


def test_a_model_that_has_not_moved_has_forgotten_nothing(lab, tmp_path):
    base = lab.plain("llama")
    found, losses = measure_forgetting(
        base, lambda: base, written(tmp_path, TEXT, 40), lab.split("llama"), CPU
    )
    assert found.before == found.after and found.kl == 0.0


def test_a_model_is_asked_for_no_more_than_it_reads(lab, tmp_path):
    read = []

    class Model:
        def __call__(self, input_ids):
            read.append(input_ids.shape[1])
            return SimpleNamespace(logits=torch.zeros(1, input_ids.shape[1], 100))

    found, losses = measure_forgetting(
        Model(), Model, written(tmp_path, TEXT, 40), lab.split("llama"), CPU
    )
    assert max(read) == 40 and found.before == pytest.approx(np.log(100))


# --- continuations that the base draws ---


def rows_of(*labels):
    """Rows whose tokens count up from 10, with these labels (None: the token)."""
    rows = []
    for each in labels:
        ids = np.arange(10, 10 + len(each), dtype=np.int32)
        found = [token if label is None else label for token, label in zip(ids, each, strict=True)]
        rows.append({"input_ids": ids, "labels": np.array(found, dtype=np.int32)})
    return Drawn(rows)


def next_number(row):
    """Logits of a model that is certain that after each token comes the one above it."""
    return torch.nn.functional.one_hot(torch.from_numpy(row["input_ids"]).long() + 1, 100) * 1e4


def drawn_labels(prompts, seed=0, logits=next_number, agree=lambda drawn: drawn):
    drawn = draw_continuations(logits, prompts, seed, agree)
    return [row["labels"].tolist() for row in drawn.rows(range(len(drawn)))]


def test_only_places_of_the_prompt_have_targets():
    """What is drawn after a token is the label of the next place, the first place of the answer included."""
    prompts = rows_of([-100, -100, -100, None, None], [-100, -100, None, -100, None, None, -100])
    assert drawn_labels(prompts) == [[-100, 11, 12, 13, -100], [-100, 11, 12, -100, 14, -100, -100]]
    drawn = draw_continuations(next_number, prompts, 0, lambda drawn: drawn)
    assert [row["input_ids"].tolist() for row in drawn.rows([0, 1])] == [
        [*range(10, 15)],
        [*range(10, 17)],
    ]
    assert len(drawn) == 2 and drawn.lengths.tolist() == [5, 7]


def test_all_places_have_targets_where_a_row_has_no_prompt():
    assert drawn_labels(rows_of([None] * 4, [-100, None])) == [[-100, 11, 12, 13], [-100, 11]]


def test_a_row_whose_prompt_is_its_end_alone_is_left_out():
    assert drawn_labels(rows_of([None, None, -100], [-100, None])) == [[-100, 11]]


def test_at_most_64_rows_are_asked_and_from_all_over():
    asked = []

    def logits(row):
        asked.append(int(row["input_ids"][0]))
        return torch.zeros(2, 100)

    rows = [
        {"input_ids": np.array([i, 1], dtype=np.int32), "labels": np.array([-100, 1])}
        for i in range(99)
    ]
    assert (
        len(draw_continuations(logits, Drawn(rows), 0, lambda drawn: drawn))
        == len(asked)
        == PROMPTS
        == 64
    )
    assert asked[0] == 0 and asked[-1] == 98 and asked == sorted(set(asked))


def test_draws_follow_the_seed_alone():
    """Of even odds: the same seed draws the same, another another; the state of torch's own generator is no matter."""
    prompts = rows_of([None] * 30, [None] * 30)

    def even(row):
        return torch.zeros(len(row["input_ids"]), 100)

    first = drawn_labels(prompts, 3, even)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert drawn_labels(prompts, 3, even) == first != drawn_labels(prompts, 4, even)
    assert torch.equal(torch.get_rng_state(), state)
    assert first[0] != first[1], "rows are not drawn alike"


def test_what_the_workers_agree_on_is_used():
    """The first worker's draw, whatever this one drew."""
    shown = []

    def agree(drawn):
        shown.append(drawn.tolist())
        return torch.full_like(drawn, 7)

    prompts = rows_of([-100, -100, None], [-100, None])
    assert drawn_labels(prompts, agree=agree) == [[-100, 7, 7], [-100, 7]]
    assert shown == [[11, 12], [11]]


# --- of every trial, with every evaluation ---


@pytest.fixture(scope="module")
def prompts(lab):
    """64 rows of 30 tokens, of which 24 are the prompt."""
    ids = np.random.default_rng(5).integers(1, 100, (64, 30)).astype(np.int32)
    labels = np.where(np.arange(30) < 24, -100, ids).astype(np.int32)
    write_split(lab.root / "prompts.arrow", Encoded(input_ids=list(ids), labels=list(labels)))
    return Split(lab.root / "prompts.arrow")


def estimate(base, tuned, prompts, seed):
    """Of the divergence, by plain models: what their losses differ by on tokens that the base has drawn.

    base, tuned: log-probabilities by the bytes of a row's tokens.
    """
    drawn = draw_continuations(
        lambda row: base[bytes(row["input_ids"])], prompts, seed, lambda drawn: drawn
    )
    found = []
    for row in drawn.rows(range(len(drawn))):
        at = np.flatnonzero(row["labels"] != -100)
        p, q = (each[bytes(row["input_ids"])][at - 1, row["labels"][at]] for each in (base, tuned))
        found += (p - q).tolist()
    return float(np.mean(found)), len(found)


def by_row(model, prompts):
    return {
        bytes(row["input_ids"]): log_probabilities(model, row)
        for row in prompts.rows(range(len(prompts)))
    }


@pytest.mark.parametrize("method", METHODS)
def test_an_untrained_trial_has_forgotten_nothing(lab, method):
    group = lab.group("llama", general=lab.general())
    group.join("t", lab.params(method, **METHODS[method]))
    evaluation = group.evaluate(["t"])["t"]
    assert evaluation.forgetting == pytest.approx(0, abs=1e-6)
    assert evaluation.kl == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_without_general_text_nothing_is_said_of_it(lab, model):
    group = lab.group(model)
    group.join("t", lab.params("lora"))
    evaluation = group.evaluate(["t"])["t"]
    assert evaluation.forgetting is None and evaluation.kl is None


@pytest.mark.parametrize("method", METHODS)
def test_forgetting_and_divergence_are_those_of_the_checkpoint(lab, method, prompts, tmp_path):
    """Of plain models: the rise of the mean loss on general text, and the estimate with this seed's draws; and that is
    as near the exact divergence as its standard error says.
    """
    general = lab.general()
    group = lab.group("llama", dtype=DOUBLE, general=general, validation=prompts, seed=3)
    group.join("t", lab.params(method, **FAST, **METHODS[method]))
    for _ in range(4):
        group.step(["t"])
    evaluation = group.evaluate(["t"])["t"]
    group.save("t", tmp_path)
    base, tuned = (
        lab.plain("llama", dtype=DOUBLE),
        loaded(lab, tmp_path / "checkpoint", method, DOUBLE),
    )
    rise = mean_loss(tuned, general) - mean_loss(base, general)
    assert abs(rise) > 1e-3
    assert evaluation.forgetting == pytest.approx(rise, rel=1e-5)

    p, q = by_row(base, prompts), by_row(tuned, prompts)
    expected, count = estimate(p, q, prompts, 3)
    assert count == 64 * 24
    assert evaluation.kl == pytest.approx(expected, rel=1e-5)

    moments = torch.zeros(
        2, dtype=DOUBLE
    )  # of log p - log q under p: mean, and variance, summed over places
    for key in p:
        share, apart = p[key][:24].exp(), (p[key] - q[key])[:24]
        mean_T = (share * apart).sum(1)
        moments += torch.stack([mean_T.sum(), ((share * apart**2).sum(1) - mean_T**2).sum()])
    exact, error = float(moments[0]) / count, float(moments[1]) ** 0.5 / count
    assert error < exact / 2, "or nearness would mean nothing"
    assert abs(evaluation.kl - exact) < 4 * error
    found = [estimate(p, q, prompts, seed)[0] for seed in range(40)]
    assert abs(np.mean(found) - exact) < 4 * error / 40**0.5
    assert 0.6 * error < np.std(found) < 1.6 * error, "each seed draws anew"
    measured, _ = measure_forgetting(tuned, lambda: base, general, prompts, CPU)
    assert measured.kl == pytest.approx(exact, rel=1e-3)
    assert measured.after - measured.before == pytest.approx(evaluation.forgetting, rel=1e-3)


def test_a_trial_forgets_in_company_what_it_forgets_alone(lab, tmp_path):
    general = lab.general()
    trials = {name: lab.params(name, **FAST, **more, epochs=1) for name, more in ADDED.items()}
    trials["other"] = lab.params("lora", rank=8, seed=4, learning_rate=1e-1, epochs=1)
    found = lab.together(
        lab.group("llama", dtype=DOUBLE, general=general), tmp_path / "together", trials
    )
    lost = set()
    for name, hp in trials.items():
        ((alone, _),) = lab.run(
            lab.group("llama", dtype=DOUBLE, general=general), tmp_path / name, hp
        )
        ((evaluation, _),) = found[name]
        assert evaluation.forgetting == pytest.approx(alone.forgetting, rel=1e-8)
        assert evaluation.kl == pytest.approx(alone.kl, rel=1e-8)
        lost.add(round(alone.forgetting, 6))
    assert len(lost) == len(trials)


def test_each_base_is_remembered_by_itself_and_once(lab, tmp_path, monkeypatch):
    """A slot goes from one base to another and back: what a trial has forgotten of its own base is the same."""
    drawn = []

    def watched(*args):
        drawn.append(draw_continuations(*args))
        return drawn[-1]

    monkeypatch.setattr(trainables.engine.group, "draw_continuations", watched)
    general, lora = lab.general(), lab.params("lora", **FAST, epochs=1)
    warm, untrained = lab.group("llama", general=general), []
    first = lab.run(warm, tmp_path / "first", lora)
    for method in ("qlora", "full"):
        warm.join("other", lab.params(method))
        untrained.append(warm.evaluate(["other"])["other"])
        for _ in range(3):
            warm.step(["other"])
        warm.leave("other")
    lab.assert_same(lab.run(warm, tmp_path / "again", lora), first)
    assert len(drawn) == 2, "of the plain base and the quantised one"
    for evaluation in untrained:
        assert evaluation.forgetting == pytest.approx(
            0, abs=1e-6
        ) and evaluation.kl == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_trial_that_goes_on_in_a_fresh_slot_has_forgotten_the_same(lab, method, tmp_path):
    general, hp = lab.general(), lab.params(method, learning_rate=3e-2)
    whole = lab.run(lab.group("llama", general=general), tmp_path / "whole", hp)
    fresh = lab.group("llama", general=general)
    lab.assert_same(lab.run(fresh, tmp_path / "resumed", hp, checkpoint=whole[0][1]), whole[1:])
    assert whole[0][0].forgetting != whole[1][0].forgetting and whole[1][0].kl > 1e-4


def test_measuring_what_is_forgotten_changes_nothing_else(lab, tmp_path):
    hp = lab.params("lora", dropout=0.1)
    with_it, without = (
        lab.run(lab.group("llama", general=general), tmp_path / name, hp)
        for name, general in (("with", lab.general()), ("without", None))
    )
    for (evaluation, folder), (expected, other) in zip(with_it, without, strict=True):
        assert (
            evaluation.val_loss == expected.val_loss
            and evaluation.train_loss == expected.train_loss
        )
        saved, wanted = lab.tensors(folder), lab.tensors(other)
        assert all(torch.equal(saved[name], wanted[name]) for name in wanted)


def test_the_first_worker_s_values_are_on_every_worker(monkeypatch):
    """Of three workers with 1, 2 and 3, all have 1."""
    given = [torch.tensor([rank + 1, 10 * rank]) for rank in range(3)]
    sent = []
    monkeypatch.setattr(World, "sum", lambda world, tensors: sent.extend(tensors))
    for rank, tensor in enumerate(given):
        World(rank=rank, size=3).from_first(tensor)
    assert sum(sent).tolist() == [1, 0]
    assert given[2].tolist() == [3, 20], "what a worker has is left as it is"
