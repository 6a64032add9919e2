"""lucidrains' Trainer and ema_pytorch's average, patched."""

import copy
import itertools

import lucidrains
import pytest
import torch

import fastddpm
from fastddpm.integrations.lucidrains.fused import fused
from fastddpm.integrations.patch import MARK

theirs = lucidrains.module()
EMA = pytest.importorskip("ema_pytorch").EMA


class Network(torch.nn.Module):
    channels = out_dim = 1
    self_condition = False

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(4, 1, 1))

    def forward(self, x, t, x_self_cond=None):
        return self.layers(x + t.view(-1, 1, 1, 1) / 100)


def diffusion():
    torch.manual_seed(0)
    return theirs.GaussianDiffusion(Network(), image_size=8, timesteps=20, sampling_timesteps=4)


def trainer(folder, model=None, **options):
    """Of 20 steps of two micro-batches, with two checkpoints."""
    for i in range(100):
        (folder / f"{i}.png").touch()
    options = {"train_num_steps": 20, "save_and_sample_every": 10, "num_samples": 4, "ema_update_every": 2, **options}
    options |= {"train_batch_size": 8, "gradient_accumulate_every": 2, "calculate_fid": False, "max_grad_norm": 0.01}
    return theirs.Trainer(model or diffusion(), str(folder), results_folder=str(folder / "results"), **options)


def trained(one):
    """Its micro-steps' losses, and the generator's state."""
    losses = []
    generator = torch.Generator().manual_seed(5)
    one.dl = (torch.rand(8, 1, 8, 8, generator=generator) for _ in itertools.count())
    hook = one.model.register_forward_hook(lambda model, given, loss: losses.append(loss.item()))
    torch.manual_seed(1)
    one.train()
    hook.remove()
    return torch.tensor(losses), torch.get_rng_state()


def leaves(state, path=""):
    """Every value in nested dicts and lists, by its path."""
    if isinstance(state, (dict, list)):
        for name, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from leaves(value, f"{path}.{name}")
    else:
        yield path, state


@pytest.fixture
def folders(tmp_path):
    made = [tmp_path / name for name in ("plain", "patched")]
    for folder in made:
        folder.mkdir()
    return made


@pytest.mark.parametrize("update", [False, True])
def test_a_patched_trainer_trains_as_the_original(folders, capsys, update):
    plain, patched = map(trainer, folders)
    handle = fastddpm.patch(patched, update=update)
    (wanted, state), (came, its_state) = trained(plain), trained(patched)
    assert len(came) == 40 and torch.equal(state, its_state)
    torch.testing.assert_close(came, wanted, rtol=0, atol=1e-6)
    assert patched.model.training and not patched.ema.ema_model.training  # it samples from the average
    assert not any(part.fell_back for part in (handle, *handle.parts))
    shown = capsys.readouterr().err
    assert shown.count(f"loss: {wanted[-2:].sum() / 2:.4f}") >= 2 and shown.count("20/20") >= 2
    files = [sorted(path.name for path in (folder / "results").iterdir()) for folder in folders]
    assert files[0] == files[1] == ["model-1.pt", "model-2.pt"]
    for name in files[0]:
        one, other = (dict(leaves(torch.load(folder / "results" / name))) for folder in folders)
        assert list(one) == list(other)
        for path in one:
            if isinstance(one[path], torch.Tensor):
                torch.testing.assert_close(other[path], one[path], rtol=0, atol=2e-6, msg=path)
            else:
                assert one[path] == other[path], path


@pytest.mark.parametrize("update", [False, True])
def test_undone_it_trains_with_the_original_bits(folders, update):
    plain, undone = map(trainer, folders)
    before = dict(vars(undone))
    handle = fastddpm.patch(undone, update=update)
    handle.undo()
    assert list(vars(undone)) == list(before) and all(vars(undone)[name] is value for name, value in before.items())
    (wanted, _), (came, _) = trained(plain), trained(undone)
    assert torch.equal(wanted, came)
    one, other = plain.ema.state_dict(), undone.ema.state_dict()
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_its_diffusion_its_average_and_that_one_s_diffusion_are_patched_with_it(folders):
    made = trainer(folders[0])
    with fastddpm.patch(made, "philox") as handle:
        parts = [part.obj for part in handle.parts]
        assert all(one is other for one, other in zip(parts, (made.model, made.ema, made.ema.ema_model), strict=True))
        assert made.ema.use_foreach and made.ema.ema_model.p_sample.__self__ is made.ema.ema_model
        assert all(part.noise == "philox" for part in handle.parts)
        assert all(said in handle.summary() for said in ("train: fused Adam", "multi-tensor", "q_sample: one pass"))
    assert not made.ema.use_foreach and MARK not in vars(made.ema.ema_model)


def test_a_diffusion_that_was_patched_before_stays_so(folders):
    model = diffusion()
    fastddpm.patch(model)
    made = trainer(folders[0], model, train_num_steps=1)
    with fastddpm.patch(made) as handle:
        assert [part.obj for part in handle.parts] == [made.ema]
        trained(made)
    assert MARK in vars(model) and MARK in vars(made.ema.ema_model)


@pytest.mark.parametrize("update", [False, True])
def test_training_goes_on_from_a_checkpoint_of_either(folders, update):
    plain, patched = map(trainer, folders)
    fastddpm.patch(patched, update=update)
    for one in (plain, patched):
        trained(one)
        one.train_num_steps = 25
    files = [folder / "results" / "model-2.pt" for folder in folders]
    texts = [file.read_bytes() for file in files]
    for file, text in zip(files, reversed(texts), strict=True):
        file.write_bytes(text)
    losses = []
    for one in (plain, patched):
        one.load(2)
        losses.append(trained(one)[0])
        assert one.step == 25 and len(losses[-1]) == 10
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)


# ---- the optimizer ----


def test_undone_half_way_it_trains_on(folders):
    plain, patched = map(trainer, folders)
    losses = []
    for one in (plain, patched):
        one.train_num_steps = 10
        if one is patched:
            handle = fastddpm.patch(one, update=True)
        trained(one)
        if one is patched:
            assert isinstance(one.opt.optimizer, fastddpm.optim.AdamW)
            handle.undo()
        one.train_num_steps = 20
        losses.append(trained(one)[0])
        assert type(one.opt.optimizer) is torch.optim.Adam
    assert len(losses[0]) == 20
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    one, other = (dict(leaves(one.opt.state_dict())) for one in (plain, patched))
    assert list(one) == list(other) and one[".state.0.step"] == other[".state.0.step"] == 20


def test_an_optimizer_that_is_asked_for_more_is_given_back(folders):
    """Weight decay, which Adam adds to the gradients."""
    plain, patched = map(trainer, folders)
    handle = fastddpm.patch(patched, update=True)
    for one in (plain, patched):
        one.train_num_steps = 5
        trained(one)
        one.opt.param_groups[0]["weight_decay"] = 0.5
        one.train_num_steps = 10
    torch.testing.assert_close(trained(patched)[0], trained(plain)[0], rtol=0, atol=1e-6)
    assert (
        type(patched.opt.optimizer) is torch.optim.Adam and "fell back 1 times: step: Adam's weight_decay" in handle.summary()
    )


def test_a_scaled_loss_keeps_its_optimizer(folders):
    made = trainer(folders[0])
    made.accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)
    handle = fastddpm.patch(made, update=True)
    assert type(made.opt.optimizer) is torch.optim.Adam
    assert "left to the original: step (accelerate scales the loss, or shards the weights)" in handle.summary()


def optimizer(cls=torch.optim.Adam, dtype=torch.float32, **options):
    parameters = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for _ in range(2)]
    return cls(parameters, lr=0.1, **options)


def stepped(one, steps=3):
    for i in range(steps):
        for p in one.param_groups[0]["params"]:
            p.grad = torch.full_like(p, i + 1)
        one.step()
    return [p.detach().clone() for p in one.param_groups[0]["params"]]


def test_adam_is_fused_inside_only():
    plain, one = optimizer(), optimizer()
    before = stepped(plain)
    with fused(one):
        assert one.param_groups[0]["fused"]
        after = stepped(one)
        assert all(state["step"].device == p.device for p, state in one.state.items())
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
    assert dict(leaves(one.state_dict()["param_groups"])) == dict(leaves(plain.state_dict()["param_groups"]))
    torch.testing.assert_close(stepped(one), stepped(plain), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "one",
    [optimizer(torch.optim.SGD), optimizer(foreach=True), optimizer(differentiable=True), optimizer(fused=True)],
    ids=["SGD", "foreach", "differentiable", "fused"],
)
def test_what_somebody_chose_stays(one):
    before = dict(leaves(copy.deepcopy(one.state_dict()["param_groups"])))
    with fused(one):
        assert dict(leaves(one.state_dict()["param_groups"])) == before
    assert dict(leaves(one.state_dict()["param_groups"])) == before


def test_it_is_as_it_was_after_an_exception():
    one = optimizer()
    with pytest.raises(KeyError), fused(one):
        raise KeyError
    assert one.param_groups[0]["fused"] is None


# ---- the average ----


def test_an_average_is_the_original_s():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    plain, patched = (EMA(model, update_after_step=2, update_every=2) for _ in range(2))
    handle = fastddpm.patch(patched)
    for _ in range(12):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        plain.update()
        patched.update()
    one, other = plain.state_dict(), patched.state_dict()
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    handle.undo()
    assert list(vars(patched)) == list(vars(plain)) and not patched.use_foreach
