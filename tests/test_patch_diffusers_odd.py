"""Odd calls of diffusers' patched schedulers, and what changes between calls: each ends as the original's."""

import inspect

import numpy as np
import pytest
import torch
from diffusers_pairs import agree, noised, outcome, output_of, pair, walked

pytest.importorskip("diffusers")

import diffusers

from fastddpm.integrations import diffusers as ours
from fastddpm.integrations.tables import KEPT

DDPM, DDIM = diffusers.DDPMScheduler, diffusers.DDIMScheduler
PREDICTIONS = ("epsilon", "sample", "v_prediction")


# ---- add_noise, get_velocity ----


X, Z, OUT = torch.randn(3, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
ODD_NOISINGS = {
    "a timestep of -1": (X, Z, torch.tensor([-1, 0, 1])),
    "past the end": (X, Z, torch.tensor([1000, 0, 1])),
    "one for all": (X, Z, torch.tensor([7])),
    "without dimensions": (X, Z, torch.tensor(7)),
    "of two dimensions": (X, Z, torch.tensor([[1], [2], [3]])),
    "int32": (X, Z, torch.tensor([1, 2, 3], dtype=torch.int32)),
    "floating": (X, Z, torch.tensor([1.0, 2.0, 3.0])),
    "no tensor": (X, Z, 7),
    "of another number": (X, Z, torch.tensor([1, 2])),
    "noise of one sample": (X, Z[:1], torch.tensor([1, 2, 3])),
    "noise in double": (X, Z.double(), torch.tensor([1, 2, 3])),
    "noise that looks like a key": (X[:, :, 0, 0].long(), torch.ones(3, 2, dtype=torch.int64), torch.tensor([1, 2, 3])),
    "an integer image": (torch.ones(3, 2, 4, 4, dtype=torch.uint8), Z, torch.tensor([1, 2, 3])),
    "no samples": (X[:0], Z[:0], torch.tensor([], dtype=torch.int64)),
    "transposed": (X.transpose(1, 3), Z.transpose(1, 3), torch.tensor([1, 2, 3])),
    "without data": (X.to("meta"), Z.to("meta"), torch.tensor([1, 2, 3])),
    "noise that wants a gradient": (X, Z.clone().requires_grad_(), torch.tensor([1, 2, 3])),
}


@pytest.mark.parametrize("name", ["add_noise", "get_velocity"])
@pytest.mark.parametrize("case", ODD_NOISINGS)
def test_an_odd_noising_ends_as_the_original_does(case, name):
    plain, patched = pair(DDPM, steps=None)
    wanted, came = (outcome(getattr(each, name), *ODD_NOISINGS[case]) for each in (plain, patched))
    if isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(came, wanted, rtol=1e-6, atol=1e-6)
        assert came.requires_grad == wanted.requires_grad
    else:
        assert came is wanted


def test_a_gradient_flows_through_x_0():
    plain, patched = pair(DDPM, steps=None)
    grads = []
    for each in (plain, patched):
        x = X.clone().requires_grad_()
        each.add_noise(x, Z, torch.tensor([1, 500, 999])).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


# ---- step ----


ODD_STEPS = {
    "an int": (OUT, 500, X),
    "a numpy int": (OUT, torch.tensor([500]).numpy()[0], X),
    "of one dimension": (OUT, torch.tensor([500]), X),
    "not one of the timesteps": (OUT, 501, X),
    "-1": (OUT, -1, X),
    "a float": (OUT, 500.0, X),
    "one a sample": (OUT, torch.tensor([500, 500, 500]), X),
    "output of one channel": (OUT[:, :1], 500, X),
    "output of twice the channels": (torch.cat((OUT, OUT), 1), 500, X),
    "output in half": (OUT.bfloat16(), 500, X),
    "sample in half": (OUT, 500, X.half()),
    "output in double": (OUT.double(), 500, X),
    "of vectors": (OUT[:, 0, 0], 500, X[:, 0, 0]),
    "of numbers": (OUT[0, 0, 0, 0], 500, X[0, 0, 0, 0]),
    "integers": (OUT.long(), 500, X.long()),
    "both in half, of one dimension": (OUT.half(), torch.tensor([500]), X.half()),
    "an array": (OUT.numpy(), 500, X),
    "a number": (0.5, 500, X),
    "channels_last": (OUT.to(memory_format=torch.channels_last), 500, X.to(memory_format=torch.channels_last)),
    "with a gradient": (OUT.clone().requires_grad_(), 500, X.clone().requires_grad_()),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("cls", [DDPM, DDIM])
@pytest.mark.parametrize("case", ODD_STEPS)
def test_an_odd_step_ends_as_the_original_does(case, cls, steps, prediction):
    plain, patched = pair(cls, steps, prediction_type=prediction)
    wanted, came = (
        outcome(lambda each=each: each.step(*ODD_STEPS[case], generator=torch.Generator().manual_seed(0)))
        for each in (plain, patched)
    )
    if isinstance(wanted, type):
        assert came is wanted
        return
    for one, other in zip(wanted.to_tuple(), came.to_tuple(), strict=True):
        error = 1e-2 if "half" in case else 1e-5  # theirs: it rounds each product
        torch.testing.assert_close(other, one, rtol=error, atol=error)
        assert other.requires_grad == one.requires_grad
    if wanted.prev_sample.requires_grad:
        for each in (wanted, came):
            each.prev_sample.square().sum().backward()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("cls", [DDPM, DDIM])
def test_an_infinity_that_the_original_clips_is_clipped(cls, prediction):
    plain, patched = pair(cls, prediction_type=prediction)
    out = OUT.clone()
    out.view(-1)[:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    for t in plain.timesteps:
        wanted, came = (each.step(out, t, X, generator=torch.manual_seed(0)) for each in (plain, patched))
        for one, other in zip(wanted.to_tuple(), came.to_tuple(), strict=True):
            torch.testing.assert_close(other[one.isfinite()], one[one.isfinite()], rtol=1e-5, atol=1e-5)
            assert other.view(-1)[2].isnan()
        finite = wanted.prev_sample.isfinite().view(-1)
        assert finite[3:].all() and (cls is DDIM or finite[:2].all())


def test_a_step_may_return_a_tuple():
    plain, patched = pair(DDPM)
    t = plain.timesteps[-1]
    for one, other in zip(plain.step(OUT, t, X, return_dict=False), patched.step(OUT, t, X, return_dict=False), strict=True):
        torch.testing.assert_close(other, one)


GENERATORS = {
    "one": lambda: torch.Generator().manual_seed(3),
    "a list": lambda: [torch.Generator().manual_seed(i) for i in range(2)],
    "a list of one": lambda: [torch.Generator().manual_seed(3)],
    "torch's own": lambda: None,
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("cls", [DDPM, DDIM])
def test_a_generator_is_drawn_from_as_by_the_original(cls, name):
    options, states = ({"eta": 1.0} if cls is DDIM else {}), []
    for each in pair(cls):
        torch.manual_seed(0)
        generator, x = GENERATORS[name](), X[:2]
        for t in each.timesteps:
            x = each.step(output_of(x, t, False), t, x, generator=generator, **options).prev_sample
        some = generator if isinstance(generator, list) else [generator] if generator is not None else []
        states.append((x, torch.get_rng_state(), *(one.get_state() for one in some)))
    torch.testing.assert_close(states[1][0], states[0][0])
    assert all(torch.equal(one, other) for one, other in zip(states[0][1:], states[1][1:], strict=True))


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("cls", [DDPM, DDIM])
def test_philox_makes_normals_of_the_generator_s_seed(cls, name):
    _, patched = pair(cls, noise="philox")
    x, t = torch.zeros(2, 64, 32, 32), patched.timesteps[0]
    options = {"eta": 1.0} if cls is DDIM else {}

    def steps():
        torch.manual_seed(0)
        generator = GENERATORS[name]()
        return [patched.step(x, t, x, generator=generator, **options).prev_sample for _ in range(2)]

    first, second = steps()
    assert all(torch.equal(one, other) for one, other in zip((first, second), steps(), strict=True))
    sigma = float(first.std())
    assert sigma > 0 and not torch.equal(first, second) and not torch.equal(first[0], first[1])
    assert abs(float(first.mean())) < 4 * sigma / first.numel() ** 0.5
    if name == "a list":  # an image depends on its own generator alone
        alone = patched.step(x[1:], t, x[1:], generator=torch.Generator().manual_seed(1), **options).prev_sample
        assert torch.equal(alone[0], first[1])


def test_variance_noise_may_be_a_number():
    plain, patched = pair(DDIM)
    steps = [each.step(OUT, each.timesteps[1], X, eta=1.0, variance_noise=0.0) for each in (plain, patched)]
    agree(*steps)


def test_given_variance_noise_is_taken():
    plain, patched = pair(DDIM)
    t = plain.timesteps[0]
    wanted, came = (each.step(OUT, t, X, eta=0.5, variance_noise=Z) for each in (plain, patched))
    agree(wanted, came)
    for each in (plain, patched):
        with pytest.raises(ValueError, match="Cannot pass both generator and variance_noise"):
            each.step(OUT, t, X, eta=0.5, variance_noise=Z, generator=torch.Generator())


# ---- what changes meanwhile ----


def shorter(each):
    each.set_timesteps(3)


def assigned(each):
    each.alphas_cumprod = each.alphas_cumprod.flip(0).cumprod(0).flip(0).clamp(min=1e-3)


def written(each):
    each.alphas_cumprod.mul_(0.9)


def registered(each):
    each.register_to_config(prediction_type="v_prediction")


def custom(each):
    each.set_timesteps(timesteps=[900, 500, 20]) if type(each) is DDPM else each.set_timesteps(11)


@pytest.mark.parametrize("change", [shorter, assigned, written, registered, custom])
@pytest.mark.parametrize("cls", [DDPM, DDIM])
def test_a_change_is_noticed(cls, change):
    plain, patched = pair(cls)
    t = torch.tensor([1, 500, 999])
    for _ in walked(plain, patched):
        pass
    patched.add_noise(X, Z, t)
    for each in (plain, patched):
        change(each)
    for _, wanted, came in walked(plain, patched):
        agree(wanted, came)
    torch.testing.assert_close(patched.add_noise(X, Z, t), plain.add_noise(X, Z, t))


TIMESTEPS = {
    "a list": [900, 500, 20],
    "int32": torch.tensor([900, 500, 20], dtype=torch.int32),
    "an array": np.array([900, 500, 20]),
    "twice": torch.tensor([900, 900, 500, 500, 20]),
    "past the end": torch.tensor([1000, 500, 20]),
    "past the end in the middle": torch.tensor([900, 1500, 500, 20]),
    "below 0": torch.tensor([900, 500, 20, -2]),
    "below 0 in the middle": torch.tensor([900, -5, 500, 20]),
    "none": torch.tensor([], dtype=torch.int64),
}


@pytest.mark.parametrize("case", TIMESTEPS)
@pytest.mark.parametrize("cls", [DDPM, DDIM])
def test_assigned_timesteps_end_as_the_original_s(cls, case):
    plain, patched = pair(cls)
    plain.timesteps = patched.timesteps = TIMESTEPS[case]
    for t in (500, torch.tensor(20), *TIMESTEPS[case]):
        wanted, came = (
            outcome(lambda each=each, t=t: each.step(OUT, t, X, generator=torch.manual_seed(0))) for each in (plain, patched)
        )
        assert came is wanted if isinstance(wanted, type) else not isinstance(came, type)
        if not isinstance(wanted, type):
            agree(wanted, came)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_same_timesteps_set_again_make_no_table(mode):
    _, patched = pair(DDPM)
    with mode():
        for _ in range(2):
            patched.set_timesteps(6)
            patched.step(OUT, patched.timesteps[0], X)
            first = patched._fastddpm.tables["step"][-1]
        patched.set_timesteps(6)
        patched.step(OUT, patched.timesteps[0], X)
        assert patched._fastddpm.tables["step"][-1] is first
        patched.timesteps[0] += 1
        patched.step(OUT, patched.timesteps[0], X)
    if mode is torch.no_grad:  # nobody counts what is written in inference mode
        assert patched._fastddpm.tables["step"][-1] is not first


def test_loops_that_take_turns_find_their_tables_again():
    _, patched = pair(DDPM)

    def table(steps):
        patched.set_timesteps(steps)
        patched.step(OUT, patched.timesteps[0], X)
        return patched._fastddpm.tables["step"][-1]

    few, more = table(4), table(6)
    assert table(4) is few is not more and table(6) is more
    others = [table(steps) for steps in range(7, 7 + KEPT)]
    assert table(7) is others[0] and table(4) is not few


def test_a_gradient_flows_to_given_variance_noise():
    plain, patched = pair(DDIM)
    noise = Z.clone().requires_grad_()
    wanted, came = (each.step(OUT, plain.timesteps[0], X, eta=0.5, variance_noise=noise) for each in (plain, patched))
    assert came.prev_sample.requires_grad
    agree(wanted, came)


@pytest.mark.parametrize("name", ours.__all__)
def test_under_a_transform_the_original_is_called(name):
    plain, patched = pair(getattr(diffusers, name))
    t = plain.timesteps[:3]
    grads = [torch.func.grad(lambda x, each=each: noised(each, x, Z, t).square().sum())(X) for each in (plain, patched)]
    assert torch.equal(*grads)
    noised(patched, X, Z, t)
    assert not patched._fastddpm.fell_back


def draws(each):
    return "generator" in inspect.signature(each.step).parameters


@pytest.mark.parametrize("name", ours.__all__)
def test_another_default_device_changes_nothing(name):
    plain, patched = pair(getattr(diffusers, name))
    t, came = plain.timesteps[:3], []
    for each, device in ((plain, "cpu"), (patched, "meta")):
        generator = {"generator": torch.Generator("cpu").manual_seed(0)} if draws(each) else {}
        with torch.device(device):
            if hasattr(each, "scale_model_input"):
                each.scale_model_input(X, t[0])
            came.append((each.step(OUT, t[0], X, **generator).prev_sample, noised(each, X, Z, t)))
    torch.testing.assert_close(*came, rtol=1e-4, atol=1e-5)
    assert not patched._fastddpm.fell_back
