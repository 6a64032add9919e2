"""The command line: `fastddpm train`, `fastddpm sample`, `fastddpm compare`, `fastddpm eval`, `fastddpm info`.

Exit codes: 0 done, or ended by SIGTERM with the run saved; 2 a mistake of the user, told in one line; 130 stopped by Ctrl-C.
"""

import argparse
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import ranks
from .config import DRAWS, TrainConfig, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        try:
            with ranks.joined():
                return options.command(options)
        except ModuleNotFoundError as error:
            return _fail(f"{error}. The trainer's packages come with: pip install 'fastddpm[train]', in a checkout '.[train]'")
        except (UsageError, OSError) as error:
            return _fail(str(error))
        except KeyboardInterrupt:
            return _fail("interrupted", 128 + signal.SIGINT)


def _fail(message: str, code: int = 2) -> int:
    print(f"fastddpm: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastddpm", description="Trains small diffusion models on fused kernels, and samples."
    )
    commands = parser.add_subparsers(required=True, metavar="train | sample | compare | eval | info")
    _add_train(commands.add_parser("train", help="train a DDPM, a flow or EDM on digits, a folder of images or a .npy file"))
    _add_sample(commands.add_parser("sample", help="draw images from a run"))
    _add_compare(commands.add_parser("compare", help="every sampler's images from the same noise, their times and distances"))
    _add_eval(commands.add_parser("eval", help="a run's bits/dim: the variational bound over a data set, term by term"))
    info = commands.add_parser("info", help="versions, what is built, which backend runs where, and why not")
    info.set_defaults(command=_info)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains a DDPM (--process flow: a rectified flow; edm: EDM), and leaves in the run's folder: checkpoint.safetensors, "
        "samples.png, loss.png, metrics.jsonl, and of a DDPM timing.json and a pipeline for diffusers' "
        "DDPMPipeline.from_pretrained (not for --class-conditional, for whose labels it has no place, nor for --variance "
        "learned, which diffusers reads in another way). Ctrl-C saves and exits; "
        "--resume goes on from there. On several GPUs, or processes: torchrun --nproc-per-node 2 -m fastddpm train ..; the run "
        "is the same, and may go on with another number of them."
    )
    parser.set_defaults(command=_train)
    parser.add_argument("--data", default=argparse.SUPPRESS, metavar="digits|DIR|FILE.npy", help="what to learn from")
    parser.add_argument("--out", type=Path, metavar="RUN", help="the run's folder (runs/ and the data's name)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on with the run in --out; its settings need not be repeated")
    start.add_argument("--overwrite", action="store_true", help="begin anew where --out holds a run already")
    settings = parser.add_argument_group("settings of the run")
    for setting in fields(TrainConfig)[1:]:
        about = setting.metadata["about"] + ("" if setting.default in (None, False) else f" ({setting.default})")
        option, kind = "--" + setting.name.replace("_", "-"), setting.metadata["kind"]
        if kind is bool:
            settings.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=about)
            continue
        settings.add_argument(option, type=kind, default=argparse.SUPPRESS, metavar=kind.__name__.upper(), help=about)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    parser.description = "Draws images from a run's averaged weights into one grid."
    parser.set_defaults(command=_sample)
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder of `fastddpm train`")
    parser.add_argument("-n", type=_positive, metavar="INT", help="how many images (64, or one for each of several seeds)")
    parser.add_argument(
        "--sampler", type=_sampler, metavar="NAME", help=f"one of {', '.join(DRAWS)} (ddpm; of a flow euler, of edm heun)"
    )
    steps = "steps to walk (250 of ddpm, 50 of others, of edm 18, or what a shorter chain has)"
    parser.add_argument("--steps", type=_positive, metavar="INT", help=steps)
    spacing = "which ones: leading, trailing, linspace or karras, as docs/samplers.md says (the sampler's own)"
    parser.add_argument("--spacing", metavar="NAME", help=spacing)
    seed = "of the noise (0); of several each makes one image, the first of its own"
    parser.add_argument("--seed", type=_list_of(int), default=[0], metavar="INT,..", help=seed)
    _add_conditions(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="where to, in RUN (samples.png)")
    parser.add_argument(
        "--gif", type=Path, metavar="FILE.gif", help="where to draw the samples at the steps between, too, in RUN"
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Draws the same images, from one x_T, by every sampler in some numbers of steps. Prints a table of how long each took "
        "and how far it ends from the images that DDIM makes in all steps of the chain; writes a picture, a row a sampler."
    )
    parser.set_defaults(command=_compare)
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder of `fastddpm train`")
    parser.add_argument("-n", type=_positive, default=4, metavar="INT", help="how many images (4)")
    samplers = f"which, of {', '.join(DRAWS)} (all that can walk these steps)"
    parser.add_argument("--sampler", type=_list_of(_sampler), metavar="NAME,..", help=samplers)
    parser.add_argument("--steps", type=_list_of(_positive), default=[10, 20, 50], metavar="INT,..", help="how many (10,20,50)")
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="of the noise (0)")
    _add_conditions(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="where to, in RUN (compare.png)")


def _add_conditions(parser: argparse.ArgumentParser) -> None:
    label = "class of all images, by its name: a digit, or a sub-folder's (of a class-conditional run all in turn)"
    parser.add_argument("--label", metavar="NAME", help=label)
    guidance = "scale of classifier-free guidance towards it (none, which is 1)"
    parser.add_argument("--guidance", type=_finite, metavar="FLOAT", help=guidance)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Computes the variational bound on -log p of each image, in bits/dim, with a run's averaged weights: the total, the "
        "prior's and every step's term, and the squared errors of x_0 and of the noise. Prints a table; writes RUN/eval.json "
        "and RUN/eval.png. The likelihood is that of one of 256 levels: bits/dim of 8-bit images compare with published ones. "
        "Of digits, whose pixels have 17 levels, they compare only between runs on digits."
    )
    parser.set_defaults(command=_eval)
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder of `fastddpm train`")
    parser.add_argument("--data", metavar="digits|DIR|FILE.npy", help="what to evaluate on (what the run learned from)")
    parser.add_argument(
        "--steps", type=_positive, metavar="INT", help="steps of the chain to walk (all); fewer are quicker, and another bound"
    )
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="INT", help="images at a time (64)")
    parser.add_argument("--limit", type=_positive, metavar="INT", help="only so many images, the first ones (all)")
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="of the noise (0)")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return number


def _sampler(text: str) -> str:
    if text not in DRAWS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(DRAWS)}, got {text!r}")
    return text


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Parts between commas."""

    def parts(text: str) -> list[Any]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected values with commas between, got {text!r}") from None

    return parts


def _train(options: argparse.Namespace) -> int:
    given = {setting.name: getattr(options, setting.name) for setting in fields(TrainConfig) if hasattr(options, setting.name)}
    if "data" not in given and not (options.resume and options.out):
        raise UsageError("--data: expected digits, a folder of images or a .npy file (or --resume with --out), got none")
    out = options.out or Path("runs") / Path(given["data"]).resolve().stem

    from . import checkpoint, trainer
    from .results import write_results

    if options.resume and checkpoint.exists(out):
        run = trainer.resume(out, **given)
    elif "data" in given:
        run = trainer.train(TrainConfig(**given), out, options.overwrite)
    else:
        raise UsageError(f"--resume: expected a run in --out, got '{out}', which holds no checkpoint")
    if run.stopped_by is not None:
        return _stopped(run.stopped_by, run.step, out)
    print(write_results(run))
    print(f"\nThe run is in {out}: see samples.png and loss.png there, or draw more with: fastddpm sample {out}")
    if run.config.process == "ddpm":
        print(f"Its bits/dim: fastddpm eval {out}")
    return 0


def _stopped(number: signal.Signals, step: int, out: Path) -> int:
    if ranks.rank() == 0:
        go_on = f"Go on with: fastddpm train --resume --out {out}"
        print(f"Stopped by {number.name} after step {step}, saved. {go_on}", file=sys.stderr)
    return 0 if number == signal.SIGTERM else 128 + number


def _sample(options: argparse.Namespace) -> int:
    import torch

    from . import trainer
    from .drawing import draw, labels_of
    from .pictures import Film, save_grid
    from .runs import load_run

    run, seeds = load_run(options.run), options.seed
    count = options.n or (64 if len(seeds) == 1 else len(seeds))
    if len(seeds) not in (1, count):
        raise UsageError(f"--seed: expected one, or one for each of the images, -n {count}, got {len(seeds)}")
    seed = seeds[0] if len(seeds) == 1 else torch.tensor([(n + 2**63) % 2**64 - 2**63 for n in seeds])  # as one is taken
    out = _checked("--out", options.run, options.out or Path("samples.png"), ".png")
    film = options.gif and Film(_checked("--gif", options.run, options.gif, ".gif"))
    given = (options.sampler, options.steps, seed, labels_of(run, options.label, count), options.guidance)
    images = draw(run, count, *given, trainer.pick_device(), spacing=options.spacing, callback=film)
    if ranks.rank() > 0:
        return 0
    save_grid(images, out)
    print(f"{count} images are in {out}")
    if film:
        film.save()
        print(f"The way to them is in {film.path}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from . import trainer
    from .comparison import able, compare, format_comparison, save_comparison
    from .drawing import labels_of
    from .runs import load_run

    run = load_run(options.run)
    out = _checked("--out", options.run, options.out or Path("compare.png"), ".png")
    samplers = options.sampler or able(run.config, options.steps) or DRAWS  # of which the first says what is wrong
    given = (options.steps, options.n, options.seed, labels_of(run, options.label, options.n), options.guidance)
    reference, drawn = compare(run, samplers, *given, trainer.pick_device())
    if ranks.rank() == 0:
        save_comparison(reference, drawn, out)
    print(format_comparison(drawn, f"{options.n} images; distance: rms, from DDIM's of all {run.config.timesteps} steps"))
    left_out = [name for name in DRAWS if name not in samplers]
    if left_out and not options.sampler:
        print(f"Left out, since they can't walk these steps of this run: {', '.join(left_out)}")
    print(f"\nThe images are in {out}")
    return 0


def _checked(option: str, run: Path, path: Path, suffix: str) -> Path:
    """A path in the run's folder that can be written, seen before anything is drawn."""
    if not path.resolve().is_relative_to(run.resolve()):
        path = run / path
    if not path.resolve().is_relative_to(run.resolve()):
        raise UsageError(f"{option}: expected a file in the run's folder, '{run}', got '{path}'")
    if path.suffix.lower() != suffix:
        raise UsageError(f"{option}: expected a {suffix} file, got '{path}'")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option}: expected a file that can be written, in a folder that exists, got '{path}'")
    return path


def _eval(options: argparse.Namespace) -> int:
    from . import evaluate as evaluation
    from . import trainer
    from .runs import load_run

    run = load_run(options.run)
    evaluation.walked_chain(run.config, options.steps)  # a mistake is told before the data is read
    images = evaluation.load_data(run, options.data, options.limit)
    result = evaluation.evaluate(run, images, options.steps, options.batch_size, options.seed, trainer.pick_device())
    data = options.data or run.config.data
    about = {"run": run.config.to_dict(), "data": data, "seed": options.seed, "clip_denoised": True, "cdf": "exact"}
    if ranks.rank() == 0:
        evaluation.save_evaluation(result, about, options.run)
    print(evaluation.format_evaluation(result, f"{result.images} images of {data}, {len(result.timesteps)} steps"))
    print(f"\nEvery term is in {options.run / 'eval.json'}, a picture of them in {options.run / 'eval.png'}")
    return 0


def _info(options: argparse.Namespace) -> int:
    from .. import info

    info.main()
    return 0
