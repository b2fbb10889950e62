#!/usr/bin/env bash
# Builds an archive for TorchServe: scripts/archive.sh recipes/sentiment, or --help for the rest.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/lib.sh"

# -P: the working directory is the user's, and a module that lies there is not ours.
export PYTHONPATH=$ROOT
for argument in "$@"; do
  case $argument in
  -h | --help) exec "$(find_python)" -P -m archiver build --help ;;
  esac
done
ensure_venv requirements.txt
exec "$VENV/bin/python" -P -m archiver build "$@"
