"""The loop of `GaussianDiffusion.sample` over every sampler, against plain loops over the same rows: its noise, where it
begins, what is edited between its steps, and what it holds. What steers a step is in test_steering.py."""

import weakref

import pytest
import torch
from helpers import same_bits, values
from sampling_loops import model, walk

from fastddpm import GaussianDiffusion, NoiseSchedule, noise_key, randn, samplers
from fastddpm.samplers import SAMPLERS

T, STEPS, SHAPE = 50, 6, (2, 3, 4, 4)
SCHEDULE = NoiseSchedule.linear(T)
DIFFUSION = GaussianDiffusion(SCHEDULE)
WIDE = {"dtype": torch.float64}
OPTIONS = {"ddim": {"eta": 0.7}}
"""Beside the defaults: with noise, so that it is seen."""
STOCHASTIC = [name for name in SAMPLERS if SAMPLERS[name](SCHEDULE, steps=2, **OPTIONS.get(name, {})).adds_noise]
WITHOUT_HISTORY = [name for name in SAMPLERS if not SAMPLERS[name](SCHEDULE, steps=STEPS).history and name != "ddim_inverse"]
EDITED = [name for name in SAMPLERS if name != "plms"]


def network(x, t):
    return model(x, t.view(-1, *(1,) * (x.dim() - 1)), T)


def exact(x, t):
    """Whose result for an element has the same bits wherever it lies."""
    return x / 2


def sample(name, net=network, shape=SHAPE, **changed):
    options = {"steps": STEPS, "seed": 3, "progress": False, **OPTIONS.get(name, {}), **changed}
    return DIFFUSION.sample(net, shape, name, **options)


def rows_of(name, **changed):
    if name == "ddpm":
        return samplers.ddpm(SCHEDULE.respace(STEPS))  # evenly to the chain's end
    return SAMPLERS[name](SCHEDULE, steps=STEPS, **OPTIONS.get(name, {}), **changed)


def noises(stream, first, count, seed=3, shape=SHAPE):
    return [randn(noise_key(seed, n, shape[0], stream=stream), shape, torch.float64) for n in range(first, first + count)]


def walked(rows, x, first=0, **edited):
    """The plain loop, whose noise begins at a number."""
    return walk(rows, x, noises("reverse", first, len(rows)), network, **edited)


def close(got, expected, tolerance=1e-12):
    assert float((got.double() - expected).abs().max() / expected.abs().max()) <= tolerance


# ---- the loop, and its noise ----


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_sample_is_the_plain_loop_over_the_samplers_rows(name, dtype, tolerance):
    seen = []

    def watched(x, t):
        seen.append((x.dtype, t.dtype))
        return network(x, t)

    rows, (x,) = rows_of(name), noises("initial", 0, 1)
    got = sample(name, watched, dtype=dtype)
    assert got.dtype == dtype and set(seen) == {(dtype, rows.timesteps.dtype)}
    close(got, walked(rows, x), tolerance)


def test_without_a_seed_torchs_generator_draws_one():
    def drawn(**seed):
        return DIFFUSION.sample(network, SHAPE, steps=2, progress=False, **seed)

    torch.manual_seed(7)
    first, second = drawn(), drawn()
    assert not torch.equal(first, second)
    torch.manual_seed(7)
    assert same_bits(drawn(seed=None), first)
    assert not torch.equal(sample("ddpm", seed=0), sample("ddpm", seed=1))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_an_image_does_not_depend_on_its_batch(name):
    """Of an int seed and a first_sample, and of seeds of their own: the noise to the bit, through a convolution to 1e-5."""
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 3, 3, padding=1)
    whole, one = (5, *SHAPE[1:]), (1, *SHAPE[1:])
    for net, right in ((exact, same_bits), (lambda x, t: convolution(x), lambda a, b: torch.allclose(a, b, 1e-5, 1e-5))):
        images = sample(name, net, whole)
        parts = [sample(name, net, (n, *SHAPE[1:]), first_sample=first) for first, n in ((0, 2), (2, 3))]
        assert right(torch.cat(parts), images)
        seeds = torch.tensor([5, 9, 5, -1, 2**40])
        images = sample(name, net, whole, seed=seeds)
        assert all(right(sample(name, net, one, seed=seeds[[n]]), images[[n]]) for n in range(5))
        assert right(images[0], images[2]) and not torch.allclose(images[0], images[1])


def test_a_bfloat16_model_takes_bfloat16_samples_and_float32_samples_take_its_outputs():
    convolution = torch.nn.Conv2d(3, 3, 3, padding=1).bfloat16()
    assert sample("dpmpp_2m", lambda x, t: convolution(x), dtype=torch.bfloat16).dtype == torch.bfloat16
    mixed = sample("dpmpp_2m", lambda x, t: convolution(x.bfloat16()))
    assert mixed.dtype == torch.float32 and mixed.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_rows_of_ones_own_are_a_sampler(name):
    assert same_bits(sample(rows_of(name)), sample(name))


@pytest.mark.parametrize("name", ["ddpm", "heun"])
def test_a_trajectory_begins_with_the_first_sample_and_ends_with_the_images(name):
    path = sample(name, return_trajectory=True)
    assert path.shape == (1 + len(rows_of(name)), *SHAPE)
    assert same_bits(path[0], randn(noise_key(3, 0, 2, stream="initial"), SHAPE)) and same_bits(path[-1], sample(name))


# ---- where it begins ----


def test_an_x_T_of_ones_own():  # noqa: N802
    x = values(*SHAPE)
    before = x.clone()
    assert same_bits(sample("ddim", x_T=x, return_trajectory=True)[0], x) and same_bits(x, before)
    own = randn(noise_key(3, 0, 2, stream="initial"), SHAPE)
    assert same_bits(sample("ddpm", x_T=own), sample("ddpm"))


@pytest.mark.parametrize("name", WITHOUT_HISTORY)
def test_from_the_middle_it_is_the_tail_of_the_whole_walk(name):
    """Bit for bit: a step's noise goes by its number in the whole."""
    path = sample(name, return_trajectory=True)
    assert same_bits(sample(name, start=2, x_t=path[2], return_trajectory=True), path[2:])


@pytest.mark.parametrize("name", SAMPLERS)
def test_from_the_middle_a_sampler_begins_anew(name):
    x, at = values(*SHAPE, **WIDE), {"start": STEPS - 3} if name == "ddpm" else {}
    close(sample(name, start=2, x_t=x, **WIDE), walked(rows_of(name, start=2), x, 2, **at))


@pytest.mark.parametrize("start", [0, 2])
def test_ddim_inverse_and_ddim_come_back_to_the_image(start):
    """Exactly where eps_hat does not hang on x: both take each step with the same one. With a start, back from that level."""

    def blind(x, t):
        return torch.sin(t.view(-1, 1, 1, 1) + torch.arange(x[0].numel(), **WIDE).view(x[0].shape)).expand(x.shape)

    options, given = {"clip_denoised": False, "start": start, **WIDE}, "x_t" if start else "x_T"
    image = values(*SHAPE, **WIDE)
    noise = sample("ddim_inverse", blind, **{given: image}, **options)
    assert float((noise - image).abs().max()) > 0.1
    close(sample("ddim", blind, **{given: noise}, **options, eta=0.0), image)


# ---- edits between the steps ----


@pytest.mark.parametrize("how", ["returned", "in place"])
@pytest.mark.parametrize("name", EDITED)
def test_a_callback_may_change_x(name, how):
    def callback(i, t, x, x_0):
        if how == "returned":
            return 0.9 * x
        x.mul_(0.9)

    (x,) = noises("initial", 0, 1)
    close(sample(name, callback=callback, **WIDE), walked(rows_of(name), x, edit=lambda n, x: 0.9 * x))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_callback_sees_each_step_and_may_leave_it(name):
    rows, seen = rows_of(name), []
    path = sample(name, callback=lambda *step: seen.append(step), return_trajectory=True)
    assert same_bits(path[-1], sample(name))
    assert [i for i, *_ in seen] == list(range(len(rows) - 1, -1, -1))
    assert [t for _, t, *_ in seen] == rows.timesteps.flip(0).tolist()
    assert all(same_bits(x, here) for (_, _, x, _), here in zip(seen, path[1:], strict=True))
    k = type(rows.columns)(*(column.float() for column in rows.columns))
    for (i, t, _, x_0), x in zip(seen, path[:-1], strict=True):
        expected = (k.p_x[i] * x + k.p_o[i] * network(x, torch.tensor([t]))).clamp(-k.bound[i], k.bound[i])
        torch.testing.assert_close(x_0, expected, rtol=1e-4, atol=1e-4)


KNOWN = values(*SHAPE, seed=5).clamp(-1, 1)
MASK = torch.tensor([1, 0, 1, 0.0])


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), MASK.expand(SHAPE)], ids=["row", "bool", "whole"])
@pytest.mark.parametrize("name", [name for name in EDITED if name != "ddim_inverse"])
def test_inpainting_puts_what_is_known_at_each_level(name, mask):
    rows, (x,) = rows_of(name), noises("initial", 0, 1)
    ends = torch.cat((rows.alphas_cumprod.flip(0)[1:], torch.ones(1)))
    z = noises("inpainting", 0, len(rows))

    edited = []

    def edit(n, x):
        known = ends[n].sqrt() * KNOWN.double() + (1 - ends[n]).sqrt() * z[n].double()
        edited.append(torch.where(mask.bool(), known, x))
        return edited[-1]

    path = sample(name, inpaint=(KNOWN.double(), mask), return_trajectory=True, **WIDE)
    walked(rows, x, edit=edit)
    for got, expected in zip(path[1:], edited, strict=True):
        close(got, expected)
    assert torch.equal(path[-1][..., ::2], KNOWN[..., ::2].double())


def test_where_a_mask_is_between_it_takes_a_part_of_each():
    at = {i: sample("ddim", inpaint=(KNOWN, torch.tensor(float(i))), steps=1) for i in (0, 1)}
    half = sample("ddim", inpaint=(KNOWN, torch.tensor(0.5)), steps=1)
    torch.testing.assert_close(half, (at[0] + at[1]) / 2)


def test_the_noise_of_what_is_known_does_not_depend_on_the_batch_or_the_start():
    seeds, everywhere = torch.tensor([4, 8]), torch.ones(())
    path = sample("ddim", seed=seeds, inpaint=(KNOWN, everywhere), return_trajectory=True)
    alone = {"shape": (1, *SHAPE[1:]), "seed": seeds[1:], "inpaint": (KNOWN[1:], everywhere), "return_trajectory": True}
    assert same_bits(sample("ddim", **alone), path[:, 1:])
    assert same_bits(sample("ddim", **alone, start=2, x_t=path[2, 1:]), path[2:, 1:])


# ---- what it holds, and keeps ----


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_holds_no_tensor_of_each_step(name):
    """Two samples, and what the sampler reads of earlier steps."""
    rows, given, made, most = rows_of(name), [], [], 0

    def living(refs):
        return sum(ref() is not None for ref in refs)

    def watched(x, t):
        nonlocal most
        given.append(weakref.ref(x))
        out = x / 2
        made.append(weakref.ref(out))
        most = max(most, living(given) + living(made))
        return out

    hats = []

    def callback(i, t, x, x_0):
        nonlocal most
        hats.append(weakref.ref(x_0))
        most = max(most, living(given) + living(made) + living(hats))

    sample(name, watched, callback=callback)
    assert most <= 2 + 2 + rows.history + 1


def test_steps_that_are_a_list_are_kept_like_a_number():
    """By what they are: not once more with each call."""
    diffusion = GaussianDiffusion(SCHEDULE)

    def run(name, steps):
        return diffusion.sample(exact, SHAPE, name, steps=steps, seed=1, progress=False)

    for name in ("ddpm", "ddim"):
        first = run(name, [40, 20, 3])
        kept = len(diffusion._kept)
        assert all(same_bits(run(name, kind([40, 20, 3])), first) for kind in (list, tuple, torch.tensor))
        assert len(diffusion._kept) == kept
    assert same_bits(run("ddim", torch.tensor(5)), run("ddim", 5))


def test_an_offset_of_none_changes_nothing():
    assert same_bits(*(sample("ddpm", steps=4, seed=1, **given) for given in ({}, {"steps_offset": 0})))


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
@pytest.mark.parametrize("wrong", [5.0, True, [40.0, 20.0, 3.0]], ids=str)
def test_steps_of_a_wrong_kind_are_refused_beside_kept_ones_that_they_equal(name, wrong):
    diffusion = GaussianDiffusion(SCHEDULE)
    for steps in (5, 1, [40, 20, 3]):
        diffusion.sample(exact, SHAPE, name, steps=steps, seed=1, progress=False)
    with pytest.raises((TypeError, ValueError), match="steps: expected an int or a list of"):
        diffusion.sample(exact, SHAPE, name, steps=wrong, seed=1, progress=False)


def test_a_schedule_of_ones_own_is_walked_by_its_rows():
    rows = samplers.ddpm(SCHEDULE.respace([1, 5, 20, 30]))
    path = sample(rows, exact, return_trajectory=True)
    assert same_bits(sample(rows, exact, start=2, x_t=path[2]), path[-1])
