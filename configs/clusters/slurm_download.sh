#!/bin/bash
# Download a table of links on a cluster with Slurm, by hand: an array fetches, one last job writes the shards.
# `python -m leam_mm.launch submit --program data_tools/download_shards.py` does the same from the profile of a machine.
#
#   bash configs/clusters/slurm_download.sh 16 --table links.parquet --output shards --agent-contact https://lab.example/bot
#
# Run from the repository, on a login node: it submits itself twice, as an array of 16 jobs, each of which fetches every
# 16th part into OUTPUT.work, and as a job that waits for them, fetches the missing parts (those of a killed job) and
# writes the shards. The bytes equal those of a run on one machine. All jobs need the same file system and nodes with
# internet access; the limits per host (--connections-per-host, --delay-per-host) hold for all jobs together if that file
# system supports locks (Lustre: mounted with flock).
#
# LEAM_SBATCH holds sbatch options of your site: LEAM_SBATCH="--account=ACCOUNT --partition=PARTITION --time=24:00:00"
# LEAM_PYTHON is the interpreter, possibly several words ("singularity exec IMAGE python").

#SBATCH --job-name=leam_mm_download
#SBATCH --ntasks=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -u
LEAM_PYTHON=${LEAM_PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ -z "${SLURM_JOB_ID:-}" ]; then
    if [ $# -lt 2 ] || ! [ "$1" -ge 1 ] 2>/dev/null; then
        echo "error: say how many jobs fetch: bash configs/clusters/slurm_download.sh JOBS --table ... --output ..." >&2
        exit 2
    fi
    jobs=$1
    shift
    # The words of LEAM_SBATCH are split on purpose.
    # shellcheck disable=SC2086
    array=$(sbatch --parsable --array="0-$((jobs - 1))" ${LEAM_SBATCH:-} "$0" "$@") || exit
    array=${array%%;*}
    # afterany: the last job fetches what a killed one has not.
    # shellcheck disable=SC2086
    last=$(sbatch --parsable --dependency="afterany:$array" ${LEAM_SBATCH:-} "$0" "$@") || exit
    echo "submitted: array $array fetches with $jobs jobs, job ${last%%;*} writes the shards"
    exit
fi

slice=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    slice=(--slice "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT")
fi
# shellcheck disable=SC2086
exec $LEAM_PYTHON -m data_tools.download_shards "$@" ${slice[@]+"${slice[@]}"}
