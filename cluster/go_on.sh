#!/usr/bin/env bash
# go_on.sh FILE STORAGE [key=value ...]: run a sweep, or go on with the one that an earlier attempt of this job
# began. STORAGE (a folder or URL) is of this job alone: the first sweep in it is the one.
set -euo pipefail
file=$1 storage=$2
shift 2
begun=$(
    python - "$storage" <<'PYTHON'
import sys
from fsspec.core import url_to_fs

files, root = url_to_fs(sys.argv[1].rstrip("/"))
for found in sorted(files.glob(f"{root}/*/sweep.yaml"))[:1]:
    print(sys.argv[1].rstrip("/") + found.removesuffix("/sweep.yaml").removeprefix(root))
PYTHON
)
if [ -n "$begun" ]; then
    exec python -m sweeps resume "$begun" "$@"
fi
exec python -m sweeps run "$file" "storage=$storage" "$@"
