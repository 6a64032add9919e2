"""Bad input of GaussianDiffusion, and of its sampling loop: each error names the argument, what was expected and what came."""

import math

import pytest
import torch
from helpers import values

from fastddpm import GaussianDiffusion, NoiseSchedule, noise_key, samplers

SCHEDULE = NoiseSchedule.linear(1000)
ROWS = samplers.ddpm(SCHEDULE)
X, KEY, META = values(4, 3, 5, 5), noise_key(1, 2, 4), torch.device("meta")


def identity(x, t):
    return x


DIFFUSION_CASES = {
    "schedule": (lambda: GaussianDiffusion(SCHEDULE.betas), TypeError, "schedule: expected a NoiseSchedule, .*got float64"),
    "prediction type": (lambda: GaussianDiffusion(SCHEDULE, "eps"), ValueError, "prediction_type: .*, got 'eps'"),
    "variance type": (lambda: GaussianDiffusion(SCHEDULE, variance_type="x"), ValueError, "variance_type: .*, got 'x'"),
    "loss": (lambda: GaussianDiffusion(SCHEDULE, loss="l1"), ValueError, "loss: expected one of 'mse'.*, got 'l1'"),
    "loss of a learned variance": (
        lambda: GaussianDiffusion(SCHEDULE, variance_type="learned_range").training_loss(
            identity, torch.zeros(2, 3, 4, 4), noise_key(0, batch_size=2)
        ),
        ValueError,
        "loss: expected 'hybrid', 'kl' or 'rescaled_kl' to train variance_type 'learned_range', got 'mse'",
    ),
    "weight of the bound": (
        lambda: GaussianDiffusion(SCHEDULE, loss="kl", weight="min_snr"),
        ValueError,
        "weight: expected None for loss 'kl' .*, got 'min_snr'",
    ),
    "table of the bound": (
        lambda: GaussianDiffusion(SCHEDULE, loss="rescaled_kl", weight=torch.ones(1000)),
        ValueError,
        r"weight: expected None for loss 'rescaled_kl' .*, got 'float32 \[1000\] on cpu'",
    ),
    "vlb_weight": (
        lambda: GaussianDiffusion(SCHEDULE, vlb_weight=1.0),
        ValueError,
        "vlb_weight: expected None for loss 'mse', got 1.0",
    ),
    "cdf": (lambda: GaussianDiffusion(SCHEDULE, cdf="erf"), ValueError, "cdf: expected one of .*, got 'erf'"),
    "first variance": (
        lambda: GaussianDiffusion(SCHEDULE, first_variance="x"),
        ValueError,
        "first_variance: expected one of .*, got 'x'",
    ),
    "output without variance channels": (
        lambda: GaussianDiffusion(SCHEDULE, variance_type="learned", loss="kl").training_loss(identity, X, KEY),
        ValueError,
        r"model: expected .*\[4, 6, 5, 5\].*, got \[4, 3, 5, 5\]",
    ),
    "data": (lambda: GaussianDiffusion(SCHEDULE).training_loss(identity, X.long(), KEY), TypeError, "x_0: .*got int64"),
    "key": (
        lambda: GaussianDiffusion(SCHEDULE).training_loss(identity, X, X),
        TypeError,
        r"key: expected an int64 key \[B, 2\] from noise_key, got float32",
    ),
    "key of another batch": (
        lambda: GaussianDiffusion(SCHEDULE).training_loss(identity, X, KEY[:3]),
        ValueError,
        r"key: expected .*4 .*, got 3",
    ),
    "key of one row": (
        lambda: GaussianDiffusion(SCHEDULE).training_loss(identity, X, KEY[:1]),
        ValueError,
        r"key: expected .*4 .*, got 1",
    ),
    "output of another shape": (
        lambda: GaussianDiffusion(SCHEDULE).training_loss(lambda x, t: torch.cat((x, x), 1), X, KEY),
        ValueError,
        r"expected .*shape \[4, \d, 5, 5\], got \[4, \d, 5, 5\]",
    ),
    "output no tensor": (
        lambda: GaussianDiffusion(SCHEDULE).training_loss(lambda x, t: (x,), X, KEY),
        TypeError,
        r"model: expected a tensor, or an object whose .sample is one, got tuple",
    ),
    "reduction": (
        lambda: GaussianDiffusion(SCHEDULE).training_loss(identity, X, KEY, reduction="max"),
        ValueError,
        "reduction: .*, got 'max'",
    ),
}


@pytest.mark.parametrize("case", DIFFUSION_CASES)
def test_bad_input_of_gaussian_diffusion(case):
    call, error, message = DIFFUSION_CASES[case]
    with pytest.raises(error, match=message):
        call()


IMAGES = values(2, 3)
BEHIND = {"sampler": "ddim", "start": 2, "steps": 4}
GUIDED = {"uncond_kwargs": {}, "guidance_scale": 2.0}
SAMPLE_CASES = {
    "sampler": ({"sampler": "euler3"}, ValueError, "sampler: expected one of 'ddpm', .*, got 'euler3'"),
    "steps none": ({"steps": 0}, ValueError, r"steps: expected 1 \.\. 1000, got 0"),
    "steps none of ddim": ({"sampler": "ddim", "steps": 0}, ValueError, r"steps: expected 1 \.\. 1000, got 0"),
    "steps too many": ({"steps": 1001}, ValueError, r"steps: expected 1 \.\. 1000, got 1001"),
    "steps a float": ({"steps": 2.5}, ValueError, "steps: expected an int or a list of ints, got"),
    "shape": ({"shape": ()}, ValueError, r"shape: expected \(B, \.\.\.\), got \(\)"),
    "dtype": ({"dtype": torch.int32}, TypeError, "dtype: expected float32, .*, got torch.int32"),
    "seed a float": ({"seed": 1.5}, TypeError, "seed: expected an int .*, got float"),
    "seeds of another batch": (
        {"seed": torch.tensor([1, 2, 3])},
        ValueError,
        r"seed: expected an int or \[2\] seeds, one an image, got int64 \[3\]",
    ),
    "an option unknown to ddim": ({"sampler": "ddim", "etta": 1.0}, TypeError, "argument 'etta'"),
    "an option unknown to ddpm": ({"etta": 1.0}, TypeError, "argument 'etta'"),
    "an option beside rows": ({"sampler": ROWS, "eta": 1.0}, TypeError, "eta: expected no options beside StepRows"),
    "rows of another variance": (
        {"sampler": samplers.ddpm(SCHEDULE, variance_type="learned_range")},
        ValueError,
        r"model: expected \[B, 2C, \.\.\.\] = \[2, 6\] for variance_type 'learned_range'",
    ),
    "guidance without its other": (
        {"guidance_scale": 2.0},
        ValueError,
        "guidance_scale, uncond_kwargs: .*guidance_scale alone",
    ),
    "no guidance for uncond": ({"uncond_kwargs": {}}, ValueError, "guidance_scale, uncond_kwargs: .*, got uncond_kwargs alone"),
    "stacked alone": ({"stacked": True}, ValueError, "stacked, guidance_rescale: expected guidance_scale with them, got None"),
    "rescale alone": ({"guidance_rescale": 0.5}, ValueError, "guidance_rescale: expected guidance_scale with them, got None"),
    "rescale too far": (GUIDED | {"guidance_rescale": 1.5}, ValueError, r"guidance_rescale: expected 0 \.\. 1, got 1.5"),
    "scale nan": (GUIDED | {"guidance_scale": math.nan}, ValueError, "guidance_scale: expected a finite number .*, got nan"),
    "scale a word": (GUIDED | {"guidance_scale": "4"}, ValueError, "guidance_scale: expected a finite number .*, got '4'"),
    "scale of another batch": (
        GUIDED | {"guidance_scale": torch.ones(3)},
        ValueError,
        r"guidance_scale: expected shape \[2\] .*, got \[3\]",
    ),
    "scale of integers": (GUIDED | {"guidance_scale": torch.ones(2).long()}, TypeError, "guidance_scale: .*, got int64"),
    "scale elsewhere": (
        GUIDED | {"guidance_scale": torch.ones(2, device=META)},
        ValueError,
        "guidance_scale: expected the data's device cpu, got meta",
    ),
    "what cannot be stacked": (
        GUIDED | {"stacked": True, "model_kwargs": {"label": torch.ones(2)}, "uncond_kwargs": {"label": None}},
        TypeError,
        r"uncond_kwargs: expected tensors \[B, \.\.\.\] in both arguments 'label', to be stacked, got",
    ),
    "thresholding none": ({"thresholding": 0.0}, ValueError, r"thresholding: expected a percentile in \(0, 1\], got 0.0"),
    "thresholding too much": ({"thresholding": 99.5}, ValueError, r"thresholding: expected a percentile .*, got 99.5"),
    "denoised_fn": ({"denoised_fn": 0.5}, TypeError, "denoised_fn: expected a callable, got float"),
    "denoised_fn's shape": ({"denoised_fn": lambda x, t: x[:1]}, ValueError, r"denoised_fn's x_0_hat: .*, got \[1, 3\]"),
    "cond_fn": ({"cond_fn": IMAGES}, TypeError, r"cond_fn: expected a callable, got float32 \[2, 3\]"),
    "cond_fn's shape": ({"cond_fn": lambda x, t: x.sum(1)}, ValueError, r"cond_fn's gradient: .*, got \[2\]"),
    "cond_fn of rows without levels": (
        {"sampler": samplers.StepRows(torch.arange(2), k_0=1.0), "cond_fn": identity},
        ValueError,
        "alphas_cumprod: expected StepRows that have them",
    ),
    "cond_fn without noise": (
        {"sampler": "ddim_inverse", "cond_fn": identity, "steps": 4},
        ValueError,
        "cond_fn: expected a sampler whose every step begins with some noise",
    ),
    "denoised_fn without noise": (
        {"sampler": "ddim_inverse", "denoised_fn": identity, "steps": 4},
        ValueError,
        "denoised_fn: expected steps whose output tells x_0_hat",
    ),
    "start beyond the steps": (
        BEHIND | {"start": 4, "x_t": IMAGES},
        ValueError,
        r"start: expected 0 \.\. 3 \(the steps are 4\), got 4",
    ),
    "start of ddpm": ({"steps": 4, "start": 4, "x_t": IMAGES}, ValueError, r"start: expected 0 \.\. 3 .*, got 4"),
    "start of rows with history": (
        {"sampler": samplers.dpmpp(SCHEDULE, steps=4), "start": 1, "x_t": IMAGES},
        ValueError,
        "start: expected 0 for StepRows that read earlier steps, got 1",
    ),
    "start without x_t": (BEHIND, ValueError, "x_t: expected the sample at .* since start is 2, got None"),
    "x_t without start": ({"x_t": IMAGES}, ValueError, "x_T, x_t: expected x_t with a start above 0"),
    "x_T with start": (BEHIND | {"x_T": IMAGES, "x_t": IMAGES}, ValueError, "x_T, x_t: expected x_t with a start above 0"),
    "x_T of another shape": ({"x_T": IMAGES[:1]}, ValueError, r"x_T: expected \[2, 3\] on cpu, got float32 \[1, 3\]"),
    "x_t of another shape": (BEHIND | {"x_t": IMAGES[:1]}, ValueError, r"x_t: expected \[2, 3\] on cpu, got float32 \[1, 3\]"),
    "x_T of integers": ({"x_T": IMAGES.long()}, TypeError, r"x_T: expected a float32, .*, got int64 \[2, 3\]"),
    "known of another shape": ({"inpaint": (IMAGES[:1], IMAGES)}, ValueError, r"inpaint\[0\]: expected the images's shape"),
    "mask of another shape": (
        {"inpaint": (IMAGES, torch.ones(2))},
        ValueError,
        r"inpaint\[1\]: expected a mask that broadcasts to \[2, 3\] on cpu, got float32 \[2\]",
    ),
    "mask of too many dimensions": ({"inpaint": (IMAGES, torch.ones(1, 2, 3))}, ValueError, r"inpaint\[1\]: .*\[1, 2, 3\]"),
    "mask no tensor": ({"inpaint": (IMAGES, 1)}, ValueError, r"inpaint\[1\]: expected a mask .*, got int"),
    "inpaint no pair": ({"inpaint": IMAGES}, TypeError, r"inpaint: expected \(known, mask\), got float32 \[2, 3\]"),
    "inpaint towards noise": (
        {"sampler": "ddim_inverse", "inpaint": (IMAGES, IMAGES)},
        ValueError,
        "inpaint: expected a sampler that walks towards less noise",
    ),
    "inpaint of plms": (
        {"sampler": "plms", "inpaint": (IMAGES, IMAGES)},
        ValueError,
        "inpaint: expected None, since plms takes no edits",
    ),
    "callback of plms": (
        {"sampler": "plms", "callback": lambda i, t, x, x_0: x},
        ValueError,
        "callback: expected it to leave x as it is and to return None, since plms takes no edits",
    ),
    "callback of plms, in place": (
        {"sampler": "plms", "callback": lambda i, t, x, x_0: None if x.mul_(0.9) is x else x},
        ValueError,
        "callback: expected it to leave x as it is",
    ),
    "callback of plms' rows": (
        {"sampler": samplers.plms(SCHEDULE, steps=5), "callback": lambda i, t, x, x_0: x},
        ValueError,
        "callback: expected it to leave x as it is",
    ),
    "thresholding of previous": (
        {"sampler": samplers.ddpm(SCHEDULE, "previous"), "thresholding": 0.9},
        ValueError,
        "thresholding: expected steps that read x_0_hat",
    ),
    "callback": ({"callback": 1}, TypeError, "callback: expected a callable, got int"),
    "callback's shape": ({"callback": lambda i, t, x, x_0: x[:1]}, ValueError, r"callback's x: .*\[2, 3\], got \[1, 3\]"),
    "callback's kind": ({"callback": lambda i, t, x, x_0: 1.0}, TypeError, "callback's x: expected .*, got float"),
}


@pytest.mark.parametrize("case", SAMPLE_CASES)
def test_bad_input_of_sample(case):
    given, error, message = SAMPLE_CASES[case]
    options = {"shape": (2, 3), "progress": False, **given}
    with pytest.raises(error, match=message):
        GaussianDiffusion(SCHEDULE).sample(lambda x, t, **_: x, **options)
