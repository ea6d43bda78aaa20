"""What a sweep takes over from the one that it goes on from, before anything is trained."""

import shutil

import pytest

from sweeps.config.loading import load
from sweeps.ledger.folder import Ledger
from sweeps.run.earlier import lineages, with_earlier, with_local_model
from sweeps.run.folder import absolute_paths, tracked
from tests.trainables.data.test_data_prepare import tokenizer  # noqa: F401
from tests.trainables.data.test_replay import Two
from tests.trainables.models.test_checkpoint_loading import Bench
from tests.trainables.models.test_origin import own_cache, sweep  # noqa: F401
from trainables.data.arrow import Split
from trainables.data.manifest import read_manifest
from trainables.errors import InputError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Already found a `peft_config` attribute:UserWarning",
    "ignore:.*gradient_checkpointing.* is deprecated:FutureWarning",
)


class Later:
    """A sweep whose model is the winner of another, and its prepared data."""

    def __init__(self, tmp, tokenizer, labels=("no", "yes"), **data):  # noqa: F811
        bench = Bench(tmp, "bert", "classification")
        _, _, saved = bench.trained("lora", rank=4, alpha=8.0, targets="attention")
        self.first = sweep(bench, saved, outputs=labels, val_loss=0.5)
        self.tmp, self.tokenizer = tmp, tokenizer
        tokenizer.pad_token = "</s>"
        self.two = Two(tmp, tokenizer, **data)
        shutil.move(tmp / "earlier" / "data", self.first / "data")

    def config(self, *overrides):
        file = self.tmp / "later.yaml"
        file.write_text(f"""
name: later
task: classification
model: {{name: {self.first}}}
data: {{train: {self.tmp}/new.csv}}
search: {{space: {{method: lora, rank: 4, alpha: 8, targets: attention, learning_rate: {{choice: [1e-3, 1e-2]}}, epochs: 1, batch_size: 8}}}}
""")
        return load(file, overrides)

    def messages(self, *overrides):
        folder = self.tmp / "later"
        config = self.config(*overrides)
        found = with_earlier(config, self.two.manifest, folder, self.tokenizer, config.draws())
        assert read_manifest(folder) == found
        return [each.message for each in found.findings if each.kind in ("origin", "replay")]


def test_it_is_told_from_where_the_model_comes(tmp_path, tokenizer):  # noqa: F811
    later = Later(tmp_path, tokenizer)
    comes = "first-20260101-000000 (trial t0003, step 2, validation loss 0.5000; lora)"
    base = later.first / "winner"
    head = "model: the head goes on, as task and labels are the same"
    assert later.messages() == [
        f"model: goes on from {comes}",
        f"model: an adapter, merged into {base}: the untuned model is both",
        head,
    ]
    assert later.messages("model.adapter=continue")[1:] == [
        f"model: an adapter over {base}, which every trial continues",
        head,
    ]
    (kept,) = (tmp_path / "later").glob("earlier.*")
    assert len(Split(kept)) == len(Split(later.first / "data" / "validation.arrow"))
    about = tracked(later.config(), later.two.manifest, {}, lineages(later.config()))
    assert [each["trial"] for each in about["model"]["lineage"]] == ["t0003"]


def test_each_base_of_a_choice_has_its_own_lineage(tmp_path, tokenizer):  # noqa: F811
    later = Later(tmp_path, tokenizer)
    (ancestor,) = lineages(later.config())[""]
    bases = f"{{choice: {{old: {later.first}, new: {ancestor.base}}}}}"
    config = later.config(f"model.name={bases}")
    found = lineages(config)
    assert [each.trial for each in found["old"]] == ["t0003"] and "new" not in found
    ledger = Ledger(str(tmp_path / "runs" / "later"))
    ledger.write_lineages(found)
    assert ledger.lineages() == found and ledger.lineage("new") == ()
    about = tracked(config, later.two.manifest, {}, found)["models"]
    assert [each["trial"] for each in about["lineage"]["old"]] == ["t0003"]
    one = lineages(later.config())
    ledger.write_lineages(one)
    assert ledger.lineages() == one and ledger.lineage("") == found["old"]


def test_other_labels_are_told(tmp_path, tokenizer):  # noqa: F811
    later = Later(tmp_path, tokenizer, labels=("a", "b"), former="causal_lm")
    assert later.messages()[2:] == [
        "model: the head is new, as task or labels are others; the backbone goes on",
        "forgetting of the earlier sweep's data is not measured: its task is causal_lm, and this"
        " one's classification",
    ]
    assert not list((tmp_path / "later").glob("earlier.*"))


def test_replay_takes_the_rows_of_the_models_sweep(tmp_path, tokenizer):  # noqa: F811
    later = Later(tmp_path, tokenizer)
    assert later.messages("data.replay=0.2")[0].startswith("train: 10 of 50 rows are replayed from")
    shutil.copytree(later.first / "winner", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"^data.replay: .*elsewhere is not the winner in a sweep"):
        later.messages("data.replay=0.2", f"model.name={tmp_path}/elsewhere")
    gone = later.messages(f"model.name={tmp_path}/elsewhere")[-1]
    assert gone.endswith("is not measured: its folder is not here")


def test_a_space_that_is_not_the_adapters_is_refused(tmp_path, tokenizer):  # noqa: F811
    later = Later(tmp_path, tokenizer)
    with pytest.raises(InputError, match=r"^search.space: model.adapter: continue .* with r 4 in"):
        later.messages("model.adapter=continue", "search.space.rank=8")


def test_names_do_not_hang_on_where_it_began(tmp_path, tokenizer, monkeypatch):  # noqa: F811
    later = Later(tmp_path, tokenizer)
    monkeypatch.chdir(later.first.parent)
    given = ("model.name=first", "data.replay={source: first, share: 0.2}")
    config = with_local_model(absolute_paths(later.config(*given)))
    assert config.model.name == str(later.first)
    assert config.data.replay == {"source": str(later.first), "share": 0.2}
