"""How many padded tokens a micro-batch may have."""

# padded tokens of a micro-batch, by device, where `train.max_tokens` says nothing
MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}


class TokenBudget:
    """Padded tokens of a micro-batch: halved when memory runs out, and whole again when the group
    has fewer trials than it had then. What else took the memory may be gone too: after some steps
    without trouble, twice the tokens are tried.
    """

    PATIENCE = 100  # steps

    def __init__(self, most: int) -> None:
        self._most = self.tokens = most
        self._trials = self._steps = 0

    def halve(self, trials: int) -> None:
        self.tokens, self._trials, self._steps = self.tokens // 2, trials, 0

    def begin(self, trials: int) -> None:
        """A step of so many trials."""
        if trials < self._trials:
            self.tokens, self._trials = self._most, 0

    def made_step(self) -> None:
        self._steps += 1
        if self.tokens < self._most and self._steps >= self.PATIENCE:
            self.tokens, self._steps = min(2 * self.tokens, self._most), 0
