#!/usr/bin/env bash
# Measures a recipe's settings on this machine: scripts/tune.sh recipes/sentiment, or --help for the rest.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib.sh"

# -P: the working directory is the user's, and a module that lies there is not ours.
export PYTHONPATH=$ROOT
for argument in "$@"; do
  case $argument in
  -h | --help) exec "$(find_python)" -P -m tuning --help ;;
  esac
done
ensure_venv requirements.txt
exec "$VENV/bin/python" -P -m tuning "$@"
