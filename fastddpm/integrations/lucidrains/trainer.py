"""lucidrains' Trainer: its diffusion and its average are patched with it, and its loop waits for the device once a step."""

import math
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from tqdm.auto import tqdm

from ..patch import Method, Peer
from ..update import Update, taken, update
from .fused import fused


def train(self: Any) -> None:
    accelerator, total, every = self.accelerator, self.train_num_steps, self.save_and_sample_every
    with tqdm(initial=self.step, total=total, disable=not accelerator.is_main_process) as bar:
        while self.step < total:
            with fused(_inner(self)):
                for _ in range(min(total - self.step, every - self.step % every)):
                    _step(self, bar)
            if accelerator.is_main_process and self.step % every == 0:
                _milestone(self)
    accelerator.print("training complete")


def _step(self: Any, bar: tqdm) -> None:
    accelerator = self.accelerator
    self.model.train()
    total: Any = 0.0
    for _ in range(self.gradient_accumulate_every):
        data = next(self.dl).to(accelerator.device)
        with accelerator.autocast():
            loss = self.model(data) / self.gradient_accumulate_every
        total = total + loss.detach()
        accelerator.backward(loss)
    accelerator.wait_for_everyone()
    _clipped_step(self)
    self.opt.zero_grad()
    accelerator.wait_for_everyone()
    self.step += 1
    if accelerator.is_main_process:
        self.ema.update()
        bar.set_description(f"loss: {float(total):.4f}")  # a read that waits: where all of the step is under way
    bar.update(1)


def _clipped_step(self: Any) -> None:
    optimizer = _inner(self)
    if not taken(optimizer):
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.opt.step()
        return
    optimizer.max_grad_norm = self.max_grad_norm
    try:
        self.opt.step()
    finally:
        optimizer.max_grad_norm = None


def _inner(self: Any) -> Any:
    """The optimizer, which accelerate's has inside."""
    return getattr(self.opt, "optimizer", self.opt)


def _milestone(self: Any) -> None:
    """As theirs: samples, their FID, a checkpoint."""
    theirs, milestone = import_module(PEER.module), self.step // self.save_and_sample_every
    self.ema.ema_model.eval()
    batches = theirs.num_to_groups(self.num_samples, self.batch_size)
    images = torch.cat([self.ema.ema_model.sample(batch_size=n) for n in batches])
    path = self.results_folder / f"sample-{milestone}.png"
    theirs.utils.save_image(images, str(path), nrow=int(math.sqrt(self.num_samples)))
    fid = self.fid_scorer.fid_score() if self.calculate_fid else None
    if self.calculate_fid:
        self.accelerator.print(f"fid_score: {fid}")
    if not self.save_best_and_latest_only:
        self.save(milestone)
        return
    if self.best_fid > fid:
        self.best_fid = fid
        self.save("best")
    self.save("latest")


def _parts(trainer: Any) -> Iterable[Any]:
    average = getattr(trainer, "ema", None)  # the main process's
    parts = [trainer.accelerator.unwrap_model(trainer.model)]
    return parts if average is None else [*parts, average, average.ema_model]  # one of a patched diffusion is a patched one


def optimizer(self: Any) -> Update:
    accelerator, left = self.accelerator, ("the average, which is every some steps, of a decay of its own",)
    weights = {id(p) for group in self.opt.param_groups for p in group["params"]}
    why_not = ""
    if accelerator.scaler is not None or accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        why_not = "accelerate scales the loss, or shards the weights"
    elif weights != {id(p) for p in self.model.parameters()}:
        why_not = "its weights are not all the model's"
    return update(_inner(self), "all weights in two passes with their clipping", left, why_not)


PEER = Peer(
    "denoising_diffusion_pytorch.Trainer",
    "denoising_diffusion_pytorch.denoising_diffusion_pytorch",
    (Method(train, "fused Adam while it trains; the loss is read once a step, after the step was launched"),),
    left=("the average's reads of its own counters, two a step", "the copy of a batch to the device, which waits"),
    parts=_parts,
    update=optimizer,
)
PEERS = {PEER.name: PEER}
