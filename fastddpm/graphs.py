"""Training steps and sampling loops as CUDA graphs: recorded once, replayed without Python. On a CPU they run uncaptured.

Not yet run on a GPU. docs/graphs.md says what is captured, what is static and what is refused.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .averaging import ema_update_
from .bits_per_dim import parts_of, share_of
from .checks import as_int, as_shape, check_data, check_key, check_no_grad, describe
from .diffusion import GaussianDiffusion
from .importance import LossSecondMoment
from .models import Model, device_of
from .noise import advance, noise_key, randn
from .optim import AdamW
from .samplers import StepRows
from .sampling import any_seed, check_seeds

WARM_UPS = 3
"""Training steps before a capture: kernels are compiled and chosen in them, and the optimizer makes its moments."""
WHOLE_STEPS = 250
"""Up to this length a loop is one graph, a node for each launch, where a quarter of the device's memory is free."""

NOT_REPLAYED = ("callback", "inpaint", "start", "x_T", "x_t", "noise", "return_trajectory")
"""What `sample` takes and a graph cannot."""


class GraphedTrainingStep:
    """A whole training step: the model, its loss, the gradients, their clipping, the optimizer, the average, the key's advance.

    On a GPU the first call captures a graph, and later ones replay it; elsewhere every call runs the same step uncaptured. A
    replay reads the batch, the model's arguments and the learning rate where the graph found them: the first two are copied
    there, the third is each group's "lr", a tensor from here on (torch's schedulers fill it; `group["lr"].fill_(lr)`).

    Args:
        diffusion: its settings, as they are now.
        model: a module, trained in place.
        optimizer: an `optim.AdamW` of its weights, which clips and averages by itself; or a `torch.optim.Adam` or `AdamW`, on a
            GPU with capturable=True.
        key: int64 `[B, 2]` of `noise_key(seed, step, B)`, B the largest batch. Each call takes as many rows as its batch has,
            then advances all. (A resumed run: `step.key.copy_(..)`.)
        average: a copy of the model, moved by 1 - decay of the way to it after each step; None for none.
        decay: of the average.
        clip_norm: what the norm of all gradients is clipped to; None for no clipping.
        autocast: the dtype that the model runs in by autocast, its weights left as they are; None for none.
        micro_batches: gradient accumulation: in how many parts, one after the other, a batch goes through the model, with the
            noise and the mean of the losses of the whole.
        t_sampler: as `GaussianDiffusion.training_loss` takes it; it takes in the losses of each part in turn.
        scaler: must be None. A GradScaler is refused: bfloat16 needs none.
        capture: False to run uncaptured on a GPU too.

    Raises:
        TypeError, ValueError: an argument that a graph cannot hold, named.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        key: Tensor,
        average: torch.nn.Module | None = None,
        decay: float = 0.999,
        clip_norm: float | None = None,
        autocast: torch.dtype | None = None,
        micro_batches: int = 1,
        t_sampler: LossSecondMoment | None = None,
        scaler: None = None,
        capture: bool = True,
    ):
        check_key("key", key)
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {describe(model)}")
        if scaler is not None:
            raise ValueError(f"scaler: expected None (autocast in bfloat16 needs no loss scale), got {describe(scaler)}")
        if as_int("micro_batches", micro_batches) < 1:
            raise ValueError(f"micro_batches: expected 1 or more, got {micro_batches}")
        self.captures = capture and _has_graphs(key.device)
        if not isinstance(optimizer, torch.optim.Adam):
            raise TypeError(f"optimizer: expected torch.optim.AdamW or Adam, got {describe(optimizer)}")
        if isinstance(optimizer, AdamW):
            if average is not None and optimizer.average is not None:
                raise ValueError("average: expected None, since the optimizer has one (ema_decay), got a module")
            if clip_norm is not None and optimizer.max_grad_norm is not None:
                raise ValueError(f"clip_norm: expected None, since the optimizer clips (max_grad_norm), got {clip_norm}")
        elif self.captures and not all(group["capturable"] for group in optimizer.param_groups):
            raise ValueError("optimizer: expected one with capturable=True in every group, to be captured")
        # a copy: whoever changes the caller's changes no graph, nor frees what one reads
        self.diffusion, self.model, self.optimizer, self.key = copy.copy(diffusion), model, optimizer, key
        self.average, self.decay, self.clip_norm, self.autocast = average, decay, clip_norm, autocast
        self.micro_batches, self.t_sampler = micro_batches, t_sampler
        self._graph: _Graph | None = None
        self._begin_anew()
        optimizer.register_load_state_dict_post_hook(self._begin_anew)

    def __call__(self, x_0: Tensor, model_kwargs: Mapping[str, Any] | None = None) -> Tensor:
        """One step on a batch of data.

        Returns:
            The step's loss, a scalar on the device, detached and the caller's own: to be read now, later or never.
        """
        check_data("x_0", x_0)
        if len(x_0) > len(self.key):
            raise ValueError(f"x_0: expected a batch of {len(self.key)} at most (the key's rows), got {len(x_0)}")
        if not all(group["lr"] is lr for group, lr in zip(self.optimizer.param_groups, self._rates, strict=True)):
            raise ValueError("lr: expected the tensor that it was made (group['lr'].fill_(lr)), got another in its place")
        inputs = (x_0, dict(model_kwargs or {}))
        if not self.captures:
            return self._step(*inputs)
        if self._graph is None:
            if isinstance(self.optimizer, AdamW):
                with _put_back(self._others, self.key.device):
                    _beside(lambda: self._gradients(*inputs), self.key.device)
                self.optimizer.make_static()
            with _put_back(self._tensors, self.key.device):
                for _ in range(WARM_UPS):
                    _beside(lambda: self._step(*inputs), self.key.device)
            self._graph = _Graph(self._step, inputs, self.key.device)
        if not self._graph.takes(inputs):
            return self._step(*inputs)
        if isinstance(self.optimizer, AdamW):
            self.optimizer.zero_grad()  # what others have left in the gradients, or put in their place
        return self._graph(inputs)

    def _step(self, x_0: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        loss = self._gradients(x_0, model_kwargs)
        clip_and_step(self.optimizer, self.clip_norm)
        if self.average is not None:
            ema_update_(self.average.parameters(), self.model.parameters(), self.decay)
        advance(self.key)
        return loss

    def _gradients(self, x_0: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        self.optimizer.zero_grad(set_to_none=self._graph is None)  # a graph goes on writing the gradients that it made
        losses, batch = [], len(x_0)
        for part in parts_of(batch, max(1, -(-batch // self.micro_batches))):
            data, kwargs = x_0[part], share_of(model_kwargs, part, batch)
            with torch.autocast(self.key.device.type, self.autocast, enabled=self.autocast is not None):
                loss = self.diffusion.training_loss(self.model, data, self.key[:batch][part], kwargs, t_sampler=self.t_sampler)
            loss = loss if len(data) == batch else loss * (len(data) / batch)
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _begin_anew(self, *_: Any) -> None:
        """The learning rates as tensors, and no graph: an optimizer that has loaded a state has other tensors."""
        self._graph, groups = None, self.optimizer.param_groups
        for group in groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=self.key.device)
        self._rates = [group["lr"] for group in groups]

    def _tensors(self) -> Iterator[Tensor]:
        """All that a step changes."""
        yield from self._others()
        if isinstance(self.optimizer, AdamW):
            yield from self.optimizer.tensors
        else:
            yield from (x for state in self.optimizer.state.values() for x in state.values() if isinstance(x, Tensor))

    def _others(self) -> Iterator[Tensor]:
        """All but the optimizer's."""
        for module in filter(None, (self.model, self.average)):
            yield from (*module.parameters(), *module.buffers())
        yield from (x for x in vars(self.t_sampler or object).values() if isinstance(x, Tensor))
        yield self.key


class GraphedSampler:
    """`GaussianDiffusion.sample` for one shape: the images of a seed are the same bits.

    On a GPU the first call captures a graph, and later ones replay it; elsewhere every call runs the same loop uncaptured. The
    seed of each call decides whether its noise is fresh. The model's weights are read where they lie: of a model that is
    trained on, in place, the next call's images are the new weights'.

    Args:
        diffusion: its settings, as they are now.
        model, shape, sampler, steps, clip_denoised, device: as `GaussianDiffusion.sample` takes them.
        whole: True for one graph of all steps, False for one of a step, replayed for each; None: as the number of steps and the
            device's memory have it.
        dtype, clip_range, spacing, guidance_scale to cond_fn, options: as `GaussianDiffusion.sample` takes them. What wants
            Python between the steps, or another beginning than noise, is refused by name.

    Raises:
        TypeError, ValueError: an argument of a wrong type or shape, or one that a graph cannot hold, named.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        model: Model,
        shape: tuple[int, ...] | torch.Size,
        sampler: str | StepRows | None = None,
        steps: int | Sequence[float] | None = None,
        clip_denoised: bool | None = None,
        device: torch.device | str | None = None,
        whole: bool | None = None,
        **options: Any,
    ):
        options.pop("progress", None)  # a replay has no bar
        given = {name: options.pop(name, None) for name in NOT_REPLAYED}
        refused = [name for name, value in given.items() if isinstance(value, Tensor) or value]
        if refused:
            raise ValueError(
                f"{', '.join(refused)}: expected None (a replay begins with noise and calls no Python between steps)"
            )
        self.diffusion, self.shape, self.device = copy.copy(diffusion), as_shape("shape", shape), device_of(model, device)
        self.dtype = options.pop("dtype", torch.float32)
        self.loop = self.diffusion._loop(model, self.shape, self.device, self.dtype, sampler, steps, clip_denoised, **options)
        self.whole = _fits_whole(len(self.loop.rows), self.device) if whole is None else whole
        self._graph: _Graph | None = None

    @torch.no_grad()
    def __call__(
        self, seed: int | Tensor | None = None, model_kwargs: Mapping[str, Any] | None = None, first_sample: int = 0
    ) -> Tensor:
        """Images, of the shape and dtype, the caller's own.

        Args:
            seed: as `sample` takes it; a tensor may lie on the device.
            model_kwargs: passed on to the model; tensors are copied to where the graph reads them.
            first_sample: as `sample` takes it.
        """
        check_seeds(seed, self.shape)
        seed = any_seed() if seed is None else seed
        streams = ("initial", self.loop.rows.stream)
        initial, reverse = (noise_key(seed, 0, self.shape[0], first_sample, stream, self.device) for stream in streams)
        x, kwargs = randn(initial, self.shape, self.dtype), dict(model_kwargs or {})
        last = torch.full((1,), len(self.loop.rows) - 1, device=self.device)
        history = [] if self.whole else [h.clone() for h in self.loop.history(x)]
        inputs = (x, reverse, kwargs) if self.whole else (x, reverse, kwargs, last, history)
        run, times = (self.loop, 1) if self.whole else (self._step, len(self.loop.rows))
        if _has_graphs(self.device):
            if self._graph is None:
                with _put_back(lambda: [x, reverse, last, *history], self.device):  # what a step changes; never the caller's
                    _beside(lambda: run(*inputs), self.device)
                self._graph = _Graph(run, inputs, self.device)
            if self._graph.takes(inputs):
                return self._graph(inputs, times)
        for _ in range(times):
            x = run(*inputs)
        return x

    def _step(self, x: Tensor, key: Tensor, model_kwargs: dict[str, Any], index: Tensor, history: list[Tensor]) -> Tensor:
        """One step in place, and on to the next."""
        t = self.loop.rows.timesteps_on(self.device)[index].repeat(len(x))
        noise = key if self.loop.rows.adds_noise else None
        x_prev, _, kept = self.loop.step(self.loop.outputs(model_kwargs), x, t, index, noise, history, return_x_0=False)
        x.copy_(x_prev)
        for mine, new in reversed(list(zip(history, kept, strict=True))):  # the oldest first: each takes the one before it
            mine.copy_(new)
        advance(key)
        index -= 1
        return x


class _Graph:
    """A captured call: inputs like those that it was captured with are copied to where it reads them, others refused."""

    def __init__(self, run: Callable[..., Tensor], inputs: tuple, device: torch.device):
        if torch.is_autocast_enabled(device.type) and torch.is_autocast_cache_enabled():
            raise RuntimeError(
                "autocast: expected it inside what is captured (GraphedTrainingStep's autocast, or the model's own), got it "
                "around the call, where a replay would read weights that were cast before the capture"
            )
        leaves, self.kind = tree_flatten(inputs)
        self.inputs = [_static(x, device) for x in leaves]
        self.graph, self.result = _captured(lambda: run(*tree_unflatten(self.inputs, self.kind)), device)
        self.warned = False

    def takes(self, inputs: tuple) -> bool:
        """Whether it can be replayed for these. Where it cannot, that is said once."""
        leaves, kind = tree_flatten(inputs)
        alike = kind == self.kind and all(map(_alike, leaves, self.inputs))
        if not alike and not self.warned:
            self.warned, shapes = True, ", ".join(describe(x) for x in leaves if isinstance(x, Tensor))
            warnings.warn(f"uncaptured, as the graph was captured with other inputs: {shapes}", RuntimeWarning, stacklevel=3)
        return alike

    def __call__(self, inputs: tuple, times: int = 1) -> Tensor:
        for mine, given in zip(self.inputs, tree_leaves(inputs), strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(given)
        for _ in range(times):
            self.graph.replay()
        return self.result.clone()


def _static(x: Any, device: torch.device) -> Any:
    if not isinstance(x, Tensor):
        return x
    check_no_grad("model_kwargs", x)
    return x.detach().to(device, copy=True)


def _alike(x: Any, mine: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(mine, Tensor):
        return x.shape == mine.shape and x.dtype == mine.dtype
    return type(x) is type(mine) and x == mine


def clip_and_step(optimizer: torch.optim.Optimizer, clip_norm: float | None) -> None:
    """Clips the norm of all the optimizer's gradients together, and steps."""
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_([x for group in optimizer.param_groups for x in group["params"]], clip_norm)
    optimizer.step()


@contextmanager
def _put_back(tensors: Callable[[], Iterable[Tensor]], device: torch.device) -> Iterator[None]:
    """Leaves these, and torch's generators, as they were before. One that is new is zeroed: a moment before its first step."""
    before = {x: x.detach().clone() for x in tensors()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for x in tensors():
            x.copy_(before[x]) if x in before else x.zero_()


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


def _fits_whole(steps: int, device: torch.device) -> bool:
    if not _has_graphs(device):
        return True
    free, total = torch.cuda.mem_get_info(device)
    return steps <= WHOLE_STEPS and 4 * free >= total


def _beside(run: Callable[[], Any], device: torch.device) -> None:
    """A call on a stream of its own, as capture wants those before it."""
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        run()
    current.wait_stream(stream)


def _captured(run: Callable[[], Tensor], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        result = run()
    return graph, result
