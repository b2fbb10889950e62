# Shared by the scripts, sourced: where the repository is, and its virtual environment.
# shellcheck shell=bash

ROOT=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")") # not by cd, which prints where CDPATH is exported
VENV=$ROOT/.venv
INSTALL=("$VENV/bin/pip" install --progress-bar off)

say() { printf '%s\n' "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "Python 3.11 or 3.12 is needed and was not found; set PYTHON to one"
}

# ensure_venv FILE...: the virtual environment holds what these requirement files pin. A stamp of each file's
# content makes the next run free, and free of the network.
ensure_venv() {
  local file log=$VENV/install.log missing=()
  for file in "$@"; do
    is_installed "$file" || missing+=("$file")
  done
  if [ ${#missing[@]} -eq 0 ]; then return; fi
  if [ ! -x "$VENV/bin/pip" ]; then make_venv; fi
  say "installing ${missing[*]} (once; some minutes)"
  run_showing_progress "$log" install_in_order "${missing[@]}" ||
    die "the installation failed: $(grep -i '^error' "$log" | head -n 1); see .venv/install.log"
  for file in "${missing[@]}"; do stamp_of "$file" >"$VENV/.installed-$file"; done
}

# install_in_order FILE...: torch by itself and first; asked for by another package it would come in another build.
install_in_order() {
  cd "$ROOT" &&
    "${INSTALL[@]}" "$(grep -o '^torch==[^ ]*' requirements.txt)" &&
    "${INSTALL[@]}" --constraint constraints.txt "${@/#/--requirement=}"
}

# is_installed FILE: by its stamp, and because what it pins is there: a package may have been removed since.
is_installed() {
  local name version
  [ "$(cat "$VENV/.installed-$1" 2>/dev/null)" = "$(stamp_of "$1")" ] || return 1
  while IFS='=' read -r name _ version; do
    (shopt -s nocaseglob && compgen -G "$VENV/lib/python3*/site-packages/${name//-/_}-$version*.dist-info" >/dev/null) || return 1
  done < <(grep -oE '^[A-Za-z0-9_.-]+==[^ ]+' "$ROOT/$1")
}

# ensure_vllm: vLLM too, which is optional and whose list is whole.
ensure_vllm() {
  if is_installed requirements-vllm.txt; then return; fi
  say "installing requirements-vllm.txt (once; a minute)"
  run_showing_progress "$VENV/install-vllm.log" \
    "${INSTALL[@]}" --no-deps --requirement "$ROOT/requirements-vllm.txt" ||
    die "the installation failed: $(grep -i '^error' "$VENV/install-vllm.log" | head -n 1); see .venv/install-vllm.log"
  stamp_of requirements-vllm.txt >"$VENV/.installed-requirements-vllm.txt"
}

stamp_of() { (cd "$ROOT" && cat "$1" constraints.txt | sha256sum); }

make_venv() {
  local python
  python=$(find_python)
  "$python" -c 'import ensurepip' 2>/dev/null || die "$python cannot make a virtual environment: apt-get install python3-venv"
  say "making a virtual environment in .venv"
  "$python" -m venv "$VENV" || die "the virtual environment could not be made"
}

# run_showing_progress LOG COMMAND...: a line each time pip turns to another package, then the exit status.
run_showing_progress() {
  local log=$1 last='' line pid
  shift
  set -m # a process group of its own, which ends with the script: bash's children outlive it
  "$@" >"$log" 2>&1 &
  set +m
  pid=$!
  # shellcheck disable=SC2064 # the local is gone by then
  trap "kill -- -$pid" EXIT
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    line=$(grep -oE '^(Collecting|Installing) [^ ]+' "$log" 2>/dev/null | tail -n 1 || true)
    if [ -n "$line" ] && [ "$line" != "$last" ]; then
      say "  $line"
      last=$line
    fi
  done
  trap - EXIT
  wait "$pid"
}
