from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainables.engine.kernels import Gathered
from trainables.engine.sites import AdapterSite, Addition, Stacked
from trainables.errors import InputError
from trainables.hyperparameters import PromptOptions
from trainables.models.base import BaseModel
from trainables.models.files import context_length


def virtual_tokens_key(key: str) -> str:
    """Name in the checkpoint of what is trained beside virtual tokens: PEFT wraps nothing around
    the model there.
    """
    return key.replace("base_model.model.", "base_model.", 1)


def check_context(base: BaseModel, virtual_tokens: int) -> None:
    """Raise InputError where there is no room for a row behind so many."""
    context = context_length(base.model.config.get_text_config())
    if context is not None and virtual_tokens >= context:
        raise InputError(
            f"virtual_tokens: must be below the model's context of {context} tokens, got"
            f" {virtual_tokens}"
        )


class VirtualTokens(AdapterSite):
    """The virtual tokens of all trials, before the embedded input. The site is the whole model."""

    @staticmethod
    def key(site: str, tensor: str) -> str:
        return tensor

    renamed = staticmethod(virtual_tokens_key)

    def bind(self, tensors: Mapping[str, Stacked], options: Sequence[PromptOptions | None]) -> None:
        assert (
            None not in options and len({each.virtual_tokens for each in options if each}) == 1
        ), "see `sharing_key`"
        self._prompts = tensors["prompt_embeddings"]
        self._here = [True] * len(options)

    def install(self) -> Callable[[], None]:
        return lambda: None

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        embedded_BTD = self.engine.base.model.get_input_embeddings()(batch["input_ids"])
        prompts, engine = self._prompts, self.engine
        prompts_BVD = Gathered.apply(
            engine.anchor, prompts.weight, prompts.grad, engine.micro_batch, self._here
        )
        # it is one where all rows are one trial's
        prompts_BVD = prompts_BVD.expand(len(embedded_BTD), -1, -1)
        rest = {name: x for name, x in batch.items() if name != "input_ids"}
        for name, filled in (("attention_mask", 1), ("token_type_ids", 0)):
            if name in batch:
                before_BV = batch[name].new_full(prompts_BVD.shape[:2], filled)
                rest[name] = torch.cat([before_BV, batch[name]], dim=1)
        return {
            "inputs_embeds": torch.cat([prompts_BVD.to(embedded_BTD.dtype), embedded_BTD], dim=1),
            **rest,
        }

    def starting(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """They stand before a row, and padding before them."""
        found = self.inputs(batch)
        if self.engine.base.model.config.is_encoder_decoder:
            return found
        mask_BT, embedded_BTD = found["attention_mask"], found["inputs_embeds"]
        order_BT = mask_BT.argsort(dim=1, stable=True)
        moved_BTD = embedded_BTD.gather(1, order_BT[..., None].expand_as(embedded_BTD))
        return {
            **found,
            "attention_mask": mask_BT.gather(1, order_BT),
            "inputs_embeds": moved_BTD,
        }


class Prompt:
    """Prompt tuning over a frozen base: vectors that stand before the input. What leaves is PEFT's
    format.
    """

    stays_beside = False

    def plan(self, base: BaseModel, options: PromptOptions) -> list[Addition]:
        """Embeddings of tokens drawn at random from the vocabulary (Lester et al. 2021, section
        3.2).
        """
        config = base.model.config.get_text_config()
        # so transformers calls the heads of its decoders; one for each token needs no end of a row
        has_end = "score" in base.head or config.is_encoder_decoder
        if has_end and base.peft_task == "SEQ_CLS":
            raise InputError(
                f"method: prompt cannot train {type(base.model).__name__}, which finds the end of a"
                " row by its token ids; allowed with a classifier over an encoder, or with task"
                " causal_lm, instruction or seq2seq"
            )
        check_context(base, options.virtual_tokens)
        table_VD = base.model.get_input_embeddings().get_parameter("weight")
        drawn = torch.randint(0, len(table_VD), (options.virtual_tokens,))
        values = {"prompt_embeddings": table_VD.detach()[drawn.to(table_VD.device)]}
        return [Addition(kind=VirtualTokens, site="", values=values, options=options)]

    def describe(self, base: BaseModel, options: PromptOptions, folder: Path) -> None:
        from peft import PromptTuningConfig, TaskType

        config = base.model.config.get_text_config()
        PromptTuningConfig(
            base_model_name_or_path=base.model.name_or_path,
            revision=base.revision,
            num_virtual_tokens=options.virtual_tokens,
            token_dim=base.model.get_input_embeddings().get_parameter("weight").shape[1],
            num_transformer_submodules=1,
            num_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            modules_to_save=list(base.head) or None,
            task_type=TaskType(base.peft_task),
            inference_mode=True,
        ).save_pretrained(str(folder))
