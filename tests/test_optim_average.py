"""The average that optim.AdamW keeps: as AveragedModel's, as diffusers' EMAModel's, and what may be done with it."""

import copy

import pytest
import torch
from helpers import same_bits, values
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastddpm.optim import AdamW


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 3))


def trained(steps=4, after=lambda model: None, **options):
    model = network()
    optimizer = AdamW(model.parameters(), 1e-2, **options)
    for step in range(steps):
        optimizer.zero_grad()
        model(values(6, 5, seed=step)).square().sum().backward()
        optimizer.step()
        after(model)
    return model, optimizer


def close(some, others):
    for x, y in zip(some, others, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


def test_with_the_first_step_copied_it_is_averaged_models():
    averaged = AveragedModel(network(), multi_avg_fn=get_ema_multi_avg_fn(0.8))
    model, optimizer = trained(after=averaged.update_parameters, ema_decay=0.8, ema_update_after=1)
    close(optimizer.average.tensors, list(averaged.module.parameters()))
    again = AveragedModel(network(1))
    again.load_state_dict(optimizer.average.state_for_averaged_model(model))
    assert all(map(same_bits, again.module.parameters(), optimizer.average.tensors)) and int(again.n_averaged) == 4
    assert all(map(same_bits, again.module.buffers(), model.buffers()))


@pytest.mark.parametrize("update_after", [0, 3])
def test_with_warm_up_it_is_diffusers_ema_models(update_after):
    ema_model = pytest.importorskip("diffusers.training_utils").EMAModel
    theirs = ema_model(network().parameters(), decay=0.3, update_after_step=update_after)
    options = {"ema_decay": 0.3, "ema_warmup": True, "ema_update_after": update_after}
    _, optimizer = trained(8, lambda model: theirs.step(model.parameters()), **options)
    close(optimizer.average.tensors, theirs.shadow_params)
    again = ema_model(network(1).parameters())
    again.load_state_dict(optimizer.average.state_dict())
    assert all(map(same_bits, again.shadow_params, optimizer.average.tensors))
    later = network()
    again.step(later.parameters()), theirs.step(later.parameters())
    close(again.shadow_params, theirs.shadow_params)
    _, other = trained(2, **options)
    other.average.load_state_dict(theirs.state_dict())
    assert all(map(same_bits, other.average.tensors, theirs.shadow_params))


def test_a_constant_decay_begins_with_the_weights_at_the_first_step():
    """Weights that are loaded between making the optimizer and its first step are what it begins with."""
    model, other = network(), network(1)
    optimizer = AdamW(model.parameters(), 1e-2, ema_decay=0.9)
    model.load_state_dict(other.state_dict())
    assert all(map(same_bits, optimizer.average.tensors, other.parameters()))
    model(values(6, 5)).sum().backward()
    optimizer.step()
    close(
        optimizer.average.tensors, [torch.lerp(q, p, 0.1) for q, p in zip(other.parameters(), model.parameters(), strict=True)]
    )


def test_a_constant_decay_is_one_to_diffusers_ema_model_too():
    ema_model = pytest.importorskip("diffusers.training_utils").EMAModel
    _, optimizer = trained(3, ema_decay=0.9)
    theirs, later = ema_model(network(1).parameters()), network(2)
    theirs.load_state_dict(optimizer.average.state_dict())
    theirs.step(later.parameters())
    close(
        theirs.shadow_params,
        [torch.lerp(e, p, 0.1) for e, p in zip(optimizer.average.tensors, later.parameters(), strict=True)],
    )


def test_a_swap_lends_the_averages_to_the_model():
    model, optimizer = trained(ema_decay=0.7)
    own, averages = ([x.detach().clone() for x in xs] for xs in (model.parameters(), optimizer.average.tensors))
    with pytest.raises(KeyError), optimizer.average.swap():
        assert all(map(same_bits, model.parameters(), averages))
        with pytest.raises(RuntimeError, match="a swap inside a swap"), optimizer.average.swap():
            pass
        with pytest.raises(RuntimeError, match="step: expected the weights in their place"):
            optimizer.step()
        raise KeyError
    assert all(map(same_bits, model.parameters(), own)) and all(map(same_bits, optimizer.average.tensors, averages))
    optimizer.step()


def test_copies_go_to_the_model_itself_and_to_others():
    model, optimizer = trained(ema_decay=0.7)
    averages, other = [x.clone() for x in optimizer.average.tensors], network(1)
    optimizer.average.copy_to(other)
    assert all(map(same_bits, other.parameters(), averages))
    third = network(2)
    third.load_state_dict(optimizer.average.weights_of(model))
    assert all(map(same_bits, third.parameters(), averages)) and same_bits(third[1].running_mean, model[1].running_mean)
    optimizer.average.copy_to(model)
    assert all(map(same_bits, model.parameters(), averages))
    with pytest.raises(ValueError, match=r"model: expected 6 weights, as the optimizer has, got 2"):
        optimizer.average.copy_to(torch.nn.Linear(5, 7))
    wrong = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 4))
    before = copy.deepcopy(wrong.state_dict())
    with pytest.raises(ValueError, match=r"model: expected 2\.weight to be \[3, 7\], as the optimizer's is there, got"):
        optimizer.average.copy_to(wrong)
    assert all(map(same_bits, wrong.state_dict().values(), before.values()))


def test_averages_come_back_by_name_before_the_first_step_too():
    model, optimizer = trained(ema_decay=0.7)
    weights = {name: x.clone() for name, x in optimizer.average.weights_of(model).items()}
    for steps in (0, 2):
        other, fresh = trained(steps, ema_decay=0.7)
        fresh.average.load_weights(other, weights)
        assert all(map(same_bits, fresh.average.tensors, optimizer.average.tensors))
    with pytest.raises(ValueError, match=r"state: expected 2\.bias, \[3\], got None"):
        optimizer.average.load_weights(model, {k: v for k, v in weights.items() if k != "2.bias"})
    with pytest.raises(ValueError, match="state: expected 'shadow_params', 6 tensors"):
        optimizer.average.load_state_dict({"shadow_params": [torch.zeros(3)]})


def test_without_a_decay_there_is_none():
    model, optimizer = trained()
    assert optimizer.average is None and optimizer.grad_norm is None
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in optimizer.state.values())
    assert len(optimizer.state) == len(list(model.parameters()))


def test_before_the_first_step_a_swap_changes_nothing_and_a_copy_inside_one_is_refused():
    model = network()
    optimizer, own = AdamW(model.parameters(), ema_decay=0.9), [p.detach().clone() for p in model.parameters()]
    with optimizer.average.swap():
        assert all(map(same_bits, model.parameters(), own))
        with pytest.raises(RuntimeError, match="copy: expected the weights in their place"):
            copy.deepcopy(optimizer)
