"""Odd calls of diffusers' schedulers that walk a list of sigmas, and what a call reads."""

import torch
from sigma_loops import OUT, X, Z
from torch.utils._python_dispatch import TorchDispatchMode

ODD_STEPS = {
    "an int": lambda t: (OUT, int(t), X),
    "a float": lambda t: (OUT, float(t), X),
    "of one dimension": lambda t: (OUT, t.reshape(1), X),
    "not one of the timesteps": lambda t: (OUT, t + 0.5, X),
    "None": lambda t: (OUT, None, X),
    "output of one channel": lambda t: (OUT[:, :1], t, X),
    "output of twice the channels": lambda t: (torch.cat((OUT, OUT), 1), t, X),
    "output in half": lambda t: (OUT.bfloat16(), t, X),
    "sample in half": lambda t: (OUT, t, X.half()),
    "output in double": lambda t: (OUT.double(), t, X),
    "sample in double": lambda t: (OUT, t, X.double()),
    "both in half": lambda t: (OUT.half(), t, X.half()),
    "of vectors": lambda t: (OUT[:, 0, 0], t, X[:, 0, 0]),
    "of numbers": lambda t: (OUT[0, 0, 0, 0], t, X[0, 0, 0, 0]),
    "no samples": lambda t: (OUT[:0], t, X[:0]),
    "integers": lambda t: (OUT.long(), t, X.long()),
    "arrays": lambda t: (OUT.numpy(), t, X.numpy()),
    "channels_last": lambda t: (OUT.to(memory_format=torch.channels_last), t, X.to(memory_format=torch.channels_last)),
    "transposed": lambda t: (OUT.transpose(1, 3), t, X.transpose(1, 3)),
    "with a gradient": lambda t: (OUT.clone().requires_grad_(), t, X.clone().requires_grad_()),
}

ODD_NOISINGS = {
    "one that is none": lambda t: (X, Z, torch.stack((t[0], t[1], t[1] + 0.25))),
    "one for all": lambda t: (X, Z, t[:1]),
    "without dimensions": lambda t: (X, Z, t[0]),
    "of two dimensions": lambda t: (X, Z, t[:3, None]),
    "int32": lambda t: (X, Z, t[:3].int()),
    "int64": lambda t: (X, Z, t[:3].long()),
    "in double": lambda t: (X, Z, t[:3].double()),
    "in float": lambda t: (X, Z, t[:3].float()),
    "in half": lambda t: (X, Z, t[:3].half()),
    "an int": lambda t: (X, Z, int(t[0])),
    "a list": lambda t: (X, Z, t[:3].tolist()),
    "of another number": lambda t: (X, Z, t[:2]),
    "noise of one sample": lambda t: (X, Z[:1], t[:3]),
    "noise in double": lambda t: (X, Z.double(), t[:3]),
    "an integer image": lambda t: (X.byte(), Z, t[:3]),
    "no samples": lambda t: (X[:0], Z[:0], t[:0]),
    "transposed": lambda t: (X.transpose(1, 3), Z.transpose(1, 3), t[:3]),
    "noise that wants a gradient": lambda t: (X, Z.clone().requires_grad_(), t[:3]),
    "an image that wants a gradient": lambda t: (X.clone().requires_grad_(), Z, t[:3]),
}

GENERATORS = {
    "one": lambda: torch.Generator().manual_seed(3),
    "a list": lambda: [torch.Generator().manual_seed(i) for i in range(2)],
    "torch's own": lambda: None,
}


class Reads(TorchDispatchMode):
    """The ops that wait for a device."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops += [func] if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero) else []
        return func(*args, **(kwargs or {}))
