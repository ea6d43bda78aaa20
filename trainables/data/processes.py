"""Work on many rows by as many processes as there are cores, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from trainables.errors import InputError

if TYPE_CHECKING:
    from concurrent.futures import Executor

Item = TypeVar("Item")
Result = TypeVar("Result")

MANY = 20_000  # rows; fewer are done before another process would have started


class Processes:
    """Of one preparation; they start when they are first needed, and end with the `with`."""

    def __init__(self) -> None:
        self._executor: Executor | None = None
        self._open = ExitStack()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    @property
    def count(self) -> int:
        from joblib.externals.loky import cpu_count

        return cpu_count()

    def pay_off(self, rows: int) -> bool:
        """Whether so many rows take longer than the processes need to start."""
        return self.count > 1 and rows >= MANY

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The function of each item, in order; few of them are under way or done at a time, so that
        memory does not grow where results are slow to be taken.
        """
        from joblib.externals.loky.process_executor import BrokenProcessPool

        executor = self._started()
        under_way: deque[Future[Result]] = deque()
        try:
            for item in items:
                under_way.append(executor.submit(function, item))
                if len(under_way) == 2 * self.count:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool:
            raise InputError(
                "data: a process that reads or tokenises rows was killed, perhaps for want of"
                " memory; give it more, or fewer cores"
            ) from None
        finally:
            for each in under_way:
                each.cancel()

    def _started(self) -> "Executor":
        if self._executor is None:
            from joblib.externals.loky import ProcessPoolExecutor

            # there is a process for each core, so that a tokenizer needs no threads of its own
            self._executor = ProcessPoolExecutor(
                self.count, env={"TOKENIZERS_PARALLELISM": "false"}
            )
            self._open.callback(self._executor.shutdown, kill_workers=True)
        return self._executor
