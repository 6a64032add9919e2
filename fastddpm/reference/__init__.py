"""Every op in plain eager PyTorch: the specification in code, the oracle of the tests, and the fallback.

Its files bear the names of the kernels', whose twins they are, line for line. It checks nothing but what the kernels check
(indices in range on the CPU).
"""

from .adamw import adamw_, total_norm
from .keys import advance_, copy_key, fill_key_, randn_, timesteps
from .mse import mse_loss, mse_loss_backward, scale_grad_
from .noising import noising, noising_uniform
from .reverse import reverse_step, reverse_step_backward
from .vlb import hybrid_loss, hybrid_loss_backward, vlb_loss, vlb_loss_backward, vlb_terms
