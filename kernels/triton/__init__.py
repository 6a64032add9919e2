"""The ops of fastddpm as Triton kernels, for NVIDIA and AMD GPUs. Installed as `fastddpm.kernels`.

Each function has the arguments and the result of the op of its name in `fastddpm.ops`. `fastddpm._triton` registers them.
"""

from .adamw import adamw_
from .keys import advance_, fill_key_, randn_, timesteps
from .mse import mse_loss, mse_loss_backward, scale_grad_
from .noising import noising, noising_uniform
from .reverse import reverse_step, reverse_step_backward
from .vlb import hybrid_loss, hybrid_loss_backward, vlb_loss, vlb_loss_backward, vlb_terms
