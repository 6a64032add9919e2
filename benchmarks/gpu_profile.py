"""`python -m benchmarks.gpu_profile`: noising, mse and the reverse step once each, for ncu to count; with --read CSV, what it
counted goes to DIR/profile.jsonl, a line a kernel. Not yet run on a GPU.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import torch

from .gpu_bench import Case, fused
from .record import Record, arguments

KERNELS = ("noising", "mse", "reverse")
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "smsp__inst_executed.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)


def launch(device: str) -> None:
    """Each stage twice, the second time under the profiler."""
    stages = fused(Case(1 << (26 if device == "cuda" else 16), torch.float32, device))
    for what in KERNELS:
        stages[what]()
        if device == "cuda":
            torch.cuda.synchronize()
            with torch.cuda.profiler.profile():
                stages[what]()
                torch.cuda.synchronize()


def counted(lines: list[str]) -> dict[str, dict[str, float]]:
    """{kernel: {metric: value}} of ncu's table, which says one metric a line."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for line in csv.DictReader(line for line in lines if line.startswith('"')):
        found[line["Kernel Name"]][line["Metric Name"]] = float(line["Metric Value"].replace(",", ""))
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--metrics", action="store_true", help="print what ncu shall count")
    parser.add_argument("--read", type=Path, metavar="CSV")
    options = parser.parse_args()
    if options.metrics:
        print(",".join(METRICS))
    elif options.read:
        record, kernels = Record(options.out, "profile", options.dry_run), counted(options.read.read_text().splitlines())
        for name, metrics in kernels.items():
            record.row(what=name, metrics=metrics)
        if not kernels:
            record.row(what="counters", left_out="ncu counted no kernel here")
    else:
        launch("cpu" if options.dry_run else "cuda")


if __name__ == "__main__":
    sys.exit(main())
