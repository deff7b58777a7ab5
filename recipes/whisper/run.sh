#!/usr/bin/env bash
# Whisper base on human speech, by stages: fine-tuned, gated, scored, packed, on two CPU cores.
#   bash recipes/whisper/run.sh --stage 1 --stop_stage 6
#   bash recipes/whisper/run.sh --stage 3 --stop_stage 5 --confs row05 --path models/whisper-base -- seed=2
# What follows -- goes to every command. A stage that is done is skipped when it runs again.
# Hardware and time: README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

stage=1
stop_stage=6
corpus_root=data/prompts
backbone=whisper_base
path= # backbone.path, where it is not fetched from the hub
confs=row01,row05
data_dir=data
exp_dir=exp
python=${PYTHON:-python}

usage() {
  cat <<'USAGE'
usage: bash recipes/whisper/run.sh [options] [-- overrides]
  --stage N            first stage (1)
  --stop_stage N       last stage (6)
                         1 data: fetch the prompts      4 evaluate
                         2 prepare                      5 report
                         3 train                        6 pack
  --corpus_root DIR    where the recordings are to lie (data/prompts)
  --backbone NAME      whisper_tiny, whisper_base, ... (whisper_base)
  --path DIR           a local copy of it (default: its hub id)
  --confs A,B          experiments (row01,row05)
  --data_dir DIR       prepared corpus (data)
  --exp_dir DIR        runs (exp)
USAGE
}

while [[ $# -gt 0 ]]; do
  case $1 in
    --stage | --stop_stage | --corpus_root | --backbone | --path | --confs | --data_dir | --exp_dir)
      if [[ $# -lt 2 ]]; then
        echo "error: $1 needs a value" >&2
        exit 2
      fi
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --)
      shift
      break
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      echo "error: unknown option $1" >&2
      usage >&2
      exit 2
      ;;
  esac
done
for number in "$stage" "$stop_stage"; do
  if ! [[ $number =~ ^[1-6]$ ]]; then
    echo "error: stage $number; valid: 1 to 6" >&2
    exit 2
  fi
done

common=(
  corpus=manifest "corpus.manifest=$corpus_root/manifest.jsonl" corpus.name=prompts corpus.case=keep
  "backbone=$backbone" "data_dir=$data_dir" "exp_dir=$exp_dir" training=whisper
)
if [[ -n $path ]]; then
  common+=("backbone.path=$path")
fi
common+=("$@")

runs() { # stage number: whether it is asked for
  if ((stage <= $1 && $1 <= stop_stage)); then
    echo "== stage $1: $2"
    return 0
  fi
  return 1
}

if runs 1 "data"; then
  if [[ -f $corpus_root/manifest.jsonl ]]; then
    echo "found $corpus_root/manifest.jsonl"
  else
    "$python" recipes/whisper/prompts.py "$corpus_root"
  fi
fi

if runs 2 "prepare"; then
  "$python" -m localgp.prepare "${common[@]}"
fi

if runs 3 "train"; then
  "$python" -m localgp.train -m "conf=$confs" "${common[@]}"
fi

if runs 4 "evaluate"; then
  "$python" -m localgp.evaluate -m "conf=$confs" "${common[@]}" evaluate.normalizer=basic
fi

if runs 5 "report"; then
  "$python" -m localgp.report "${common[@]}"
fi

if runs 6 "pack"; then
  IFS=, read -ra names <<<"$confs"
  for name in "${names[@]}"; do
    "$python" -m localgp.pack "conf=$name" "${common[@]}" --overwrite --licence cc-by-sa-3.0 --output "$exp_dir/packed"
  done
fi
