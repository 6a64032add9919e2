"""optim.AdamW against clip_grad_norm_, torch's AdamW and torch's average; its habits as an optimizer."""

import copy
import math
import pickle

import pytest
import torch
from helpers import same_bits, values
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.testing._internal.two_tensor import TwoTensor

from fastddpm.optim import AdamW

SHAPES = ((3,), (33, 67), (16, 3, 3, 3), (0,), (7, 5), (17001,))
SETTINGS = {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.05}


def weights(dtype=torch.float32, shapes=SHAPES):
    return [torch.nn.Parameter(values(*shape, dtype=dtype, seed=seed)) for seed, shape in enumerate(shapes)]


def gradients(params, step, scale=1.0):
    """Towards 0.3, with noise, the same for every dtype but for its rounding; every third step a small norm."""
    for seed, p in enumerate(params):
        noise = values(*p.shape, seed=1000 * step + seed).to(p.dtype)
        p.grad = ((p.detach() - 0.3) * 0.1 + noise) * (scale * (1e-3 if step % 3 else 1.0))


class Twin:
    """What optim.AdamW does in one, by torch."""

    def __init__(self, params, max_norm, decay, **settings):
        self.params, self.max_norm, self.norm = params, max_norm, None
        self.optimizer = torch.optim.AdamW(params, **settings)
        self.average = [p.detach().clone() for p in params]
        self.ema = get_ema_multi_avg_fn(decay)

    def step(self):
        self.norm = torch.nn.utils.clip_grad_norm_(self.params, self.max_norm)
        self.optimizer.step()
        self.ema(self.average, [p.detach() for p in self.params], 1)


def off(tensors, exact):
    return max(float((x.detach().double() - y.detach()).abs().max()) for x, y in zip(tensors, exact, strict=True) if x.numel())


@pytest.mark.parametrize("maximize", [False, True])
def test_a_thousand_steps_are_as_near_to_float64_as_torchs(maximize):
    """Weights, average and norm. Half of torch's own error and more is what the gradients' rounding makes."""
    shapes = ((3,), (33, 67), (7, 5))
    settings = {**SETTINGS, "lr": 1e-3, "maximize": maximize}
    exact, theirs = (Twin(weights(dtype, shapes), 1.0, 0.99, **settings) for dtype in (torch.float64, torch.float32))
    params = weights(shapes=shapes)
    mine = AdamW(params, max_grad_norm=1.0, ema_decay=0.99, **settings)
    for step in range(1000):
        for one in (exact.params, theirs.params, params):
            gradients(one, step)
        for one in (exact, theirs, mine):
            one.step()
        assert math.isclose(float(mine.grad_norm), float(exact.norm), rel_tol=1e-6)
    assert off(params, exact.params) <= 2 * off(theirs.params, exact.params) + 1e-7
    assert off(mine.average.tensors, exact.average) <= 2 * off(theirs.average, exact.average) + 1e-7


def test_a_norm_beyond_float32s_square():
    (p,) = params = weights(shapes=((5,),))
    p.grad = torch.full((5,), 1e30)
    optimizer = AdamW(params, max_grad_norm=1.0)
    optimizer.step()
    assert float(optimizer.grad_norm) == pytest.approx(5**0.5 * 1e30, rel=1e-6)
    assert p.isfinite().all()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_without_a_scaler_what_is_not_finite_comes_through_as_torchs(bad):
    mine, theirs = weights(shapes=((3,), (4,))), weights(shapes=((3,), (4,)))
    for params, optimizer in ((mine, AdamW(mine, max_grad_norm=1.0)), (theirs, torch.optim.AdamW(theirs))):
        gradients(params, 0)
        params[0].grad[1] = bad
        if params is theirs:
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
    assert [p.isnan().tolist() for p in mine] == [p.isnan().tolist() for p in theirs]


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "a slice of a larger one": lambda x: torch.cat((x, x), 3)[..., :3],
    "every second": lambda x: x.repeat_interleave(2, 0)[::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("same", [True, False])
def test_a_weight_of_any_layout(layout, same):
    """And a gradient of its layout or of another."""
    mine, theirs = (torch.nn.Parameter(place(values(16, 3, 3, 3))) for place in (LAYOUTS[layout], lambda x: x))
    pairs = ((mine, AdamW([mine], **SETTINGS)), (theirs, torch.optim.AdamW([theirs], **SETTINGS)))
    for step in range(3):
        for p, optimizer in pairs:
            p.grad = values(16, 3, 3, 3, seed=step)
            p.grad = LAYOUTS["channels_last"](p.grad) if same and layout == "channels_last" else p.grad
            optimizer.step()
    torch.testing.assert_close(mine.detach().contiguous(), theirs.detach(), rtol=1e-6, atol=1e-7)


def test_a_model_that_is_laid_out_anew_goes_on():
    params = weights(shapes=((16, 3, 3, 3),))
    mine, plain = torch.nn.ParameterList(params), torch.nn.ParameterList(copy.deepcopy(params))
    optimizers = [AdamW(one.parameters(), **SETTINGS) for one in (mine, plain)]
    for step in range(4):
        for one, optimizer in zip((mine, plain), optimizers, strict=True):
            gradients(list(one.parameters()), step)
            optimizer.step()
        mine.to(memory_format=torch.channels_last)
    assert torch.equal(mine[0], plain[0])


def test_an_average_goes_on_where_a_weight_without_a_gradient_is_laid_out_anew():
    params = weights(shapes=((16, 3, 3, 3), (3,)))
    still = params[0]
    optimizer = AdamW(params, ema_decay=0.5, **SETTINGS)
    for step in range(3):
        gradients(params, step)
        if step:
            still.grad = None
            still.data = still.data.contiguous(memory_format=torch.channels_last)
        before = optimizer.average.tensors[0].clone()
        optimizer.step()
    torch.testing.assert_close(optimizer.average.tensors[0], 0.5 * before + 0.5 * still.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_has_moments_and_average_of_float32(dtype):
    """The average of a slow decay moves; the weights are those of a float32 step, rounded."""
    params, wide = weights(dtype), weights()
    for p, w in zip(params, wide, strict=True):
        w.data = p.detach().float()
    mine, exact = AdamW(params, ema_decay=0.999, **SETTINGS), torch.optim.AdamW(wide, **SETTINGS)
    gradients(params, 0)
    for p, w in zip(params, wide, strict=True):
        w.grad = p.grad.float()
    mine.step(), exact.step()
    assert {x.dtype for x in mine.tensors} == {torch.float32}
    assert all(torch.equal(p, w.to(dtype)) for p, w in zip(params, wide, strict=True))
    moved = [(e - p.detach().float()).abs().max() for p, e in zip(params, mine.average.tensors, strict=True) if p.numel()]
    assert all(x > 0 for x in moved)


# ---- habits ----


def run(params, optimizer, steps, twin=None):
    for step in steps:
        gradients(params, step)
        (twin or optimizer).step()
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}], ids=str)
def test_states_go_both_ways(options):
    """Saved in the middle and loaded into the other, either goes on as if nothing had been."""
    params = weights()
    whole = run(params, AdamW(params, **SETTINGS), range(6))
    for first, second in ((AdamW, torch.optim.AdamW), (torch.optim.AdamW, AdamW), (AdamW, AdamW)):
        params = weights()
        optimizer = first(params, **SETTINGS, **options)
        run(params, optimizer, range(3))
        other = second(params, **SETTINGS, **options)
        other.load_state_dict(optimizer.state_dict())
        for mine, expected in zip(run(params, other, range(3, 6)), whole, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)
        assert all(float(state["step"]) == 6 for state in other.state.values())


def test_a_bfloat16_state_keeps_its_digits():
    params = weights(torch.bfloat16)
    optimizer = AdamW(params, ema_decay=0.9, **SETTINGS)
    run(params, optimizer, range(3))
    again = AdamW(params, ema_decay=0.9, **SETTINGS)
    again.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    assert all(map(same_bits, again.tensors, optimizer.tensors[1:]))


def test_groups_schedulers_hooks_and_closures():
    mine, theirs = weights(), weights()
    seen = []
    for params, kind in ((mine, AdamW), (theirs, torch.optim.AdamW)):
        optimizer = kind([{"params": params[:2], "lr": 1e-2}, {"params": params[2:4], "weight_decay": 0.0}], **SETTINGS)
        optimizer.add_param_group({"params": params[4:], "betas": (0.5, 0.6), "maximize": True})
        optimizer.register_step_post_hook(lambda o, *_: seen.append(type(o)))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for step in range(5):

            def closure(step=step, params=params):
                gradients(params, step)
                return step

            assert optimizer.step(closure) == step
            scheduler.step()
    assert seen == [AdamW] * 5 + [torch.optim.AdamW] * 5
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_weights_without_a_gradient_wait_and_their_averages_go_on():
    mine, theirs = weights(), weights()
    optimizer, twin = AdamW(mine, max_grad_norm=1.0, ema_decay=0.8, **SETTINGS), Twin(theirs, 1.0, 0.8, **SETTINGS)
    for step in range(8):
        for params in (mine, theirs):
            gradients(params, step)
            if step % 3 == 1:
                params[1].grad = None
            if step < 2:
                params[5].grad = None
        optimizer.step(), twin.step()
    for some, others in ((mine, theirs), (optimizer.average.tensors, twin.average)):
        for p, q in zip(some, others, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert [float(optimizer.state[p]["step"]) for p in mine] == [8, 5, 8, 8, 8, 6]


def test_a_learning_rate_on_the_device():
    mine, theirs = weights(), weights()
    rate = torch.tensor(1.0)
    pairs = ((mine, AdamW(mine, **{**SETTINGS, "lr": rate})), (theirs, torch.optim.AdamW(theirs, **SETTINGS)))
    for step in range(4):
        rate.fill_(0.01 / (step + 1))
        pairs[1][1].param_groups[0]["lr"] = 0.01 / (step + 1)
        for params, optimizer in pairs:
            gradients(params, step)
            optimizer.step()
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_grad_scaler_is_followed_on_the_device():
    """Its scale goes out of the gradients, its skipped steps move nothing, and nobody unscales or reads before."""
    mine, theirs = weights(), weights()
    pairs = ((mine, AdamW(mine, max_grad_norm=1.0, ema_decay=0.5, **SETTINGS)), (theirs, Twin(theirs, 1.0, 0.5, **SETTINGS)))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(torch.zeros(()))
    for step in range(4):
        gradients(mine, step, 64.0), gradients(theirs, step)
        if step == 2:
            mine[1].grad[0, 0] = math.inf
        else:
            pairs[1][1].step()
        scaler.step(pairs[0][1])
        scaler.update(64.0)
    for some, others in ((mine, theirs), (pairs[0][1].average.tensors, pairs[1][1].average)):
        for p, q in zip(some, others, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_copy_goes_on_alone():
    params = weights()
    optimizer = AdamW(params, max_grad_norm=1.0, ema_decay=0.9, ema_warmup=True, **SETTINGS)
    run(params, optimizer, range(3))
    for clone in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (clone.average.decay, clone.average.warmup, clone.max_grad_norm) == (0.9, True, 1.0)
        again = [p for group in clone.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        expected = run(copy_of := copy.deepcopy(params), _loaded(copy_of, optimizer), range(3, 5))
        assert all(map(torch.equal, run(again, clone, range(3, 5)), expected))
        assert all(map(torch.equal, params, before))


def _loaded(params, optimizer):
    other = AdamW(params, max_grad_norm=1.0, ema_decay=0.9, ema_warmup=True, **SETTINGS)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other


def test_gradients_that_are_kept_are_zeroed_by_the_step():
    params = weights()
    plain = copy.deepcopy(params)
    optimizer, other = AdamW(params, **SETTINGS), AdamW(plain, **SETTINGS)
    gradients(params, 0)
    optimizer.make_static()
    places = [p.grad for p in params]
    for step in range(4):
        gradients(plain, step)
        for g, p in zip(places, plain, strict=True):
            g.add_(p.grad) if step else g.copy_(p.grad)
        if step == 2:  # a batch that is thrown away
            optimizer.zero_grad()
            assert not any(g.any() for g in places)
            [g.add_(p.grad) for g, p in zip(places, plain, strict=True)]
        optimizer.step(), other.step()
        assert all(p.grad is g for p, g in zip(params, places, strict=True)) and not any(g.any() for g in places)
        optimizer.zero_grad()
    assert all(map(torch.equal, params, plain))


def test_autograd_sees_that_weights_have_changed():
    (p,) = params = weights(shapes=((3,),))
    optimizer, loss = AdamW(params), (p * p).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_compiled_step_is_the_same():
    mine, plain = weights(), weights()
    results = []
    for params, wrap in ((mine, lambda f: torch.compile(f, backend="eager")), (plain, lambda f: f)):
        optimizer = AdamW(params, max_grad_norm=1.0, ema_decay=0.9, **SETTINGS)
        results.append(run(params, optimizer, range(3), twin=type("Step", (), {"step": staticmethod(wrap(optimizer.step))})))
    assert all(map(torch.equal, *results))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"amsgrad": True}, r"amsgrad: expected False .*, got True"),
        ({"differentiable": True}, r"differentiable: expected False .*, got True"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm: expected a number above 0 or None, got 0\.0"),
        ({"max_grad_norm": math.nan}, r"max_grad_norm: .* got nan"),
        ({"ema_decay": 1.5}, r"ema_decay: expected a number in \[0, 1\] or None, got 1\.5"),
        ({"ema_update_after": -1}, r"ema_update_after: expected 0 or more, got -1"),
        ({"lr": -1.0}, "Invalid learning rate"),
    ],
    ids=str,
)
def test_bad_settings(options, error):
    with pytest.raises(ValueError, match=error):
        AdamW(weights(), **options)


def test_weights_that_are_refused():
    two = TwoTensor(torch.zeros(3), torch.zeros(3))
    with pytest.raises(
        TypeError, match=r"params\[0\]: expected a plain tensor, got TwoTensor \(sharded by FSDP2, or quantized\)"
    ):
        AdamW([two.requires_grad_()])
    with pytest.raises(TypeError, match=r"params\[0\]: expected a tensor of float32, .* got complex64 \[2\]"):
        AdamW([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])
    with pytest.raises(ValueError, match=r"params\[1\]: expected all weights on one device \(cpu\)"):
        AdamW([torch.zeros(2, requires_grad=True), torch.zeros(2, device="meta", requires_grad=True)])


def test_a_sparse_gradient_is_refused_and_nothing_has_moved():
    table = torch.nn.Embedding(4, 3, sparse=True)
    optimizer, before = AdamW(table.parameters()), table.weight.detach().clone()
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"params\[0\]\.grad: expected a dense gradient, got a torch\.sparse_coo one"):
        optimizer.step()
    assert torch.equal(table.weight, before)


def test_a_state_that_asks_for_more_is_refused_and_nothing_is_loaded():
    params = weights()
    theirs = torch.optim.AdamW(params, amsgrad=True)
    run(params, theirs, range(1))
    mine = AdamW(params, **SETTINGS)
    with pytest.raises(ValueError, match="amsgrad: expected False"):
        mine.load_state_dict(theirs.state_dict())
    assert not mine.state and mine.param_groups[0]["lr"] == SETTINGS["lr"]
    with pytest.raises(ValueError, match="amsgrad: expected False"):
        mine.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "amsgrad": True})
    assert len(mine.param_groups) == 1


def test_a_state_that_is_put_in_another_s_place_is_followed():
    """As torch does: one weight's reset, or its step alone."""
    mine, theirs = weights(), weights()
    pairs = ((mine, AdamW(mine, **SETTINGS)), (theirs, torch.optim.AdamW(theirs, **SETTINGS)))
    for step in range(6):
        for params, optimizer in pairs:
            gradients(params, step)
            if step == 2:
                optimizer.state[params[0]] = {name: torch.zeros_like(x) for name, x in optimizer.state[params[0]].items()}
            if step == 4:
                optimizer.state[params[1]]["step"] = torch.tensor(1.0)
            optimizer.step()
    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("change", ["a weight moves", "and leaves no group", "the groups are others"])
def test_groups_that_are_changed_in_place_are_followed(change):
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        params = weights(shapes=((3,), (4,)))
        optimizer = kind([{"params": [p], "lr": lr} for p, lr in zip(params, (0.1, 0.001), strict=True)])
        for step in range(3):
            gradients(params, step)
            optimizer.step()
            if step == 0 and change == "the groups are others":
                optimizer.param_groups = [{**group, "lr": 5 * group["lr"]} for group in optimizer.param_groups]
            elif step == 0:
                optimizer.param_groups[0]["params"].append(optimizer.param_groups[1]["params"].pop())
                if change == "and leaves no group":
                    optimizer.param_groups.pop()
        results.append([p.detach() for p in params])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_groups_without_weights_and_steps_without_gradients():
    (p,) = weights(shapes=((3,),))
    optimizer = AdamW([{"params": []}, {"params": [p]}], torch.tensor([1e-3]), ema_decay=0.5)
    optimizer.step()
    p.grad = torch.ones(3)
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(()))
    p.grad = None
    scaler.step(optimizer)
    assert float(optimizer.state[p]["step"]) == 1


def test_a_gradient_that_turns_sparse_is_refused_before_anything_moves():
    table, other = torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(2))
    optimizer = AdamW([{"params": [other]}, {"params": [table], "lr": 0.5}])
    table.grad, other.grad = torch.ones(4, 3), torch.ones(2)
    optimizer.step()
    before, table.grad = other.detach().clone(), torch.eye(4, 3).to_sparse()
    with pytest.raises(TypeError, match=r"params\[1\]\.grad: expected a dense gradient"):
        optimizer.step()
    assert torch.equal(other, before) and float(optimizer.state[other]["step"]) == 1


def test_weights_in_turn_count_each_update_of_the_average():
    params = weights(shapes=((3,), (4,)))
    optimizer = AdamW(params, ema_decay=0.9, ema_update_after=5)
    for step in range(6):
        params[step % 2].grad, params[1 - step % 2].grad = torch.ones_like(params[step % 2]), None
        optimizer.step()
    assert optimizer.average.updates == 6
    assert not torch.equal(optimizer.average.tensors[1], params[1])  # the sixth, by the decay
