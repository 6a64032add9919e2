"""Digests of the methods that `patch` replaces, and the packages that have them. Written by tests/peer_sources.py."""

from collections.abc import Mapping

KNOWN: Mapping[str, Mapping[str, str]] = {
    "denoising_diffusion_pytorch.GaussianDiffusion.ddim_sample": {
        "fda19b6e1c1fe1bb": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.GaussianDiffusion.model_predictions": {
        "5a068b6efd948d15": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.GaussianDiffusion.noise_assignment": {
        "1139a99d754f4f3c": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.GaussianDiffusion.p_losses": {
        "86f2a5563cd38504": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.2.6",
        "2302608853ccacc9": "denoising-diffusion-pytorch 2.3.1 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.GaussianDiffusion.p_mean_variance": {
        "06a38b583a22e598": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.GaussianDiffusion.p_sample": {
        "4c439d50ffb12390": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.GaussianDiffusion.p_sample_loop": {
        "b4fa35919a41d793": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.GaussianDiffusion.predict_noise_from_start": {
        "27734bf77dcd3868": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.GaussianDiffusion.predict_start_from_noise": {
        "8b50cda1a6256d26": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.GaussianDiffusion.predict_start_from_v": {
        "447ec4422409c9a3": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.GaussianDiffusion.predict_v": {
        "32f714c3a82f85d3": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.GaussianDiffusion.q_posterior": {
        "2823fc32cacc2516": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.GaussianDiffusion.q_sample": {
        "73b8ab644576dc80": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
    "denoising_diffusion_pytorch.Trainer.train": {
        "f9dbf11383da76e3": "denoising-diffusion-pytorch 2.2.5 .. denoising-diffusion-pytorch 2.3.4",
    },
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
