#!/bin/bash
# Train on a cluster with Slurm: one task per GPU, stopped and requeued in good order as often as it takes.
#
#   sbatch --account=ACCOUNT --partition=PARTITION --nodes=4 configs/clusters/slurm.sh RECIPE.yaml
#   sbatch ... configs/clusters/slurm.sh RECIPE.yaml --config configs/overlay_fsdp2.yaml     # sharded model
#
# Submit from the repository. What follows the recipe goes to train.py as it is. What is given to sbatch on the command
# line overrides the lines below; a person who runs this every day changes the lines.

#SBATCH --job-name=leam_mm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4          # one task per GPU: JUPITER, Leonardo, MareNostrum 5: 4; LUMI: 8 (one per GCD)
#SBATCH --gpus-per-node=4            # the same number; some sites want --gres=gpu:4 instead
#SBATCH --cpus-per-task=8            # loader workers live here; LUMI: 7, MareNostrum 5: 20
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@120            # to all tasks, two minutes before the time is up (without B:, which is for bash)
#SBATCH --requeue
#SBATCH --open-mode=append           # one log over all requeues
#SBATCH --output=%x-%j.out

set -u
if [ $# -lt 1 ]; then
    echo "error: name a recipe: sbatch configs/clusters/slurm.sh RECIPE.yaml [arguments of train.py]" >&2
    exit 2
fi
recipe=$1
shift

# --- the site ------------------------------------------------------------------------------------------------------
# Modules, container or virtual environment; $LEAM_PYTHON may be several words ("singularity exec IMAGE python").
# module load ...
LEAM_PYTHON=${LEAM_PYTHON:-python}

# Since Slurm 22.05 srun does not take --cpus-per-task from the job: without this each task has one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Compute nodes have no internet, and training needs none.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline
export HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1

# Lightning takes the first node of the job as master and a port from the job's number. Only where that name leads to
# the wrong network, say otherwise (the older machines in Juelich have their InfiniBand under NAME + "i"):
# export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)i"

# LUMI and other machines with AMD GPUs (ROCm):
# - HIP_VISIBLE_DEVICES chooses GPUs as CUDA_VISIBLE_DEVICES does elsewhere. Leave both alone: all tasks of a node see
#   all of its GPUs, and each takes the one of its local rank. So no --gpus-per-task and no --gpu-bind either.
# - MIOpen keeps its kernels in an SQLite file, which locks up on Lustre: a folder per node and job on its own disk.
#     export MIOPEN_USER_DB_PATH="/tmp/miopen-$SLURM_JOB_ID" MIOPEN_CUSTOM_CACHE_DIR="/tmp/miopen-$SLURM_JOB_ID"
#     srun --ntasks-per-node=1 --ntasks="$SLURM_NNODES" mkdir -p "/tmp/miopen-$SLURM_JOB_ID"
# - NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3 keeps RCCL on Slingshot; leave NCCL_NET_GDR_LEVEL unset under ROCm 7.

# --- the run -------------------------------------------------------------------------------------------------------
# Ranks leave within moments of each other when they were told to; after a crash the others would wait for ever.
# The words of LEAM_PYTHON are split on purpose.
# shellcheck disable=SC2086
srun --kill-on-bad-exit=0 --wait=60 \
    $LEAM_PYTHON train.py fit --config "$recipe" --config configs/overlay_slurm.yaml "$@"
code=$?

if [ "$code" -eq 75 ]; then
    echo "told to leave, checkpoint saved: requeue job $SLURM_JOB_ID (restart ${SLURM_RESTART_COUNT:-0} so far)"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
