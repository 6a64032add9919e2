"""Noising + loss + gradient allocate x_t and the gradient, and nothing else of their size; large outputs use memory again."""

import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import fastddpm as fd
from fastddpm import _extension, ops

pytestmark = pytest.mark.skipif(_extension.module is None, reason="the reference makes temporaries")

SHAPE = (8, 3, 64, 64)
SMALL = 4096  # bytes: losses, upstream gradients


def allocations(call):
    """Sizes in bytes of the tensors that a call allocates, from the profiler's record of the allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = record.profiler.kineto_results.events()
    return [e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > SMALL]


@pytest.mark.parametrize("given", ["key", "tensor"])
def test_noising_and_loss_allocate_two_tensors(given):
    schedule, key = fd.NoiseSchedule.linear(100), fd.noise_key(0, batch_size=SHAPE[0])
    x_0, t = torch.rand(SHAPE), torch.randint(0, 100, SHAPE[:1])
    output = torch.randn(SHAPE, requires_grad=True)
    noise = key if given == "key" else torch.randn(SHAPE)

    def step():
        kept = fd.q_sample(x_0, t, schedule, noise)
        fd.mse_loss(output, t, schedule, noise).backward()
        return kept

    step()
    output.grad = None
    assert allocations(step) == [4 * output.numel()] * 2


def test_the_counter_counts():
    x = torch.rand(SHAPE)
    assert allocations(lambda: x + 1 + 1) == [4 * x.numel()] * 2


@pytest.mark.parametrize("loss", ["vlb", "hybrid"])
def test_the_bound_allocates_its_gradient(loss):
    schedule, key = fd.NoiseSchedule.linear(100), fd.noise_key(0, batch_size=SHAPE[0])
    x_0, t = torch.rand(SHAPE), torch.randint(0, 100, SHAPE[:1])
    x_t = fd.q_sample(x_0, t, schedule, key)
    output = torch.randn(SHAPE[0], 2 * SHAPE[1], *SHAPE[2:]).requires_grad_()

    def step():
        output.grad = None
        if loss == "vlb":
            fd.vlb_loss(output, x_0, x_t, t, schedule, variance_type="learned_range").backward()
        else:
            fd.hybrid_loss(output, x_0, x_t, t, schedule, key)["loss"].backward()

    step()
    output.grad = None
    assert allocations(step) == [4 * output.numel()]


def test_a_reverse_step_allocates_its_results():
    rows = fd.samplers.ddpm(fd.NoiseSchedule.linear(100))
    key, x, output = fd.noise_key(0, batch_size=SHAPE[0]), torch.randn(SHAPE), torch.randn(SHAPE)
    fd.reverse_step(output, x, 50, rows, key)
    assert allocations(lambda: fd.reverse_step(output, x, 50, rows, key)) == [4 * x.numel()] * 2
    assert allocations(lambda: fd.reverse_step(output, x, 50, rows, key, return_x_0=False)) == [4 * x.numel()]


# ---- large outputs: pages that are used again (kernels/cpu/pages.h) ----

LARGE = (8, 3, 400, 400)  # 15 MB
in_pages = pytest.mark.skipif(
    sys.platform != "linux" or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11),
    reason="a tensor on given memory needs torch 2.11's stable ABI, and Linux",
)


def noised(shape=LARGE, memory_format=torch.contiguous_format):
    x_0 = torch.ones(shape).to(memory_format=memory_format)
    return fd.q_sample(x_0, 5, fd.NoiseSchedule.linear(10), fd.noise_key(1, batch_size=shape[0]))


@in_pages
def test_the_memory_of_a_dead_output_is_used_again():
    first = noised()
    address, expected = first.data_ptr(), first.clone()
    second = noised()
    assert second.data_ptr() != address
    assert torch.equal(second, expected)
    del first
    assert noised(memory_format=torch.channels_last).data_ptr() == address


@in_pages
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_large_output_has_the_strides_of_its_input(memory_format):
    x_t = noised(memory_format=memory_format)
    assert x_t.is_contiguous(memory_format=memory_format)
    assert torch.equal(x_t, noised(memory_format=torch.contiguous_format))


def result(mebibytes):
    """Of so many MiB, a multiple of the two that a page has, made of no noise."""
    rows = torch.ones(1, 2)
    return ops.noising(torch.zeros(1, int(mebibytes * 2**18)), None, torch.tensor(0), rows)


def kept():
    """How many blocks lie ready, and how many MiB they have in all."""
    count, size = _extension.module.kept_blocks()
    return count, size >> 20


def resident():
    """MiB of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


@in_pages
def test_four_blocks_are_kept():
    """However many sizes come and go; what leaves the list leaves the process."""
    fd.empty_cache()
    before = resident()
    for size in range(10, 48, 2):  # 532 MiB in all
        result(size)
    assert kept() == (4, 40 + 42 + 44 + 46)
    assert resident() - before < 270


@in_pages
def test_a_gibibyte_is_kept():
    fd.empty_cache()
    result(1024)
    assert kept() == (1, 1024)
    result(10)
    assert kept() == (1, 10), "the oldest makes room"
    result(1026)
    assert kept() == (1, 10), "a block beyond the limit is not kept, and takes no other's place"


@in_pages
def test_small_blocks_take_no_large_ones_place():
    """Sixteen and 64 MiB of them, of 8 MiB and less."""
    fd.empty_cache()
    result(64)
    for size in (1, 2, 3, 4, 5, 6):
        result(size)
    assert kept() == (7, 64 + 21)
    alive = [result(1) for _ in range(18)]
    alive.clear()
    assert kept() == (17, 64 + 16)
    alive = [result(8) for _ in range(9)]
    alive.clear()
    assert kept() == (9, 64 + 64)
    assert fd.empty_cache() == 128 << 20


@in_pages
def test_a_small_result_takes_no_more_than_it_is():
    fd.empty_cache()
    alive = [result(1.25) for _ in range(8)]
    alive.clear()
    assert kept() == (8, 10)


@in_pages
def test_a_block_is_used_again_for_its_own_size_alone():
    fd.empty_cache()
    result(24)
    smaller = result(22)
    assert kept() == (1, 24)
    larger = result(26)
    assert kept() == (1, 24)
    del smaller, larger
    assert kept() == (3, 72)


@in_pages
def test_empty_cache_gives_the_memory_back():
    fd.empty_cache()
    before = resident()
    result(64), result(128)
    assert fd.empty_cache() == 192 << 20 and kept() == (0, 0) and fd.empty_cache() == 0
    assert resident() - before < 64


def test_without_kernels_the_cache_is_empty(monkeypatch):
    monkeypatch.setattr(_extension, "module", None)
    assert fd.empty_cache() == 0


@in_pages
@pytest.mark.parametrize(("keep", "blocks"), [("0", 0), ("1", 1), ("", 1)])
def test_whether_blocks_are_kept_is_chosen_at_import(keep, blocks):
    code = "import test_memory as t; t.result(64); print(t.kept()[0])"
    environment = {**os.environ, "FASTDDPM_KEEP_BLOCKS": keep, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.split() == [str(blocks)], run.stderr


def test_thresholds_are_returned_as_they_were():
    former = _extension.module.set_thresholds(1, 2)
    assert _extension.module.set_thresholds(*former) == (1, 2)
    assert former == (1 << 20, 32 << 20)


@in_pages
def test_a_large_output_is_a_tensor_like_any_other():
    x_t = noised()
    expected = x_t.clone()
    buffer = io.BytesIO()
    torch.save(x_t, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer), expected)
    assert torch.equal(x_t.share_memory_(), expected)
    assert torch.equal(pickle.loads(pickle.dumps(x_t)), expected)
    with torch.inference_mode():
        assert noised().is_inference()
    array = noised().numpy()  # its tensor is gone, its memory is not
    noised().zero_()
    assert np.array_equal(array, expected.numpy())


@in_pages
def test_outputs_of_several_threads_do_not_meet():
    def work(seed):
        key = fd.noise_key(seed, batch_size=LARGE[0])
        expected = fd.randn(key, LARGE)
        zero, schedule = torch.zeros(LARGE), fd.NoiseSchedule.linear(10)
        s = (1 - schedule.alphas_cumprod[5]).sqrt().float()
        return all(torch.equal(fd.q_sample(zero, 5, schedule, key), s * expected) for _ in range(10))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@in_pages
def test_a_process_forked_while_memory_is_given_back_makes_results_of_its_own():
    """The list's lock is at rest in a child, whatever the parent's threads were doing."""
    stop = threading.Event()

    def churn(offset):
        side = 0
        while not stop.is_set():
            noised((8, 3, 400 + 4 * ((side + offset) % 8), 400))
            side += 1

    threads = [threading.Thread(target=churn, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                torch.set_num_threads(1)
                os._exit(0 if noised((2, 3, 800, 800)).isfinite().all() else 1)
            assert exit_code(child, seconds=60) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def exit_code(child, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


def test_what_nobody_wants_is_no_inference_tensor():
    """The gradient that was not asked for is one for all: that of a first call in inference mode would be of no use later."""
    code = """
import torch, fastddpm as fd
inputs = torch.ones(1, 2), None, None, None, torch.tensor(0), torch.ones(1, 4), 1, False
with torch.inference_mode():
    fd.ops.mse_loss(*inputs)
_, grad = fd.ops.mse_loss(*inputs)
print(list(grad.shape), grad.is_inference())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[0] False\n", run.stdout + run.stderr
