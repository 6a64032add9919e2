"""A stand-in for OpenAI's guided-diffusion and improved-diffusion, which are on no index: their classes' names, arguments,
dtypes and draws, from the papers' formulas. The classes say that they are theirs: `patch` takes them, with force=True."""

import enum
from types import SimpleNamespace

import numpy as np
import torch

ModelMeanType = enum.Enum("ModelMeanType", "PREVIOUS_X START_X EPSILON")
ModelVarType = enum.Enum("ModelVarType", "LEARNED FIXED_SMALL FIXED_LARGE LEARNED_RANGE")
LossType = enum.Enum("LossType", "MSE RESCALED_MSE KL RESCALED_KL")

logger = SimpleNamespace(logkv_mean=lambda name, value: None)
"""A test puts its own here."""


def get_named_beta_schedule(name, steps):
    return np.linspace(0.1, 20, steps) / steps


def space_timesteps(steps, wanted):
    if wanted.startswith("ddim"):
        stride = next(i for i in range(1, steps) if len(range(0, steps, i)) == int(wanted[4:]))
        return {*range(0, steps, stride)}
    return {round(i * (steps - 1) / (int(wanted) - 1)) for i in range(int(wanted))}


def at(table, t, x):
    return torch.from_numpy(table)[t].float().view(-1, *[1] * (x.dim() - 1))


def mean_flat(x):
    return x.flatten(1).mean(1)


def ndtr(x):
    return (1 + torch.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def nll(x, mean, log_variance):
    scale = torch.exp(-log_variance / 2)
    above, below = ndtr((x - mean + 1 / 255) * scale), ndtr((x - mean - 1 / 255) * scale)
    above, below = torch.where(x > 0.999, 1.0, above), torch.where(x < -0.999, 0.0, below)
    return -(above - below).clamp(min=1e-12).log()


def kl(mean_q, lv_q, mean_p, lv_p):
    return (lv_p - lv_q - 1 + torch.exp(lv_q - lv_p) + (mean_q - mean_p) ** 2 * torch.exp(-lv_p)) / 2


class GaussianDiffusion:
    __module__ = "guided_diffusion.gaussian_diffusion"

    def __init__(self, *, betas, model_mean_type, model_var_type, loss_type, rescale_timesteps=False):
        self.model_mean_type, self.model_var_type, self.loss_type = model_mean_type, model_var_type, loss_type
        self.rescale_timesteps, self.betas, self.num_timesteps = rescale_timesteps, betas, len(betas)
        self.alphas_cumprod = abar = np.cumprod(1 - betas)
        self.alphas_cumprod_prev = before = np.append(1.0, abar[:-1])
        self.alphas_cumprod_next = np.append(abar[1:], 0.0)
        self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod = np.sqrt(abar), np.sqrt(1 - abar)
        self.log_one_minus_alphas_cumprod = np.log(1 - abar)
        self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod = np.sqrt(1 / abar), np.sqrt(1 / abar - 1)
        self.posterior_variance = v = betas * (1 - before) / (1 - abar)
        self.posterior_log_variance_clipped = np.log(np.append(v[1], v[1:]))
        self.posterior_mean_coef1 = betas * np.sqrt(before) / (1 - abar)
        self.posterior_mean_coef2 = (1 - before) * np.sqrt(1 - betas) / (1 - abar)

    def _scale_timesteps(self, t):
        return t.float() * (1000.0 / self.num_timesteps) if self.rescale_timesteps else t

    def q_sample(self, x_start, t, noise=None):
        noise = torch.randn_like(x_start) if noise is None else noise
        assert noise.shape == x_start.shape
        a, s = at(self.sqrt_alphas_cumprod, t, x_start), at(self.sqrt_one_minus_alphas_cumprod, t, x_start)
        return a * x_start + s * noise

    def posterior_mean(self, x_start, x_t, t):
        return at(self.posterior_mean_coef1, t, x_t) * x_start + at(self.posterior_mean_coef2, t, x_t) * x_t

    def _predict_eps_from_xstart(self, x_t, t, pred_xstart):
        of_x_t, of_eps = at(self.sqrt_recip_alphas_cumprod, t, x_t), at(self.sqrt_recipm1_alphas_cumprod, t, x_t)
        return (of_x_t * x_t - pred_xstart) / of_eps

    def p_mean_variance(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None):
        out = model(x, self._scale_timesteps(t), **(model_kwargs or {}))
        small = at(self.posterior_log_variance_clipped, t, x)
        kind, large = self.model_var_type.name, at(np.log(self.betas), t, x)
        if kind.startswith("LEARNED"):
            assert out.shape[1] == 2 * x.shape[1]
            out, v = out.chunk(2, 1)
            log_variance = v if kind == "LEARNED" else (v + 1) / 2 * large + (1 - v) / 2 * small
        else:
            first = t.view(small.shape) == 0
            log_variance = small if kind == "FIXED_SMALL" else torch.where(first, small, large)
        kind, x_0 = self.model_mean_type.name, out
        assert out.shape == x.shape
        if kind == "EPSILON":
            x_0 = at(self.sqrt_recip_alphas_cumprod, t, x) * x - at(self.sqrt_recipm1_alphas_cumprod, t, x) * out
        if kind == "PREVIOUS_X":
            x_0 = (out - at(self.posterior_mean_coef2, t, x) * x) / at(self.posterior_mean_coef1, t, x)
        x_0 = x_0 if denoised_fn is None else denoised_fn(x_0)
        x_0 = x_0.clamp(-1, 1) if clip_denoised else x_0
        mean = out if kind == "PREVIOUS_X" else self.posterior_mean(x_0, x, t)
        return {"mean": mean, "log_variance": log_variance, "pred_xstart": x_0}

    def p_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None):
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        noise = torch.randn_like(x)
        if cond_fn is not None:
            out["mean"] = out["mean"] + torch.exp(out["log_variance"]) * cond_fn(x, self._scale_timesteps(t))
        deviation = torch.exp(out["log_variance"] / 2) * (t != 0).float().view(-1, *[1] * (x.dim() - 1))
        return {"sample": out["mean"] + deviation * noise, "pred_xstart": out["pred_xstart"]}

    def ddim_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None, eta=0.0):
        x_0 = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)["pred_xstart"]
        here, before = at(self.alphas_cumprod, t, x), at(self.alphas_cumprod_prev, t, x)
        sigma = eta * ((1 - before) / (1 - here) * (1 - here / before)).sqrt()
        mean = before.sqrt() * x_0 + (1 - before - sigma**2).sqrt() * self._predict_eps_from_xstart(x, t, x_0)
        noise = torch.randn_like(x)
        sample = mean + (t != 0).float().view(sigma.shape) * sigma * noise
        return {"sample": sample, "pred_xstart": x_0}

    def ddim_reverse_sample(self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None, eta=0.0):
        assert eta == 0
        x_0 = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)["pred_xstart"]
        after = at(self.alphas_cumprod_next, t, x)
        sample = after.sqrt() * x_0 + (1 - after).sqrt() * self._predict_eps_from_xstart(x, t, x_0)
        return {"sample": sample, "pred_xstart": x_0}

    def _vb_terms_bpd(self, model, x_start, x_t, t, clip_denoised=True, model_kwargs=None):
        out = self.p_mean_variance(model, x_t, t, clip_denoised, model_kwargs=model_kwargs)
        true, small = self.posterior_mean(x_start, x_t, t), at(self.posterior_log_variance_clipped, t, x_t)
        later = mean_flat(kl(true, small, out["mean"], out["log_variance"]))
        first = mean_flat(nll(x_start, out["mean"], out["log_variance"]))
        return {"output": torch.where(t == 0, first, later) / np.log(2.0), "pred_xstart": out["pred_xstart"]}

    def training_losses(self, model, x_start, t, model_kwargs=None, noise=None):
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise)
        if self.loss_type.name.endswith("KL"):
            bound = self._vb_terms_bpd(model, x_start, x_t, t, False, model_kwargs)["output"]
            return {"loss": bound * (self.num_timesteps if self.loss_type.name == "RESCALED_KL" else 1)}
        out, terms = model(x_t, self._scale_timesteps(t), **(model_kwargs or {})), {}
        if self.model_var_type.name.startswith("LEARNED"):
            out, v = out.chunk(2, 1)
            frozen = torch.cat((out.detach(), v), 1)
            vb = self._vb_terms_bpd(lambda *args: frozen, x_start, x_t, t, False)["output"]
            terms["vb"] = vb * (self.num_timesteps / 1000 if self.loss_type.name == "RESCALED_MSE" else 1)
        target = {"EPSILON": noise, "START_X": x_start, "PREVIOUS_X": self.posterior_mean(x_start, x_t, t)}
        assert out.shape == x_start.shape
        terms["mse"] = mean_flat((target[self.model_mean_type.name] - out) ** 2)
        return {**terms, "loss": terms["mse"] + terms["vb"] if terms.get("vb") is not None else terms["mse"]}

    def _prior_bpd(self, x_start):
        t = torch.full((len(x_start),), self.num_timesteps - 1)
        mean, lv = at(self.sqrt_alphas_cumprod, t, x_start) * x_start, at(self.log_one_minus_alphas_cumprod, t, x_start)
        return mean_flat(kl(mean, lv, torch.zeros_like(mean), torch.zeros_like(lv))) / np.log(2.0)

    def calc_bpd_loop(self, model, x_start, clip_denoised=True, model_kwargs=None):
        vb, xstart_mse, mse = [], [], []
        for i in reversed(range(self.num_timesteps)):
            t, noise = torch.full((len(x_start),), i), torch.randn_like(x_start)
            x_t = self.q_sample(x_start, t, noise)
            with torch.no_grad():
                out = self._vb_terms_bpd(model, x_start, x_t, t, clip_denoised, model_kwargs)
            vb.append(out["output"])
            xstart_mse.append(mean_flat((out["pred_xstart"] - x_start) ** 2))
            mse.append(mean_flat((self._predict_eps_from_xstart(x_t, t, out["pred_xstart"]) - noise) ** 2))
        vb, prior = torch.stack(vb, 1), self._prior_bpd(x_start)
        columns = {"vb": vb, "xstart_mse": torch.stack(xstart_mse, 1), "mse": torch.stack(mse, 1)}
        return {"total_bpd": vb.sum(1) + prior, "prior_bpd": prior, **columns}


class SpacedDiffusion(GaussianDiffusion):
    __module__ = "guided_diffusion.respace"

    def __init__(self, use_timesteps, **kwargs):
        self.timestep_map, self.original_num_steps = sorted(use_timesteps), len(kwargs["betas"])
        abar = np.cumprod(1 - kwargs["betas"])[self.timestep_map]
        super().__init__(**{**kwargs, "betas": 1 - abar / np.append(1.0, abar[:-1])})

    def p_mean_variance(self, model, *args, **kwargs):
        return super().p_mean_variance(self._wrap_model(model), *args, **kwargs)

    def training_losses(self, model, *args, **kwargs):
        return super().training_losses(self._wrap_model(model), *args, **kwargs)

    def _wrap_model(self, model):
        return model if isinstance(model, Wrapped) else Wrapped(self, model)

    def _scale_timesteps(self, t):
        return t


class Wrapped:
    def __init__(self, diffusion, model):
        self.diffusion, self.model = diffusion, model

    def __call__(self, x, t, **kwargs):
        t = torch.tensor(self.diffusion.timestep_map, dtype=t.dtype)[t]
        scale = 1000.0 / self.diffusion.original_num_steps
        return self.model(x, t.float() * scale if self.diffusion.rescale_timesteps else t, **kwargs)


class Improved(GaussianDiffusion):
    __module__, __qualname__ = "improved_diffusion.gaussian_diffusion", "GaussianDiffusion"


# ---- trainers: guided-diffusion's, whose parameters another class keeps, and improved-diffusion's ----


class MixedPrecisionTrainer:
    __module__ = "guided_diffusion.fp16_util"

    def __init__(self, model):
        self.master_params = [*model.parameters()]

    def _compute_norms(self, grad_scale=1.0):
        params, grads = self.master_params, [p.grad for p in self.master_params if p.grad is not None]
        of_grads, of_params = (np.sqrt(sum(x.norm().item() ** 2 for x in each)) for each in (grads, params))
        return of_grads / grad_scale, of_params

    def optimize(self, opt):
        for name, norm in zip(("grad_norm", "param_norm"), self._compute_norms(), strict=True):
            logger.logkv_mean(name, norm)
        opt.step()


def log_loss_dict(diffusion, ts, losses):
    for key, values in losses.items():
        logger.logkv_mean(key, values.mean().item())
        for t, value in zip(ts.numpy(), values.detach().numpy(), strict=True):
            logger.logkv_mean(f"{key}_q{4 * t // diffusion.num_timesteps}", value)


class Loop:
    def __init__(self, model, diffusion, microbatch, ema_rate):
        self.model, self.diffusion, self.microbatch, self.ema_rate = model, diffusion, microbatch, ema_rate
        self.opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.ema_params = [[torch.nn.Parameter(p.detach().clone()) for p in model.parameters()] for _ in ema_rate]

    def forward_backward(self, batch, cond):
        self.model.zero_grad()
        for micro in batch.split(self.microbatch):
            t = torch.from_numpy(np.random.choice(self.diffusion.num_timesteps, len(micro)))
            losses = self.diffusion.training_losses(self.model, micro, t)
            log_loss_dict(self.diffusion, t, losses)
            losses["loss"].mean().backward()

    def average(self, params):
        for rate, averages in zip(self.ema_rate, self.ema_params, strict=True):
            for average, param in zip(averages, params, strict=True):
                average.detach().mul_(rate).add_(param, alpha=1 - rate)


class GuidedLoop(Loop):
    __module__, __qualname__ = "guided_diffusion.train_util", "TrainLoop"

    def __init__(self, *args):
        super().__init__(*args)
        self.mp_trainer = MixedPrecisionTrainer(self.model)

    def run_step(self, batch, cond):
        self.forward_backward(batch, cond)
        self.mp_trainer.optimize(self.opt)
        self._update_ema()

    def _update_ema(self):
        self.average(self.mp_trainer.master_params)


class ImprovedLoop(Loop):
    __module__, __qualname__ = "improved_diffusion.train_util", "TrainLoop"

    def __init__(self, *args):
        super().__init__(*args)
        self.master_params = [*self.model.parameters()]

    def run_step(self, batch, cond):
        self.forward_backward(batch, cond)
        self.optimize_normal()

    def optimize_normal(self):
        self._log_grad_norm()
        self._anneal_lr()
        self.opt.step()
        self.average(self.master_params)

    def _log_grad_norm(self):
        logger.logkv_mean("grad_norm", np.sqrt(sum((p.grad**2).sum().item() for p in self.master_params)))

    def _anneal_lr(self):
        pass
