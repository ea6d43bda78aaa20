"""The README.md of what was exported."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.use.export import Exported

LIBRARIES = {"peft": "peft", "transformers": "transformers", "gguf": "gguf", "onnx": "onnx"}


def export_card(exported: "Exported", base: str, code: Sequence[Sequence[str]]) -> str:
    """What it is, what it was measured to give, and the Python that loads each part of it."""
    lines = [
        "---",
        f"base_model: {base}",
        f"library_name: {LIBRARIES[exported.format]}",
        "---",
        f"# {exported.sweep}: {exported.model}",
        "",
        f"Trained with {exported.method}. When the checkpoint was saved, its validation loss was"
        f" {exported.reported:.8g}. What lies here was loaded again in a fresh process, by the code"
        " below, and scored on the same rows:",
        "",
        "| what | validation loss | drift | limit |",
        "|---|---|---|---|",
        *(
            f"| {each.words} | {each.loss:.8g} | {each.drift:+.2g} | {each.limit:g} |"
            for each in exported.measured
        ),
        "",
        *(f"{note}.\n" for note in exported.notes),
        "## How to load it",
        "",
    ]
    for each, python in zip(exported.measured, code, strict=True):
        lines += [f"{each.words}:", "", "```python", *python, "```", ""]
    return "\n".join(lines)
