"""The command line: `fastddpm train`, `fastddpm sample`, `fastddpm eval`, `fastddpm info`.

Exit codes: 0 done; 2 a mistake of the user, told in one line; 128 + n stopped by signal n, the run saved.
"""

import argparse
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from .config import TrainConfig, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        try:
            return options.command(options)
        except ModuleNotFoundError as error:
            return _fail(f"{error}. The trainer's packages come with: pip install '.[train]'")
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
    commands = parser.add_subparsers(required=True, metavar="train | sample | eval | info")
    _add_train(commands.add_parser("train", help="train a DDPM on digits, a folder of images or a .npy file"))
    _add_sample(commands.add_parser("sample", help="draw images from a run"))
    _add_eval(commands.add_parser("eval", help="a run's bits/dim: the variational bound over a data set, term by term"))
    info = commands.add_parser("info", help="versions, what is built, which backend runs where, and why not")
    info.set_defaults(command=_info)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Trains a DDPM, and leaves in the run's folder: checkpoint.pt, samples.png, loss.png, metrics.jsonl, timing.json, "
        "and a pipeline for diffusers' DDPMPipeline.from_pretrained (not for --variance learned, which diffusers reads in "
        "another way). Ctrl-C saves and exits; --resume goes on from there."
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
    parser.add_argument("-n", type=_positive, default=64, metavar="INT", help="how many images (64)")
    parser.add_argument(
        "--steps", type=_positive, metavar="INT", help="steps of the chain to walk (250, or all of a shorter one)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="of the noise (0)")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="where to (RUN/samples.png)")


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
    print(f"Its bits/dim: fastddpm eval {out}")
    return 0


def _stopped(number: signal.Signals, step: int, out: Path) -> int:
    print(
        f"Stopped by {number.name} after step {step}, saved. Go on with: fastddpm train --resume --out {out}",
        file=sys.stderr,
    )
    return 128 + number


def _sample(options: argparse.Namespace) -> int:
    from . import trainer
    from .pictures import save_grid
    from .results import draw, load_network

    network, config = load_network(options.run)
    out = options.out or options.run / "samples.png"
    save_grid(draw(network, config, options.n, options.steps, options.seed, trainer.pick_device()), out)
    print(f"{options.n} images are in {out}")
    return 0


def _eval(options: argparse.Namespace) -> int:
    from . import evaluate as evaluation
    from . import trainer
    from .results import load_network

    network, config = load_network(options.run)
    evaluation.walked_chain(config, options.steps)  # a mistake is told before the data is read
    images = evaluation.load_data(config, network, options.data)[: options.limit]
    result = evaluation.evaluate(
        network, config, images, options.steps, options.batch_size, options.seed, trainer.pick_device()
    )
    data = options.data or config.data
    about = {"run": config.to_dict(), "data": data, "seed": options.seed, "clip_denoised": True, "cdf": "exact"}
    evaluation.save_evaluation(result, about, options.run)
    print(evaluation.format_evaluation(result, f"{len(images)} images of {data}, {len(result.timesteps)} steps"))
    print(f"\nEvery term is in {options.run / 'eval.json'}, a picture of them in {options.run / 'eval.png'}")
    return 0


def _info(options: argparse.Namespace) -> int:
    from .. import info

    info.main()
    return 0
