#!/usr/bin/env bash
# This node's share of NUM ranks under one torchrun: node.sh NUM COMMAND...
trap '' USR2 # is for the ranks
ranks=$1 nodes=$SLURM_STEP_NUM_NODES
shift
exec torchrun --nnodes="$nodes" --node-rank="$SLURM_NODEID" \
  --nproc-per-node=$((ranks / nodes + (SLURM_NODEID < ranks % nodes))) \
  --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" --no-python "$@"
