"""`python -m benchmarks`: runs every stage with pytest-benchmark and prints one table, medians and ratios of one run.

Arguments are pytest's, e.g. `-k noising`.
"""

import json
import platform
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from fastddpm import _extension, info

OPTIONS = ["--benchmark-only", "--benchmark-disable-gc", "--benchmark-warmup=on", "--benchmark-warmup-iterations=3"]


def require_build() -> None:
    if _extension.module is None:
        sys.exit(f"benchmarks: the C++ kernels are not built, and the reference is not worth timing: {_extension.reason}")


def measure(arguments: list[str]) -> list[dict]:
    """Runs the stages and returns each case's provider, median and quartiles in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmarks.json"
        here = str(Path(__file__).parent)
        code = pytest.main([here, *OPTIONS, f"--benchmark-json={path}", "--benchmark-quiet", "-q", *arguments])
        if code != 0:
            sys.exit(int(code))
        cases = json.loads(path.read_text())["benchmarks"]
    return [{**case["extra_info"], **{name: case["stats"][name] for name in ("median", "q1", "q3")}} for case in cases]


def table(cases: list[dict]) -> str:
    """One row a case; the ratio is that case's median over fastddpm's of the same stage and shape."""
    fused = {(c["stage"], c["shape"]): c["median"] for c in cases if c["provider"] == "fastddpm"}
    rows = [f"{'stage':28}{'shape':16}{'provider':32}{'median':>12}{'quartiles':>24}{'/ fastddpm':>12}"]
    for c in sorted(cases, key=lambda c: (c["stage"], c["shape"], c["provider"] != "fastddpm", c["provider"])):
        spread = f"{c['q1'] * 1e6:.1f} .. {c['q3'] * 1e6:.1f}"
        ours = fused.get((c["stage"], c["shape"]))
        ratio = f"{c['median'] / ours:.2f}x" if ours else ""
        rows.append(f"{c['stage']:28}{c['shape']:16}{c['provider']:32}{c['median'] * 1e6:>9.1f} us{spread:>24}{ratio:>12}")
    return "\n".join(rows)


def main() -> None:
    require_build()
    cases = measure(sys.argv[1:])
    print("\n" + "\n".join(info.lines()[:3]))
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, float32\n\n{table(cases)}")


if __name__ == "__main__":
    main()
