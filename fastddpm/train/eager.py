"""A training step's loss as one writes it in eager PyTorch: what the timing table sets beside fastddpm's."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..schedule import NoiseSchedule
from .config import TrainConfig


class EagerLoss:
    """The losses of `TrainConfig`, with float32 tables on the device; the bound as in OpenAI's code, with tanh and clamp."""

    def __init__(self, config: TrainConfig, schedule: NoiseSchedule, device: torch.device):
        self.config = config
        first = schedule.posterior_variance[1:2] if len(schedule) > 1 else schedule.betas
        beta_tilde = torch.cat((first, schedule.posterior_variance[1:]))
        tables = {
            "a": schedule.alphas_cumprod.sqrt(),
            "s": (1 - schedule.alphas_cumprod).sqrt(),
            "of_x_0": schedule.posterior_mean_x_0,
            "of_x_t": schedule.posterior_mean_x_t,
            "log_beta_tilde": beta_tilde.log(),
            "log_beta": schedule.betas.log(),
            "log_large": torch.cat((beta_tilde[:1], schedule.betas[1:])).log(),
        }
        self.tables = {name: table.float().to(device) for name, table in tables.items()}

    def __call__(self, output: Tensor, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        mean, v = output.chunk(2, 1) if self.config.learns_variance else (output, None)
        if self.config.loss == "mse":
            return F.mse_loss(mean, self._target(x_0, noise, t))
        if self.config.loss == "hybrid":
            bound = self._bound(mean.detach(), v, x_0, x_t, t).mean()
            return F.mse_loss(mean, self._target(x_0, noise, t)) + self.config.timesteps / 1000 * bound
        bound = self._bound(mean, v, x_0, x_t, t).mean()
        return bound if self.config.loss == "kl" else self.config.timesteps * bound

    def _at(self, name: str, t: Tensor) -> Tensor:
        return self.tables[name][t].view(-1, 1, 1, 1)

    def _target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.config.prediction == "epsilon":
            return noise
        return x_0 if self.config.prediction == "sample" else self._at("a", t) * noise - self._at("s", t) * x_0

    def _x_0_hat(self, mean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        a, s = self._at("a", t), self._at("s", t)
        if self.config.prediction == "epsilon":
            return (x_t - s * mean) / a
        return mean if self.config.prediction == "sample" else a * x_t - s * mean

    def _log_variance(self, v: Tensor | None, t: Tensor) -> Tensor:
        lower, upper = self._at("log_beta_tilde", t), self._at("log_beta", t)
        if v is None:
            return lower if self.config.variance == "fixed_small" else self._at("log_large", t)
        return v if self.config.variance == "learned" else (v + 1) / 2 * upper + (1 - v) / 2 * lower

    def _bound(self, mean: Tensor, v: Tensor | None, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """`[B]`, bits a dimension."""
        x_0_hat, log_p = self._x_0_hat(mean, x_t, t), self._log_variance(v, t)
        of_x_0, of_x_t, log_q = self._at("of_x_0", t), self._at("of_x_t", t), self._at("log_beta_tilde", t)
        true_mean, model_mean = of_x_0 * x_0 + of_x_t * x_t, of_x_0 * x_0_hat + of_x_t * x_t
        squares = (true_mean - model_mean) ** 2 * torch.exp(-log_p)
        kl = 0.5 * (-1 + log_p - log_q + torch.exp(log_q - log_p) + squares)
        nll = _negative_log_likelihood(x_0, model_mean, log_p)
        return torch.where(t == 0, nll.flatten(1).mean(1), kl.flatten(1).mean(1)) / math.log(2)


def _negative_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of one of 256 levels."""
    inverse = torch.exp(-0.5 * log_variance)
    above, below = (_normal_cdf(inverse * (x - mean + edge)) for edge in (1 / 255, -1 / 255))
    probability = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return -probability.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class EagerUpdate:
    """The update of a network's weights by torch at its best, on a copy: the gradients' norm clipped, AdamW fused, the average
    multi-tensor."""

    def __init__(self, network: torch.nn.Module, config: TrainConfig, betas: tuple[float, float], max_norm: float):
        self.network, self.max_norm = network, max_norm
        self.params = [p.detach().clone() for p in network.parameters()]
        self.average = [p.clone() for p in self.params]
        self.optimizer = torch.optim.AdamW(self.params, config.lr, betas, weight_decay=config.weight_decay, fused=True)
        self.move = get_ema_multi_avg_fn(config.ema_decay)

    def take_gradients(self) -> None:
        for mine, p in zip(self.params, self.network.parameters(), strict=True):
            mine.grad = None if p.grad is None else p.grad.clone()

    def __call__(self, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr
        torch.nn.utils.clip_grad_norm_(self.params, self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.move(self.average, self.params, 1)
