#!/usr/bin/env bash
# Evaluate on several processes of this machine, or of several machines.
set -euo pipefail

if (($# < 3)); then
    echo "usage: bash tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of test.py]
  PROCESSES   GPUs of this machine, or CPU processes where there is none
  environment NNODES, NODE_RANK, MASTER_ADDR, PORT (several machines), PYTHON" >&2
    exit 2
fi

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run_distributed "$3" "$TOOLS/test.py" "$1" "$2" --launcher pytorch "${@:4}"
