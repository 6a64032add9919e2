"""A CUDA graph for the CPU: a capture records the ops that reach the dispatcher and leaves no trace; a replay runs them again
on the very tensors that they had, whatever Python would do by now. So it fails where a real one would read stale memory."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

UNDECLARED = ("running_mean", "running_var")
"""What native_batch_norm writes into without a word in its schema."""


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self.before = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, given = kwargs or {}, iter(args)
        for argument in func._schema.arguments:
            value = kwargs.get(argument.name) if argument.kwarg_only else next(given, None)
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or argument.name in UNDECLARED:
                for x in tree_leaves(value):
                    place = _unexpanded(x.detach())
                    self.before.setdefault(x, (place, place.clone()))
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out


def _unexpanded(x):
    for d, step in enumerate(x.stride()):
        x = x.narrow(d, 0, 1) if step == 0 and x.shape[d] else x
    return x


class RecordedGraph:
    """In the place of `torch.cuda.CUDAGraph`."""

    def __init__(self):
        self.replays = 0

    def record(self, run):
        generator = torch.get_rng_state()
        with Recorder() as recorder:
            result = run()
        with torch.no_grad():
            for place, before in recorder.before.values():
                place.copy_(before)
        torch.set_rng_state(generator)
        self.calls = recorder.calls
        return result

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, outs in self.calls:
            for out, again in zip(tree_leaves(outs), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(out, torch.Tensor) and out.data_ptr() != again.data_ptr():
                    out.copy_(again)


def recorded(run, device):
    """In the place of `graphs._captured`."""
    graph = RecordedGraph()
    return graph, graph.record(run)
