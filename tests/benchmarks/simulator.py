"""Makespan of a sweep, and use of its accelerators, on 16 to 1,024 GPUs: simulated, event by event, with no clock.

    .venv/bin/python tests/benchmarks/simulator.py                # the tables
    .venv/bin/python tests/benchmarks/simulator.py --check        # against a real sweep on two CPU slots

The platform's side is its own coordinator, which runs here as the plain Python that it is: trials ask it to advance,
slots register, take their assignments and publish, and it decides who trains where, as in a sweep. ASHA is the
sweep's too. Only time is simulated: the event loop jumps to the next moment at which something happens.

What is compared is what one would do otherwise: one trial on a GPU at a time, each from a fresh start, with the same
ASHA. A preempted GPU comes back after a while. A trial then goes on from its last evaluation (the platform always; of
the others those that are said to resume) or begins anew.

Trials take log-normal times by their methods. In a trial group of K a step takes (1 - s) + s K times as long as alone,
that is, t(b) = a + c b of rows; --gain says K t(b) / t(K b) of 8 trials, from which s follows.

`kept`: share of all GPU time in which training was done that was not lost. `lost`: the same of training that was, to
preemptions. The rest of the time a GPU started, was away, or had nothing to do.
"""

import argparse
import asyncio
import json
import math
import random
import selectors
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parents[2]))

from sweeps.search.scheduler import SampleAsha
from trainables.evaluation.record import Evaluation
from trainables.hyperparameters import parse
from trainables.runtime import coordinator as coordinating
from trainables.runtime.coordinator import Coordinator
from trainables.runtime.protocol import Assignment, Evaluated, Parameters

START_S = (
    10.0,
    28.0,
)  # of a slot, or of a trial that starts afresh (Ray Train's workers, imports, data, base)
AWAY_S = 120.0  # until another machine takes the place of a preempted one
EVALUATIONS = 4  # of a trial that trains to its end
ROWS = 1000  # of train; an evaluation an epoch
FACTOR = 3  # of ASHA: the best third goes on
NEVER = math.inf

Done = TypeVar("Done")


# --- time ---


class Jump(selectors.SelectSelector):
    """Waits for nothing: it says how long one would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen: somebody waits for what does not come")
        self.now += max(0.0, timeout)
        return []


class SimulatedTime(asyncio.SelectorEventLoop):
    """An event loop that jumps from one event to the next."""

    def __init__(self) -> None:
        self._jump = Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def simulated(story: Coroutine[Any, Any, Done]) -> Done:
    """What comes of a coroutine whose waiting takes no time."""
    loop, before = SimulatedTime(), coordinating.TAKE_TIMEOUT_S
    coordinating.TAKE_TIMEOUT_S = None  # a slot that looks again without news would be an event
    try:
        return loop.run_until_complete(story)
    finally:
        coordinating.TAKE_TIMEOUT_S = before
        loop.close()


# --- what there is to do ---


@dataclass(frozen=True, kw_only=True)
class Method:
    """Of trials, and how long these take alone on a GPU."""

    share: float
    """Of all trials."""
    parameters: Parameters
    median_s: float
    sigma: float
    """Standard deviation of the logarithm."""


FULL = {"method": "full", "learning_rate": 1e-3, "batch_size": 8, "epochs": EVALUATIONS}
METHODS = (
    Method(share=0.75, parameters=FULL | {"method": "lora", "rank": 8}, median_s=1200.0, sigma=0.5),
    Method(share=0.25, parameters=FULL, median_s=2400.0, sigma=0.5),
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A trial: what it would take, and come to."""

    trial: str
    parameters: Parameters
    seconds: tuple[float, ...]
    """Alone on a GPU, from each evaluation to the next."""
    losses: tuple[float, ...]


def draw(trials: int, seed: int, methods: Sequence[Method] = METHODS) -> list[Work]:
    generator, found = random.Random(seed), []
    for number in range(trials):
        (method,) = generator.choices(methods, [each.share for each in methods])
        whole = method.median_s * math.exp(generator.gauss(0.0, method.sigma))
        floor = generator.gauss(1.0, 0.2)
        losses = [floor + math.exp(-k) + generator.gauss(0.0, 0.05) for k in range(EVALUATIONS)]
        found.append(
            Work(
                trial=f"t{number:05d}",
                parameters=method.parameters,
                seconds=(whole / EVALUATIONS,) * EVALUATIONS,
                losses=tuple(losses),
            )
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Machines:
    """GPUs and what befalls them. Seconds."""

    gpus: int
    start_s: tuple[float, float] = START_S
    preempted_every_s: float = NEVER
    """On average, of each GPU."""
    away_s: float = AWAY_S
    seed: int = 0

    def of(self, gpu: int) -> "Luck":
        return Luck(self, random.Random(f"{self.seed} {gpu}"))


class Luck:
    """Of one GPU."""

    def __init__(self, machines: Machines, generator: random.Random) -> None:
        self._machines, self._generator = machines, generator

    def start_s(self) -> float:
        return self._generator.uniform(*self._machines.start_s)

    def lives_s(self) -> float | None:
        """Until it is preempted; None: never."""
        every = self._machines.preempted_every_s
        return None if every == NEVER else self._generator.expovariate(1 / every)


@dataclass(kw_only=True)
class Account:
    """What has come of it so far."""

    gpus: int
    ended_s: float = 0.0
    """When the last trial ended."""
    kept_gpu_s: float = 0.0
    lost_gpu_s: float = 0.0
    trained_s: float = 0.0
    """Seconds of training alone that were done and kept."""
    preemptions: int = 0
    failed: list[str] = field(default_factory=list)
    evaluations: dict[str, int] = field(default_factory=dict)
    """Of each trial that has ended."""

    @property
    def kept(self) -> float:
        return self.kept_gpu_s / (self.gpus * self.ended_s)

    @property
    def lost(self) -> float:
        return self.lost_gpu_s / (self.gpus * self.ended_s)


class Stopping:
    """ASHA, as a sweep has it; or none."""

    def __init__(self, *, asha: bool) -> None:
        rungs = [ROWS * FACTOR**k for k in range(EVALUATIONS) if FACTOR**k < EVALUATIONS]
        self._asha = SampleAsha(rungs, FACTOR, {"": ROWS}) if asha else None

    def goes_on(self, work: Work, evaluations: int) -> bool:
        if evaluations == len(work.seconds):
            return False
        hp, loss = parse(work.parameters), work.losses[evaluations - 1]
        return self._asha is None or self._asha.report(work.trial, hp, ROWS * evaluations, loss)


# --- the platform ---


class Platform:
    """A sweep: slots and trials around the coordinator."""

    def __init__(
        self,
        work: Sequence[Work],
        machines: Machines,
        *,
        share: int = 1,
        growth: float = 1.0,
        asha: bool = True,
    ) -> None:
        """share: trials on a slot at most; growth: s, see above."""
        self._work = {each.trial: each for each in work}
        self._left, self._machines = deque(work), machines
        self._growth, self._stopping = growth, Stopping(asha=asha)
        self._coordinator = Coordinator("simulated", share, machines.gpus)
        self._kept: dict[str, int] = {}  # evaluations of each trial that has begun
        self.account = Account(gpus=machines.gpus)
        self._trials: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def run(self) -> Account:
        await self._coordinator.skip_baseline()
        slots = [asyncio.ensure_future(self._slot(k)) for k in range(self._machines.gpus)]
        await self._draw()
        await self._over.wait()
        for slot in slots:
            slot.cancel()
        await asyncio.gather(*slots, return_exceptions=True)
        return self.account

    async def _draw(self) -> None:
        """As Tune asks the searcher: a trial as soon as one could train."""
        while self._left and await self._coordinator.room() > 0:
            work = self._left.popleft()
            self._kept[work.trial] = 0
            await self._coordinator.expect(work.trial, work.parameters)
            task = asyncio.ensure_future(self._trial(work))
            self._trials.add(task)
            task.add_done_callback(self._trials.discard)

    async def _trial(self, work: Work) -> None:
        while True:
            outcome = await self._coordinator.advance(work.trial, work.parameters)
            if not isinstance(outcome, Evaluated):
                self.account.failed.append(work.trial)
                break
            if not self._stopping.goes_on(work, self._kept[work.trial]):
                break
        await self._coordinator.leave(work.trial)
        self.account.evaluations[work.trial] = self._kept[work.trial]
        self.account.ended_s = asyncio.get_running_loop().time()
        if len(self.account.evaluations) == len(self._work):
            self._over.set()
        await self._draw()

    async def _slot(self, number: int) -> None:
        name, luck = f"slot{number:04d}", self._machines.of(number)
        while True:
            on_board: dict[str, Stint] = {}
            try:
                async with asyncio.timeout(luck.lives_s()):
                    await self._serve(name, luck, on_board)
            except TimeoutError:
                self.account.preemptions += 1
                self.account.lost_gpu_s += sum(each.gpu_s for each in on_board.values())
                await self._coordinator.slot_down(name)
                await asyncio.sleep(self._machines.away_s)

    async def _serve(self, name: str, luck: Luck, on_board: "dict[str, Stint]") -> None:
        """on_board: trials and how far each is since its last evaluation."""
        await self._coordinator.slot_up(name)
        await asyncio.sleep(luck.start_s())
        assignment = await self._coordinator.register(name)
        await self._draw()
        while True:
            training = [trial for trial, each in assignment.trials.items() if each.may_train]
            for trial in [trial for trial in on_board if trial not in assignment.trials]:
                self.account.lost_gpu_s += on_board.pop(trial).gpu_s
            for trial in training:
                on_board.setdefault(trial, Stint())
            assignment = await self._train(name, assignment, training, on_board)

    async def _train(
        self,
        name: str,
        assignment: Assignment,
        training: Sequence[str],
        on_board: "Mapping[str, Stint]",
    ) -> Assignment:
        """Until the next evaluation, or another assignment, which it returns."""
        loop, together = asyncio.get_running_loop(), len(training)
        slower = 1 - self._growth + self._growth * together
        left = {trial: self._left_of(trial, on_board[trial]) for trial in training}
        until = min(left.values()) * slower if left else None
        began, newer = loop.time(), None
        try:
            async with asyncio.timeout(until):
                newer = await self._coordinator.take(name, assignment.version)
        except TimeoutError:
            pass
        finally:
            passed = loop.time() - began
            for trial in training:
                on_board[trial].seconds += passed / slower
                on_board[trial].gpu_s += passed / together
        for trial in training:
            if self._left_of(trial, on_board[trial]) <= 1e-6:
                newer = await self._evaluate(name, trial, on_board[trial])
        return newer or assignment

    def _left_of(self, trial: str, stint: "Stint") -> float:
        return self._work[trial].seconds[self._kept[trial]] - stint.seconds

    async def _evaluate(self, name: str, trial: str, stint: "Stint") -> Assignment | None:
        self.account.kept_gpu_s += stint.gpu_s
        self.account.trained_s += self._work[trial].seconds[self._kept[trial]]
        self._kept[trial] += 1
        stint.seconds = stint.gpu_s = 0.0
        step = self._kept[trial]
        evaluation = Evaluation(
            step=step, samples_seen=ROWS * step, epoch=step, val_loss=1.0, probe_loss=1.0
        )
        return await self._coordinator.publish(name, trial, Evaluated(evaluation=evaluation))


@dataclass(kw_only=True)
class Stint:
    """Of a trial on a slot since its last evaluation."""

    seconds: float = 0.0
    """Of its training, as long as that takes alone."""
    gpu_s: float = 0.0
    """Its part of the GPU's time."""


# --- what one would do otherwise ---


class OnePerGpu:
    """A trial on a GPU at a time, each from a fresh start."""

    def __init__(
        self, work: Sequence[Work], machines: Machines, *, resumes: bool, asha: bool = True
    ) -> None:
        """resumes: whether a preempted trial goes on from its last evaluation, and does not begin
        anew.
        """
        self._queue, self._machines = deque(work), machines
        self._resumes, self._stopping = resumes, Stopping(asha=asha)
        self._kept = {each.trial: 0 for each in work}
        self._gpu_s = {each.trial: 0.0 for each in work}  # of its evaluations
        self.account = Account(gpus=machines.gpus)
        self._over = asyncio.Event()

    async def run(self) -> Account:
        gpus = [asyncio.ensure_future(self._gpu(k)) for k in range(self._machines.gpus)]
        await self._over.wait()
        for gpu in gpus:
            gpu.cancel()
        await asyncio.gather(*gpus, return_exceptions=True)
        return self.account

    async def _gpu(self, number: int) -> None:
        luck = self._machines.of(number)
        while True:
            held: list[Work] = []
            began: list[float] = []
            try:
                async with asyncio.timeout(luck.lives_s()):
                    await self._work_off(luck, held, began)
            except TimeoutError:
                self.account.preemptions += 1
                for work in held:
                    self._preempt(work, began)
                await asyncio.sleep(self._machines.away_s)

    def _preempt(self, work: Work, began: Sequence[float]) -> None:
        """began: when it last began to train towards an evaluation."""
        for moment in began:
            self.account.lost_gpu_s += asyncio.get_running_loop().time() - moment
        if not self._resumes:
            self._take_back(work)
        self._queue.appendleft(work)

    def _take_back(self, work: Work) -> None:
        """Its evaluations: it begins anew."""
        self.account.trained_s -= sum(work.seconds[: self._kept[work.trial]])
        self.account.kept_gpu_s -= self._gpu_s[work.trial]
        self.account.lost_gpu_s += self._gpu_s[work.trial]
        self._kept[work.trial], self._gpu_s[work.trial] = 0, 0.0

    async def _work_off(self, luck: Luck, held: list[Work], began: list[float]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue:
                await asyncio.sleep(1.0)  # a preempted trial may come back
                continue
            work = self._queue.popleft()
            held[:] = [work]
            await asyncio.sleep(luck.start_s())
            while True:
                seconds = work.seconds[self._kept[work.trial]]
                began[:] = [loop.time()]
                await asyncio.sleep(seconds)
                self.account.kept_gpu_s += seconds
                self.account.trained_s += seconds
                self._gpu_s[work.trial] += seconds
                self._kept[work.trial] += 1
                began[:] = []
                if not self._stopping.goes_on(work, self._kept[work.trial]):
                    break
            held[:] = []
            self.account.evaluations[work.trial] = self._kept[work.trial]
            self.account.ended_s = loop.time()
            if len(self.account.evaluations) == len(self._kept):
                self._over.set()


# --- tables ---

MEASURED_GAIN = 1.36  # of 8 trials at batch size 1, on a CPU (docs/measurements.md)


def growth_of(gain: float, trials: int = 8) -> float:
    """s, from K t(b) / t(K b)."""
    return (trials / gain - 1) / (trials - 1)


def arms(
    work: Sequence[Work], machines: Machines, gain: float
) -> dict[str, Coroutine[Any, Any, Account]]:
    shared = {"share": 8, "growth": growth_of(gain)}
    return {
        f"this platform, up to 8 on a slot (gain {gain:g})": Platform(
            work, machines, **shared
        ).run(),
        "this platform, one on a slot": Platform(work, machines).run(),
        "one per GPU, goes on": OnePerGpu(work, machines, resumes=True).run(),
        "one per GPU, begins anew": OnePerGpu(work, machines, resumes=False).run(),
    }


def row(name: str, gpus: int, account: Account, least: float) -> str:
    cells = (
        str(gpus),
        name,
        f"{account.ended_s / 3600:.2f}",
        f"{account.ended_s / least:.2f}",
        f"{account.kept:.0%}",
        f"{account.lost:.1%}",
        str(account.preemptions),
        str(len(account.failed)),
    )
    return f"| {' | '.join(cells)} |"


HEAD = "| GPUs | way | makespan, h | times the first | kept | lost | preemptions | failed |"


def tables(trials: int, gpus: Sequence[int], every_h: float, gain: float) -> None:
    work = draw(trials, 0)
    for every_s in (NEVER, every_h * 3600):
        rare = every_s == NEVER
        print(f"{'no preemptions' if rare else f'each GPU preempted every {every_h:g} h'}\n")
        print(f"{HEAD}\n|{'---|' * HEAD.count(' | ')}---|")
        for count in gpus:
            machines, least = Machines(gpus=count, preempted_every_s=every_s), None
            for name, story in arms(work, machines, gain).items():
                account = simulated(story)
                least = least or account.ended_s
                print(row(name, count, account, least), flush=True)
        print()


# --- against a real sweep ---


def measured(folder: Path) -> tuple[list[Work], list[float], float]:
    """Trials of a sweep on two slots, as long as they took there; when each slot had started, and the last trial had
    ended, in seconds from when the first trial was drawn.
    """
    found, joined, ended, drawn = [], [], [], []
    for trial in sorted((folder / "trials").iterdir()):
        begun = json.loads((trial / "trial.json").read_text())
        drawn.append(begun["started"])
        ended.append(json.loads((trial / "outcome.json").read_text())["ended"])
        moments = [(trial / "attempt-1" / "attempt.json").stat().st_mtime]
        written = trial.glob("attempt-1/step-*/evaluation.json")
        moments += sorted(path.stat().st_mtime for path in written)
        joined.append(moments[0])
        seconds = tuple(later - sooner for sooner, later in zip(moments, moments[1:], strict=False))
        found.append(
            Work(trial=trial.name, parameters=FULL, seconds=seconds, losses=(1.0,) * len(seconds))
        )
    first = min(drawn)
    return found, [each - first for each in sorted(joined)[:2]], max(ended) - first


def check(trials: int, rows: int) -> None:
    """A real sweep on two CPU slots, and the simulation of its trials."""
    from arms import environment, machine, run_arm

    from tests.standing_in import write_sweep

    print(machine(), flush=True)
    work = Path(tempfile.mkdtemp(prefix="sim", dir="/tmp"))  # short: Ray's sockets
    try:
        more = "  sampler: random"
        file = write_sweep(work, trials, slots=2, share=1, rows=rows, more=more)
        run_arm(["-m", "sweeps", "run", str(file)], work / "log", environment(work, {}))
        (folder,) = (work / "runs").iterdir()
        found, started, took = measured(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    machines = Machines(gpus=2, start_s=(min(started), max(started)))
    simulation = simulated(Platform(found, machines, asha=False).run())
    alone = sum(sum(each.seconds) for each in found)
    print(f"{trials} trials on two slots, {alone:.1f} s of training and evaluating in all")
    print(f"slots had started after {started[0]:.1f} and {started[1]:.1f} s")
    print(f"makespan, real: {took:.1f} s; simulated: {simulation.ended_s:.1f} s")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2048)
    parser.add_argument("--gpus", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--preempted-h", type=float, default=4.0, help="of each GPU, on average")
    parser.add_argument("--gain", type=float, default=MEASURED_GAIN)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--rows", type=int, default=2400, help="of the real sweep")
    given = parser.parse_args(arguments)
    if given.check:
        check(min(given.trials, 16), given.rows)
    else:
        tables(given.trials, given.gpus, given.preempted_h, given.gain)


if __name__ == "__main__":
    main()
