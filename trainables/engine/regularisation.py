"""What is put upon training beside the loss of the data: all of it a trial's own, and nothing of it
in an evaluation.

Letters of shapes: B rows of a micro-batch, T tokens of a row, D channels, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from torch import Tensor, nn

from trainables.engine.dropout import FUNCTIONS, RowKeys, row_noise
from trainables.errors import InputError
from trainables.hyperparameters import Hyperparameters

EMBEDDED = FUNCTIONS - 1  # number of the embedding among the layers that draw


def smoothing(hps: Sequence[Hyperparameters]) -> np.ndarray | None:
    """Of the labels of each row, of whose trials these are; None: of none."""
    if not any(hp.label_smoothing for hp in hps):
        return None
    return np.array([hp.label_smoothing for hp in hps])


def balanced(labels: np.ndarray | None) -> np.ndarray:
    """Weights of the classes of the training rows `labels` [N], of which a row's mean is 1: N / (C
    x rows of the class) [C] (King & Zeng 2001). Raises InputError where rows have no class.
    """
    if labels is None:
        raise InputError("class_weights: balanced is for tasks with classes, as classification")
    counts = np.bincount(labels)
    weights = np.zeros(len(counts))
    weights[counts > 0] = len(labels) / (np.count_nonzero(counts) * counts[counts > 0])
    return weights


class InputNoise:
    """NEFTune (Jain et al. 2023, https://arxiv.org/abs/2310.05914): noise on what the base's
    embedding gives, drawn as dropout is.
    """

    def __init__(self, embedding: nn.Module, keys: RowKeys) -> None:
        self._embedding = embedding
        self._keys = keys

    @contextmanager
    def on(
        self,
        hps: Sequence[Hyperparameters],
        position: np.ndarray,
        lengths: np.ndarray,
        on_device: Callable[[np.ndarray], Tensor],
    ) -> Iterator[None]:
        """Inside, for rows of `lengths` tokens whose trials stand at `position` of `hps`, both as
        `RowKeys` names rows.
        """
        if not any(hp.neftune_alpha for hp in hps):
            yield
            return
        alpha_B = np.array([hp.neftune_alpha for hp in hps])[position]
        sizes_B = on_device(alpha_B / np.sqrt(lengths))

        def add(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            noise = row_noise(output, self._keys, EMBEDDED).view(len(sizes_B), -1)
            scaled = noise * (sizes_B / output.shape[-1] ** 0.5)[:, None]
            return output + scaled.to(output.dtype).view(output.shape)

        hook = self._embedding.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()
