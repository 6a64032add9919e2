"""The sampling loop: from x_T, or from any step's x_t, to x_0, with any sampler and with what steers it.

What a step reads (rows, indices, timesteps, keys, both arguments of a guided network) is on the device before the first step:
between it and the last nothing is uploaded and nothing read by the host. A loop holds two samples, what its sampler reads of
earlier steps, and the network's outputs: never one of each step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from tqdm.auto import tqdm

from . import ops
from .checks import as_samples, check_data, check_like, describe
from .models import Model, call_model, with_estimate
from .noise import randn
from .rows import NoisingRow, pack
from .samplers import StepRows
from .step_noise import StepNoise, keys_of

History = list[Tensor]
NO_EDITS = "plms takes no edits (an early one would count more than once: docs/samplers.md)"


@dataclass(frozen=True)
class Steering:
    """What is done to the network's outputs before they are a step; `GaussianDiffusion.sample` says what each means."""

    guidance_scale: float | Tensor | None = None
    uncond_kwargs: Mapping[str, Any] | None = None
    stacked: bool = False
    guidance_rescale: float = 0.0
    thresholding: float | None = None
    denoised_fn: Callable[[Tensor, Tensor], Tensor] | None = None
    cond_fn: Callable[..., Tensor] | None = None

    def __post_init__(self) -> None:
        if (self.guidance_scale is None) != (self.uncond_kwargs is None):
            raise ValueError(
                "guidance_scale, uncond_kwargs: expected both or neither (what the model is given without the condition), got "
                f"{'uncond_kwargs' if self.guidance_scale is None else 'guidance_scale'} alone"
            )
        if self.guidance_scale is None and (self.stacked or self.guidance_rescale):
            raise ValueError("stacked, guidance_rescale: expected guidance_scale with them, got None")
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale: expected 0 .. 1, got {self.guidance_rescale}")
        if self.thresholding is not None and not 0 < self.thresholding <= 1:
            raise ValueError(f"thresholding: expected a percentile in (0, 1], got {self.thresholding}")
        for name in ("denoised_fn", "cond_fn"):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise TypeError(f"{name}: expected a callable, got {describe(given)}")

    @property
    def composes(self) -> bool:
        """Whether more than the step's kernel is at work."""
        edits = (self.thresholding, self.denoised_fn, self.cond_fn)
        return self.guidance_rescale > 0 or any(given is not None for given in edits)


STEERING = tuple(field.name for field in fields(Steering))


class Outputs:
    """The network's outputs at a step: with its condition, and under guidance without it."""

    def __init__(
        self,
        model: Model,
        variance_type: str,
        model_kwargs: Mapping[str, Any] | None,
        steering: Steering,
        self_condition: str | None = None,
    ):
        self.model, self.variance_type, self.stacked = model, variance_type, steering.stacked
        self.self_condition = self_condition
        self.kwargs = dict(model_kwargs or {})
        self.uncond = None if steering.uncond_kwargs is None else self.kwargs | dict(steering.uncond_kwargs)
        if self.stacked and self.uncond is not None:
            self.both = {name: _stacked(name, self.kwargs.get(name), value) for name, value in self.uncond.items()}

    def __call__(self, x: Tensor, t: Tensor, estimate: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if self.uncond is None:
            return self._output(x, t, self.kwargs, estimate), None
        if self.stacked:
            estimate = None if estimate is None else torch.cat((estimate, estimate))
            output = self._output(torch.cat((x, x)), torch.cat((t, t)), self.both, estimate)
            return output[: len(x)], output[len(x) :]
        output = self._output(x, t.clone(), self.kwargs, estimate)  # it may change its t
        return output, self._output(x, t, self.uncond, estimate)

    def _output(self, x: Tensor, t: Tensor, kwargs: Mapping[str, Any], estimate: Tensor | None) -> Tensor:
        return call_model(self.model, x, t, with_estimate(kwargs, self.self_condition, estimate), self.variance_type)


def _stacked(name: str, cond: Any, uncond: Any) -> Any:
    """A model's argument, or what a container of them holds, for a batch of both halves."""
    (cond_leaves, kind), (uncond_leaves, other) = tree_flatten(cond), tree_flatten(uncond)
    if kind != other:
        raise TypeError(f"uncond_kwargs: expected {name} of model_kwargs' kind, to be stacked, got {cond!r} and {uncond!r}")
    pairs = zip(cond_leaves, uncond_leaves, strict=True)
    return tree_unflatten([_both(name, *pair) for pair in pairs], kind)


def _both(name: str, cond: Any, uncond: Any) -> Any:
    tensors = isinstance(cond, Tensor) and isinstance(uncond, Tensor)
    if tensors and cond.shape == uncond.shape and cond.dim() > 0:
        return torch.cat((cond, uncond))
    if cond is uncond or (not isinstance(cond, Tensor) and type(cond) is type(uncond) and cond == uncond):
        return cond
    given = " and ".join(describe(x) if isinstance(x, Tensor) else repr(x) for x in (cond, uncond))
    raise TypeError(f"uncond_kwargs: expected tensors [B, ...] in both arguments {name!r}, to be stacked, got {given}")


class Inpainting:
    """After each step, what is known of x_0, noised to the level that the step ends at, where the mask is 1."""

    def __init__(self, inpaint: tuple[Tensor, Tensor], loop: "SamplingLoop", key: Tensor, x: Tensor):
        if not isinstance(inpaint, Sequence) or len(inpaint) != 2:
            raise TypeError(f"inpaint: expected (known, mask), got {describe(inpaint)}")
        known, mask = inpaint
        check_like("inpaint[0]", known, "the images", x)
        if not isinstance(mask, Tensor) or mask.device != x.device or not _broadcasts(mask.shape, x.shape):
            raise ValueError(
                f"inpaint[1]: expected a mask that broadcasts to {list(x.shape)} on {x.device}, got {describe(mask)}"
            )
        self.known, self.mask = known.to(x.dtype), mask.to(x.dtype)
        self.keys, self.index = loop.keys(key), loop.rows.indices_on(x.device).unbind()
        self.table = loop.rows.table(_level_behind, *loop.where)

    def __call__(self, x: Tensor, i: int) -> Tensor:
        return torch.lerp(x, ops.noising(self.known, self.keys[i], self.index[i], self.table), self.mask)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    return len(shape) <= len(to) and all(n in (1, size) for n, size in zip(reversed(shape), reversed(to), strict=False))


class SamplingLoop:
    """The steps of a table of rows, from x_T or the x_t of any step.

    Args:
        rows: the sampler.
        model: the network.
        steering: what is done to its outputs.
        batch, device, dtype: how many samples, where, and theirs.
        first: how many of the first rows are left out.
        number: the number of the rows' first step, which its noise goes by.
        self_condition: the model's argument for the last step's x_0_hat; None for none.
    """

    def __init__(
        self,
        rows: StepRows,
        model: Model,
        steering: Steering,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
        first: int = 0,
        number: int = 0,
        self_condition: str | None = None,
    ):
        self.rows, self.model, self.steering = rows, model, steering
        self.first, self.number, self.self_condition = first, number, self_condition
        self.where = (device, torch.float64 if dtype is torch.float64 else torch.float32)
        self.composes, self.scale = steering.composes, None
        if steering.guidance_scale is not None:
            self.scale = as_samples("guidance_scale", steering.guidance_scale, batch, *self.where)
        self.tables = {make: rows.table(make, *self.where) for make in self._composed()}
        read = rows if steering.denoised_fn is None else rows.of_x_0
        self.table = read.on(*self.where)
        self.carries_x_0 = rows.history > 0 and not rows.keeps
        if steering.thresholding is not None and not read.reads_x_0:
            raise ValueError("thresholding: expected steps that read x_0_hat, got ones that do not (of 'previous')")

    def _composed(self) -> list[Callable[[StepRows], Tensor]]:
        """The tables that this steering reads, made before the first step."""
        steering, rows = self.steering, self.rows
        made: list[Callable[[StepRows], Tensor]] = []
        if steering.denoised_fn is not None or steering.thresholding is not None:
            made.append(_to_x_0)
        if steering.cond_fn is not None:  # moves the mean (Dhariwal & Nichol 2021, algorithm 1) or the score (their 2)
            made += [_to_mean, _exponent] if rows.draws_posterior else [_to_score]
        return made

    def outputs(self, model_kwargs: Mapping[str, Any] | None) -> Outputs:
        return Outputs(self.model, self.rows.variance_type, model_kwargs, self.steering, self.self_condition)

    def history(self, x: Tensor) -> History:
        """What the first step finds of earlier ones: what no row reads yet, and behind it the model's estimate, zeros."""
        return [x] * self.rows.history + ([torch.zeros_like(x)] if self.self_condition else [])

    def keys(self, key: Tensor) -> tuple[Tensor, ...]:
        """By row, the key at the row's step."""
        return keys_of(key, self.rows.indices_on(key.device).flip(0) + self.number).unbind()

    def _noise_at(self, noise: Tensor | StepNoise) -> Callable[[Tensor, int], Tensor | None]:
        if not self.rows.adds_noise:
            return lambda x, i: None
        if not isinstance(noise, Tensor):
            return noise
        keys = self.keys(noise)
        return lambda x, i: keys[i]

    def __call__(
        self,
        x: Tensor,
        noise: Tensor | StepNoise,
        model_kwargs: Mapping[str, Any] | None = None,
        progress: bool = False,
        edit: Callable[[int, Tensor, Tensor], Tensor] | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Tensor:
        """The sample after the last step.

        Args:
            x: the sample at the first step.
            noise: the steps': a key, a step's number being how far it is from the first; or what is asked for each step's.
            model_kwargs: passed on to the model.
            progress: show a bar.
            edit: (i, x_prev, x_0_hat) -> the sample to go on with.
            trajectory: takes each step's sample.
        """
        rows, outputs, index = self.rows, self.outputs(model_kwargs), self.rows.indices_on(x.device).unbind()
        noise_at = self._noise_at(noise)
        ts = rows.timesteps_on(x.device)[:, None].repeat(1, len(x)).unbind()  # a copy: a model may change its t
        history = self.history(x)
        for i in tqdm(range(len(rows) - 1 - self.first, -1, -1), desc="sampling", unit="step", disable=not progress):
            x, x_0, history = self.step(outputs, x, ts[i], index[i], noise_at(x, i), history, edit is not None)
            if edit is not None:
                x = edit(i, x, x_0)
            if trajectory is not None:
                trajectory.append(x)
        return x

    def step(
        self, outputs: Outputs, x: Tensor, t: Tensor, index: Tensor, noise: Tensor | None, history: History, return_x_0: bool
    ) -> tuple[Tensor, Tensor, History]:
        """(x_prev, x_0_hat where it is wanted, the next step's history)"""
        keeps, scale, bound, shift = self.rows.keeps, self.scale, None, None
        history, estimate = history[: self.rows.history], history[self.rows.history :]
        output, uncond = outputs(x, t.clone() if self.composes else t, *estimate)
        if self.composes:
            output, bound, shift = self._steered(output, uncond, x, t, index, outputs.kwargs)
            uncond = scale = None
        given = (return_x_0 or self.carries_x_0 or bool(estimate), uncond, scale, bound, history, keeps)
        x_prev, x_0, kept = ops.reverse_step(output, x, noise, index, self.table, *given)
        if shift is not None:
            x_prev = ops.noising(x_prev, shift, index, self.tables[_to_mean])
        carried = [kept if keeps else x_0, *history[:-1]] if history else []
        return x_prev, x_0, carried + [x_0] * len(estimate)

    def _steered(
        self, output: Tensor, uncond: Tensor | None, x: Tensor, t: Tensor, index: Tensor, kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(the output to step with, x_0_hat's own bound, what moves the mean by sigma^2 of it)"""
        steering, bound, shift = self.steering, None, None
        mean, *v = (output,) if output.shape == x.shape else output.split(x.shape[1], 1)
        if uncond is not None and self.scale is not None:
            mean = guided(mean, uncond[:, : x.shape[1]] if v else uncond, self.scale, steering.guidance_rescale)
        if steering.cond_fn is not None:
            by_x = steering.cond_fn(x, t, **kwargs)
            check_like("cond_fn's gradient", by_x, "x_t", x)
            if not self.rows.draws_posterior:
                mean = ops.noising(mean, by_x, index, self.tables[_to_score])
            elif v:  # an index of no dimension is read by the host
                shift = by_x * (2 * self.tables[_exponent].index_select(0, index.view(1)) * v[0]).exp()
            else:
                shift = by_x
        if steering.denoised_fn is not None or steering.thresholding is not None:
            x_0 = ops.noising(x, mean, index, self.tables[_to_x_0])
            if steering.denoised_fn is not None:
                x_0 = mean = steering.denoised_fn(x_0, t)
                check_like("denoised_fn's x_0_hat", x_0, "x_t", x)
            if steering.thresholding is not None:
                bound = dynamic_bound(x_0, steering.thresholding)
        return torch.cat((mean, *v), 1) if v else mean, bound, shift


# ---- what a loop is asked for, checked ----


def any_seed() -> int:
    """Drawn from torch's default generator on the CPU, before the first step: the one value that the host reads."""
    return int(torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device="cpu"))


def check_seeds(seed: int | Tensor | None, shape: tuple[int, ...]) -> None:
    if isinstance(seed, Tensor) and seed.shape != shape[:1]:
        raise ValueError(f"seed: expected an int or [{shape[0]}] seeds, one an image, got {describe(seed)}")


def first_of(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    key: Tensor,
    x_T: Tensor | None,  # noqa: N803
    x_t: Tensor | None,
    start: int,
) -> Tensor:
    """The sample that a loop begins with."""
    name, given = ("x_t", x_t) if start else ("x_T", x_T)
    if start and x_t is None:
        raise ValueError(f"x_t: expected the sample at the first level walked, since start is {start}, got None")
    if (x_T if start else x_t) is not None:
        raise ValueError("x_T, x_t: expected x_t with a start above 0 and x_T without, got the other")
    if given is None:
        return randn(key, shape, dtype)
    check_data(name, given)
    if given.shape != shape or given.device != key.device:
        raise ValueError(f"{name}: expected {list(shape)} on {key.device}, got {describe(given)}")
    return given.detach().to(dtype)


def edit_of(
    rows: StepRows,
    callback: Callable[[int, Any, Tensor, Tensor], Tensor | None] | None,
    inpaint: Inpainting | None,
) -> Callable[[int, Tensor, Tensor], Tensor] | None:
    """What is done to a sample between two steps."""
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected a callable, got {describe(callback)}")
    if inpaint is not None and not rows.takes_edits:
        raise ValueError(f"inpaint: expected None, since {NO_EDITS}")
    if callback is None and inpaint is None:
        return None
    timesteps = rows.timesteps.tolist()

    def edit(i: int, x: Tensor, x_0: Tensor) -> Tensor:
        x = x if inpaint is None else inpaint(x, i)
        before = _version(x)
        changed = None if callback is None else callback(i, timesteps[i], x, x_0)
        if not rows.takes_edits and (changed is not None or _version(x) != before):
            raise ValueError(f"callback: expected it to leave x as it is and to return None, since {NO_EDITS}")
        if changed is None:
            return x
        check_like("callback's x", changed, "x_t", x)
        return changed.to(x.dtype)

    return edit


def _version(x: Tensor) -> int:
    """How often it was written into; of a tensor of inference mode nobody counts."""
    return 0 if x.is_inference() else x._version


# ---- what composes outside the step's kernel ----


def guided(cond: Tensor, uncond: Tensor, scale: Tensor, rescale: float = 0.0) -> Tensor:
    """uncond + scale (cond - uncond) (Ho & Salimans 2022), `rescale` of the way to cond's deviation in each sample (Lin et al.
    2023, equations 14 to 16)."""
    cond, uncond = cond.to(scale.dtype), uncond.to(scale.dtype)
    output = torch.lerp(uncond, cond, scale.view(-1, *(1,) * (cond.dim() - 1)))
    if not rescale:
        return output
    over = tuple(range(1, cond.dim()))
    factor = cond.std(over, keepdim=True) / output.std(over, keepdim=True)
    return output * (1 - rescale + rescale * factor)


def dynamic_bound(x_0: Tensor, percentile: float) -> Tensor:
    """`[B]`: each sample's percentile of abs(x_0_hat), and 1 at least (Saharia et al. 2022, 2.3). (torch.quantile takes no more
    than 2^24 elements.)"""
    values = x_0.flatten(1).abs().to(torch.promote_types(x_0.dtype, torch.float32)).sort(1).values
    place = percentile * (values.shape[1] - 1)
    low, high = values[:, math.floor(place)], values[:, math.ceil(place)]
    return (low + (place % 1) * (high - low)).clamp(min=1.0)


# ---- tables of two columns, for what `ops.noising` composes: first x's, then the other's ----


def _to_x_0(rows: StepRows) -> Tensor:
    """x_0_hat before its clamp, of x and the output."""
    return pack(NoisingRow(rows.columns.p_x, rows.columns.p_o))


def _to_score(rows: StepRows) -> Tensor:
    """The output whose eps_hat is b times the gradient less: x_0_hat is b^2 / a more."""
    a, b = rows.levels()
    moved = b**2 / (a * rows.columns.p_o)
    if not bool(moved.isfinite().all()):
        raise ValueError(
            "cond_fn: expected a sampler whose every step begins with some noise and some of x_0, got one without (a flow's "
            "walk begins with noise alone: give steps as a list of timesteps below T)"
        )
    return pack(NoisingRow(torch.ones_like(a), moved))


def _to_mean(rows: StepRows) -> Tensor:
    """The mean and sigma^2 times the gradient: the last step, which adds no noise, is not moved."""
    return pack(NoisingRow(torch.ones_like(rows.columns.sigma), rows.columns.sigma**2))


def _exponent(rows: StepRows) -> Tensor:
    return rows.columns.k_v


def _level_behind(rows: StepRows) -> Tensor:
    """x_t of x_0 and noise, at the level that each row ends at: that of the row after it, and after row 0 without noise."""
    a, b = rows.levels()
    if b[0] == 0 or bool((b[1:] / a[1:] < b[:-1] / a[:-1]).any()):
        more = "adds noise before a step: leave s_churn 0" if rows.stream == "churn" else "walks towards more"
        raise ValueError(f"inpaint: expected a sampler that walks towards less noise, got one that {more}")
    return pack(NoisingRow(torch.cat((torch.ones_like(a[:1]), a[:-1])), torch.cat((torch.zeros_like(b[:1]), b[:-1]))))
