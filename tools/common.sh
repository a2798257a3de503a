# Sourced by dist_*.sh and slurm_*.sh. Sets TOOLS (the folder of train.py and test.py) and PYTHON.

TOOLS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

# PYTHON if given, else the active environment, else the .venv beside tools/, else python3.
if [[ -z "${PYTHON:-}" ]]; then
    if [[ -n "${VIRTUAL_ENV:-}" || -n "${CONDA_PREFIX:-}" ]]; then
        PYTHON=python
    elif [[ -x "$TOOLS/../.venv/bin/python" ]]; then
        PYTHON="$TOOLS/../.venv/bin/python"
    else
        PYTHON=python3
    fi
fi

has_gpu() {
    [[ -n "${CUDA_VISIBLE_DEVICES-all}" && "${CUDA_VISIBLE_DEVICES-all}" != -1 ]] &&
        nvidia-smi -L >/dev/null 2>&1
}

# share_cores N: without a GPU the N processes of this machine divide its cores among them. Beside
# a GPU, torchrun's and MMEngine's own default of one thread is right.
share_cores() {
    if [[ -z "${OMP_NUM_THREADS:-}" ]]; then
        local threads=1
        has_gpu || threads=$(($(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) / $1))
        export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
    fi
    # As MMEngine would set it, in every process and with a warning from each.
    export MKL_NUM_THREADS="${MKL_NUM_THREADS:-$OMP_NUM_THREADS}"
}

# run_distributed N SCRIPT ARGUMENT...: N processes on this machine, by torchrun.
run_distributed() {
    local processes=$1
    local rendezvous restarts=()
    shift
    if [[ "${MAX_RESTARTS:-0}" != 0 ]]; then
        if [[ "${NNODES:-1}" != 1 ]]; then
            echo "MAX_RESTARTS is for one machine, and NNODES=$NNODES: leave one of them out" >&2
            exit 2
        fi
        restarts=(--max_restarts "$MAX_RESTARTS")
        # Else processes that are started again find the addresses of those that died (gloo).
        export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    fi
    share_cores "$processes"
    if [[ "${NNODES:-1}" == 1 && -z "${PORT:-}" ]]; then
        # A free port, so that two jobs on one machine do not meet.
        rendezvous=(--standalone)
    elif [[ "${NNODES:-1}" != 1 && -z "${MASTER_ADDR:-}" ]]; then
        echo "NNODES=$NNODES needs MASTER_ADDR, the host of node 0, and NODE_RANK on each node" >&2
        exit 2
    else
        rendezvous=(--nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
                    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}")
    fi
    exec "$PYTHON" "$TOOLS/torchrun.py" "${rendezvous[@]}" "${restarts[@]}" \
        --nproc_per_node "$processes" "$@"
}

# run_slurm PARTITION JOB_NAME SCRIPT ARGUMENT...: GPUS processes by srun; GPUS_PER_NODE=0 for none.
run_slurm() {
    local gpus=${GPUS:-8}
    local per_node=${GPUS_PER_NODE:-8}
    local resources=()
    local processes=$per_node
    if [[ "$per_node" == 0 ]]; then
        processes=${TASKS_PER_NODE:-$gpus}
    else
        ((gpus < per_node)) && per_node=$gpus && processes=$gpus
        resources=("--gres=gpu:$per_node")
    fi
    # SRUN_ARGS is a list of words by intent.
    # shellcheck disable=SC2206
    local extra=(${SRUN_ARGS:-})
    [[ -n "${PORT:-}" ]] && export MASTER_PORT=$PORT
    exec srun -p "$1" --job-name="$2" "${resources[@]}" --ntasks="$gpus" \
        --ntasks-per-node="$processes" --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 "${extra[@]}" "$PYTHON" -u "${@:3}"
}
