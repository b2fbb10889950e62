#!/usr/bin/env bash
# Sets up, checks and runs all tests; arguments go to pytest.
set -euo pipefail
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib.sh"
case "${1:-}" in -h | --help)
  echo "usage: scripts/test.sh [PYTEST ARGUMENT…]    scripts/check.sh, then pytest; -m 'not server' leaves Java out"
  exit ;;
esac
cd "$ROOT"
unset PYTHONDONTWRITEBYTECODE
INSTALL+=(--no-compile) # what is imported is compiled then, and kept: most of what is installed never is
ensure_venv requirements.txt requirements-dev.txt
ensure_vllm & # the checks take one core
installing=$!
trap 'kill "$installing" 2>/dev/null' EXIT
scripts/check.sh
wait "$installing"
trap - EXIT
export OMP_WAIT_POLICY=passive # the workers' threads share the cores: one that waits must not spin on them
# Much of a file of server tests is waiting.
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile --durations=15 "$@"
