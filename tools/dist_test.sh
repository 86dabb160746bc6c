#!/usr/bin/env bash
# Test on several GPUs (or, without one, in several CPU processes) of this machine; images are shared out among them.
#   tools/dist_test.sh CONFIG CHECKPOINT|none NUM_PROCESSES [options of tools/test.py]
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and PORT, as for MMDetection's script of this name.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
config=$1 checkpoint=$2 processes=$3
shift 3
[ "$checkpoint" = none ] && set -- "$config" "$@" || set -- "$config" "$checkpoint" "$@"

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" --nproc_per_node="$processes" \
    "$(dirname "$0")/test.py" "$@" --launcher pytorch
