"""Importance-sampled timesteps: t drawn where the loss is large, and the loss weighted so that its mean stays the same.

Nichol & Dhariwal 2021, eq. 18: p_t proportional to sqrt(E[L_t^2]), for losses whose terms differ by orders of magnitude over t,
as those of the variational bound do.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .checks import as_int, check_key, describe
from .densities import WORDS, words_of
from .noise import chosen, timesteps


class LossSecondMoment:
    """p_t proportional to the root of the mean square of the last losses of each t, mixed with a uniform share.

    Until every t has had `history` losses p is uniform, the weights are 1, and t is that of `timesteps`. Give it to
    `GaussianDiffusion.training_loss`, or use it in a loop of your own:

        t, weights = sampler.sample(key)
        losses = mse_loss(..., reduction="none")
        sampler.update(t, losses)
        (weights * losses).mean().backward()

    Nothing in it waits for the host. With `torch.distributed` initialised `update` gathers the losses of all ranks, so every
    rank holds the same state; the ranks must then update together, with batches of one size.

    Args:
        num_timesteps: T, that of the schedule.
        history: how many losses of each t are kept.
        uniform_prob: the share of the uniform distribution, in (0, 1]: no t is left out, and no weight exceeds 1 over it.
        device: where the state lives; it must be the data's device.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        num_timesteps: int,
        history: int = 10,
        uniform_prob: float = 0.001,
        device: torch.device | str | None = None,
    ):
        num_timesteps, history = as_int("num_timesteps", num_timesteps), as_int("history", history)
        if not 1 <= num_timesteps < WORDS // 2:
            raise ValueError(f"num_timesteps: expected 1 <= T < 2^29, got {num_timesteps}")
        if history < 1:
            raise ValueError(f"history: expected 1 or more, got {history}")
        if not 0 < uniform_prob <= 1:
            raise ValueError(f"uniform_prob: expected a value in (0, 1], got {uniform_prob}")
        self.num_timesteps, self.history, self.uniform_prob = num_timesteps, history, uniform_prob
        # each t's losses lie in a ring: its n-th is in column n mod history
        self._losses = torch.zeros(num_timesteps, history, dtype=torch.float32, device=device)
        self._counts = torch.zeros(num_timesteps, dtype=torch.int64, device=device)
        self._filled = torch.zeros((), dtype=torch.bool, device=device)
        self._bounds = torch.zeros_like(self._counts)
        self._weights = torch.zeros(num_timesteps, dtype=torch.float32, device=device)
        self._refresh()

    @property
    def probabilities(self) -> Tensor:
        """p, `[T]`, summing to 1: float32 (float64 on a CPU)."""
        dtype = torch.float64 if self._bounds.is_cpu else torch.float32
        return (words_of(self._bounds).to(dtype) / WORDS).masked_fill(~self._filled, 1 / self.num_timesteps)

    def sample(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """A timestep for each sample, and the weight of its loss.

        Args:
            key: int64 `[B, 2]`, the training noise's own. t is a function of the state and of it (stream 3, as `timesteps`), so
                a sample's t is the same in any batch and on any rank.

        Returns:
            t, int64 `[B]`; and 1 / (T p_t), float32 `[B]`.
        """
        check_key("key", key)
        t = torch.where(self._filled, chosen(key, self._bounds), timesteps(key, self.num_timesteps))
        return t, self._weights[t]

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        """Takes the losses of a batch into the history.

        Args:
            t: int64 or int32 `[B]`, as `sample` drew them. One that occurs several times counts each time, in order.
            losses: `[B]`, unweighted. One that is not finite counts as 0: a single bad step must not end the probabilities.

        Raises:
            TypeError, ValueError: tensors of another kind.
            IndexError: on the CPU, a t out of range (other devices are not asked).
        """
        if not isinstance(t, Tensor) or t.dim() != 1 or t.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"t: expected int64 or int32 [B], got {describe(t)}")
        if not isinstance(losses, Tensor) or losses.shape != t.shape or not losses.is_floating_point():
            raise ValueError(f"losses: expected floating [{len(t)}] (one for each t), got {describe(losses)}")
        t, losses = _of_all_ranks(t.long(), losses.float().nan_to_num(0, 0, 0))
        t, order = t.sort(stable=True)
        try:
            counts = self._counts.index_select(0, t)  # unlike [t], it takes no negative one from the end
        except IndexError as error:
            raise IndexError(f"t: expected 0 .. {self.num_timesteps - 1}, got {int(t.min())} .. {int(t.max())}") from error
        place = torch.arange(len(t), device=t.device)
        first, last = torch.searchsorted(t, t), torch.searchsorted(t, t, right=True) - 1
        # more of one t than its ring holds: all that meet in a column write the loss of the last of them
        final = place + (last - place) // self.history * self.history
        column = (counts + place - first) % self.history
        self._losses[t, column] = losses[order[final]]
        self._counts.index_add_(0, t, torch.ones_like(t))
        self._refresh()

    def state_dict(self) -> dict[str, Tensor]:
        """The losses `[T, history]` and how many there have been, `[T]`: copies."""
        return {"losses": self._losses.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to the moment of `state_dict`, to the bit.

        Raises:
            ValueError: a state of another number of timesteps or length of history, or with losses that are not finite.
        """
        for name, mine in (("losses", self._losses), ("counts", self._counts)):
            given = state.get(name)
            if not isinstance(given, Tensor) or given.shape != mine.shape:
                raise ValueError(f"state: expected {name} {list(mine.shape)}, got {describe(given)}")
        if not bool(state["losses"].isfinite().all()):
            raise ValueError("state: expected losses that are finite, as state_dict gives them, got others among them")
        self._losses.copy_(state["losses"])
        self._counts.copy_(state["counts"])
        self._refresh()

    @torch.no_grad()
    def _refresh(self) -> None:
        """Bounds and weights from the losses, in place, so that a captured graph finds them again.

        Bound t is the first of the 2^30 words that belongs to t + 1. Whole numbers add up to the same in any order, and the
        weights are made from the very probabilities that t is drawn with, so the weighted loss has exactly the plain mean.
        """
        scale = self._losses.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)  # so that no square overflows
        roots = (self._losses / scale).square().mean(1).sqrt()
        uniform = 1 / self.num_timesteps
        wide = torch.float32 if roots.device.type == "mps" else torch.float64  # a sum whose order hardly matters
        total = roots.sum(dtype=wide)
        share = (roots / total).masked_fill(total == 0, uniform)
        p = (1 - self.uniform_prob) * share + self.uniform_prob * uniform
        # rounded up at half the words: no t gets none, and the sum stays below 2^30, so stretching it does not merge bounds
        cumulative = (p * (WORDS // 2)).ceil().cumsum(0, dtype=torch.int64)
        self._bounds.copy_(cumulative * WORDS // cumulative[-1])
        self._filled.copy_((self._counts >= self.history).all())
        self._weights.copy_((WORDS * uniform / words_of(self._bounds)).masked_fill(~self._filled, 1.0))


def _of_all_ranks(t: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the order of the ranks, which is that of the samples; gathered as one tensor of bits."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return t, losses
    mine = torch.stack((t, losses.view(torch.int32).long()))
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    gathered = torch.cat(parts, 1)
    return gathered[0], gathered[1].int().view(torch.float32)
