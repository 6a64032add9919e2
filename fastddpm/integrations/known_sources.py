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
    "diffusers.DPMSolverMultistepScheduler.index_for_timestep": {
        "68e435cea93b35f1": "diffusers 0.31.0 .. diffusers 0.42.1",
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
    "diffusers.EulerAncestralDiscreteScheduler.index_for_timestep": {
        "13488c5badad0611": "diffusers 0.31.0 .. diffusers 0.42.1",
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
    "diffusers.EulerDiscreteScheduler.index_for_timestep": {
        "13488c5badad0611": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.EulerDiscreteScheduler.scale_model_input": {
        "e4e9de53bee38a29": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.EulerDiscreteScheduler.step": {
        "7f05ca4c57b4994b": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.FlowMatchEulerDiscreteScheduler.index_for_timestep": {
        "13488c5badad0611": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.FlowMatchEulerDiscreteScheduler.scale_noise": {
        "76c7bdc2e48c0ba9": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.FlowMatchEulerDiscreteScheduler.step": {
        "2130d8eee3e01b03": "diffusers 0.31.0 .. diffusers 0.32.2",
        "65f12d1f1107df30": "diffusers 0.33.1",
        "1f5a41f901d8d0cf": "diffusers 0.34.0 .. diffusers 0.38.0",
        "eb6fdd8597d2545b": "diffusers 0.40.0 .. diffusers 0.42.1",
    },
    "diffusers.HeunDiscreteScheduler.add_noise": {
        "06f748f6b6496bea": "diffusers 0.31.0 .. diffusers 0.42.1",
    },
    "diffusers.HeunDiscreteScheduler.index_for_timestep": {
        "13488c5badad0611": "diffusers 0.31.0 .. diffusers 0.42.1",
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
    "diffusers.UniPCMultistepScheduler.index_for_timestep": {
        "68e435cea93b35f1": "diffusers 0.31.0 .. diffusers 0.42.1",
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
    "guided_diffusion.GaussianDiffusion._extract_into_tensor": {
        "4a314cc006dd8d38": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion._predict_eps_from_xstart": {
        "2bf3265848b29ea8": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion._predict_xstart_from_eps": {
        "aebb3ea3009c926b": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion._predict_xstart_from_xprev": {
        "92f8caa6adc234df": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion._prior_bpd": {
        "96de9a5207d3aeaa": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion._scale_timesteps": {
        "8feaaa7dd2aa6769": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion._vb_terms_bpd": {
        "6a5a7384496f4b08": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.approx_standard_normal_cdf": {
        "4fda71d7a1e72613": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.calc_bpd_loop": {
        "29f3acdf1936a33b": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.ddim_reverse_sample": {
        "791f2bdb70aba612": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.ddim_sample": {
        "52537582fbd190ac": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.discretized_gaussian_log_likelihood": {
        "69d48904af578eca": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.mean_flat": {
        "1bb6adf10c30abb7": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.normal_kl": {
        "53c53ee05c3d072d": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.p_mean_variance": {
        "796dfa4b5f65a4f1": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.p_sample": {
        "cd83263e6fb13d15": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.q_mean_variance": {
        "71f4ae21379e1768": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.q_posterior_mean_variance": {
        "4498b38eaadc1c94": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.q_sample": {
        "c9eea7f05487ce7a": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.GaussianDiffusion.training_losses": {
        "0188f9a3174d2d3e": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.MixedPrecisionTrainer._compute_norms": {
        "4d40eefc090a2b58": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.SpacedDiffusion._WrappedModel.__call__": {
        "86d9ebb468d42e36": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.SpacedDiffusion._extract_into_tensor": {
        "4a314cc006dd8d38": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.SpacedDiffusion._scale_timesteps": {
        "092346b32e6455c4": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.SpacedDiffusion._wrap_model": {
        "525df5b14fe7bce8": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.SpacedDiffusion.approx_standard_normal_cdf": {
        "4fda71d7a1e72613": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.SpacedDiffusion.discretized_gaussian_log_likelihood": {
        "69d48904af578eca": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.SpacedDiffusion.mean_flat": {
        "1bb6adf10c30abb7": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.SpacedDiffusion.normal_kl": {
        "53c53ee05c3d072d": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.SpacedDiffusion.p_mean_variance": {
        "f910133bb9e8c127": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.SpacedDiffusion.training_losses": {
        "44714d158af9f89c": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.TrainLoop._update_ema": {
        "52d365ef94fbd8cd": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.TrainLoop.forward_backward": {
        "37cf20cbb8bd6fd2": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.TrainLoop.log_loss_dict": {
        "1bb9df843f9a6c7a": "guided-diffusion 22e0df8",
    },
    "guided_diffusion.TrainLoop.update_ema": {
        "de9e38975af84aa0": "guided-diffusion 22e0df8",
    },
    "improved_diffusion.GaussianDiffusion._extract_into_tensor": {
        "4a314cc006dd8d38": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion._predict_eps_from_xstart": {
        "2bf3265848b29ea8": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion._predict_xstart_from_eps": {
        "aebb3ea3009c926b": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion._predict_xstart_from_xprev": {
        "92f8caa6adc234df": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion._prior_bpd": {
        "96de9a5207d3aeaa": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion._scale_timesteps": {
        "8feaaa7dd2aa6769": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion._vb_terms_bpd": {
        "6a5a7384496f4b08": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.approx_standard_normal_cdf": {
        "4fda71d7a1e72613": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.calc_bpd_loop": {
        "29f3acdf1936a33b": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.ddim_reverse_sample": {
        "791f2bdb70aba612": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.ddim_sample": {
        "c4ba934627b7d0b5": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.discretized_gaussian_log_likelihood": {
        "69d48904af578eca": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.mean_flat": {
        "1bb6adf10c30abb7": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.normal_kl": {
        "53c53ee05c3d072d": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.p_mean_variance": {
        "796dfa4b5f65a4f1": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.p_sample": {
        "155cb68f33a3df00": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.q_mean_variance": {
        "71f4ae21379e1768": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.q_posterior_mean_variance": {
        "4498b38eaadc1c94": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.q_sample": {
        "c9eea7f05487ce7a": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.GaussianDiffusion.training_losses": {
        "0188f9a3174d2d3e": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.SpacedDiffusion._WrappedModel.__call__": {
        "86d9ebb468d42e36": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.SpacedDiffusion._extract_into_tensor": {
        "4a314cc006dd8d38": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.SpacedDiffusion._scale_timesteps": {
        "092346b32e6455c4": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.SpacedDiffusion._wrap_model": {
        "525df5b14fe7bce8": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.SpacedDiffusion.approx_standard_normal_cdf": {
        "4fda71d7a1e72613": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.SpacedDiffusion.discretized_gaussian_log_likelihood": {
        "69d48904af578eca": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.SpacedDiffusion.mean_flat": {
        "1bb6adf10c30abb7": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.SpacedDiffusion.normal_kl": {
        "53c53ee05c3d072d": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.SpacedDiffusion.p_mean_variance": {
        "f910133bb9e8c127": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.SpacedDiffusion.training_losses": {
        "44714d158af9f89c": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.TrainLoop._log_grad_norm": {
        "53f1b3cc8a39e0b1": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.TrainLoop.forward_backward": {
        "0dcce9120be4d821": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.TrainLoop.log_loss_dict": {
        "1bb9df843f9a6c7a": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.TrainLoop.optimize_normal": {
        "fa0d6912c0e1b811": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.TrainLoop.update_ema": {
        "de9e38975af84aa0": "improved-diffusion 1bc7bbb",
    },
}
