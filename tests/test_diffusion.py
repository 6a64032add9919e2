"""GaussianDiffusion is its functions, tied to a model."""

import pytest
import torch
from helpers import loss_arguments, same_bits, values
from vlb_inputs import SHAPE, data

from fastddpm import (
    GaussianDiffusion,
    NoiseSchedule,
    advance,
    hybrid_loss,
    mse_loss,
    noise_key,
    q_sample,
    randn,
    reverse_step,
    samplers,
    timesteps,
    vlb_loss,
)
from fastddpm.schedule import LEARNED_VARIANCE_TYPES, PREDICTION_TYPES, VARIANCE_TYPES

T = 1000
SCHEDULE = NoiseSchedule.linear(T)


class Doubled:
    """A model that looks like diffusers': its output has the tensor in `.sample`."""

    def __call__(self, x, t, scale=2.0):
        self.t, self.sample = t, scale * x
        return self


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("weight", [None, "table"])
def test_training_loss_is_its_three_functions(prediction_type, weight):
    kwargs = loss_arguments(prediction_type, weight)
    diffusion = GaussianDiffusion(SCHEDULE, prediction_type, weight=kwargs["weight"])
    x_0, key = values(4, 3, 5, 5), noise_key(3, 4, 4)
    t = timesteps(key, T)
    out = 3 * q_sample(x_0, t, SCHEDULE, key)
    for reduction in ("mean", "sum", "none"):
        loss = diffusion.training_loss(Doubled(), x_0, key, {"scale": 3.0}, reduction)
        assert same_bits(loss, mse_loss(out, t, SCHEDULE, key, x_0, **kwargs, reduction=reduction))


def test_a_respaced_chain_gives_the_model_the_timesteps_it_knows():
    short, model, key = SCHEDULE.respace(10), Doubled(), noise_key(3, 4, 50)
    GaussianDiffusion(short).training_loss(model, values(50, 3), key)
    assert torch.equal(model.t, short.timesteps[timesteps(key, 10)])
    seen = []
    GaussianDiffusion(SCHEDULE).sample(lambda x, t: seen.append(t) or x, (2, 3), steps=10, progress=False)
    assert [int(t[0]) for t in seen] == short.timesteps.flip(0).tolist() and all(t.shape == (2,) for t in seen)


@pytest.mark.parametrize("clip_denoised", [True, False])
def test_sampling_is_its_loop_written_out(clip_denoised):
    model, shape = Doubled(), (2, 3, 4, 4)
    rows = samplers.ddpm(SCHEDULE.respace(5), "v_prediction", "fixed_large", clip_denoised)
    x, key = randn(noise_key(6, 0, 2, stream="initial"), shape), noise_key(6, 0, 2, stream="reverse")
    for i in range(4, -1, -1):
        x = reverse_step(model(x, rows.timesteps[i].expand(2), 0.5).sample, x, i, rows, key)[0]
        advance(key)
    diffusion = GaussianDiffusion(SCHEDULE, "v_prediction", "fixed_large")
    options = {"model_kwargs": {"scale": 0.5}, "clip_denoised": clip_denoised, "progress": False}
    images = diffusion.sample(model, shape, steps=5, seed=6, **options)
    assert same_bits(images, x)
    assert not same_bits(
        images, diffusion.sample(model, shape, steps=5, seed=6, **{**options, "clip_denoised": not clip_denoised})
    )


def test_an_image_of_a_batch_of_seeds_is_the_image_of_its_seed():
    diffusion, seeds = GaussianDiffusion(SCHEDULE), torch.tensor([5, 9, 5])
    images = diffusion.sample(Doubled(), (3, 2, 4, 4), steps=5, seed=seeds, progress=False)
    alone = diffusion.sample(Doubled(), (1, 2, 4, 4), steps=5, seed=torch.tensor([9]), progress=False)
    assert same_bits(images[1:2], alone) and same_bits(images[0], images[2]) and not same_bits(images[0], images[1])


# ---- the bound's losses, and learned variances ----


@pytest.mark.parametrize("variance_type", VARIANCE_TYPES)
@pytest.mark.parametrize("loss", ["kl", "rescaled_kl", "hybrid"])
def test_training_loss_is_its_functions(loss, variance_type):
    settings = {"cdf": "tanh", "first_variance": "beta", "reduction": "none"}
    extra = {"vlb_weight": 0.2, "weight": "min_snr"} if loss == "hybrid" else {}
    diffusion = GaussianDiffusion(SCHEDULE, "v_prediction", variance_type, loss, cdf="tanh", first_variance="beta", **extra)
    x_0, key, learned = data(*SHAPE), noise_key(5, 6, 4), variance_type in LEARNED_VARIANCE_TYPES
    t = torch.tensor([0, 1, 500, 999])  # the first variance is that of 0
    x_t = q_sample(x_0, t, SCHEDULE, key)
    out = torch.cat((x_t, x_t), 1) if learned else x_t
    got = diffusion.training_loss(lambda x, t: torch.cat((x, x), 1) if learned else x, x_0, key, t=t, reduction="none")
    inputs = (out, x_0, x_t, t, SCHEDULE)
    kinds = {"prediction_type": "v_prediction", "variance_type": variance_type}
    if loss == "hybrid":
        expected = hybrid_loss(*inputs, key, **kinds, **settings, **extra)["loss"]
    else:
        expected = (1000 if loss == "rescaled_kl" else 1) * vlb_loss(*inputs, **kinds, **settings)
    assert same_bits(got, expected)


def test_sampling_with_a_learned_variance():
    """Noise of the variance that the network gives: at its lower end that of fixed_small."""
    ends = {}
    for variance_type, v in (("learned_range", -1.0), ("learned_range", 1.0), ("fixed_small", None), ("fixed_large", None)):
        diffusion = GaussianDiffusion(SCHEDULE, "sample", variance_type, "kl")

        def model(x, t, v=v):
            return x / 2 if v is None else torch.cat((x / 2, torch.full_like(x, v)), 1)

        ends[variance_type, v] = diffusion.sample(model, (2, 3, 4), steps=5, seed=3, progress=False)
    torch.testing.assert_close(ends["learned_range", -1.0], ends["fixed_small", None], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ends["learned_range", 1.0], ends["fixed_large", None], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ends["fixed_small", None], ends["fixed_large", None], atol=1e-2)
