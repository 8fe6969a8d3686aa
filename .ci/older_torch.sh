#!/usr/bin/env bash
# Run the fast tests with older versions of torch, which CI does not: bash .ci/older_torch.sh [FOLDER]
#
# The wheels of older versions are CUDA builds. They are installed here without the CUDA libraries, of which
# `cuda_stand_ins.py` puts empty ones in their place: that is enough to import torch and to compute on a CPU. Each wheel
# is 0.5 to 0.9 GB to fetch and about 2 GB on disk. FOLDER keeps the environments for the next time; without one they
# are removed. Needs python3 (3.11 or newer) with venv, gcc, readelf and a package registry.
#
# Last result: `older_torch.md` beside this file.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -gt 0 ]; then
    mkdir -p "$1"
    scratch=$(cd "$1" && pwd)
else
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 TOKENIZERS_PARALLELISM=false

# What the environment's torch asks for, without CUDA and Triton.
needs_of_torch() {
    "$1" - << 'PY'
import re
from importlib.metadata import requires

for line in requires("torch"):
    if "extra ==" not in line and not re.match("nvidia|cuda|triton", line):
        print(line)
PY
}

# The part of CUDA that is installed: its runtime, which torch's metadata names by itself or as a part of the toolkit.
runtime_of_cuda() {
    "$1" - << 'PY'
import re
from importlib.metadata import requires

named = re.compile("nvidia-cuda-runtime|cuda-toolkit")
names = [line.partition(";")[0].strip() for line in requires("torch") if named.match(line)]
print(re.sub(r"^cuda-toolkit(\[.*?\])?", "cuda-toolkit[cudart]", names[0]))
PY
}

# What the tests need, but for torch and what asks for torch: pip would fetch its CUDA libraries.
needs_of_tests() {
    python3 - << 'PY'
import re
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
for line in [*project["dependencies"], *extras["vision"], *extras["test"]]:
    if not re.match("torch|accelerate|peft|hf-amp", line):
        print(line)
PY
}

# try TORCH TRANSFORMERS ACCELERATE HUGGINGFACE_HUB
try() {
    local environment=$scratch/torch-$1-transformers-$2 python
    python=$environment/bin/python
    printf '\n=== torch %s, transformers %s, accelerate %s, huggingface_hub %s ===\n' "$@"
    if [ ! -e "$environment/ready" ]; then
        python3 -m venv "$environment"
        "$python" -m pip install -q --no-deps "torch==$1"
        needs_of_torch "$python" > "$environment/needs.txt"
        needs_of_tests >> "$environment/needs.txt"
        "$python" -m pip install -q -r "$environment/needs.txt" "transformers==$2" "huggingface_hub==$4"
        "$python" -m pip install -q --no-deps "accelerate==$3" peft
        "$python" -m pip install -q "$(runtime_of_cuda "$python")"
        "$python" .ci/cuda_stand_ins.py "$environment"/lib/python3.*/site-packages
        touch "$environment/ready"
    fi
    "$python" -m pytest -q -n 2 -m "not slow"
}

status=0
try 2.6.0 5.0.0 1.12.0 1.3.0 || status=$?
try 2.11.0 5.17.0 1.15.0 1.33.0 || status=$?
exit "$status"
