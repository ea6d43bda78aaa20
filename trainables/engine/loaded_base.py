"""The base that is loaded, and what was found out about it with the data's own rows: what trials
can share it, which rows may share a micro-batch, and what padding costs.

Letters of shapes: B rows of a micro-batch, T tokens, D channels.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trainables.data.arrow import Sequences, Split
from trainables.engine import varlen
from trainables.engine.dropout import FunctionDropout, RowDropout, RowKeys, replace_dropout
from trainables.engine.forward import ForwardPass
from trainables.engine.regularisation import InputNoise
from trainables.engine.row_independence import mixing_rows, padding_changes_losses
from trainables.engine.scoring import SAME, SAME_HALF, SAME_ROW, row_means
from trainables.engine.seeding import seeded
from trainables.engine.settings import GroupSettings
from trainables.engine.shared import SharedBaseEngine
from trainables.engine.sites import Addition, TrainedModule, copy_of
from trainables.errors import InputError
from trainables.hyperparameters import Hyperparameters, MethodOptions, untrained
from trainables.methods import ADDITIVE
from trainables.methods.lora import FIRST_LAYER
from trainables.models.base import BaseModel
from trainables.models.heads import initialise
from trainables.models.output import hidden_states
from trainables.models.structure import input_embedding, is_linear, linear_layers, stacks
from trainables.streams import stream
from trainables.tasks import take_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENDS = 8  # tokens at either end of a row that stand for all of it where every module is watched


class LoadedBase:
    """A base, with dropout by row put into it and its checks made."""

    def __init__(
        self,
        base: BaseModel,
        *,
        forward: ForwardPass,
        train: Split | Sequences,
        settings: GroupSettings,
        keys: RowKeys,
    ) -> None:
        self.base = base
        self.keys = keys
        self.pristine: dict[str, Tensor] = {}  # weights that training has changed at some time
        self._forward = forward
        self._train = train
        self._settings = settings
        self._shared: dict[str, bool] = {}  # whether trials can share it, by the method that asked
        replace_dropout(base.model, keys)
        self.input_noise = InputNoise(input_embedding(base.model), keys)
        self._mixes_rows = bool(self._find_mixing_rows())
        self.padded = not self._padding_changes_losses()  # rows of unlike lengths may share a batch
        self._function_dropout = self._watch_functions()
        # of a token in a micro-batch without padding; 1: that of one in a padded micro-batch
        self.token_cost = self._time_varlen()

    @property
    def model(self) -> "PreTrainedModel":
        return self.base.model

    # --- whether trials can share it ---

    @property
    def can_be_shared(self) -> bool:
        return all(self._shared.values())

    def try_sharing(self, method: str, options: MethodOptions | None) -> None:
        """Once for a base, with the first method that would share it."""
        alone = options is not None and options.sharing_key is None
        if self._shared or alone or method not in ADDITIVE:
            return
        hp = untrained(method, options)
        # the method may not suit the base; a trial's own join says so
        with contextlib.suppress(InputError):
            self._shared[method] = self._can_share(hp)

    def _can_share(self, hp: Hyperparameters) -> bool:
        """Whether trials like `hp` can share the base: its modules see rows apart, and two trials
        in one micro-batch over rows of unlike lengths, where the base takes such, have the losses
        that each has alone.
        """
        if self._mixes_rows:
            return False
        lengths = self._train.lengths
        order = np.argsort(lengths, kind="stable")
        # one trial has the longest, the other the rest
        rows = np.array(
            [order[0], order[len(order) // 2], order[-1]] if self.padded else [order[-1]] * 3
        )
        owner = np.array([0, 0, 1])
        try:
            with self._pair(hp) as pair:

                def losses(chosen: np.ndarray) -> Tensor:
                    self.keys.set(0, 0, self._forward.on_device(rows[chosen]))
                    with torch.no_grad(), self.dropping_out():
                        batch = self._forward.batch(self._train, rows[chosen])
                        nll_B, targets_B, _ = self._forward.losses(
                            self.base, pair, batch, owner[chosen]
                        )
                    return row_means(nll_B, targets_B)

                self.model.train()  # with dropout, whose masks must be the same too
                together = losses(np.arange(3))
                alone = torch.cat([losses(np.flatnonzero(owner == lane)) for lane in (0, 1)])
        except torch.OutOfMemoryError:
            return False
        limit = SAME_HALF if self.rounds else SAME
        return torch.allclose(together, alone, rtol=limit, atol=limit, equal_nan=True)

    @contextlib.contextmanager
    def _pair(self, hp: Hyperparameters) -> Iterator[SharedBaseEngine]:
        """Two trials like `hp` over this base, whose weights are no longer those of a start."""
        pair = SharedBaseEngine(
            self.base, self.keys, compute=self._settings.autocast, device=self._forward.device
        )
        try:
            with seeded(self._settings.seed, self._forward.device):
                for name in ("one", "other"):
                    additions = self.additions(hp)
                    for addition in additions:
                        addition.values.update(
                            {n: x + 0.1 * torch.randn_like(x) for n, x in addition.values.items()}
                        )
                    pair.join(name, additions)
            yield pair
        finally:
            self.model.eval()
            for name in pair.trials:
                pair.leave(name)

    def additions(self, hp: Hyperparameters) -> list[Addition]:
        """All that a trial adds to the base: the method's part, and a head of its own."""
        base = self.base
        with seeded(hp.seed, self._forward.device):
            heads = []
            for name in base.head:
                module = copy_of(base.model.get_submodule(name)).to(
                    torch.promote_types(base.dtype, torch.float32)
                )
                for new in base.new:
                    if new == name or new.startswith(f"{name}."):
                        inner = new.removeprefix(name).removeprefix(".")
                        initialise(base.model, module.get_submodule(inner))
                values = {key: p.detach() for key, p in module.named_parameters()}
                heads.append(Addition(kind=TrainedModule, site=name, values=values))
            return [*ADDITIVE[hp.method].plan(base, hp.options), *heads]

    # --- whether its modules see rows apart ---

    def _find_mixing_rows(self) -> dict[str, tuple[bool, ...]]:
        """Modules at which trials may add something, and dropout, that do not see rows one after
        another.
        """
        model = self.model
        modules = dict(model.named_modules())
        linear = [name for name, module in modules.items() if is_linear(module)]
        dropout = {
            n: module.layer for n, module in modules.items() if isinstance(module, RowDropout)
        }
        watched = [*linear, *self.base.head, *dropout, *self._layers()]
        ids_T = self._ends_of_the_longest()

        def run(ids_3T: Tensor) -> None:
            varlen.passing(None)
            mask = torch.ones_like(ids_3T)
            batch = {"input_ids": ids_3T, "attention_mask": mask, "labels": ids_3T}
            inputs = {name: x.to(self._forward.device) for name, x in batch.items()}
            take_targets(inputs, self._forward.task, model)
            self._forward.hidden(self.base, inputs)

        self.keys.mixing_rows = {}
        found = mixing_rows(model, watched, run, ids_T, self._other_tokens(ids_T))
        numbers = {
            name: FIRST_LAYER + number
            for number, name in enumerate(linear_layers(model, self.base.head))
        }
        self.keys.mixing_rows = {
            layer: found[name] for name, layer in {**numbers, **dropout}.items() if name in found
        }
        return found

    def _layers(self) -> list[str]:
        """Names of its layers; none, where it has no list of them: then no method adds to one."""
        try:
            lists = [each for lists in stacks(self.model) for each in lists]
        except InputError:
            return []
        return [f"{stack}.{number}" for stack, layers in lists for number in range(len(layers))]

    def _ends_of_the_longest(self) -> Tensor:
        """Tokens of both ends of the longest row, where its special tokens are: all inputs of all
        layers are kept for a moment.
        """
        (row,) = self._train.rows([int(self._train.parts[:, 0].argmax())])
        ids_T = row["input_ids"].astype(np.int64)
        if len(ids_T) > 2 * ENDS:
            ids_T = np.concatenate([ids_T[:ENDS], ids_T[-ENDS:]])
        return torch.from_numpy(ids_T)

    def _other_tokens(self, ids_T: Tensor) -> Tensor:
        """A row as long as another, with other tokens of the data; those that tell a classifier
        where rows begin and end stay.
        """
        first = self._train.rows(range(min(len(self._train), 64)))
        seen = torch.unique(
            torch.from_numpy(np.concatenate([row["input_ids"] for row in first])).long()
        ).tolist()
        special = self._special_tokens(ids_T)
        others = [token for token in seen if token not in special] or seen
        following = dict(zip(others, [*others[1:], others[0]], strict=True))
        kept = special if self.base.head else set()
        return torch.tensor(
            [t if t in kept else following.get(t, others[0]) for t in ids_T.tolist()]
        )

    def _special_tokens(self, ids_T: Tensor) -> set[int]:
        config = self.model.config.get_text_config().to_dict()
        found = {
            value
            for name, value in config.items()
            if name.endswith("_token_id") and isinstance(value, int)
        }
        ends = {int(ids_T[0]), int(ids_T[-1])} if len(ids_T) > 2 else set()
        return found | {self._forward.pad_token_id} | ends

    # --- which rows may share a micro-batch ---

    def _padding_changes_losses(self) -> bool:
        """Whether rows of unlike lengths may not share a micro-batch."""

        def losses(rows: np.ndarray) -> Tensor:
            batch = self._forward.batch(self._train, rows)
            nll_B, targets_B, _ = self._forward.losses(
                self.base, None, batch, np.zeros(len(rows), dtype=int)
            )
            return row_means(nll_B, targets_B)

        limit = SAME_HALF if self.rounds else SAME_ROW
        return padding_changes_losses(losses, self._train.lengths, limit, self._settings.max_tokens)

    @property
    def rounds(self) -> bool:
        """Whether the arithmetic over the base is in half precision."""
        return self._settings.autocast is not None or self.base.dtype.itemsize < 4

    def _time_varlen(self) -> float:
        lengths, wanted = self._train.lengths, self._settings.varlen
        if wanted is None:
            wanted = self._forward.device.type == "cuda"
        if not wanted or self.base.output is None or lengths.min() == lengths.max():
            return math.inf
        if self.model.config.is_encoder_decoder:  # a row's two texts would lie apart
            return math.inf
        if not varlen.prepare(self.model):
            return math.inf
        # the longest and some others; the seed of the sweep chooses, so that all workers of a slot
        # choose alike
        some = stream("timed rows", self._settings.seed).permutation(len(lengths))
        others = max(1, self._settings.max_tokens // int(lengths.max()) - 1)
        rows = np.array([lengths.argmax(), *some[:others]])
        batch = self._forward.inputs(self.base, self._train, rows)
        cost = varlen.cost(lambda inputs: self._forward.hidden(self.base, inputs), batch)
        return 0.0 if self._settings.varlen and math.isfinite(cost) else cost

    def varlen_rows(self, lengths_B: Sequence[int] | np.ndarray) -> varlen.Rows | None:
        """Where rows of these lengths lie in a micro-batch without padding; None: with it they
        take less time.
        """
        padded = len(lengths_B) * max(lengths_B)
        if sum(lengths_B) * self.token_cost >= padded:
            return None
        return varlen.Rows.of(lengths_B, self._forward.device)

    # --- dropout in functions ---

    def _watch_functions(self) -> FunctionDropout | None:
        """What to run a model under that drops out in functions, not modules."""
        model, mode = self.model, FunctionDropout(self.keys)
        batch = self._forward.inputs(self.base, self._train, np.array([0]))
        self.keys.set(0, 0, torch.zeros(1, dtype=torch.int64, device=self._forward.device))
        model.train()
        with torch.no_grad(), mode, hidden_states(self.base.output):
            model(**batch)
        model.eval()
        if not mode.used:
            return None
        mode.follow(model)
        return mode

    def dropping_out(self) -> contextlib.AbstractContextManager:
        """What a training step runs under."""
        return self._function_dropout or contextlib.nullcontext()

    # --- gradient checkpointing ---

    def checkpoint_gradients(self) -> None:
        how: dict[str, object] = {"use_reentrant": False}
        if self._function_dropout is not None:
            how["context_fn"] = self._function_dropout.contexts
        self.model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)

    def keep_activations(self) -> None:
        self.model.activation_checkpointing_disable()
        self.model.disable_input_require_grads()

    # --- what it gives by itself ---

    def states(self, row: Mapping[str, np.ndarray]) -> Tensor:
        """Hidden states of one row [T, D], of which `logits` makes logits."""
        batch = self._forward.task.collate([dict(row)], self._forward.pad_token_id)
        take_targets(batch, self._forward.task, self.model)
        varlen.passing(None)
        with torch.no_grad():
            inputs = {name: x.to(self._forward.device) for name, x in batch.items()}
            return self._forward.hidden(self.base, inputs)[0]

    def logits(self, states_TD: Tensor) -> Tensor:
        with torch.no_grad(), self._forward.precision():
            return states_TD if self.base.output is None else self.base.output(states_TD)

    def inference_cost(self, hp: Hyperparameters, saved: int, tokens: float) -> float:
        """Arithmetic of a request of `tokens` over that of the untuned base: 2 x parameters x
        tokens (Kaplan et al. 2020, section 2.1). saved: parameters that a checkpoint has.

        What can be merged into the base costs nothing. Keys and values cost each token what as many
        weights do; no token is computed for them.
        """
        own, longer = 0, hp.options.soft_prompt_tokens
        if hp.method in ADDITIVE and ADDITIVE[hp.method].stays_beside:
            named = self.model.named_parameters()
            heads = (p.numel() for name, p in named if self.base.in_head(name))
            own, longer = saved - sum(heads), 0
        return (1 + own / self.computed_parameters) * (1 + longer / tokens)

    def cost(self, tokens: float) -> float:
        """Floating-point operations of a request to the base (as above), where others may have
        another; else 1.
        """
        return 2 * self.computed_parameters * tokens if self._settings.several_bases else 1.0

    @property
    def computed_parameters(self) -> int:
        """By which a token is multiplied, and to which it is added."""
        model = self.model
        computed = model.num_parameters(exclude_embeddings=True)
        output = model.get_output_embeddings()
        # one table for both, and the output layer multiplies by it
        if output is not None and output.weight is model.get_input_embeddings().weight:
            computed += output.weight.numel()
        return computed
