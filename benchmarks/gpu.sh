#!/usr/bin/env bash
# Proof and figures on a machine with a GPU, in stages: gpu.sh [--out DIR] [--dry-run] STAGE..
#
#   build    installs without a network, with the environment's torch (CUDA or ROCm), and says what serves the ops
#   test     the test suite; then, in a process of its own, the tests on a GPU (sizes past 2^31 are among them)
#   noise    radius, cosine and sine of all 2^32 words against the C++ kernels' bits
#   kernels  GPU time and host time against eager and the device's copy
#   tune     GPU time by the elements that a thread works on
#   loops    training and sampling with a network, captured and not: diffusers' U-Nets where it can be imported, else one of its own
#   profile  ncu on three kernels; memcheck on some of the tests on a GPU
#   compile  as kernels, of torch.compile
#   all      these, in this order
#
#   publish  DIR's files become benchmarks/results/<device>-<stage>.json, a plot, and the documents' GPU sections
#
# A stage writes DIR/STAGE.jsonl, a line a measurement as it is made, and is ended after 8 minutes (LIMIT seconds); one that
# fails stops no other. DIR: $OUT, or benchmarks/results. --dry-run walks through it on a CPU, quickly, and marks the rows.
#
# NOT YET RUN ON A GPU: rehearsed by `make rehearse`. PYTHON=... chooses the environment.
set -uo pipefail
PYTHON=${PYTHON:-python3} DIR=${OUT:-$(dirname "$0")/results} DRY=() STAGES=() PUBLISH=
KNOWN=(build test noise kernels tune loops profile compile)

while (($#)); do
    case $1 in
        --out) DIR=${2:?--out needs a folder} && shift ;;
        --dry-run) DRY=(--dry-run) ;;
        all) STAGES+=("${KNOWN[@]}") ;;
        publish) PUBLISH=1 DIR=${2:-$DIR} && shift $(($# > 1)) ;;
        *) [[ " ${KNOWN[*]} " == *" $1 "* ]] && STAGES+=("$1") || { echo "gpu.sh: no stage $1: ${KNOWN[*]} all" >&2 && exit 2; } ;;
    esac
    shift
done
((${#STAGES[@]})) || [ "$PUBLISH" ] || { sed -n '2,20p' "$0" && exit 2; }
mkdir -p "$DIR" && DIR=$(cd "$DIR" && pwd) || exit 2
[[ $PYTHON == */* ]] && PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")
cd "$(dirname "$0")/.." || exit 2
[ "$PUBLISH" ] && exec "$PYTHON" -m benchmarks.gpu_publish "$DIR"

# for what is left of the stage's time; interrupted first, so that pytest writes its totals
run() {
    local left=$((${LIMIT:-480} - SECONDS + begin))
    timeout -s INT -k 20 $((left > 1 ? left : 1)) "$@"
}
module() { run "$PYTHON" -m "benchmarks.$1" --out "$DIR" "${DRY[@]}" "${@:2}"; }
# a folder as a word of its own would be taken for one of tests, and the settings of pyproject.toml not be found
tests() { run "${@:2}" "$PYTHON" -m pytest -q -p benchmarks.gpu_tests "--rows=$DIR" "--rows-of=$1" ${DRY:+--rows-dry} "${TESTS[@]}"; }

build() { # a dry run leaves the installation as it is
    ((${#DRY[@]})) || run env FASTDDPM_FORCE_CPP=1 "$PYTHON" -m pip install -q --no-index --no-deps --no-build-isolation -e . ||
        { echo '{"stage": "build", "what": "install", "error": "pip failed"}' > "$DIR/build.jsonl" && return 1; }
    module record build && "$PYTHON" -m fastddpm.info
}
test_() { # the tests on a GPU first and by themselves: they take its memory, and time
    local failed=0 TESTS=(tests/test_triton_gpu.py)
    tests test || failed=1
    TESTS=(-n "${WORKERS:-8}" --dist loadfile --no-loadscope-reorder --ignore tests/test_triton_gpu.py)
    ((${#DRY[@]})) && TESTS=(tests/test_rows.py)
    tests test || failed=1
    return $failed
}
noise() { TRITON_INTERPRET=${#DRY[@]} module gpu_noise; }
kernels() { module gpu_bench; }
tune() { module gpu_tune; }
loops() { module gpu_loops; }
compile() { module gpu_bench --compile; }
profile() {
    local failed=0 SOME="keys_are or depend_on_the_layout or out_of_range"  # in one line: pytest's -k takes no other
    SOME+=" or (ops_at_every_size and key) or (variance_channels and given)"
    local TESTS=(tests/test_triton_gpu.py -k "$SOME")
    local counters=$DIR/profile.csv ncu=() sanitizer=()
    ((${#DRY[@]})) || ! command -v ncu > /dev/null ||
        ncu=(ncu --csv --print-units base --log-file "$counters" --profile-from-start off --metrics "$(module gpu_profile --metrics)")
    : > "$counters"
    run "${ncu[@]}" "$PYTHON" -m benchmarks.gpu_profile "${DRY[@]}" && module gpu_profile --read "$counters" || failed=1
    if command -v compute-sanitizer > /dev/null; then
        sanitizer=(compute-sanitizer --tool memcheck --error-exitcode 1 --launch-timeout 600)
    else
        echo "gpu.sh: no compute-sanitizer: the tests run without it" >&2
    fi
    # the caching allocator would hide an access beyond a tensor's end
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 tests profile "${sanitizer[@]}" || failed=1
    return $failed
}

TABLE="" FAILED=0
for stage in "${STAGES[@]}"; do
    begin=$SECONDS file=$DIR/$stage.jsonl
    rm -f "$file"
    if [ "$stage" = test ]; then test_; else "$stage"; fi
    rc=$?
    ((rc)) && FAILED=1
    rows=0 failures=0
    [ -f "$file" ] && rows=$(wc -l < "$file") && failures=$(grep -c '"error": ' "$file")
    TABLE+=$(printf '%-9s%5d%9d%7d%10d' "$stage" $rc $((SECONDS - begin)) "$rows" "$failures")$'\n'
done
printf '\n%-9s%5s%9s%7s%10s\n%s' stage rc seconds rows failures "$TABLE"
exit $FAILED
