#!/usr/bin/env bash
# The study with the labels that people gave (CIFAR-10N) on one GPU: its small networks leave most of a GPU idle, so that
# trainings run side by side, what matters most first. It ends after SECONDS; started again, it trains what is missing.
#
#   DATA=FOLDER LABELS=FOLDER/labels.parquet bash examples/benchmarks/gpu_study.sh SECONDS [JOBS]
#   python examples/benchmarks/cifar10n.py outputs/gpu_study/small*/cifar10n_*
#
# Run it in the root of the repository. DATA has the parquet files of CIFAR-10, LABELS those of CIFAR-10N. Each job is
# one compare.py with the settings of examples/evidence/cifar10n_REGIME.yaml, in a folder of its own in OUT, beside its
# log; PreActResNet18 is in whole_*. JOBS: a pattern of those to do, such as "b worst". EXTRA: more flags for all.
set -uo pipefail # not -e: a job that fails must not take the others with it
LIMIT=${1:?"seconds"} WANTED=${2:-}
: "${DATA:?}" "${LABELS:?}" "${OUT:=outputs/gpu_study}" "${PARALLEL:=16}" "${PYTHON:=python3}" "${EXTRA:=}"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
AMP_PART=amp:amp_ascent_fraction=0.06,amp_norm_stats=descent
mkdir -p "$OUT"

# train PLACE REGIME LABELS FLAGS ...
train() {
    local place=$1 folder=cifar10n_$2_$3 config=examples/evidence/cifar10n_$2.yaml given=()
    [ "$3" = official ] || given=(--train_labels "$LABELS:$3")
    shift 3
    ((SECONDS + 5 < LIMIT)) || return
    timeout -k 5 -s INT $((LIMIT - SECONDS)) "$PYTHON" examples/compare.py --config "$config" --dataset_path "$DATA" \
        "${given[@]}" --torch_compile false --output_dir "$OUT/$place/$folder" "$@" $EXTRA \
        > "$OUT/${place}_$folder.log" 2>&1
    echo "[$SECONDS s] $place $folder $* ended with $?"
}

# Two trainings of the other seeds follow the three that choose the radius.
sam() { # REGIME LABELS
    local folder=cifar10n_$1_$2 config radius seed
    for radius in 0.02 0.05 0.1; do
        config=$OUT/cifar10n_$1_$radius.yaml # a given radius and a choice of it refuse each other
        grep -v ^select: "examples/evidence/cifar10n_$1.yaml" > "$config"
        train "small_sam_$radius" "$1" "$2" --config "$config" --methods "sam:amp_epsilon=$radius" --seeds 0 &
    done
    wait
    for seed in 1 2; do
        mkdir -p "$OUT/small_sam_seed$seed/$folder/noise0"
        cp -rn "$OUT"/small_sam_0.*/"$folder"/noise0/* "$OUT/small_sam_seed$seed/$folder/noise0/"
        train "small_sam_seed$seed" "$1" "$2" --methods sam --seeds 0 "$seed" &
    done
    wait
}

if command -v nvidia-cuda-mps-control > /dev/null; then # kernels of several processes at once, not in turn
    nvidia-cuda-mps-control -d
    trap 'echo quit | nvidia-cuda-mps-control > /dev/null 2>&1' EXIT
    if ! timeout 60 "$PYTHON" -c 'import torch; torch.zeros(1, device="cuda")'; then
        echo "no kernels of several processes at once"
        echo quit | nvidia-cuda-mps-control
    fi
fi
while read -r job; do
    [[ $job =~ $WANTED ]] || continue
    while (($(jobs -rp | wc -l) >= PARALLEL)); do wait -n; done
    eval "$job" &
done << JOBS
train small_amp0 b worst --seeds 0 --methods amp erm
train small_amp1 b worst --seeds 1 --methods amp erm
train small_amp2 b worst --seeds 2 --methods amp erm
sam b worst
train whole_amp b worst --seeds 0 --methods amp --model_args {}
train whole_erm b worst --seeds 0 --methods erm --model_args {}
train whole_amp b official --seeds 0 --methods amp --model_args {}
train whole_erm b official --seeds 0 --methods erm --model_args {}
train small_fixed0 b worst --seeds 0 --methods amp:amp_epsilon=0.5 label_smoothing
train small_fixed1 b worst --seeds 1 --methods amp:amp_epsilon=0.5 label_smoothing
train small_fixed2 b worst --seeds 2 --methods amp:amp_epsilon=0.5 label_smoothing
train small_more0 b worst --seeds 0 --methods $AMP_PART erm:num_train_epochs=40
train small_more1 b worst --seeds 1 --methods $AMP_PART erm:num_train_epochs=40
train small_more2 b worst --seeds 2 --methods $AMP_PART erm:num_train_epochs=40
train small_amp0 b aggregate --seeds 0 --methods amp erm
train small_amp1 b aggregate --seeds 1 --methods amp erm
train small_amp2 b aggregate --seeds 2 --methods amp erm
train small_amp0 b official --seeds 0 --methods amp erm
train small_amp1 b official --seeds 1 --methods amp erm
train small_amp2 b official --seeds 2 --methods amp erm
train small_amp0 a worst --seeds 0 --methods erm amp label_smoothing
train small_amp1 a worst --seeds 1 --methods erm amp label_smoothing
train small_amp2 a worst --seeds 2 --methods erm amp label_smoothing
sam a worst
train small_more0 a worst --seeds 0 --methods amp:amp_epsilon=0.5 $AMP_PART erm:num_train_epochs=24
train small_more1 a worst --seeds 1 --methods amp:amp_epsilon=0.5 $AMP_PART erm:num_train_epochs=24
train small_more2 a worst --seeds 2 --methods amp:amp_epsilon=0.5 $AMP_PART erm:num_train_epochs=24
train small_amp0 a official --seeds 0 --methods erm amp
train small_amp0 a aggregate --seeds 0 --methods erm amp
train small_amp1 a official --seeds 1 --methods erm amp
train small_amp1 a aggregate --seeds 1 --methods erm amp
train small_amp2 a official --seeds 2 --methods erm amp
train small_amp2 a aggregate --seeds 2 --methods erm amp
train small_fixed0 b aggregate --seeds 0 --methods amp:amp_epsilon=0.5 $AMP_PART label_smoothing
train small_fixed1 b aggregate --seeds 1 --methods amp:amp_epsilon=0.5 $AMP_PART label_smoothing
train small_fixed2 b aggregate --seeds 2 --methods amp:amp_epsilon=0.5 $AMP_PART label_smoothing
train small_fixed0 b official --seeds 0 --methods amp:amp_epsilon=0.5 $AMP_PART label_smoothing
train small_fixed1 b official --seeds 1 --methods amp:amp_epsilon=0.5 $AMP_PART label_smoothing
train small_fixed2 b official --seeds 2 --methods amp:amp_epsilon=0.5 $AMP_PART label_smoothing
JOBS
wait
echo "[$SECONDS s] done"
