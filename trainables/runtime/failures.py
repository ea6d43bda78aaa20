"""What an error is the end of: a trial, or the process that it happened in."""

import re

# errors after which a process gets no more out of its device, as torch words those that it has no
# class for
BROKEN = re.compile(
    r"\b(CUDA|HIP|cuDNN|cuBLAS|cuSOLVER|cuSPARSE|cuFFT|MIOpen|NCCL|RCCL)( driver| internal)?"
    r" error\b"
    r"|\b(CUDNN|CUBLAS|CUSOLVER|CUSPARSE|CUFFT|MIOPEN)_STATUS_|Triton Error|device-side assert",
    re.IGNORECASE,
)


# how the reason of a trial begins that needs more memory than a slot has
TOO_LARGE = "it does not fit"


def needs_more_memory(reason: str) -> bool:
    """Whether a trial failed for want of memory: that is no fault of its slot, and another like it
    would fail too.
    """
    return reason.startswith(TOO_LARGE)


def more_killed(before: tuple[str, int | None] | None, now: tuple[str, int | None] | None) -> bool:
    """Whether a node's kernel has ended processes in between as memory ran out: the node, and how
    many it had ended by then. Of two nodes nothing is known.
    """
    if before is None or now is None or before[0] != now[0]:
        return False
    return before[1] is not None and now[1] is not None and now[1] > before[1]


def ends_worker(error: BaseException | None) -> bool:
    """Whether a process can get nothing more out of its accelerator, or of the other workers, after
    `error`: it is no trial's end but the worker's, which Ray Train starts anew.
    """
    import torch

    from trainables.engine.shared import Wrecked

    if error is None or isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, torch.AcceleratorError | torch.distributed.DistError | Wrecked):
        return True
    return (
        isinstance(error, RuntimeError)
        and bool(BROKEN.search(str(error)))
        or ends_worker(error.__cause__)
    )


def first_line(error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return f"{type(error).__name__}: {first}"[:500]
