"""Captured steps and loops do what the plain ones do, bit for bit: uncaptured here, under a recording stand-in for a graph, and
on a GPU where there is one (not yet run on one)."""

import copy
import warnings

import pytest
import torch
from helpers import same_bits, values
from recorded_graphs import recorded

from fastddpm import GaussianDiffusion, LossSecondMoment, NoiseSchedule, advance, graphs, noise_key
from fastddpm.densities import LogitNormal
from fastddpm.graphs import NOT_REPLAYED, GraphedSampler, GraphedTrainingStep
from fastddpm.optim import AdamW
from fastddpm.samplers import SAMPLERS

SHAPE = (4, 3, 8, 8)
LANES = [
    "uncaptured",
    "recorded",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.fixture(params=LANES)
def lane(request, monkeypatch):
    """The device; a call of the lane "recorded" takes every turn that one on a GPU takes."""
    if request.param == "recorded":
        monkeypatch.setattr(graphs, "_has_graphs", lambda device: True)
        monkeypatch.setattr(graphs, "_beside", lambda run, device: run())
        monkeypatch.setattr(graphs, "_captured", recorded)
        monkeypatch.setattr(graphs, "_fits_whole", lambda *_: True)
    return request.param


class Model(torch.nn.Module):
    """With dropout, buffers that move, and an embedding."""

    def __init__(self, channels=3):
        super().__init__()
        self.net = torch.nn.Conv2d(3, channels, 3, padding=1)
        self.norm, self.drop = torch.nn.BatchNorm2d(channels), torch.nn.Dropout(0.3)
        self.time, self.label = torch.nn.Embedding(1000, channels), torch.nn.Embedding(10, channels)

    def forward(self, x, t, label=None, shift=None):
        shift = self.time(t) if label is None else self.time(t) + self.label(label)
        return self.drop(self.norm(self.net(x))) + shift[:, :, None, None]


def device_of(lane):
    return torch.device("cuda" if lane == "cuda" else "cpu")


class Run:
    """All that a training step changes, on a device, the same for every Run."""

    def __init__(self, lane, importance=False, **adam):
        torch.manual_seed(0)
        self.device = device_of(lane)
        self.model = Model().to(self.device)
        self.average = copy.deepcopy(self.model)
        lr = torch.tensor(1e-2, device=self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr, fused=True, capturable=lane != "uncaptured", **adam)
        self.t_sampler = LossSecondMoment(4, history=2, device=self.device) if importance else None
        self.diffusion = GaussianDiffusion(NoiseSchedule.linear(4 if importance else 1000), weight="min_snr")
        self.key = noise_key(5, 7, SHAPE[0], device=self.device)

    def step(self, **options):
        options = {"average": self.average, "decay": 0.9, "clip_norm": 0.5, "t_sampler": self.t_sampler, **options}
        return GraphedTrainingStep(self.diffusion, self.model, self.optimizer, self.key, **options)

    def plain(self, x_0, kwargs, autocast=None):
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            key = self.key[: len(x_0)].clone()
            loss = self.diffusion.training_loss(self.model, x_0, key, kwargs, t_sampler=self.t_sampler)
        loss.backward()
        self.update()
        advance(self.key)
        return loss.detach()

    def update(self):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mine.lerp_(theirs, 1 - 0.9)

    def state(self):
        moments = [x for state in self.optimizer.state.values() for x in state.values()]
        kept = [] if self.t_sampler is None else [x.clone() for x in self.t_sampler.state_dict().values()]
        modules = [x.detach().clone() for m in (self.model, self.average) for x in m.state_dict().values()]
        return [*modules, *(x.clone() for x in moments), self.key.clone(), *kept, torch.rand(3, device=self.device)]


class OwnRun(Run):
    """With fastddpm's optimizer, which clips and averages."""

    def __init__(self, lane):
        super().__init__(lane)
        self.average = None
        lr = torch.tensor(1e-2, device=self.device)
        self.optimizer = AdamW(self.model.parameters(), lr, max_grad_norm=0.5, ema_decay=0.9)

    def step(self, **options):
        return super().step(average=None, clip_norm=None, **options)

    def update(self):
        self.optimizer.step()

    def state(self):
        self.average = torch.nn.ParameterList(self.optimizer.average.tensors)
        return [*super().state(), self.optimizer._parts.steps.clone()]


def batches(run, sizes=(4,) * 6, labels=False):
    for seed, size in enumerate(sizes):
        kwargs = {"label": torch.full((size,), seed % 10, device=run.device)} if labels else None
        yield values(size, *SHAPE[1:], seed=seed).to(run.device), kwargs


def all_same(some, others):
    return len(some) == len(others) and all(map(same_bits, some, others))


# ---- training ----


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_training_run_is_the_plain_loops(lane, labels, importance, autocast):
    """Losses kept until the end, weights, buffers, moments, average, key, t_sampler and the generator; a rate that changes."""
    mine, plain = Run(lane, importance), Run(lane, importance)
    step, got, wanted = mine.step(autocast=autocast), [], []
    torch.manual_seed(1)
    for i, (x_0, kwargs) in enumerate(batches(mine, labels=labels)):
        mine.optimizer.param_groups[0]["lr"].fill_(1e-2 / (i + 1))
        got.append(step(x_0, kwargs))
    state = mine.state()
    torch.manual_seed(1)
    for i, (x_0, kwargs) in enumerate(batches(plain, labels=labels)):
        plain.optimizer.param_groups[0]["lr"].fill_(1e-2 / (i + 1))
        wanted.append(plain.plain(x_0, kwargs, autocast))
    assert all_same(got, wanted) and len({float(x) for x in got}) == 6
    assert all_same(state, plain.state())
    if lane == "recorded":
        assert step._graph.graph.replays == 6


def test_a_training_run_with_every_option_is_the_plain_loops(lane):
    options = {"offset_noise": 0.1, "input_perturbation": 0.1, "self_condition": "shift", "density": LogitNormal()}
    states = []
    for run in (Run(lane), Run(lane)):
        run.diffusion = GaussianDiffusion(NoiseSchedule.linear(1000), "v_prediction", **options)
        run.model.register_forward_pre_hook(lambda _, given, own: ((given[0] + own["shift"], given[1]), {}), with_kwargs=True)
        call = run.plain if states else run.step(autocast=torch.bfloat16)
        torch.manual_seed(1)
        losses = [call(x_0, None, torch.bfloat16) if states else call(x_0) for x_0, _ in batches(run)]
        states.append([*losses, *run.state()])
    assert all_same(*states)


def test_a_batch_of_another_size_runs_uncaptured_and_says_so_once(lane):
    """As smaller last batches do; the ones after it are replayed again."""
    mine, plain, sizes = Run(lane), Run(lane), (4, 4, 3, 4, 2, 4)
    step = mine.step()
    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got = [step(*batch) for batch in batches(mine, sizes)]
    state = mine.state()
    assert [str(w.message)[:10] for w in said if w.category is RuntimeWarning] == ["uncaptured"] * (lane != "uncaptured")
    torch.manual_seed(1)
    assert all_same(got, [plain.plain(*batch) for batch in batches(plain, sizes)]) and all_same(state, plain.state())
    if lane == "recorded":
        assert step._graph.graph.replays == 4


@pytest.mark.filterwarnings("ignore:uncaptured")
def test_gradients_lie_still_after_a_capture(lane):
    if lane == "uncaptured":
        pytest.skip("nothing is captured")
    run = Run(lane)
    step, seen = run.step(), []
    for batch in batches(run, (4, 4, 3, 4)):
        step(*batch)
        seen.append([x.grad.data_ptr() for x in run.model.parameters() if x.grad is not None])
    assert seen[0] and all(here == seen[0] for here in seen)


@pytest.mark.filterwarnings("ignore:uncaptured")
def test_fastddpms_own_optimizer(lane):
    """A graph's gradients, moments and averages lie still; batches that it does not take go through the same ones."""
    mine, plain, sizes = OwnRun(lane), OwnRun(lane), (4, 4, 3, 4)
    step, seen = mine.step(), []
    torch.manual_seed(1)
    got = []
    for batch in batches(mine, sizes):
        got.append(step(*batch))
        seen.append([x.grad.data_ptr() for x in mine.model.parameters() if x.grad is not None])
    state = mine.state()
    torch.manual_seed(1)
    assert all_same(got, [plain.plain(*batch) for batch in batches(plain, sizes)]) and all_same(state, plain.state())
    if lane != "uncaptured":
        assert all(here == seen[0] for here in seen)
    with pytest.raises(ValueError, match="clip_norm: expected None, since the optimizer clips"):
        Run.step(mine, average=None)
    with pytest.raises(ValueError, match="average: expected None, since the optimizer has one"):
        Run.step(mine, average=copy.deepcopy(mine.model))


@pytest.mark.parametrize("kind", [Run, OwnRun])
def test_a_loaded_optimizer_state_is_captured_anew(lane, kind):
    """Its moments are other tensors than those that a graph knows."""
    mine, plain = kind(lane), kind(lane)
    step = mine.step()
    for run, call in ((mine, step), (plain, plain.plain)):
        torch.manual_seed(1)
        first, *rest = batches(run)
        call(*first)
        run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
        for batch in rest:
            call(*batch)
        run.seen = run.state()
    assert all_same(mine.seen, plain.seen)


def test_micro_batches_make_the_gradient_of_the_whole(lane):
    """Of a model whose samples do not meet: the same noise in each part, and the mean over all."""
    whole, parted = Run(lane), Run(lane)
    losses = []
    for run, parts in ((whole, 1), (parted, 3)):
        run.model.norm, run.model.drop = torch.nn.Identity(), torch.nn.Identity()
        run.average = copy.deepcopy(run.model)
        run.optimizer = torch.optim.AdamW(run.model.parameters(), 1e-2, fused=True, capturable=lane != "uncaptured")
        step = run.step(micro_batches=parts)
        losses.append([step(*batch) for batch in batches(run, labels=True)])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    for a, b in zip(whole.model.parameters(), parted.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_a_change_of_the_callers_diffusion_changes_no_step(lane):
    run, other = Run(lane), Run(lane)
    step, expected = run.step(), other.step()
    run.diffusion.weight, run.diffusion.schedule = None, NoiseSchedule.cosine(10)
    for mine, theirs in zip(batches(run), batches(other), strict=True):
        torch.manual_seed(3)
        loss = step(*mine)
        torch.manual_seed(3)
        assert same_bits(loss, expected(*theirs))


def test_what_a_graph_cannot_hold_is_refused_by_name(lane):
    run = Run(lane)
    x_0 = values(*SHAPE).to(run.device)
    with pytest.raises(ValueError, match=r"scaler: expected None .*, got GradScaler"):
        run.step(scaler=torch.amp.GradScaler(run.device.type))
    with pytest.raises(ValueError, match="micro_batches: expected 1 or more, got 0"):
        run.step(micro_batches=0)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got function"):
        GraphedTrainingStep(run.diffusion, lambda x, t: x, run.optimizer, run.key)
    with pytest.raises(TypeError, match=r"optimizer: expected torch\.optim\.AdamW or Adam, got SGD"):
        GraphedTrainingStep(run.diffusion, run.model, torch.optim.SGD(run.model.parameters(), 0.1), run.key)
    step = run.step()
    with pytest.raises(ValueError, match=r"x_0: expected a batch of 4 at most .*, got 5"):
        step(values(5, *SHAPE[1:]).to(run.device))
    run.optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(ValueError, match="lr: expected the tensor that it was made"):
        step(x_0)
    if lane == "uncaptured":
        return
    with pytest.raises(ValueError, match="optimizer: expected one with capturable=True"):
        GraphedTrainingStep(run.diffusion, run.model, torch.optim.AdamW(run.model.parameters()), run.key)
    other = Run(lane)
    with pytest.raises(ValueError, match="model_kwargs: expected a tensor that does not require grad"):
        other.step()(x_0, {"shift": torch.zeros(4, device=run.device, requires_grad=True)})
    with torch.autocast(run.device.type, torch.bfloat16), pytest.raises(RuntimeError, match="autocast: expected it inside"):
        Run(lane).step()(x_0)


# ---- sampling ----


def half(x, t, label=None):
    shift = t if label is None else t + label
    t.zero_()  # as a model may
    return x / 2 + 1e-3 * shift[:, None, None, None]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
@pytest.mark.parametrize("steps", [None, 5])
def test_a_graphed_samplers_images_are_samples(lane, whole, variance_type, steps):
    device = device_of(lane)
    diffusion = GaussianDiffusion(NoiseSchedule.linear(12), variance_type=variance_type)
    model = half if variance_type == "fixed_small" else lambda x, t, label=None: half(x, t, label).repeat(1, 2, 1, 1)
    sampler = GraphedSampler(diffusion, model, SHAPE, steps=steps, device=device, whole=whole)
    images = []
    for seed, label in ((0, 0), (3, 1), (torch.arange(4, device=device), 2), (0, 0)):
        kwargs = {"label": torch.full((), label, device=device).expand(4)}  # memory that may not be written
        images.append(sampler(seed, kwargs))
        wanted = diffusion.sample(model, SHAPE, steps=steps, seed=seed, model_kwargs=kwargs, device=device, progress=False)
        assert same_bits(images[-1], wanted)
    assert same_bits(images[0], images[3]) and not same_bits(images[0], images[1])
    if lane == "recorded":
        assert sampler._graph.graph.replays == 4 * (1 if whole else steps or 12)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("options", [{}, {"stacked": True}, {"stacked": True, "guidance_rescale": 0.5}], ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_graphed_samplers_images_are_every_samplers(lane, whole, options, name):
    """Its history is in buffers, which a second call finds full of the first one's; what guides it is read where it lies."""
    device = device_of(lane)
    diffusion, steps = GaussianDiffusion(NoiseSchedule.linear(50)), 6
    scale, label_0 = torch.ones(4, device=device), torch.zeros(4, device=device)
    options = {"guidance_scale": scale, "uncond_kwargs": {"label": label_0}, **options}
    sampler = GraphedSampler(diffusion, half, SHAPE, name, steps, device=device, whole=whole, **options)
    for seed, label in ((0, 100.0), (3, 300.0)):
        kwargs = {"label": torch.full((4,), label, device=device)}
        scale.fill_(2.5 + seed), label_0.fill_(-seed)
        same = {"seed": seed, "model_kwargs": kwargs, "device": device, "progress": False, **options}
        wanted = diffusion.sample(half, SHAPE, name, steps, **same)
        assert same_bits(sampler(seed, kwargs), wanted)
    if lane == "recorded":
        assert sampler._graph.graph.replays == 2 * (1 if whole else len(sampler.loop.rows))


@pytest.mark.parametrize("whole", [True, False])
def test_what_composes_outside_the_step_is_captured_too(lane, whole):
    device = device_of(lane)
    diffusion = GaussianDiffusion(NoiseSchedule.linear(12), variance_type="learned_range")
    steered = {
        "thresholding": 0.9,
        "denoised_fn": lambda x_0, t: 3 * x_0,
        "cond_fn": lambda x, t, **_: -x,
        "dtype": torch.float64,
    }

    def model(x, t):
        return half(x, t).repeat(1, 2, 1, 1)

    sampler = GraphedSampler(diffusion, model, SHAPE, device=device, whole=whole, **steered)
    for seed in (1, 2):
        assert same_bits(sampler(seed), diffusion.sample(model, SHAPE, seed=seed, device=device, progress=False, **steered))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["ddpm", "unipc_2"])
def test_a_models_own_estimate_is_captured_too(lane, whole, name):
    """A second call begins without the first one's."""
    diffusion = GaussianDiffusion(NoiseSchedule.linear(12), self_condition="estimate")

    def model(x, t, estimate):
        return half(x, t) + 0.3 * estimate

    sampler = GraphedSampler(diffusion, model, SHAPE, name, 5, device=device_of(lane), whole=whole)
    for seed in (1, 2):
        wanted = diffusion.sample(model, SHAPE, name, 5, seed=seed, device=device_of(lane), progress=False)
        assert same_bits(sampler(seed), wanted)


@pytest.mark.parametrize("name", NOT_REPLAYED)
def test_what_wants_python_between_the_steps_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"^{name}: expected None"):
        GraphedSampler(GaussianDiffusion(NoiseSchedule.linear(6)), half, SHAPE, **{name: 1})
    GraphedSampler(GaussianDiffusion(NoiseSchedule.linear(6)), half, SHAPE, **{name: None})


def test_without_a_seed_a_graphed_samplers_images_are_torchs_generators():
    sampler = GraphedSampler(GaussianDiffusion(NoiseSchedule.linear(6)), half, SHAPE)
    torch.manual_seed(1)
    first, second = sampler(), sampler()
    torch.manual_seed(1)
    assert same_bits(sampler(), first) and not same_bits(first, second)


@pytest.mark.parametrize("whole", [True, False])
def test_a_sampler_leaves_the_generators_and_sees_new_weights(lane, whole):
    model = Model().to(device_of(lane)).eval()
    diffusion = GaussianDiffusion(NoiseSchedule.linear(6))
    sampler = GraphedSampler(diffusion, model, SHAPE, whole=whole)
    torch.manual_seed(2)
    before = sampler(1)
    drawn = torch.rand(2, device=device_of(lane))
    torch.manual_seed(2)
    assert same_bits(drawn, torch.rand(2, device=device_of(lane)))
    with torch.no_grad():
        model.net.weight.mul_(2)
    assert same_bits(sampler(1), diffusion.sample(model, SHAPE, seed=1, progress=False))
    assert not same_bits(before, sampler(1))


@pytest.mark.parametrize("whole", [True, False])
def test_other_arguments_of_the_model_run_uncaptured_and_say_so_once(lane, whole):
    diffusion = GaussianDiffusion(NoiseSchedule.linear(6))

    def model(x, t, scale=1):
        return x / (1 + scale)

    sampler = GraphedSampler(diffusion, model, SHAPE, device=device_of(lane), whole=whole)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images = [sampler(1, {"scale": scale}) for scale in (1, 2, 3, 1)]
    assert len([w for w in said if w.category is RuntimeWarning]) == (lane != "uncaptured")
    assert same_bits(images[0], images[3]) and not same_bits(images[1], images[2])
    options = {"seed": 1, "device": device_of(lane), "progress": False}
    assert same_bits(images[1], diffusion.sample(model, SHAPE, model_kwargs={"scale": 2}, **options))


@pytest.mark.parametrize(("free", "steps", "whole"), [(30, 250, True), (30, 251, False), (20, 10, False)])
def test_whole_or_by_steps_is_chosen_by_length_and_memory(monkeypatch, free, steps, whole):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 100))
    assert graphs._fits_whole(steps, torch.device("cuda")) is whole
