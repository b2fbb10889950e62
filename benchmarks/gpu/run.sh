#!/usr/bin/env bash
# Runs the benchmark with the kit of benchmarks.gpu.pack. Arguments go to the driver; --help lists them.
set -euo pipefail
exec "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/with_kit.sh" -m benchmarks.gpu "$@"
