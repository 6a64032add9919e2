"""What steers `GaussianDiffusion.sample`: guidance, thresholding, denoised_fn and cond_fn, against plain loops whose network
does it by its formula, and diffusers' own functions."""

import pytest
import torch
from helpers import same_bits, values
from sampling_loops import model, walk

from fastddpm import GaussianDiffusion, NoiseSchedule, noise_key, randn, samplers
from fastddpm.samplers import SAMPLERS
from fastddpm.sampling import dynamic_bound

T, STEPS, SHAPE = 50, 4, (3, 2, 4, 4)
SCHEDULE = NoiseSchedule.linear(T)
WIDE = {"dtype": torch.float64}
CLASSES = {"model_kwargs": {"label": torch.tensor([1, 2, 3])}, "uncond_kwargs": {"label": torch.tensor([0, 0, 0])}}
SCALES = {"number": 7.3, "each": torch.tensor([0.0, 1.0, 7.3])}
TOWARDS_AN_IMAGE = [name for name in SAMPLERS if name != "ddim_inverse"]


def per_sample(values):
    return values.view(-1, 1, 1, 1)


def network(x, t, label):
    """Its output is of x, t and the label."""
    return model(x, per_sample(t), T) + 0.3 * torch.cos(x + per_sample(label))


def cond(x, t):
    return network(x, t.expand(len(x)), CLASSES["model_kwargs"]["label"])


def uncond(x, t):
    return network(x, t.expand(len(x)), CLASSES["uncond_kwargs"]["label"])


def sample(name, net=network, variance_type="fixed_small", **changed):
    options = {"steps": STEPS, "seed": 3, "progress": False, "model_kwargs": CLASSES["model_kwargs"], **WIDE, **changed}
    return GaussianDiffusion(SCHEDULE, variance_type=variance_type).sample(net, SHAPE, name, **options)


def rows_of(name, variance_type="fixed_small", **options):
    if name == "ddpm":
        return samplers.ddpm(SCHEDULE.respace(STEPS), variance_type=variance_type, **options)
    return SAMPLERS[name](SCHEDULE, steps=STEPS, **options)


def drawn(stream, count):
    return [randn(noise_key(3, n, SHAPE[0], stream=stream), SHAPE, torch.float64) for n in range(count)]


def walked(rows, net, **options):
    return walk(rows, drawn("initial", 1)[0], drawn("reverse", len(rows)), net, **options)


def close(got, expected):
    assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-11


def levels_of(rows):
    """t -> a, b of the step that gives the network this t."""
    levels = dict(zip(rows.timesteps.tolist(), rows.alphas_cumprod, strict=True))
    return lambda t: (levels[t.item()].sqrt(), (1 - levels[t.item()]).sqrt())


# ---- guidance ----

CLIPPED = {"ddim": {"use_clipped_model_output": True}}
"""What `sample` takes for granted under guidance and thresholding."""


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_is_its_formula_by_one_call_or_two(name, scale):
    g = SCALES[scale]
    exact = torch.tensor(g, **WIDE) if scale == "number" else g.double()
    rows = rows_of(name, **CLIPPED.get(name, {}))
    expected = walked(rows, lambda x, t: uncond(x, t) + per_sample(exact) * (cond(x, t) - uncond(x, t)))
    batches = []

    def watched(x, t, label):
        batches.append(len(x))
        return network(x, t, label)

    for stacked in (False, True):
        batches.clear()
        close(sample(name, watched, guidance_scale=g, stacked=stacked, **CLASSES), expected)
        assert batches == [6 if stacked else 3] * (len(rows_of(name)) * (1 if stacked else 2))


def test_a_model_that_changes_its_t_changes_nothing_else():
    """Nor the t of its second call, of cond_fn and of denoised_fn."""

    def rude(x, t, label):
        out = network(x, t, label)
        t.zero_()
        return out

    options = {"guidance_scale": 3.0, "denoised_fn": lambda x_0, t: x_0 + per_sample(t), **CLASSES}
    options["cond_fn"] = lambda x, t, label: x * per_sample(t)
    for given in (options, {"guidance_scale": 3.0, **CLASSES}):
        assert same_bits(*(sample("dpmpp_2m", net, **given) for net in (network, rude)))


@pytest.mark.parametrize("steered", [{}, {"guidance_rescale": 0.7}], ids=["kernel", "composed"])
@pytest.mark.parametrize("stacked", [False, True])
def test_under_guidance_a_learned_variance_is_the_conditionals(stacked, steered):
    def learned(x, t, label):
        return torch.cat((network(x, t, label), torch.sin(x + per_sample(label))), 1)

    def by_hand(x, t, label):
        c, u = learned(x, t, label), learned(x, t, torch.zeros_like(label))
        mean = u[:, :2] + 4.0 * (c - u)[:, :2]
        if steered:
            factor = c[:, :2].std((1, 2, 3), keepdim=True) / mean.std((1, 2, 3), keepdim=True)
            mean = 0.7 * mean * factor + 0.3 * mean
        return torch.cat((mean, c[:, 2:]), 1)

    got = sample("ddpm", learned, "learned_range", guidance_scale=4.0, stacked=stacked, **CLASSES, **steered)
    close(got, sample("ddpm", by_hand, "learned_range"))


@pytest.mark.parametrize("name", ["ddpm", "heun", "unipc_3"])
def test_guidance_rescale_is_diffusers(name):
    theirs = pytest.importorskip("diffusers.guiders.guider_utils").rescale_noise_cfg

    def net(x, t):
        c, u = cond(x, t), uncond(x, t)
        return theirs(u + 7.3 * (c - u), c, 0.7)

    close(sample(name, guidance_scale=7.3, guidance_rescale=0.7, **CLASSES), walked(rows_of(name), net))


def test_whats_no_tensor_of_the_batch_is_stacked_once():
    def net(x, t, label, weight, mode):
        assert mode == "fast" and weight.shape == ()
        return network(x, t, label) * weight

    both = {name: {**given, "weight": torch.tensor(2.0), "mode": "fast"} for name, given in CLASSES.items()}
    both["uncond_kwargs"] = CLASSES["uncond_kwargs"]
    stacked, two = (sample("ddim", net, guidance_scale=2.0, stacked=stacked, **both) for stacked in (True, False))
    close(stacked, two)


# ---- x_0_hat ----


@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "lms", "plms", "dpmpp_2m", "unipc_2", "heun"])
def test_thresholding_is_diffusers(name):
    """In the place of the clamp: eps_hat is what it is where x_0_hat is clipped."""
    theirs = pytest.importorskip("diffusers").DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e9
    )
    rows = rows_of(name, clip_denoised=True, **CLIPPED.get(name, {}))
    close(sample(name, thresholding=0.9), walked(rows, cond, threshold=theirs._threshold_sample))


@pytest.mark.parametrize("percentile", [0.01, 0.5, 0.995, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_dynamic_bound_is_a_quantile_and_one_at_least(percentile, dtype):
    x = (10 * values(4, 3, 5, 7)).to(dtype)
    x[0] /= 100
    wide = x.flatten(1).abs().to(torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(dynamic_bound(x, percentile), wide.quantile(percentile, 1).clamp(min=1))


def edited(x_0, t):
    """A denoised_fn."""
    return 0.7 * x_0 + 0.01 * per_sample(t)


@pytest.mark.parametrize("name", TOWARDS_AN_IMAGE)
def test_a_denoised_fns_x_0_hat_is_the_networks(name):
    """Of the network whose output tells this x_0_hat."""
    rows = rows_of(name, clip_denoised=False)
    level = levels_of(rows)

    def net(x, t):
        a, b = level(t)
        return (x - a * edited((x - b * cond(x, t)) / a, t.expand(len(x)))) / b

    close(sample(name, clip_denoised=False, denoised_fn=edited), walked(rows, net))


@pytest.mark.parametrize("eta", [None, 0.7])
def test_a_denoised_fn_comes_before_the_clamp_as_in_openais_code(eta):
    """p_sample, and ddim_sample, whose eps_hat follows from the clipped x_0_hat."""
    chain, (x,), z = SCHEDULE.respace(STEPS), drawn("initial", 1), drawn("reverse", STEPS)
    rows = samplers.ddim(chain, eta=eta) if eta else None
    for n, i in enumerate(range(STEPS - 1, -1, -1)):
        abar, t = chain.alphas_cumprod[i], chain.timesteps[i]
        before = chain.alphas_cumprod[i - 1] if i else torch.ones(())
        x_0 = edited((x - (1 - abar).sqrt() * cond(x, t)) / abar.sqrt(), t.expand(3)).clamp(-1, 1)
        if eta is None:
            mean = chain.posterior_mean_x_t[i] * x + chain.posterior_mean_x_0[i] * x_0
            x = mean + chain.posterior_variance[i].sqrt() * z[n]
            continue
        eps = (x - abar.sqrt() * x_0) / (1 - abar).sqrt()
        sigma = eta * ((1 - before) / (1 - abar) * (1 - abar / before)).sqrt()
        x = before.sqrt() * x_0 + (1 - before - sigma**2).sqrt() * eps + sigma * z[n]
    close(sample(rows or "ddpm", denoised_fn=edited), x)


# ---- cond_fn ----


def gradient(x, t, label):
    return torch.cos(x + per_sample(label)) + 0.02 * per_sample(t)


@pytest.mark.parametrize("name", [name for name in TOWARDS_AN_IMAGE if name != "ddpm"])
def test_cond_fn_moves_the_score(name):
    """Dhariwal & Nichol 2021, algorithm 2: eps - sqrt(1 - abar) gradient."""
    rows = rows_of(name)
    level = levels_of(rows)

    def net(x, t):
        return cond(x, t) - level(t)[1] * gradient(x, t.expand(len(x)), CLASSES["model_kwargs"]["label"])

    close(sample(name, cond_fn=gradient), walked(rows, net))


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_cond_fn_moves_ddpms_mean(variance_type):
    """Algorithm 1: by the variance times the gradient at x_t, in all steps that add noise."""
    chain, (x,), z = SCHEDULE.respace(STEPS), drawn("initial", 1), drawn("reverse", STEPS)
    label, learns = CLASSES["model_kwargs"]["label"], variance_type.startswith("learned")

    def net(x, t, label):
        return torch.cat((network(x, t, label), torch.sin(x) - 1), 1) if learns else network(x, t, label)

    got = sample("ddpm", net, variance_type, cond_fn=gradient)
    for n, i in enumerate(range(STEPS - 1, -1, -1)):
        abar, t = chain.alphas_cumprod[i], chain.timesteps[i].expand(3)
        out, *v = net(x, t, label).split(2, 1)
        x_0 = ((x - (1 - abar).sqrt() * out) / abar.sqrt()).clamp(-1, 1)
        mean = chain.posterior_mean_x_t[i] * x + chain.posterior_mean_x_0[i] * x_0
        if variance_type == "learned":
            variance = v[0].exp()
        elif variance_type == "learned_range":
            low, high = (chain.posterior_variance[i].log(), chain.betas[i].log()) if i else (torch.ones(()),) * 2
            variance = ((v[0] + 1) / 2 * high + (1 - v[0]) / 2 * low).exp()
        else:
            variance = chain.variance(variance_type)[i]
        x = mean + variance * gradient(x, t, label) + variance.sqrt() * z[n] if i else mean
    close(got, x)


def test_everything_at_once_goes_by_turns():
    """Guidance, its rescaling, the score, x_0_hat, its threshold."""
    rows = rows_of("dpmpp_2m", clip_denoised=True)
    level, label = levels_of(rows), CLASSES["model_kwargs"]["label"]

    def net(x, t):
        (a, b), c, u = level(t), cond(x, t), uncond(x, t)
        out = u + 5.0 * (c - u)
        out = out * (0.6 + 0.4 * c.std((1, 2, 3), keepdim=True) / out.std((1, 2, 3), keepdim=True))
        out = out - b * gradient(x, t.expand(3), label)
        return (x - a * edited((x - b * out) / a, t.expand(3))) / b

    def threshold(x_0):
        bound = per_sample(x_0.flatten(1).abs().quantile(0.8, 1).clamp(min=1))
        return x_0.clamp(-bound, bound) / bound

    steered = {"guidance_rescale": 0.4, "cond_fn": gradient, "denoised_fn": edited, "thresholding": 0.8}
    got = sample("dpmpp_2m", guidance_scale=5.0, **CLASSES, **steered)
    close(got, walked(rows, net, threshold=threshold))


def test_a_clip_range_of_ones_own():
    close(sample("ddim", clip_range=0.3), walked(rows_of("ddim", clip_range=0.3), cond))
    assert float(sample("ddpm", clip_range=0.3).abs().max()) <= 0.3 + 1e-9


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_rows_and_their_name_are_steered_alike(name):
    """What cond_fn moves is a matter of the rows."""
    rows = samplers.ddpm(SCHEDULE.respace(STEPS)) if name == "ddpm" else samplers.ddim(SCHEDULE, steps=STEPS)
    options = {"cond_fn": lambda x, t, label: -x, **CLASSES, "uncond_kwargs": None}
    assert same_bits(sample(name, network, **options), sample(rows, network, **options))


def test_arguments_in_containers_are_stacked():
    def nested(x, t, label, added):
        return network(x, t, label) + per_sample(added["text"][0])

    shared = {"added": {"text": [torch.arange(SHAPE[0], **WIDE)], "size": 8}}
    kwargs = {"model_kwargs": CLASSES["model_kwargs"] | shared, "uncond_kwargs": CLASSES["uncond_kwargs"]}
    apart, together = (sample("ddim", nested, guidance_scale=3.0, stacked=stacked, **kwargs) for stacked in (False, True))
    close(together, apart)
