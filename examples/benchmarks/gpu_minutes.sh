#!/usr/bin/env bash
# One GPU for a given number of seconds: what matters most comes first, and results are written as they are known.
#
#   bash examples/benchmarks/gpu_minutes.sh SECONDS [PHASE ...]
#
# Run it in the root of the repository. Phases, in this order by default:
#   tests      what only a GPU can show (pytest -m gpu)
#   data       making a batch of images on the GPU
#   steps      a step of Trainer, AMPTrainer and plain two passes
#   erm amp cheap              the headline training: PreActResNet18 on CIFAR-10; cheap: the ascent on 6 % of a batch
#   worst_erm worst_amp        the same with the labels of CIFAR-10N "worst", for which $DATA/labels.parquet is needed
# and, when asked for:
#   study      the study with the labels that people gave, which needs them, too: see gpu_study.sh
#
# DATA is a folder with the parquet files of CIFAR-10 (train*, test*), WHEELS one with packages to put in front of
# those installed. Results go to OUT; KEEP holds what a second call needs: images that come in several calls, compiled
# kernels, and checkpoints, from which a stopped training goes on. Without a GPU everything runs on the CPU, slowly:
# that is how the tests rehearse it, with STEP_FLAGS and EXTRA (more flags for the trainings).
set -uo pipefail # not -e: a phase that fails must not take the others with it
LIMIT=${1:?"seconds"}
shift
PHASES=${*:-tests data steps erm amp cheap worst_erm worst_amp}
: "${DATA:=}" "${WHEELS:=}" "${OUT:=outputs/gpu}" "${KEEP:=$HOME/.cache/hf_amp_gpu}" "${PYTHON:=python3}"
: "${EPOCHS:=auto}" "${MOST_EPOCHS:=60}" "${BATCH:=200}" "${LR:=0.2}" "${EPSILON:=0.5}" "${SEED:=0}" "${COMPILE:=true}"
: "${STEP_FLAGS:=}" "${EXTRA:=}" "${TRAIN_FILES:=2}" "${TEST_FILES:=2}" "${RESERVE:=15}"
: "${STUDY_JOBS:=}" "${TEST_LIMIT:=100}" "${STEPS_LIMIT:=150}"
mkdir -p "$OUT" "$KEEP/data"
exec > >(tee -a "$OUT/log.txt") 2>&1
benchmarks=examples/benchmarks

left() { echo $((LIMIT - SECONDS - RESERVE)); }
say() { echo "[$SECONDS s of $LIMIT] $*"; }
# within SECONDS COMMAND ...: at most so long, and never past the end; SIGINT first, so that Python writes what it has
within() {
    local most=$1 rest
    shift
    rest=$(left)
    if ((rest < 10)); then
        say "no time left for: $*"
        return 75
    fi
    timeout -k 5 -s INT $((most < rest ? most : rest)) "$@"
}

if [ -n "$WHEELS" ] && [ ! -d "$KEEP/site" ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$KEEP/site" "$WHEELS"/*.whl ||
        say "the wheels could not be installed"
fi
[ -z "$DATA" ] || cp -n "$DATA"/*.parquet "$KEEP/data/"
export PYTHONPATH="$KEEP/site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export HF_HUB_OFFLINE=1 HF_HOME="$KEEP/hf" TOKENIZERS_PARALLELISM=false
export TORCHINDUCTOR_CACHE_DIR="$KEEP/inductor" TRITON_CACHE_DIR="$KEEP/triton"
nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm --format=csv,noheader 2> /dev/null
"$PYTHON" - << 'P'
import importlib.metadata as metadata, platform

names = "torch transformers accelerate huggingface_hub triton datasets numpy pyarrow".split()
found = {dist.metadata["Name"].replace("-", "_"): dist.version for dist in metadata.distributions()}
print("Python", platform.python_version(), *(f"{name} {found.get(name, 'MISSING')}" for name in names), sep="; ")
P
say "images: $(ls "$KEEP/data" | tr '\n' ' ')"

# Whether all images have come
whole() {
    [ "$(find "$KEEP/data" -name 'train*.parquet' | wc -l)" -ge "$TRAIN_FILES" ] &&
        [ "$(find "$KEEP/data" -name 'test*.parquet' | wc -l)" -ge "$TEST_FILES" ]
}

# Sets EPOCHS, the same for all trainings, from the steps that were measured and the time that is left; chosen once
choose_epochs() {
    [ "$EPOCHS" = auto ] || return 0
    [ -f "$KEEP/epochs" ] ||
        "$PYTHON" $benchmarks/gpu_plan.py "$(left)" --most "$MOST_EPOCHS" --batch_size "$BATCH" \
            --steps_file "$KEEP/steps.jsonl" --trainings $(for p in $PHASES; do case $p in *erm | *amp | cheap) echo "$p" ;; esac; done) \
            > "$KEEP/epochs"
    EPOCHS=$(cat "$KEEP/epochs")
    say "$EPOCHS epochs each"
}

# training NAME FOLDER FLAGS ...: a line per epoch, and OUT/NAME.json when it is done
training() {
    local name=$1 folder=$2
    shift 2
    if ! whole; then
        say "$name: not all images are here yet"
        return
    fi
    choose_epochs
    within "$LIMIT" "$PYTHON" examples/image_classification.py --dataset_path "$folder" --output_dir "$KEEP/runs/$name" \
        --num_train_epochs "$EPOCHS" --per_device_train_batch_size "$BATCH" --learning_rate "$LR" --seed "$SEED" \
        --torch_compile "$COMPILE" --logging_nan_inf_filter false --save_strategy steps \
        --save_steps $((5 * 50000 / BATCH)) --report_to none "$@" $EXTRA
    say "$name ended with $?"
    [ ! -f "$KEEP/runs/$name/results.json" ] || cp "$KEEP/runs/$name/results.json" "$OUT/$name.json"
}

# The images again, with the labels that people gave
relabel() {
    [ -d "$KEEP/worst" ] || "$PYTHON" - "$KEEP" << 'P'
import pathlib, sys
import pyarrow as pa, pyarrow.parquet as pq

keep = pathlib.Path(sys.argv[1])
labels = pq.read_table(keep / "data/labels.parquet", columns=["label", "worst"])
(keep / "worst").mkdir()
start = 0
for path in sorted((keep / "data").glob("t*.parquet")):
    table = pq.read_table(path)
    if path.name.startswith("train"):
        place = table.schema.get_field_index("label")
        part = labels.slice(start, len(table))
        assert table["label"].to_pylist() == part["label"].to_pylist(), "the labels are of other images"
        table = table.set_column(place, table.schema.field(place), part["worst"].cast(table.schema.field(place).type))
        start += len(table)
    pq.write_table(table, keep / "worst" / path.name)
P
}

for phase in $PHASES; do
    begun=$SECONDS
    amp=(--config examples/evidence/headline_amp.yaml --amp_epsilon "$EPSILON")
    erm=(--config examples/evidence/headline_erm.yaml)
    case $phase in
    tests)
        within "$TEST_LIMIT" "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider -W default tests/test_gpu.py \
            tests/test_vision_collator.py 2>&1 | tee "$OUT/tests.txt" | tail -40
        ;;
    data) within 60 "$PYTHON" $benchmarks/gpu_data.py --data "$KEEP/data" --out "$OUT/data.json" --batch_size "$BATCH" ;;
    steps)
        within "$STEPS_LIMIT" "$PYTHON" $benchmarks/gpu_steps.py --seconds "$STEPS_LIMIT" --batch_size "$BATCH" \
            --out "$KEEP/steps.jsonl" $STEP_FLAGS
        cp "$KEEP/steps.jsonl" "$OUT/"
        ;;
    erm) training erm "$KEEP/data" "${erm[@]}" ;;
    amp) training amp "$KEEP/data" "${amp[@]}" ;;
    cheap) training cheap "$KEEP/data" "${amp[@]}" --amp_ascent_fraction 0.06 --amp_norm_stats descent ;;
    worst_erm) relabel && training worst_erm "$KEEP/worst" "${erm[@]}" ;;
    worst_amp) relabel && training worst_amp "$KEEP/worst" "${amp[@]}" ;;
    study)
        if whole && [ -f "$KEEP/data/labels.parquet" ]; then
            DATA=$KEEP/data LABELS=$KEEP/data/labels.parquet OUT=$KEEP/study \
                bash $benchmarks/gpu_study.sh "$(left)" "$STUDY_JOBS"
            (cd "$KEEP" && find study -name '*.json' -not -path '*checkpoint-*') | tar czf "$OUT/study.tgz" -C "$KEEP" -T -
        else
            say "study: not all images and labels are here yet"
        fi
        ;;
    *) say "there is no phase $phase" ;;
    esac
    say "$phase took $((SECONDS - begun)) s"
done
say "done"
