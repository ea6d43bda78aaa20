"""What Ray Tune and Ray Train read from the environment. Ray is not imported here, as some of it is
read on import.
"""

import os

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # of all trials there ever were; a sweep has its ledger
    "TUNE_MAX_PENDING_TRIALS_PG": "16",  # slots decide who trains
    # a process for each slot, which tells workers of what they do not ask
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a header at every verbosity
}


def set_environment() -> None:
    """Before Ray Tune or Ray Train is imported."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.update(ENVIRONMENT)
