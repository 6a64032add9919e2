"""diffusers' schedulers, patched: every configuration against the original, and every odd call."""

import inspect
import itertools
import json

import numpy as np
import pytest
import torch

import fastddpm

pytest.importorskip("diffusers")

import diffusers

from fastddpm.integrations import diffusers as ours
from fastddpm.integrations.diffusers.walk import _lies_in

DDPM, DDIM = diffusers.DDPMScheduler, diffusers.DDIMScheduler
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = (
    {"timestep_spacing": "leading"},
    {"steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "linspace"},
)
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range", "other")
CLIPS = ({"clip_sample": False}, {"clip_sample_range": 0.7}, {"thresholding": True})


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


@pytest.mark.parametrize("zero", [False, True], ids=["", "zero terminal SNR"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_ddpm_is_the_original(spacing, prediction, zero):
    for variance, clip in itertools.product(VARIANCES, CLIPS):
        config = {"prediction_type": prediction, "rescale_betas_zero_snr": zero, "variance_type": variance, **spacing, **clip}
        for _, wanted, came in walked(*pair(DDPM, **config), doubled=variance.startswith("learned")):
            agree(wanted, came)


@pytest.mark.parametrize("zero", [False, True], ids=["", "zero terminal SNR"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_ddim_is_the_original(spacing, prediction, zero):
    for eta, clipped, one, clip in itertools.product((0.0, 0.4, 1.0), (False, True), (True, False), CLIPS):
        config = {"prediction_type": prediction, "rescale_betas_zero_snr": zero, "set_alpha_to_one": one, **spacing, **clip}
        for _, wanted, came in walked(*pair(DDIM, **config), eta=eta, use_clipped_model_output=clipped):
            agree(wanted, came)


@pytest.mark.parametrize("steps", [None, 1000, 250])
@pytest.mark.parametrize("cls", [DDPM, DDIM])
def test_the_last_steps_too(cls, steps):
    """Where a beta of diffusers' has three right digits."""
    if steps is None and cls is DDIM:
        return
    plain, patched = pair(cls, steps)
    plain.timesteps = patched.timesteps = plain.timesteps[-8:]
    for _, wanted, came in walked(plain, patched):
        agree(wanted, came, 2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("cls", [DDPM, DDIM])
def test_other_dtypes_are_as_near_to_float64_as_the_original(cls, dtype):
    """In half precision nearer; in float64 both have the coefficients' float32."""
    exact, _ = pair(cls)
    exact.alphas_cumprod = exact.alphas_cumprod.double()
    plain, patched = pair(cls)
    for (out, t, x), wanted, came in walked(plain, patched, dtype, **({"eta": 0.0} if cls is DDIM else {})):
        if cls is DDPM and t > 0:
            continue  # the noise is of the dtype; DDIM's steps and the last one have none
        right = exact.step(out.double(), t, x.double())
        for ours_, theirs, double in zip(came.to_tuple(), wanted.to_tuple(), right.to_tuple(), strict=True):
            limit = 1.000001 * (theirs.double() - double).abs().max() + torch.finfo(dtype).eps
            assert (ours_.double() - double).abs().max() <= limit


def test_strict_leaves_half_precision_to_the_original():
    plain, patched = pair(DDIM)
    fastddpm.patch(strict := DDIM(), strict=True)
    strict.set_timesteps(6)
    differ = 0
    for (out, t, x), wanted, came in walked(plain, patched, torch.bfloat16):
        assert torch.equal(strict.step(out, t, x).prev_sample, wanted.prev_sample)
        differ += not torch.equal(came.prev_sample, wanted.prev_sample)
    assert differ
    x, t = torch.randn(4, 3, 4, 4).bfloat16(), torch.arange(4)
    assert torch.equal(strict.add_noise(x, x, t), plain.add_noise(x, x, t))


# ---- add_noise, get_velocity ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("cls", [DDPM, DDIM])
def test_noised_as_the_original_does_or_nearer(cls, dtype):
    plain, patched = pair(cls, steps=None)
    exact = plain.alphas_cumprod.double()
    x, z, t = (
        torch.randn(8, 3, 4, 4).to(dtype),
        torch.randn(8, 3, 4, 4).to(dtype),
        torch.tensor([0, 1, 5, 9, 400, 997, 998, 999]),
    )
    a, s = (exact[t].sqrt().view(-1, 1, 1, 1), (1 - exact[t]).sqrt().view(-1, 1, 1, 1))
    for name, right in {"add_noise": a * x.double() + s * z.double(), "get_velocity": a * z.double() - s * x.double()}.items():
        wanted, came = getattr(plain, name)(x, z, t), getattr(patched, name)(x, z, t)
        assert came.dtype is wanted.dtype
        limit = (wanted.double() - right).abs().max() + torch.finfo(dtype).eps * right.abs().max()
        assert (came.double() - right).abs().max() <= limit
    assert not patched._fastddpm.fell_back


def test_the_first_steps_in_half_precision_have_their_noise():
    """diffusers rounds abar before it takes it from 1: no noise at all in bfloat16 up to t = 9."""
    plain, patched = pair(DDPM, steps=None)
    x, z, t = torch.zeros(1, 1, 2, 2).bfloat16(), torch.ones(1, 1, 2, 2).bfloat16(), torch.tensor([5])
    assert plain.add_noise(x, z, t).abs().max() == 0 < patched.add_noise(x, z, t).min()


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
    "noise that wants a gradient": (X, Z.clone().requires_grad_(), torch.tensor([1, 2, 3])),
}


def outcome(call, *arguments):
    try:
        return call(*arguments)
    except Exception as error:
        return type(error)


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
            first, made = patched._fastddpm.tables["step"][-1], patched._fastddpm.tables["step"][-1]
        patched.set_timesteps(6)
        patched.step(OUT, patched.timesteps[0], X)
        assert patched._fastddpm.tables["step"][-1] is first is made
        patched.timesteps[0] += 1
        patched.step(OUT, patched.timesteps[0], X)
    if mode is torch.no_grad:  # nobody counts what is written in inference mode
        assert patched._fastddpm.tables["step"][-1] is not first


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
    grads = [torch.func.grad(lambda x, each=each: each.add_noise(x, Z, t).square().sum())(X) for each in (plain, patched)]
    assert torch.equal(*grads)
    patched.add_noise(X, Z, t)
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
            each.scale_model_input(X, t[0])
            came.append((each.step(OUT, t[0], X, **generator).prev_sample, each.add_noise(X, Z, t)))
    torch.testing.assert_close(*came, rtol=1e-4, atol=1e-5)
    assert not patched._fastddpm.fell_back


# ---- what diffusers' own tests hold (tests/schedulers, their tolerances) ----


V = {"prediction_type": "v_prediction"}
SUMS = {
    "ddpm": (DDPM, {}, None, 0, 258.9606, 0.3372),
    "ddpm v": (DDPM, V, None, 0, 202.0296, 0.2631),
    "ddpm of a noised image": (DDPM, {}, None, 998, 387.9466, 0.5051),
    "ddim": (DDIM, {}, 10, 0, 172.0067, 0.223967),
    "ddim v": (DDIM, V, 10, 0, 52.5302, 0.0684),
    "ddim of a noised image": (DDIM, {}, 10, 8, 354.5418, 0.4616),
    "ddim alpha one": (DDIM, {"set_alpha_to_one": True, "beta_start": 0.01}, 10, 0, 149.8295, 0.1951),
    "ddim alpha not one": (DDIM, {"set_alpha_to_one": False, "beta_start": 0.01}, 10, 0, 149.0784, 0.1941),
}


@pytest.mark.parametrize("made", ["patched", "subclass"])
@pytest.mark.parametrize("case", SUMS)
def test_the_published_sums(case, made):
    cls, config, steps, start, total, mean = SUMS[case]
    config = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "clip_sample": True, **config}
    each = pair(cls, None, **config)[1] if made == "patched" else getattr(ours, cls.__name__)(**config)
    if steps is not None:
        each.set_timesteps(steps)
    ramp = torch.arange(768) / 768
    x, noise = (values.reshape(3, 8, 8, 4).permute(3, 0, 1, 2) for values in (ramp, ramp.flip(0)))
    generator, timesteps = torch.manual_seed(0), each.timesteps[start:]
    if start:
        x = each.add_noise(x, noise, timesteps[:1])
    for t in timesteps:
        x = each.step(x * t / (t + 1), t, x, generator=generator).prev_sample
    assert abs(float(x.abs().sum()) - total) < 1e-2 and abs(float(x.abs().mean()) - mean) < 1e-3
    assert not each._fastddpm.fell_back


# ---- pipelines and subclasses ----


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return diffusers.UNet2DModel(8, 1, 1, **blocks, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8).eval()


def drawn(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(2, torch.Generator().manual_seed(0), num_inference_steps=5, output_type="np").images


@pytest.mark.parametrize("cls", [DDPM, DDIM])
def test_a_pipeline_draws_the_same_images(unet, cls):
    pipeline = (diffusers.DDPMPipeline if cls is DDPM else diffusers.DDIMPipeline)(unet, cls())
    wanted, before = drawn(pipeline), dict(vars(pipeline.scheduler))
    with fastddpm.patch(pipeline) as handle:
        came = drawn(pipeline)
        assert handle.parts[0].obj is pipeline.scheduler and "Scheduler" in handle.summary()
        assert not handle.parts[0].fell_back
    assert abs(wanted - came).max() < 1e-5 and before.keys() == vars(pipeline.scheduler).keys()
    assert (drawn(pipeline) == wanted).all()


@pytest.mark.parametrize("name", ours.__all__)
def test_a_subclass_saves_what_diffusers_loads(name, tmp_path, unet):
    base, cls = getattr(diffusers, name), getattr(ours, name)
    made = cls(500)
    made.noise = "philox"
    made.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text()) == json.loads(base(500).to_json_string())
    assert type(base.from_pretrained(tmp_path)) is base and type(cls.from_pretrained(tmp_path)) is cls
    diffusers.DDPMPipeline(unet, made).save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole/model_index.json").read_text())["scheduler"] == ["diffusers", name]
    for method in ("step", "add_noise"):
        theirs, own = (inspect.signature(getattr(each, method)).parameters for each in (base, cls))
        assert [(p.name, p.kind, p.default) for p in theirs.values()] == [(p.name, p.kind, p.default) for p in own.values()]


# ---- under a compiler ----


@pytest.mark.parametrize("name", ours.__all__)
def test_under_a_compiler_the_original_is_compiled(name):
    """Without a reason that is counted, since nothing fell back."""
    plain, patched = pair(getattr(diffusers, name))
    each = getattr(ours, name)()
    each.set_timesteps(6)
    x, t = torch.randn(2, 3, 4, 4), plain.timesteps[:2]
    for one in (patched, each):
        noised = torch.compile(lambda one=one: one.add_noise(x, x, t), backend="eager")
        assert torch.equal(noised(), plain.add_noise(x, x, t)) and not one._fastddpm.fell_back
    torch._dynamo.reset()


# ---- on a GPU ----


def test_a_timestep_is_known_by_where_it_lies():
    whole = torch.arange(10).flip(0)
    assert _lies_in(whole[3], whole) and _lies_in(whole[0:1], whole)
    assert not _lies_in(torch.tensor(3), whole) and not _lies_in(whole[1], whole[2:5]) and not _lies_in(whole[6], whole[2:5])
    assert not _lies_in(whole[1], whole[::2]) and not _lies_in(whole.view(torch.int32)[2], whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
@pytest.mark.parametrize("noise", ["torch", "philox"])
@pytest.mark.parametrize("cls", [DDPM, DDIM])
def test_a_loop_on_a_gpu_never_waits(cls, noise):
    plain, patched = pair(cls, noise=noise)
    for each in (plain, patched):
        each.set_timesteps(6, device="cuda")
    x, generator = torch.randn(2, 3, 4, 4, device="cuda"), torch.Generator("cuda").manual_seed(0)
    images = []
    for each, mode in ((plain, "default"), (patched, "default"), (patched, "error")):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            y = x
            for t in each.timesteps:
                y = each.step(torch.tanh(1.3 * y), t, y, generator=generator.manual_seed(0)).prev_sample
        finally:
            torch.cuda.set_sync_debug_mode("default")
        images.append(y.cpu())
    assert torch.equal(images[1], images[2])
    if noise == "torch" or cls is DDIM:
        torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-5)
