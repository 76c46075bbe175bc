#!/bin/bash
# Train on a cluster with Slurm, by hand: one task per GPU; the job saves, stops and is requeued until training has
# finished. `python -m leam_mm.launch submit` writes such a script from the profile of a machine, with checks.
#
#   sbatch --account=ACCOUNT --partition=PARTITION --nodes=4 configs/clusters/slurm.sh RECIPE.yaml
#   sbatch ... configs/clusters/slurm.sh RECIPE.yaml --config configs/overlay_fsdp2.yaml     # sharded model
#
# Submit from the repository. Words after the recipe are passed to train.py. Options of sbatch on the command line override
# the lines below; edit the lines if you use them regularly.

#SBATCH --job-name=leam_mm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4          # one task per GPU: JUPITER, Leonardo, MareNostrum 5: 4; LUMI: 8 (one per GCD)
#SBATCH --gpus-per-node=4            # the same number; some sites need --gres=gpu:4 instead
#SBATCH --cpus-per-task=8            # includes the loader workers; LUMI: 7, MareNostrum 5: 20
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

# Since Slurm 22.05 srun does not inherit --cpus-per-task from the job: without this each task has one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# End of the job, at which training saves and stops in time; older versions of Slurm do not set SLURM_JOB_END_TIME.
LEAM_JOB_END=${SLURM_JOB_END_TIME:-$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %e)}
export LEAM_JOB_END

# Compute nodes have no internet, and training needs none.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline
export HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1

# Lightning uses the first node of the job as master and a port derived from the job id. Set this only if that name
# resolves to the wrong network (the older machines in Juelich have their InfiniBand under NAME + "i"):
# export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)i"

# LUMI and other machines with AMD GPUs (ROCm):
# - HIP_VISIBLE_DEVICES selects GPUs as CUDA_VISIBLE_DEVICES does elsewhere. Set neither: all tasks of a node see all
#   of its GPUs, and each uses the one of its local rank. For the same reason no --gpus-per-task and no --gpu-bind.
# - MIOpen keeps its kernels in an SQLite file, which hangs on Lustre: use a folder per node and job on a local disk.
#     export MIOPEN_USER_DB_PATH="/tmp/miopen-$SLURM_JOB_ID" MIOPEN_CUSTOM_CACHE_DIR="/tmp/miopen-$SLURM_JOB_ID"
#     srun --ntasks-per-node=1 --ntasks="$SLURM_NNODES" mkdir -p "/tmp/miopen-$SLURM_JOB_ID"
# - NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3 keeps RCCL on Slingshot; leave NCCL_NET_GDR_LEVEL unset under ROCm 7.

# --- the run -------------------------------------------------------------------------------------------------------
# After a signal all ranks exit at about the same time; after a crash the others would wait for ever.
export SLURM_WAIT=${SLURM_WAIT:-60} # seconds after the end of the first rank
# The words of LEAM_PYTHON are split on purpose.
# shellcheck disable=SC2086
srun --kill-on-bad-exit=0 \
    $LEAM_PYTHON train.py fit --config "$recipe" --config configs/overlay_slurm.yaml "$@"
code=$?

# --- what comes next -----------------------------------------------------------------------------------------------
# The job's comment counts the failures since the last planned stop.
failures=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %k)
case $failures in failures=*) failures=${failures#failures=} ;; *) failures=0 ;; esac
case $code in
75) # stopped by a signal or at the end of its time, with a checkpoint
    failures=0
    again=yes
    ;;
76 | 134 | 135 | 137 | 138 | 139 | 143) # a rank died or was stuck, or a signal ended one: often a fault of a node
    failures=$((failures + 1))
    [ "$failures" -le "${LEAM_RETRIES:-3}" ] && again=yes || again=no
    ;;
*) again=no ;;
esac
if [ "$again" = yes ]; then
    echo "exit code $code, failures since the last planned stop: $failures; requeue job $SLURM_JOB_ID"
    scontrol update "jobid=$SLURM_JOB_ID" "comment=failures=$failures"
    scontrol requeue "$SLURM_JOB_ID" || echo "the requeue is refused: submit the same command again to continue"
elif [ "$code" -ne 0 ]; then
    echo "exit code $code: the job is not requeued; submit the same command again to continue"
fi
exit "$code"
