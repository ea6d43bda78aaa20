"""What travels between processes, and the dictionaries that Tune carries."""

import math
import pickle

import pytest

from trainables.errors import InputError
from trainables.evaluation.record import Evaluation, UntunedFailed, UntunedResults
from trainables.runtime.protocol import (
    AssignedTrial,
    Assignment,
    Diverged,
    Evaluated,
    Failed,
    Profile,
    Snapshot,
    Stopped,
    TrialProgress,
)
from trainables.runtime.tune_dicts import TrialConfig, TrialResult, result_of

EVALUATION = Evaluation(
    step=5, samples_seen=40, epoch=1.0, val_loss=2.0, probe_loss=1.5, finished=True
)
RECORDS = [
    Evaluated(evaluation=EVALUATION),
    Failed(reason="no kernel image", log="error.txt"),
    Diverged(reason="its loss is nan"),
    Stopped(reason="it left"),
    Assignment(
        version=3,
        trials={"t1": AssignedTrial(parameters={"method": "full"}, may_train=True)},
        profile=[Profile(cost_class="lora", parameters={"method": "lora"})],
    ),
    Snapshot(
        slots={"a": ["t1"]},
        lost={"b": "its node died"},
        quarantined={},
        progress={"t1": TrialProgress(samples_seen=40, samples_per_s=2.0)},
        baseline=UntunedResults(val_loss=1.0, probe_loss=1.0),
        limits={"lora": 2},
        jobs={},
    ),
    UntunedFailed(error="its worker process died"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_survive_the_way_to_another_process(record):
    assert pickle.loads(pickle.dumps(record)) == record


def test_an_error_of_the_user_survives_the_way_to_another_process():
    error = pickle.loads(pickle.dumps(InputError("rank: must be positive")))
    assert isinstance(error, InputError) and str(error) == "rank: must be positive"


@pytest.mark.parametrize("outcome", RECORDS[:4], ids=lambda outcome: type(outcome).__name__)
def test_tune_carries_an_outcome_beside_keys_of_its_own(outcome):
    result = result_of("t1", outcome)
    carried = {**result.to_tune(), "trial_id": "abc", "time_total_s": 1.0}
    assert None not in carried.values()
    assert TrialResult.from_tune(carried) == result
    assert result.done and (result.evaluation is None) == (result.val_loss is None)


def test_a_loss_that_is_not_finite_is_worse_than_any_to_tune():
    outcome = Evaluated(
        evaluation=Evaluation(step=1, samples_seen=8, epoch=0.1, val_loss=None, probe_loss=None)
    )
    result = result_of("t1", outcome).to_tune()
    assert result["val_loss"] == math.inf and result["done"] is False and "ended" not in result


def test_tune_starts_a_trial_with_its_config():
    config = TrialConfig(
        id="t1",
        label="s t1: method=full",
        params={"method": "full"},
        coordinator="coordinator",
        namespace="sweep-s",
        compared=False,
    )
    assert TrialConfig.from_tune({**config.to_tune(), "trial_info": object()}) == config
