"""What `benchmarks.drop_ins` times and counts: the calls of other people's objects that a loop makes at every step.

The network is a tensor that was computed before.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import cache
from importlib import import_module
from io import StringIO
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .networks import NETWORKS, Chunk

SHAPES = ((1, 3, 8, 8), (16, 3, 32, 32), (64, 3, 64, 64))
STEPS, AT = 50, 25


class Case(NamedTuple):
    make: Callable[[], Any]
    """The peer's object."""
    call: Callable[[Any, Tensor, Tensor], Any]
    """(object, x, another of its shape: the noise, or the network's output) -> a call of its."""
    draws: bool = False
    """Whether it draws noise, so that there is a philox to compare."""
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    parts: Callable[[Any], Iterable[Any]] = lambda each: (each,)
    """What is patched of it."""
    update: bool = False
    """Whether the optimizer is patched too."""


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
            each._step_index, each.is_scale_input_called = AT, True
            each.model_outputs, each.lower_order_nums = [x, x], 2
        return each.step(output, each.timesteps[AT], x)

    unet = diffusers.UNet2DModel(32, 3, 3, block_out_channels=(128, 256, 256, 256), norm_num_groups=32)

    def ema_step(each: Any, x: Tensor, output: Tensor) -> Any:
        return each.step(unet.parameters())

    size = (sum(p.numel() for p in unet.parameters()),)
    return {
        "DDPMScheduler.add_noise": Case(scheduler("DDPMScheduler"), add_noise),
        "DDPMScheduler.step": Case(scheduler("DDPMScheduler"), step, draws=True),
        "DDIMScheduler.step": Case(scheduler("DDIMScheduler"), step),
        "EulerDiscreteScheduler.step": Case(scheduler("EulerDiscreteScheduler"), step),
        "EulerAncestralDiscreteScheduler.step": Case(scheduler("EulerAncestralDiscreteScheduler"), step, draws=True),
        "DPMSolverMultistepScheduler.step": Case(scheduler("DPMSolverMultistepScheduler"), step),
        "FlowMatchEulerDiscreteScheduler.step": Case(
            scheduler("FlowMatchEulerDiscreteScheduler"), step, shapes=(*SHAPES[:2], (128, 3, 32, 32), SHAPES[2])
        ),
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
    sys.modules.setdefault("blobfile", ModuleType("blobfile"))  # of the trainer's checkpoints
    sys.modules.setdefault("mpi4py", ModuleType("mpi4py")).__dict__.setdefault("MPI", None)
    names = ("gaussian_diffusion", "respace", "fp16_util", "train_util")
    gaussian, respace, fp16, train_util = (import_module(f"guided_diffusion.{name}") for name in names)

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

    def trainer() -> Any:
        given = dict.fromkeys(("data", "batch_size", "microbatch", "log_interval", "save_interval"), 1)
        given |= {"model": deepcopy(module), "diffusion": diffusion(), "ema_rate": "0.9999", "resume_checkpoint": ""}
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        made = train_util.TrainLoop(**given, lr=1e-4)
        dist.destroy_process_group()
        for p in made.model.parameters():
            p.grad = torch.randn_like(p)
        return made

    def update(each: Any, x: Tensor, output: Tensor) -> None:
        each.opt.step()
        each._update_ema()

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
        "TrainLoop: opt.step, _update_ema": Case(trainer, update, shapes=(size,), update=True),
    }


# ---- lucidrains' ----


class Network(torch.nn.Module):
    """What lucidrains' diffusion asks of a network, whose output is given."""

    channels = out_dim = 3
    self_condition = False
    output: Tensor

    def forward(self, *given: Any) -> Tensor:
        return self.output


class Flat(Chunk):
    """The MLP, of images."""

    channels = out_dim = 1
    self_condition = False

    def forward(self, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        return super().forward(x, t)


def lucidrains_cases() -> dict[str, Case]:
    """None where it can't be imported (it wants torchvision)."""
    try:
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer
    except ImportError:
        return {}

    def diffusion() -> Any:
        return GaussianDiffusion(Network(), image_size=8, timesteps=1000, objective="pred_noise")

    def p_losses(each: Any, x: Tensor, output: Tensor) -> None:
        each.model.output = output.detach().requires_grad_()
        each.p_losses(x, torch.arange(len(x))).backward()

    def p_sample(each: Any, x: Tensor, output: Tensor) -> Any:
        each.model.output = output
        with torch.inference_mode():
            return each.p_sample(x, AT)

    def trainer() -> Any:
        with TemporaryDirectory() as folder:
            for i in range(100):
                (Path(folder) / f"{i}.png").touch()  # it counts them
            model = GaussianDiffusion(Flat(16, 16), image_size=16, timesteps=1000, auto_normalize=False)
            options = {"train_num_steps": 0, "save_and_sample_every": 1 << 40, "calculate_fid": False}
            return Trainer(model, folder, results_folder=folder, **options)

    def train(each: Any, x: Tensor, output: Tensor) -> None:
        each.train_num_steps += 10
        each.dl = repeat(x)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            each.train()

    return {
        "lucidrains' p_losses": Case(diffusion, p_losses, draws=True),
        "lucidrains' p_sample": Case(diffusion, p_sample, draws=True),
        "lucidrains' Trainer.train, 10 steps of an MLP": Case(trainer, train, shapes=((16, 1, 16, 16),), update=True),
    }


# ---- whole steps, with their network ----


class Training:
    """A step of diffusers' training script: its scheduler, its average, torch's optimizer as it comes."""

    def __init__(self, network: Callable[[], torch.nn.Module]):
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel

        torch.manual_seed(0)
        self.model = network()
        self.scheduler, self.ema = DDPMScheduler(), EMAModel(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def step(self, x: Tensor, other: Tensor) -> None:
        noise, t = torch.randn_like(x), torch.randint(1000, (len(x),))
        output = self.model(self.scheduler.add_noise(x, noise, t), t)
        torch.nn.functional.mse_loss(getattr(output, "sample", output), noise).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())


class Sampling:
    """Twenty steps of a pipeline's loop."""

    def __init__(self, network: Callable[[], torch.nn.Module]):
        from diffusers import DDPMScheduler

        self.model, self.scheduler = network().eval(), DDPMScheduler()

    def loop(self, x: Tensor, other: Tensor) -> Tensor:
        self.scheduler.set_timesteps(20)
        with torch.no_grad():
            for t in self.scheduler.timesteps:
                output = self.model(x, t.expand(len(x)))
                x = self.scheduler.step(getattr(output, "sample", output), t, x).prev_sample
        return x


def whole_cases() -> dict[str, Case]:
    cases = {}
    for network in (NETWORKS["mlp"], NETWORKS["small"]):
        shapes = tuple((batch, *network.sample_shape) for batch in (1, 16))
        training, sampling = (lambda kind=kind, make=network.make: kind(make) for kind in (Training, Sampling))
        cases[f"training step, {network.title}"] = Case(training, Training.step, False, shapes, lambda t: (t.scheduler, t.ema))
        cases[f"DDPM loop of 20, {network.title}"] = Case(sampling, Sampling.loop, True, shapes, lambda s: (s.scheduler,))
    return cases
