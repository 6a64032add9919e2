"""What a finished run leaves beside its checkpoint."""

import torch

from . import ranks
from .drawing import draw
from .network import no_pipeline, save_pipeline
from .pictures import save_grid, save_loss_plot
from .report import format_table, measure_step, save_table
from .runs import Run
from .trainer import Trainer

SAMPLES = 64


def write_results(trainer: Trainer) -> str:
    """Writes samples.png, loss.png, timing.json and, where there is one, the diffusers pipeline; returns the timing table as
    text, and why there is no pipeline. All ranks draw and step, rank 0 writes."""
    out, config = trainer.out, trainer.config
    run = Run(trainer.average, config, trainer.classes)
    images, rows = draw(run, SAMPLES, device=trainer.device), measure_step(trainer) if config.process == "ddpm" else {}
    threads = f"{torch.get_num_threads()} threads" if trainer.device.type == "cpu" else torch.cuda.get_device_name()
    title = f"A training step at batch {trainer.batch_size} ({threads}), medians"
    table = format_table(rows, title) if rows else "No timings beside eager code: those are ddpm's."
    why_not = no_pipeline(config)
    if ranks.rank() > 0:
        return table
    if why_not:  # nor shall one of a run that was here before be taken for this one's
        (out / "model_index.json").unlink(missing_ok=True)
    else:
        save_pipeline(trainer.average, config, out)
    save_loss_plot(trainer.metrics.lines, out / "loss.png")
    save_grid(images, out / "samples.png")
    if rows:
        save_table(rows, out / "timing.json")
    else:
        (out / "timing.json").unlink(missing_ok=True)
    return f"{table}\n\nThere is no pipeline for diffusers: {why_not}." if why_not else table
