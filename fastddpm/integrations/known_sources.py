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
    "diffusers.DPMSolverMultistepScheduler._sigma_to_alpha_sigma_t": {
        "45cccccca19cef43": "diffusers 0.31.0",
        "ce8d8f2318286327": "diffusers 0.32.2 .. diffusers 0.42.1",
    },
    "diffusers.DPMSolverMultistepScheduler.add_noise": {
        "79467dae18ac738b": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.DPMSolverMultistepScheduler.convert_model_output": {
        "d87ce5b59447a673": "diffusers 0.31.0",
        "b4689defc6825adf": "diffusers 0.32.2 .. diffusers 0.33.1",
        "30780112a5ca4044": "diffusers 0.34.0 .. diffusers 0.42.1",
    },
    "diffusers.DPMSolverMultistepScheduler.dpm_solver_first_order_update": {
        "dcd3cda737b5d8dd": "diffusers 0.31.0 .. diffusers 0.33.1",
        "74805afe9c7bb993": "diffusers 0.34.0 .. diffusers 0.42.1",
    },
    "diffusers.DPMSolverMultistepScheduler.multistep_dpm_solver_second_order_update": {
        "a3d12fd6a54f8454": "diffusers 0.31.0 .. diffusers 0.33.1",
        "b14ac22afa44d4db": "diffusers 0.34.0 .. diffusers 0.42.1",
    },
    "diffusers.DPMSolverMultistepScheduler.multistep_dpm_solver_third_order_update": {
        "ad5561b845440e3c": "diffusers 0.31.0",
        "0477c13bc1797cc0": "diffusers 0.32.2 .. diffusers 0.33.1",
        "c2b77ec660700495": "diffusers 0.34.0 .. diffusers 0.42.1",
    },
    "diffusers.DPMSolverMultistepScheduler.step": {
        "2f76e7ed69001ee0": "diffusers 0.31.0",
        "7327a6a6c4298b99": "diffusers 0.32.2 .. diffusers 0.42.1",
    },
    "diffusers.EMAModel.step": {
        "f7ecc9b201ff5a8a": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.EulerAncestralDiscreteScheduler.add_noise": {
        "06f748f6b6496bea": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.EulerAncestralDiscreteScheduler.scale_model_input": {
        "e4e9de53bee38a29": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.EulerAncestralDiscreteScheduler.step": {
        "cb4679d7d9886917": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.EulerDiscreteScheduler.add_noise": {
        "06f748f6b6496bea": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.EulerDiscreteScheduler.get_velocity": {
        "cf1f939875d28a5a": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.EulerDiscreteScheduler.scale_model_input": {
        "e4e9de53bee38a29": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.EulerDiscreteScheduler.step": {
        "7f05ca4c57b4994b": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.HeunDiscreteScheduler.add_noise": {
        "06f748f6b6496bea": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.HeunDiscreteScheduler.scale_model_input": {
        "a9ebbe6120cc8a62": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.HeunDiscreteScheduler.step": {
        "ee242a9459a6d334": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.UniPCMultistepScheduler._sigma_to_alpha_sigma_t": {
        "45cccccca19cef43": "diffusers 0.31.0",
        "ce8d8f2318286327": "diffusers 0.32.2 .. diffusers 0.42.1",
    },
    "diffusers.UniPCMultistepScheduler.add_noise": {
        "79467dae18ac738b": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.UniPCMultistepScheduler.convert_model_output": {
        "666dcee731117e1d": "diffusers 0.31.0",
        "fb17ac5c7f584e4d": "diffusers 0.32.2 .. diffusers 0.33.1",
        "2d31188fe26d79db": "diffusers 0.34.0 .. diffusers 0.42.1",
    },
    "diffusers.UniPCMultistepScheduler.multistep_uni_c_bh_update": {
        "4bebf0cc0237bb0a": "diffusers 0.31.0 .. diffusers 0.33.1",
        "acbb9a0a11637882": "diffusers 0.34.0 .. diffusers 0.36.0",
        "e3f60569cd9bd078": "diffusers 0.38.0 .. diffusers 0.42.1",
    },
    "diffusers.UniPCMultistepScheduler.multistep_uni_p_bh_update": {
        "aa2584278bffcf02": "diffusers 0.31.0 .. diffusers 0.33.1",
        "01e327ec5a29671a": "diffusers 0.34.0 .. diffusers 0.36.0",
        "59024b40f7a34dd7": "diffusers 0.38.0 .. diffusers 0.42.1",
    },
    "diffusers.UniPCMultistepScheduler.step": {
        "894798134d4073cf": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
}
