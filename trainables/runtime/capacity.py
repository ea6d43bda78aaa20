"""How many trials should share a slot: profiled, as far as it pays."""

import math
from typing import TYPE_CHECKING

from trainables.hyperparameters import parse
from trainables.runtime.failures import ends_worker

if TYPE_CHECKING:
    from trainables.engine.group import TrialGroup
    from trainables.runtime.client import CoordinatorClient
    from trainables.runtime.protocol import Parameters

MAX_GROUP_SIZE = 16  # trials that `auto` lets share a base

PAYS = 1.05  # twice the trials must take less per trial by this factor for `auto` to let them share


def trials_that_pay(
    group: "TrialGroup", parameters: "Parameters", most: int, client: "CoordinatorClient"
) -> int:
    """How many trials like this one should share the slot: twice as many, as long as that pays and
    fits.
    """

    def seconds(copies: int) -> float:
        try:
            return group.time_step(parse(parameters), copies)
        # too little memory, or a trial that cannot train: then its own join will say so
        except Exception as error:
            if ends_worker(error):
                raise
            return math.inf

    per_trial: dict[int, float] = {}
    copies = 1
    while copies <= most:
        per_trial[copies] = max(client.gather(seconds(copies))) / copies
        if math.isinf(per_trial[copies]) or per_trial[copies] > min(per_trial.values()) * PAYS:
            break
        copies *= 2
    # the fewest that are nearly as good as the best
    return min(
        copies for copies, each in per_trial.items() if each <= min(per_trial.values()) * PAYS
    )
