"""A schedule's tables under torch.export and torch.compile: they travel with the program, and equal schedules share a graph."""

import subprocess
import sys

import pytest
import torch
from helpers import spread, values
from torch._dynamo.testing import CompileCounterWithBackend

from fastddpm import NoiseSchedule, mse_loss, noise_key, q_sample, reverse_step, samplers

SHAPE = (3, 2, 4)


class Losses(torch.nn.Module):
    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.rows = schedule, samplers.ddpm(schedule)
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x_0, t, key):
        x_t = q_sample(x_0, t, self.schedule, key)
        loss = mse_loss(self.scale * x_t, t, self.schedule, key, x_0, prediction_type="v_prediction", weight="min_snr")
        return loss, reverse_step(x_t, x_t, t, self.rows, key)[0]


def inputs():
    return values(*SHAPE), spread(3), noise_key(1, 2, 3)


ELSEWHERE = """
import sys, torch, fastddpm
path, first = sys.argv[1:]
if first:  # whatever schedule is the first here
    other = fastddpm.NoiseSchedule.cosine(1000)
    fastddpm.q_sample(torch.zeros(1, 2), 5, other, fastddpm.noise_key(0))
program = torch.export.load(path).module()
torch.save(program(*torch.load(path + ".inputs")), path + ".outputs")
"""


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("first", ["", "another schedule"])
def test_an_exported_program_keeps_its_schedule(strict, first, tmp_path):
    module, path = Losses(NoiseSchedule.linear(1000)), str(tmp_path / "program.pt2")
    torch.export.save(torch.export.export(module, inputs(), strict=strict), path)
    torch.save(inputs(), path + ".inputs")
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, path, first], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for got, expected in zip(torch.load(path + ".outputs"), module(*inputs()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_takes_any_batch(strict):
    batch = torch.export.Dim("batch", max=64)
    module = Losses(NoiseSchedule.linear(1000))
    program = torch.export.export(module, inputs(), strict=strict, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    others = values(5, 2, 4, seed=1), spread(5), noise_key(3, 4, 5)
    for got, expected in zip(program.module()(*others), module(*others), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_equal_schedules_cost_one_compilation_and_another_one_its_own():
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def step(x_0, t, key, schedule):
        return q_sample(x_0, t, schedule, key)

    def check(schedule):
        assert torch.equal(step(*inputs(), schedule), q_sample(*inputs()[:2], schedule, inputs()[2]))

    for _ in range(4):
        check(NoiseSchedule.linear(1000))
    assert counter.frame_count == 1
    check(NoiseSchedule.cosine(1000))
    assert counter.frame_count == 2
    check(NoiseSchedule.linear(1000))
    check(NoiseSchedule.cosine(1000))
    assert counter.frame_count == 2


def test_two_schedules_meet_in_one_graph():
    linear, cosine = NoiseSchedule.linear(1000), NoiseSchedule.cosine(1000)
    weight = torch.nn.Parameter(torch.tensor(0.5))

    def step(x_0, t, key):
        teacher, student = q_sample(x_0, t, linear, key), q_sample(weight * x_0, t, cosine, key)
        wide = q_sample(x_0.double(), t, linear, key)
        return mse_loss(student, t, linear, key), mse_loss(student, t, linear, key, weight="min_snr"), teacher, wide

    for got, expected in zip(torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs()), step(*inputs()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_the_first_call_may_be_in_a_compiled_region_and_under_inference():
    """The table made while tracing is a real one, which whoever comes next trains with."""
    schedule = NoiseSchedule.linear(1000)
    with torch.inference_mode():
        torch.compile(lambda x, t, key: q_sample(x, t, schedule, key), backend="aot_eager")(*inputs())
    x = values(*SHAPE).requires_grad_()
    q_sample(x, spread(3), schedule, noise_key(1, 2, 3)).sum().backward()
    assert bool(x.grad.isfinite().all())


def test_a_table_is_made_while_a_graph_is_traced():
    """First made in a replay, it would lie in the memory of the graph's pool (mode="reduce-overhead")."""
    schedule, made = NoiseSchedule.linear(1000), []

    def backend(graph, inputs):
        made.append(len(schedule._made))
        return graph.forward

    x, key = values(2, 3, 4, 4), noise_key(0, batch_size=2)
    compiled = torch.compile(lambda x, t: q_sample(x, t, schedule, key), backend=backend)
    assert torch.equal(compiled(x, spread(2)), q_sample(x, spread(2), schedule, key)) and made == [1]


def check_shapes(module, compiled):
    """No first size is 2, which a key has too: a compiler takes equal sizes for one."""
    for batch, *rest in ((3, 5, 4), (6, 5, 4), (4, 6, 7)):
        given = values(batch, *rest, seed=batch), spread(batch), noise_key(batch, 2, batch)
        for got, expected in zip(compiled(*given), module(*given), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_one_graph_takes_every_shape():
    counter, module = CompileCounterWithBackend("aot_eager"), Losses(NoiseSchedule.linear(1000))
    check_shapes(module, torch.compile(module, fullgraph=True, dynamic=True, backend=counter))
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_inductor_gives_what_eager_code_gives(mode, dynamic):
    torch._dynamo.reset()  # it keeps a few compilations of one function
    module = Losses(NoiseSchedule.linear(1000))
    check_shapes(module, torch.compile(module, fullgraph=True, dynamic=dynamic, mode=mode))
