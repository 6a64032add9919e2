"""`python -m benchmarks.gpu_loops`: training and sampling steps with a network, as the suite's loop level times them, and whole
ones, captured and not. A line of JSON a provider goes to DIR/loops.jsonl as it is made. Not yet run on a GPU.

The networks are the suite's where diffusers can be imported; without it the MLP and a small U-Net of our own.
"""

import sys

from . import captured, loops, peers
from .networks import NETWORKS, OWN
from .ops import LeftOutError
from .record import Record, arguments


def measure(record: Record, name: str, batch: int, kind: str) -> None:
    try:
        cases = (captured if kind in captured.KINDS else loops).measure(name, batch, kind)
    except LeftOutError as why:
        record.row(what=kind, network=name, batch=batch, left_out=str(why))
        return
    for case in cases:
        record.row(what=kind, title=NETWORKS[name].title, **case)
        print(f"{case['name']:40}{case['seconds']['median'] * 1e3:12.3f} ms", flush=True)


def main() -> int:
    options = arguments(__doc__).parse_args()
    record = Record(options.out, "loops", options.dry_run)
    NETWORKS["own"] = OWN
    names = ["mlp", *(("cifar10", "small") if peers.DDPMScheduler else ("own",))]
    if options.dry_run:
        loops.BUDGET, loops.why_not_compiled = 0.0, lambda: "a dry run compiles nothing"
        captured.BUDGET, captured.STEPS = 0.0, 2
    for name in names:
        for batch in NETWORKS[name].batches[: 1 if options.dry_run else None]:
            for kind in ("sample", "train", *captured.KINDS):
                record.attempt(f"{kind} {name} {batch}", lambda n=name, b=batch, kind=kind: measure(record, n, b, kind))
    return 1 if record.failures else 0


if __name__ == "__main__":
    sys.exit(main())
