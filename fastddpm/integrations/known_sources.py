"""Digests of the methods that `patch` replaces, and the packages that have them. Written by tests/peer_sources.py."""

from collections.abc import Mapping

KNOWN: Mapping[str, Mapping[str, str]] = {
    "diffusers.DDIMScheduler._get_variance": {
        "f2eaab7404fa691d": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.DDIMScheduler.add_noise": {
        "25fe2fb39c141c7f": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.DDIMScheduler.get_velocity": {
        "cafcc8a1fa29d38a": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.DDIMScheduler.step": {
        "ef1ac01a6db6f93b": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.DDPMScheduler._get_variance": {
        "c56997680519915a": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.DDPMScheduler.add_noise": {
        "25fe2fb39c141c7f": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.DDPMScheduler.get_velocity": {
        "cafcc8a1fa29d38a": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.DDPMScheduler.previous_timestep": {
        "c9a6689a40072a52": "diffusers 0.31.0",
        "054363fc46b263a2": "diffusers 0.32.2 .. diffusers 0.42.1",
    },
    "diffusers.DDPMScheduler.step": {
        "77584db12167b66c": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.EMAModel.step": {
        "f7ecc9b201ff5a8a": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
}
