"""Random draws, a stream for each purpose. Where small numbers told purposes apart, a probe drawn
from (seed, 7) was the beginning of epoch 7, whose order is drawn from (seed, epoch).
"""

import hashlib
import json
from typing import Literal

import numpy as np

Purpose = Literal[
    "split",
    "rows",  # that are kept of too many
    "blocks",  # of text, likewise
    "mixture",
    "replay",
    "doctor",
    "probe",
    "timed rows",
    "answered rows",
    "answers",
    "baselines: pool",
    "baselines: folds",
    "baselines: examples",
    "baselines: balanced",
]


def stream(purpose: Purpose, *numbers: int) -> np.random.Generator:
    """Draws that are a function of `purpose` and `numbers` (a seed) alone, and unlike those of all
    others.
    """
    name = json.dumps([purpose, *map(int, numbers)])
    return np.random.Generator(
        np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest(), "big"))
    )
