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
