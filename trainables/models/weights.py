"""Weights are read from safetensors alone: a pickled file runs code of whoever made it."""

import shlex
from pathlib import Path

from trainables.errors import InputError

PICKLED = "*.bin"
"""Files of torch.save, as transformers and PEFT name them."""
NO_SAFETENSORS = "cannot be loaded with `safetensors`"
"""What transformers says of a model of the hub that has none."""


def refuse_pickled(name: str, folder: Path) -> None:
    """Raise InputError where the weights of `name` in `folder` are pickled, with the line that
    converts them.
    """
    if any(folder.glob("*.safetensors")) or not (files := sorted(folder.glob(PICKLED))):
        return
    stem = "adapter_model" if files[0].name.startswith("adapter_model") else "pytorch_model"
    raise InputError(
        f"model.name: {name} has its weights in {files[0].name}, which is pickled and may run code"
        f" when it is read: only *.safetensors are. Convert it: {conversion(folder, stem)}"
    )


def pickled_on_hub(name: str) -> InputError:
    folder = Path(name.rsplit("/", 1)[-1])
    return InputError(
        f"model.name: {name} has no *.safetensors on the hub; what is pickled may run code when it"
        f" is read, and is not. Convert it: hf download {shlex.quote(name)} --local-dir"
        f" {shlex.quote(str(folder))} && {conversion(folder, 'pytorch_model')}; and set model.name:"
        f" ./{folder}"
    )


def conversion(folder: Path, stem: str) -> str:
    """The command that writes STEM*.bin as safetensors beside it. It reads tensors and nothing
    else, as torch does with `weights_only`.
    """
    target = "adapter_model" if stem == "adapter_model" else "model"
    code = (
        "import pathlib, torch; from safetensors.torch import save_file;"
        f" f = pathlib.Path({str(folder)!r});"
        " save_file({n: t.clone().contiguous()"
        f" for p in sorted(f.glob('{stem}*.bin'))"
        " for n, t in torch.load(p, map_location='cpu', weights_only=True).items()},"
        f" f / '{target}.safetensors', {{'format': 'pt'}})"
    )
    return f"python -c {shlex.quote(code)}"
