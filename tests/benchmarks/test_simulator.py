import asyncio
from collections import Counter

import pytest
from simulator import (
    EVALUATIONS,
    METHODS,
    Account,
    Machines,
    OnePerGpu,
    Platform,
    draw,
    growth_of,
    simulated,
)

HOUR = 3600.0


def platform(work, machines: Machines, **settings) -> Account:
    async def story() -> Account:
        return await Platform(work, machines, **settings).run()

    return simulated(story())


def others(work, machines: Machines, **settings) -> Account:
    async def story() -> Account:
        return await OnePerGpu(work, machines, **settings).run()

    return simulated(story())


def test_time_is_jumped_over():
    async def story() -> float:
        await asyncio.sleep(1e6)
        return asyncio.get_running_loop().time()

    assert simulated(story()) == pytest.approx(1e6)


def test_who_waits_for_what_never_comes_is_told():
    async def story() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        simulated(story())


@pytest.mark.parametrize("share", [1, 8])
@pytest.mark.parametrize("every_s", [float("inf"), 2 * HOUR])
def test_no_work_is_lost_but_what_preemptions_take(share, every_s):
    """Whatever befalls GPUs, each trial is trained to its end once, and what was trained is accounted for."""
    work = draw(24, seed=1)
    machines = Machines(gpus=4, preempted_every_s=every_s)
    account = platform(work, machines, share=share, growth=growth_of(1.36), asha=False)
    assert not account.failed
    assert Counter(account.evaluations.values()) == {EVALUATIONS: len(work)}
    assert account.trained_s == pytest.approx(sum(sum(each.seconds) for each in work))
    assert account.kept + account.lost <= 1 + 1e-9
    assert (account.lost_gpu_s > 0) == (account.preemptions > 0) == (every_s < float("inf"))


@pytest.mark.parametrize("share", [1, 8])
def test_more_gpus_are_never_slower_beyond_starting_and_the_longest_trial(share):
    work = draw(24, seed=2)
    settings = {"share": share, "growth": growth_of(1.36), "asha": False}
    took = [platform(work, Machines(gpus=count), **settings).ended_s for count in (2, 4, 8)]
    slack = 28.0 + share * max(sum(each.seconds) for each in work)
    assert all(more <= fewer + slack for fewer, more in zip(took, took[1:], strict=False))
    assert took[-1] < took[0]


def test_a_group_takes_as_long_as_its_rows_say():
    """Eight alike trials at once on a GPU, which started in no time."""
    (one,) = draw(1, 0, METHODS[:1])  # which shares
    work = [type(one)(**{**vars(one), "trial": f"t{k}"}) for k in range(8)]
    machines = Machines(gpus=1, start_s=(0.0, 0.0))
    alone = platform(work, machines, asha=False).ended_s
    assert alone == pytest.approx(8 * sum(one.seconds))
    together = platform(work, machines, share=8, growth=growth_of(1.36), asha=False).ended_s
    assert alone / together == pytest.approx(1.36, rel=0.02)


@pytest.mark.parametrize("resumes", [True, False])
def test_one_trial_on_a_gpu(resumes):
    work, every_s = draw(24, seed=1), 2 * HOUR
    machines = Machines(gpus=4, preempted_every_s=every_s)
    account = others(work, machines, resumes=resumes, asha=False)
    assert Counter(account.evaluations.values()) == {EVALUATIONS: len(work)}
    assert account.trained_s == pytest.approx(sum(sum(each.seconds) for each in work))
    assert 0 < account.lost and account.kept + account.lost <= 1 + 1e-9
    if not resumes:
        going_on = others(work, machines, resumes=True, asha=False)
        assert account.lost_gpu_s > going_on.lost_gpu_s
