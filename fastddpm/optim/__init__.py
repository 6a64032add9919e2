"""The update of the weights: clipping, AdamW and the moving average of all tensors in two passes."""

from .adamw import AdamW
from .average import Average

__all__ = ["AdamW", "Average"]
