"""Whole sampling loops in plain torch, any dtype: over a table of rows, and over a diffusers scheduler run in float64."""

import functools
import importlib
import itertools

import numpy as np
import torch


def model(x, t, num_timesteps):
    """Smooth, nonlinear, of x and t; t reaches a network as float32."""
    t = torch.as_tensor(t).float().to(x.dtype)
    return torch.sin(x + 2 * t / num_timesteps) + 0.2 * x


def walk(rows, x, noises, network, kept=None, start=None, edit=None, threshold=None):
    """The loop over a sampler's rows, from the last (or `start`) to row 0, as `reverse_step` has it, in x's dtype. `edit(n, x)`
    is what somebody makes of x after the n-th row, `threshold(x_0)` what is in the place of the clamp."""
    kept = kept or [torch.zeros_like(x)] * 3
    for n, i in enumerate(range(len(rows) - 1 if start is None else start, -1, -1)):
        k = type(rows.columns)(*(column[i].to(x.dtype) for column in rows.columns))
        out = network(x, rows.timesteps[i])
        x_0 = k.p_x * x + k.p_o * out
        x_0 = x_0.clamp(-k.bound, k.bound) if threshold is None else threshold(x_0)
        x_prev = k.k_x * x + k.k_0 * x_0 + k.k_o * out + k.k_h1 * kept[0] + k.k_h2 * kept[1] + k.k_h3 * kept[2]
        x_prev = x_prev + k.sigma * noises[n].to(x.dtype) if k.sigma else x_prev
        kept = [k.c_x * x + k.c_0 * x_0 if rows.keeps else x_0, *kept[:2]]
        x = x_prev if edit is None else edit(n, x_prev)
    return x


# ---- theirs ----


class _In64:
    """A module whose float32 is float64."""

    def __init__(self, module, **changed):
        self.module, self.changed = module, changed

    def __getattr__(self, name):
        return self.changed[name] if name in self.changed else getattr(self.module, name)


def _linspace(*args, dtype=None, **kwargs):
    """Where they make float32 timesteps, so do we; what follows from them is float64."""
    points = np.linspace(*args, **kwargs)
    return points.astype(np.float32).astype(np.float64) if dtype is np.float64 else points


TORCH, NUMPY = _In64(torch, float32=torch.float64), _In64(np, float32=np.float64, linspace=_linspace)


def scheduler(patch, name, dtype, **config):
    """diffusers' scheduler, all of it in float64 where asked for."""
    cls = getattr(importlib.import_module("diffusers"), name)
    module = importlib.import_module(cls.__module__)
    if dtype == torch.float64:
        patch.setattr(module, "torch", TORCH)
        patch.setattr(module, "np", NUMPY, raising=False)
    return cls(**config)


def strides(theirs, mended):
    """DDIM and PNDM go to the level T // S timesteps on, whatever their timesteps are; mended, to that of the next one."""
    timesteps = theirs.timesteps.tolist()
    again = "PNDM" in type(theirs).__name__ and len(timesteps) > 1
    for n, t in enumerate(timesteps):
        before = timesteps[0] if again and n == 1 else t
        after = t if again and n == 1 else next((u for u in timesteps[n:] if u < t), -1)
        if mended:
            theirs.num_inference_steps = 1
            theirs.register_to_config(num_train_timesteps=before - after)
        yield theirs.timesteps[n]


def their_walk(patch, theirs, x, noises, network, mended=False, **options):
    """Their loop; their sample may be x / a."""
    noise = iter(noises)
    module = importlib.import_module(type(theirs).__module__)
    if hasattr(module, "randn_tensor"):
        patch.setattr(module, "randn_tensor", lambda *_, **__: next(noise).to(x.dtype))
    step = functools.partial(theirs.step, **options)
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(0)  # as pipelines do: where a timestep is there twice they would begin at the second
    scaled = any(kind in type(theirs).__name__ for kind in ("Euler", "Heun", "LMS"))
    x = x * (theirs.sigmas[0] ** 2 + 1) ** 0.5 if scaled else x
    for t in strides(theirs, mended):
        given = t.item() if "LCM" in type(theirs).__name__ else t  # of a tensor its c_skip would be float32
        x = step(network(theirs.scale_model_input(x, t), t), given, x).prev_sample
    return x / (theirs.sigmas[-1] ** 2 + 1) ** 0.5 if scaled else x


def every(*choices):
    return list(itertools.product(*choices))
