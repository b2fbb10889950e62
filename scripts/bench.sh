#!/usr/bin/env bash
# Measures this project beside its peers; see --help.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib.sh"
ensure_venv requirements.txt requirements-dev.txt
case " $* " in *" generation "* | *" all "*) ensure_vllm ;; esac
PYTHONPATH=$ROOT exec "$VENV/bin/python" -P -m benchmarks "$@"
