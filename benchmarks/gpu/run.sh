#!/usr/bin/env bash
# Runs the benchmark with the kit of benchmarks.gpu.pack: needs Python 3.11 or 3.12, torch and transformers, and
# neither a network nor Java nor TorchServe. Arguments go to the driver; --help lists them.
set -euo pipefail
ROOT=$(readlink -f "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../..")
KIT=${GPU_KIT:-$ROOT/.bench/gpu-kit}
place=$(mktemp -d "${TMPDIR:-/tmp}/gpu-kit-XXXXXX")
trap 'rm -rf "$place"' EXIT
export PYTHONPATH=$ROOT
"${PYTHON:-python3}" -P -m benchmarks.gpu.unpack "$KIT" "$place"

JAVA_HOME=$place/java "$place/env/bin/python" -P -m benchmarks.gpu \
  --tokenizer "$place/tokenizer" "$@" &
driver=$!
trap 'kill -TERM "$driver" 2>/dev/null || true' INT TERM HUP
status=0
wait "$driver" || status=$?
while kill -0 "$driver" 2>/dev/null; do # a signal ended the wait, and the driver still has a server to stop
  status=0
  wait "$driver" || status=$?
done
exit "$status"
