"""A language model on tasks of EleutherAI's Language Model Evaluation Harness (lm-eval; Gao et al.,
https://github.com/EleutherAI/lm-evaluation-harness).
"""

import importlib.util
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainables.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "lm_eval"
ERROR = "_stderr"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is run."""

    tasks: tuple[str, ...]
    include: Path | None = None
    """A folder, or a file, of tasks of one's own (YAML)."""
    limit: int | None = None
    """Samples of each task, at most."""
    shots: int | None = None
    """Examples before each question; None: as the task says."""
    chat: bool = False
    """Whether questions are put as a conversation, by the tokenizer's chat template."""
    batch_size: int = 8


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """A metric of a task."""

    task: str
    filter: str
    metric: str
    value: float
    standard_error: float | None
    each: np.ndarray | None
    """Its value for every sample, where it is their mean [N]."""
    samples: int
    shots: int
    version: str
    higher_is_better: bool | None


def open_tasks(asked: Asked) -> "TaskManager":
    """What knows the tasks. Raises InputError where the harness is not installed, or does not know
    one of them.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise InputError(
            "evaluate: needs EleutherAI's lm-eval, which is not installed; install it with: pip"
            " install '.[harness]'"
        )
    if asked.include is not None and not asked.include.exists():
        raise InputError(f"--include: {asked.include}: no such file or folder")
    from lm_eval.tasks import TaskManager

    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    include = asked.include
    if include is not None and include.is_file():
        include = include.parent
    manager = TaskManager(include_path=None if include is None else str(include))
    for name in asked.tasks:
        if name not in manager.all_tasks:
            known = len(manager.all_tasks)
            raise InputError(
                f"--tasks: {name!r} is none of the {known} tasks that lm-eval knows; your own are"
                f" given by --include.{did_you_mean(name, manager.all_tasks)}"
            )
    return manager


def run_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    manager: "TaskManager",
    asked: Asked,
) -> list[TaskScore]:
    """Scores of a language model that is in eval mode on its device. Seeds are the harness's own,
    so that two models are given the same examples.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    found = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=asked.batch_size),  # type: ignore[arg-type]
        tasks=list(asked.tasks),
        num_fewshot=asked.shots,
        limit=asked.limit,
        apply_chat_template=asked.chat,
        task_manager=manager,
        bootstrap_iters=1000,
        log_samples=True,
    )
    assert found is not None, "there is one process"
    return list(_scores(found))


def _scores(found: Mapping[str, Any]) -> Iterator[TaskScore]:
    for task, numbers in found["results"].items():
        better = found["higher_is_better"].get(task, {})
        for key, value in numbers.items():
            metric, _, name = key.partition(",")
            if not name or metric.endswith(ERROR) or not isinstance(value, int | float):
                continue
            error = numbers.get(f"{metric}{ERROR},{name}")
            samples = found.get("samples", {}).get(task, [])
            yield TaskScore(
                task=task,
                filter=name,
                metric=metric,
                value=float(value),
                standard_error=float(error) if isinstance(error, int | float) else None,
                each=_each(samples, metric, name, float(value)),
                samples=int(numbers.get("sample_len") or 0),
                shots=int(found["n-shot"].get(task) or 0),
                version=str(found["versions"].get(task) or ""),
                higher_is_better=better.get(metric),
            )


def _each(
    samples: Sequence[Mapping[str, Any]], metric: str, name: str, value: float
) -> np.ndarray | None:
    """The metric of every sample [N]; None where it is something else than their mean."""
    own = sorted((each for each in samples if each["filter"] == name), key=lambda e: e["doc_id"])
    values = [each.get(metric) for each in own]
    if not values or not all(isinstance(each, int | float) for each in values):
        return None
    found = np.array(values, dtype=float)
    return found if math.isclose(found.mean(), value, rel_tol=1e-6, abs_tol=1e-9) else None


def difference(after: TaskScore, before: TaskScore) -> tuple[float, float | None, bool]:
    """After less before, its standard error (None: unknown), and whether that is paired: of the
    differences sample by sample.
    """
    gain = after.value - before.value
    a, b = after.each, before.each
    if a is not None and b is not None and len(a) == len(b) > 1:
        return gain, float(np.std(a - b, ddof=1) / math.sqrt(len(a))), True
    if after.standard_error is None or before.standard_error is None:
        return gain, None, False
    return gain, math.hypot(after.standard_error, before.standard_error), False
