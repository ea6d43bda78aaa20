"""A classifier's head is as exact over a base in bfloat16 as over one in float32: the matrix that holds it is float32."""

import pytest
import torch

from trainables.engine.kernels import MicroBatch
from trainables.engine.sites import TrainedModule

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)
CPU, HALF, SINGLE = torch.device("cpu"), torch.bfloat16, torch.float32
CLASSIFIERS = ["bert", "roberta", "distilbert", "bert-classifier"]
SETTINGS = {
    "bfloat16 base": {"dtype": HALF},
    "autocast": {"autocast": HALF},
    "both": {"dtype": HALF, "autocast": HALF},
}


def heads(group):
    return [site for site, _ in group._engine._sites.values() if isinstance(site, TrainedModule)]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("model", CLASSIFIERS)
def test_a_head_computes_in_float32_from_the_hidden_states_that_it_gets(lab, model, settings):
    group = lab.group(model, **settings)
    for trial, seed in (("a", 0), ("b", 1)):
        group.join(trial, lab.params("lora", seed=seed))
    group.step(["a", "b"])
    group._base.model.eval()
    engine, seen = group._engine, []
    assert heads(group)
    for site in heads(group):
        site.module.register_forward_hook(
            lambda _, inputs, output, site=site: seen.append((site, *inputs, output))
        )
    batch, labels = lab.batch(model)
    lanes = [0] * 3 + [1] * 3
    with torch.no_grad(), group._forward.precision():
        logits = engine.forward(batch, MicroBatch.of(lanes, CPU)).logits
    assert logits.dtype == SINGLE and len(seen) == len(heads(group))
    for site, x, output in seen:
        assert output.dtype == SINGLE
        for lane, rows in ((0, slice(0, 3)), (1, slice(3, 6))):
            weights = {name: leaf.detach().clone() for name, leaf in site._parameters[lane].items()}
            assert {w.dtype for w in weights.values()} == {SINGLE}
            expected = torch.func.functional_call(site._inner, weights, (x[rows].float(),))
            torch.testing.assert_close(output[rows], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_step_smaller_than_bfloat16_can_tell_moves_the_logits(lab, settings):
    group = lab.group("bert", **settings)
    group.join("t", lab.params("lora"))
    before = run(lab, group)
    with torch.no_grad():
        for site in heads(group):
            for leaf in site._parameters[0].values():
                leaf.mul_(1 + 2.0**-12)  # bfloat16 has 8 bits
    assert (run(lab, group) != before).any(dim=1).all()


def run(lab, group):
    group._base.model.eval()
    batch, labels = lab.batch("bert")
    with torch.no_grad(), group._forward.precision():
        return group._engine.forward(batch, MicroBatch.of([0] * len(labels), CPU)).logits


@pytest.mark.parametrize("model", ["bert", "bert-classifier"])
@pytest.mark.parametrize("method", ["lora", "ia3", "prompt", "prefix", "adapter"])
def test_over_a_bfloat16_base_a_trial_learns_what_it_learns_over_float32(
    lab, model, method, tmp_path
):
    hp = lab.params(method, epochs=1)
    ((exact, _),) = lab.run(lab.group(model), tmp_path / "float32", hp)
    ((found, folder),) = lab.run(lab.group(model, dtype=HALF), tmp_path / "bfloat16", hp)
    assert found.val_loss == pytest.approx(exact.val_loss, rel=3e-2)
    saved = lab.tensors(folder / "checkpoint")
    assert saved and {tensor.dtype for tensor in saved.values()} == {SINGLE}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_frozen_classifier_lies_on_a_gpu_in_bfloat16_and_its_head_in_float32(lab):
    from trainables.engine.distributed import World
    from trainables.engine.group import GroupSettings, TrialGroup
    from trainables.models.config import ModelConfig
    from trainables.models.loading import load_model
    from trainables.models.precision import base_dtype, computes_in_bf16

    device, task = torch.device("cuda"), lab.task("bert")
    config = ModelConfig(name=str(lab.folder("bert")))
    expected = HALF if computes_in_bf16(device) else SINGLE
    group = TrialGroup(
        load_base=lambda quantisation, dtype: load_model(
            lab.spec("bert", quantisation=quantisation, dtype=dtype), device=device, seed=0
        ),
        base_dtype=lambda method: base_dtype(config, method, device),
        task=task,
        train=lab.split("bert"),
        validation=lab.split("bert", "validation"),
        pad_token_id=0,
        settings=GroupSettings(autocast=expected if expected == HALF else None),
        device=device,
        world=World(),
    )
    alone = lab.group("bert")
    for each in (group, alone):
        each.join("t", lab.params("lora", dropout=0.0))
        for _ in range(5):
            each.step(["t"])
    assert {p.dtype for p in group._base.model.parameters()} == {expected}
    assert {tensor.dtype for tensor in group._engine.weights("t").values()} == {SINGLE}
    found, wanted = (each.evaluate(["t"])["t"].val_loss for each in (group, alone))
    assert found == pytest.approx(wanted, rel=5e-2)
