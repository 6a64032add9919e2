"""A LightningModule: the noise and t of a batch follow from the step, so that a resumed run goes on with the same noise."""

import sys

import pytorch_lightning as lightning
import torch
from digits import Network, images
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fastddpm


class Diffusion(lightning.LightningModule):
    def __init__(self, seed: int = 0):
        super().__init__()
        self.model, self.seed, self.losses = Network(), seed, []
        self.diffusion = fastddpm.GaussianDiffusion(fastddpm.NoiseSchedule.linear(1000))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x_0,) = batch
        first = self.global_rank * len(x_0)
        key = fastddpm.noise_key(self.seed, self.global_step, len(x_0), first_sample=first, device=self.device)
        loss = self.diffusion.training_loss(self.model, x_0, key)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def draw(self, images: int, steps: int = 20) -> Tensor:
        return self.diffusion.sample(self.model.eval(), (images, 1, 8, 8), "dpmpp_2m", steps=steps, seed=self.seed)


def main(steps: int = 200) -> list[float]:
    torch.manual_seed(0)
    module = Diffusion()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", devices=1, **quiet)
    trainer.fit(module, DataLoader(TensorDataset(images()), 64, shuffle=True, drop_last=True))
    losses = torch.stack(module.losses).tolist()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}; drawn: {list(module.draw(4).shape)}")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
