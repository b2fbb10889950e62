#!/usr/bin/env bash
# Lint, types and shell scripts, without the tests.
set -euo pipefail
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib.sh"
case "${1:-}" in -h | --help)
  echo "usage: scripts/check.sh    ruff, mypy --strict and shellcheck over the repository"
  exit ;;
esac
cd "$ROOT"
ensure_venv requirements.txt requirements-dev.txt
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check --quiet . || die "ruff format would change files: .venv/bin/ruff format ."
"$VENV/bin/mypy"
"$VENV/bin/shellcheck" --external-sources --source-path=SCRIPTDIR scripts/*.sh benchmarks/gpu/*.sh serving/path/* .ci/run
