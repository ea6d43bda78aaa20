"""What a trained language model is given, token for token as in training, and where it ends what it
writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sweeps.use.generation import Reply, Sampling
from trainables.data.asking import STAND_IN
from trainables.data.config import DataConfig
from trainables.data.records import Encoding, Record, RowReader
from trainables.data.rows import BadRow, Row
from trainables.evaluation.generation import Prompt, stop_tokens
from trainables.models.files import context_length
from trainables.tasks import Task
from trainables.tasks.instruction.asking import asked
from trainables.tasks.instruction.reading import conversation_reader
from trainables.tasks.instruction.tokens import tokeniser

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sweeps.use.trained import Trained
    from trainables.tasks.instruction.tokens import Tokeniser

UNBOUNDED = 1 << 20
"""Tokens of a context that the model does not bound."""
TAIL = 8
"""Tokens of a text that tell how the one after it is spelt: with a space before it, or none."""


@dataclass(frozen=True)
class Prompts:
    """Of a language model of a sweep: for rows, messages and texts."""

    task: Task
    tokenizer: "PreTrainedTokenizerBase"
    encoding: Encoding
    data: DataConfig
    context: int
    """Tokens that the model takes, of a prompt and its answer."""
    stop: frozenset[int] = field(default_factory=frozenset)
    """Tokens that end an answer."""

    @classmethod
    def of(cls, trained: "Trained", model: "PreTrainedModel") -> "Prompts":
        """model: the trained one, or what it was trained from."""
        stop = stop_tokens(
            trained.tokenizer,
            task=trained.task,
            split=trained.split(),
            generation_config=getattr(model, "generation_config", None),
        )
        return cls(
            trained.task,
            trained.tokenizer,
            trained.manifest.encoding,
            trained.config.data,
            (context_length(model.config) or UNBOUNDED) - trained.virtual_tokens,
            frozenset(stop),
        )

    @property
    def takes_messages(self) -> bool:
        """Whether it was trained on conversations, which a chat template renders."""
        return self.task.is_conversation and self.encoding.chat_template != "none"

    def of_record(self, record: Record) -> Prompt:
        """Of a row as `Format.asking` reads it. Raises BadRow where the model cannot be given it,
        or has no room for an answer.
        """
        return self._fitting(self._of_record(record), record.place)

    def of_messages(self, messages: object, tools: object = None) -> Prompt:
        """Of a conversation that is to be answered, in OpenAI's format. Raises BadRow."""
        if not isinstance(messages, list) or not messages:
            raise BadRow("messages: must be a list of messages with at least one in it")
        columns: dict[str, object] = {"messages": [*messages, _stand_in()]}
        if tools:
            columns["tools"] = tools
        record = self._conversations.read(Row(key="request", place="messages", columns=columns))
        return self.of_record(record)

    def of_text(self, text: str) -> Prompt:
        """Of a text that is to be gone on with, or written for, as this model was trained on rows
        of texts; of one that was trained on conversations the text as it is. Raises BadRow.
        """
        if not text.strip():
            raise BadRow("prompt: is empty")
        key = "source" if not self.task.continues_text else "text"
        value: dict[str, object] = {key: text, "target": STAND_IN}
        if self.task.is_conversation and not self.takes_messages:
            value = {"prompt": text, "completion": STAND_IN}
        record = Record(value=value, place="prompt", key=b"", shown=text)
        if self.takes_messages:
            return self._fitting(self._continued(text), record.place)
        return self.of_record(record)

    @cached_property
    def stop_texts(self) -> tuple[str, ...]:
        """What the chat template ends an answer with, where that is none of `stop`."""
        if not self.takes_messages:
            return ()
        question: dict[str, object] = {"role": "user", "content": STAND_IN}
        found = asked(_conversation([question, _stand_in()]))
        text, spans = self._tokeniser.text(found)
        ending = text[spans[-1].start : spans[-1].end].rpartition(STAND_IN)[2].strip()
        ids = self.tokenizer(ending, add_special_tokens=False, verbose=False).input_ids
        return () if not ending or self.stop.intersection(ids) else (ending,)

    @cached_property
    def _conversations(self) -> RowReader:
        plain = replace(self.data, columns={}, group=None, slice=None)
        return conversation_reader(("messages", "tools"), "request", "messages", plain)

    @property
    def _tokeniser(self) -> "Tokeniser":
        encoding = self.encoding
        return tokeniser(
            self.tokenizer,
            encoding.chat_template,
            reasoning=encoding.reasoning,
            train_on=encoding.train_on,
            moment=encoding.moment,
        )

    def _of_record(self, record: Record) -> Prompt:
        if self.task.is_conversation:
            (tokens,) = self._tokeniser.tokenise([asked(record)])
            if isinstance(tokens, BadRow):
                raise tokens
            given = int(np.flatnonzero(tokens.learnt)[0])
            return Prompt(ids=tokens.ids[:given])
        if self.task.continues_text:
            return self._continued(str(record.value.get("text")))
        encoded = self.task.format.encode([record], self.tokenizer, self.encoding)
        return Prompt(ids=encoded.input_ids[0])

    def _continued(self, text: str) -> Prompt:
        """With what the tokenizer puts before a text, and without what it puts behind it."""
        found = self.tokenizer(text, return_special_tokens_mask=True, verbose=False)
        ids, special = found.input_ids, found.special_tokens_mask
        while ids and special[len(ids) - 1] and ids[-1] in self.stop:
            ids.pop()
        return Prompt(ids=np.array(ids, dtype=np.int32), before=tuple(ids[-TAIL:]))

    def _fitting(self, prompt: Prompt, place: str) -> Prompt:
        """A decoder of its own has the whole context for what it writes."""
        if len(prompt.ids) > self.context - self.task.continues_text:
            raise BadRow(
                f"{place}: the prompt has {len(prompt.ids)} tokens, and the model takes"
                f" {self.context} with its answer"
            )
        return prompt

    def room(self, prompt: Prompt) -> int:
        """Tokens that an answer may have."""
        return self.context - (len(prompt.ids) if self.task.continues_text else 1)

    def reply(self, prompt: Prompt, sampling: Sampling, adapter: str | None = None) -> Reply:
        """An answer that is to be written, no longer than there is room for."""
        own = replace(
            sampling,
            max_new_tokens=min(sampling.max_new_tokens, self.room(prompt)),
            stop=(*self.stop_texts, *sampling.stop),
        )
        return Reply(
            prompt=prompt, sampling=own, stop=self.stop, tokenizer=self.tokenizer, adapter=adapter
        )


def _stand_in() -> dict[str, object]:
    return {"role": "assistant", "content": STAND_IN}


def _conversation(messages: Sequence[Mapping[str, object]]) -> Record:
    return Record(value={"messages": list(messages)}, place="messages", key=b"", shown="")
