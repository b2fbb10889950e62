#!/usr/bin/env bash
# Serves archives with TorchServe in the foreground; see --help.
set -euo pipefail
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib.sh"
ensure_venv requirements.txt
PYTHONPATH=$ROOT exec "$VENV/bin/python" -P -m serving "$@"
