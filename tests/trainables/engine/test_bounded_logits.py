"""What reads a language model again (verify, the sealed test, forgetting, baselines) has as few logits at a time as training.

At a vocabulary of 128,000, the logits of a micro-batch of 16,384 tokens are 8 GiB, and their log-softmax as much again.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainables.evaluation.test_forgetting import TEXT, loaded, written
from trainables.engine.scoring import evaluate_model
from trainables.evaluation.forgetting import measure_forgetting
from trainables.tasks import TASKS
from trainables.tasks.causal_lm import task as causal_lm

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"
)
CPU, VOCABULARY, PAD, LONGEST = torch.device("cpu"), 100, 0, 12
AT_ONCE = 9  # tokens: fewer than a row may have, or a micro-batch
METHODS = {
    "full": {},
    "partial": {"layers": 1},
    "lora": {"rank": 4},
    "ia3": {},
    "prompt": {"virtual_tokens": 5},
    "adapter": {"bottleneck": 4},
}


class Logits(TorchDispatchMode):
    """The most elements of a tensor whose last dimension is the vocabulary; weights are no such tensors."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, list | tuple) else [out]:
            if (
                isinstance(each, torch.Tensor)
                and each.is_floating_point()
                and each.shape[-1:] == (VOCABULARY,)
            ):
                if each.ndim == 3 or (each.ndim == 2 and func not in (torch.ops.aten.t.default,)):
                    self.most = max(self.most, each.numel())
        return out


@contextlib.contextmanager
def at_most(monkeypatch, tokens: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(causal_lm, "CHUNK_LOGITS", AT_ONCE * VOCABULARY)
        with Logits() as seen:
            yield
        assert 0 < seen.most <= tokens * VOCABULARY, (
            f"{seen.most / VOCABULARY:g} tokens' logits at once"
        )


@pytest.fixture(scope="module", params=METHODS)
def tuned(request, lab, tmp_path_factory):
    """A checkpoint of each method as its user loads it."""
    folder, group = tmp_path_factory.mktemp(request.param), lab.group("llama")
    group.join("t", lab.params(request.param, learning_rate=3e-2, **METHODS[request.param]))
    for _ in range(4):
        group.step(["t"])
    group.save("t", folder)
    return loaded(
        lab, folder / "checkpoint", "full" if request.param == "partial" else request.param
    )


def test_verify_and_the_sealed_test(lab, tuned, monkeypatch) -> None:
    split = lab.split("llama")
    rows = np.arange(len(split))
    nll, targets = [], []
    with torch.no_grad():
        for row in rows:
            batch, labels = lab.batch("llama", [row])
            each = lab.task("llama").row_losses(tuned(**batch).logits, labels)
            nll, targets = nll + each[0].tolist(), targets + each[1].tolist()
    with at_most(monkeypatch, AT_ONCE):
        found = evaluate_model(tuned, TASKS["instruction"], split, rows, PAD, 16384, CPU)
    np.testing.assert_allclose(found.nll, nll, rtol=1e-5)
    assert found.targets.tolist() == targets and found.outcomes is None
    assert "forward" not in vars(tuned.get_output_embeddings()), "the model is as it was"


def test_forgetting(lab, tuned, tmp_path, monkeypatch) -> None:
    base, general, prompts = (
        lab.plain("llama"),
        written(tmp_path, TEXT[:100], 35),
        lab.split("llama", "validation"),
    )
    whole, whole_losses = measure_forgetting(tuned, lambda: base, general, prompts, CPU)
    with at_most(monkeypatch, AT_ONCE):
        found, losses = measure_forgetting(tuned, lambda: base, general, prompts, CPU)
    for name in ("before", "after", "kl"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-5), name
    np.testing.assert_allclose(losses, whole_losses, rtol=1e-5)
    assert found.kl > 1e-4


def test_what_a_base_draws(lab, monkeypatch) -> None:
    import trainables.evaluation.forgetting

    monkeypatch.setattr(trainables.evaluation.forgetting, "PLACES", AT_ONCE)
    group = lab.group("llama", general=lab.general())
    with at_most(monkeypatch, AT_ONCE):
        group.join("t", lab.params("lora"))


def capped(folder) -> transformers.PreTrainedModel:
    """Its logits are not just what its output layer gives."""
    config = transformers.Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=40,
        initializer_range=0.5,
        final_logit_softcapping=2.0,
        query_pre_attn_scalar=16,
        pad_token_id=PAD,
    )
    torch.manual_seed(0)
    return transformers.Gemma2ForCausalLM(config).eval()


def test_of_a_model_that_caps_its_logits_the_passes_are_small(lab, tmp_path, monkeypatch) -> None:
    model, split = capped(tmp_path), lab.split("llama")
    rows = np.arange(len(split))
    whole = evaluate_model(model, TASKS["instruction"], split, rows, PAD, 16384, CPU)
    with at_most(monkeypatch, LONGEST):  # a row by itself is the least
        found = evaluate_model(model, TASKS["instruction"], split, rows, PAD, 16384, CPU)
    np.testing.assert_allclose(found.nll, whole.nll, rtol=1e-5)
    prompts, general = lab.split("llama", "validation"), written(tmp_path, TEXT[:100], LONGEST)
    with at_most(monkeypatch, LONGEST):
        assert measure_forgetting(model, lambda: model, general, prompts, CPU)[0].kl == 0
