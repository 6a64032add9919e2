"""Every op's results and gradients, by name: for what must hold of all of them."""

import torch
from helpers import every_column, values

from fastddpm import (
    NoiseSchedule,
    hybrid_loss,
    mse_loss,
    ops,
    q_sample,
    q_sample_uniform,
    q_step,
    randn,
    reverse_step,
    samplers,
    vlb_loss,
)
from fastddpm.coefficients import vlb_rows
from fastddpm.vlb import CDFS

NEAR = "~"
"""Names that begin so: sums, exponentials, float64. All instruction sets give the same bits, the reference near ones."""
SCHEDULE = NoiseSchedule.linear(1000)
EVERY_COLUMN = every_column()
ROWS = {variance_type: samplers.ddpm(SCHEDULE, "epsilon", variance_type) for variance_type in ("fixed_small", "learned_range")}


def results(key, t, shape, dtype, place, near=True):
    """Pairs of a name and a tensor; without `near` but those that are the reference's to the bit. `place` puts each operand
    somewhere in memory, in some layout."""
    x, z, fixed, upstream = (place(values(*shape, dtype=dtype, seed=seed)) for seed in range(4))
    learned = place(values(shape[0], 2 * shape[1], *shape[2:], dtype=dtype, seed=4))
    outputs = {"fixed_small": fixed, "learned_range": learned}
    exact = NEAR if dtype == torch.float64 else ""  # the reference has no fma there

    def of(name, call, *inputs, sums=False):
        """The results, and their gradients by the inputs, which may be exact where the results are sums."""
        if name.startswith(NEAR) and not near:
            return
        inputs = [x.detach().requires_grad_() for x in inputs]
        made = call(*inputs)
        made = made if isinstance(made, tuple) else (made,)
        above = [upstream if x.shape == shape else torch.full_like(x, 0.5) for x in made]
        grads = torch.autograd.grad(made, inputs, above) if inputs else ()
        if near or not sums:
            yield from ((f"{NEAR if sums else ''}{name} {i}", x.detach()) for i, x in enumerate(made))
        yield from ((f"{name} gradient {i}", x) for i, x in enumerate(grads))

    def noised(make, noise):
        return lambda x: make(x, t, SCHEDULE, noise)

    def step(variance_type, noise):
        return lambda out, x: reverse_step(out, x, t, ROWS[variance_type], noise)

    def step_with_every_option(noise):
        own = {"guidance": torch.linspace(-1, 4, shape[0]), "bound": torch.linspace(0.5, 1.5, shape[0]), "return_kept": True}
        return lambda out, u, x, *history: reverse_step(out, x, t, EVERY_COLUMN, noise, uncond_output=u, history=history, **own)

    def mse(prediction_type, noise):
        return lambda out: mse_loss(out, t, SCHEDULE, noise, x, None, prediction_type, reduction="none")

    def vlb(x_t, **kwargs):
        return lambda out: vlb_loss(out, x, x_t, t, SCHEDULE, reduction="none", **kwargs)

    def hybrid(x_t, noise, **kwargs):
        return lambda out: tuple(hybrid_loss(out, x, x_t, t, SCHEDULE, noise, reduction="none", **kwargs).values())

    def terms(out, variance_type):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        rows = vlb_rows(SCHEDULE, "epsilon", variance_type, False, "posterior", None, x.device, wide)
        return lambda: ops.vlb_terms(out, x, z, None, t, rows, False, key, t)

    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    yield "randn", randn(key, shape, dtype, torch.channels_last if last else torch.contiguous_format)
    x_t, drawn = q_sample_uniform(x, SCHEDULE, key)
    yield "q_sample_uniform's t", drawn
    yield from of(f"{exact}q_sample_uniform", lambda: x_t)
    for kind, noise in {"of a key": key, "of a tensor": z}.items():
        yield from of(f"{exact}q_sample {kind}", noised(q_sample, noise), x)
        yield from of(f"{exact}q_step {kind}", noised(q_step, noise), x)
        yield from of(f"{exact}reverse {kind}", step("fixed_small", noise), fixed, x)
        yield from of(f"{exact}reverse guided, with history {kind}", step_with_every_option(noise), fixed, z, x, x, z, fixed)
        yield from of(f"{NEAR}reverse learned {kind}", step("learned_range", noise), learned, x)
        for prediction_type in ("epsilon", "v_prediction"):
            yield from of(f"{exact}mse {prediction_type} {kind}", mse(prediction_type, noise), fixed, sums=True)
    for variance_type, out in outputs.items():
        for cdf, x_t, noise in zip(CDFS, (key, z), (None, z), strict=True):
            kwargs = {"variance_type": variance_type, "cdf": cdf}
            yield from of(f"{NEAR}vlb {variance_type} {cdf}", vlb(x_t, **kwargs), out)
            yield from of(f"{NEAR}hybrid {variance_type} {cdf}", hybrid(x_t, noise, **kwargs), out)
        yield from of(f"{NEAR}terms {variance_type}", terms(out, variance_type))
