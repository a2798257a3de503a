#!/usr/bin/env bash
# Train under Slurm.
set -euo pipefail

if (($# < 3)); then
    echo "usage: GPUS=8 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of train.py]
  environment GPUS (processes in all), GPUS_PER_NODE (0: no GPU), CPUS_PER_TASK, SRUN_ARGS,
              TASKS_PER_NODE (without GPU), PORT, PYTHON" >&2
    exit 2
fi

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run_slurm "$1" "$2" "$TOOLS/train.py" "$3" --launcher slurm "${@:4}"
