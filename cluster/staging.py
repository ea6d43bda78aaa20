"""The folder that travels with a job: the platform's packages, and the files that a sweep needs."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from cluster import ClusterError

PACKAGES = ("sweeps", "trainables", "search_spaces", "cluster")
# Ray's dashboard refuses larger uploads (ray_constants.DASHBOARD_CLIENT_MAX_SIZE). It counts the
# zip; we count files,
# so that the answer does not depend on how well they compress.
MAX_UPLOAD_MIB = 100


@contextmanager
def stage(packages_root: Path, files: Mapping[str, Path]) -> Iterator[Path]:
    """A temporary folder to submit: the platform's packages from `packages_root`, and `files`
    (relative name: source).

    Raises ClusterError: a file is missing, a name leaves the folder, or all is more than
    MAX_UPLOAD_MIB.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-sweeps-job-") as temporary:
        folder = Path(temporary)
        for package in PACKAGES:
            shutil.copytree(
                packages_root / package,
                folder / package,
                ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
            )
        for name, source in files.items():
            relative = PurePosixPath(name)
            if relative.is_absolute() or ".." in relative.parts or not relative.parts:
                raise ClusterError(
                    f"{name}: a file that travels with a job needs a relative path inside its"
                    " folder"
                )
            if relative.parts[0] in PACKAGES:
                raise ClusterError(
                    f"{name}: {relative.parts[0]} is a package of the platform; choose another name"
                )
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(
                    source, target, ignore=shutil.ignore_patterns(".gitignore")
                )  # Ray would obey it
            elif source.is_file():
                shutil.copyfile(source, target)
            else:
                raise ClusterError(f"{source}: no such file")
        _check_size(folder)
        yield folder


def _check_size(folder: Path) -> None:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > MAX_UPLOAD_MIB * 2**20:
        largest = max(sizes, key=sizes.__getitem__)
        raise ClusterError(
            f"submit: {total / 2**20:.0f} MiB to send, of which {sizes[largest] / 2**20:.0f} in"
            f" {largest.relative_to(folder)}; {MAX_UPLOAD_MIB} can travel with a job: put data"
            " where every node reads it"
        )
