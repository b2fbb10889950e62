#!/usr/bin/env bash
# From nothing to served answers; see --help.
set -euo pipefail
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib.sh"
ensure_venv requirements.txt
PYTHONPATH=$ROOT exec "$VENV/bin/python" -P -m serving.quickstart "$@"
