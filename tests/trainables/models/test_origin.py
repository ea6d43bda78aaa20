"""A model that was an adapter, or another sweep's winner: merged into its base, or continued."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers

from tests.trainables.models.test_checkpoint_loading import CPU, METHODS, Bench
from trainables.engine.continuing import check_continues
from trainables.errors import InputError
from trainables.hyperparameters import parse
from trainables.models.checkpoint import complete, load_base_model, load_checkpoint, load_untuned
from trainables.models.files import check_files, fingerprint, load_tokenizer
from trainables.models.lineage import LINEAGE, Ancestor, lineage_json
from trainables.models.origin import adapter_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]
MERGED = {name: METHODS[name] for name in ("lora", "ia3", "vera")}
BESIDE = {name: METHODS[name] for name in ("prompt", "adapter")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What is merged in a test is kept for it alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ancestor(bench: Bench, **changes) -> Ancestor:
    spec = bench.spec()
    found = Ancestor(
        sweep="first-20260101-000000",
        trial="t0003",
        step=2,
        base=bench.model.name,
        method=bench.hp.method,
        task=bench.task.name,
        auto_class=spec.auto_class,
        problem_type=spec.problem_type,
        outputs=spec.outputs,
        quantisation=spec.quantisation,
    )
    return replace(found, **changes)


def sweep(bench: Bench, saved: Path, **changes) -> Path:
    """The folder of a sweep that has ended, with what of it a later one needs."""
    folder = bench.folder / "runs" / "first"
    winner = folder / "winner"
    shutil.copytree(saved / "checkpoint", winner)
    (folder / "sweep.yaml").write_text("")
    load_tokenizer(bench.model).save_pretrained(winner)
    complete(winner, bench.spec(), "winner")
    lineage = lineage_json([ancestor(bench, **changes)])
    (winner / LINEAGE).write_text(json.dumps(lineage))
    return folder


def then(bench: Bench, folder: Path, **model) -> None:
    """Let the bench's next trials train over what is in `folder`."""
    bench.model = replace(bench.model, name=str(folder), **model)


@pytest.mark.parametrize("task", ["classification", "causal"])
@pytest.mark.parametrize("method", MERGED)
def test_what_is_merged_is_what_had_won(tmp_path, method, task):
    """The untuned base of a second sweep is the first one's winner; what trains over it loads by the card."""
    bench = Bench(tmp_path, "llama" if task == "causal" else "bert", task)
    _, loss, saved = bench.trained(method, **METHODS[method])
    then(bench, sweep(bench, saved))
    group = bench.group()
    untuned, _ = group.untuned_results("lora")
    assert untuned.loss == pytest.approx(loss, rel=1e-5)
    assert bench.loss(load_untuned(bench.spec(), CPU)) == pytest.approx(loss, rel=1e-5)
    _, second, saved = bench.trained("lora", rank=2)
    assert second != pytest.approx(loss, rel=1e-4)
    assert bench.loss(load_checkpoint(saved / "checkpoint", bench.spec(), CPU)) == pytest.approx(
        second, rel=1e-5
    )
    assert bench.loss(bench.by_the_card(saved)) == pytest.approx(second, rel=1e-5)


@pytest.mark.parametrize("task", ["classification", "causal"])
@pytest.mark.parametrize("method", {**MERGED, **BESIDE})
def test_a_continued_adapter_starts_where_it_ended(tmp_path, method, task):
    bench = Bench(tmp_path, "llama" if task == "causal" else "bert", task)
    _, loss, saved = bench.trained(method, **METHODS[method])
    hp, options = bench.hp, bench.hp.options
    then(bench, sweep(bench, saved), adapter="continue")
    check_continues(bench.spec(), [hp])
    group = bench.group()
    untuned, _ = group.untuned_results(method, options)
    assert untuned.loss == pytest.approx(loss, rel=1e-5)
    assert bench.loss(load_untuned(bench.spec(), CPU)) == pytest.approx(loss, rel=1e-5)
    group.join("a", replace(hp, ema_decay=0.9))
    group.join("b", hp)
    found = group.evaluate(["a", "b"])
    assert found["a"].val_loss == pytest.approx(loss, rel=1e-5)
    assert found["b"].val_loss == pytest.approx(loss, rel=1e-5)
    _, second, saved = bench.trained(method, **METHODS[method])
    assert second != pytest.approx(loss, rel=1e-4)
    assert bench.loss(bench.by_the_card(saved)) == pytest.approx(second, rel=1e-5)


@pytest.mark.parametrize("adapter", ["merge", "continue"])
def test_an_adapter_of_peft_itself(tmp_path, adapter):
    """As its users name it: over a base with a path from here, and layers by the ends of their names."""
    bench = Bench(tmp_path, "llama", "causal")
    base = transformers.AutoModelForCausalLM.from_pretrained(bench.model.name)
    tuned = peft.get_peft_model(
        base, peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator)
    tuned.save_pretrained(tmp_path / "tuned")
    expected = bench.loss(tuned.eval())
    file = tmp_path / "tuned" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "model"}))
    then(bench, tmp_path / "tuned", adapter=adapter)
    options = {"rank": 3, "alpha": 6.0, "targets": ["q_proj"]}
    bench.hp = parse(
        {"method": "lora", "learning_rate": 1.0, "batch_size": 1, "epochs": 1, **options}
    )
    check_files(bench.model)
    assert bench.loss(load_untuned(bench.spec(), CPU)) == pytest.approx(expected, rel=1e-5)
    untuned, _ = bench.group().untuned_results("lora", bench.hp.options)
    assert untuned.loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["full", "lora", "adapter"])
def test_a_head_of_other_labels_is_new(tmp_path, method):
    """The backbone stays as it was trained, and a trial's own seed draws the head."""
    bench = Bench(tmp_path, "bert", "classification")
    _, _, saved = bench.trained(method, **METHODS[method])
    adapter = "continue" if method == "adapter" else "merge"
    then(bench, sweep(bench, saved, outputs=("one", "two", "three")), adapter=adapter)
    group = bench.group()
    group.join("t", bench.hp)
    assert "classifier" in group._base.base.new
    before = load_untuned(replace(bench.spec(), outputs=("one", "two", "three")), CPU)
    after = load_base_model(bench.spec(), CPU)
    assert not torch.equal(before.classifier.weight, after.classifier.weight)
    key = "bert.encoder.layer.0.attention.self.query.weight"
    if method != "adapter":
        assert torch.equal(before.state_dict()[key], after.state_dict()[key])
    group.leave("t")
    _, loss, saved = bench.trained("adapter", **METHODS["adapter"])
    assert bench.loss(bench.by_the_card(saved)) == pytest.approx(loss, rel=1e-5)


def test_a_head_of_the_same_labels_goes_on(tmp_path):
    bench = Bench(tmp_path, "bert", "classification")
    _, _, saved = bench.trained("lora", rank=2)
    then(bench, sweep(bench, saved))
    group = bench.group()
    group.join("t", bench.hp)
    assert group._base.base.new == ()


def test_an_adapter_may_stand_on_another(tmp_path):
    """A sweep that went on from a sweep, even from a checkpoint beside which nothing lies."""
    bench = Bench(tmp_path, "llama", "causal")
    _, _, saved = bench.trained("lora", rank=2)
    first = sweep(bench, saved)
    then(bench, first)
    _, loss, saved = bench.trained("lora", rank=2)
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(saved / "checkpoint", checkpoint)
    file = checkpoint / "adapter_config.json"
    named = json.loads(file.read_text()) | {"base_model_name_or_path": str(first / "winner")}
    file.write_text(json.dumps(named))
    then(bench, checkpoint)
    assert adapter_of(adapter_of(bench.model).base) is not None
    assert bench.loss(load_base_model(bench.spec(), CPU)) == pytest.approx(loss, rel=1e-5)


def test_its_fingerprint_covers_the_adapter(tmp_path):
    bench = Bench(tmp_path, "llama", "causal")
    base = fingerprint(bench.model)
    _, _, saved = bench.trained("lora", rank=2)
    then(bench, sweep(bench, saved))
    merged = fingerprint(bench.model)
    assert merged.items() > base.items() and "adapter/adapter_model.safetensors" in merged
    continued = fingerprint(replace(bench.model, adapter="continue"))
    assert {name for name in merged if merged[name] != continued[name]} == {"adapter"}


@pytest.mark.parametrize("method", BESIDE)
def test_what_cannot_be_merged_is_refused(tmp_path, method):
    bench = Bench(tmp_path, "llama", "causal")
    _, _, saved = bench.trained(method, **BESIDE[method])
    then(bench, sweep(bench, saved))
    with pytest.raises(InputError, match=r"^model.name: .* cannot be merged .*model.adapter: cont"):
        check_files(bench.model)
    check_files(replace(bench.model, adapter="continue"))


def test_dora_over_4_bits_is_not_merged(tmp_path):
    bench = Bench(tmp_path, "llama", "causal")
    _, _, saved = bench.trained("lora", rank=2, use_dora=True)
    then(bench, sweep(bench, saved, quantisation="nf4"))
    with pytest.raises(InputError, match="the magnitudes of DoRA"):
        check_files(bench.model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 8}, "continue trains the adapter as it is, with r 4 in"),
        ({"alpha": 3.0}, "with lora_alpha 16.0 in"),
        ({"targets": ["q_proj"]}, "nothing of that name"),
        ({"method": "vera"}, "with peft_type LORA in .*; got method vera with VERA"),
        ({"method": "full"}, "continue trains the adapter itself, got method full"),
    ],
)
def test_only_the_adapter_itself_is_continued(tmp_path, changes, message):
    bench = Bench(tmp_path, "llama", "causal")
    _, _, saved = bench.trained("lora", rank=4, alpha=16.0, targets="all-linear")
    then(bench, sweep(bench, saved), adapter="continue")
    own = {"rank": 4, "alpha": 16.0, "targets": "all-linear"}
    rates = {"learning_rate": 1e-3, "batch_size": 3, "epochs": 1}
    given = {"method": "lora", **rates, **own, **changes}
    if given["method"] != "lora":
        given = {name: given[name] for name in ("method", *rates)}
    with pytest.raises(InputError, match=message):
        check_continues(bench.spec(), [parse({"method": "lora", **rates, **own}), parse(given)])


def test_a_base_that_is_not_there_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone/away"}')
    bench = Bench(tmp_path, "llama", "causal")
    then(bench, tmp_path)
    with pytest.raises(InputError) as caught:
        adapter_of(bench.model)
    assert str(caught.value) == (
        f"model.name: the base of the adapter {tmp_path} is not found: its adapter_config.json"
        " names /gone/away (base_model_name_or_path); put it there, or name there where it is"
    )


def test_a_sweep_without_winner_and_a_model_that_is_no_adapter(tmp_path):
    bench = Bench(tmp_path, "llama", "causal")
    with pytest.raises(InputError, match="continue needs an adapter, and .* is a whole model"):
        adapter_of(replace(bench.model, adapter="continue"))
    (tmp_path / "sweep.yaml").write_text("")
    then(bench, tmp_path)
    with pytest.raises(InputError, match="the sweep .* has no winner yet"):
        adapter_of(bench.model)
