#!/usr/bin/env bash
# One machine: recipes/cluster/torchrun.sh PROCESSES OVERRIDES...
set -euo pipefail
processes=${1:?number of processes}
shift
exec torchrun --standalone --nproc_per_node "$processes" -m localgp.train "$@"
