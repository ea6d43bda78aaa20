"""The models of a replica: adapters over one base where they have one, others by themselves."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sweeps.use.answers import PREDICTION
from sweeps.use.generation import Reply, Sampling, generate
from sweeps.use.heads import Heads
from sweeps.use.prompts import Prompts
from sweeps.use.trained import Trained, open_trained
from trainables.data.asking import GivenSource
from trainables.data.config import DataConfig
from trainables.data.records import Record
from trainables.data.rows import BadRow, Row
from trainables.engine.decoding import Padding
from trainables.errors import InputError
from trainables.evaluation.generation import Prompt
from trainables.models.checkpoint import load_base_model
from trainables.models.origin import ADAPTER
from trainables.tasks import Task

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model by the name that clients call it."""

    name: str
    folder: str
    """Of its sweep."""
    trial: str | None
    """None: the winner."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Base:
    """Loaded weights, and the adapters over them."""

    model: "PreTrainedModel"
    pad_token_id: int
    adapters: list[str] = field(default_factory=list)
    """Empty: the model is whole, or has the one adapter that it was loaded with."""
    mixes: bool = True
    """Whether rows of one batch may each have their own adapter."""
    padding: Padding = field(default_factory=Padding)

    def write(self, replies: Sequence[Reply]) -> None:
        """All of them; side by side where that can be."""
        if not self.adapters or self.mixes:
            adapters = [reply.adapter for reply in replies if reply.adapter is not None]
            self._write(replies, adapters or None)
            return
        ordered = sorted(replies, key=lambda reply: str(reply.adapter))
        for adapter, group in groupby(ordered, key=lambda reply: str(reply.adapter)):
            cast("PeftModel", self.model).set_adapter(adapter)
            self._write(list(group))

    def _write(self, replies: Sequence[Reply], adapters: Sequence[str] | None = None) -> None:
        model, pad = self.model, self.pad_token_id
        generate(model, replies, pad, adapters=adapters, padding=self.padding)


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A language model."""

    name: str
    words: str
    prompts: Prompts
    base: Base
    adapter: str | None

    def reply(self, prompt: Prompt, sampling: Sampling) -> Reply:
        return self.prompts.reply(prompt, sampling, self.adapter)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A model with a head."""

    name: str
    words: str
    task: Task
    data: DataConfig
    heads: Heads

    def record(self, given: str | Mapping[str, object], place: str) -> Record:
        """A text, or a row with the columns of the sweep's data. Raises BadRow."""
        columns = {self._column: given} if isinstance(given, str) else given
        if isinstance(given, str) and self._column == self.data.tokens:
            columns = {self._column: given.split()}
        source = GivenSource(key="request", name=place, filled=tuple(columns))
        try:
            reader = self.task.format.asking(source, replace(self.data, group=None))
        except InputError as error:
            raise BadRow(str(error)) from None
        return reader.read(Row(key="request", place=place, columns=columns))

    @property
    def _column(self) -> str:
        """That a text alone stands in."""
        is_of_words = self.task.auto_class == "AutoModelForTokenClassification"
        return self.data.tokens if is_of_words else self.data.text

    def answer(self, records: Sequence[Record]) -> list[dict[str, object]]:
        return [
            {PREDICTION: each.prediction, "probabilities": each.probabilities}
            for each in self.heads.predict(records)
        ]


Models = dict[str, Writer | Classifier]


def load(served: Sequence[Served], files: ExitStack) -> Models:
    """All of them. files: keeps what is fetched for as long as the models are used."""
    opened = {
        each.name: files.enter_context(open_trained(each.folder, each.trial)) for each in served
    }
    found: Models = {}
    together: list[list[tuple[str, Trained]]] = []
    for name, trained in opened.items():
        if not trained.task.is_language_model:
            found[name] = Classifier(
                name=name,
                words=trained.words,
                task=trained.task,
                data=trained.config.data,
                heads=Heads(trained),
            )
            continue
        group = next((group for group in together if _share(group[0][1], trained)), None)
        if group is None:
            together.append([(name, trained)])
        else:
            group.append((name, trained))
    for group in together:
        found |= _writers(group)
    return {name: found[name] for name in opened}


def _share(first: Trained, other: Trained) -> bool:
    """Whether both are LoRA over the same base, loaded alike."""
    return _is_lora(first.files) and _is_lora(other.files) and first.spec == other.spec


def _is_lora(files: Path) -> bool:
    return _adapter(files).get("peft_type") == "LORA"


def _adapter(files: Path) -> dict[str, object]:
    described = files / ADAPTER
    return json.loads(described.read_text()) if described.is_file() else {}


def _writers(group: Sequence[tuple[str, Trained]]) -> Models:
    base = _together(group) if len(group) > 1 else _alone(group[0][1])
    adapters: list[str | None] = [*base.adapters] or [None]
    return {
        name: Writer(
            name=name,
            words=trained.words,
            prompts=Prompts.of(trained, base.model),
            base=base,
            adapter=adapter,
        )
        for (name, trained), adapter in zip(group, adapters, strict=True)
    }


def _alone(trained: Trained) -> Base:
    return Base(model=trained.load(), pad_token_id=trained.spec.pad_token_id)


def _together(group: Sequence[tuple[str, Trained]]) -> Base:
    """The base once, and each one's adapter over it."""
    from peft import PeftModel

    first = group[0][1]
    names = [f"adapter{number}" for number in range(len(group))]
    model = PeftModel.from_pretrained(
        load_base_model(first.spec, first.device), str(first.files), adapter_name=names[0]
    )
    for name, (_, trained) in zip(names[1:], group[1:], strict=True):
        model.load_adapter(str(trained.files), adapter_name=name)
    mixes = all(_is_plain(_adapter(trained.files)) for _, trained in group)
    return Base(
        model=cast("PreTrainedModel", model.eval()),
        pad_token_id=first.spec.pad_token_id,
        adapters=names,
        mixes=mixes,
    )


def _is_plain(adapter: Mapping[str, object]) -> bool:
    """Whether PEFT can tell rows of one batch apart: not with DoRA, nor with whole modules that
    each adapter has its own of.
    """
    others = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters")
    return not any(adapter.get(name) for name in others)
