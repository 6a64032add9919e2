"""diffusers' EMAModel, patched."""

import copy

import pytest
import torch

import fastddpm

pytest.importorskip("diffusers")

from diffusers.training_utils import EMAModel


def model(dtype=torch.float32):
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.GroupNorm(1, 7), torch.nn.Linear(7, 3)).to(dtype)
    made[1].bias.requires_grad_(False)
    return made


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_ema_warmup": True, "inv_gamma": 1.0, "power": 0.75}, {"update_after_step": 3}, {"decay": 0.5}],
    ids=str,
)
def test_the_average_is_the_original_s(options, foreach):
    network = model()
    plain, patched = (EMAModel(network.parameters(), foreach=foreach, **options) for _ in range(2))
    handle = fastddpm.patch(patched)
    for _ in range(20):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
        plain.step(network.parameters())
        patched.step(network.parameters())
        for one, other in zip(plain.shadow_params, patched.shadow_params, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)
    one, other = plain.state_dict(), patched.state_dict()
    assert {k: v for k, v in one.items() if k != "shadow_params"} == {k: v for k, v in other.items() if k != "shadow_params"}
    assert plain.cur_decay_value == patched.cur_decay_value and not handle.fell_back
    assert not any(s.requires_grad for s in patched.shadow_params)


def test_strict_leaves_half_precision_to_the_original():
    network = model(torch.bfloat16)
    plain, strict = (EMAModel(network.parameters(), decay=0.9) for _ in range(2))
    handle = fastddpm.patch(strict, strict=True)
    for _ in range(3):
        with torch.no_grad():
            network[0].weight.add_(0.3)
        plain.step(network.parameters())
        strict.step(network.parameters())
    assert all(torch.equal(one, other) for one, other in zip(plain.shadow_params, strict.shadow_params, strict=True))
    assert handle.fell_back == {"step: strict, in half precision": 3}


def test_a_first_step_copies():
    network = model()
    patched = EMAModel(network.parameters())
    with torch.no_grad():
        network[0].weight.add_(1)
    with fastddpm.patch(patched):
        patched.step(network.parameters())
    assert torch.equal(patched.shadow_params[0], network[0].weight)


def test_complex_parameters_are_theirs():
    weights = [torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))]
    plain, patched = (EMAModel(weights) for _ in range(2))
    with fastddpm.patch(patched), torch.no_grad():
        for _ in range(3):
            weights[0].add_(1j)
            for each in (plain, patched):
                each.step(weights)
    assert (
        torch.equal(plain.shadow_params[0], patched.shadow_params[0]) and plain.optimization_step == patched.optimization_step
    )


@pytest.mark.parametrize("given", ["module", "half", "fewer"])
def test_what_is_not_covered_ends_as_the_original_does(given):
    network = model()
    plain, patched = (EMAModel(network.parameters()) for _ in range(2))
    handle = fastddpm.patch(patched)
    moved = copy.deepcopy(network).to(torch.bfloat16) if given == "half" else network
    values = {"module": moved, "half": list(moved.parameters()), "fewer": list(moved.parameters())[:2]}[given]
    for each in (plain, patched):
        each.step(values)
        each.step(values)
    assert all(torch.equal(one, other) for one, other in zip(plain.shadow_params, patched.shadow_params, strict=True))
    assert plain.optimization_step == patched.optimization_step == 2
    assert bool(handle.fell_back) == (given != "fewer")
