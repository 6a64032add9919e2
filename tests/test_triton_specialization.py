"""What makes Triton compile a kernel again, by its own binder, which needs no GPU."""

import pytest
import torch

pytest.importorskip("triton")

from fastddpm.kernels import mse, reverse, tile, vlb
from fastddpm.kernels.noising import noising_kernel, noising_uniform_kernel
from fastddpm.kernels.reverse import reverse_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

BACKEND = make_backend(GPUTarget("cuda", 90, 32))
DATA = torch.zeros(2, 4096)
KEY = torch.zeros(2, 2, dtype=torch.int64)
INDICES = torch.arange(20)
ROWS = torch.zeros(200)
CUT = {"T_STRIDE": 0, "CHANNELS": 0, "BLOCK": 4096}


def specialization(kernel, data, t, rows, num_rows):
    bind = create_function_from_signature(kernel.signature, kernel.params, BACKEND)
    if kernel is noising_kernel:
        arguments, constants = (data, data, KEY), CUT
    else:
        arguments = (data, None, None, data, None, data, None, None, None, KEY)
        constants = {**CUT, "LEARNED": False, "GUIDANCE_STRIDE": 0, "BOUND_STRIDE": 0}
    others = () if kernel is noising_kernel else (None, None)
    return bind(*arguments, t, rows, num_rows, 4096, *others, **constants, debug=False)[1]


@pytest.mark.parametrize("kernel", [noising_kernel, reverse_kernel])
def test_a_loop_compiles_one_kernel(kernel):
    """Whatever its index, its rows' place and their number."""
    first = specialization(kernel, DATA, INDICES[0], ROWS, 1000)
    for i in range(9):
        assert specialization(kernel, DATA, INDICES[i], ROWS, 1000) == first
    assert specialization(kernel, DATA, INDICES[0], ROWS[1:], 1000) == first
    for num_rows in (1, 16, 17):
        assert specialization(kernel, DATA, INDICES[0], ROWS, num_rows) == first


@pytest.mark.parametrize("kernel", [noising_kernel, reverse_kernel])
def test_data_that_are_not_aligned_have_a_kernel_of_their_own(kernel):
    """The aligned ones are accessed by 16 bytes."""
    unaligned = torch.zeros(2 * 4096 + 1)[1:].view(2, 4096)
    first = specialization(kernel, DATA, INDICES[0], ROWS, 1000)
    assert specialization(kernel, unaligned, INDICES[0], ROWS, 1000) != first


KERNELS = {n: k for module in (mse, reverse, vlb) for n, k in vars(module).items() if n.endswith("_kernel")}
KERNELS |= {k.__name__: k for k in (noising_kernel, noising_uniform_kernel)}  # fastddpm.kernels.noising is the op


@pytest.mark.parametrize("name", KERNELS)
def test_a_view_s_alignment_specialises_no_kernel(name):
    views = {x.name: x.do_not_specialize_on_alignment for x in KERNELS[name].params if x.name in tile.VIEWS}
    scalars = ("upstream_ptr", "guidance_ptr", "bound_ptr")
    names = {x for x in KERNELS[name].arg_names if x in ("t_ptr", "rows_ptr") or x.endswith(scalars)}
    assert names and names <= views.keys() and all(views.values())
