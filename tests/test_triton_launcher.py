"""What the launcher sends to a GPU is what triton's own way would send. None is needed: the driver is a stand-in, and so
are the compiled kernels, which remember their launches."""

import sys
from contextlib import contextmanager
from functools import partial

import pytest
import torch

pytest.importorskip("triton")

import every_op
import triton
from fastddpm.kernels import adamw_, launcher, noising, reduce, reverse_step, tile
from fastddpm.kernels.noising import noising_kernel
from helpers import on_triton, spread
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fastddpm import NoiseSchedule, advance, noise_key, samplers, timesteps

MODULES = [module for name, module in sys.modules.items() if name.startswith("fastddpm.kernels.")]
KERNELS = {kernel for module in MODULES for name, kernel in vars(module).items() if name.endswith("_kernel")}


class Driver:
    device = -1  # a CPU tensor's

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device):
        return 7 + device

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


class Compiled:
    made, launched = [], []

    def __init__(self, source, target, options):
        self.function, self.packed_metadata = object(), (options["num_warps"], 1, 0)
        self.made.append(self)

    def launch_metadata(self, *arguments):
        return None

    def run(self, x, y, z, stream, function, packed_metadata, launch_metadata, enter_hook, exit_hook, *arguments):
        self.launched.append((self, x, y, z, stream, function, packed_metadata, *arguments))


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.setattr(triton.compiler, "compile", Compiled)
    monkeypatch.setattr(Compiled, "made", [])
    monkeypatch.setattr(Compiled, "launched", [])
    stand_in = Driver()
    monkeypatch.setattr(triton.runtime.driver, "_active", stand_in)
    for kernel in KERNELS:
        kernel.device_caches.clear()
    yield stand_in
    for kernel in KERNELS:
        kernel.device_caches.clear()


@pytest.fixture
def ways(monkeypatch):
    """Which kernels went triton's own way."""
    went, run = [], JITFunction.run
    monkeypatch.setattr(JITFunction, "run", lambda kernel, *a, **k: went.append(kernel) or run(kernel, *a, **k))
    return went


def same(ours, its):
    """Equal numbers of the same types, tensors' addresses among them."""
    its = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in its]
    return all(a is b or (type(a) is type(b) and a == b) for a, b in zip(ours, its, strict=True))


def test_every_launch_sends_what_triton_s_own_way_sends(driver, ways, monkeypatch):
    short_cut, seen = launcher._short_cut, set()

    def both(device, kernel, programs, num_warps, arguments, constants):
        kernel[(programs,)](*arguments, *constants, num_warps=num_warps, **launcher.FLAGS)
        its = Compiled.launched[-1]
        short_cut(device, kernel, programs, num_warps, arguments, constants)
        went = len(ways)
        short_cut(device, kernel, programs, num_warps, arguments, constants)
        assert len(ways) == went and same(Compiled.launched[-1], its)
        seen.add(kernel)

    monkeypatch.setattr(launcher, "_short_cut", both)
    with on_triton():
        key = noise_key(3, batch_size=2)
        advance(key)
        timesteps(key, 1000)
        for layout, dtype in ((torch.contiguous_format, torch.float32), (torch.channels_last, torch.bfloat16)):
            place = partial(torch.Tensor.contiguous, memory_format=layout)
            list(every_op.results(key, spread(2), (2, 4, 64, 64), dtype, place))
    shares = torch.zeros(2 * reduce._RUN)
    reduce.finish(shares, 1, reduce.MEAN)
    reduce.finish_hybrid(shares, shares, 4, reduce.MEAN, 0.1)
    weights = [torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)]
    others = [[torch.zeros(3) for _ in weights] for _ in range(3)]
    adamw_(
        weights,
        weights,
        *others,
        [2],
        torch.zeros(1, 8, dtype=torch.float64),
        torch.zeros(2),
        None,
        None,
        1.0,
        0.9,
        0,
        False,
        False,
    )
    assert seen == KERNELS


X, KEY, T, ROWS = torch.zeros(2, 4096), torch.zeros(2, 2, dtype=torch.int64), torch.arange(8), torch.zeros(200)
UNALIGNED = torch.zeros(2 * 4096 + 1)[1:].view(2, 4096)
SENT = {
    "out_ptr": X,
    "x_ptr": X,
    "noise_ptr": KEY,
    "t_ptr": T,
    "rows_ptr": ROWS,
    "num_rows": 1000,
    "elements": 4096,
    "T_STRIDE": 1,
    "CHANNELS": 0,
    "BLOCK": 1024,
    "num_warps": 4,
}


def sent(**changes):
    *values, num_warps = (SENT | changes).values()
    return noising_kernel, 8, num_warps, tuple(values[:-3]), tuple(values[-3:])


def send(**changes):
    launcher.launch(X, *sent(**changes))
    return Compiled.launched[-1][0]


@pytest.mark.parametrize(
    "change",
    [
        {"x_ptr": X.bfloat16()},
        {"x_ptr": UNALIGNED},
        {"out_ptr": UNALIGNED},
        {"noise_ptr": None},
        {"noise_ptr": X},
        {"t_ptr": T.int()},
        {"elements": 1},
        {"elements": 4095},
        {"elements": 2**31},
        {"num_rows": 2**31},
        {"T_STRIDE": 0},
        {"CHANNELS": 4},
        {"BLOCK": 512},
        {"num_warps": 2},
    ],
    ids=lambda change: f"{next(iter(change))} {type(next(iter(change.values()))).__name__}",
)
def test_what_triton_specialises_on_has_a_kernel_of_its_own(change, driver, ways):
    first = send()
    other = send(**change)
    assert other is not first and send() is first and send(**change) is other
    assert len(Compiled.made) == len(ways) == 2


@pytest.mark.parametrize(
    "change", [{"t_ptr": T[1:]}, {"rows_ptr": ROWS[1:]}, {"num_rows": 1}, {"num_rows": 16}, {"elements": 32}]
)
def test_what_triton_does_not_specialise_on_shares_a_kernel(change, driver, ways):
    assert send(**change) is send() and len(Compiled.made) == 1
    went = len(ways)
    send(**change)
    assert len(ways) == went


NUMBERS = [s * n + m for n in (0, 16, 1 << 31, 1 << 32, 1 << 62, 1 << 63) for m in (-1, 0, 1) for s in (-1, 1)]


@pytest.mark.parametrize("name", ["elements", "num_rows"])
def test_a_number_has_the_kernel_that_triton_gives_it(name, driver):
    for n in 2 * [n for n in NUMBERS if -(1 << 63) <= n < 1 << 64]:
        assert send(**{name: n}) is noising_kernel[(8,)](**SENT | {name: n}, **launcher.FLAGS)


def test_on_amd_a_storage_of_2_gib_has_a_kernel_of_its_own(driver, monkeypatch):
    monkeypatch.setattr(launcher, "_AMD", True)
    monkeypatch.setattr(driver, "get_current_target", lambda: GPUTarget("hip", "gfx942", 64))
    first = send()
    for n in (1 << 31, (1 << 31) - 4):
        large = torch.empty(n, dtype=torch.uint8).view(torch.float32)[: X.numel()]
        assert (send(x_ptr=large) is first) == (n < 1 << 31)
    assert len(Compiled.made) == 2


def test_numbers_that_change_with_the_steps_are_no_part_of_the_key(driver, ways):
    """A table of kernels that grew with them would never be found in again."""
    shares = torch.zeros(8)
    with on_triton():
        for n in range(5):
            noise_key(17 + 2 * n, 1 + n, batch_size=2)
            reduce.finish_hybrid(shares, shares, 4, reduce.MEAN, 0.1 * n)
    assert len(ways) == len(Compiled.made) == 2


def test_a_device_has_kernels_of_its_own(driver):
    for driver.device in (0, 1, 0, 1):
        launcher._short_cut(driver.device, *sent())
    first, second, *again = (launch[0] for launch in Compiled.launched)
    assert first is not second and again == [first, second]
    assert [launch[4] for launch in Compiled.launched] == [7, 8, 7, 8]


def test_a_launch_is_made_on_its_tensor_s_gpu(driver, monkeypatch):
    @contextmanager
    def current(device):
        before, driver.device = driver.device, device
        yield
        driver.device = before

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: driver.device)
    monkeypatch.setattr(torch.Tensor, "get_device", lambda x: 1)
    driver.device = 0
    assert send() is send() and driver.device == 0
    assert [launch[4] for launch in Compiled.launched] == [8, 8]


@pytest.mark.parametrize("knob, value", [("runtime.debug", True), ("compilation.instrumentation_mode", "x")])
def test_a_knob_of_the_compiler_s_has_kernels_of_its_own(knob, value, driver, monkeypatch):
    first = send()
    monkeypatch.setattr(f"triton.knobs.{knob}", value)
    assert send() is not first and len(Compiled.made) == 2


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook", "add_stages_inspection_hook"])
def test_a_hook_is_served_by_triton_s_own_way(name, driver, ways, monkeypatch):
    send()
    send()
    assert len(ways) == 1
    monkeypatch.setattr(knobs.runtime, name, lambda *a: ("", ""))
    send()
    send()
    assert len(ways) == 3


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_a_hook_in_a_chain_is_seen(name, driver, ways, monkeypatch):
    send()
    monkeypatch.setattr(getattr(knobs.runtime, name), "calls", [print])
    send()
    assert len(ways) == 2


def test_a_triton_that_was_not_read_goes_its_own_way(driver, ways, monkeypatch):
    monkeypatch.setattr(launcher, "_KNOWN", False)
    assert send() is send() and len(ways) == 2


def test_kernels_that_triton_forgot_are_made_again(driver):
    first = send()
    noising_kernel.device_caches.clear()
    assert send() is not first


def test_what_nobody_wants_is_no_inference_tensor_and_no_two_are_one(driver):
    tile.unwanted.cache_clear()
    rows = samplers.ddpm(NoiseSchedule.linear(1000)).on(X.device, X.dtype)
    for context in (torch.inference_mode, torch.no_grad):
        with context():
            _, x_0, kept = reverse_step(X, X, KEY, T[:2], rows, False)
        assert x_0.shape == kept.shape == (0,) and x_0 is not kept and not x_0.is_inference()


def test_other_tables_of_the_cut_reach_the_launch(driver, monkeypatch):
    """What benchmarks/gpu_tune.py does."""
    noising(X, KEY, T[:2], ROWS)
    monkeypatch.setattr(tile, "_PER_THREAD", ((0, 16),))
    tile.cut.cache_clear()
    noising(X, KEY, T[:2], ROWS)
    tile.cut.cache_clear()
    (*_, block), (*_, other) = Compiled.launched
    assert other == 2 * block
