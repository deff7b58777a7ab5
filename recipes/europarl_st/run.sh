#!/usr/bin/env bash
# Table 1 on Europarl-ST v1.1 with OWSM-v3.1-medium, by stages.
#   bash recipes/europarl_st/run.sh --stage 1 --stop_stage 7
#   bash recipes/europarl_st/run.sh --stage 4 --stop_stage 5 --confs row06 --seeds 1 -- training.precision=bf16
# What follows -- goes to every command. A stage that is done is skipped when it runs again.
# Hardware and time: README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

stage=1
stop_stage=7
corpus_root=data/europarl-st/v1.1
backbone=owsm_v3.1_medium
confs=row01,row02,row03,row04,row05,row06,row07,row08,row09,row10,control_open,control_random,control_vad,control_trim
seeds=1,2,3
spk=speechbrain/spkrec-ecapa-voxceleb # contexts.spk.source
event=                                # contexts.event.source: a BEATs checkpoint, as its authors publish it
data_dir=data
exp_dir=exp
python=${PYTHON:-python}

usage() {
  cat <<'USAGE'
usage: bash recipes/europarl_st/run.sh [options] [-- overrides]
  --stage N            first stage (1)
  --stop_stage N       last stage (7)
                         1 data: where to get it, and whether it is there    5 evaluate
                         2 prepare                                           6 report
                         3 contexts                                          7 pack
                         4 train
  --corpus_root DIR    holds de/audios (data/europarl-st/v1.1)
  --backbone NAME      owsm_v3.1_base, owsm_v3.1_small, whisper_base, ..., mini (owsm_v3.1_medium)
  --confs A,B          experiments (row01 to row10 and four controls)
  --seeds 1,2          (1,2,3)
  --spk SOURCE         of speaker embeddings: mini, a SpeechBrain model directory, a Hugging Face id
  --event SOURCE       of acoustic events: mini, or the path of BEATs_iter3_plus_AS2M.pt
  --data_dir DIR       prepared corpus and contexts (data)
  --exp_dir DIR        runs (exp)
USAGE
}

while [[ $# -gt 0 ]]; do
  case $1 in
    --stage | --stop_stage | --corpus_root | --backbone | --confs | --seeds | --spk | --event | --data_dir | --exp_dir)
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
  corpus=europarl_st "corpus.root=$corpus_root" "backbone=$backbone" "data_dir=$data_dir" "exp_dir=$exp_dir" "$@"
)
contexts=("contexts.spk.source=$spk")
if [[ -n $event ]]; then
  contexts+=("contexts.event.source=$event")
elif [[ ,$confs, =~ ,(row07|row08|row10), ]] && ((stage <= 5 && stop_stage >= 3)); then
  echo "error: ${BASH_REMATCH[1]} sees acoustic events: give --event BEATs_iter3_plus_AS2M.pt" >&2
  echo "  (https://github.com/microsoft/unilm/tree/master/beats), or leave rows 7, 8 and 10 out of --confs" >&2
  exit 2
fi

runs() { # stage number: whether it is asked for
  if ((stage <= $1 && $1 <= stop_stage)); then
    echo "== stage $1: $2"
    return 0
  fi
  return 1
}

if runs 1 "data"; then
  if [[ ! -d $corpus_root/de/audios ]]; then
    cat >&2 <<DATA
error: $corpus_root/de/audios is not there. Europarl-ST v1.1 is CC BY-NC 4.0; about 20 GB:
  mkdir -p $(dirname "$corpus_root")
  curl -L https://www.mllp.upv.es/europarl-st/v1.1.tar.gz | tar -xz -C $(dirname "$corpus_root")
or give --corpus_root DIR
DATA
    exit 1
  fi
  echo "found $corpus_root"
fi

if runs 2 "prepare"; then
  "$python" -m localgp.prepare "${common[@]}"
fi

if runs 3 "contexts"; then
  "$python" recipes/europarl_st/contexts.py "$confs" "${common[@]}" "${contexts[@]}"
fi

if runs 4 "train"; then
  "$python" -m localgp.train -m "conf=$confs" "seed=$seeds" "${common[@]}" "${contexts[@]}"
fi

if runs 5 "evaluate"; then
  "$python" -m localgp.evaluate -m "conf=$confs" "seed=$seeds" "${common[@]}" "${contexts[@]}"
fi

if runs 6 "report"; then
  "$python" -m localgp.report "${common[@]}"
fi

if runs 7 "pack"; then
  IFS=, read -ra names <<<"$confs"
  IFS=, read -ra numbers <<<"$seeds"
  for name in "${names[@]}"; do
    "$python" -m localgp.pack "conf=$name" "seed=${numbers[0]}" "${common[@]}" "${contexts[@]}" --overwrite \
      --output "$exp_dir/packed"
  done
fi
