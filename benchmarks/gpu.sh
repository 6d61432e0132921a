#!/usr/bin/env bash
# All that needs a GPU, the most important first, in less than nine minutes:
#
#     benchmarks/gpu.sh OUT
#
# from a checkout. It needs Python with PyTorch and NumPy; the contract suite also pytest, hypothesis,
# PyYAML, Pillow, tqdm and tensorboard, and is several times faster with pytest-xdist; the check
# jsonargparse. What is missing is named at the start. Results are written into the folder OUT as
# they come: summary.txt, tests.txt, profile.txt (with the algorithm chosen for each convolution),
# check.txt, speed.json, speed.md, speed.txt, memory.txt.
#
# Environment: PYTHON (python3); PEERS, a folder that holds higher and learn2learn where they are
# not installed; PEER_TASKS (8), how many tasks the peers are timed on; TOTAL (520), seconds.
set -u

if [ $# -ne 1 ]; then
    echo "usage: benchmarks/gpu.sh OUT" >&2
    exit 2
fi
mkdir -p "$1"
OUT=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
TOTAL=${TOTAL:-520}
export PYTHONPATH="$PWD${PEERS:+:$PEERS}${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
: >"$OUT/summary.txt"

say() {
    echo "[${SECONDS}s] $*" | tee -a "$OUT/summary.txt"
}

# part FILE SECONDS COMMAND...: appends the output to OUT/FILE; what fails does not stop the rest.
part() {
    local file=$1 budget=$2 left=$((TOTAL - SECONDS))
    shift 2
    [ "$budget" -gt "$left" ] && budget=$left
    if [ "$budget" -lt 10 ]; then
        say "skipped, out of time: $*"
        return
    fi
    say "$*"
    # An interrupt lets pytest and the benchmarks report what they have.
    timeout --signal=INT --kill-after=8 "$budget" "$@" 2>&1 | tee -a "$OUT/$file"
    local code=${PIPESTATUS[0]}
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
        say "stopped after $budget s; $file holds what was done by then"
    elif [ "$code" -ne 0 ]; then
        say "ended with code $code"
    fi
}

has() {
    "$PYTHON" -c "import $1" 2>/dev/null
}

# missing MODULE...: those that this Python does not have.
missing() {
    "$PYTHON" -c 'import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))' "$@"
}

if ! lacking=$(missing torch numpy) || [ -n "$lacking" ]; then
    say "$PYTHON cannot run the benchmarks; it lacks: ${lacking:-itself} (PYTHON names another)"
    exit 1
fi
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    say "PyTorch sees no CUDA device: nothing to do"
    exit 1
fi
say "$("$PYTHON" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())')"
has higher || say "higher is not there (PEERS names its folder): rows are without it"
has learn2learn || say "learn2learn is not there or cannot be imported: rows are without it"

untested=$(missing pytest hypothesis yaml PIL tqdm tensorboard)
if [ -z "$untested" ]; then
    mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | sort)
    has xdist && parallel=(--numprocesses 8) || parallel=()
    part tests.txt 75 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider -p no:benchmark --tb=short \
        --durations=8 "${parallel[@]}" "${files[@]}"
else
    say "skipped the contract suite, for this Python lacks: $untested"
fi

# Under INFO the kernel says which algorithm it has chosen for each convolution, and from what times.
profile='import logging, sys; logging.basicConfig(level=logging.INFO, format="%(message)s")
sys.path.insert(0, "benchmarks"); import profile_step; profile_step.main()'
part profile.txt 40 "$PYTHON" -c "$profile" --device cuda --tasks 64
part profile.txt 40 "$PYTHON" -c "$profile" --device cuda --tasks 32 \
    --network conv4-32-84 --precision bfloat16

if [ -z "$(missing jsonargparse)" ]; then
    part check.txt 60 "$PYTHON" -m fewshot_blo check --device cuda --check_tasks 2
else
    say "skipped fewshot-blo check, for this Python lacks jsonargparse"
fi

part speed.txt 260 "$PYTHON" benchmarks/speed.py --rows gpu --device cuda --seconds 220 \
    --row_seconds 12 --repeats 5 --peer_tasks "${PEER_TASKS:-8}" --output "$OUT/speed.json"

part memory.txt 45 "$PYTHON" benchmarks/memory.py --device cuda --tasks 8 --network conv4-32-84
part memory.txt 30 "$PYTHON" benchmarks/memory.py --device cuda --tasks 32 --network conv4-64-28

say "done"
