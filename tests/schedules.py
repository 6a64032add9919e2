"""Schedules of every kind, and what counts as close for their tables."""

import numpy as np
import torch

from fastddpm import NoiseSchedule

CPU = torch.device("cpu")
T = 1000


def close(got, expected, tolerance=1e-12):
    """Relative: float64 with room for the order of a thousand products."""
    np.testing.assert_allclose(np.asarray(got, np.float64), np.asarray(expected, np.float64), rtol=tolerance, atol=0)


SCHEDULES = {
    "linear": lambda: NoiseSchedule.linear(T),
    "scaled_linear": lambda: NoiseSchedule.scaled_linear(T),
    "cosine": lambda: NoiseSchedule.cosine(T),
    "sigmoid": lambda: NoiseSchedule.sigmoid(T),
    "short": lambda: NoiseSchedule.linear(5, 0.1, 0.5),
    "one": lambda: NoiseSchedule.linear(1, 0.3, 0.3),
}
