"""How many padded tokens a micro-batch may have."""

MICRO_BATCH_TOKENS = {
    "cpu": 4096,
    "cuda": 16384,
}  # of a pass, by device, where `train.max_tokens` says nothing


class TokenBudget:
    """Padded tokens of a pass: halved when memory runs out, and whole again when fewer trials are
    on board than were then. What else took the memory may be gone too: after some steps without
    trouble, twice the tokens are tried.
    """

    PATIENCE = 100  # steps

    def __init__(self, most: int) -> None:
        self._most = self.tokens = most
        self._aboard = self._steps = 0

    def halve(self, aboard: int) -> None:
        self.tokens, self._aboard, self._steps = self.tokens // 2, aboard, 0

    def begin(self, aboard: int) -> None:
        """A step of so many trials."""
        if aboard < self._aboard:
            self.tokens, self._aboard = self._most, 0

    def made_step(self) -> None:
        self._steps += 1
        if self.tokens < self._most and self._steps >= self.PATIENCE:
            self.tokens, self._steps = min(2 * self.tokens, self._most), 0
