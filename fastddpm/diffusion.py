"""GaussianDiffusion: a schedule and the functions, tied to a model."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .bits_per_dim import Walk, parts_of, share_of
from .checks import as_shape, check_data, check_float_dtype, check_key, check_one_of, describe
from .coefficients import vlb_rows
from .densities import Density, LogNormal, check_density
from .functional import arithmetic, check_reduction, mse_loss, number_or_index, q_sample, q_sample_uniform
from .importance import LossSecondMoment
from .models import Model, call_model, device_of, with_estimate
from .noise import levels, noise_key, timesteps
from .process import Process, check_process
from .samplers import UNDER_GUIDANCE, StepRows
from .sampling import STEERING, Inpainting, SamplingLoop, Steering, any_seed, check_seeds, edit_of, first_of
from .schedule import FIRST_VARIANCES, LEARNED_VARIANCE_TYPES, VARIANCE_TYPES, NoiseSchedule
from .step_noise import StepNoise, of_bits_per_dim, of_sampling
from .training_options import as_strength, own_estimate, perturbed, with_offset
from .vlb import CDFS, hybrid_loss, prior_kl, vlb_loss
from .walks import Walks

LOSSES = ("mse", "kl", "rescaled_kl", "hybrid")


class GaussianDiffusion(Walks):
    """Training losses and sampling of a DDPM (Ho et al. 2020), a rectified flow or EDM, for any model(x_t, t, **model_kwargs).

    A model's output is a tensor, or an object with a `.sample` tensor (diffusers).

    Args:
        schedule: the process: a `NoiseSchedule`, `FlowMatching` or `EDM`.
        prediction_type: what the model predicts: of a chain "epsilon", "sample", "v_prediction" or "previous", of another
            process one of its `prediction_types`; None for the first of them.
        variance_type: of the reverse step: "fixed_small", "fixed_large", or for a model of twice the channels "learned" or
            "learned_range" (`vlb_loss` says what they mean; "mse" cannot train those).
        loss: what `training_loss` is: "mse"; "kl", the bound's term (`vlb_loss`); "rescaled_kl", T times that, which with t
            drawn evenly estimates the whole bound but for `prior_kl`; "hybrid", `hybrid_loss`. Only a chain has a bound.
        weight: of the mean squared error over t ("mse", "hybrid"): as `mse_loss` takes it.
        cdf, first_variance: of the bound, as in `vlb_loss`.
        vlb_weight: of the bound in "hybrid", as in `hybrid_loss`.
        density: of t in training, one of `fastddpm.densities`; None for the process's own: even, but of `EDM`. The loss is not
            weighted for it.
        offset_noise: how much of a normal that a sample's channel shares is added to the training noise (Guttenberg 2023), in
            x_t and in the target; 0.1 is usual. The noise is then stored.
        input_perturbation: how much more noise is in the x_t that the model is given than the target and the loss know of (Ning
            et al. 2023); 0.1 is theirs. One launch more.
        self_condition: the name of the model's argument for its own estimate of x_0 (Chen et al. 2022), e.g. "self_cond", or
            "x_self_cond" of lucidrains' Unet; None for none. In training the model is called twice, first without gradient and
            with zeros there; that call's x_0_hat, not clamped, is the second's in every second sample by chance, and zeros
            in the others. In `sample` it is the last step's x_0_hat, at first zeros; in `bits_per_dim` zeros.

    Raises:
        TypeError, ValueError: an argument of a wrong type or an unknown name, or two that do not go together, named.
    """

    def __init__(
        self,
        schedule: Process,
        prediction_type: str | None = None,
        variance_type: str = "fixed_small",
        loss: str = "mse",
        weight: str | Tensor | None = None,
        cdf: str = "exact",
        vlb_weight: float | None = None,
        first_variance: str = "posterior",
        *,
        density: Density | None = None,
        offset_noise: float = 0.0,
        input_perturbation: float = 0.0,
        self_condition: str | None = None,
    ):
        check_process(schedule)
        prediction_type = prediction_type or schedule.prediction_types[0]
        schedule.check_prediction(prediction_type)
        check_one_of("variance_type", variance_type, VARIANCE_TYPES)
        check_one_of("loss", loss, LOSSES)
        check_one_of("cdf", cdf, CDFS)
        check_one_of("first_variance", first_variance, FIRST_VARIANCES)
        if not schedule.is_chain and (loss != "mse" or variance_type != "fixed_small"):
            name = type(schedule).__name__
            raise ValueError(
                f"loss, variance_type: expected 'mse' and 'fixed_small' for {name}, which has no chain whose bound or variance "
                f"they could be, got {loss!r} and {variance_type!r}"
            )
        if weight is not None and loss not in ("mse", "hybrid"):
            given = weight if isinstance(weight, str) else describe(weight)
            raise ValueError(f"weight: expected None for loss {loss!r} (the bound weights its own terms), got {given!r}")
        if vlb_weight is not None and loss != "hybrid":
            raise ValueError(f"vlb_weight: expected None for loss {loss!r}, got {vlb_weight!r}")
        density = schedule.density if density is None else density
        if density is not None:
            check_density(density)
            if not schedule.num_timesteps and not isinstance(density, LogNormal):
                of, got = type(schedule).__name__, type(density).__name__
                raise ValueError(f"density: expected LogNormal or None for {of}, whose t is sigma, got {got}")
            if schedule.num_timesteps:
                density.bounds_on(len(schedule), torch.device("cpu"))  # refuses one of another T
        if not (self_condition is None or (isinstance(self_condition, str) and self_condition.isidentifier())):
            raise ValueError(f"self_condition: expected the name of an argument of the model or None, got {self_condition!r}")
        super().__init__()
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.variance_type = variance_type
        self.loss = loss
        self.weight = weight
        self.cdf = cdf
        self.vlb_weight = vlb_weight
        self.first_variance = first_variance
        self.density = density
        self.offset_noise = as_strength("offset_noise", offset_noise)
        self.input_perturbation = as_strength("input_perturbation", input_perturbation)
        self.self_condition = self_condition

    @property
    def learns_variance(self) -> bool:
        """Whether the model's output has twice the data's channels."""
        return self.variance_type in LEARNED_VARIANCE_TYPES

    def training_loss(
        self,
        model: Model,
        x_0: Tensor,
        key: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        reduction: str = "mean",
        t_sampler: LossSecondMoment | None = None,
        noise: Tensor | None = None,
        t: Tensor | int | float | None = None,
    ) -> Tensor:
        """One training step's loss: t and x_t from the key, the model's output, and its loss.

        Args:
            model: see the class.
            x_0: data `[B, ...]`.
            key: int64 `[B, 2]` of `noise_key(seed, step, B)`. t, the noise and x_t are functions of it alone. None where both
                noise and t are given.
            model_kwargs: passed on to the model.
            reduction: "mean", "sum" or "none".
            t_sampler: a `LossSecondMoment` draws t in place of `timesteps`, takes the losses in, and weights them; t is then a
                function of its state and the key.
            noise: in place of the key's: a tensor of x_0's shape, such as `torch.randn_like(x_0)`, or another key.
            t: in place of the key's: indices into the schedule, int64 or int32 `[B]`, or one for all; of a continuous process
                numbers too, floating.

        Returns:
            A float32 scalar, or `[B]` for "none".
        """
        check_data("x_0", x_0)
        self._check_draws(x_0, key, noise, t, t_sampler)
        check_reduction(reduction)
        self._check_trains_variance()
        t, weights = (t, None) if t_sampler is None else t_sampler.sample(cast(Tensor, key))
        x_t, t, noise = self._noised(x_0, key, noise, t)
        if t_sampler is None or weights is None:
            return self._loss_at(x_t, t, model, x_0, noise, key, model_kwargs, reduction)
        losses = self._loss_at(x_t, t, model, x_0, noise, key, model_kwargs, "none")
        t_sampler.update(t, losses.detach())
        losses = weights * losses
        return losses if reduction == "none" else getattr(losses, reduction)()

    def _check_draws(
        self, x_0: Tensor, key: Tensor | None, noise: Tensor | None, t: Any, t_sampler: LossSecondMoment | None
    ) -> None:
        """That a training step's noise and t come from somewhere, t from one place."""
        if key is not None:
            check_key("key", key)
            if key.shape[0] != x_0.shape[0]:
                raise ValueError(f"key: expected {x_0.shape[0]} rows (the batch of x_0), got {key.shape[0]}")
        elif noise is None or t is None or t_sampler is not None:
            raise ValueError("key: expected one, or both noise and t in its place (and no t_sampler), got None")
        elif self.offset_noise or self.input_perturbation or self.self_condition:
            raise ValueError("key: expected one, of which offset_noise, input_perturbation and self_condition draw, got None")
        if t_sampler is None:
            return
        if not isinstance(t_sampler, LossSecondMoment):
            raise TypeError(f"t_sampler: expected a LossSecondMoment or None, got {describe(t_sampler)}")
        if not self.schedule.num_timesteps:
            raise ValueError(f"t_sampler: expected None for {type(self.schedule).__name__}, which has no indices, got one")
        if t_sampler.num_timesteps != len(self.schedule):
            raise ValueError(f"t_sampler: expected one of {len(self.schedule)} timesteps, got {t_sampler.num_timesteps}")
        if t is not None:
            raise ValueError("t: expected None, since t_sampler draws it of the key, got both")
        if self.density is not None:
            raise ValueError("t_sampler: expected None, since this diffusion has a density of t, got both")

    def _noised(self, x_0: Tensor, key: Any, noise: Tensor | None, t: Any) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t for each sample, and the noise as the loss takes it."""
        if noise is None and t is None and self.density is None and not self.offset_noise:
            return *q_sample_uniform(x_0, self.schedule, key), key
        noise = key if noise is None else noise
        noise = with_offset(noise, x_0, key, self.offset_noise) if self.offset_noise else noise
        if t is None:
            t = timesteps(key, len(self.schedule), self.density) if self.schedule.num_timesteps else levels(key, self.density)
        else:
            number, index = number_or_index("t", t, x_0, self.schedule)
            t = (index if number is None else number).expand(len(x_0))
        return q_sample(x_0, t, self.schedule, noise), t, noise

    def _check_trains_variance(self) -> None:
        if self.loss == "mse" and self.learns_variance:
            raise ValueError(
                f"loss: expected 'hybrid', 'kl' or 'rescaled_kl' to train variance_type {self.variance_type!r}, got 'mse' "
                "(it would leave the variance as it is; 'hybrid' is the mean squared error with the bound beside it)"
            )

    def _loss_at(
        self,
        x_t: Tensor,
        t: Tensor,
        model: Model,
        x_0: Tensor,
        noise: Tensor,
        key: Any,
        model_kwargs: Mapping[str, Any] | None,
        reduction: str,
    ) -> Tensor:
        seen = perturbed(x_t, t, self.schedule, key, self.input_perturbation) if self.input_perturbation else x_t

        def output_of(estimate: Tensor | None) -> Tensor:
            kwargs = with_estimate(model_kwargs, self.self_condition, estimate)
            return call_model(model, seen, self._model_t(t), kwargs, self.variance_type)

        estimate = None
        if self.self_condition:
            estimate = own_estimate(output_of, seen, t, self.schedule, self.prediction_type, key)
        output = output_of(estimate)
        return self.loss_of(output, x_0, x_t, t, noise, reduction)

    def loss_of(self, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, reduction: str = "mean") -> Tensor:
        """The loss of a model's output at the x_t that `q_sample` made of x_0, t and the noise (a key, or a tensor)."""
        options: dict[str, Any] = {"prediction_type": self.prediction_type, "reduction": reduction}
        if self.loss == "mse":
            return mse_loss(output, t, self.schedule, noise, x_0, weight=self.weight, **options)
        options |= {"variance_type": self.variance_type, "cdf": self.cdf, "first_variance": self.first_variance}
        inputs = (output, x_0, x_t, t, self.schedule)
        if self.loss == "hybrid":
            return hybrid_loss(*inputs, noise, self.vlb_weight, weight=self.weight, **options)["loss"]
        loss = vlb_loss(*inputs, **options)
        return loss if self.loss == "kl" else len(self.schedule) * loss

    @torch.no_grad()
    def sample(
        self,
        model: Model,
        shape: tuple[int, ...] | torch.Size,
        sampler: str | StepRows | None = None,
        steps: int | Sequence[float] | None = None,
        seed: int | Tensor | None = None,
        clip_denoised: bool | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = True,
        *,
        clip_range: float = 1.0,
        spacing: str | None = None,
        dtype: torch.dtype = torch.float32,
        first_sample: int = 0,
        x_T: Tensor | None = None,  # noqa: N803
        start: int = 0,
        x_t: Tensor | None = None,
        noise: Tensor | StepNoise | None = None,
        guidance_scale: float | Tensor | None = None,
        uncond_kwargs: Mapping[str, Any] | None = None,
        stacked: bool = False,
        guidance_rescale: float = 0.0,
        thresholding: float | None = None,
        denoised_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        cond_fn: Callable[..., Tensor] | None = None,
        callback: Callable[[int, Any, Tensor, Tensor], Tensor | None] | None = None,
        inpaint: tuple[Tensor, Tensor] | None = None,
        return_trajectory: bool = False,
        **options: Any,
    ) -> Tensor:
        """Draws images from the model, by any sampler.

        Args:
            model: see the class; put it in eval mode first.
            shape: `(B, ...)` of the images.
            sampler: a name of `samplers.SAMPLERS`, or a `StepRows` (then steps to spacing are the rows', and not read, and
                the model's output is what they say); None for the process's own, "ddpm" of a chain.
            steps: how many steps of the chain to walk, or a list of timesteps that falls; None for all. Of a flow any number
                (None for T); of EDM too, or a list of sigmas (None for 18).
            seed: an int, or an integer tensor `[B]` of one seed an image: an image's noise then does not depend on its batch.
                None draws one of torch's default generator.
            clip_denoised: clamp x_0_hat to [-clip_range, clip_range]; None for the sampler's default.
            model_kwargs: passed on to the model.
            device: where to sample; default: the model's parameters' device.
            progress: show a bar.
            clip_range: see clip_denoised.
            spacing: of the steps, as `samplers.Sampler` says; None for the sampler's default (of "ddpm" evenly to the end).
            dtype: the samples', and what the model is given.
            first_sample: the index of the batch's first image, so that images made in parts are those of the whole.
            x_T: what to begin with, of the shape, in place of noise.
            start: how many of the noisiest steps to leave out: a sampler that reads earlier steps begins anew after them.
            x_t: with start: what to begin with, at the level of the first step walked, e.g. an image noised to it.
            noise: of the steps, in place of the seed's: a tensor `[S, *shape]`, one for each step walked, the first step's
                first; or (x, i) -> a tensor like x, called before each step, i as `reverse_step` takes it, e.g.
                `lambda x, i: torch.randn_like(x)`. Not read where no step adds noise ("ddim" without eta).
            guidance_scale: classifier-free guidance (Ho & Salimans 2022): uncond + scale (cond - uncond), a number or `[B]`.
            uncond_kwargs: with guidance: what the model is given in place of those of model_kwargs, without the condition.
            stacked: with guidance: one call of the model on a batch of both, instead of two calls; all its tensors but scalars
                are stacked along their first dimension.
            guidance_rescale: how far to bring a guided output's deviation back to the conditional one's (Lin et al. 2023, 3.4).
            thresholding: Imagen's dynamic thresholding (Saharia et al. 2022, 2.3), in place of clip_denoised: the percentile
                (0 < p <= 1) of abs(x_0_hat) that it is clamped to and divided by, where that is above 1. (StepRows that read
                the network's eps_hat, DDIM's without use_clipped_model_output, go on with it.)
            denoised_fn: (x_0_hat, t `[B]`) -> x_0_hat, before it is clamped.
            cond_fn: (x_t, t `[B]`, **model_kwargs) -> the gradient of log p(y | x_t) by x_t, to be taken under
                `torch.enable_grad` (Dhariwal & Nichol 2021: their algorithm 1 for DDPM, whose last step is not moved, and 2
                for the rest, before denoised_fn and the clamp).
            callback: (i, t, x, x_0_hat) after each step, i as `reverse_step` takes it, t what the model was given there; x may
                be changed in place, or a tensor returned to go on with. Of "plms" it may only read.
            inpaint: (known, mask): after each step the sample is `known`, noised to its level, where the mask is 1; between 0
                and 1 a part of each. Not with "plms".
            return_trajectory: return every step's sample too: the one result that grows with the steps.
            options: the sampler's own, e.g. eta of "ddim" (whose use_clipped_model_output is True under guidance and
                thresholding where it is not given).

        Returns:
            `shape`, of dtype; with return_trajectory `[1 + steps, *shape]`, the first x and the images last.

        Raises:
            TypeError, ValueError: an argument of a wrong type or shape, an unknown name, or two that do not go together, named.
        """
        shape, device = as_shape("shape", shape), device_of(model, device)
        check_float_dtype("dtype", dtype)
        check_seeds(seed, shape)
        loop = self._loop(
            model, shape, device, dtype, sampler, steps, clip_denoised, clip_range, spacing, start,
            guidance_scale=guidance_scale, uncond_kwargs=uncond_kwargs, stacked=stacked, guidance_rescale=guidance_rescale,
            thresholding=thresholding, denoised_fn=denoised_fn, cond_fn=cond_fn, **options,
        )  # fmt: skip
        key = partial(noise_key, any_seed() if seed is None else seed, 0, shape[0], first_sample, device=device)
        x = first_of(shape, dtype, key(stream="initial"), x_T, x_t, start)
        known = None if inpaint is None else Inpainting(inpaint, loop, key(stream="inpainting"), x)
        edit = edit_of(loop.rows, callback, known)
        trajectory = [x] if return_trajectory else None
        steps_noise = key(stream=loop.rows.stream) if noise is None else of_sampling(noise, x, len(loop.rows) - loop.first)
        x = loop(x, steps_noise, model_kwargs, progress, edit, trajectory)
        return x if trajectory is None else torch.stack(trajectory)

    def _loop(
        self,
        model: Model,
        shape: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
        sampler: str | StepRows | None,
        steps: int | Sequence[float] | None,
        clip_denoised: bool | None = None,
        clip_range: float = 1.0,
        spacing: str | None = None,
        start: int = 0,
        **options: Any,
    ) -> SamplingLoop:
        """What `sample` walks, for arguments like its own."""
        sampler = self.schedule.sampler if sampler is None else sampler
        steering = Steering(**{name: options.pop(name) for name in STEERING if name in options})
        clip_denoised = clip_denoised if steering.thresholding is None else True  # its own bound is in that one's place
        if isinstance(sampler, str) and (steering.guidance_scale is not None or steering.thresholding is not None):
            options = {**UNDER_GUIDANCE.get(sampler, {}), **options}
        rows, first, number = self._rows(sampler, steps, start, clip_denoised, clip_range, spacing, options)
        return SamplingLoop(rows, model, steering, shape[0], device, dtype, first, number, self.self_condition)

    @torch.no_grad()
    def bits_per_dim(
        self,
        model: Model,
        x_0: Tensor,
        seed: int | Tensor = 0,
        noise: Tensor | StepNoise | None = None,
        clip_denoised: bool = True,
        cdf: str = "exact",
        model_kwargs: Mapping[str, Any] | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        first_sample: int = 0,
        progress: bool = True,
    ) -> dict[str, Tensor]:
        """The bound on each sample's -log p(x_0), by one draw of each x_t: L_T + L_0 + .. + L_{T-1} (Ho et al. 2020, eq. 5).

        Args:
            model: as `GaussianDiffusion` takes it; put it in eval mode first.
            x_0: data `[B, ...]` in [-1, 1]. The likelihood is that of 256 levels, so the figure is meant for 8-bit data.
            seed: an int, or an integer tensor `[B]` of one seed a sample. The noise is a function of (seed, t, sample), t the
                timestep in the original chain.
            noise: in place of the seed's: of every step the same, a tensor of x_0's shape or a key; or (x, i) -> a tensor like
                x, called for each index of the chain from the last to 0 with the data (of batch_size samples), so that
                `lambda x, i: torch.randn_like(x)` draws as the published code.
            clip_denoised: clamp x_0_hat to [-1, 1].
            cdf: of the likelihood at index 0: "exact", or "tanh" for the published code's approximation.
            model_kwargs: passed on to the model; with `batch_size`, each chunk's share of the tensors whose first size is B.
            steps: how many steps of the chain to walk, evenly spaced to its end; None for all. Fewer give another bound: that
                of the shorter chain, whose samples `sample` draws with as many steps.
            batch_size: samples at a time, None for all: for memory only, the noise is the same.
            first_sample: the index of the first sample, so that data evaluated in parts sees the noise of the whole.
            progress: show a bar.

        Returns:
            "total" and "prior" (L_T), `[B]`, bits a dimension; and `[B, T]`, a column for each index 0 .. T-1 of the chain
            walked, ascending (OpenAI's descend): "vb" (L_t), bits a dimension; "x_0_mse"; "eps_mse", which is snr_t x_0_mse.
            total = prior + vb.sum(1). float32 (float64 for float64).

        Raises:
            TypeError, ValueError: an argument, or the model's output, of a wrong dtype, shape or device, named.
        """
        check_data("x_0", x_0)
        check_one_of("cdf", cdf, CDFS)
        model_kwargs = with_estimate(model_kwargs, self.self_condition, torch.zeros_like(x_0) if self.self_condition else None)
        chain = self._chain(steps)
        noises = of_bits_per_dim(chain, x_0, seed, first_sample, noise)
        options = (self.prediction_type, self.variance_type, clip_denoised, self.first_variance)
        rows = vlb_rows(chain, *options, None, x_0.device, arithmetic(x_0))
        walk = Walk(chain, rows, model, self.variance_type, cdf == "tanh")
        prior, snr = prior_kl(x_0, chain), chain.table(_snr, rows.device, rows.dtype)
        parts = parts_of(len(x_0), batch_size)
        terms = []
        with tqdm(total=len(parts) * len(chain), desc="bits/dim", unit="step", disable=not progress) as bar:
            for part in parts:
                kwargs = model_kwargs if len(parts) == 1 else share_of(model_kwargs, part, len(x_0))
                terms.append(walk.terms(x_0[part], noises(part), kwargs, bar))
        vb, x_0_mse = torch.cat(terms, 2).permute(1, 2, 0).contiguous()
        return {"total": prior + vb.sum(1), "prior": prior, "vb": vb, "x_0_mse": x_0_mse, "eps_mse": snr * x_0_mse}

    def _model_t(self, t: Tensor) -> Tensor:
        """In memory of its own, which the model may change."""
        if t.is_floating_point():
            return self.schedule.timesteps_at(t)
        return self.schedule.timesteps_on(t.device)[t] if self.schedule.is_respaced else t.clone()


def _snr(chain: NoiseSchedule) -> Tensor:
    return chain.snr
