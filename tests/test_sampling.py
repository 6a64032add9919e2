"""The noise that a sampling loop of one's own takes, and the models and shapes that `sample` and the rest meet."""

import pytest
import torch
from helpers import DTYPES, every_column, same_bits, values

from fastddpm import GaussianDiffusion, NoiseSchedule, noise_key, randn, reverse_step, samplers
from fastddpm.rows import StepRow
from fastddpm.samplers import StepRows

SCHEDULE = NoiseSchedule.linear(1000)
SHAPE = (2, 3, 4, 4)


def half(x, t):
    return x / 2


# ---- noise that does not meet other noise ----


def test_the_initial_x_and_the_first_steps_noise_are_independent():
    """With one key for both, as before streams had names, the correlation is 1."""
    shape, rows = (4, 4096), StepRows(torch.arange(2), sigma=1.0)

    def first_noise(key):
        return reverse_step(torch.zeros(shape), torch.zeros(shape), 1, rows, key)[0]

    x = randn(noise_key(0, 0, 4, stream="initial"), shape)
    together = torch.stack((x.flatten(), first_noise(noise_key(0, 0, 4, stream="reverse")).flatten()))
    assert abs(float(torch.corrcoef(together)[0, 1])) < 0.03
    assert same_bits(x, first_noise(noise_key(0, 0, 4, stream="initial")))


def test_a_step_whose_rows_add_noise_wants_it_or_the_word():
    out, x = values(*SHAPE), values(*SHAPE, seed=1)
    rows = samplers.ddpm(SCHEDULE)
    for i in (0, 5, torch.tensor([0, 5])):
        with pytest.raises(ValueError, match=r"noise: expected a key or a tensor, .*or 'none' to leave it out, got None"):
            reverse_step(out, x, i, rows)
        with pytest.raises(ValueError, match="noise: expected one of 'none', got 'nothing'"):
            reverse_step(out, x, i, rows, "nothing")
    quiet, _ = reverse_step(out, x, 5, rows, "none")
    assert torch.equal(quiet, reverse_step(out, x, 5, rows, torch.zeros(SHAPE))[0])


def test_a_step_whose_rows_add_none_needs_no_word():
    rows = StepRows(torch.arange(3), k_0=0.5, p_o=1.0)
    assert not rows.adds_noise and samplers.ddpm(SCHEDULE).adds_noise
    assert torch.equal(reverse_step(torch.ones(SHAPE), torch.ones(SHAPE), 2, rows)[0], torch.full(SHAPE, 0.5))
    assert not samplers.ddpm(NoiseSchedule.linear(1)).adds_noise


def test_rows_say_what_their_loop_carries():
    never, once = torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])
    plain = StepRows(torch.arange(3), k_h1=never, c_x=never)
    assert (plain.history, plain.keeps) == (0, False) and plain.columns.g.tolist() == [1, 1, 1]
    assert [StepRows(torch.arange(3), **{f"k_h{j}": once}).history for j in (1, 2, 3)] == [1, 2, 3]
    assert all(StepRows(torch.arange(3), **{name: once}).keeps for name in ("c_x", "c_0"))


def test_timesteps_between_the_schedules_reach_the_device_as_they_are():
    times = torch.tensor([0.25, 500.5])
    assert torch.equal(StepRows(times).timesteps_on(times.device), times)
    assert StepRows(torch.arange(2)).timesteps_on(times.device).dtype == torch.int64


# ---- rows of one's own ----


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"k_1": 1.0}, TypeError, "columns: expected names among p_x, .*, got k_1"),
        ({"k_x": torch.ones(4)}, ValueError, r"k_x: expected a number or \[3\] .*, got shape \[4\]"),
        ({"sigma": torch.tensor([0.0, torch.nan, 1.0])}, ValueError, "sigma: expected numbers, got NaN"),
        ({"timesteps": torch.ones(1).half()}, TypeError, r"timesteps: expected int64 or float32 \[S\] .*, got float16 \[1\]"),
        ({"timesteps": torch.arange(0)}, TypeError, r"timesteps: expected .* one step or more, got int64 \[0\]"),
        ({"timesteps": [2, 1, 0]}, TypeError, "timesteps: expected .*, got list"),
        ({"variance_type": "small"}, ValueError, "variance_type: expected one of .*, got 'small'"),
    ],
)
def test_rows_that_can_not_be_are_refused(columns, error, message):
    with pytest.raises(error, match=message):
        StepRows(**{"timesteps": torch.arange(3), **columns})


# ---- a step's options ----

OPTIONS = {
    "guided by the rows": {"uncond_output"},
    "guided": {"uncond_output", "guidance"},
    "guided, of its own bound, with history": {"uncond_output", "guidance", "bound", "history"},
    "of its own bound": {"bound"},
    "with history": {"history"},
}


def operands(variance_type, dtype):
    channels = 6 if variance_type == "learned" else 3
    each = {"guidance": torch.tensor([-1.0, 0.5, 1, 7.5]), "bound": torch.tensor([0.3, 1, 1.7, 4])}
    out, u = values(8, channels, 5, 7, dtype=dtype).chunk(2)
    x, z, *history = (values(4, 3, 5, 7, dtype=dtype, seed=n) for n in range(1, 6))
    return out, x, z, {"uncond_output": u, "history": history, **each}


def formula(k, out, x, z, uncond_output=None, guidance=None, bound=None, history=()):
    """As it stands in `rows.StepRow`, in float64."""
    (out, *v), x, z = out.double().split(3, 1), x.double(), z.double()
    if uncond_output is not None:
        u, g = uncond_output.double()[:, :3], k.g if guidance is None else guidance.double().view(-1, 1, 1, 1)
        out = u + g * (out - u)
    x_0 = k.p_x * x + k.p_o * out
    b = k.bound if bound is None else bound.double().view(-1, 1, 1, 1)
    x_0 = x_0.clamp(-b, b) / (1 if bound is None else b)
    x_prev = k.k_x * x + k.k_0 * x_0 + k.k_o * out + k.sigma * (k.k_v * v[0].double() if v else x.new_zeros(())).exp() * z
    x_prev = x_prev + sum(k_h * h.double() for k_h, h in zip((k.k_h1, k.k_h2, k.k_h3), history, strict=False))
    return x_prev, x_0, k.c_x * x + k.c_0 * x_0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variance_type", ["fixed_small", "learned"])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_with_options_is_its_formula(options, variance_type, dtype):
    zero = {} if "history" in OPTIONS[options] else {"k_h1": 0.0, "k_h2": 0.0, "k_h3": 0.0}
    rows, i = every_column(1000, variance_type, **zero), torch.tensor([0, 300, 700, 999])
    out, x, z, given = operands(variance_type, dtype)
    given = {name: x for name, x in given.items() if name in OPTIONS[options]}
    expected = formula(StepRow(*(c[i].view(-1, 1, 1, 1) for c in rows.columns)), out, x, z, **given)
    tolerance = {"atol": {torch.bfloat16: 0.1, torch.float16: 0.01, torch.float32: 2e-5}.get(dtype, 1e-12), "rtol": 0}
    for got, wanted in zip(reverse_step(out, x, i, rows, z, return_kept=True, **given), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, **tolerance | {"rtol": tolerance["atol"]})


def test_a_sample_of_a_step_with_options_is_itself_in_any_batch():
    rows, (out, x, _, given) = every_column(), operands("fixed_small", torch.float32)
    key, i = noise_key(1, 2, 4), torch.tensor([0, 300, 700, 999])
    whole = reverse_step(out, x, i, rows, key, return_kept=True, **given)
    for b in range(4):
        one = {name: [h[b : b + 1] for h in x] if name == "history" else x[b : b + 1] for name, x in given.items()}
        alone = reverse_step(out[b : b + 1], x[b : b + 1], i[b : b + 1], rows, key[b : b + 1], return_kept=True, **one)
        assert all(same_bits(a, w[b : b + 1]) for a, w in zip(alone, whole, strict=True))


def test_a_history_that_no_coefficient_reads_may_hold_anything():
    first = torch.tensor([0.0, 1.0, 1.0])
    rows, x = StepRows(torch.arange(3), k_x=1.0, k_h1=first, k_h2=first), values(*SHAPE)
    history = [torch.full(SHAPE, torch.nan)] * 2
    assert same_bits(reverse_step(x, x, 0, rows, history=history)[0], x)
    assert reverse_step(x, x, 1, rows, history=history)[0].isnan().all()


def test_one_number_for_guidance_is_that_of_every_sample():
    rows, (out, x, _, given) = every_column(), operands("fixed_small", torch.bfloat16)
    u, history = given["uncond_output"], given["history"]
    steps = [reverse_step(out, x, 5, rows, "none", uncond_output=u, guidance=g, history=history)[0]
             for g in (3, 3.0, torch.tensor(3.0), torch.full((4,), 3.0).double())]  # fmt: skip
    assert all(same_bits(step, steps[0]) for step in steps)


# ---- models ----


@pytest.mark.parametrize("chain", [SCHEDULE, SCHEDULE.respace(20)], ids=["whole", "respaced"])
def test_a_model_that_changes_its_t_changes_nothing_else(chain):
    """Not the schedule (one sample's t would be a view of what the schedule keeps), nor the loss."""

    def rude(x, t):
        t.mul_(0).add_(7)
        return x / 2

    kept, diffusion, options = chain.timesteps.clone(), GaussianDiffusion(chain), {"progress": False, "steps": 10, "seed": 0}
    x_0, key = values(3, 3, 4, 4).clamp(-1, 1), noise_key(1, 2, 3)
    assert torch.equal(*(diffusion.training_loss(model, x_0, key) for model in (rude, half)))
    assert torch.equal(*(diffusion.sample(model, (1, 3, 4, 4), **options) for model in (rude, half)))
    assert torch.equal(*(diffusion.bits_per_dim(model, x_0, batch_size=1, **options)["total"] for model in (rude, half)))
    assert torch.equal(chain.timesteps, kept) and torch.equal(chain.timesteps_on(kept.device), kept)


@pytest.mark.parametrize("shape", [SHAPE, list(SHAPE), torch.Size(SHAPE)])
def test_any_sequence_is_a_shape(shape):
    diffusion = GaussianDiffusion(SCHEDULE)
    images = diffusion.sample(half, shape, steps=3, seed=torch.arange(2), progress=False)
    assert images.shape == SHAPE
    assert torch.equal(images[1:], diffusion.sample(half, (1, *SHAPE[1:]), steps=3, seed=1, progress=False))
    assert torch.equal(randn(noise_key(1, 0, 2), shape), randn(noise_key(1, 0, 2), SHAPE))
