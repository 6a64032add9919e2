"""torch.func's transforms, batched gradients and forward mode: the reference answers where the kernels have no rule."""

import pytest
import torch
from helpers import every_column, same_bits, spread, values
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap

from fastddpm import (
    EDM,
    FlowMatching,
    GaussianDiffusion,
    NoiseSchedule,
    hybrid_loss,
    mse_loss,
    noise_key,
    q_sample,
    q_step,
    randn,
    reverse_step,
    samplers,
    vlb_loss,
)

SCHEDULE = NoiseSchedule.linear(1000)
EVERY_COLUMN = every_column(variance_type="learned")
ROWS = samplers.ddpm(SCHEDULE, "v_prediction", "learned_range")
T, KEY = spread(3), noise_key(1, 2, 3)
SHAPE = (3, 2, 5)


def x_0():
    return values(*SHAPE, seed=1)


CALLS = {
    "q_sample": lambda x: q_sample(x[:, :2], T, SCHEDULE, KEY).square().sum(),
    "q_step": lambda x: q_step(x[:, :2], T, SCHEDULE, KEY).square().sum(),
    "mse": lambda x: mse_loss(x[:, :2], T, SCHEDULE, KEY, x_0(), prediction_type="v_prediction"),
    "vlb": lambda x: vlb_loss(x, x_0(), values(*SHAPE, seed=2), T, SCHEDULE, variance_type="learned_range"),
    "hybrid": lambda x: hybrid_loss(x, x_0(), KEY, T, SCHEDULE)["loss"],
    "reverse with every option": lambda x: sum(
        r.square().sum()
        for r in reverse_step(
            x,
            x_0(),
            T,
            EVERY_COLUMN,
            KEY,
            uncond_output=2 * x,
            guidance=torch.ones(3),
            history=[x[:, :2]] * 3,
            return_kept=True,
        )
    ),
    "reverse": lambda x: reverse_step(x, x_0(), T, ROWS, KEY)[0].square().sum(),
}


def output():
    return values(3, 4, 5)


def gradient(call, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(call(leaf), leaf)[0]


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CALLS)
def test_func_grad_is_autograds(name):
    close(grad(CALLS[name])(output()), gradient(CALLS[name], output()))


@pytest.mark.parametrize("name", CALLS)
def test_a_forward_derivative_is_the_gradient_times_the_tangent(name):
    x, tangent = output(), values(3, 4, 5, seed=7)
    expected = (gradient(CALLS[name], x) * tangent).sum()
    close(jvp(CALLS[name], (x,), (tangent,))[1].float(), expected)  # torch: a number times a scalar has a float64 tangent
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        close(torch.autograd.forward_ad.unpack_dual(CALLS[name](dual)).tangent.float(), expected)


@pytest.mark.parametrize("name", CALLS)
def test_batched_gradients_are_one_gradient_after_the_other(name):
    x = output().requires_grad_()
    result = CALLS[name](x)
    upstream = torch.tensor([1.0, -2.0, 0.5])
    got = torch.autograd.grad(result, x, upstream, is_grads_batched=True)[0]
    one = gradient(CALLS[name], output())
    close(got, upstream[:, None, None, None] * one)


def test_a_function_of_many_values_has_a_jacobian():
    x = values(2, 3)
    t, key = spread(2), noise_key(1, 2, 2)
    got = torch.func.jacrev(lambda x: q_sample(x, t, SCHEDULE, key))(x)
    a = SCHEDULE.alphas_cumprod[t].sqrt().float()
    close(got.reshape(6, 6), torch.diag(a.repeat_interleave(3)))


vmapped = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="torch 2.11's vmap has no rule for a view of another dtype",
)


@vmapped
@pytest.mark.parametrize("randomness", ["key", "tensor"])
def test_gradients_of_each_sample(randomness):
    """The use that per-sample gradients have: vmap over grad of a loss of one sample, its t and its key."""
    model = torch.nn.Linear(5, 5)
    noise = KEY if randomness == "key" else values(*SHAPE, seed=3)

    def loss(parameters, x_0, t, noise):
        x_0, t, noise = x_0[None], t[None], noise[None]
        x_t = q_sample(x_0, t, SCHEDULE, noise)
        return mse_loss(functional_call(model, parameters, x_t), t, SCHEDULE, noise)

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    got = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, x_0(), T, noise)
    for b in range(3):
        model.zero_grad()
        x_t = q_sample(x_0()[b : b + 1], T[b], SCHEDULE, noise[b : b + 1])
        mse_loss(model(x_t), T[b], SCHEDULE, noise[b : b + 1]).backward()
        close(got["weight"][b], model.weight.grad)


@pytest.mark.parametrize(
    "transform",
    [grad, lambda f: grad(lambda x: grad(f)(x).sum()), torch.func.functionalize, lambda f: lambda x: jvp(f, (x,), (x,))],
    ids=["grad", "grad of grad", "functionalize", "jvp"],
)
def test_a_table_first_made_inside_a_transform_is_a_table(transform):
    """Whoever comes next uses it: eager code, its data, another transform, a compiler."""
    schedule, x = NoiseSchedule.linear(1000), values(*SHAPE)

    def call(x):
        return q_sample(x, T, schedule, KEY).square().sum()

    transform(call)(x)
    assert q_sample(x, T, schedule, KEY).numpy().tolist() == q_sample(x, T, SCHEDULE, KEY).tolist()
    close(grad(call)(x), gradient(call, x))
    torch.export.export(Module(schedule), (x,))
    close(torch.compile(call, backend="aot_eager")(x), call(x))


MADE = {
    "linear": lambda: NoiseSchedule.linear(20),
    "scaled_linear": lambda: NoiseSchedule.scaled_linear(20),
    "cosine": lambda: NoiseSchedule.cosine(20),
    "from_alphas_cumprod": lambda: NoiseSchedule.from_alphas_cumprod([0.9, 0.5, 0.1]),
    "changed": lambda: NoiseSchedule.linear(40).zero_terminal_snr().respace(20, "linspace"),
    "flow": lambda: FlowMatching(20),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_process_may_be_made_inside_a_transform(make):
    x, t = values(*SHAPE), torch.arange(3)
    close(
        grad(lambda x: q_sample(x, t, make(), KEY).square().sum())(x),
        gradient(lambda x: q_sample(x, t, make(), KEY).square().sum(), x),
    )


def test_edm_may_be_made_inside_a_transform():
    x, t = values(*SHAPE), torch.tensor([0.1, 1.0, 10.0])
    close(*(one(lambda x: q_sample(x, t, EDM(), KEY).square().sum(), x) for one in (lambda f, x: grad(f)(x), gradient)))


@pytest.mark.parametrize("name", [name for name in samplers.SAMPLERS if name != "lcm"])
def test_a_samplers_rows_may_be_made_inside_a_transform(name):
    def step(out):
        rows = samplers.SAMPLERS[name](SCHEDULE, steps=5)
        noise = KEY if rows.adds_noise else "none"
        return reverse_step(out, x_0(), 4, rows, noise, history=[x_0()] * rows.history)[0].square().sum()

    close(grad(step)(x_0()), gradient(step, x_0()))


def test_a_fake_mode_makes_real_rows():
    with FakeTensorMode(allow_non_fake_inputs=True):
        rows = samplers.ddpm(SCHEDULE, steps=5)
    assert torch.equal(rows.columns.k_0, samplers.ddpm(SCHEDULE, steps=5).columns.k_0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_have_a_batch_of_their_own(dtype):
    keys = torch.stack([noise_key(seed, 2, 3) for seed in range(4)])
    drawn = vmap(lambda key: randn(key, SHAPE, dtype))(keys)
    assert same_bits(drawn, torch.stack([randn(key, SHAPE, dtype) for key in keys]))


class Module(torch.nn.Module):
    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x):
        return q_sample(x, T, self.schedule, KEY)


@pytest.mark.parametrize("part", ["loss", "mse", "vlb"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
def test_the_hybrids_second_derivative_is_that_of_its_forward(part, variance_type):
    """Through the backward that is written out, and through plain autograd of the forward: the mean detached in both."""
    x = values(3, 4 if variance_type == "learned_range" else 2, 5, dtype=torch.float64)
    data, direction = x_0().double(), values(*x.shape, seed=8, dtype=torch.float64)

    def loss(x):
        return hybrid_loss(x, data, values(*SHAPE, seed=2), T, SCHEDULE, KEY, variance_type=variance_type)[part]

    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    got = torch.autograd.grad((first * direction).sum(), leaf, allow_unused=True)[0] if first.requires_grad else None
    expected = grad(lambda x: (grad(loss)(x) * direction).sum())(x)
    close(torch.zeros_like(x) if got is None else got, expected)


def test_a_weights_tangent_is_not_dropped():
    weight = torch.linspace(0.5, 2, 1000)
    x = values(*SHAPE)
    value, tangent = jvp(lambda w: mse_loss(x, T, SCHEDULE, KEY, weight=w), (weight,), (weight,))
    close(tangent.float(), value)


def test_bits_per_dim_has_a_tangent():
    diffusion, data = GaussianDiffusion(NoiseSchedule.linear(3)), x_0().clamp(-1, 1)

    def total(scale):
        report = diffusion.bits_per_dim(lambda x, t: scale * x, data, clip_denoised=False, progress=False)
        return report["total"].sum()

    one = torch.tensor(0.5)
    tangent = jvp(total, (one,), (torch.ones(()),))[1]
    slope = (total(one + 1e-3) - total(one - 1e-3)) / 2e-3
    torch.testing.assert_close(tangent.float(), slope, rtol=1e-2, atol=0)


@vmapped
def test_a_transform_changes_no_bits_of_a_noising():
    x = values(*SHAPE)
    got = vmap(lambda x, t, key: q_sample(x[None], t[None], SCHEDULE, key[None])[0])(x, T, KEY)
    assert same_bits(got, q_sample(x, T, SCHEDULE, KEY))


def test_a_loss_of_a_tensor_that_outlived_its_transform_has_a_gradient():
    weight, outlived = values(*SHAPE, seed=3).requires_grad_(), []
    grad(lambda x: outlived.append(weight * x) or x.sum())(x_0())
    got, expected = (torch.autograd.grad(mse_loss(x, T, SCHEDULE, KEY), weight)[0] for x in (outlived[0], weight * x_0()))
    assert same_bits(got, expected)
