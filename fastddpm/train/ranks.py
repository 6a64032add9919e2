"""The ranks that torchrun starts: each one's share of a batch, and what they tell each other. One process is a rank alone.

torchrun --nproc-per-node 2 -m fastddpm train ...
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for another that hangs. One that died is noticed at once."""


@contextmanager
def joined() -> Iterator[None]:
    """In a process group, where torchrun started this process. Rank 0 alone prints."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() or _grouped():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
        yield
    dist.destroy_process_group()


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if _grouped() else 0


def count() -> int:
    return dist.get_world_size() if _grouped() else 1


def share(total: int) -> slice:
    """Which of so many things are this rank's: consecutive ones, as many as another's or one more or less."""
    return slice(rank() * total // count(), (rank() + 1) * total // count())


def parallel(network: torch.nn.Module, weight: float) -> torch.nn.Module:
    """The network, whose gradients are the ranks' sum, each rank's by its weight."""
    if count() == 1:
        return network
    # one bucket up to that size: by default the first is a small one, which two processes of one machine only wait for
    parallel = DistributedDataParallel(network, bucket_cap_mb=25, gradient_as_bucket_view=True)
    parallel.register_comm_hook(weight, _add)
    return parallel


def _add(weight: float, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer().mul_(weight), async_op=True)
    return work.get_future().then(lambda sums: sums.value()[0])


def mean(x: Tensor, weight: float) -> Tensor:
    """Of all ranks', by their weights."""
    if count() == 1:
        return x
    x = x * weight
    dist.all_reduce(x)
    return x


def largest(number: Callable[[], int]) -> Callable[[], int]:
    """Of all ranks' numbers, on the host: asked of several now, answered while they do something else."""
    if count() == 1:
        return number
    x = torch.tensor(number())
    work = dist.all_reduce(x, dist.ReduceOp.MAX, async_op=True)

    def answer() -> int:
        work.wait()
        return int(x)

    return answer


def of_all(value: Any) -> list[Any]:
    """Every rank's value; tensors in it on the CPU."""
    if count() == 1:
        return [value]
    values = [None] * count()
    dist.all_gather_object(values, value)
    return values


def joint(x: Tensor) -> Tensor:
    """The ranks' parts as one, on the CPU; of one rank as it is."""
    return x if count() == 1 else torch.cat(of_all(x.cpu()))
