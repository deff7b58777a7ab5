#!/usr/bin/env bash
# Whisper base on human speech, by stages: a short window, fewer frames in it, scored and packed, on two CPU cores.
#   bash recipes/whisper/run.sh --stage 1 --stop_stage 7
#   bash recipes/whisper/run.sh --stage 3 --stop_stage 3 --path models/whisper-base -- seed=2
# What follows -- goes to every command. A stage that is done is skipped when it runs again.
# Hardware and time: README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

stage=1
stop_stage=7
corpus_root=data/prompts
backbone=whisper_base
path= # backbone.path, where it is not fetched from the hub
confs=row05,row13
data_dir=data
exp_dir=exp
python=${PYTHON:-python}

usage() {
  cat <<'USAGE'
usage: bash recipes/whisper/run.sh [options] [-- overrides]
  --stage N            first stage (1)
  --stop_stage N       last stage (7)
                         1 data: fetch the prompts      4 train the experiments on that window
                         2 prepare                      5 evaluate them
                         3 window: a short one,         6 report
                           learnt, scored, packed       7 pack
  --corpus_root DIR    where the recordings are to lie (data/prompts)
  --backbone NAME      whisper_tiny, whisper_base, ... (whisper_base)
  --path DIR           a local copy of it (default: its hub id)
  --confs A,B          experiments: row12 merges frames, others have gates (row05,row13)
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
  if ! [[ $number =~ ^[1-7]$ ]]; then
    echo "error: stage $number; valid: 1 to 7" >&2
    exit 2
  fi
done

common=(
  corpus=manifest "corpus.manifest=$corpus_root/manifest.jsonl" corpus.name=prompts corpus.case=keep
  "backbone=$backbone" "data_dir=$data_dir" "exp_dir=$exp_dir" training=whisper
  window=utterance window.margin=0.5 training.objective=distil training.limit=75
)
scored=(evaluate.normalizer=basic decode.beam=1)
# 75 recordings a language, four times: the padded model is asked once for each.
short=(name=dense_window conf=row01 training.lr=2e-5 training.max_epochs=4)
# What prunes begins on weights that know their window, which then teach.
taught=(training.teacher_window=own training.lr=2e-5 training.max_epochs=2 "training.distil_encoder=[]")
# Gates count frames with sound in them, and a frame that is skipped gets what the one before gets.
gated=("${taught[@]}" pruning.sparsity_frames=real pruning.rise=0.6 pruning.gate_bias=3.0)
original=()
if [[ -n $path ]]; then
  original=("backbone.path=$path")
fi
window=$exp_dir/packed/dense_window
IFS=, read -ra names <<<"$confs"

choose() { # experiment: what it is trained with, in `chosen`
  case $1 in
    row12 | row13) chosen=("${taught[@]}") ;;
    row0[5-8] | row1[01] | control_random) chosen=("${gated[@]}" pruning.fill=pair) ;;
    *) chosen=("${gated[@]}") ;; # gates that are not of single frames, or choose among all of them
  esac
  chosen=("conf=$1" "${common[@]}" "${chosen[@]}" "backbone.path=$window")
}

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
  "$python" -m localgp.prepare "${common[@]}" "${original[@]}" "$@"
fi

if runs 3 "window"; then
  "$python" -m localgp.train "${common[@]}" "${short[@]}" "${original[@]}" "$@"
  "$python" -m localgp.evaluate "${common[@]}" "${short[@]}" "${original[@]}" "${scored[@]}" "$@"
  "$python" -m localgp.pack "${common[@]}" "${short[@]}" "${original[@]}" "$@" \
    --overwrite --licence cc-by-sa-3.0 --output "$exp_dir/packed" --name dense_window
fi

if runs 4 "train"; then
  for name in "${names[@]}"; do
    choose "$name"
    "$python" -m localgp.train "${chosen[@]}" "$@"
  done
fi

if runs 5 "evaluate"; then
  for name in "${names[@]}"; do
    choose "$name"
    "$python" -m localgp.evaluate "${chosen[@]}" "${scored[@]}" "$@"
  done
fi

if runs 6 "report"; then
  "$python" -m localgp.report "${common[@]}" "backbone.path=$window" "$@"
fi

if runs 7 "pack"; then
  for name in "${names[@]}"; do
    choose "$name"
    "$python" -m localgp.pack "${chosen[@]}" "$@" \
      --overwrite --licence cc-by-sa-3.0 --output "$exp_dir/packed"
  done
fi
