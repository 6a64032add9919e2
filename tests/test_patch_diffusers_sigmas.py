"""diffusers' schedulers that walk a list of sigmas, patched: every configuration against the original."""

import copy
import itertools

import pytest
import torch
from helpers import far
from sampling_loops import every, scheduler

pytest.importorskip("diffusers")
pytest.importorskip("scipy")  # for beta sigmas

import diffusers
from sigma_loops import (
    ANCESTRAL,
    EULER,
    HEUN,
    LARGEST,
    NAMES,
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
    walked,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # theirs

LEAST = {"final_sigmas_type": "sigma_min"}
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


def is_left(name, config, prediction):
    """What falls back at some step: order 3 of the SDE; the last step of bh1 (infinity times 0) and what has no length."""
    clipped = (name, prediction) == (HEUN, "sample") and config.get("clip_sample")
    third = name == SOLVER and config.get("solver_order") == 3 and "algorithm_type" in config
    return (
        clipped
        or third
        or (name == UNIPC and config.get("solver_type") == "bh1")
        or (name, prediction) == (ANCESTRAL, "sample")
    )


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
