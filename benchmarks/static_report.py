"""`python -m benchmarks.static_report`: the Triton kernels as machine code, and the roofline that it implies, without a GPU.

Writes the section between its two markers in docs/performance.md. No figure there is a measurement.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import triton
from tqdm import tqdm

from . import static
from .docs import markdown

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- static report: begin -->", "<!-- static report: end -->"
SIZES = {"fp32": 4, "bf16": 2}
ELEMENTS = 2**26
BANDWIDTH = 3.35e12
CLOCK = 1.755e9
ISSUED = 132 * 4 * 32 * CLOCK
"""An H100 SXM: bytes/s, and instructions of a thread/s: SMs, schedulers, lanes of a warp, clock."""

TEXT = f"""\
## Triton kernels: static report

**Compiled and counted, not measured.** Triton {triton.__version__} compiles each kernel for GPUs that are not here, and
what came out is counted. Main variants: contiguous data, 16-byte aligned, noise from a key, the blocks that the ops launch
for 2^26 elements in samples of 3 x 64 x 64 (with as many elements a thread from 2^22 elements on, and in a loss from samples
of 3072, a CIFAR image's); where variance channels are learned, the exact likelihood. Renew:
`python -m benchmarks.static_report`. `tests/test_triton_aot.py` holds the instructions of every variant to a budget and counts
them with the same code, `benchmarks/static.py`.

### What the compiler made

One value where all targets agree, otherwise {" / ".join(static.TARGETS)}. For fill_key, advance and timesteps an element is
a sample, for finish and finish_hybrid a program's share of a loss.

- *Block* is a program's elements, *warps* its warps.
- *Instructions an element* are all of a thread's over its elements: SASS, on gfx942 GCN (where a wavefront has 64 lanes, so
  a thread has half the elements). They are what stands in the code, NOPs aside: the prologue too, the slow paths of
  `sqrt.rn` and of a division, which hardly ever run, and in the bound's kernels (vlb, hybrid, terms) **both branches, t = 0
  and t > 0, of which a program runs one**.
- *Spills* are accesses to local memory; on gfx942 scalar registers kept in lanes of a vector register, which costs no
  memory.
- *Loads, stores* are the bytes of a thread's narrowest and widest global access. Data are accessed by 16; narrower are a
  sample's scalars (on gfx942 most come by scalar loads, not counted here) and a program's sums.

{{compiled}}

### The roofline they imply on an H100 SXM

Two floors of the time for 2^{ELEMENTS.bit_length() - 1} elements: the bytes that a kernel must move over
{BANDWIDTH / 1e12:.2f} TB/s, and the instructions for sm_90 over the issue rate, 132 SMs x 4 schedulers x 32 lanes x
{CLOCK / 1e9:.3f} GHz = {ISSUED / 1e12:.1f} T/s. The longer one binds. **A bound from static counts, not a measurement**: no
copy reaches the full bandwidth; integer instructions, conversions and square roots issue at half that rate and less, so
arithmetic takes longer than its floor; and a card may clock higher than that. In the bound's kernels, marked \\*, a program
runs less than was counted: there the issue column is no floor, only the bandwidth's is, and which binds stays open.

{{roofline}}
"""


def element_variants() -> dict[str, static.Variant]:
    made: dict[str, static.Variant] = {}
    for data in SIZES:
        made |= static.main_variants(data) | static.learned_variants(data) | static.bound_variants(data)
    return made


def other_variants() -> dict[str, static.Variant]:
    """Each kernel once, at its largest tile."""
    first: dict[Any, tuple[str, static.Variant]] = {}
    for name, variant in static.sample_variants().items():
        first.setdefault(variant.kernel, (name, variant))
    return dict(first.values())


def compiled(reports: dict[str, list[dict]]) -> str:
    columns = {
        "block": lambda r: str(r["block"]),
        "warps": lambda r: str(r["warps"]),
        "registers": lambda r: str(r["registers"]),
        "stack, bytes": lambda r: str(r["stack"]),
        "spills": lambda r: str(r["spills"] + r.get("scalar_spills", 0)),
        "shared memory, bytes": lambda r: str(r["shared"]),
        "instructions an element": lambda r: f"{r['per_element']:.1f}",
        "loads": lambda r: _range(r["load_bytes"]),
        "stores": lambda r: _range(r["store_bytes"]),
    }
    rows = [[name, *(_agreed(list(map(column, of))) for column in columns.values())] for name, of in reports.items()]
    return markdown(["", *columns], rows)


def _range(widths: list[int]) -> str:
    return "-" if not widths else str(widths[0]) if len(widths) == 1 else f"{widths[0]}..{widths[-1]}"


def _agreed(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def roofline(variants: dict[str, static.Variant], instructions: dict[str, float]) -> str:
    rows = []
    for name, variant in variants.items():
        moved, issued = variant.accesses() * SIZES[variant.data], instructions[name]
        memory, issue = (1e6 * ELEMENTS * n / rate for n, rate in ((moved, BANDWIDTH), (issued, ISSUED)))
        floor, binds = max((memory, "bandwidth"), (issue, "issue"))
        both_branches = "TANH" in variant.kernel.arg_names
        if both_branches and binds == "issue":
            floor, binds = memory, "open"
        figures = (f"{issued:.1f}", f"{memory:.0f}", "< " * both_branches + f"{issue:.0f}", binds, f"{floor:.0f}")
        rows.append([name + r"\*" * both_branches, str(moved), *figures])
    head = ["", "bytes an element", "instructions an element", "bandwidth, us", "issue, us", "binds", "at least, us"]
    return markdown(head, rows)


def section() -> str:
    elements = element_variants()
    every = elements | other_variants()
    reports = {name: [static.report(variant, target) for target in static.TARGETS] for name, variant in tqdm(every.items())}
    on_h100 = list(static.TARGETS).index("sm_90")
    instructions = {name: of[on_h100]["per_element"] for name, of in reports.items()}
    return TEXT.format(compiled=compiled(reports), roofline=roofline(elements, instructions))


def main() -> None:
    os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")  # the disassembler takes most of its time over it
    if not re.search(f"{BEGIN}.*{END}", DOCUMENT.read_text(), re.DOTALL):
        sys.exit(f"static_report: {DOCUMENT} has no {BEGIN} .. {END}")
    inside = f"{BEGIN}\n\n{section()}\n{END}"
    text = DOCUMENT.read_text()  # as it is now: compiling takes minutes
    DOCUMENT.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: inside, text, flags=re.DOTALL))
    print(f"written: {DOCUMENT}")


if __name__ == "__main__":
    main()
