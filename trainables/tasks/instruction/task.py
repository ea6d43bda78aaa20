"""The assistant's tokens of a conversation; which they are is in the rows' labels (see
trainables.tasks.instruction.format).
"""

from collections.abc import Mapping

from trainables.tasks.causal_lm.task import CausalLM
from trainables.tasks.declared import Words
from trainables.tasks.instruction.format import Chat
from trainables.tasks.instruction.notices import WORDS


class Instruction(CausalLM):
    name = "instruction"
    what = "answers, as of a chat model"
    format = Chat()
    is_conversation = True
    targets_are_answers = True
    baselines = ("few_shot", "retrieved")  # zero-shot is the untuned model

    def notices(self) -> Mapping[str, Words]:
        return WORDS
