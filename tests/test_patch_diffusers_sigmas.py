"""diffusers' schedulers that walk a list of sigmas, patched: every configuration against the original, and every odd call."""

import copy
import itertools

import pytest
import torch
from sampling_loops import every, scheduler
from torch.utils._python_dispatch import TorchDispatchMode

import fastddpm

pytest.importorskip("diffusers")
pytest.importorskip("scipy")  # for beta sigmas

import diffusers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # theirs

EULER, ANCESTRAL, HEUN = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"
SOLVER, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
NAMES = (EULER, ANCESTRAL, HEUN, SOLVER, UNIPC)
SDE, LEAST = {"algorithm_type": "sde-dpmsolver++"}, {"final_sigmas_type": "sigma_min"}
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = (
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
)
GRIDS = tuple({f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta"))
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
ORDERS = tuple({"solver_order": order} for order in (1, 2, 3))
CONFIGS = {
    EULER: (*SPACINGS, *GRIDS, LEAST, ZERO_SNR, {"interpolation_type": "log_linear"}),
    ANCESTRAL: (*SPACINGS, ZERO_SNR),
    HEUN: (*SPACINGS, *GRIDS, {"clip_sample": True, "clip_sample_range": 0.7}, {"beta_schedule": "exp"}),
    SOLVER: (
        *SPACINGS,
        *GRIDS,
        LEAST,
        ZERO_SNR,
        {"use_lu_lambdas": True},
        *({**one, **two, **three} for one, two, three in every(ORDERS, ({}, {"solver_type": "heun"}), ({}, SDE))),
        *({**one, "lower_order_final": False, "euler_at_final": at_final, **LEAST} for one, at_final in every(ORDERS, (0, 1))),
    ),
    UNIPC: (
        *SPACINGS,
        *GRIDS,
        LEAST,
        ZERO_SNR,
        *({**one, "solver_type": kind, **end} for one, kind, end in every(ORDERS, ("bh1", "bh2"), ({}, LEAST))),
        *({**one, "lower_order_final": False, **LEAST} for one in ORDERS),
        {"disable_corrector": [0, 2]},
    ),
}
LARGEST = 2e-5
"""Of what theirs and ours differ by, relative to the largest value; theirs alone is that far from float64."""


def pair(name, steps=6, noise="torch", **config):
    """A scheduler and a patched one of the same configuration."""
    plain, patched = (getattr(diffusers, name)(**config) for _ in range(2))
    fastddpm.patch(patched, noise=noise)
    for each in (plain, patched) if steps else ():
        each.set_timesteps(steps)
    return plain, patched


def output_of(x, t):
    """A network of no meaning."""
    return torch.tanh(1.3 * x + float(t) / 1000).to(x.dtype)


def first_sample(plain, dtype=torch.float32):
    torch.manual_seed(0)
    return (torch.randn(2, 3, 4, 4) * plain.init_noise_sigma).to(dtype)


def walked(plain, patched, dtype=torch.float32, **options):
    """Both steps at every timestep, from the same x and the same generator's state."""
    x = first_sample(plain, dtype)
    for t in plain.timesteps:
        given, other = plain.scale_model_input(x, t), patched.scale_model_input(x, t)
        agree(given, other, 0)
        out, state = output_of(given, t), torch.get_rng_state()
        wanted = plain.step(out, t, x, **options)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        came = patched.step(out, t, x, **options)
        assert torch.equal(torch.get_rng_state(), after) and type(wanted) is type(came) and wanted.keys() == came.keys()
        yield (out, t, x, state), wanted, came
        x = wanted.prev_sample


def agree(one, other, largest=LARGEST):
    """Both the same: numbers and texts exactly, tensors nearly, in lists and outputs too."""
    if isinstance(one, torch.Tensor):
        assert one.dtype is other.dtype and one.shape == other.shape
        scale = max(1.0, float(one.detach().double().abs().nan_to_num(0, 0, 0).max())) if one.numel() else 1.0
        assert torch.allclose(other, one, 0, largest * scale, equal_nan=True), (other - one).abs().max()
    elif isinstance(one, (list, tuple)):
        for each, its in zip(one, other, strict=True):
            agree(each, its, largest)
    else:
        assert one == other


def agree_in_all(plain, patched, wanted, came, largest=LARGEST):
    agree(wanted.to_tuple(), came.to_tuple(), largest)
    for name, value in vars(plain).items():
        slope = name == "prev_derivative" and value is not None  # (x - x_0_hat) / sigma has x's rounding over sigma
        by = float(plain.sample.abs().max() / plain.sigmas[plain.step_index - 1]) if slope else 1
        agree(value, vars(patched)[name], largest * max(1, by))


def is_left(name, config, prediction):
    """What falls back at some step: order 3 of the SDE; the last step of bh1 (infinity times 0) and what has no length."""
    third = name == SOLVER and config.get("solver_order") == 3 and "algorithm_type" in config
    return third or (name == UNIPC and config.get("solver_type") == "bh1") or (name, prediction) == (ANCESTRAL, "sample")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_is_the_original(name, prediction):
    if (name, prediction) == (ANCESTRAL, "sample"):
        pytest.skip("not implemented there")
    old = diffusers.__version__.startswith("0.31")
    for config, steps in every(CONFIGS[name], (6, 16)):
        if old and (
            any(f"use_{kind}_sigmas" in config for kind in ("exponential", "beta")) or is_left(name, config, prediction)
        ):
            continue  # what that one has no answer to itself
        plain, patched = pair(name, steps, prediction_type=prediction, **config)
        for _, wanted, came in walked(plain, patched):
            agree_in_all(plain, patched, wanted, came)
        assert not patched._fastddpm.fell_back or is_left(name, config, prediction), config


HARD = {
    EULER: ({}, {"use_karras_sigmas": True}),
    ANCESTRAL: ({}, ZERO_SNR, {"beta_schedule": "squaredcos_cap_v2"}),
    HEUN: ({}, {"clip_sample": True}),
    SOLVER: ({}, SDE, {"solver_order": 3}, {"solver_type": "heun"}),
    UNIPC: ({}, {"solver_order": 3}, {"solver_order": 1}),
}
NOISE_DTYPES = {SOLVER: torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_no_farther_from_float64_than_the_original(name, dtype, monkeypatch):
    """The truth is their class in float64, at the same sigmas, given the same samples, outputs and noise."""
    for config, prediction in every(HARD[name], ("epsilon", "v_prediction")):
        if "beta_schedule" in config and dtype is torch.float16:
            continue  # sigma is 20291: x overflows
        plain, patched = pair(name, prediction_type=prediction, **config)
        steps = list(walked(plain, patched, dtype))
        with monkeypatch.context() as patch:
            exact = scheduler(patch, name, torch.float64, prediction_type=prediction, **config)
            exact.set_timesteps(6)
            exact.sigmas, exact.timesteps = plain.sigmas.double(), plain.timesteps

            def noise(shape, **_):
                return torch.randn(shape, dtype=NOISE_DTYPES.get(name, dtype)).double()

            patch.setattr(f"{type(exact).__module__}.randn_tensor", noise, raising=False)
            theirs, own = [], []
            for (out, t, x, state), wanted, came in steps:
                torch.set_rng_state(state)
                exact.scale_model_input(x.double(), t)
                right = exact.step(out.double(), t, x.double()).to_tuple()
                for error, each in ((theirs, wanted), (own, came)):
                    error += [far(one, true) for one, true in zip(each.to_tuple(), right, strict=True)]
        assert max(own) <= 1.5 * max(theirs) + 2 * torch.finfo(dtype).eps, config
        assert not patched._fastddpm.fell_back


def far(one, true):
    return float((one.double() - true).abs().max() / true.abs().max().clamp(min=1))


@pytest.mark.parametrize("fallen", [(0,), (1,), (2, 3), (5,), (0, 2, 4), (1, 3, 5)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_an_original_step_in_the_middle_goes_on_from_ours_and_ours_from_it(name, fallen):
    for config in (*HARD[name], {"prediction_type": "v_prediction"}):
        plain, patched = pair(name, **config)
        own = patched.step
        for n, (_, wanted, came) in enumerate(walked(plain, patched)):
            agree_in_all(plain, patched, wanted, came)
            patched.step = getattr(diffusers, name).step.__get__(patched) if n + 1 in fallen else own
        patched.step = own


def test_a_copy_in_the_middle_goes_on_by_itself():
    for name in NAMES:
        plain, patched = pair(name)
        for wanted in itertools.islice(walked(plain, patched), 3):
            x = wanted[1].prev_sample
        twin, copied = copy.deepcopy(plain), copy.deepcopy(patched)
        for _ in walked(plain, patched):
            break
        for each in (twin, copied):
            torch.manual_seed(0)
            each.results = [each.step(output_of(x, t), t, x).prev_sample for t in twin.timesteps[3:5]]
        agree(twin.results, copied.results)
        agree(plain.step_index, patched.step_index)


# ---- what is left to the original ----


def rising(each):
    each.sigmas = each.sigmas.clone()
    each.sigmas[3] = 1.1 * each.sigmas[1]


def listed(each):
    each.timesteps = each.timesteps.clone()
    each.sigmas = each.sigmas.to(torch.float64)
    each.sigmas[4] = -each.sigmas[4]


def as_it_is(each):
    pass


LEFT = {
    "churn": (EULER, {}, {"s_churn": 5.0}, as_it_is),
    "no s_churn": (EULER, {}, {"s_churn": torch.tensor(0.0)}, as_it_is),
    "rising, ancestral": (ANCESTRAL, {}, {}, rising),
    "negative, ancestral": (ANCESTRAL, {}, {}, listed),
    "rising, of 2M": (SOLVER, {}, {}, rising),
    "rising, of UniPC": (UNIPC, {}, {}, rising),
    "thresholding": (SOLVER, {"thresholding": True}, {}, as_it_is),
    "thresholding of UniPC": (UNIPC, {"thresholding": True}, {}, as_it_is),
    "DPM-Solver": (SOLVER, {"algorithm_type": "dpmsolver", **LEAST}, {}, as_it_is),
    "SDE-DPM-Solver": (SOLVER, {"algorithm_type": "sde-dpmsolver", **LEAST}, {}, as_it_is),
    "a learned variance": (SOLVER, {"variance_type": "learned_range"}, {}, as_it_is),
    "flow sigmas": (SOLVER, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, {}, as_it_is),
    "flow sigmas of UniPC": (UNIPC, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, {}, as_it_is),
    "UniPC of epsilon": (UNIPC, {"predict_x0": False, **LEAST}, {}, as_it_is),
    "UniPC of order 4": (UNIPC, {"solver_order": 4}, {}, as_it_is),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_is_the_original_s(case):
    name, config, options, change = LEFT[case]
    if isinstance(outcome(pair, name, **config), type):
        pytest.skip("not in this version of diffusers")
    plain, patched = pair(name, **config)
    for each in (plain, patched):
        change(each)
    bits = change is as_it_is
    for _, wanted, came in walked(plain, patched, **options):
        agree_in_all(plain, patched, wanted, came, 0 if bits else LARGEST)
    assert patched._fastddpm.fell_back and "fell back" in patched._fastddpm.summary()


# ---- odd steps ----

X, Z, OUT = torch.randn(3, 3, 2, 4, 4, generator=torch.Generator().manual_seed(1)).unbind()
ODD_STEPS = {
    "an int": lambda t: (OUT, int(t), X),
    "a float": lambda t: (OUT, float(t), X),
    "of one dimension": lambda t: (OUT, t.reshape(1), X),
    "not one of the timesteps": lambda t: (OUT, t + 0.5, X),
    "None": lambda t: (OUT, None, X),
    "output of one channel": lambda t: (OUT[:, :1], t, X),
    "output of twice the channels": lambda t: (torch.cat((OUT, OUT), 1), t, X),
    "output in half": lambda t: (OUT.bfloat16(), t, X),
    "sample in half": lambda t: (OUT, t, X.half()),
    "output in double": lambda t: (OUT.double(), t, X),
    "sample in double": lambda t: (OUT, t, X.double()),
    "both in half": lambda t: (OUT.half(), t, X.half()),
    "of vectors": lambda t: (OUT[:, 0, 0], t, X[:, 0, 0]),
    "of numbers": lambda t: (OUT[0, 0, 0, 0], t, X[0, 0, 0, 0]),
    "no samples": lambda t: (OUT[:0], t, X[:0]),
    "integers": lambda t: (OUT.long(), t, X.long()),
    "arrays": lambda t: (OUT.numpy(), t, X.numpy()),
    "channels_last": lambda t: (OUT.to(memory_format=torch.channels_last), t, X.to(memory_format=torch.channels_last)),
    "transposed": lambda t: (OUT.transpose(1, 3), t, X.transpose(1, 3)),
    "with a gradient": lambda t: (OUT.clone().requires_grad_(), t, X.clone().requires_grad_()),
}


def outcome(call, *arguments, **options):
    try:
        return call(*arguments, **options)
    except Exception as error:
        return type(error)


def scaled(plain, patched):
    for each in (plain, patched):
        if hasattr(each, "is_scale_input_called"):
            each.is_scale_input_called = True
    return plain, patched


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


GENERATORS = {
    "one": lambda: torch.Generator().manual_seed(3),
    "a list": lambda: [torch.Generator().manual_seed(i) for i in range(2)],
    "torch's own": lambda: None,
}


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


ODD_NOISINGS = {
    "one that is none": lambda t: (X, Z, torch.stack((t[0], t[1], t[1] + 0.25))),
    "one for all": lambda t: (X, Z, t[:1]),
    "without dimensions": lambda t: (X, Z, t[0]),
    "of two dimensions": lambda t: (X, Z, t[:3, None]),
    "int32": lambda t: (X, Z, t[:3].int()),
    "int64": lambda t: (X, Z, t[:3].long()),
    "in double": lambda t: (X, Z, t[:3].double()),
    "in float": lambda t: (X, Z, t[:3].float()),
    "in half": lambda t: (X, Z, t[:3].half()),
    "an int": lambda t: (X, Z, int(t[0])),
    "a list": lambda t: (X, Z, t[:3].tolist()),
    "of another number": lambda t: (X, Z, t[:2]),
    "noise of one sample": lambda t: (X, Z[:1], t[:3]),
    "noise in double": lambda t: (X, Z.double(), t[:3]),
    "an integer image": lambda t: (X.byte(), Z, t[:3]),
    "no samples": lambda t: (X[:0], Z[:0], t[:0]),
    "transposed": lambda t: (X.transpose(1, 3), Z.transpose(1, 3), t[:3]),
    "noise that wants a gradient": lambda t: (X, Z.clone().requires_grad_(), t[:3]),
    "an image that wants a gradient": lambda t: (X.clone().requires_grad_(), Z, t[:3]),
}


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
    made = patched._fastddpm.tables["add_noise"][3]
    given = torch.cat((plain.timesteps, plain.timesteps[:1] + 0.5, torch.tensor([-7.0, 5000.0]))).to(made.values.dtype)
    assert torch.equal(made.looked_up(given), made.index(given, given.device))  # as on a device


class Reads(TorchDispatchMode):
    """The ops that wait for a device."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops += [func] if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero) else []
        return func(*args, **(kwargs or {}))


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


# ---- what changes meanwhile ----


def shorter(each):
    each.set_timesteps(3)


def the_same(each):
    each.set_timesteps(6)


def assigned(each):
    each.set_timesteps(6)
    each.sigmas = each.sigmas * 0.9


def written(each):
    kept = each.sigmas
    each.set_timesteps(6)
    each.sigmas = kept.mul_(0.9)


def registered(each):
    each.register_to_config(prediction_type="v_prediction")
    each.set_timesteps(6)


def configured(each):
    each.config.prediction_type = "v_prediction"
    each.set_timesteps(6)


@pytest.mark.parametrize("change", [shorter, the_same, assigned, written, registered, configured])
@pytest.mark.parametrize("name", NAMES)
def test_a_change_is_noticed(name, change):
    plain, patched = pair(name)
    for _ in walked(plain, patched):
        pass
    patched.add_noise(X, Z, patched.timesteps[:3])
    for each in (plain, patched):
        change(each)
    for _, wanted, came in walked(plain, patched):
        agree_in_all(plain, patched, wanted, came)
    agree(plain.add_noise(X, Z, plain.timesteps[:3]), patched.add_noise(X, Z, patched.timesteps[:3]))
    assert not patched._fastddpm.fell_back


@pytest.mark.parametrize("name", NAMES)
def test_a_loop_begun_again_without_set_timesteps_is_the_original_s(name):
    """The outputs before the first are those of the last loop; of the solvers' levels there are none before."""
    plain, patched = pair(name, solver_order=3) if name in (SOLVER, UNIPC) else pair(name)
    for _ in range(2):
        for each in (plain, patched):
            each._step_index = None
        for _, wanted, came in walked(plain, patched):
            agree_in_all(plain, patched, wanted, came)


def test_a_change_between_the_stages_of_heun_is_noticed():
    plain, patched = pair(HEUN)
    for n, (_, wanted, came) in enumerate(walked(plain, patched)):
        agree_in_all(plain, patched, wanted, came)
        for each in (plain, patched) if n in (0, 3) else ():
            each.sigmas = each.sigmas * 0.9
    assert patched._fastddpm.fell_back.total() == 1  # the second stage after the first of those changes


# ---- what diffusers' own tests hold (tests/schedulers, their tolerances) ----

LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
OF_SOLVER = {**LINEAR, "lower_order_final": False, **LEAST}
V = {"prediction_type": "v_prediction"}
SUMS = {
    "euler": (EULER, {"num_train_timesteps": 1100, **LINEAR}, 10.0807, 0.0131),
    "euler ancestral": (ANCESTRAL, {"num_train_timesteps": 1100, **LINEAR}, 152.3192, 0.1983),
    "heun": (HEUN, {"num_train_timesteps": 1100, **LINEAR}, 0.1233, 0.0002),
    "dpm-solver++": (SOLVER, OF_SOLVER, None, 0.3301),
    "dpm-solver++ v": (SOLVER, {**OF_SOLVER, **V}, None, 0.2251),
    "dpm-solver++ v, karras": (SOLVER, {**OF_SOLVER, **V, "use_karras_sigmas": True}, None, 0.2096),  # the last has no length
    "dpm-solver++ v, lu": (SOLVER, {**OF_SOLVER, **V, "use_lu_lambdas": True}, None, 0.1554),
    "unipc": (UNIPC, {**LINEAR, **LEAST}, None, 0.2464),
    "unipc v": (UNIPC, {**LINEAR, **LEAST, **V}, None, 0.1014),
}


@pytest.mark.parametrize("case", SUMS)
def test_the_published_sums(case):
    name, config, total, mean = SUMS[case]
    each = pair(name, 10, **config)[1]
    generator = torch.manual_seed(0)
    x = (torch.arange(768).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2) * each.init_noise_sigma
    options = {"generator": generator} if name in (EULER, ANCESTRAL) else {}
    for t in each.timesteps:
        x = each.scale_model_input(x, t)
        x = each.step(x * t / (t + 1), t, x, **options).prev_sample
    assert total is None or abs(float(x.abs().sum()) - total) < 1e-2
    assert abs(float(x.abs().mean()) - mean) < 1e-3
    assert each._fastddpm.fell_back.total() == ("karras" in case or "lu" in case)
