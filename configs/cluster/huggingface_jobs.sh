#!/bin/bash
# Four Hugging Face Jobs of one GPU each, every one a shard, then one that merges.
#   BUCKET=me/instdiff bash configs/cluster/huggingface_jobs.sh
# The bucket (hf buckets create) holds the data, and takes the shards and the scores; models come from the hub. A job
# that fails is tried again; given once more, the script does only what lacks.
set -euo pipefail
BUCKET="${BUCKET:?the bucket, as owner/name}"
SHARDS="${SHARDS:-4}"
INSTDIFF="${INSTDIFF:-instdiff[models]}"  # what pip installs: a version, or git+https://...

run() {  # NAME FLAVOR SCRIPT: starts a job and prints its id
  hf jobs run --detach --quiet --name "$1" --flavor "$2" --timeout 4h --attempts 3 --secrets HF_TOKEN \
    --volume "hf://buckets/$BUCKET:/work" python:3.12 bash -c "pip install -q '$INSTDIFF' && $3"
}

score="instdiff score --data /work/data/pool.jsonl --model base=HuggingFaceTB/SmolLM2-135M-Instruct \
  --method ifd,entropy --dtype bfloat16 --output /work/runs/shards --store /tmp/store"
jobs=()
for ((index = 0; index < SHARDS; index++)); do
  jobs+=("$(run "instdiff-score-$index" l4x1 "$score --shards $SHARDS --shard-index $index")")
done
hf jobs wait "${jobs[@]}"
# For miwv and nuggets give the lines from `jobs=()` on a second time: the second wave needs the first.

merge="instdiff merge /work/runs/shards --output /work/runs/scores.parquet --store /tmp/store"
hf jobs wait "$(run instdiff-merge cpu-upgrade "$merge")"
