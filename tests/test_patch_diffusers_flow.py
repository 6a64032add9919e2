"""diffusers' FlowMatchEulerDiscreteScheduler, patched: every list of sigmas, dtype and odd call against the original."""

import copy

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("scipy")  # for beta sigmas

import diffusers
import numpy as np
from helpers import far
from odd_calls import GENERATORS, ODD_NOISINGS, ODD_STEPS, Reads
from sigma_loops import OUT, X, Z, agree, outcome, output_of

import fastddpm
from fastddpm.integrations import diffusers as ours

FLOW = diffusers.FlowMatchEulerDiscreteScheduler
LARGEST = 1e-6
"""Of what theirs and ours differ by, relative to the largest value."""

RANDOM = {"stochastic_sampling": True}
SIGMAS = np.linspace(1.0, 0.2, 7)
CONFIGS = {
    "as it comes": ({}, {}),
    "shifted": ({"shift": 3.0}, {}),
    "shifted by the resolution": ({"use_dynamic_shifting": True}, {"mu": 0.9}),
    "shifted by the resolution, linearly": ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 2.0}),
    "to a terminal": ({"shift_terminal": 0.1, "shift": 2.0}, {}),
    **{kind: ({f"use_{kind}_sigmas": True, "shift": 3.0}, {}) for kind in ("karras", "exponential", "beta")},
    "inverted": ({"invert_sigmas": True}, {}),
    "given sigmas": ({"shift": 3.0}, {"sigmas": SIGMAS}),
    "given sigmas and mu": ({"use_dynamic_shifting": True}, {"sigmas": SIGMAS, "mu": 0.7}),
    "given timesteps": ({}, {"sigmas": SIGMAS, "timesteps": 1000 * SIGMAS}),
    "stochastic": (RANDOM, {}),
    "stochastic, shifted": (RANDOM | {"shift": 3.0}, {}),
    "a short chain": ({"num_train_timesteps": 40}, {}),
}


def pair(config=(), given=(), steps=7, **options):
    """A scheduler and a patched one of the same configuration."""
    plain, patched = (outcome(FLOW, **dict(config)) for _ in range(2))
    if plain is TypeError:
        pytest.skip("not in this version of diffusers")
    fastddpm.patch(patched, **options)
    for each in (plain, patched) if steps else ():
        if outcome(each.set_timesteps, steps, **dict(given)) is TypeError:
            pytest.skip("not in this version of diffusers")
    return plain, patched


def walked(plain, patched, dtype=torch.float32, **options):
    """Both steps at every timestep, from the same x and the same generator's state."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4).to(dtype)
    for t in plain.timesteps:
        out, state = output_of(x, t), torch.get_rng_state()
        wanted = plain.step(out, t, x, **options)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        came = patched.step(out, t, x, **options)
        assert torch.equal(torch.get_rng_state(), after) and type(wanted) is type(came) and wanted.keys() == came.keys()
        yield (out, t, x, state), wanted.prev_sample, came.prev_sample
        x = wanted.prev_sample


def agree_to_the_end(plain, patched, largest=LARGEST, **options):
    for _, wanted, came in walked(plain, patched, **options):
        agree(wanted, came, largest)
        for name, value in vars(plain).items():
            agree(value, vars(patched)[name], 0)


@pytest.mark.parametrize("case", CONFIGS)
def test_every_list_of_sigmas_is_the_original_s(case):
    plain, patched = pair(*CONFIGS[case])
    agree_to_the_end(plain, patched)
    agree(plain.scale_noise(X, plain.timesteps[1:4], Z), patched.scale_noise(X, plain.timesteps[1:4], Z), LARGEST)
    assert not patched._fastddpm.fell_back


@pytest.mark.parametrize("case", CONFIGS)
def test_images_of_whole_loops_agree(case):
    images = []
    for each in pair(*CONFIGS[case]):
        torch.manual_seed(0)
        x = X
        for t in each.timesteps:
            x = each.step(output_of(x, t), t, x).prev_sample
        images.append(x)
    agree(*images, 2 * LARGEST)


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [{}, RANDOM], ids=["", "stochastic"])
def test_no_farther_from_float64_than_the_original(config, dtype):
    plain, patched = pair(config)
    theirs, own = [], []
    for i, ((out, _, x, state), wanted, came) in enumerate(walked(plain, patched, dtype)):
        sigma, after = plain.sigmas[i : i + 2].double()
        right = x.double() + (after - sigma) * out.double()
        if config:
            torch.set_rng_state(state)
            right = (1 - after) * (x.double() - sigma * out.double()) + after * torch.randn(x.shape).double()
        for error, each in ((theirs, wanted), (own, came)):
            error.append(far(each, right))
    assert max(own) <= max(theirs) + torch.finfo(torch.float32).eps and not patched._fastddpm.fell_back


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_strict_leaves_half_precision_to_the_original(dtype):
    plain, patched = pair(strict=True)
    agree_to_the_end(plain, patched, 0, dtype=dtype)
    given = plain.scale_noise(X.to(dtype), plain.timesteps[:3], Z.to(dtype))
    agree(given, patched.scale_noise(X.to(dtype), plain.timesteps[:3], Z.to(dtype)), 0)
    assert patched._fastddpm.fell_back.total() == 8


# ---- odd calls ----


@pytest.mark.parametrize("config", [{}, RANDOM], ids=["", "stochastic"])
@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("case", ODD_STEPS)
def test_odd_steps_end_as_the_original_s(case, steps, config):
    plain, patched = pair(config, steps=steps)
    for t in plain.timesteps[1:4]:
        ends = []
        for each in (plain, patched):
            torch.manual_seed(0)
            ends.append(outcome(each.step, *ODD_STEPS[case](t), return_dict=False))
        if isinstance(ends[0], type):
            assert ends[0] is ends[1]
            return
        agree(*ends, 2e-2 if "half" in case else LARGEST)  # theirs rounds each product
        assert ends[0][0].requires_grad == ends[1][0].requires_grad
    agree(plain.step_index, patched.step_index)


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("case", ODD_NOISINGS)
def test_an_odd_noising_ends_as_the_original_s(case, steps):
    plain, patched = pair(steps=steps)
    x, z, t = ODD_NOISINGS[case](plain.timesteps)
    wanted, came = (outcome(each.scale_noise, x, t, z) for each in (plain, patched))
    agree(wanted, came, LARGEST)
    assert isinstance(wanted, type) or came.requires_grad == wanted.requires_grad


def test_an_infinity_stays_where_it_is():
    out = OUT.clone()
    out[0, 0, 0, :2] = torch.tensor([torch.inf, -torch.inf])
    agree(*(each.step(out, each.timesteps[0], X, return_dict=False) for each in pair()), LARGEST)


def test_an_integer_timestep_is_refused_as_theirs_refuses_it():
    _, patched = pair()
    for t in (3, torch.tensor(3), torch.tensor(3, dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"Passing integer indices .* is not supported"):
            patched.step(OUT, t, X)


def test_a_time_for_each_token_is_the_original_s():
    x, out = torch.randn(2, 2, 5, 4).unbind()
    t = torch.tensor([[900.0, 700, 500, 300, 100], [800, 600, 400, 200, 0]])
    plain, patched = pair()
    ends = [
        outcome(each.step, out, each.timesteps[0], x, per_token_timesteps=t, return_dict=False) for each in (plain, patched)
    ]
    agree(*ends, 0)
    assert patched._fastddpm.fell_back.total() == 1


def test_return_dict_may_stand_where_it_stood_before_there_were_tokens():
    if "per_token_timesteps" in FLOW.step.__code__.co_varnames:
        pytest.skip("not in this version of diffusers")
    plain, patched = pair()
    agree(*(each.step(OUT, each.timesteps[0], X, 0.0, 0.0, 1.0, 1.0, None, False) for each in (plain, patched)), LARGEST)


def test_churn_changes_nothing_as_there():
    agree_to_the_end(*pair(), s_churn=5.0, s_noise=2.0)


def test_a_step_beyond_the_last_ends_as_the_original_s():
    ends = [[outcome(each.step, OUT, each.timesteps[-1], X, return_dict=False) for _ in range(3)] for each in pair(steps=2)]
    agree(*ends, LARGEST)
    assert ends[0][-1] is IndexError


def test_a_step_between_sigmas_that_are_no_numbers_is_the_original_s():
    plain, patched = pair()
    for each in (plain, patched):
        each.sigmas = each.sigmas.clone()
        each.sigmas[3] = torch.nan
    agree_to_the_end(plain, patched)
    assert patched._fastddpm.fell_back.total() == 2


def test_of_equal_timesteps_the_second_is_found():
    plain, patched = pair()
    for each in (plain, patched):
        each.timesteps = each.timesteps.clone()
        each.timesteps[2:4] = each.timesteps[1]
    agree(*(each.scale_noise(X, plain.timesteps[:3], Z) for each in (plain, patched)), LARGEST)
    agree(*(each.step(OUT, plain.timesteps[1], X, return_dict=False) for each in (plain, patched)), LARGEST)
    assert plain.step_index == patched.step_index == 3


def test_it_begins_where_a_pipeline_says():
    plain, patched = pair({"shift": 3.0})
    for each in (plain, patched):
        each.set_begin_index(2)
    for t in plain.timesteps[2:]:
        agree(*(each.scale_noise(X, t.expand(3), Z) for each in (plain, patched)), LARGEST)
        agree(*(each.step(OUT, t, X, return_dict=False) for each in (plain, patched)), LARGEST)
    assert not patched._fastddpm.fell_back


@pytest.mark.parametrize("dtype", DTYPES)
def test_noised_as_the_original_does_or_nearer(dtype):
    """Of a script's thousand timesteps, before any set_timesteps."""
    plain, patched = pair({"shift": 3.0}, steps=None)
    at = torch.tensor([0, 999, 500])
    sigma, x, z = plain.sigmas[at].double().view(3, 1, 1, 1), X.to(dtype), Z.to(dtype)
    right = (1 - sigma) * x.double() + sigma * z.double()
    wanted, came = (each.scale_noise(x, plain.timesteps[at], z) for each in (plain, patched))
    assert came.dtype is wanted.dtype and far(came, right) <= far(wanted, right) + torch.finfo(torch.float32).eps
    assert not patched._fastddpm.fell_back


# ---- draws ----


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("config", [{}, RANDOM], ids=["", "stochastic"])
def test_a_generator_is_drawn_from_as_by_the_original(config, kind):
    states = []
    for each in pair(config):
        torch.manual_seed(0)
        generator, x = GENERATORS[kind](), X[:2].to(memory_format=torch.channels_last)
        for t in each.timesteps:
            x = each.step(output_of(x, t), t, x, generator=generator).prev_sample
        some = generator if isinstance(generator, list) else [generator] if generator is not None else []
        states.append((x, torch.get_rng_state(), *(one.get_state() for one in some)))
    agree(states[0][0], states[1][0], 2 * LARGEST)
    agree(states[0][1:], states[1][1:], 0)


def test_philox_makes_normals_of_the_generator_s_seed():
    plain, patched = pair(RANDOM, noise="philox")
    x = torch.zeros(2, 64, 32, 32)
    one, other = (
        each.step(x, plain.timesteps[1], x, generator=torch.Generator().manual_seed(0)).prev_sample for each in (plain, patched)
    )
    assert abs(one.std() / other.std() - 1) < 1e-2 and not torch.equal(other[0], other[1])
    patched.set_timesteps(7)
    assert torch.equal(patched.step(x, plain.timesteps[1], x, generator=torch.Generator().manual_seed(0)).prev_sample, other)


# ---- what changes meanwhile ----


def shorter(each):
    each.set_timesteps(3)


def shifted(each):
    each.set_timesteps(7, sigmas=SIGMAS**2)


def assigned(each):
    each.set_timesteps(7)
    each.sigmas = each.sigmas * 0.9


def stochastic(each):
    each.set_timesteps(7)
    each.register_to_config(stochastic_sampling=True)


@pytest.mark.parametrize("change", [shorter, shifted, assigned, stochastic])
def test_a_change_is_noticed(change):
    plain, patched = pair()
    agree_to_the_end(plain, patched)
    for each in (plain, patched):
        change(each)
    agree_to_the_end(plain, patched)
    agree(*(each.scale_noise(X, plain.timesteps[:3], Z) for each in (plain, patched)), LARGEST)
    assert not patched._fastddpm.fell_back


def test_an_original_step_in_the_middle_goes_on_from_ours_and_a_copy_by_itself():
    plain, patched = pair()
    own = patched.step
    for n, (_, wanted, came) in enumerate(walked(plain, patched)):
        agree(wanted, came, LARGEST)
        patched.step = FLOW.step.__get__(patched) if n % 2 else own
        copied = copy.deepcopy(patched)
        assert copied.step_index == patched.step_index and copied.step.__self__ is copied
        if n < 6:
            copied.step(OUT, plain.timesteps[n], X)
            assert copied.step_index == patched.step_index + 1 == plain.step_index + 1


def test_a_gradient_flows_through_a_loop():
    grads = []
    for each in pair():
        x = first = X.clone().requires_grad_()
        for t in each.timesteps:
            x = each.step(output_of(x, t), t, x).prev_sample
        x.square().sum().backward()
        grads.append(first.grad)
    agree(*grads, 5 * LARGEST)


def test_nothing_is_read_but_the_first_timestep():
    counts = []
    for each in pair():
        each.scale_noise(X, each.timesteps[1:4], Z)
        each.step(OUT, each.timesteps[0], X)
        with Reads() as reads:
            each.scale_noise(X, each.timesteps[1:4], Z)
            for t in each.timesteps[1:4]:
                each.step(OUT, t, X)
        counts.append(len(reads.ops))
    assert counts[0] >= 6 and counts[1] == 0


# ---- what holds one ----


class Pipeline(diffusers.DiffusionPipeline):
    """As Stable Diffusion 3's, but for its network."""

    def __init__(self, scheduler):
        super().__init__()
        self.register_modules(scheduler=scheduler)

    def __call__(self):
        x = torch.randn(X.shape, generator=torch.Generator().manual_seed(0))
        self.scheduler.set_timesteps(5)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(output_of(x, t), t, x, return_dict=False)[0]
        return x


def test_a_pipeline_draws_the_same_images_and_is_undone():
    pipeline = Pipeline(FLOW(shift=3.0))
    wanted, before = pipeline(), dict(vars(pipeline.scheduler))
    with fastddpm.patch(pipeline) as handle:
        agree(wanted, pipeline(), LARGEST)
        assert not handle.parts[0].fell_back and "FlowMatchEuler" in handle.summary()
    assert list(vars(pipeline.scheduler)) == list(before) and torch.equal(pipeline(), wanted)


def test_the_subclass_is_the_original():
    plain, own = FLOW(shift=3.0), ours.FlowMatchEulerDiscreteScheduler(shift=3.0)
    for each in (plain, own):
        each.set_timesteps(7)
    agree_to_the_end(plain, own)
