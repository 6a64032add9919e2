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
    "improved_diffusion.TrainLoop.optimize_normal": {
        "fa0d6912c0e1b811": "improved-diffusion 1bc7bbb",
    },
    "improved_diffusion.TrainLoop.update_ema": {
        "de9e38975af84aa0": "improved-diffusion 1bc7bbb",
    },
}
