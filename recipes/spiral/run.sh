#!/usr/bin/env bash
# bash recipes/spiral/run.sh DIR [overrides]: the paper's Table I on SPIRAL, then what it does not have.
# Hardware: one GPU with 24 GB or more for bf16 weights. Output: stdout, and exp/spiral/*.log.
set -euo pipefail
if [[ $# -lt 1 ]]; then
  echo "usage: bash recipes/spiral/run.sh DIR [overrides]; DIR holds data.jsonl, data_h.jsonl and wavs/" >&2
  exit 2
fi
spiral=$1
shift
python=${PYTHON:-python}
mkdir -p exp/spiral

run() { # name, overrides
  local name=$1
  shift
  "$python" -m localgp.speechprune "$@" | tee "exp/spiral/$name.log"
}

real=(model=qwen2_audio_7b precision=bf16 "spiral=$spiral" "$@")

# Table I: SpeechPrune, its two phases alone, and the random baselines, by pruning rate.
run table1 "${real[@]}" "method=[both,first,second,rap,rac]"
# The same with the choices in another order, so that no letter is favoured.
run shuffled "${real[@]}" "method=[both,rap,rac]" shuffle=true
# What the paper leaves open: positions, the query, signs with their magnitudes, how an answer is read.
run positions "${real[@]}" positions=original
run query "${real[@]}" query=prompt
run magnitude "${real[@]}" pruner.scale=magnitude
run generate "${real[@]}" answer=generate
# Cost: from dimensions, then measured.
run flops model=qwen2_audio_7b report=flops
run prefill model=qwen2_audio_7b precision=bf16 report=prefill
