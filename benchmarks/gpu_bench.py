"""`python -m benchmarks.gpu_bench`: noising, mse, both together, the reverse step, the variational bound and the hybrid loss on
a GPU, against eager and the device's own copy, from 2^16 to 2^28 elements, the largest question first: 2^26. A line of JSON a
measurement goes to DIR/kernels.jsonl as it is made; with --compile, torch.compile is the provider and DIR/compile.jsonl the
file, so that minutes of compiling cost no other figure. Not yet run on a GPU.

GPU time: calls captured in a CUDA graph, replayed between two events; the median of ten. The calls take turns with so many
sets of inputs that these overflow the last cache twice, and each call finds its own in memory alone. Host time apart: calls at
a size that costs the GPU nothing, without waiting for it. `--dry-run` walks through all of it on the CPU at the smallest size,
where the times mean nothing, and marks its rows as dry.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

import fastddpm as fd
from fastddpm.rows import StepRow, unpack

from . import eager
from .record import Record, arguments

SAMPLE = (4, 64, 64)
SIZES = [1 << n for n in (26, 28, 24, 22, 20, 18, 16)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ACCESSES = {
    "noising": 2,
    "mse": 1,
    "mse gradient": 2,
    "noising + loss": 4,
    "reverse": 3,
    "kl gradient": 6,
    "hybrid gradient": 5,
}
"""How many times each stage must move a tensor of its size (mse gradient: read, write; kl: x_0, x_t, an output of two and a
gradient of two; hybrid: without x_t, made again of the key)."""


SCHEDULE = fd.NoiseSchedule.linear(1000)
ROWS = fd.samplers.ddpm(SCHEDULE)


class Case:
    """A stage's inputs at one size; `number` gives them noise and timesteps of their own."""

    def __init__(self, elements: int, dtype: torch.dtype, device: str, number: int = 0):
        batch = max(1, elements // 2**14)
        self.schedule, self.rows = SCHEDULE, ROWS  # shared, and so are their tables on the device
        self.x = torch.rand(batch, *SAMPLE, device=device, dtype=dtype) * 2 - 1
        self.output = torch.randn_like(self.x).requires_grad_()
        self.key = fd.noise_key(number, batch_size=batch, device=device)
        self.t = fd.timesteps(self.key, 1000)
        self.k = eager.Tables.of(self.schedule, self.x.device)
        self.table = self.rows.on(self.x.device, torch.float32)
        self.target = torch.empty_like(self.x)
        self.wide = torch.randn(batch, 2 * SAMPLE[0], *SAMPLE[1:], device=device, dtype=dtype).mul_(0.3).requires_grad_()
        self.x_t = fd.q_sample(self.x, self.t, self.schedule, self.key)


BOUND = ("epsilon", "learned_range")


# ---- the stages: fastddpm's, and the same in plain torch ----


def fused(case: Case) -> dict[str, Callable]:
    def noising():
        return fd.q_sample(case.x, case.t, case.schedule, case.key)

    def mse():
        return fd.mse_loss(case.output.detach(), case.t, case.schedule, case.key)

    def mse_gradient():
        return torch.autograd.grad(fd.mse_loss(case.output, case.t, case.schedule, case.key), case.output)[0]

    def pair():
        return noising(), mse_gradient()

    def reverse():
        return fd.reverse_step(case.output.detach(), case.x, case.t, case.rows, case.key, return_x_0=False)[0]

    def kl_gradient():
        return torch.autograd.grad(fd.vlb_loss(case.wide, case.x, case.x_t, case.t, case.schedule, *BOUND), case.wide)[0]

    def hybrid_gradient():
        loss = fd.hybrid_loss(case.wide, case.x, case.key, case.t, case.schedule, variance_type=BOUND[1])["loss"]
        return torch.autograd.grad(loss, case.wide)[0]

    stages = (noising, mse, mse_gradient, pair, reverse, kl_gradient, hybrid_gradient)
    return dict(zip(ACCESSES, stages, strict=True))


def _add_noise(x, t, k):
    return eager.draw(x, t, k)[0]


def _mse(out):
    return eager.mse_loss(out, torch.randn_like(out))


def _reverse(out, x, table, t):
    k = unpack(StepRow, table[t].view(-1, 1, 1, 1, table.shape[1]))
    x_0 = torch.clamp(k.p_x * x + k.p_o * out, -k.bound, k.bound)
    return (k.k_x * x + k.k_0 * x_0 + k.k_o * out + k.sigma * torch.randn_like(x)).to(x.dtype)


def _hybrid(wide, x_0, t, k):
    x_t, z = eager.draw(x_0, t, k)
    return eager.hybrid_loss(wide, x_0, x_t, t, k, z)


PLAIN = (_add_noise, _mse, eager.draw_and_loss, _reverse, eager.kl_loss, _hybrid)


def plain(case: Case, functions: tuple[Callable, ...] = PLAIN) -> dict[str, Callable]:
    add_noise, mse, both, reverse, kl, hybrid = functions

    def pair():
        x_t, loss = both(case.x, case.t, case.k, case.output)
        return x_t, torch.autograd.grad(loss, case.output)[0]

    stages = (
        lambda: add_noise(case.x, case.t, case.k),
        lambda: mse(case.output.detach()),
        lambda: torch.autograd.grad(mse(case.output), case.output)[0],
        pair,
        lambda: reverse(case.output.detach(), case.x, case.table, case.t),
        lambda: torch.autograd.grad(kl(case.wide, case.x, case.x_t, case.t, case.k), case.wide)[0],
        lambda: torch.autograd.grad(hybrid(case.wide, case.x, case.t, case.k), case.wide)[0],
    )
    return dict(zip(ACCESSES, stages, strict=True))


def check(case: Case) -> None:
    """No figure without a passing check: fastddpm's stages against plain torch's, given its noise."""
    stages = fused(case)
    z = fd.randn(case.key, case.x.shape)
    close = {"rtol": 2e-2, "atol": 2e-2} if case.x.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(stages["noising"](), eager.add_noise(case.x, case.t, case.k, z), **close)
    torch.testing.assert_close(stages["mse"](), F.mse_loss(case.output.detach().float(), z), rtol=1e-4, atol=0)
    gradient = 2 * (case.output.detach().float() - z) / z.numel()
    torch.testing.assert_close(stages["mse gradient"]().float(), gradient, rtol=2e-2, atol=1e-2 / z.numel())
    wanted = torch.autograd.grad(eager.kl_loss(case.wide, case.x, case.x_t, case.t, case.k), case.wide)[0].float()
    got = stages["kl gradient"]().float()
    later = case.t > 0  # at 0 the tanh form of the plain code is another function, within 1.8e-4
    torch.testing.assert_close(got[later], wanted[later], rtol=2e-2, atol=1e-2 * float(wanted[later].abs().mean()))


# ---- the two clocks ----


def rotations(moved: int, device: str) -> int:
    """How many tensors of so many bytes overflow the last cache twice."""
    if device == "cpu":  # a dry run
        return 2
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return -(-2 * (max(cache, INFINITY_CACHE) if torch.version.hip else cache) // moved)


INFINITY_CACHE = 2**28
"""AMD's cache behind the L2, at most, which no property tells."""


def gpu_seconds(rotated: list[Callable], device: str) -> float:
    """Seconds of the GPU a call; `rotated`: the same call, each with inputs of its own."""
    turns = itertools.cycle(rotated)

    def call():
        return next(turns)()

    if device == "cpu":
        return statistics.mean(host_seconds(one, 1) for one in rotated)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    calls = max(1, min(200, int(20 / max(begin.elapsed_time(end), 1e-3))))  # a replay of about 20 ms
    calls = -(-calls // len(rotated)) * len(rotated)  # in whole rounds
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    times = []
    for _ in range(11):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / calls)
    del graph
    return statistics.median(times[1:])


def host_seconds(call: Callable, calls: int = 200) -> float:
    """Seconds of the host a call, the GPU's queue never full."""
    for _ in range(3):
        call()
    times = []
    for _ in range(1 if calls == 1 else 11):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - begin) / calls)
    return statistics.median(times)


# ---- the run ----


def providers(cases: list[Case], compiled: bool) -> dict[str, list[dict[str, Callable]]]:
    if not compiled:
        return {"fastddpm": [fused(case) for case in cases], "eager": [plain(case) for case in cases]}
    torch.compiler.reset()
    functions = tuple(map(torch.compile, PLAIN))
    return {"torch.compile": [plain(case, functions) for case in cases]}


def measure(record: Record, elements: int, name: str, device: str, compiled: bool) -> None:
    moved = elements * DTYPES[name].itemsize
    cases = [Case(elements, DTYPES[name], device, number) for number in range(rotations(moved, device))]
    check(cases[0])
    about = {"elements": elements, "dtype": name}
    copy = 2 * moved / gpu_seconds([partial(case.target.copy_, case.x) for case in cases], device)
    record.row(what="copy", provider="device", **about, bytes_per_second=copy)
    for provider, stages in providers(cases, compiled).items():
        for what, accesses in ACCESSES.items():

            def one(what=what, provider=provider, stages=stages, accesses=accesses):
                seconds = gpu_seconds([each[what] for each in stages], device)
                of_copy = accesses * moved / seconds / copy
                record.row(what=what, provider=provider, **about, gpu_seconds=seconds, of_copy_bandwidth=of_copy)
                print(f"{what:16}{provider:16}2^{elements.bit_length() - 1:<4}{name:10}{seconds * 1e6:12.1f} us"
                      f"{of_copy:8.1%} of the copy's bandwidth", flush=True)  # fmt: skip

            record.attempt(f"{what}, {provider}, {elements} of {name}", one)


def measure_host(record: Record, device: str, compiled: bool) -> None:
    case = Case(1 << 14, torch.float32, device)
    for provider, (stages,) in providers([case], compiled).items():
        for what in ACCESSES:

            def one(what=what, provider=provider, stages=stages):
                seconds = host_seconds(stages[what], 200 if device == "cuda" else 1)
                record.row(what=what, provider=provider, host_seconds=seconds)
                print(f"{what:16}{provider:16}{seconds * 1e6:12.1f} us of the host", flush=True)

            record.attempt(f"{what}, {provider}, host", one)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--compile", action="store_true", help="torch.compile alone")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    compiled = options.compile and not options.dry_run  # a dry run compiles nothing: it walks the same lines in eager
    torch.manual_seed(0)
    record = Record(options.out, "compile" if options.compile else "kernels", options.dry_run)
    for n in SIZES[-1:] if options.dry_run else SIZES:
        for name in DTYPES:
            record.attempt(f"{n} of {name}", lambda n=n, name=name: measure(record, n, name, device, compiled))
    record.attempt("host", lambda: measure_host(record, device, compiled))
    return 1 if record.failures else 0


if __name__ == "__main__":
    sys.exit(main())
