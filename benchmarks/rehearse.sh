#!/usr/bin/env bash
# rehearse.sh DIR: the stages of gpu.sh in an environment like that of the machine they are for, and without a network.
#
# DIR is that environment, or is made one (which takes a network): its torch and triton, no diffusers, mypy or ruff. The tree
# is copied, so that its own installation stays. ROWS=... keeps the stages' files. An environment with diffusers is rehearsed
# likewise; its wheel alone does not import, it wants huggingface_hub's and those of what that imports beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
DIR=${1:?rehearse.sh needs the folder of an environment} COPY=$(mktemp -d)
trap 'rm -rf "$COPY"' EXIT

if [ ! -x "$DIR/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$DIR"
    # numpy: triton 3.6's interpreter fails on 2.4
    "$DIR/bin/pip" install -q torch==2.11.0 triton==3.6.0 "numpy<2.4" pytest "pytest-xdist>=3.8" pytest-benchmark hypothesis \
        mpmath scipy scikit-learn matplotlib pillow safetensors ninja "setuptools>=77" wheel tqdm
fi
PYTHON=$(cd "$DIR/bin" && pwd)/python
export PYTHON PIP_NO_INDEX=1 PATH=${PYTHON%/*}:$PATH LIMIT=${LIMIT:-1800} WORKERS=${WORKERS:-2}
git ls-files -z | tar --null -cf - -T - | tar -xf - -C "$COPY"

# gloo, which two tests want, speaks over the loopback
ALONE=(unshare -rn bash -c 'ip link set lo up && exec bash "$@"' --)
"${ALONE[@]}" -c true 2> /dev/null || { echo "rehearse.sh: no network namespace here: only pip has no index" >&2 && ALONE=(bash); }
ROWS=${ROWS:-$COPY/rows} FAILED=0
"${ALONE[@]}" "$COPY/benchmarks/gpu.sh" --out "$ROWS" build test || FAILED=1
"${ALONE[@]}" "$COPY/benchmarks/gpu.sh" --out "$ROWS" --dry-run noise kernels tune loops profile compile || FAILED=1
exit $FAILED
