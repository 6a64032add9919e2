"""Noise that is drawn from torch's generators by the kernels: torch's own bits, and its generator's state after them."""

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from time import sleep
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import importable, same_bits, threads
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

from fastddpm import _extension
from fastddpm.integrations import torch_normals
from fastddpm.integrations.torch_normals import LEAST, quick_normals, randn_like, skip_randn_like

CPU = torch.device("cpu")
here = pytest.mark.skipif(not torch_normals._as_torch(), reason="no kernel here makes this torch's bits")


@pytest.fixture(autouse=True)
def asked_anew():
    yield
    torch_normals._as_torch.cache_clear()


def seeded(seed, single=0):
    """A generator that has drawn so many normals singly: an odd number leaves it one of a pair."""
    generator = torch.Generator().manual_seed(seed)
    torch.randn(single, generator=generator)
    return generator


def test_this_machine_makes_them_by_kernel():
    """Where torch runs its code for AVX2, which it has for AVX-512 too."""
    isa = getattr(_extension.module, "isa", None)
    if isa not in torch_normals.INSTRUCTION_SETS or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip(f"{isa} kernels, and torch's for {torch.backends.cpu.get_cpu_capability()}")
    assert torch_normals._as_torch()


@here
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("n", [LEAST, 2051, 4096 + 15, 624 * 16, 49152, 70001])
def test_the_bits_are_torchs_and_the_state_after_them(n, count):
    with threads(count):
        for seed, single in ((0, 0), (1, 3), (2, 8), (3, 15), (4, 623)):
            theirs, ours = seeded(seed, single), seeded(seed, single)
            for _ in range(2):
                assert same_bits(quick_normals((n,), torch.float32, CPU, ours), torch.randn(n, generator=theirs))
            assert torch.equal(ours.get_state(), theirs.get_state())
            assert torch.equal(torch.randn(3, generator=ours), torch.randn(3, generator=theirs))


@here
def test_every_word_of_the_state_may_be_the_next():
    theirs, ours = seeded(5), seeded(5)
    for _ in range(640):
        for generator in (theirs, ours):
            torch.rand(1, generator=generator)
        assert same_bits(quick_normals((LEAST,), torch.float32, CPU, ours), torch.randn(LEAST, generator=theirs))


@here
@pytest.mark.slow
def test_every_uniform_in_both_places():
    """2^24 of them for the radius, as many for the angle, by states whose next words they are."""
    each, rng = 304, np.random.default_rng(6)
    uniforms = np.arange(1 << 24, dtype=np.uint32)
    places = np.stack((uniforms, rng.permutation(uniforms)), 1)
    state, ours = seeded(6).get_state(), torch.empty(2 * each)
    left, behind, words = (
        state[8:12].view(torch.int32),
        state[16:24].view(torch.int64),
        state[24 : 24 + 624 * 8].view(torch.int64),
    )
    left.fill_(624), behind.fill_(0)
    for first in range(0, 1 << 24, each):
        these = np.resize(places[first : first + each], (each, 2)).reshape(-1, 8, 2).transpose(0, 2, 1).reshape(-1)
        words[: 2 * each] = torch.from_numpy(untempered(these).astype(np.int64))
        theirs, generator = (torch.Generator().set_state(state) for _ in range(2))
        wanted = torch.randn(2 * each, generator=theirs)
        _extension.module.torch_normals(generator, ours.data_ptr(), 2 * each)
        assert same_bits(ours, wanted)
    drawn = torch.empty(2 * each, dtype=torch.int32).random_(0, 1 << 24, generator=torch.Generator().set_state(state))
    assert (drawn.numpy() == these).all(), "the words are others than were wanted"


def untempered(words):
    """MT19937's, of which these are made."""
    y = words.copy()
    y ^= y >> np.uint32(18)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    x = y.copy()
    for _ in range(5):
        x = y ^ ((x << np.uint32(7)) & np.uint32(0x9D2C5680))
    y = x.copy()
    for _ in range(3):
        x = y ^ (x >> np.uint32(11))
    return x


@here
def test_a_generator_a_sample():
    shape = (3, 1, 64, 64)
    generators, others = ([seeded(seed) for seed in (1, 2, 3, 4)] for _ in range(2))
    wanted = torch.cat([torch.randn((1, *shape[1:]), generator=one) for one in others[:3]])
    assert same_bits(quick_normals(shape, torch.float32, CPU, generators), wanted)
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(generators, others, strict=True))
    assert quick_normals(shape, torch.float32, CPU, generators[:2]) is None


@here
@pytest.mark.parametrize("device", ["none", "cpu"])
def test_threads_that_draw_at_once_draw_no_word_twice(device, often):
    """Under a default device too, a mode of torch's."""
    generator, drawn = seeded(7), []
    start = threading.Barrier(4)

    def draw(_):
        start.wait()
        with nullcontext() if device == "none" else torch.device(device):
            for _ in range(1000):
                made = quick_normals((LEAST,), torch.float32, CPU, generator)
                drawn.append(torch.randn(LEAST, generator=generator) if made is None else made)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(draw, range(4)))
    alone = seeded(7)
    wanted = {torch.randn(LEAST, generator=alone).numpy().tobytes() for _ in drawn}
    assert {x.numpy().tobytes() for x in drawn} == wanted and len(wanted) == 4000
    assert torch.equal(generator.get_state(), alone.get_state())


@pytest.fixture
def often():
    """Python's threads take turns at every chance, as in finalizers, which a collection may run wherever an object is made."""

    def let_go(*told):
        sleep(0)

    before, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(1, 1000, 1000)
    gc.callbacks.append(let_go)
    yield
    gc.callbacks.remove(let_go)
    gc.set_threshold(*threshold)
    sys.setswitchinterval(before)


class Labelled(torch.Tensor):
    pass


X = torch.zeros(2, 3, 32, 32)
LIKE = {
    "float32": X,
    "float64": X.double(),
    "bfloat16": X.bfloat16(),
    "channels_last": X.to(memory_format=torch.channels_last),
    "every_second": torch.zeros(2, 3, 32, 64)[..., ::2],
    "few": torch.zeros(2, 3, 4, 4),
    "none": torch.zeros(0, 3),
    "one": torch.zeros(()),
    "one_channel_last": torch.zeros(2, 1, 64, 64).to(memory_format=torch.channels_last),
    "of_a_subclass": X.as_subclass(Labelled),
    "wanting_gradients": X.clone().requires_grad_(),
}


@pytest.mark.parametrize("x", LIKE.values(), ids=LIKE)
def test_it_is_torchs_for_any_tensor(x):
    """As is what is skipped."""
    after = []
    for draw in (torch.randn_like, randn_like):
        torch.manual_seed(0)
        torch.randn(3)
        drawn = draw(x)
        kind = drawn.dtype, drawn.stride(), type(drawn), drawn.requires_grad
        after.append((kind, drawn.tolist(), torch.get_rng_state().tolist()))
    torch.manual_seed(0)
    torch.randn(3)
    skip_randn_like(x)
    assert after[0] == after[1] and torch.get_rng_state().tolist() == after[0][-1]


@here
def test_a_mode_that_looks_at_ops_sees_torchs():
    with FakeTensorMode() as mode:
        x = mode.from_tensor(X)
        assert quick_normals(X.shape, torch.float32, CPU) is None
        assert randn_like(x).shape == X.shape
        skip_randn_like(x)


def test_what_is_not_on_a_cpu_is_torchs():
    assert quick_normals((LEAST,), torch.float32, torch.device("meta")) is None
    assert randn_like(X.to("meta")).device.type == "meta"


class Swapped(TorchFunctionMode):
    """Puts ones in the place of torch's noise."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return torch.ones_like(*args) if func is torch.randn_like else func(*args, **(kwargs or {}))


@here
def test_a_mode_that_answers_for_torch_is_asked():
    with Swapped():
        assert randn_like(X).eq(1).all()
    assert not randn_like(X).eq(1).all()


@here
def test_a_generator_with_methods_of_its_own_is_torchs():
    class Own(torch.Generator):
        def get_state(self):
            raise NotImplementedError

    assert quick_normals((LEAST,), torch.float32, CPU, Own()) is None
    assert quick_normals((2, LEAST), torch.float32, CPU, [seeded(0), None]) is None


@here
def test_what_it_is_not_given_is_refused():
    with pytest.raises(ValueError, match="count: expected 16 or more, got 15"):
        _extension.module.torch_normals(seeded(0), 0, 15)
    with pytest.raises(AttributeError):
        _extension.module.torch_normals(None, 0, 16)
    generator = seeded(0)
    foreign = SimpleNamespace(get_state=lambda: torch.zeros(5056, dtype=torch.uint8), set_state=generator.set_state)
    with pytest.raises(RuntimeError, match="laid out otherwise"):
        _extension.module.torch_normals(foreign, 0, 16)


@here
@pytest.mark.parametrize("wrong", ["refused", "bits", "state", "size of the state", "instruction set", "no kernels"])
def test_a_kernel_that_is_not_as_torch_is_not_taken(wrong, monkeypatch):
    """Another version of torch, or another machine."""
    kernel = _extension.module.torch_normals

    def other(generator, address, n):
        if wrong == "refused":
            raise RuntimeError("Invalid mt19937 state")
        kernel(generator, address, n)
        if wrong == "bits":
            kernel(torch.Generator().manual_seed(n + 1), address, n)
        if wrong == "state":
            torch.rand(1, generator=generator)

    monkeypatch.setattr(torch_normals, "_kernel", lambda: other)
    if wrong == "size of the state":
        monkeypatch.setattr(torch_normals, "STATE_BYTES", 5064)
    if wrong == "instruction set":
        monkeypatch.setattr(torch_normals, "INSTRUCTION_SETS", ())
    if wrong == "no kernels":
        monkeypatch.setattr(_extension, "module", None)
    torch_normals._as_torch.cache_clear()
    torch.manual_seed(0)
    drawn = randn_like(X)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randn_like(X)) and not torch_normals._as_torch()


@pytest.mark.skipif(not importable("diffusers"), reason="needs diffusers")
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 32, 32), (2, 3, 4, 4)], ids=str)
@pytest.mark.parametrize("generators", [None, 1, [1], [1, 2], [1, 2, 3]], ids=str)
def test_a_scheduler_draws_as_diffusers(shape, generators, monkeypatch):
    import diffusers

    import fastddpm

    by_kernel = torch_normals._as_torch() and shape[-1] == 32
    states, made = [], []
    if by_kernel:
        kernel = torch_normals._kernel()
        monkeypatch.setattr(torch_normals, "_kernel", lambda: lambda *given: made.append(given[-1]) or kernel(*given))
    for patched in (False, True):
        scheduler = diffusers.DDPMScheduler()
        scheduler.set_timesteps(10)
        if patched:
            fastddpm.patch(scheduler)
        torch.manual_seed(0)
        given = generators
        if generators is not None:
            given = [seeded(seed) for seed in generators] if isinstance(generators, list) else seeded(generators)
        x = scheduler.step(torch.zeros(shape), scheduler.timesteps[3], torch.zeros(shape), given).prev_sample
        used = [] if given is None else given if isinstance(given, list) else [given]
        states.append((x, torch.get_rng_state(), *(one.get_state() for one in used)))
    torch.testing.assert_close(states[1][0], states[0][0], rtol=1e-6, atol=1e-7)
    assert all(map(torch.equal, states[0][1:], states[1][1:]))
    assert sum(made) == by_kernel * torch.Size(shape).numel()
