#!/usr/bin/env bash
# Train on several processes of this machine, or of several machines.
set -euo pipefail

if (($# < 2)); then
    echo "usage: bash tools/dist_train.sh CONFIG PROCESSES [options of train.py]
  PROCESSES   GPUs of this machine, or CPU processes where there is none
  environment NNODES, NODE_RANK, MASTER_ADDR, PORT (several machines), PYTHON,
              MAX_RESTARTS (start all again, from the last checkpoint, when one has failed)" >&2
    exit 2
fi

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run_distributed "$2" "$TOOLS/train.py" "$1" --launcher pytorch "${@:3}"
