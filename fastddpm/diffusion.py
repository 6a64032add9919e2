"""GaussianDiffusion: a schedule and the functions, tied to a model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import samplers
from .checks import check_data, check_key, check_one_of, check_shape, describe
from .functional import mse_loss, q_sample, reverse_step
from .noise import INITIAL, REVERSE, advance, noise_key, randn, timesteps
from .schedule import VARIANCE_TYPES, NoiseSchedule, check_schedule

Model = Callable[..., Any]


class GaussianDiffusion:
    """Training losses and sampling of a DDPM (Ho et al. 2020), for any callable `model(x_t, t, **model_kwargs)`.

    A model's output is a tensor, or an object with a `.sample` tensor (diffusers).

    Args:
        schedule: the chain.
        prediction_type: what the model predicts: "epsilon", "sample", "v_prediction" or "previous".
        variance_type: of the reverse step: "fixed_small" or "fixed_large".
        loss: "mse".
        weight: of the loss over t: None, "min_snr", or a floating `[T]` table.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        variance_type: str = "fixed_small",
        loss: str = "mse",
        weight: str | Tensor | None = None,
    ):
        check_schedule(schedule)
        schedule.check_prediction(prediction_type)
        check_one_of("variance_type", variance_type, VARIANCE_TYPES)
        check_one_of("loss", loss, ("mse",))
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.variance_type = variance_type
        self.loss = loss
        self.weight = weight

    def training_loss(
        self,
        model: Model,
        x_0: Tensor,
        key: Tensor,
        model_kwargs: Mapping[str, Any] | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """One training step's loss: t and x_t from the key, the model's output, and its loss.

        Args:
            model: see the class.
            x_0: data `[B, ...]`.
            key: int64 `[B, 2]` of `noise_key(seed, step, B)`. t, the noise and x_t are functions of it alone.
            model_kwargs: passed on to the model.
            reduction: "mean", "sum" or "none".

        Returns:
            A float32 scalar, or `[B]` for "none".
        """
        check_data("x_0", x_0)
        check_key("key", key)
        if key.shape[0] != x_0.shape[0]:
            raise ValueError(f"key: expected {x_0.shape[0]} rows (the batch of x_0), got {key.shape[0]}")
        t = timesteps(key, len(self.schedule))
        x_t = q_sample(x_0, t, self.schedule, key)
        output = _call(model, x_t, self._model_t(t), model_kwargs)
        return mse_loss(
            output,
            t,
            self.schedule,
            key,
            x_0,
            prediction_type=self.prediction_type,
            weight=self.weight,
            reduction=reduction,
        )

    @torch.no_grad()
    def sample(
        self,
        model: Model,
        shape: tuple[int, ...] | torch.Size,
        sampler: str = "ddpm",
        steps: int | None = None,
        seed: int | Tensor = 0,
        clip_denoised: bool = True,
        model_kwargs: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Draws images from the model.

        Args:
            model: see the class; put it in eval mode first.
            shape: `(B, ...)` of the images.
            sampler: "ddpm".
            steps: how many steps of the chain to walk, evenly spaced to its end; None for all.
            seed: an int, or an integer tensor `[B]` of one seed an image: an image then does not depend on its batch.
            clip_denoised: clamp x_0_hat to [-1, 1].
            model_kwargs: passed on to the model.
            device: where to sample; default: the model's parameters' device.
            progress: show a bar.

        Returns:
            float32 `shape`.
        """
        check_one_of("sampler", sampler, ("ddpm",))
        check_shape("shape", shape)
        if isinstance(seed, Tensor) and seed.shape != shape[:1]:
            raise ValueError(f"seed: expected an int or [{shape[0]}] seeds, one an image, got {describe(seed)}")
        device = _device_of(model) if device is None else torch.device(device)
        chain = self.schedule if steps is None else self.schedule.respace(steps)
        rows = samplers.ddpm(chain, self.prediction_type, self.variance_type, clip_denoised)
        x = randn(noise_key(seed, 0, shape[0], stream=INITIAL, device=device), shape)
        key = noise_key(seed, 0, shape[0], stream=REVERSE, device=device)
        model_t = rows.timesteps.to(device)
        for i in tqdm(range(len(rows) - 1, -1, -1), desc="sampling", unit="step", disable=not progress):
            output = _call(model, x, model_t[i].expand(shape[0]), model_kwargs)
            x, _ = reverse_step(output, x, i, rows, key, return_x_0=False)
            advance(key)
        return x

    def _model_t(self, t: Tensor) -> Tensor:
        return self.schedule.timesteps_on(t.device)[t] if self.schedule.is_respaced else t


def _call(model: Model, x_t: Tensor, t: Tensor, model_kwargs: Mapping[str, Any] | None) -> Tensor:
    output = model(x_t, t, **(model_kwargs or {}))
    output = getattr(output, "sample", output) if not isinstance(output, Tensor) else output
    if not isinstance(output, Tensor):
        raise TypeError(f"model: expected a tensor, or an object whose .sample is one, got {describe(output)}")
    if output.shape != x_t.shape:
        raise ValueError(f"model: expected an output of x_t's shape {list(x_t.shape)}, got {list(output.shape)}")
    return output


def _device_of(model: Model) -> torch.device:
    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return torch.device("cpu") if first is None else first.device
