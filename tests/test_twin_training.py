"""Twin training: 50 steps on the ops and 50 on the reference, from one seed, give the same losses to float32 rounding."""

import pytest
import torch
from helpers import INSTRUCTION_SETS, NOT_BUILT, on_reference, threads, values

from fastddpm import GaussianDiffusion, NoiseSchedule, advance, noise_key
from fastddpm.schedule import PREDICTION_TYPES

STEPS = 50


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.time = torch.nn.Embedding(1000, 8)
        self.up, self.down = torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, t):
        return self.down(torch.nn.functional.silu(self.up(x) + self.time(t)[:, :, None, None]))


def train(prediction_type, weight, channels_last):
    """Losses `[STEPS]` and the final weights."""
    diffusion, model = GaussianDiffusion(NoiseSchedule.cosine(1000), prediction_type, weight=weight), Net()
    optimizer, key, losses = torch.optim.AdamW(model.parameters(), 1e-3), noise_key(3, 0, 8), []
    data = values(64, 1, 8, 8).clamp(-1, 1)
    for step in range(STEPS):
        x_0 = data[torch.arange(8) + 8 * (step % 8)]
        x_0 = x_0.to(memory_format=torch.channels_last) if channels_last else x_0
        loss = diffusion.training_loss(model, x_0, key)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        advance(key)
        losses.append(loss.detach())
    return torch.stack(losses), torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(("weight", "channels_last"), [(None, False), ("min_snr", True)])
def test_twins(prediction_type, weight, channels_last):
    if not INSTRUCTION_SETS:
        pytest.skip(NOT_BUILT)
    if prediction_type == "previous":
        weight = None
    with threads(1):
        losses, weights = train(prediction_type, weight, channels_last)
        with on_reference():
            expected_losses, expected_weights = train(prediction_type, weight, channels_last)
    torch.testing.assert_close(losses, expected_losses, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-4)
    assert losses[-10:].mean() < losses[:10].mean(), "nothing was learned: the comparison would not see a wrong gradient"


def test_a_run_again_is_the_same_run():
    with threads(1):
        assert torch.equal(train("epsilon", None, False)[1], train("epsilon", None, False)[1])
