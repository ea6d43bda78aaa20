"""What the benchmark of searches shows, on fewer orders; it is deterministic."""

import numpy as np
import search


def test_freeze_and_thaw_needs_fewer_samples_than_random_and_asha_on_recorded_runs() -> None:
    job = search.load("epochs")
    assert job is not None and len(job.configurations) == 135
    found = search.measure(job, ["random", "ASHA", "freeze-thaw"], 6)
    median = {way: np.median(shares) for way, shares in found.items()}
    assert median["freeze-thaw"] < min(median["random"], median["ASHA"])
    assert max(found["freeze-thaw"]) < 1 / 8


def test_a_search_counts_what_all_slots_have_trained_until_the_loss_is_near_the_lowest() -> None:
    job = search.load("epochs")
    assert job is not None
    numbers = range(len(job.configurations))
    best = min(numbers, key=lambda n: min(job.configurations[n].losses[0]))
    first = [best, *(n for n in numbers if n != best)]
    trained = search.trained_until_near(job, search.random_search(job, first, 0), 0)
    assert trained <= search.SLOTS * job.configurations[best].samples[-1]
