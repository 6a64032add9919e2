"""What a finished run leaves beside its checkpoint."""

from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor

from . import checkpoint
from .config import TrainConfig, UsageError
from .network import make_network, save_pipeline
from .pictures import save_grid, save_loss_plot
from .report import format_table, measure_step, save_table
from .trainer import Trainer

SAMPLES = 64
SAMPLING_STEPS = 250


def write_results(trainer: Trainer) -> str:
    """Writes samples.png, loss.png, timing.json and the diffusers pipeline; returns the timing table as text.

    There is no pipeline for variance "learned": diffusers' scheduler takes such an output for the variance, not its logarithm.
    """
    out, config = trainer.out, trainer.config
    if config.variance == "learned":
        (out / "model_index.json").unlink(
            missing_ok=True
        )  # nor shall one of a run that was here before be taken for this one's
    else:
        save_pipeline(trainer.average, config, out)
    save_loss_plot(trainer.metrics.lines, out / "loss.png")
    save_grid(draw(trainer.average, config, SAMPLES, device=trainer.device), out / "samples.png")
    rows = measure_step(trainer)
    save_table(rows, out / "timing.json")
    threads = f"{torch.get_num_threads()} threads" if trainer.device.type == "cpu" else torch.cuda.get_device_name()
    return format_table(rows, f"A training step at batch {config.batch_size} ({threads}), medians")


def draw(
    network: UNet2DModel,
    config: TrainConfig,
    count: int,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Images `[count, C, H, W]` in [-1, 1] by `steps` steps of the chain (None: 250, or all of a shorter one).

    Image i depends on the seed and on i, not on how many are drawn.

    Raises:
        UsageError: more steps than the chain has.
    """
    steps = min(SAMPLING_STEPS, config.timesteps) if steps is None else steps
    if not 1 <= steps <= config.timesteps:
        raise UsageError(f"steps: expected 1 .. {config.timesteps}, the run's timesteps, got {steps}")
    height, width = network.config["sample_size"]
    shape = (count, network.config["in_channels"], height, width)
    return config.diffusion().sample(network.to(device), shape, steps=steps, seed=seed, device=device)


def load_network(run: Path | str) -> tuple[UNet2DModel, TrainConfig]:
    """The averaged weights of a run's last checkpoint, in eval mode, and its settings.

    Raises:
        UsageError: no run there.
    """
    state = checkpoint.load(Path(run), "cpu")
    config = TrainConfig(**state["config"])
    network = make_network(config, state["image_shape"])
    network.load_state_dict(state["average"])
    return network.eval(), config
