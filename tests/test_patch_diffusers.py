"""diffusers' schedulers, patched: DDPM's and DDIM's every configuration against the original, its published sums, pipelines."""

import inspect
import itertools
import json

import pytest
import torch
from diffusers_pairs import agree, noised, pair, walked

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
    for method in cls.peer.methods:
        theirs, own = (inspect.signature(getattr(each, method.name)).parameters for each in (base, cls))
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
        compiled = torch.compile(lambda one=one: noised(one, x, x, t), backend="eager")
        assert torch.equal(compiled(), noised(plain, x, x, t)) and not one._fastddpm.fell_back
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
