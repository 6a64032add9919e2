"""`python -m benchmarks.drop_ins [FOLDER]`: objects of diffusers, OpenAI's code and lucidrains', as they are and patched.

Fills the tables of docs/integrations.md. FOLDER holds checkouts of what is on no index, in folders `guided` (guided-diffusion)
and `improved` (improved-diffusion); rows of what is not found are left out. The network is a tensor that was computed before.
"""

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastddpm as fd

from . import clock, table
from .docs import ROOT, between, markdown

SHAPES = ((1, 3, 8, 8), (16, 3, 32, 32), (64, 3, 64, 64))
WITH, WITHOUT = "patched", "original"
STEPS, AT = 50, 25
READS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero")
UPLOADS = ("lift_fresh", "lift_fresh_copy", "scalar_tensor")
BUDGET = 2.0
"""Seconds a case."""


class Case(NamedTuple):
    make: Callable[[], Any]
    """The peer's object."""
    call: Callable[[Any, Tensor, Tensor], Any]
    """(object, x, another of its shape: the noise, or the network's output) -> a call of its."""
    draws: bool = False
    """Whether it draws noise, so that there is a philox to compare."""
    shapes: tuple[tuple[int, ...], ...] = SHAPES


def objects(case: Case) -> dict[str, Any]:
    """{column: an object of its own}."""
    made = {name: case.make() for name in (WITHOUT, WITH, *(["philox"] if case.draws else []))}
    for name in list(made)[1:]:
        fd.patch(made[name], noise="torch" if name == WITH else "philox")
    return made


def calls(case: Case, shape: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    torch.manual_seed(0)
    x, other = torch.randn(shape), torch.randn(shape)
    return {name: _bound(case.call, each, x, other) for name, each in objects(case).items()}


def _bound(call: Callable[..., Any], *given: Any) -> Callable[[], Any]:
    return lambda: call(*given)


# ---- what a call does ----


class Counts(TorchDispatchMode):
    """Ops, passes over tensors of the data's size (each read or written once an op), uploads and host reads."""

    def __init__(self, elements: int):
        super().__init__()
        self.elements, self.ops, self.passes, self.uploads, self.reads = elements, 0, 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view:
            return out
        self.ops += 1
        self.reads += name in READS
        self.uploads += name in UPLOADS
        self.passes += sum(x.numel() >= self.elements for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
        return out


def counted(call: Callable[[], Any], shape: tuple[int, ...]) -> Counts:
    """Of a warm call. A table that numpy hands over is an upload on a GPU."""
    call()
    from_numpy = torch.from_numpy
    with Counts(torch.Size(shape).numel()) as counts:

        def counting(array):
            counts.uploads += 1
            return from_numpy(array)

        torch.from_numpy = counting
        try:
            call()
        finally:
            torch.from_numpy = from_numpy
    return counts


# ---- the tables ----


def speeds(cases: dict[str, Case]) -> str:
    rows = []
    for title, case in cases.items():
        for shape in case.shapes:
            times = clock.in_turn(calls(case, shape), BUDGET)
            ratios = {name: clock.ratio(times, WITHOUT, name) for name in times if name != WITHOUT}
            before = table.duration(clock.spread(times[WITHOUT])["median"])
            cells = [table.ratio({"ratio": ratios[name]}) if name in ratios else "" for name in (WITH, "philox")]
            rows.append([title, "x".join(map(str, shape)), before, *cells])
            print(" | ".join(rows[-1]), flush=True)
    return markdown(["", "shape", "as it is", "patched", "patched, philox"], rows)


def counts(cases: dict[str, Case]) -> str:
    rows = []
    for title, case in cases.items():
        shape = case.shapes[-1] if len(case.shapes) == 1 else (16, 3, 32, 32)
        both = [counted(call, shape) for call in calls(case, shape).values()]
        for_each = [[getattr(each, name) for each in both] for name in ("ops", "passes", "uploads", "reads")]
        rows.append([title, *(" / ".join(map(str, values)) for values in for_each)])
    return markdown(["as it is / patched / philox", "ops", "full passes", "uploads", "host reads"], rows)


# ---- diffusers ----


def diffusers_cases() -> dict[str, Case]:
    import diffusers
    from diffusers.training_utils import EMAModel

    def scheduler(cls: str) -> Callable[[], Any]:
        def make():
            made = getattr(diffusers, cls)()
            made.set_timesteps(STEPS)
            return made

        return make

    def add_noise(each: Any, x: Tensor, noise: Tensor) -> Any:
        return each.add_noise(x, noise, torch.arange(len(x)))

    def step(each: Any, x: Tensor, output: Tensor) -> Any:
        if hasattr(each, "_step_index"):  # the schedulers that count: from the same place again
            each._step_index = AT
        return each.step(output, each.timesteps[AT], x)

    unet = diffusers.UNet2DModel(32, 3, 3, block_out_channels=(128, 256, 256, 256), norm_num_groups=32)

    def ema_step(each: Any, x: Tensor, output: Tensor) -> Any:
        return each.step(unet.parameters())

    size = (sum(p.numel() for p in unet.parameters()),)
    return {
        "DDPMScheduler.add_noise": Case(scheduler("DDPMScheduler"), add_noise),
        "DDPMScheduler.step": Case(scheduler("DDPMScheduler"), step, draws=True),
        "DDIMScheduler.step": Case(scheduler("DDIMScheduler"), step),
        "EMAModel.step": Case(lambda: EMAModel(unet.parameters()), ema_step, shapes=(size,)),
    }


# ---- OpenAI's ----

HYBRID_SHAPES = ((1, 3, 8, 8), (128, 3, 32, 32))


@cache
def with_variances(output: Tensor) -> Tensor:
    return torch.cat((output, output.tanh()), 1).requires_grad_()


def openai_cases(folder: Path) -> dict[str, Case]:
    """guided-diffusion's, of the usual thousand steps and a learned range; none where there is no checkout."""
    if not (folder / "guided").exists():
        return {}
    sys.path.append(str(folder / "guided"))
    gaussian, respace, fp16 = (
        import_module(f"guided_diffusion.{name}") for name in ("gaussian_diffusion", "respace", "fp16_util")
    )

    def diffusion(spacing: str = "1000") -> Any:
        return respace.SpacedDiffusion(
            respace.space_timesteps(1000, spacing),
            betas=gaussian.get_named_beta_schedule("linear", 1000),
            model_mean_type=gaussian.ModelMeanType.EPSILON,
            model_var_type=gaussian.ModelVarType.LEARNED_RANGE,
            loss_type=gaussian.LossType.RESCALED_MSE,
        )

    def model(output: Tensor) -> Callable[..., Tensor]:
        return lambda *given: with_variances(output)

    def loss(each: Any, x: Tensor, output: Tensor) -> None:
        with_variances(output).grad = None
        each.training_losses(model(output), x, torch.arange(len(x)))["loss"].mean().backward()

    def step(name: str) -> Callable[..., Any]:
        def call(each: Any, x: Tensor, output: Tensor) -> Any:
            with torch.no_grad():
                return getattr(each, name)(model(output), x, torch.arange(len(x)))

        return call

    def bits(each: Any, x: Tensor, output: Tensor) -> Any:
        return each.calc_bpd_loop(model(output), x)

    module = torch.nn.Sequential(*(torch.nn.Conv2d(64, 64, 3) for _ in range(60)))
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    size = (sum(p.numel() for p in module.parameters()),)
    steps = {
        f"SpacedDiffusion.{name}": Case(diffusion, step(name), True, HYBRID_SHAPES) for name in ("p_sample", "ddim_sample")
    }
    return {
        "SpacedDiffusion.training_losses, hybrid": Case(diffusion, loss, True, HYBRID_SHAPES),
        **steps,
        "SpacedDiffusion.calc_bpd_loop, 20 steps": Case(lambda: diffusion("20"), bits, True, HYBRID_SHAPES),
        "MixedPrecisionTrainer._compute_norms": Case(
            lambda: fp16.MixedPrecisionTrainer(model=module), lambda each, x, output: each._compute_norms(), shapes=(size,)
        ),
    }


def main() -> None:
    cases = {**diffusers_cases(), **(openai_cases(Path(sys.argv[1])) if len(sys.argv) > 1 else {})}
    document = ROOT / "docs" / "integrations.md"
    inside = {"speeds": speeds, "counts": counts}
    document.write_text(between(document.read_text(), "drop-ins", lambda name: inside[name](cases)))


if __name__ == "__main__":
    main()
