#!/usr/bin/env bash
# Proof and figures on a machine with a GPU, in stages: gpu.sh [--out DIR] [--dry-run] STAGE..
#
#   build    installs without a network, with the environment's torch (CUDA or ROCm), and says what serves the ops
#   test     the test suite, the tests on a GPU in it (DIR/test.xml)
#   noise    radius, cosine and sine of all 2^32 words against the C++ kernels' bits (DIR/noise.jsonl)
#   kernels  GPU time and host time against eager and the device's copy (DIR/kernels.jsonl)
#   compile  the same of torch.compile (DIR/compile.jsonl)
#   profile  memcheck of the small tests on a GPU, where compute-sanitizer is there and takes the host
#   all      these, in this order
#
# A stage is ended after 8 minutes, and keeps what it had measured; a stage that fails stops no other. DIR: $OUT, or
# benchmarks/results. --dry-run walks noise, kernels and compile on the CPU; its rows are marked.
#
# NOT YET RUN ON A GPU: only --dry-run was tried. PYTHON=... chooses the environment.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} DIR=${OUT:-benchmarks/results} DRY=() STAGES=()

while (($#)); do
    case $1 in
        --out) DIR=${2:?--out needs a folder} && shift ;;
        --dry-run) DRY=(--dry-run) ;;
        all) STAGES+=(build test noise kernels compile profile) ;;
        build | test | noise | kernels | compile | profile) STAGES+=("$1") ;;
        *) echo "gpu.sh: no stage $1: build test noise kernels compile profile all" >&2 && exit 2 ;;
    esac
    shift
done
((${#STAGES[@]})) || { sed -n '2,12p' "$0" && exit 2; }
mkdir -p "$DIR" && DIR=$(cd "$DIR" && pwd) || exit 2

run() { timeout 480 "$@"; }

build() {
    run env FASTDDPM_FORCE_CPP=1 "$PYTHON" -m pip install -q --no-index --no-deps --no-build-isolation -e . &&
        run "$PYTHON" -m fastddpm.info
}
test_() { run "$PYTHON" -m pytest -q -n auto --dist loadfile --junitxml "$DIR/test.xml"; }
noise() { run env TRITON_INTERPRET=$((${#DRY[@]})) "$PYTHON" -m benchmarks.gpu_noise --out "$DIR"; }
kernels() { run "$PYTHON" -m benchmarks.gpu_bench --out "$DIR" "${DRY[@]}"; }
compile() { run "$PYTHON" -m benchmarks.gpu_bench --out "$DIR" --compile "${DRY[@]}"; }
profile() {
    command -v compute-sanitizer > /dev/null || { echo "gpu.sh: no compute-sanitizer: memcheck left out" && return 0; }
    # the caching allocator would hide an access beyond a tensor's end; what compiles or allocates gigabytes is left out
    run env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 --launch-timeout 600 \
        "$PYTHON" -m pytest -q tests/test_triton_gpu.py -k "not past_two and not million and not compiled and not replay"
}

TABLE="" FAILED=0
for stage in "${STAGES[@]}"; do
    begin=$SECONDS
    if [ "$stage" = test ]; then test_; else "$stage"; fi
    rc=$?
    ((rc)) && FAILED=1
    rows=0 failures=0 file="$DIR/$stage.jsonl"
    [ -f "$file" ] && rows=$(wc -l < "$file") && failures=$(grep -c '"error": ' "$file")
    TABLE+=$(printf '%-9s%5d%9d%7d%10d' "$stage" $rc $((SECONDS - begin)) "$rows" "$failures")$'\n'
done
printf '\n%-9s%5s%9s%7s%10s\n%s' stage rc seconds rows failures "$TABLE"
exit $FAILED
