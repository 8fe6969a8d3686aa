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

# A job for each seed
each() { # PLACE REGIME LABELS METHOD ...
    local seed
    for seed in 0 1 2; do echo "train $1$seed $2 $3 --seeds $seed --methods ${*:4}"; done
}

# What there is to do, in order
list() {
    local labels method
    each small_amp b worst amp erm
    echo sam b worst
    for labels in worst official; do
        for method in amp erm; do
            echo "train whole_$method b $labels --seeds 0 --methods $method --model_args {}"
        done
    done
    each small_fixed b worst amp:amp_epsilon=0.5 label_smoothing
    each small_more b worst $AMP_PART erm:num_train_epochs=40
    each small_amp b aggregate amp erm
    each small_amp b official amp erm
    each small_amp a worst erm amp label_smoothing
    echo sam a worst
    each small_more a worst amp:amp_epsilon=0.5 $AMP_PART erm:num_train_epochs=24
    each small_amp a official erm amp
    each small_amp a aggregate erm amp
    each small_fixed b aggregate amp:amp_epsilon=0.5 $AMP_PART label_smoothing
    each small_fixed b official amp:amp_epsilon=0.5 $AMP_PART label_smoothing
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
done < <(list)
wait
echo "[$SECONDS s] done"
