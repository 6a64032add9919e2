"""Whole loops of rectified flow and EDM beside diffusers' schedulers: theirs in float64 is the truth."""

import numpy as np
import pytest
import torch
from helpers import far
from sampling_loops import model, scheduler

pytest.importorskip("diffusers")

from fastddpm import EDM, FlowMatching, GaussianDiffusion

SHAPE = (2, 3, 4, 4)
FLOW, EULER, SOLVER = "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"
ORDERS = {"dpmpp_1": 1, "dpmpp_2m": 2, "dpmpp_3m": 3}
MU = 0.9
DYNAMIC = {"use_dynamic_shifting": True}
CASES = {  # (their class, config and set_timesteps' options; the process, sampler and options)
    "flow": (FLOW, {}, {}, FlowMatching(), "euler", {}),
    "flow, shifted": (FLOW, {"shift": 3.0}, {}, FlowMatching(shift=3.0), "euler", {}),
    "flow, shifted by the resolution": (FLOW, DYNAMIC, {"mu": MU}, FlowMatching(sampling_shift=np.exp(MU)), "euler", {}),
    "flow, karras": (FLOW, {"use_karras_sigmas": True}, {}, FlowMatching(), "euler", {"spacing": "karras"}),
    "flow, short": (FLOW, {"num_train_timesteps": 50}, {}, FlowMatching(50), "euler", {}),
    "edm, euler": (EULER, {}, {}, EDM(), "euler", {}),
    "edm, other levels": (
        EULER,
        {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.5, "rho": 5.0},
        {},
        EDM(1.5, sigma_min=0.01, sigma_max=20.0, rho=5.0),
        "euler",
        {},
    ),
    **{f"edm, {name}": (SOLVER, {"solver_order": order}, {}, EDM(), name, {}) for name, order in ORDERS.items()},
}


def their_loop(theirs, x, network):
    for t in theirs.timesteps:
        given = theirs.scale_model_input(x, t) if hasattr(theirs, "scale_model_input") else x
        x = theirs.step(network(given, t), t, x).prev_sample
    return x


@pytest.mark.parametrize("steps", [6, 24])
@pytest.mark.parametrize("case", CASES)
def test_a_whole_loop_is_that_of_diffusers(case, steps, monkeypatch):
    name, config, given, process, sampler, options = CASES[case]
    first, ends = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64), {}
    edm = isinstance(process, EDM)

    def network(x, t):
        return model(x, t.reshape(-1, 1, 1, 1), 1 if edm else len(process))

    for dtype in (torch.float32, torch.float64):
        with monkeypatch.context() as patch:
            theirs = scheduler(patch, name, dtype, **config)
            theirs.set_timesteps(steps, **given)
            begin = first * theirs.sigmas[0].double()
            x_T = begin * process.levels_at(theirs.sigmas[0].double())[0] if edm else begin  # noqa: N806
            ends["theirs", dtype] = their_loop(theirs, begin.to(dtype), network)
        about = {"x_T": x_T.to(dtype), "dtype": dtype, "clip_denoised": False, "progress": False}
        ends["ours", dtype] = GaussianDiffusion(process).sample(network, SHAPE, sampler, steps, **about, **options)
    truth = ends["theirs", torch.float64]
    assert truth.dtype is torch.float64 and far(ends["ours", torch.float64], truth) < 1e-6
    assert far(ends["ours", torch.float32], truth) <= 2 * far(ends["theirs", torch.float32], truth) + 1e-7
