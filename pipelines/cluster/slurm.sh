#!/usr/bin/env bash
# Slurm. Edit: the number and size of nodes here, the environment and the run below; --out and the token's directory
# must be on a file system that all nodes share. Whole nodes only: ray symmetric-run ends every Ray process of its user.
# Launch: OUT=/shared/nb201 sbatch pipelines/cluster/slurm.sh; after the time limit or a lost node it goes on by itself.
#SBATCH --job-name=zcpipe
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=zcpipe-%j.log
set -euo pipefail
: "${OUT:?}"
# . /shared/venv/bin/activate

# A token that only this user can read: whoever has it can run anything on these nodes.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="${TOKENS:-$HOME}/.zcpipe-token-$SLURM_JOB_ID"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
install -m 600 /dev/null "$RAY_AUTH_TOKEN_PATH"
python3 -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH"

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# Five minutes before the time limit: put this job into the queue again. What is committed then stays.
trap 'scontrol requeue "$SLURM_JOB_ID" || echo "not queued again: submit the same anew" >&2' USR1

# --no-kill keeps the job also when its first node is lost, and this script with it: then another node queues it again.
watch='while sleep 60 && kill -0 $$; do
    nodes=$(scontrol show hostnames "$(squeue -h -j "$SLURM_JOB_ID" -t R -o %N)") && [ -n "$nodes" ] || continue
    grep -qxF "$0" <<< "$nodes" || scontrol requeue "$SLURM_JOB_ID"
done > /dev/null 2>&1 &
exec "$@"'

srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --no-kill --kill-on-bad-exit=0 \
    bash -c "$watch" "${hosts[0]}" \
    ray symmetric-run --address "${hosts[0]}:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" -- \
    zcpipe run --space nasbench201 --nodes "$SLURM_JOB_NUM_NODES" --address "${hosts[0]}:6379" \
    --out "$OUT" --events "$OUT.jsonl" &

code=0
wait $! || code=$?
while [ -n "$(jobs -pr)" ]; do # a signal ended the wait, not the run
    code=0
    wait $! || code=$?
done
zcpipe status "$OUT" # symmetric-run succeeds also where Ray did not start: the table tells
exit "$code"
