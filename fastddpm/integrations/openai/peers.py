"""What is replaced in a diffusion of either repository."""

from collections.abc import Callable
from typing import Any

from ..patch import Method, Peer
from .bpd import _prior_bpd, _vb_terms_bpd, calc_bpd_loop
from .training import q_sample, training_losses

MEAN = (
    "p_mean_variance",
    "q_posterior_mean_variance",
    "_predict_xstart_from_eps",
    "_predict_xstart_from_xprev",
    "_predict_eps_from_xstart",
    "_scale_timesteps",
)
"""The methods by which the others come from the model's output to a mean and a variance."""
FUNCTIONS = (
    "_extract_into_tensor",
    "mean_flat",
    "normal_kl",
    "discretized_gaussian_log_likelihood",
    "approx_standard_normal_cdf",
)
LEFT = (
    "cond_fn and denoised_fn",
    "gradients through the data or its noise",
    "p_mean_variance and q_posterior_mean_variance, where they are called by others",
    "epsilon at zero terminal SNR, and tables that do not follow from the betas",
)


def diffusions(package: str, *samplers: Callable[..., Any]) -> tuple[Peer, Peer]:
    """Of a package GaussianDiffusion and SpacedDiffusion."""
    methods = (
        Method(training_losses, "noising and loss with its gradient in two passes", MEAN),
        Method(q_sample, "one pass, its table uploaded once"),
        *(Method(sampler, "one pass") for sampler in samplers),
        Method(_vb_terms_bpd, "one pass each for the term and x_0"),
        Method(calc_bpd_loop, "a step is one pass, which makes the next one's x_t"),
        Method(_prior_bpd, "one pass", ("q_mean_variance",)),
    )
    whole = Peer(f"{package}.GaussianDiffusion", f"{package}.gaussian_diffusion", methods, LEFT, functions=FUNCTIONS)
    mapped = Method(training_losses, f"{methods[0].what}; the map of timesteps uploaded once", (*MEAN, "_wrap_model"))
    spaced = Peer(
        f"{package}.SpacedDiffusion",
        f"{package}.respace",
        (mapped, *methods[1:]),
        LEFT,
        bases=(whole.name,),
        functions=(*FUNCTIONS, "_WrappedModel.__call__"),
    )
    return whole, spaced
