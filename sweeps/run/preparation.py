"""Data, model files and a rehearsal: all that is done before anything is spent."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.config.checks import check_hyperparameters
from sweeps.config.draws import of_each_base
from sweeps.config.schema import AUTO, SweepConfig
from sweeps.run.estimates import device_bytes, smallest_estimates
from trainables.data.manifest import Manifest, SplitSummary, write_manifest
from trainables.errors import InputError
from trainables.hyperparameters import parse
from trainables.models.files import (
    check_architecture,
    check_files,
    context_length,
    load_model_config,
    load_tokenizer,
    pad_token_of,
    quiet,
)
from trainables.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sweeps.run.preflight import Rehearse
    from sweeps.search.prior import Known, Prior
    from trainables.data.doctor.examine import Examination
    from trainables.data.showing import ShownRow
    from trainables.rehearsal.rehearse import Rehearsed


def prepare_data(
    config: SweepConfig,
    folder: Path,
    examine: "Examination | None" = None,
) -> Manifest:
    """Check the models' files; read, split and tokenise the data, general text of language models
    too, into `folder`, for each base model. examine: what else is found in the rows. Returns the
    manifest of the first base.
    """
    if config.search.prior:
        from sweeps.search.prior import check_prior

        check_prior(config)
    if config.data.replay is not None and config.compares_tokenizers:
        raise InputError(
            "data.replay: the earlier rows are tokens of one tokenizer, and model.name is a choice"
        )
    if config.search.space == AUTO:  # which could not be checked without the model
        check_hyperparameters(config)
    first, *others = [
        _prepare_for(
            over,
            drawn,
            folder / inside,
            # the rows are the same for all
            examine if word == config.bases[0] else None,
            in_bytes=config.compares_tokenizers,
        )
        for word, over, drawn, inside in of_each_base(config)
    ]
    if others:
        _refuse_unlike([first, *others], config.bases)
        first = replace(first, bases=config.bases)
        write_manifest(folder, first)
    return first


def _prepare_for(
    config: SweepConfig,
    drawn: Sequence[Mapping[str, object]],
    folder: Path,
    examine: "Examination | None" = None,
    *,
    in_bytes: bool,
) -> Manifest:
    """For one base model; drawn: configurations that trials of it may have."""
    from sweeps.run.earlier import with_earlier
    from trainables.data.prepare import prepare
    from trainables.data.sources import check_sources
    from trainables.engine.memory import too_large
    from trainables.evaluation.forgetting import write_general

    quiet()
    check_sources(config.data)
    check_files(config.model)
    architecture = load_model_config(config.model)
    check_architecture(config.model.words, architecture, TASKS[config.task])
    context = context_length(architecture)
    tokenizer = load_tokenizer(config.model)
    manifest = prepare(
        config.data,
        config.task,
        tokenizer,
        config.seed,
        folder,
        context,
        examine,
        in_bytes=in_bytes,
    )
    manifest = with_earlier(config, manifest, folder, tokenizer, drawn)
    more = max(parse(draw).options.soft_prompt_tokens for draw in drawn)
    if more and context is not None:
        # of a row's two texts neither has more than max_length
        rows = max(split.longest for split in manifest.splits.values())
        longest = min(rows, manifest.max_length)
        _refuse_long_rows(longest, more, context)
    _refuse_small_slices(config, manifest)
    _refuse_unknown_ids(config, manifest, tokenizer)
    if config.cluster.address is None and (largest := device_bytes()) is not None:
        if (why := too_large(smallest_estimates(config, drawn), largest)) is not None:
            raise InputError(why)
    if TASKS[config.task].continues_text:
        room = (
            None if context is None else context - more
        )  # virtual tokens stand before general text too
        write_general(_general_text(config), tokenizer, room, folder)
    return manifest


def _refuse_unlike(manifests: Sequence[Manifest], bases: Sequence[str]) -> None:
    """Losses of trials over several bases compare where they are of the same rows, whole."""
    for name, first in manifests[0].splits.items():
        for base, manifest in zip(bases, manifests, strict=True):
            if name != "train":
                _refuse_unlike_split(name, manifest, base, first, bases[0])


def _refuse_unlike_split(
    name: str, manifest: Manifest, base: str, first: SplitSummary, of: str
) -> None:
    """first: the split for the first base, `of`."""
    split = manifest.splits[name]
    same = split.rows == first.rows or _is_blocks(manifest)
    if not same or split.raw_fingerprint != first.raw_fingerprint:
        raise InputError(
            f"model.name: the tokenizer and chat template of {base} leave {split.rows} rows of"
            f" {name} and those of {of} {first.rows}: losses of other rows do not compare"
        )
    if split.truncated and manifest.encoding.in_bytes:
        raise InputError(
            f"data.max_length: {split.truncated} rows of {name} are cut to {manifest.max_length}"
            f" tokens of {base}, and losses of other texts do not compare; raise it, or leave"
            " these rows out"
        )


def _is_blocks(manifest: Manifest) -> bool:
    """Whether a row is a block of so many tokens, and not a row of the sources."""
    task = TASKS[manifest.task]
    return task.continues_text and not task.is_conversation


def earlier_sweeps(
    config: SweepConfig, manifest: Manifest, base: Mapping[str, str]
) -> "Prior | None":
    """What the sweeps of `search.prior` have found; base: the `fingerprints` of the
    model. None where
    there are none.
    """
    if not config.search.prior:
        return None
    from sweeps.search.prior import read_prior

    return read_prior(config, manifest, base)


def known_sweeps(config: SweepConfig, manifest: Manifest) -> "Known | None":
    """What they know of the search's space."""
    if not config.search.prior:
        return None
    from sweeps.search.prior import Known, read_prior

    return Known.of(read_prior(config, manifest, config.model.fingerprints()), config)


def doctor(config: SweepConfig, benchmarks: Sequence[str]) -> "Examination":
    """What looks at the rows for what nobody looks for. benchmarks: sources of which nothing must
    stand in train.
    """
    from trainables.data.doctor.examine import Examination

    others = {name: _texts(config, name) for name in benchmarks}
    if TASKS[config.task].continues_text and config.selection.general_text is not None:
        others["the general text"] = _general_text(config).split("\n\n")
    return Examination(others=others)


def _texts(config: SweepConfig, source: str) -> list[str]:
    """Of a benchmark's rows, whatever its columns are."""
    from trainables.data.rows import Row
    from trainables.data.sources import open_sources

    data = replace(config.data, test=source)
    try:
        return [
            " ".join(_strings(row.columns))
            for each in open_sources(data, "test")
            for row in each.rows()
            if isinstance(row, Row)
        ]
    except InputError as error:
        raise InputError(f"--benchmark: {str(error).removeprefix('data.test: ')}") from None


def _strings(value: object) -> Iterator[str]:
    """All texts of a row: its columns may be conversations."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(each)


def show(
    config: SweepConfig, manifest: Manifest, folder: Path, rows: int
) -> "tuple[ShownRow, ...]":
    """The first rows of train as the model reads them. folder: of the prepared data."""
    from trainables.data.prepare import with_own_template
    from trainables.data.showing import shown_rows

    first = config.over(config.bases[0])
    tokenizer = with_own_template(load_tokenizer(first.model), folder)
    return tuple(shown_rows(config.data, config.task, tokenizer, manifest.encoding, rows))


def _refuse_long_rows(longest: int, more: int, context: int) -> None:
    """longest: tokens of a row; more: virtual tokens before it; context: what the model takes."""
    if longest + more <= context:
        return
    if context - more < 2:
        raise InputError(
            f"virtual_tokens: must be below the model's context of {context} tokens (at most"
            f" {context - 2}: a row needs 2), got {more}"
        )
    raise InputError(
        f"virtual_tokens: {more} and the longest row of {longest} tokens do not fit the model's"
        f" context of {context}; set data.max_length to {context - more} or less"
    )


def _refuse_small_slices(config: SweepConfig, manifest: Manifest) -> None:
    counts, limits = manifest.validation.slice_counts or {}, config.selection.limits
    if limits.of_slices and max(counts.values()) < limits.slice_rows:
        raise InputError(
            f"selection.limits.slice_rows: must be at most {max(counts.values())}, the rows of the"
            f" largest slice of {config.data.slice!r} in validation, got {limits.slice_rows}: no"
            " checkpoint could keep to a limit on slices"
        )


def _refuse_unknown_ids(
    config: SweepConfig, manifest: Manifest, tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """A token beyond the embedding ends a GPU's context, and every trial with it."""
    rows = getattr(load_model_config(config.model).get_text_config(), "vocab_size", None)
    largest = max(split.largest_id for split in manifest.splits.values())
    padding = pad_token_of(tokenizer)
    assert isinstance(padding, int), "a tokenizer that is loaded has one"
    found = max(largest, padding)
    if rows is not None and found >= rows:
        raise InputError(
            f"model.name: the tokenizer of {config.model.name} gives the data ids up to {found},"
            f" and the model has an embedding of {rows} tokens; take the tokenizer that the model"
            " was trained with, or a model with more"
        )


def _general_text(config: SweepConfig) -> str:
    """What forgetting is measured on."""
    from trainables.evaluation.forgetting import default_text

    if config.selection.general_text is None:
        return default_text()
    try:
        text = Path(config.selection.general_text).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"selection.general_text: cannot read {config.selection.general_text}: {error}"
        ) from error
    if not text.strip():
        raise InputError(f"selection.general_text: {config.selection.general_text} is empty")
    return text


def rehearsed(
    config: SweepConfig,
    data: Path,
    say: Callable[[str], None],
    there: "Rehearse | None" = None,
) -> None:
    """Rehearse the sweep with its prepared data, and say what came of it; InputError where
    something would go wrong. there: how it is done where the slots will be; None: here.
    """
    if not config.rehearse:
        return
    for _, over, drawn, folder in of_each_base(config):
        _rehearse(over, drawn, data / folder, say, there)


def _rehearse(
    config: SweepConfig,
    drawn: Sequence[Mapping[str, object]],
    data: Path,
    say: Callable[[str], None],
    there: "Rehearse | None",
) -> None:
    """With one base."""
    from trainables.rehearsal.rehearse import rehearse

    pad_token_id = pad_token_of(load_tokenizer(config.model))
    found = (there or rehearse)(config.model, config.task, data, drawn, pad_token_id)
    if found.size is None:
        say(f"Not rehearsed: {config.model.name} cannot be made small ({found.why_not})")
        return
    if refused := [each for each in found.found if each.by_settings]:
        raise InputError(f"search.space: method {refused[0].what}: {refused[0].problem}")
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise InputError(
            f"model.name: {config.model.name}, rehearsed with {found.size}:"
            f" {found.problems[0]}{more}; leave the method out, choose another model, or set"
            " rehearse=false to try it nevertheless"
        )
    say(
        f"Rehearsed with {found.size}, in {found.seconds:.1f} s: every method trains, loads again"
        " to the same loss and goes on"
    )
    for each in found.found:
        say(f"  {each.what}: {_rehearsal_words(each)}")


def _rehearsal_words(rehearsed: "Rehearsed") -> str:
    told = []
    if rehearsed.covers:
        told.append(f"reaches {rehearsed.covers:.0%} of the backbone's weight matrices")
    if rehearsed.shares:
        told.append("can share a base")
    if rehearsed.memory:
        told.append(f"a micro-batch takes {rehearsed.memory:.1f} times the estimate")
    return ", ".join(told) or "alone"
