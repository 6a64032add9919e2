"""Each function once, on operands that lie where they are told to: for the tests of layouts."""

from functools import lru_cache

import torch
from helpers import every_column, spread

from fastddpm import (
    GaussianDiffusion,
    NoiseSchedule,
    hybrid_loss,
    mse_loss,
    noise_key,
    prior_kl,
    q_sample,
    q_step,
    reverse_step,
    samplers,
    vlb_loss,
)

SCHEDULE = NoiseSchedule.linear(1000)
OUTPUT, X, NOISE, X_T, UPSTREAM, OTHER_UPSTREAM = range(6)


class Operands:
    """What a call takes: each operand where its one of `places` puts it."""

    def __init__(self, shape, dtype, kind, places=(torch.Tensor.contiguous,) * 6):
        self.shape, self.dtype, self.places, self.is_key = shape, dtype, places, kind == "key"
        self.t, self.key = spread(shape[0]), noise_key(1, 2, shape[0])
        self.each = torch.linspace(0.5, -3, shape[0])  # upstream gradients of the samples' losses
        self._made = {}

    def data(self, number, shape=None):
        wanted = (number, shape or self.shape)
        if wanted not in self._made:
            self._made[wanted] = self.places[number](numbers(wanted[1], self.dtype, number))
        return self._made[wanted].detach()

    def leaf(self, number):
        return self.data(number).requires_grad_()

    def output(self, variance_type="fixed_small", number=OUTPUT):
        batch, channels, *rest = self.shape
        learned = variance_type.startswith("learned")
        return self.data(number, (batch, channels * (1 + learned), *rest)).requires_grad_()

    @property
    def x(self):
        return self.data(X)

    @property
    def noise(self):
        return self.key if self.is_key else self.data(NOISE)

    @property
    def x_t(self):
        return self.key if self.is_key else self.data(X_T)


@lru_cache(maxsize=32)
def numbers(shape, dtype, seed):
    """In [-1, 1], with pixels at both ends."""
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return uniform.mul_(2.1).sub_(1.05).clamp_(-1, 1).to(dtype)


# ---- the functions: each returns its results, and the operand whose layout each has (a loss has none) ----


def noising(function):
    def call(o):
        x, upstream = o.leaf(X), o.data(UPSTREAM)
        x_t = function(x, o.t, SCHEDULE, o.noise)
        (grad,) = torch.autograd.grad(x_t, x, upstream)
        return {"x_t": (x_t.detach(), x), "grad": (grad, upstream)}

    return call


def gradients(loss, out, upstream):
    """The first backward's, and a second one's."""
    first, second = (torch.autograd.grad(loss, out, upstream, retain_graph=True)[0] for _ in range(2))
    return {"grad": (first, out), "second grad": (second, out)}


def mse(prediction_type, from_x_t=False):
    def call(o):
        out = o.output()
        given = {"x_0": o.x, "x_t": o.data(X_T)} if from_x_t else {"x_0": o.x, "noise": o.noise}
        loss = mse_loss(out, o.t, SCHEDULE, **given, prediction_type=prediction_type, reduction="none")
        mean = mse_loss(out, o.t, SCHEDULE, **given, prediction_type=prediction_type)
        (grad,) = torch.autograd.grad(mean, out, torch.tensor(-0.37))
        results = {"loss": (loss, None), "mean": (mean, None), "mean's grad": (grad, out)}
        return results | gradients(loss, out, o.each)

    return call


def vlb(prediction_type, variance_type, cdf="exact"):
    def call(o):
        out = o.output(variance_type)
        loss = vlb_loss(out, o.x, o.x_t, o.t, SCHEDULE, prediction_type, variance_type, cdf=cdf, reduction="none")
        return {"loss": (loss, None)} | gradients(loss, out, o.each)

    return call


def hybrid(prediction_type, variance_type):
    def call(o):
        out = o.output(variance_type)
        noise = None if o.is_key else o.noise
        losses = hybrid_loss(
            out, o.x, o.x_t, o.t, SCHEDULE, noise, 0.3, prediction_type, variance_type, clip_denoised=True, reduction="none"
        )
        grads = gradients(losses["loss"], out, o.each)
        (parts,) = torch.autograd.grad((losses["mse"], losses["vlb"]), out, (o.each, 2 * o.each))
        return {name: (loss, None) for name, loss in losses.items()} | grads | {"grad of the parts": (parts, out)}

    return call


def reverse(prediction_type, variance_type):
    rows = samplers.ddpm(SCHEDULE, prediction_type, variance_type)

    def call(o):
        out, x_t = o.output(variance_type), o.leaf(X)
        x_prev, x_0 = reverse_step(out, x_t, o.t, rows, o.noise)
        by_out, by_x_t = torch.autograd.grad((x_prev, x_0), (out, x_t), (o.data(UPSTREAM), o.data(OTHER_UPSTREAM)))
        results = {"x_prev": (x_prev.detach(), x_t), "x_0": (x_0.detach(), x_t)}
        return results | {"grad": (by_out, out), "grad by x_t": (by_x_t, x_t)}

    return call


def reverse_with_every_option(variance_type):
    """u, the history, g and bounds of each sample's own, and what is kept."""
    rows = every_column(variance_type=variance_type)

    def call(o):
        out, u, x_t, h = o.output(variance_type), o.output(variance_type, X_T), o.leaf(X), o.leaf(OTHER_UPSTREAM)
        own = {"guidance": o.each, "bound": 2 + o.each.abs(), "history": (h, o.data(NOISE), o.x), "return_kept": True}
        found = reverse_step(out, x_t, o.t, rows, o.noise, uncond_output=u, **own)
        upstream = o.data(UPSTREAM)
        grads = torch.autograd.grad(found, (out, u, x_t, h), (upstream, o.data(OTHER_UPSTREAM), o.data(NOISE)))
        results = zip(("x_prev", "x_0", "kept"), ((x.detach(), x_t) for x in found), strict=True)
        likes = zip(("grad", "grad by u", "grad by x_t"), zip(grads, (out, u, x_t), strict=False), strict=True)
        return dict(results) | dict(likes) | {"grad by h": (grads[3], upstream)}

    return call


def reverse_without_noise(o):
    x_prev, _ = reverse_step(o.output().detach(), o.x, 5, samplers.ddpm(SCHEDULE, "sample"), "none", return_x_0=False)
    return {"x_prev": (x_prev, o.x)}


def prior(o):
    x_0 = o.leaf(X)
    loss = prior_kl(x_0, SCHEDULE)
    return {"loss": (loss, None)} | gradients(loss, x_0, o.each)


def bits(o):
    """And what the network sees: each step's x_t."""
    seen = {}

    def model(x_t, t):
        seen[f"x_t at {int(t[0])}"] = x_t, o.x
        return o.output("learned_range").detach()

    diffusion = GaussianDiffusion(NoiseSchedule.linear(2, 0.1, 0.5), variance_type="learned_range")
    report = diffusion.bits_per_dim(model, o.x, noise=o.noise, progress=False)
    return seen | {name: (report[name].flatten(), None) for name in ("vb", "x_0_mse")}


FUNCTIONS = {
    "q_sample": noising(q_sample),
    "q_step": noising(q_step),
    "mse_loss: epsilon": mse("epsilon"),
    "mse_loss: sample": mse("sample"),
    "mse_loss: v_prediction": mse("v_prediction"),
    "mse_loss: previous": mse("previous"),
    "mse_loss: previous of x_t": mse("previous", from_x_t=True),
    "vlb_loss: epsilon, fixed_small": vlb("epsilon", "fixed_small"),
    "vlb_loss: v, learned_range": vlb("v_prediction", "learned_range"),
    "vlb_loss: previous, fixed_large": vlb("previous", "fixed_large", "tanh"),
    "hybrid_loss: epsilon, learned_range": hybrid("epsilon", "learned_range"),
    "hybrid_loss: sample, fixed_small": hybrid("sample", "fixed_small"),
    "hybrid_loss: v, learned": hybrid("v_prediction", "learned"),
    "reverse_step: epsilon, fixed_small": reverse("epsilon", "fixed_small"),
    "reverse_step: v, learned_range": reverse("v_prediction", "learned_range"),
    "reverse_step: previous, fixed_large": reverse("previous", "fixed_large"),
    "reverse_step: every option": reverse_with_every_option("fixed_small"),
    "reverse_step: every option, learned": reverse_with_every_option("learned"),
    "reverse_step without noise": reverse_without_noise,
    "prior_kl": prior,
    "bits_per_dim": bits,
}
WITHOUT_NOISE = ("mse_loss: sample", "mse_loss: previous of x_t", "reverse_step without noise", "prior_kl")
