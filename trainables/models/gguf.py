"""Language models as GGUF files, by llama.cpp's own converter."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from trainables.errors import InputError, NotExported
from trainables.models.base import LANGUAGE_MODEL, BaseSpec

QUANTISATIONS = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")
"""What the converter itself writes (its `--outtype`)."""
OF_DTYPE = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
ENVIRONMENT = "CONVERT_HF_TO_GGUF"  # variable with the converter's path


def check_quantisations(given: Sequence[str]) -> None:
    for each in given:
        if each not in QUANTISATIONS:
            raise InputError(
                f"--quantise: {each!r} is nothing that convert_hf_to_gguf.py writes; allowed:"
                f" {', '.join(QUANTISATIONS)}"
            )


def find_converter(given: str | None) -> Path:
    """convert_hf_to_gguf.py: the `given` path, else that of the environment variable. Raises
    InputError where there is none.
    """
    named = given or os.environ.get(ENVIRONMENT)
    if not named:
        raise InputError(
            "--converter: give the path of llama.cpp's convert_hf_to_gguf.py, here or as"
            f" {ENVIRONMENT}; it comes with a clone of llama.cpp, and in vendor/llama.cpp of the"
            " source distribution of llama-cpp-python (`pip download --no-deps --no-binary :all:"
            " llama-cpp-python`)"
        )
    path = Path(named).expanduser()
    if not path.is_file():
        raise InputError(f"--converter: there is no file {path}")
    return path


def why_no_gguf(spec: BaseSpec) -> str | None:
    """Why there can be no GGUF file that is loaded again, in words; None where nothing is known
    against it.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    if spec.auto_class != LANGUAGE_MODEL:
        return "a GGUF file is a causal language model here"
    # llama.cpp and transformers write some of them otherwise
    kind = spec.config().get_text_config().model_type
    known = {name.replace("_", "") for name in GGUF_CONFIG_MAPPING}
    if kind.removesuffix("_text").replace("_", "") not in known:
        return f"transformers loads no GGUF file of {kind}, so that it could not be measured"
    return None


def write_gguf(converter: Path, model: Path, file: Path, quantisation: str) -> None:
    """Write the model in the folder `model` to `file`. Raises NotExported where the converter
    fails.
    """
    command = [sys.executable, str(converter), str(model), "--outfile", str(file)]
    done = subprocess.run(
        [*command, "--outtype", quantisation], capture_output=True, text=True, check=False
    )
    if done.returncode or not file.is_file():
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise NotExported(f"{converter.name} did not write {quantisation}: {last[:300]}")


def gguf_code(folder: str, file: str) -> list[str]:
    """Python that loads `file` of `folder`, as `model`."""
    return [
        "import torch",
        "from transformers import AutoModelForCausalLM",
        (
            f"model = AutoModelForCausalLM.from_pretrained({folder!r}, gguf_file={file!r},"
            " dtype=torch.float32).eval()"
        ),
    ]
