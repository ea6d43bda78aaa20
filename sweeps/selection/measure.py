"""What candidates are ranked by: the validation loss, or a metric that the sweep file names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

VAL_LOSS = "val_loss"
WORDS = {
    VAL_LOSS: "validation loss",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "weighted_f1": "weighted F1",
    "auroc": "AUROC",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "bleu": "BLEU",
    "token_f1": "token F1",
    "json_valid": "valid JSON",
    "json_schema": "JSON of the schema",
    "sql_execution": "execution accuracy",
    "tool_calls": "right tool calls",
    "f1": "F1",
    "rmse": "RMSE",
    "mae": "MAE",
    "pearson": "Pearson's correlation",
    "spearman": "Spearman's correlation",
}
Mode = Literal["min", "max"]


class Measured(Protocol):
    """An evaluation, as far as ranking goes."""

    @property
    def val_loss(self) -> float | None: ...

    @property
    def metrics(self) -> Mapping[str, float | None]: ...


def metric_words(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


@dataclass(frozen=True, kw_only=True)
class Measure:
    name: str = VAL_LOSS
    mode: Mode = "min"

    @property
    def is_loss(self) -> bool:
        return self.name == VAL_LOSS

    @property
    def best_words(self) -> str:
        """`the lowest validation loss`, without its article."""
        return f"{'lowest' if self.mode == 'min' else 'highest'} {metric_words(self.name)}"

    def of(self, point: Measured) -> float | None:
        """None where it was not measured, or is no number."""
        value = point.val_loss if self.is_loss else point.metrics.get(self.name)
        return None if value is None or not math.isfinite(value) else value

    def signed(self, value: float) -> float:
        """So that less is better."""
        return value if self.mode == "min" else -value

    def key(self, point: Measured) -> tuple[float, float]:
        """The best first; what was not measured last, and of equals the lower loss first."""
        value = self.of(point)
        loss = math.inf if point.val_loss is None else point.val_loss
        return (math.inf if value is None else self.signed(value), loss)
