#!/bin/sh
# From rows to a served model in ten commands.
#
#   sh docs/whole-path.sh SWEEP.yaml QUESTIONS NEW OUT
#
# SWEEP.yaml: a sweep over conversations (task instruction) with a test split and `metrics`.
# QUESTIONS: rows to be answered. NEW: rows of today, to be held against those of the sweep.
# OUT: a folder for what is made. PYTHON, PORT: of the commands, and of the service.
set -eu
file=$1 questions=$2 new=$3 out=$4
python=${PYTHON:-python} port=${PORT:-8000}
sweeps() { "$python" -m sweeps "$@"; }
mkdir -p "$out"

sweeps check "$file"                                      # 1: is all as it should be?
folder=$(sweeps run "$file" | tail -n 1)                  # 2: search, choose, measure
sweeps best "$folder"                                     # 3: who won, and why
sweeps samples "$folder" --rows 3                         # 4: what do they write?
sweeps verify "$folder"                                   # 5: does it load to the number shown?
sweeps export "$folder" --to "$out/model" --merge         # 6: weights for other software
sweeps predict "$folder" "$questions" --out "$out/answers.jsonl"           # 7: answer a file
ship=0; sweeps gate "$folder" --markdown "$out/gate.md" || ship=$?         # 8: ship it?
drift=0; sweeps monitor "$folder" "$new" || drift=$?                       # 9: is today like then?
"$python" -m sweeps serve "winner=$folder" --port "$port" > "$out/serve.log" 2>&1 &  # 10: serve it
server=$!
trap 'kill "$server"; wait "$server" || true' EXIT

"$python" - "$port" "$server" <<'CLIENT'
import json, os, sys, time, urllib.error, urllib.request
url, server = f"http://127.0.0.1:{sys.argv[1]}", int(sys.argv[2])
while True:  # until it answers, or is gone
    os.kill(server, 0)
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5)
        break
    except (urllib.error.URLError, OSError):
        time.sleep(1)
body = {"model": "winner", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
request = urllib.request.Request(
    f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
)
print(json.load(urllib.request.urlopen(request))["choices"][0]["message"])
CLIENT
[ "$ship" -le 1 ] && [ "$drift" -le 1 ]   # 0: ship, and like then; 1: do not, or drifted
echo "ship: $ship, drift: $drift, folder: $folder"
