"""The kernels beside other processes and other pools of threads: data workers, OpenMP's own, many programs on few cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import INSTRUCTION_SETS, NOT_BUILT, same_bits, threads
from torch.utils.data import DataLoader
from worker_steps import SCHEDULE, SHAPE, Noised

from fastddpm import noise_key, q_sample

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
built = pytest.mark.skipif(not INSTRUCTION_SETS, reason=NOT_BUILT)


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_data_workers_make_the_noise_of_the_whole_batch(start, workers):
    expected = q_sample(torch.arange(6)[:, None, None, None] / 6 * torch.ones(SHAPE), 500, SCHEDULE, noise_key(0, 0, 6))
    with threads(2):  # a forked worker has the parent's pool of threads in name alone
        q_sample(expected, 500, SCHEDULE, noise_key(0, 0, 6))
        loader = DataLoader(Noised(), batch_size=3, num_workers=workers, multiprocessing_context=start, timeout=300)
        assert same_bits(torch.cat(list(loader)), expected)


THREADS = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(2)
torch.ones(1 << 22).exp()
before = len(os.listdir("/proc/self/task"))
import worker_steps
worker_steps.steps(2, (4, *worker_steps.SHAPE))
mapped = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in os.path.basename(line.split()[-1])}
print(before, len(os.listdir("/proc/self/task")), len(mapped))
"""


@linux
@built
def test_there_is_no_second_pool_of_threads():
    """The kernels run on torch's, and bring no OpenMP of their own."""
    done = subprocess.run([sys.executable, "-c", THREADS, str(Path(__file__).parent)], capture_output=True, text=True)
    before, after, libraries = map(int, done.stdout.split())
    assert before == after and libraries == 1, done.stderr


GROWTH = """
import os, sys
sys.path.insert(0, sys.argv[1])
import worker_steps
few, many, *shape = map(int, sys.argv[2:])

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 10

worker_steps.steps(few, shape)
before = resident()
worker_steps.steps(many, shape)
print(resident() - before)
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize(("few", "many", "side"), [(2000, 20_000, 8), (30, 300, 512)], ids=["small", "in pages"])
def test_memory_does_not_grow(few, many, side):
    """KiB, over 20,000 small steps, and 300 whose results lie in pages that are used again. malloc gives what is large back at
    once here: it may keep up to 100 MiB of torch's own tensors for a while."""
    arguments = [str(n) for n in (Path(__file__).parent, few, many, 4, 3, side, side)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run([sys.executable, "-c", GROWTH, *arguments], capture_output=True, text=True, env=environment)
    assert int(done.stdout) < 1024, done.stderr


@pytest.mark.slow
@built
def test_eight_processes_at_once_are_right():
    """On however few cores: each gives the digests of all ops that one alone gives."""
    command = [sys.executable, str(Path(__file__).with_name("digest.py")), "2"]
    alone = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    together = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    assert [process.communicate()[0] == alone for process in together] == [True] * 8
