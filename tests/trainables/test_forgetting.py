"""What a fine-tuned language model has lost of what its base knew."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trainables.forgetting import BLOCK, default_text, measure_forgetting
from trainables.loading import load_checkpoint
from trainables.model import ModelConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
CPU = torch.device("cpu")
TEXT = "some words, and some more of them. " * 40


def tokenizer(text, **_):
    return {"input_ids": [1 + ord(letter) % 90 for letter in text]}


def trained(lab, tmp_path, method, **params):
    pack = lab.pack("llama")
    pack.join("t", lab.params(method, learning_rate=3e-2, **params))
    for _ in range(4):
        pack.step(["t"])
    pack.save("t", tmp_path)
    config = ModelConfig(name=str(lab.folder("llama")))
    return load_checkpoint(tmp_path / "checkpoint", config, "plain", "AutoModelForCausalLM", {}, CPU)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_losses_before_and_after_and_the_divergence_are_those_of_plain_models(lab, method, tmp_path):
    tuned, base = trained(lab, tmp_path, method), lab.plain("llama")
    found = measure_forgetting(tuned, lambda: base, tokenizer, TEXT[:30], lab.split("llama", "validation"), CPU)
    ids = torch.tensor(tokenizer(TEXT[:30])["input_ids"])
    with torch.no_grad():
        for model, name in ((base, "before"), (tuned, "after")):
            expected = torch.nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:])
            assert found[name] == pytest.approx(float(expected), rel=1e-5)
        total, count = 0.0, 0
        for row in lab.split("llama", "validation").rows(range(9)):
            ids, asked = torch.tensor(row["input_ids"].astype(np.int64))[None], torch.tensor(row["labels"] == -100)
            p, q = (model(input_ids=ids).logits[0][asked].log_softmax(-1) for model in (base, tuned))
            total, count = (
                total + float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")),
                count + len(p),
            )
    assert found["kl"] == pytest.approx(total / count, rel=1e-4) and found["kl"] > 1e-4
    assert found["losses"].shape == (2, 1, 2) and found["losses"][0, 0, 1] == 29


def test_a_model_that_has_not_moved_has_forgotten_nothing(lab):
    base = lab.plain("llama")
    found = measure_forgetting(base, lambda: base, tokenizer, TEXT, lab.split("llama"), CPU)
    assert found["before"] == found["after"] and found["kl"] == 0.0


def test_the_text_is_cut_to_what_the_model_reads(lab):
    read = []

    class Model:
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=40))

        def __call__(self, input_ids):
            read.append(input_ids.shape[1])
            return SimpleNamespace(logits=torch.zeros(1, input_ids.shape[1], 100))

    found = measure_forgetting(Model(), Model, tokenizer, TEXT, lab.split("llama"), CPU)
    assert max(read) == 40 and found["before"] == pytest.approx(np.log(100))


def test_there_is_text_on_every_machine():
    text = default_text()
    assert len(text) > 50 * BLOCK and text == default_text() and "assignment" in text
