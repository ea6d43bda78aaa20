"""What a sweep will do, known before it starts: `check` prints it, and `run` builds on it."""

import errno
import os
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sweeps.config import ConfigError, SweepConfig
from sweeps.intervals import MIN_UNITS
from trainables.hyperparameters import OPTIONS, Hyperparameters, company, parse
from trainables.model import check_files, context_length, load_model_config, load_tokenizer, quiet
from trainables.schedule import total_steps, trained_samples
from trainables.store import Store

STRAYS = 0.05  # share of its epochs by which a trial may train more or less before the plan says so
SIZES = ("rank", "bottleneck", "virtual_tokens")  # hyperparameters that say how much a trial adds to the base


def storage_url(config: SweepConfig) -> str:
    """Under which the sweep's folder is made: a path of this machine is made absolute."""
    return config.storage if "://" in config.storage else str(Path(config.storage).expanduser().absolute())


def check_storage(config: SweepConfig) -> None:
    """Try that the sweep's folder could be made and written, before anything is spent; leaves nothing behind."""
    try:
        store = Store(storage_url(config))
        if store.local is None:
            probe = f".writable-{uuid.uuid4().hex}"
            store.write_bytes(probe, b"")
            store.delete(probe)
            return
        # in what is there already: another sweep may be making the rest at this moment
        os.rmdir(tempfile.mkdtemp(prefix=".writable-", dir=_nearest(store.local)))
    except Exception as error:  # the border to file systems, each with errors of its own
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"storage: cannot write to {config.storage}: {reason}; give a folder or an fsspec URL that can be written"
        ) from error


def _nearest(folder: Path) -> Path:
    """`folder`, or what there is of the folders above it."""
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _nearest(folder.parent)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder")
    return folder


def prepare_data(config: SweepConfig, folder: Path) -> dict[str, Any]:
    """Check the model's files; read, split and tokenise the data, general text of language models too, into `folder`.
    Returns the manifest.
    """
    from trainables.data.prepare import prepare
    from trainables.data.sources import check_sources
    from trainables.forgetting import write_general
    from trainables.memory import too_large

    quiet()
    check_sources(config.data)
    check_files(config.model)
    context = context_length(load_model_config(config.model))
    tokenizer = load_tokenizer(config.model)
    manifest = prepare(config.data, config.task, tokenizer, config.seed, folder, context)
    more = max(draw.get("virtual_tokens", 0) for draw in config.draws())
    longest = max(split.get("longest", 0) for split in manifest["splits"].values())
    if more and context is not None and longest + more > context:
        if context - more < 2:
            raise ConfigError(
                f"virtual_tokens: must be below the model's context of {context} tokens (at most {context - 2}: a row "
                f"needs 2), got {more}"
            )
        raise ConfigError(
            f"virtual_tokens: {more} and the longest row of {longest} tokens do not fit the model's context of {context}; "
            f"set data.max_length to {context - more} or less"
        )
    counts, limits = manifest["splits"]["validation"].get("slice_counts"), config.selection.limits
    if limits.of_slices and max(counts.values()) < limits.slice_rows:
        raise ConfigError(
            f"selection.limits.slice_rows: must be at most {max(counts.values())}, the rows of the largest slice of "
            f"{config.data.slice!r} in validation, got {limits.slice_rows}: no checkpoint could keep to a limit on slices"
        )
    _refuse_unknown_ids(config, folder, tokenizer)
    if config.cluster.address is None and (largest := device_bytes()) is not None:
        if (why := too_large(smallest_estimates(config), largest)) is not None:
            raise ConfigError(why)
    if config.task != "classification":
        room = None if context is None else context - more  # virtual tokens stand before general text too
        write_general(_general_text(config), tokenizer, room, folder)
    return manifest


def _refuse_unknown_ids(config: SweepConfig, folder: Path, tokenizer: Any) -> None:
    """A token beyond the embedding ends a GPU's context, and every trial with it."""
    from trainables.data.prepare import open_split

    rows = getattr(load_model_config(config.model).get_text_config(), "vocab_size", None)
    largest = max(open_split(folder, name).largest_id for name in ("train", "validation"))
    found = max(largest, tokenizer.pad_token_id)
    if rows is not None and found >= rows:
        raise ConfigError(
            f"model.name: the tokenizer of {config.model.name} gives the data ids up to {found}, and the model has an "
            f"embedding of {rows} tokens; take the tokenizer that the model was trained with, or a model with more"
        )


def _general_text(config: SweepConfig) -> str:
    """What forgetting is measured on."""
    from trainables.forgetting import default_text

    if config.selection.general_text is None:
        return default_text()
    try:
        text = Path(config.selection.general_text).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"selection.general_text: cannot read {config.selection.general_text}: {error}") from error
    if not text.strip():
        raise ConfigError(f"selection.general_text: {config.selection.general_text} is empty")
    return text


def rehearsed(config: SweepConfig, data: Path, say: Callable[[str], None]) -> None:
    """Rehearse the sweep with its prepared data, and say what came of it; ConfigError where something would go wrong."""
    if not config.rehearse:
        return
    from trainables.rehearsal import rehearse

    found = rehearse(config.model, config.task, data, config.draws(), load_tokenizer(config.model).pad_token_id)
    if found.size is None:
        say(f"Not rehearsed: {config.model.name} cannot be made small ({found.why_not})")
        return
    if refused := [each for each in found.found if each.by_settings]:
        raise ConfigError(f"search.space: method {refused[0].what}: {refused[0].problem}")
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise ConfigError(
            f"model.name: {config.model.name}, rehearsed with {found.size}: {found.problems[0]}{more}; leave the method out, "
            "choose another model, or set rehearse=false to try it nevertheless"
        )
    say(
        f"Rehearsed with {found.size}, in {found.seconds:.1f} s: every method trains, loads again to the same loss and goes on"
    )
    for each in found.found:
        told = [f"reaches {each.covers:.0%} of the backbone's weight matrices"] if each.covers else []
        told += ["can share a base"] if each.shares else []
        told += [f"a pass takes {each.memory:.1f} times the estimate"] if each.memory else []
        say(f"  {each.what}: {', '.join(told) or 'alone'}")


def first_of_each_method(config: SweepConfig) -> list[dict[str, Any]]:
    """A configuration of each method that the sweep may draw."""
    found: dict[str, dict[str, Any]] = {}
    for draw in config.draws():
        found.setdefault(draw.get("method"), draw)
    return [found[method] for method in OPTIONS if method in found]


def max_epochs(config: SweepConfig) -> float:
    """The most epochs that a trial may train, as far as draws show."""
    return max(float(draw["epochs"]) for draw in config.draws())


def print_plan(config: SweepConfig, console: Console) -> None:
    """Data, space, trials, slots, steps; raises what `run` would raise, and trains nothing."""
    rehearsal: list[str] = []
    check_storage(config)
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-") as scratch:
        manifest = prepare_data(config, Path(scratch))
        rehearsed(config, Path(scratch), rehearsal.append)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    say(f"Sweep {config.name}: {config.task} with {config.model.name}")
    for name, split in manifest["splits"].items():
        if "rows" in split:
            say(
                f"  {name}: {split['rows']} rows, {split['tokens']} tokens (mean {split['mean_length']:.1f}, longest {split['longest']}, "
                f"{split['truncated']} cut to {manifest['max_length']})"
            )
        else:
            say(f"  {name}: {split['read']} rows, sealed until there is a winner")
    if manifest["labels"]:
        share = f"{manifest['majority_share']:.1%}"
        say(
            f"  labels: {', '.join(map(str, manifest['labels']))}; majority {manifest['majority_label']} with {share} of validation"
        )
    search, rows = config.search, manifest["splits"]["train"]["rows"]
    if counts := manifest["splits"]["validation"].get("slice_counts"):
        parts = ", ".join(f"{value or 'empty'} {count}" for value, count in sorted(counts.items()))
        say(f"  slices of validation by {config.data.slice}: {parts}")
    drawn = [parse(draw) for draw in config.draws()]
    for note in [
        *manifest["notes"],
        *_large_batches(config, rows),
        *_odd_epochs(drawn, rows),
        *_few_groups(manifest),
    ]:
        say(f"  note: {note}")
    space = config.space()
    say(f"Search: {search_words(config)}")
    for path, what in space.parameters:
        say(f"  {path}: {what}")
    for name, value in config.train.fixed().items():
        say(f"  {name}: fixed {value}")
    steps = [total_steps(rows, hp) for hp in drawn]
    mean = sum(trained_samples(rows, hp) for hp in drawn) / len(drawn)
    say(
        f"  steps per trial: {min(steps)} to {max(steps)}; {mean * search.trials:,.0f} samples in all if no trial stops early"
    )
    for line in _afterwards(config, manifest):
        say(line)
    for line in rehearsal:
        say(line)
    say(f"Slots: {_slots(config)}")
    say(f"Packs: {_packs(config)}")
    for line in _memory(config):
        say(line)
    if search.time_budget:
        say(f"Time budget: {search.time_budget}")
    say("No problem found.")


def search_words(config: SweepConfig) -> str:
    """How many trials are searched how, and how many of them at random."""
    search, size = config.search, config.space().size()
    of = f" of {size} configurations" if size is not None else ""
    words, first = f"{search.trials} trials by {search.sampler}{of}", search.random_trials()
    if search.sampler != "tpe" or first == 0:
        return words
    if first >= search.trials:
        return f"{words}: a random search, as the sampler learns only from {first} trials on (search.startup_trials)"
    return f"{words}, the first {first} at random, and what starts before those have ended"


def _afterwards(config: SweepConfig, manifest: dict[str, Any]) -> list[str]:
    """What is run and measured beside the trials of the search."""
    from trainables.baselines import names

    selection, lines = config.selection, []
    if (finals := selection.finalists).top:
        top = min(finals.top, config.search.trials)
        lines.append(
            f"Finalists: {top * finals.seeds} trials more, the best {top} configuration(s) again with "
            f"{finals.seeds} new seed(s) each"
        )
    limits = {name: value for name, value in vars(selection.limits).items() if value is not None}
    rows = limits.pop("slice_rows")
    if limits:
        of_slices = f" (slices of {rows} rows and more)" if selection.limits.of_slices else ""
        lines.append(f"Limits: {', '.join(f'{name} {value:g}' for name, value in limits.items())}{of_slices}")
    if selection.baselines and (ways := names(config.model, config.task)):
        lines.append(f"Beside the trials: {', '.join(ways)}; at most {selection.baseline_minutes:g} minutes a split")
    if "test" in manifest["splits"]:
        lines.append("Then: the test split, scored once, for the winner and what it is compared with")
    else:
        lines.append(
            "No test split: what is claimed of the winner rests on the rows by which it was chosen, allowing for that; "
            "data.test: 0.1 would set rows apart that it has not seen (recommended)"
        )
    if config.task != "classification":
        lines.append(
            f"Then: what the winner has forgotten of {selection.general_text or 'general text (Python manual)'}"
        )
    return lines


def _large_batches(config: SweepConfig, rows: int) -> list[str]:
    large = sorted({draw["batch_size"] for draw in config.draws() if draw["batch_size"] > rows})
    sizes = " and ".join(map(str, large[:1] + large[1:][-1:]))
    return [f"batch_size {sizes}: above the {rows} rows of train, so a step is a whole epoch"] if large else []


def _odd_epochs(drawn: Sequence[Hyperparameters], rows: int) -> list[str]:
    """Where whole batches train far more or less than the epochs that are asked for."""
    strays = {}
    for hp in drawn:
        epochs = trained_samples(rows, hp) / rows
        if abs(epochs - hp.epochs) > STRAYS * hp.epochs:
            strays[hp.epochs, hp.batch_size] = epochs
    if not strays:
        return []
    (epochs, size), trained = max(strays.items(), key=lambda each: abs(each[1] / each[0][0] - 1))
    others = f"; so do {len(strays) - 1} other pairs of the two" if len(strays) > 1 else ""
    return [f"epochs {epochs:g} at batch_size {size} trains {trained:.2g} epochs, as steps take whole batches{others}"]


def _few_groups(manifest: dict[str, Any]) -> list[str]:
    groups = manifest["splits"]["validation"].get("groups", MIN_UNITS)
    if groups >= MIN_UNITS:
        return []
    return [
        f"validation: its rows belong to {groups} group(s) or document(s), which with fewer than {MIN_UNITS} tell nothing of "
        "noise: no intervals, no ties"
    ]


def _packs(config: SweepConfig) -> str:
    """Which trials may share a base."""
    from trainables.methods import ADDITIVE
    from trainables.slot import MAX_PACK

    together: dict[str, list[str]] = {}  # methods that share one base
    for draw in first_of_each_method(config):
        if draw["method"] in ADDITIVE:
            together.setdefault(company(parse(draw)), []).append(draw["method"])
    pack = config.cluster.pack
    if not together or pack == 1:
        return "none, every trial has a slot to itself"
    most = f"as many as a slot finds to pay, at most {MAX_PACK}" if pack == "auto" else f"at most {pack}"
    return f"trials of {', or of '.join(' and '.join(methods) for methods in together.values())} share a base, {most}"


def _slots(config: SweepConfig) -> str:
    """What `run` would start here; another cluster is not asked."""
    if config.cluster.address is not None:
        return f"decided on the cluster at {config.cluster.address}"
    import torch

    from cluster.connect import plan_slots

    resources = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    resources = {name: amount for name, amount in resources.items() if amount}
    return plan_slots(resources, [{"Alive": True, "Resources": resources}], config.cluster, config.search.trials).reason


def _memory(config: SweepConfig) -> list[str]:
    """How many trials GPUs could train at once, for each method that shares a base, at the largest size drawn."""
    from trainables.memory import gib, gpu_table
    from trainables.methods import ADDITIVE
    from trainables.slot import MAX_PACK

    most = MAX_PACK if config.cluster.pack == "auto" else config.cluster.pack
    drawn = [hp for hp in map(parse, config.draws()) if hp.method in ADDITIVE]
    drawn.sort(key=_size_of)
    # one for each method and kind of base, the last of the same being the largest
    largest = {(hp.method, ADDITIVE[hp.method].variant(hp.options)): hp for hp in drawn}
    lines = []
    for _, hp in sorted(largest.items(), key=lambda item: item[0]):
        what = _words(hp)
        try:
            found = _estimate(config, hp)
        except Exception as error:  # an architecture that the formula does not know is no fault of the sweep
            lines.append(f"  no estimate for {what}: {' '.join(str(error).split())[:200] or type(error).__name__}")
            continue
        lines.append(
            f"  {what}: base {gib(found.base)}, a pass {gib(found.activations)}, a trial {gib(found.per_trial)}; "
            f"trials at once: {gpu_table(found, most)}"
        )
    tokens = _pass_tokens(config)
    return [f"Memory on GPUs (an estimate; a slot measures it), passes of {tokens} tokens:", *lines] if lines else []


def smallest_estimates(config: SweepConfig) -> dict[str, Any]:
    """What the smallest trial of each method and kind of base takes on a GPU, by words for it; empty where that cannot be
    said of each.
    """
    from trainables.methods import variant_of

    drawn = sorted(map(parse, config.draws()), key=_size_of, reverse=True)
    smallest = {(hp.method, variant_of(hp.method, hp.options)): hp for hp in drawn}
    try:
        return {_words(hp): _estimate(config, hp) for hp in smallest.values()}
    except Exception:  # an architecture that the formula does not know is no fault of the sweep
        return {}


def device_bytes() -> int | None:
    """Memory of the largest GPU of this machine; None: it has none."""
    import torch

    sizes = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    return max(sizes, default=None)


def _estimate(config: SweepConfig, hp: Hyperparameters) -> Any:
    """What trials like `hp` take on a GPU."""
    from trainables.memory import estimate
    from trainables.methods import variant_of
    from trainables.tasks import TASKS

    frozen = hp.method not in ("full", "partial") and config.train.precision != "float32"
    half = config.model.dtype in ("bfloat16", "float16") or config.model.dtype == "auto" and frozen
    return estimate(
        load_model_config(config.model),
        TASKS[config.task].auto_class,
        hp,
        dtype_bytes=2 if half else 4,
        compute_bytes=4 if config.train.precision == "float32" else 2,
        variant=variant_of(hp.method, hp.options),
        max_tokens=_pass_tokens(config),
        gradient_checkpointing=config.train.gradient_checkpointing,
    )


def _pass_tokens(config: SweepConfig) -> int:
    from trainables.pack import PASS_TOKENS

    return config.train.max_tokens or PASS_TOKENS["cuda"]


def _size_of(hp: Hyperparameters) -> tuple[float, ...]:
    """By which trials of a method take more or less memory."""
    sizes = [getattr(hp.options, name, None) or 0 for name in (*SIZES, "layers")]
    return (*sizes, getattr(hp.options, "targets", None) == "all-linear", getattr(hp.options, "dropout", 0))


def _words(hp: Hyperparameters) -> str:
    """`qlora at rank 8 over nf4`."""
    from trainables.methods import variant_of

    sizes = {name.replace("_", " "): getattr(hp.options, name) for name in SIZES if hasattr(hp.options, name)}
    variant = variant_of(hp.method, hp.options)
    at = "".join(f" at {name} {value}" for name, value in sizes.items())
    return f"{hp.method}{at}" + (f" over {variant}" if variant != "plain" else "")
