#!/usr/bin/env bash
# Runs Python with the kit of benchmarks.gpu.pack, in this repository; arguments are Python's own. Needs Python 3.11 or
# 3.12, torch and transformers, and neither a network nor Java nor TorchServe.
set -euo pipefail
ROOT=$(readlink -f "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../..")
KIT=${GPU_KIT:-$ROOT/.bench/gpu-kit}
place=$(mktemp -d "${TMPDIR:-/tmp}/gpu-kit-XXXXXX")
trap 'rm -rf "$place"' EXIT
export PYTHONPATH=$ROOT
"${PYTHON:-python3}" -P -m benchmarks.gpu.unpack "$KIT" "$place"

export JAVA_HOME=$place/java GPU_KIT_TOKENIZER=$place/tokenizer
"$place/env/bin/python" -P "$@" &
running=$!
trap 'kill -TERM "$running" 2>/dev/null || true' INT TERM HUP
status=0
wait "$running" || status=$?
while kill -0 "$running" 2>/dev/null; do # a signal ended the wait, and what runs still has a server to stop
  status=0
  wait "$running" || status=$?
done
exit "$status"
