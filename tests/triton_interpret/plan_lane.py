"""The host's side: how it cuts tensors into programs, and what every launch is given. Here no kernel runs."""

import pytest
import torch
from fastddpm.kernels.reduce import finish
from fastddpm.kernels.tile import _MAX_CHANNELS, plan, positions_of
from interpreted import ON_CPU, SCHEDULE, calls, key, vlb_rows
from triton.runtime.interpreter import GridExecutor

from benchmarks import static
from fastddpm import coefficients, kernels, ops


@pytest.fixture
def launches(monkeypatch):
    """Every launch's kernel, programs and options, noted instead of run."""
    noted = []

    def note(self, *arguments, **options):
        noted.append((self.fn.__name__, self.grid[0], dict(zip(self.arg_names, arguments, strict=True)) | options))

    monkeypatch.setattr(GridExecutor, "__call__", note)
    return noted


def test_every_launch_refuses_to_contract(launches):
    """A mul and an add made one fma round once where the contract rounds twice; the interpreter never does it."""
    for name, arguments in calls():
        getattr(kernels, name)(*arguments)
    finish(torch.zeros(5000), 1, ops.SUM)
    contracts = {kernel: options.get("enable_fp_fusion", True) for kernel, _, options in launches}
    kinds = {"fill_key", "advance", "timesteps", "randn", "noising", "noising_uniform", "mse", "scale", "reverse",
             "reverse_backward", "vlb", "hybrid", "terms", "runs", "finish", "finish_hybrid"}  # fmt: skip
    assert contracts == {f"{kind}_kernel": False for kind in kinds}


BATCHES = (1, 1024)
LOSSES = ("mse_loss", "vlb_loss", "hybrid_loss", "vlb_terms")


def arguments_of(name, batch, layout=torch.contiguous_format, side=32):
    """Of an op on images, whose memory holds anything."""
    x_0, both = (torch.empty(batch, c, side, side).to(memory_format=layout) for c in (3, 6))
    t = torch.zeros(batch, dtype=torch.int64)
    terms = (both, x_0, None, key(batch), t, vlb_rows("epsilon", "learned_range"), False)
    mse = (x_0, key(batch), None, None, t, coefficients.mse_rows(SCHEDULE, "epsilon", None, *ON_CPU), ops.NONE)
    return {
        "mse_loss": (*mse, False),
        "mse_loss_backward": (*mse, torch.ones(batch)),
        "vlb_loss": (*terms, ops.NONE, False),
        "vlb_loss_backward": (*terms, ops.NONE, torch.ones(batch)),
        "hybrid_loss": (*terms, 0.3, ops.NONE, False),
        "vlb_terms": (*terms, None, None),
    }[name]


def cuts(launches, name, layout):
    """For each batch: what programs a sample is cut into."""
    found = []
    for batch in BATCHES:
        launches.clear()
        getattr(kernels, name)(*arguments_of(name, batch, layout))
        _, programs, options = launches[0]
        found.append((programs / batch, options["BLOCK"], options["num_warps"]))
    return found


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_cuts_a_sample_alike_in_any_batch(launches, name, layout):
    one, many = cuts(launches, name, layout)
    assert one == many


@pytest.mark.parametrize("name", ["mse_loss_backward", "vlb_loss_backward"])
def test_a_gradient_is_cut_by_the_batch_too(launches, name):
    """Which says that the sizes above tell."""
    one, many = cuts(launches, name, torch.contiguous_format)
    assert one != many


@pytest.mark.parametrize("name", [*LOSSES, "mse_loss_backward", "vlb_loss_backward"])
def test_the_static_report_counts_the_blocks_that_are_launched(launches, name):
    """At 64 x 64, and as many elements a thread at 32 x 32."""
    counted = {v.kernel.fn.__name__: v for kind in (static.main_variants, static.bound_variants) for v in kind("fp32").values()}
    for side in (32, 64):
        launches.clear()
        getattr(kernels, name)(*arguments_of(name, 2**26 // 3 // side**2, side=side))
        kernel, _, options = launches[0]
        cut, wanted = (options["BLOCK"], options["num_warps"]), (counted[kernel].block, counted[kernel].warps)
        assert cut[0] // cut[1] == wanted[0] // wanted[1]
        assert cut == wanted or side == 32


def test_every_plan_covers_its_tensor_once():
    for batch, elements, channels, most in [(1, 1, 0, 32), (3, 3072, 0, 32), (2, 4097, 0, 8), (1, 1 << 24, 0, 16)] + [
        (b, c * s, c, most)
        for b in (1, 300)
        for s in (9, 64, 1024, 65537)
        for c in range(1, _MAX_CHANNELS + 1)
        for most in (8, 16, 32)
    ]:
        programs, block, warps = plan(batch, elements, channels, most=most)
        assert block <= 32 * warps * most
        length = positions_of(block, channels) * channels if channels else block
        assert 0 < length <= block and block & (block - 1) == 0
        assert programs * length >= batch * elements > (programs - batch) * length
