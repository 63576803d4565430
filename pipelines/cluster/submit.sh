#!/usr/bin/env bash
# Ray Jobs. Edit: the run below; all nodes have the image of the Dockerfile, OUT is a path on the head that outlives it.
# Launch: export RAY_API_SERVER_ADDRESS=http://HEAD:8265 RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE
#   OUT=/data/nb201 NODES=8 bash pipelines/cluster/submit.sh      The same again resumes.
set -euo pipefail

exec ray job submit --no-wait -- \
    zcpipe-job zcpipe run --space nasbench201 --nodes "${NODES:?}" --out "${OUT:?}" --events "$OUT.jsonl"
