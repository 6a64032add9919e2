"""A scheduler of diffusers' and a patched one, and steps of both from the same x."""

import torch

import fastddpm


def pair(cls, steps=6, noise="torch", **config):
    """A scheduler and a patched one of the same configuration."""
    plain, patched = cls(**config), cls(**config)
    fastddpm.patch(patched, noise=noise)
    if steps:
        plain.set_timesteps(steps)
        patched.set_timesteps(steps)
    return plain, patched


def output_of(x, t, doubled):
    """A network of no meaning."""
    out = torch.tanh(1.3 * x + t / 1000)
    return torch.cat((out, torch.sin(3 * x)), 1) if doubled else out


def walked(plain, patched, dtype=torch.float32, doubled=False, **options):
    """Both steps at every timestep, from the same x and the same generator's state."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4).to(dtype)
    for t in plain.timesteps:
        out = output_of(x, t, doubled).to(dtype)
        state = torch.get_rng_state()
        wanted = plain.step(out, t, x, **options)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        came = patched.step(out, t, x, **options)
        assert torch.equal(torch.get_rng_state(), after)
        assert type(wanted) is type(came) and wanted.keys() == came.keys()
        for one, other in zip(wanted.to_tuple(), came.to_tuple(), strict=True):
            assert one.dtype is other.dtype and one.shape == other.shape
        yield (out, t, x), wanted, came
        x = wanted.prev_sample.nan_to_num(0, 1, -1).clamp(-3, 3)


def agree(wanted, came, error=1e-5):
    for one, other in zip(wanted.to_tuple(), came.to_tuple(), strict=True):
        torch.testing.assert_close(
            other, one, rtol=0, atol=error * max(1.0, float(one.abs().nan_to_num(0, 0, 0).max())), equal_nan=True
        )


def outcome(call, *arguments):
    try:
        return call(*arguments)
    except Exception as error:
        return type(error)


def noised(each, x, noise, timesteps):
    """By whatever name."""
    flow = not hasattr(each, "add_noise")
    return each.scale_noise(x, timesteps, noise) if flow else each.add_noise(x, noise, timesteps)
