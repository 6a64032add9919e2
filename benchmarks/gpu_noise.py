"""`python -m benchmarks.gpu_noise`: the radius (by either square root), cosine and sine of all 2^32 words, made by the Triton
kernels' functions on a GPU, have the bits of the C++ kernels'. A line of JSON a part of the words goes to DIR/noise.jsonl. Not
yet run on a GPU.

With TRITON_INTERPRET=1, which gpu.sh sets for a dry run, it goes through the first and the last words, in Triton's interpreter.
"""

import os
import sys

import torch
import triton
import triton.language as tl
from fastddpm.kernels.philox import cos_sin, radius_by

from fastddpm.reference import philox

from .record import Record, arguments

DRY = os.environ.get("TRITON_INTERPRET") == "1"
CHUNK, PART = 1 << 24, 1 << 28
BLOCK = 1024
MADE = ("radius", "radius by the root without a branch", "cos", "sin")


@triton.jit
def polar(first, radius_ptr, root_ptr, cos_ptr, sin_ptr, BLOCK: tl.constexpr):  # noqa: N803
    """Of the words from `first` on."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = (first + place).to(tl.uint32)
    cos, sin = cos_sin(word)
    tl.store(radius_ptr + place, radius_by(word, False))
    tl.store(root_ptr + place, radius_by(word, True))
    tl.store(cos_ptr + place, cos)
    tl.store(sin_ptr + place, sin)


def made(first: int, count: int) -> list[torch.Tensor]:
    """MADE by Triton."""
    out = [torch.empty(count, device="cpu" if DRY else "cuda") for _ in MADE]
    polar[(count // BLOCK,)](first, *out, BLOCK=BLOCK, enable_fp_fusion=False)
    return [x.view(torch.int32) for x in out]


def wanted(first: int, count: int) -> list[torch.Tensor]:
    """The same by C++: normals are the radius where the cosine is 1, and the cosine and the sine where the radius is 1."""
    pairs, z = torch.empty(count, 2, dtype=torch.int64), torch.empty(2, count, 2)
    for column, other, out in ((0, 0, z[0]), (1, word_of_radius_one(), z[1])):
        pairs.fill_(other)[:, column] = torch.arange(first, first + count)
        torch.ops.fastddpm.box_muller_(out.view(-1, 4), pairs.view(-1, 4))
    return [x.contiguous().view(torch.int32) for x in (z[0, :, 0], z[0, :, 0], z[1, :, 0], z[1, :, 1])]


def word_of_radius_one() -> int:
    near = round(0.6065306597126334 * 2**32) + 32 * torch.arange(-500, 500)  # exp(-1/2)
    return int(near[philox.radius(near) == 1][0])


def compare(record: Record, part: int, size: int, chunk: int) -> None:
    wrong = dict.fromkeys(MADE, 0)
    for first in range(part, part + size, chunk):
        for name, got, right in zip(MADE, made(first, chunk), wanted(first, chunk), strict=True):
            wrong[name] += int((got != right.to(got.device)).sum())
    record.row(what="words", first=part, count=size, wrong=wrong)
    if any(wrong.values()):
        raise AssertionError(f"{size} words from {part}: {wrong} have not the C++ kernels' bits")
    print(f"words {part:#011x} .. {part + size:#011x}: the C++ kernels' bits", flush=True)


def fma(self, x, y, z):
    """A method for Triton's InterpreterBuilder in place of its create_fma, which rounds twice (tests/triton_interpret too)."""
    return type(z)(philox.fma(*(torch.tensor(v.data) for v in (x, y, z))).numpy(), z.dtype.scalar)


def main() -> int:
    options = arguments(__doc__).parse_args()
    record = Record(options.out, "noise", DRY)
    if DRY:
        from triton.runtime.interpreter import InterpreterBuilder

        InterpreterBuilder.create_fma = fma
    parts, size, chunk = ([0, 2**32 - 2 * BLOCK], 2 * BLOCK, BLOCK) if DRY else (range(0, 2**32, PART), PART, CHUNK)
    for part in parts:
        record.attempt(f"words from {part}", lambda part=part: compare(record, part, size, chunk))
    return 1 if record.failures else 0


if __name__ == "__main__":
    sys.exit(main())
