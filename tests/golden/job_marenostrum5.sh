#!/bin/bash
# MareNostrum 5 ACC, Barcelona Supercomputing Center: 2 nodes, 8 tasks.
# Written by `python -m leam_mm.launch` from the profile marenostrum5; repository at commit 0000000000000000000000000000000000000000.
# The file stands alone: read it, change it, submit it with sbatch, or again with `python -m leam_mm.launch resume`.

#SBATCH --job-name=a-run-82c2f7
#SBATCH --account=project_1
#SBATCH --partition=acc
#SBATCH --qos=acc_ehpc
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=20
#SBATCH --gres=gpu:4
#SBATCH --time=0-12:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output='/scratch/project/runs/a run/logs/%x-%j.out'

run='/scratch/project/runs/a run'
cd /repository || exit 1

# --- software ------------------------------------------------------------------------------------------------------
LEAM_PYTHON=${LEAM_PYTHON:-python}

set -u # only here: scripts of modules use variables that are not set
# --- environment ---------------------------------------------------------------------------------------------------
# Since Slurm 22.05 srun does not inherit --cpus-per-task from the job: without this each task has one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Compute nodes need no internet.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1 WANDB_MODE=offline
export PYTHONPATH=/repository${PYTHONPATH:+:$PYTHONPATH}
# A port of the job's own: jobs may share a node.
export MASTER_PORT=$((10240 + SLURM_JOB_ID % 22000))
# End of the job, in seconds since 1970; older versions of Slurm do not set SLURM_JOB_END_TIME.
LEAM_JOB_END=${SLURM_JOB_END_TIME:-$(date -d "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %e)" +%s 2>/dev/null)}
export LEAM_JOB_END

# --- the run -------------------------------------------------------------------------------------------------------
echo "job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, $(date -u +%FT%TZ), on $SLURM_JOB_NODELIST"
# After a signal all ranks exit at about the same time; after a crash the others would wait for ever.
# The words of LEAM_PYTHON are split on purpose.
# shellcheck disable=SC2086
srun --kill-on-bad-exit=0 --wait=60 \
    $LEAM_PYTHON /repository/train.py fit \
    --config configs/clip_vit_b16.yaml \
    --config /repository/configs/overlay_slurm.yaml \
    --data.init_args.seed 7
code=$?
echo "job $SLURM_JOB_ID, exit code $code, $(date -u +%FT%TZ)"

# --- what comes next -----------------------------------------------------------------------------------------------
again=no
tries=$run/failures-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}-${SLURM_ARRAY_TASK_ID:-0} # one line for each failure
case $code in
75) # stopped by a signal or the time limit, with a checkpoint
    again=yes
    rm -f "$tries"
    ;;
76 | 134 | 135 | 137 | 138 | 139 | 143) # a rank died or was stuck, or a signal ended one
    echo "$SLURM_JOB_ID $code" >>"$tries"
    if [ "$(wc -l <"$tries")" -le 3 ]; then
        again=yes
    else
        echo "failed more than 3 times: not started again; see this log"
    fi
    ;;
*) rm -f "$tries" ;;
esac
if [ -e "$run/stopped" ]; then
    echo "stopped by hand: not started again; python -m leam_mm.launch resume $run"
    again=no
fi
if [ "$again" = yes ]; then
    echo "requeue job $SLURM_JOB_ID (restart ${SLURM_RESTART_COUNT:-0} so far)"
    scontrol requeue "$SLURM_JOB_ID" || echo "requeue is refused: python -m leam_mm.launch resume $run"
fi
exit "$code"
