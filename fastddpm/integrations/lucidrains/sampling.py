"""`p_sample` and the loops: a step is one pass after the network, and no image is kept that nobody asked for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...autograd import reverse_step
from ...noise import randn
from ..compiled import but_compiled
from ..draws import drawn_key, in_layout_of
from ..patch import MARK, Method, original
from ..torch_normals import quick_normals, randn_like, skip_randn_like
from .answered import UNFIT, answered, fits
from .noising import arithmetic, drawn, promoted, why_not, why_not_rows
from .rows import DDPM, Rows, ddim, rows_of


@but_compiled
@torch.inference_mode()
def p_sample(self: Any, x: Tensor, t: int, x_self_cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _stepped(self, x, t, x_self_cond, True)


def _stepped(self: Any, x: Tensor, t: int, x_self_cond: Tensor | None, returns_x_start: bool) -> tuple[Tensor, Tensor]:
    why = "an unknown objective, or a t that is no timestep's int"
    if self.objective in DDPM and type(t) is int and 0 <= t < self.num_timesteps:
        rows = rows_of(self, DDPM[self.objective])
        why = why_not(self, rows, x)
        if not why:
            times = torch.full((len(x),), t, device=rows.device, dtype=torch.long)
            output = self.model(x, times, x_self_cond)
            if fits(self, output, x):
                return _updated(self, rows, output, x, drawn(self, x) if t > 0 else None, times, returns_x_start)
            self, why = answered(self, output), UNFIT
    return original(self, p_sample, why)(x, t, x_self_cond)


def _updated(
    self: Any, rows: Rows, output: Tensor, x: Tensor, noise: Tensor | None, index: Tensor, returns_x_start: bool
) -> tuple[Tensor, Tensor]:
    """(the next image, x_start), in the dtypes that the original's arithmetic gives."""
    dtype = promoted(rows.dtype, x, output)
    x = in_layout_of(output, x.to(dtype)) if self.objective == "pred_x0" else x.to(dtype)
    image, x_start, _ = reverse_step(output, x, noise, index, rows.on(arithmetic(dtype)), returns_x_start)
    return image, x_start.to(output.dtype) if self.objective == "pred_x0" else x_start


@but_compiled
@torch.inference_mode()
def p_sample_loop(self: Any, shape: Sequence[int], return_all_timesteps: bool = False) -> Tensor:
    image, x_start = _first(self, shape), None
    images = [image] if return_all_timesteps else []
    for t in tqdm(reversed(range(self.num_timesteps)), desc="sampling loop time step", total=self.num_timesteps):
        image, x_start = _stepped(self, image, t, x_start if self.self_condition else None, bool(self.self_condition))
        if return_all_timesteps:
            images.append(image)
    return self.unnormalize(torch.stack(images, dim=1) if return_all_timesteps else image)


@but_compiled
@torch.inference_mode()
def ddim_sample(self: Any, shape: Sequence[int], return_all_timesteps: bool = False) -> Tensor:
    patch, eta = getattr(self, MARK), self.ddim_sampling_eta
    times = torch.linspace(-1, self.num_timesteps - 1, steps=self.sampling_timesteps + 1, device="cpu").int().tolist()[::-1]
    why = "an unknown objective"
    if self.objective in DDPM:
        rows = rows_of(self, ddim(self.objective, times, eta))
        why = why_not_rows(patch, rows)
    if why:
        return original(self, ddim_sample, why)(shape, return_all_timesteps)
    image, x_start = _first(self, shape), None
    images = [image] if return_all_timesteps else []
    indices = torch.arange(len(times), device=rows.device).unbind()
    for i, (time, after) in enumerate(zip(tqdm(times[:-1], desc="sampling loop time step"), times[1:], strict=True)):
        time_cond = torch.full((len(image),), time, device=rows.device, dtype=torch.long)
        output = self.model(image, time_cond, x_start if self.self_condition else None)
        if fits(self, output, image):
            if after >= 0 and not eta and patch.noise == "torch":  # theirs draws there too
                skip_randn_like(image)
            noise = drawn(self, image) if after >= 0 and eta else None
            returns_x_start = bool(self.self_condition) or after < 0
            image, x_start = _updated(self, rows, output, image, noise, indices[i], returns_x_start)
        else:
            patch.fell_back[f"ddim_sample: {UNFIT}"] += 1
            image, x_start = _as_theirs(answered(self, output), image, time_cond, time, after)
        image = image if after >= 0 else x_start
        if return_all_timesteps:
            images.append(image)
    return self.unnormalize(torch.stack(images, dim=1) if return_all_timesteps else image)


def _as_theirs(self: Any, image: Tensor, time_cond: Tensor, time: int, after: int) -> tuple[Tensor, Tensor]:
    """One step of the original's loop, which has no method of its own."""
    pred_noise, x_start, *_ = self.model_predictions(image, time_cond, None, clip_x_start=True, rederive_pred_noise=True)
    if after < 0:
        return x_start, x_start
    alpha, alpha_next = self.alphas_cumprod[time], self.alphas_cumprod[after]
    sigma = self.ddim_sampling_eta * ((1 - alpha / alpha_next) * (1 - alpha_next) / (1 - alpha)).sqrt()
    direction = (1 - alpha_next - sigma**2).sqrt()
    return x_start * alpha_next.sqrt() + direction * pred_noise + sigma * randn_like(image), x_start


def _first(self: Any, shape: Sequence[int]) -> Tensor:
    patch = getattr(self, MARK)
    patch.tables.clear()  # an average writes into its buffers' .data, which no version tells of
    if patch.noise == "torch":
        normals = quick_normals(shape, torch.get_default_dtype(), self.device)
        return torch.randn(shape, device=self.device) if normals is None else normals
    return randn(drawn_key(shape[0], self.device), tuple(shape), torch.get_default_dtype())


METHODS = (
    Method(p_sample, "one pass after the network", ("p_mean_variance", "model_predictions", "q_posterior")),
    Method(p_sample_loop, "keeps no image but the last, unless asked for all"),
    Method(ddim_sample, "one pass a step after the network; keeps no image but the last, unless asked for all"),
)
