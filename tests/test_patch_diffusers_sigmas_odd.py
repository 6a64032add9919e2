"""diffusers' schedulers that walk a list of sigmas, patched: every odd call, what is drawn, and what is noised."""

import itertools

import pytest
import torch
from helpers import far
from odd_calls import GENERATORS, ODD_NOISINGS, ODD_STEPS, Reads
from sampling_loops import every

pytest.importorskip("diffusers")
pytest.importorskip("scipy")  # for beta sigmas

import diffusers
from sigma_loops import (
    ANCESTRAL,
    EULER,
    HEUN,
    LARGEST,
    NAMES,
    OUT,
    PREDICTIONS,
    SDE,
    SOLVER,
    UNIPC,
    X,
    Z,
    agree,
    agree_in_all,
    outcome,
    output_of,
    pair,
    scaled,
    walked,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # theirs


@pytest.mark.parametrize(("steps", "prediction"), [(None, "epsilon"), *((4, prediction) for prediction in PREDICTIONS)])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ODD_STEPS)
def test_odd_steps_end_as_the_original_s(case, name, steps, prediction):
    plain, patched = scaled(*pair(name, steps, prediction_type=prediction))
    for t in plain.timesteps[1:4]:
        torch.manual_seed(0)
        wanted = outcome(plain.step, *ODD_STEPS[case](t))
        torch.manual_seed(0)
        came = outcome(patched.step, *ODD_STEPS[case](t))
        if isinstance(wanted, type):
            assert came is wanted
            return
        agree(wanted.to_tuple(), came.to_tuple(), 2e-2 if "half" in case else LARGEST)  # theirs rounds each product
        for one, other in zip(wanted.to_tuple(), came.to_tuple(), strict=True):
            assert getattr(one, "requires_grad", False) == getattr(other, "requires_grad", False)
    agree(plain.step_index, patched.step_index)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_flows_through_a_loop(name):
    grads = []
    for each in scaled(*pair(name, prediction_type="v_prediction")):  # of epsilon such a loop is chaotic
        torch.manual_seed(0)
        x = first = X.clone().requires_grad_()
        for t in each.timesteps:
            x = each.step(output_of(x, t), t, x).prev_sample
        x.square().sum().backward()
        grads.append(first.grad)
    agree(grads[0], grads[1])


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_with_a_negative_bit_is_read_as_what_it_is(name, prediction):
    """Also where it is kept for later steps."""
    if (name, prediction) == (ANCESTRAL, "sample"):
        pytest.skip("not implemented there")
    negative = X.to(torch.complex64).mul(1j).conj().imag
    ends = []
    for each in scaled(*pair(name, prediction_type=prediction)):
        torch.manual_seed(0)
        x = negative
        for t in each.timesteps[:4]:
            x = each.step(OUT, t, x).prev_sample
        ends.append(x)
    assert negative.is_neg()
    agree(*ends)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_wanted_at_one_step_is_wanted_where_theirs_is(name):
    """A later step reads what was kept, and yet its x_0_hat is of none but its own."""
    wanted = []
    for each in scaled(*pair(name, 8, prediction_type="epsilon")):
        torch.manual_seed(0)
        x, seen = X, []
        for i, t in enumerate(each.timesteps):
            came = each.step(OUT, t, x.requires_grad_() if i == 3 else x).prev_sample
            seen.append(came.requires_grad)
            x = came.detach()
        wanted.append(seen)
    assert wanted[0] == wanted[1] and any(wanted[0]) and not all(wanted[0])


@pytest.mark.parametrize("steps", [2, 3, 5, 8])
def test_heun_of_a_predicted_x_0_is_as_near_to_float64_as_theirs(steps):
    """Its sigmas fall so far that x and x_0 must be subtracted before they are weighted."""
    config = {"prediction_type": "sample", "use_beta_sigmas": True, "beta_start": 1e-4, "beta_end": 0.02}
    errors = []
    for each in pair(HEUN, steps, **config):
        x, worst = 10 * X, 0.0
        sigmas = each.sigmas.double()
        for t in each.timesteps:
            out, i = 0.99 * each.scale_model_input(x, t), each.step_index
            slope = (x.double() - out.double()) / sigmas[i]
            if each.dt is None:
                exact = x.double() + slope * (sigmas[i + 1] - sigmas[i])
            else:
                exact = each.sample.double() + (each.prev_derivative.double() + slope) / 2 * (sigmas[i] - sigmas[i - 1])
            x = each.step(out, t, x).prev_sample
            worst = max(worst, float((x - exact).abs().max() / exact.abs().max()))
        errors.append(worst)
    assert errors[1] <= 2 * errors[0] + 2e-7, errors


@pytest.mark.parametrize("name", NAMES)
def test_a_step_beyond_the_last_ends_as_the_original_s(name):
    plain, patched = scaled(*pair(name, 2))
    ends = [[outcome(each.step, OUT, plain.timesteps[-1], X) for _ in range(5)] for each in (plain, patched)]
    assert [isinstance(end, type) for end in ends[0]] == [isinstance(end, type) for end in ends[1]]
    assert ends[0][-1] is ends[1][-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_may_return_a_tuple_and_begin_later(name):
    plain, patched = pair(name)
    for each in (plain, patched):
        each.set_begin_index(2)
        each.scale_model_input(X, each.timesteps[2])
        torch.manual_seed(0)
        each.results = [each.step(OUT, t, X, return_dict=False) for t in each.timesteps[2:5]]
    agree(plain.results, patched.results)
    assert not patched._fastddpm.fell_back


@pytest.mark.parametrize("name", [EULER, ANCESTRAL])
def test_a_step_without_scale_model_input_warns(name, caplog):
    _, patched = pair(name)
    logger = diffusers.utils.logging.get_logger("diffusers")
    logger.addHandler(caplog.handler)
    patched.step(OUT, patched.timesteps[0], X)
    logger.removeHandler(caplog.handler)
    assert "scale_model_input" in caplog.text


def test_given_noise_is_taken():
    plain, patched = pair(SOLVER, **SDE)
    for noise in (Z[:2, :1].expand(2, 3, 4, 4), Z[:1, :1, :1], Z[:2, :1].expand(2, 3, 4, 4).double()):
        for _, wanted, came in itertools.islice(walked(plain, patched, variance_noise=noise), 2):
            agree_in_all(plain, patched, wanted, came)
        for each in (plain, patched):
            each.set_timesteps(6)


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize(("name", "config"), [(ANCESTRAL, {}), (SOLVER, SDE), (EULER, {})], ids=["ancestral", "sde", "euler"])
def test_a_generator_is_drawn_from_as_by_the_original(name, config, kind):
    states = []
    for each in scaled(*pair(name, **config)):
        torch.manual_seed(0)
        generator, x = GENERATORS[kind](), X[:2]
        for t in each.timesteps:
            x = each.step(output_of(x, t), t, x, generator=generator).prev_sample
        some = generator if isinstance(generator, list) else [generator] if generator is not None else []
        states.append((x, torch.get_rng_state(), *(one.get_state() for one in some)))
    agree(states[0][0], states[1][0])
    assert all(torch.equal(one, other) for one, other in zip(states[0][1:], states[1][1:], strict=True))


@pytest.mark.parametrize(("name", "config"), [(ANCESTRAL, {}), (SOLVER, SDE)], ids=["ancestral", "sde"])
def test_philox_makes_normals_of_the_generator_s_seed(name, config):
    x, deviations = torch.zeros(2, 64, 32, 32), []
    for each in scaled(pair(name, **config)[0], pair(name, noise="philox", **config)[1]):
        first = [each.step(x, each.timesteps[0], x, generator=torch.Generator().manual_seed(0)).prev_sample]
        each.set_timesteps(6)
        scaled(each, each)
        first += [
            each.step(x, each.timesteps[0], x, generator=torch.Generator().manual_seed(seed)).prev_sample for seed in (0,)
        ]
        assert torch.equal(*first) and not torch.equal(first[0][0], first[0][1])
        deviations.append(float(first[0].std()))
    assert abs(deviations[0] / deviations[1] - 1) < 1e-2


# ---- add_noise, get_velocity ----


def noisings(name):
    return ("add_noise", "get_velocity") if name == EULER else ("add_noise",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_noised_as_the_original_does_or_nearer(name, dtype):
    for steps in (None, 6):
        plain, patched = pair(name, steps)
        at = torch.tensor([0, 3, 3, len(plain.timesteps) - 1, 1, 2])
        x, z, t = torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4), plain.timesteps[at]
        for method in noisings(name):
            right = getattr(plain, method)(x.to(dtype).double(), z.to(dtype).double(), t)
            wanted, came = (getattr(each, method)(x.to(dtype), z.to(dtype), t) for each in (plain, patched))
            assert came.dtype is wanted.dtype and far(came, right) <= far(wanted, right) + torch.finfo(torch.float32).eps + (
                torch.finfo(dtype).eps if dtype is not torch.float64 else 0
            )
        assert not patched._fastddpm.fell_back


@pytest.mark.parametrize("name", NAMES)
def test_noised_for_the_step_that_comes(name):
    """As pipelines do: before the first step, and for inpainting after each."""
    plain, patched = pair(name)
    for each in (plain, patched):
        each.set_begin_index(1)
    for t in plain.timesteps[1:]:
        for given in (t.expand(3), t.reshape(1)):
            agree(plain.add_noise(X, Z, given), patched.add_noise(X, Z, given))
        for each in (plain, patched):
            each.scale_model_input(X, t)
            torch.manual_seed(0)
            each.step(OUT, t, X)
    assert not patched._fastddpm.fell_back


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ODD_NOISINGS)
def test_an_odd_noising_ends_as_the_original_s(case, name):
    for steps, method in every((None, 5), noisings(name)):
        plain, patched = pair(name, steps)
        wanted, came = (outcome(getattr(each, method), *ODD_NOISINGS[case](plain.timesteps)) for each in (plain, patched))
        if isinstance(wanted, torch.Tensor):
            agree(wanted, came, 1e-6)
            assert came.requires_grad == wanted.requires_grad
        else:
            assert came is wanted


@pytest.mark.parametrize("name", NAMES)
def test_of_equal_timesteps_the_second_is_noised_for_and_unknown_ones_as_there(name):
    plain, patched = pair(name)
    for each in (plain, patched):
        each.timesteps = each.timesteps.clone()
        each.timesteps[2:4] = each.timesteps[1]
    agree(plain.add_noise(X, Z, plain.timesteps[:3]), patched.add_noise(X, Z, plain.timesteps[:3]), 1e-6)
    if name in (SOLVER, UNIPC):  # they take the last step for it
        unknown = torch.tensor([3, 5, 7])
        agree(plain.add_noise(X, Z, unknown), patched.add_noise(X, Z, unknown), 1e-6)
    assert not patched._fastddpm.fell_back
    made = patched._fastddpm.tables["add_noise"][-1]
    given = torch.cat((plain.timesteps, plain.timesteps[:1] + 0.5, torch.tensor([-7.0, 5000.0]))).to(made.values.dtype)
    assert torch.equal(made.looked_up(given), made.index(given, given.device))  # as on a device


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_but_the_first_timestep(name):
    plain, patched = pair(name)
    counts = []
    for each in (plain, patched):
        each.add_noise(X, Z, each.timesteps[1:4])
        each.scale_model_input(X, each.timesteps[0])
        each.step(OUT, each.timesteps[0], X)
        with Reads() as reads:
            each.add_noise(X, Z, each.timesteps[1:4])
            for t in each.timesteps[1:4]:
                each.scale_model_input(X, t)
                each.step(OUT, t, X)
        counts.append(len(reads.ops))
    assert counts[0] >= 6 and counts[1] == 0
