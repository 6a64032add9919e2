#!/usr/bin/env bash
# Proof and figures on a machine with a GPU, in one command: build, the whole test suite, memcheck where it is installed, then
# the kernels' GPU time and the host's apart (benchmarks/results/<device>-graphs.json), and the benchmark suite, kernel, call and
# loop levels (benchmarks/results/<device>.json and its plots).
#
# NOT YET RUN ON A GPU: written on a machine without one, where only `gpu_bench --dry-run` could be tried.
#
# It uses the environment it finds, with that environment's torch (CUDA or ROCm): PYTHON=... benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU here"'
"$PYTHON" -m pip install --no-build-isolation -e ".[test]"
"$PYTHON" -m fastddpm.info
"$PYTHON" -m pytest

if command -v compute-sanitizer > /dev/null; then
    # the caching allocator would hide an access beyond a tensor's end; what compiles or allocates gigabytes is left out
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 --launch-timeout 600 \
        "$PYTHON" -m pytest -q tests/test_triton_gpu.py -k "not past_two and not million and not compiled and not replay"
else
    echo "gpu.sh: compute-sanitizer is not installed: memcheck left out"
fi

"$PYTHON" -m benchmarks.gpu_bench
"$PYTHON" -m benchmarks
