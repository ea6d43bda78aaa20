"""Whether trials fail for one and the same reason."""

import re
from collections import Counter
from collections.abc import Sequence


def common_cause(reasons: Sequence[str], least: int = 3) -> str | None:
    """The cause that `least` or more failures share, or None. Trials' names, numbers, paths and
    logs do not tell causes apart.
    """
    causes = Counter(map(_cause, reasons))
    cause, count = causes.most_common(1)[0] if causes else ("", 0)
    return next(reason for reason in reasons if _cause(reason) == cause) if count >= least else None


def _cause(reason: str) -> str:
    words = re.sub(r" \(log: [^)]*\)$", "", reason)
    words = re.sub(r"(\w+:)?(/[^\s/:]+)+", "PATH", words)
    return re.sub(r"0x[0-9a-f]+|[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "N", words)
