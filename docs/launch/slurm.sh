#!/usr/bin/env bash
# Full fine-tuning of FLUX.1-dev by two machines of 8 GPUs:  sbatch docs/launch/slurm.sh [RECIPE [OUTPUT [KEY=VALUE ...]]]
# MODEL names another model fragment; empty, the recipe's own is trained.
# One task a GPU, started by srun itself: a signal of Slurm's reaches every process, and the run saves its state.
# Submitted again with the same output it goes on; so does Slurm by itself after a pre-emption (--requeue).
#SBATCH --job-name=flowrl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

recipe=${1:-g2rpo}
output=${2:-runs/$recipe-slurm}  # on a file system that all machines share
model=${MODEL-flux1_dev}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# The settings of docs/launch/accelerate/fsdp_2x8.yaml; for LoRA by DDP leave these five out.
export ACCELERATE_USE_FSDP=true FSDP_VERSION=2
export ACCELERATE_USE_PARALLELISM_CONFIG=true
export PARALLELISM_CONFIG_DP_REPLICATE_SIZE=$SLURM_NNODES
export PARALLELISM_CONFIG_DP_SHARD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))

options=(--output "$output")
if [ -n "$model" ]; then
    options+=(--model "$model")
fi
if [ -f "$output/recipe.yaml" ]; then
    options+=(--resume)
fi
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
    export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
    exec "$@"
' -- flowrl train "$recipe" "${options[@]}" "${@:3}"
