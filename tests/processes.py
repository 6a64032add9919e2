"""Real processes at the price of one import: each is forked by a server that has imported the trainer already."""

import multiprocessing
import os
import signal
import socket
import sys

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["fastddpm.train.trainer", "fastddpm.train.cli", "sklearn.datasets", "torch.distributed"])


def start(target, *arguments, log=None, **environment):
    """A process of one thread that calls the target, its output in the file `log`."""
    process = SERVER.Process(target=_call, args=(target, arguments, log, environment))
    process.start()
    return process


def start_ranks(count, target, *arguments, log=None):
    """So many, as torchrun would start them; each one's log ends with its rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    return [start(target, *arguments, log=log and f"{log}.{rank}", RANK=str(rank), **common) for rank in range(count)]


def ended(processes, timeout=300):
    """Their exit codes; a signal's is negative."""
    for process in processes:
        process.join(timeout)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def _call(target, arguments, log, environment):
    if log is not None:
        with open(log, "wb") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(target(*arguments))
