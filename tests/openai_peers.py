"""OpenAI's diffusions for tests: the two repositories', where FASTDDPM_PEERS names a folder that has their checkouts (`guided`
and `improved`), and a stand-in for both everywhere."""

import os
import random
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import numpy as np
import openai_twin
import pytest
import torch

import fastddpm

CHECKOUTS = os.environ.get("FASTDDPM_PEERS")
STEPS = 40
MEANS = ("EPSILON", "START_X", "PREVIOUS_X")
VARIANCES = ("FIXED_SMALL", "FIXED_LARGE", "LEARNED", "LEARNED_RANGE")
LOSSES = ("MSE", "RESCALED_MSE", "KL", "RESCALED_KL")
NAMES = ("twin", "guided_diffusion", "improved_diffusion")
ROUNDING = 2e-5
"""Their tables are rounded to float32: what follows from them in float64 too."""
BATCH = torch.tensor([0, 1, 17, STEPS - 1])


def imported(name, module):
    """A module of a checkout, with stand-ins for what it takes from MPI and from blob stores."""
    if CHECKOUTS is None:
        pytest.skip("FASTDDPM_PEERS names no folder of OpenAI's repositories")
    folder = os.path.join(CHECKOUTS, name.removesuffix("_diffusion"))
    if folder not in sys.path:
        sys.path.append(folder)
    for absent in ("blobfile", "mpi4py"):
        sys.modules.setdefault(absent, ModuleType(absent))
    world = SimpleNamespace(Get_rank=lambda: 0, bcast=lambda data: data)
    sys.modules["mpi4py"].__dict__.setdefault("MPI", SimpleNamespace(COMM_WORLD=world))
    return import_module(f"{name}.{module}")


class Peer:
    """One of the repositories, or the stand-in."""

    def __init__(self, name):
        self.name, self.twin = name, name.startswith("twin")
        self.code = openai_twin if self.twin else imported(name, "gaussian_diffusion")
        self.respace = openai_twin if self.twin else imported(name, "respace")

    def diffusion(self, mean="EPSILON", variance="LEARNED_RANGE", loss="RESCALED_MSE", spacing=None, rescaled=False):
        kinds = (self.code.ModelMeanType[mean], self.code.ModelVarType[variance], self.code.LossType[loss])
        names = ("model_mean_type", "model_var_type", "loss_type")
        given = dict(zip(names, kinds, strict=True), rescale_timesteps=rescaled)
        given["betas"] = self.code.get_named_beta_schedule("linear", STEPS)
        if spacing is not None:
            return self.respace.SpacedDiffusion(self.respace.space_timesteps(STEPS, spacing), **given)
        return (openai_twin.Improved if self.name == "twin of improved" else self.code.GaussianDiffusion)(**given)

    def pair(self, *case, noise="torch", strict=False, **options):
        """(as it is, patched, the patch)"""
        plain, patched = (self.diffusion(*case, **options) for _ in range(2))
        return plain, patched, fastddpm.patch(patched, noise, strict=strict, force=self.twin)


class Network(torch.nn.Module):
    """A network of few weights that reads t and mixes channels."""

    def __init__(self, learned, dtype=torch.float32, output=None):
        super().__init__()
        torch.manual_seed(3)
        self.weight = torch.nn.Parameter(torch.randn(6 if learned else 3, 3).div(2).to(dtype))
        self.output, self.calls = output, []

    def forward(self, x, t, **kwargs):
        self.calls.append((t, kwargs))
        mixed = torch.einsum("oc,bchw->bohw", self.weight, x.to(self.weight.dtype))
        out = torch.tanh(mixed + t.to(mixed.dtype).view(-1, 1, 1, 1) / 1000)
        return out if self.output is None else out.to(self.output)


def network(variance, dtype=torch.float32, output=None):
    return Network(variance.startswith("LEARNED"), dtype, output)


def images(dtype=torch.float32, size=4):
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(0, 256, (len(BATCH), 3, size, size), generator=generator) / 127.5 - 1).to(dtype)


def noise_like(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype)


def close(got, wanted, tolerance):
    """Of the same dtypes and shapes, relative to the largest value, at least 1."""
    assert got.dtype is wanted.dtype and got.shape == wanted.shape
    got, wanted = got.detach().double(), wanted.detach().double()
    error, size = (got - wanted).abs().max(), wanted.abs().max().clamp(min=1)
    assert float(error / size) <= tolerance, f"{float(error / size):.2e}, {tolerance} allowed"


def states():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def of_both(plain, patched, name, *given, **options):
    """What a method of both returns, from the same seed; it must leave the generators alike."""
    results, after = [], []
    for diffusion in (plain, patched):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        result = getattr(diffusion, name)(*given, **options)
        results.append(result if isinstance(result, dict) else {name: result})
        after.append(states())
    assert after[0] == after[1]
    assert list(results[0]) == list(results[1])
    return results
