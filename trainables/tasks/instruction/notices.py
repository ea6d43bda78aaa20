"""What is to be told of conversations beside what their chat template leaves out: what is read and
not learnt, and what is likely not meant as it stands there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from trainables.tasks.declared import Words
from trainables.tasks.instruction.layout import Row, Template
from trainables.tasks.instruction.marks import Message

Notice = tuple[str, str]
"""Of a message: its kind, and the text that it is about where that says more than the row."""


WEIGHTLESS, EARLIER, THOUGHTLESS = "answers_of_weight_0", "earlier_answers", "thoughtless_answers"
DROPPED, KEPT = "thoughts_dropped", "thoughts_kept"
EMPTY, STRAY = "empty_thoughts", "stray_thoughts"
CONTROL, FOREIGN, PROMPTED = "control_tokens", "foreign_marks", "written_prompts"
REFUSAL, MISPLACED, UNANSWERED = "refusals", "misplaced_results", "unanswered"

ANSWERS = "{messages} answer(s) of {rows} row(s)"
WORDS = {
    CONTROL: Words(
        "warning",
        "texts of {rows} row(s) hold control tokens of the model or marks of its chat template,"
        " where a turn seems to end or begin: take them out of the rows",
    ),
    FOREIGN: Words(
        "warning",
        "texts of {rows} row(s) hold marks of another model's chat template, which to this one are"
        " text like any other: take them out of the rows",
    ),
    PROMPTED: Words(
        "warning",
        "{messages} prompt(s) of {rows} row(s) end with the words that an answer begins with, and"
        " the chat template writes its own around them",
        "data.chat_template: none",
    ),
    STRAY: Words(
        "warning",
        ANSWERS + " seem to hold a thought that is not taken for one, whatever data.reasoning says:"
        " it is never closed, inside the answer or in other tags than <think>...</think>",
    ),
    MISPLACED: Words(
        "warning",
        "{messages} tool result(s) of {rows} row(s) do not stand in the order of their calls, and"
        " the chat template does not write the ids that tell whose they are",
    ),
    THOUGHTLESS: Words(
        "warning",
        ANSWERS + " are context only, since the chat template leaves out their thoughts",
        "data.reasoning: drop",
    ),
    DROPPED: Words("note", "the thoughts of " + ANSWERS + " are left out", "data.reasoning: train"),
    KEPT: Words(
        "note", "the thoughts of " + ANSWERS + " are context only", "data.reasoning: train"
    ),
    EMPTY: Words("note", "the chat template does not write the empty thoughts of " + ANSWERS),
    WEIGHTLESS: Words("note", ANSWERS + " have weight 0 and are context only"),
    EARLIER: Words(
        "note",
        ANSWERS + " stand before the last and are context only",
        "data.train_on: all_answers",
    ),
    REFUSAL: Words("note", ANSWERS + " are refusals, which are learnt like other answers"),
    UNANSWERED: Words("note", "{rows} row(s) end with a message that no assistant answers"),
}
"""By the kind of a notice."""

THINK = re.compile(r"</?think>")
OTHER_THOUGHT = re.compile(
    r"\s*(?:<(?:thinking|thoughts?|reasoning|reflection|scratch_?pad|seed:think)>|\[THINK\]"
    r"|<\|begin_of_thought\|>|◁think▷)",
    re.IGNORECASE,
)
"""As other models begin theirs, at the start of an answer."""

TEMPLATES_MARK = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,40}\]")
FOREIGN_MARKS = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<|user|>",
    "<|assistant|>", "<|system|>", "<|endoftext|>", "<|start|>", "<|channel|>", "<|return|>",
    "<｜User｜>", "<｜Assistant｜>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
)  # fmt: skip
"""Of well-known chat templates; none of them means anything in a text of its own."""

PROMPT = re.compile(
    r"(?:## ?(?:Response|Assistant|Answer|Output)|\n\s*(?:Assistant|ASSISTANT|AI|Bot|GPT)) ?:\s*\Z"
)
PROMPT_LENGTH = 40  # characters at a message's end in which one is looked for


class Notices:
    """Of the conversations that one template renders for one tokenizer."""

    def __init__(
        self, control: Iterable[str], *, thoughts: str | None = None, last_only: bool = False
    ) -> None:
        """control: `control_marks`; thoughts: what becomes of thoughts where they are not learnt,
        DROPPED or KEPT.
        """
        self._control = frozenset(control)
        self._marks = _any_of({*self._control, *FOREIGN_MARKS})
        self._thoughts = thoughts
        self._last_only = last_only

    def of(self, messages: Sequence[Message]) -> list[Notice]:
        """Of a stored row."""
        found: list[Notice] = []
        learnt = 0
        for turn, message in enumerate(messages):
            content = message.get("content")
            if not isinstance(content, str):
                continue
            if mark := self._marks.search(content):
                found.append((CONTROL if mark[0] in self._control else FOREIGN, repr(mark[0])))
            if message.get("role") != "assistant":
                continue
            learnt += message.get("weight") != 0
            found += self._of_answer(message, content)
            if turn and PROMPT.search(str(messages[turn - 1].get("content"))[-PROMPT_LENGTH:]):
                found.append((PROMPTED, ""))
        if self._last_only:
            found += [(EARLIER, "")] * (learnt - 1)
        if messages[-1].get("role") != "assistant":
            found.append((UNANSWERED, ""))
        return found

    def _of_answer(self, message: Message, content: str) -> list[Notice]:
        found: list[Notice] = []
        if message.get("weight") == 0:
            found.append((WEIGHTLESS, ""))
        thought = message.get("reasoning_content")
        if self._thoughts and isinstance(thought, str) and thought.strip():
            found.append((self._thoughts, ""))
        if tag := THINK.search(content) or OTHER_THOUGHT.match(content):
            found.append((STRAY, repr(tag[0].strip())))
        if content and message.get("refusal") == content:
            found.append((REFUSAL, ""))
        return found


def control_marks(special_tokens: Iterable[str], template: Template) -> set[str]:
    """What ends or begins something for a model: the special tokens of its tokenizer, and what the
    template writes around texts.
    """
    talk: list[Message] = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    texts = (
        template.attempt(Row(messages=messages))
        for messages in (talk, [{"role": "system", "content": "x"}, *talk])
    )
    written = {mark for text in texts if text for mark in TEMPLATES_MARK.findall(text)}
    marks = {*written, *(token for token in special_tokens if token.strip())}
    return {mark for mark in marks if not THINK.fullmatch(mark)}


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of them; by their first two characters, since a tokenizer may have hundreds
    and a text as many brackets.
    """
    by_start: dict[str, list[str]] = {}
    for text in sorted(texts, key=len, reverse=True):
        by_start.setdefault(text[:2], []).append(text[2:])
    return re.compile(
        "|".join(
            f"{re.escape(start)}(?:{'|'.join(map(re.escape, rests))})"
            for start, rests in by_start.items()
        )
    )


def misplaced_results(messages: Sequence[Message]) -> int:
    """Tool results whose ids are not those of the calls in whose places they stand."""
    count = 0
    waiting: list[object] = []
    for message in messages:
        if message.get("role") == "assistant":
            calls = message.get("tool_calls")
            waiting = (
                [call.get("id") for call in calls if isinstance(call, Mapping)]
                if isinstance(calls, list)
                else []
            )
        elif message.get("role") == "tool":
            call = waiting.pop(0) if waiting else ""
            said = message.get("tool_call_id")
            count += None not in (call, said) and call != said
    return count
