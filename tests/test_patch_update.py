"""What `patch(.., update=True)` makes of OpenAI's trainers' optimizers, beside trainers that keep theirs."""

import copy
import pickle
import warnings
from collections import defaultdict

import numpy as np
import openai_peers as peers
import openai_twin
import pytest
import torch

import fastddpm
from fastddpm.optim import AdamW

LOOPS = {"twin": openai_twin.GuidedLoop, "twin of improved": openai_twin.ImprovedLoop}


class Network(torch.nn.Module):
    """With weights in channels_last, and one that no gradient ever comes to, or zeros where a trainer wants gradients."""

    def __init__(self, wanted):
        super().__init__()
        self.wanted = wanted
        torch.manual_seed(3)
        layers = (torch.nn.Conv2d(*io, 3, padding=1) for io in ((3, 4), (4, 4), (4, 6)))
        self.layers = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.unused = torch.nn.Parameter(torch.ones(3))

    def forward(self, x, t):
        return self.layers(x).tanh() + (0 * self.unused.sum() if self.wanted else 0)


def loop(name="twin", rates=(0.9, 0.999), optimizer=torch.optim.AdamW, **options):
    """Of several groups, with averages elsewhere than the weights."""
    made = LOOPS[name](Network(name == "twin of improved"), peers.Peer(name).diffusion(), 4, list(rates))
    made.opt = optimizer([{"params": made.model.layers.parameters()}, {"params": [made.model.unused], "lr": 1e-2}], **options)
    for average in made.ema_params:
        for p in average:
            p.data.add_(0.1)
    return made


def patched(made, update=True):
    return fastddpm.patch(made, update=update, force=True)


def pair(*given, **options):
    """(a trainer whose diffusion alone is on the kernels, one whose update is too, that one's patch)"""
    plain, other = loop(*given, **options), loop(*given, **options)
    patched(plain, update=False)
    return plain, other, patched(other)


def trained(*loops, steps=10, after=lambda one: None):
    for one in loops:
        torch.manual_seed(0)
        np.random.seed(0)
        for _ in range(steps):
            one.run_step(peers.images(), {})
            after(one)


def assert_alike(one, other):
    """Weights, averages and what is saved of the optimizer."""
    mine, theirs = ([list(each.model.parameters()), *each.ema_params] for each in (other, one))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    mine, theirs = other.opt.state_dict(), one.opt.state_dict()
    assert mine["param_groups"] == theirs["param_groups"] and mine["state"].keys() == theirs["state"].keys()
    for i, state in theirs["state"].items():
        assert mine["state"][i].keys() == state.keys()
        for name, x in state.items():
            assert float((mine["state"][i][name] - x).abs().max()) <= 1e-5 * float(x.abs().max()), name


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize(
    ("rates", "options"),
    [
        ((0.9, 0.999), {"maximize": True, "weight_decay": 0.1}),
        ((0.99,), {"optimizer": torch.optim.Adam, "lr": 1e-2, "fused": True}),
        ((), {"eps": 1e-6, "foreach": True}),
    ],
)
def test_thirty_steps_are_torch_s(name, rates, options):
    plain, other, _ = pair(name, rates, **options)
    averages = [p for average in other.ema_params for p in average]
    trained(plain, other, steps=30)
    assert_alike(plain, other)
    assert isinstance(other.opt, AdamW)
    moved = [] if other.opt.average is None else other.opt.average.tensors
    order = [id(p) for group in other.opt.param_groups for p in group["params"]]
    mine = dict(zip([id(p) for p in other.model.parameters()], other.ema_params[0] if rates else (), strict=False))
    assert [x.data_ptr() for x in moved] == [mine[p].data_ptr() for p in order if rates]
    assert all(a is b for a, b in zip(averages, [p for average in other.ema_params for p in average], strict=True))


@pytest.mark.parametrize("name", LOOPS)
def test_undone_half_way_torch_s_goes_on(name):
    plain, other, handle = pair(name)
    trained(plain, other)
    handle.undo()
    patched(other, update=False)
    assert type(other.opt) is torch.optim.AdamW and not isinstance(other.opt, AdamW)
    steps = [state["step"] for state in other.opt.state.values()]
    assert len({step.data_ptr() for step in steps}) == len(plain.opt.state) == len(steps)
    trained(plain, other)
    assert_alike(plain, other)


def test_either_loads_what_the_other_saved():
    plain, other, _ = pair()
    trained(plain, other)
    one, two = (copy.deepcopy(each.opt.state_dict()) for each in (plain, other))
    trained(plain, other)
    averages = other.opt.average.tensors
    plain.opt.load_state_dict(two)
    other.opt.load_state_dict(one)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(averages, other.opt.average.tensors, strict=True))
    trained(plain, other)
    assert_alike(plain, other)
    assert not any("average" in state for state in other.opt.state_dict()["state"].values())


@pytest.mark.parametrize("name", LOOPS)
def test_other_averages_and_rates_are_noticed(name):
    plain, other, _ = pair(name)
    before = copy.deepcopy(loop(name).ema_params[0])
    for one in (plain, other):
        trained(one, steps=3)
        one.ema_rate = [0.5, 0.6]
        trained(one, steps=3)
        one.ema_params = [copy.deepcopy(before), *one.ema_params[1:]]
        trained(one, steps=3)
        one.ema_params[0] = [p.detach().contiguous() for p in one.ema_params[0]]  # where no step of ours can move them
        trained(one, steps=3)
    assert_alike(plain, other)
    assert other.opt.average is None
    for one in (plain, other):
        one.ema_rate, one.ema_params = [], []
        trained(one, steps=3)
    assert_alike(plain, other)


@pytest.mark.parametrize("change", ["all", "one", "another dict"])
def test_a_state_that_is_cleared_keeps_the_average(change):
    plain, other, _ = pair()
    for one in (plain, other):
        trained(one, steps=3)
        if change == "all":
            one.opt.state.clear()
        elif change == "one":
            del one.opt.state[one.opt.param_groups[0]["params"][0]]
        else:
            one.opt.state = defaultdict(dict)
        trained(one, steps=3)
    assert_alike(plain, other)


def test_averages_that_are_the_original_s_are_so_once():
    """Those of another dtype: the others are not moved twice."""
    plain, other, handle = pair()
    for one in (plain, other):
        one.ema_params[1] = [p.detach().double() for p in one.ema_params[1]]
    trained(plain, other)
    for mine, theirs in zip(other.ema_params, plain.ema_params, strict=True):
        torch.testing.assert_close([*mine], [*theirs], rtol=0, atol=1e-6)
    assert handle.fell_back


def test_a_group_that_is_added_trains():
    plain, other, _ = pair()
    added = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    for one, p in zip((plain, other), added, strict=True):
        trained(one, steps=3)
        p.grad = torch.ones(2)
        one.opt.add_param_group({"params": [p], "lr": 0.1})
        trained(one, steps=3)
    assert_alike(plain, other)
    assert torch.allclose(*added) and not torch.equal(added[0], torch.ones(2))


# ---- who else holds the optimizer ----


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_scheduler_goes_on(when):
    plain, other = loop(), loop()
    patched(plain, update=False)

    def scheduler(one):
        one.scheduler = torch.optim.lr_scheduler.StepLR(one.opt, 2, 0.5)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler(plain)
        if when == "before":
            scheduler(other)
        handle = patched(other)
        if when == "after":
            scheduler(other)
        trained(plain, other, after=lambda one: one.scheduler.step())
        assert_alike(plain, other)
        handle.undo()
        trained(plain, other, after=lambda one: one.scheduler.step())
    assert plain.opt.param_groups[0]["lr"] == other.opt.param_groups[0]["lr"] < 1e-5
    assert int(other.opt.state[other.model.layers[0].weight]["step"]) == 20


def test_hooks_are_called_once_a_step():
    _, other, handle = pair()
    called = []
    other.opt.register_step_pre_hook(lambda optimizer, *given: called.append(optimizer))
    other.opt.register_step_post_hook(lambda optimizer, *given: called.append(optimizer))
    trained(other, steps=3)
    handle.undo()
    trained(other, steps=3)
    assert called == [other.opt] * 12


def test_a_copy_trains_for_itself():
    plain, other, _ = pair()
    trained(plain, other, steps=5)
    two = copy.deepcopy(other)
    assert two.opt is not other.opt and isinstance(two.opt, AdamW)
    trained(plain, two, steps=5)
    assert_alike(plain, two)
    assert int(other.opt.state[other.model.layers[0].weight]["step"]) == 5


def test_a_pickled_optimizer_is_torch_s():
    plain, other, _ = pair()
    trained(plain, other)
    other.opt = pickle.loads(pickle.dumps(other.opt))
    assert type(other.opt) is torch.optim.AdamW
    assert_alike(plain, other)


# ---- what stays as it is ----


class Mine(torch.optim.AdamW):
    pass


def stepping_by_itself(params):
    made = torch.optim.AdamW(params)
    made.step = lambda closure=None: None
    return made


LEFT = {
    "step (neither torch's Adam nor its AdamW)": (torch.optim.SGD, Mine),
    "step (amsgrad, or differentiable)": (lambda p: torch.optim.AdamW(p, amsgrad=True),),
    "step (Adam's weight_decay, which is added to the gradients)": (lambda p: torch.optim.Adam(p, weight_decay=0.1),),
    "step (one of the object's own)": (stepping_by_itself,),
    "step (betas that are tensors)": (
        lambda p: torch.optim.AdamW(p, betas=(torch.tensor(0.9), torch.tensor(0.99)), foreach=False),
    ),
}


@pytest.mark.parametrize(("why", "optimizer"), [(why, each) for why, them in LEFT.items() for each in them])
def test_an_optimizer_that_is_another_stays(why, optimizer):
    plain, other, handle = pair(optimizer=optimizer)
    before = dict(vars(other.opt))
    assert f"left to the original: {why}" in handle.summary()
    trained(plain, other)
    assert_alike(plain, other)
    handle.undo()
    assert vars(other.opt) == before


def test_weights_in_half_precision_keep_their_optimizer():
    made = loop()
    made.model.bfloat16()
    assert "step (weights in half precision" in patched(made).summary() and type(made.opt) is torch.optim.AdamW


@pytest.mark.parametrize("shape", ["dtype", "rate", "number", "weights"])
def test_an_average_that_it_cannot_move_is_named(shape):
    made = loop(rates=(1.5,) if shape == "rate" else (0.9,))
    if shape == "dtype":
        made.ema_params[0][0] = made.ema_params[0][0].detach().double()
    elif shape == "number":
        made.ema_params[0].pop()
    elif shape == "weights":
        made.opt.param_groups.pop()
    said = patched(made).summary()
    assert "left to the original: the first average" in said and "AdamW's, all weights in one pass" in said


@pytest.mark.parametrize("made", [lambda: loop().diffusion, lambda: loop().mp_trainer])
def test_what_has_no_optimizer_is_refused(made):
    one = made()
    before = dict(vars(one))
    with pytest.raises(ValueError, match=r"update: expected False for guided_diffusion\.\w+, which has no optimizer, got True"):
        patched(one)
    assert vars(one) == before
