#!/usr/bin/env bash
# Test on several machines of a Slurm cluster. On each one vLLM serves the ranker's model, and takes the crops of that
# machine's share of the images; what was found is put together at the end.
#   NODES=4 SRUN_ARGS='--gres=gpu:8 --time=8:00:00' tools/slurm_test.sh CONFIG CHECKPOINT|none MODEL [options of tools/test.py]
# CONFIG asks http://127.0.0.1:PORT/v1 (configs/rar_lvis_server.py); its other parts run in PROCESSES processes a machine (1).
# PORT=8000 and VLLM_ARGS='--data-parallel-size 8 --max-logprobs 20 --gpu-memory-utilization 0.8' are for `vllm serve`.
# Run it again to go on where it was: every machine keeps its answers in WORK_DIR/ranker_answers.<machine>.sqlite.
set -euo pipefail

if [ "${1-}" != --on-node ]; then
    if [ $# -lt 3 ]; then
        sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
        exit 2
    fi
    # shellcheck disable=SC2086 # several arguments in one variable
    exec srun --nodes="${NODES:-1}" --ntasks-per-node=1 --kill-on-bad-exit=1 ${SRUN_ARGS-} bash "$0" --on-node "$@"
fi

config=$2 checkpoint=$3 model=$4 port=${PORT:-8000}
shift 4
# shellcheck disable=SC2086
vllm serve "$model" --port "$port" ${VLLM_ARGS---max-logprobs 20} &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do # it listens once the weights are read
    kill -0 "$server" 2>/dev/null || { echo "vllm serve $model ended before it listened on port $port" >&2; exit 1; }
    sleep 1
done

export NNODES=$SLURM_NNODES NODE_RANK=$SLURM_NODEID PORT=${MASTER_PORT:-29500}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") # whole: `| head -n 1` may kill scontrol, and so this script
export MASTER_ADDR=${hosts%%$'\n'*}
bash "$(dirname "$0")/dist_test.sh" "$config" "$checkpoint" "${PROCESSES:-1}" "$@"
