"""The lane's fixtures: the interpreter mended, and the kernels behind the ops."""

import numpy as np
import pytest
import torch
from helpers import on_triton

from benchmarks.gpu_noise import fma


@pytest.fixture
def exact(monkeypatch):
    """The interpreter rounds `tl.fma` twice and truncates float32 to bfloat16, where every GPU rounds once, to nearest.

    This mends both, and then an elementwise kernel gives the reference's bits, which proves its operations and their order.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    inner = InterpreterBuilder.cast_impl

    def cast(self, source, kind):
        if (source.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return inner(self, source, kind)
        rounded = torch.tensor(source.data).bfloat16().view(torch.int16)
        return TensorHandle(rounded.numpy().view(np.uint16), kind.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_fma", fma)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast)


@pytest.fixture
def registered():
    with on_triton():
        yield
