"""A conversation with a trained model in the terminal, beside its base where that is asked for."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweeps.use.generation import Reply, Sampling, generate
from sweeps.use.prompts import Prompts
from sweeps.use.serving.models import Classifier
from sweeps.use.trained import Trained
from trainables.data.rows import BadRow
from trainables.errors import InputError
from trainables.evaluation.generation import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMMANDS = "/reset forgets what was said, /quit ends"
MOST_CLASSES = 5  # that are shown


class Partner(Protocol):
    """Who answers lines."""

    def answer(self, line: str, console: Console) -> None:
        """Raises BadRow where there is no answer to it."""
        ...

    def reset(self) -> None: ...


def partner_of(trained: Trained, sampling: Sampling, *, beside_base: bool) -> Partner:
    """Loads what answers. Raises InputError where the base has nothing to say."""
    if not trained.task.is_language_model:
        if beside_base:
            raise InputError(
                f"--base: the head of task {trained.config.task} is trained from the beginning: the"
                " base alone has no answers"
            )
        return Labels(trained)
    models = {"base": trained.load_untuned()} if beside_base else {}
    models |= {
        "winner" if trained.words.startswith("the winner") else trained.words: trained.load()
    }
    voices = [
        Voice(
            name=name,
            model=model,
            prompts=Prompts.of(trained, model),
            pad_token_id=trained.spec.pad_token_id,
        )
        for name, model in models.items()
    ]
    return Talk(voices=voices, sampling=sampling)


@dataclass(kw_only=True)
class Voice:
    """A language model, and what it has heard and said."""

    name: str
    model: "PreTrainedModel"
    prompts: Prompts
    pad_token_id: int
    messages: list[dict[str, str]] = field(default_factory=list)
    text: str = ""
    """Of a model that goes on with a text: all of it so far."""

    def prompt(self, line: str) -> Prompt:
        if self.prompts.takes_messages:
            return self.prompts.of_messages([*self.messages, {"role": "user", "content": line}])
        return self.prompts.of_text(self.text + line)

    def heard(self, line: str, answer: str) -> None:
        """Keep what was said. A model that reads one text for another has no history."""
        if self.prompts.takes_messages:
            said = (("user", line), ("assistant", answer))
            # templates and the reader of conversations take no empty answer
            self.messages += [{"role": r, "content": c} for r, c in said] if answer.strip() else []
        elif self.prompts.task.continues_text:
            self.text += line + answer

    def forget(self) -> None:
        self.messages, self.text = [], ""


@dataclass(kw_only=True)
class Talk:
    """With one voice, or with two side by side."""

    voices: list[Voice]
    sampling: Sampling

    def answer(self, line: str, console: Console) -> None:
        replies = [v.prompts.reply(v.prompt(line), self.sampling) for v in self.voices]
        with _shown(console, [voice.name for voice in self.voices], replies) as show:
            for voice, reply in zip(self.voices, replies, strict=True):
                reply.heard = show
                try:
                    generate(voice.model, [reply], voice.pad_token_id)
                except KeyboardInterrupt:  # ends the answer, not the talk
                    reply.cancelled = True
                voice.heard(line, reply.text)
            show()

    def reset(self) -> None:
        for voice in self.voices:
            voice.forget()


class _shown:  # noqa: N801 - a context, used as a function
    """Inside, calling it shows what is new: two columns in a terminal, else one after the other."""

    def __init__(self, console: Console, names: list[str], replies: list[Reply]) -> None:
        self._console, self._names, self._replies = console, names, replies
        self._live: Live | None = None
        if console.is_terminal and len(replies) > 1:
            self._live = Live(console=console, get_renderable=self._columns, auto_refresh=False)
        self._at, self._told = 0, 0

    def __enter__(self) -> Callable[[], None]:
        if self._live is not None:
            self._live.start()
            return self._live.refresh
        return self._go_on

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def _columns(self) -> Table:
        table = Table(expand=True, box=None, padding=(0, 2))
        for name in self._names:
            table.add_column(name, ratio=1, overflow="fold")
        table.add_row(*(Text(reply.text) for reply in self._replies))
        return table

    def _go_on(self) -> None:
        while self._at < len(self._replies):
            reply = self._replies[self._at]
            if not self._told and len(self._names) > 1 and (reply.text or reply.is_done):
                self._write(f"{self._names[self._at]}: ")
                self._told = 0
            self._write(reply.text[self._told :])
            self._told = len(reply.text)
            if not reply.is_done:
                return
            self._write("\n")
            self._at, self._told = self._at + 1, 0

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


class Labels:
    """A model with a head: each line is a row by itself; a second text stands behind a tab."""

    def __init__(self, trained: Trained) -> None:
        from sweeps.use.heads import Heads

        self._model = Classifier(
            name=trained.config.name,
            words=trained.words,
            task=trained.task,
            data=trained.config.data,
            heads=Heads(trained),
        )

    def answer(self, line: str, console: Console) -> None:
        given: str | dict[str, object] = line
        if (pair := self._model.data.text_pair) is not None:
            first, tab, second = line.partition("\t")
            if not tab:
                raise BadRow("a line must be two texts, with a tab between them")
            given = {self._model.data.text: first, pair: second}
        (answer,) = self._model.answer([self._model.record(given, "line")])
        prediction, shares = answer.get("prediction"), answer.get("probabilities")
        words = prediction if isinstance(prediction, str) else repr(prediction)
        if isinstance(shares, Mapping):
            ordered = sorted(shares.items(), key=lambda pair: -pair[1])[:MOST_CLASSES]
            words += "  (" + ", ".join(f"{name} {share:.3f}" for name, share in ordered) + ")"
        console.file.write(f"{words}\n")
        console.file.flush()

    def reset(self) -> None:
        pass


def converse(partner: Partner, console: Console) -> None:
    """Until /quit, or the end of what is typed or piped in."""
    for line in _lines(console):
        match line.strip():
            case "":
                continue
            case "/quit":
                return
            case "/reset":
                partner.reset()
                console.file.write("forgotten\n")
                continue
            case command if command.startswith("/"):
                console.file.write(f"{command.split()[0]}: no such command; {COMMANDS}\n")
                continue
        try:
            partner.answer(line, console)
        except BadRow as error:
            console.file.write(f"no answer: {str(error).removeprefix('request: ')}\n")
        console.file.flush()


def _lines(console: Console) -> Iterator[str]:
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\r\n")
        return
    import readline  # noqa: F401 - arrows and history, where input() is

    console.print(COMMANDS, style="dim", highlight=False)
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            console.file.write("\n")
            return
