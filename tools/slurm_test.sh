#!/usr/bin/env bash
# Evaluate under Slurm.
set -euo pipefail

if (($# < 4)); then
    echo "usage: GPUS=8 bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]
  environment GPUS (processes in all), GPUS_PER_NODE (0: no GPU), CPUS_PER_TASK, SRUN_ARGS,
              TASKS_PER_NODE (without GPU), PORT, PYTHON" >&2
    exit 2
fi

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run_slurm "$1" "$2" "$TOOLS/test.py" "$3" "$4" --launcher slurm "${@:5}"
