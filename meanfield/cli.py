"""The command line: `meanfield run | sweep | verify | report | sim | compare | backends | selftest`.

Exit codes: 0 done, 1 a check failed (or `compare` found different numbers), 2 bad input or usage, 3 the run diverged,
130 interrupted with its state saved. Heavy packages are imported where they are used, so that help comes at once.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meanfield import mpi
from meanfield.errors import InputError, MeanfieldError, printable

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from meanfield.config import RunConfig
    from meanfield.mpi import Mpi


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every expected failure is a message, never a traceback."""
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("default", UserWarning)
        return _guarded(options)


def _guarded(options: argparse.Namespace) -> int:
    """Carry out a command; turn every expected failure into a message and an exit code."""
    try:
        if options.command not in ("run", "sweep"):
            mpi.refuse_several(options.command)
        code = int(options.action(options))
        sys.stdout.flush()
        return code
    except MeanfieldError as error:
        _say(str(error))
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except MemoryError:
        _say("out of memory; take a smaller cloud.m or data.n, or fewer cloud.replicates")
        return 2
    except ArithmeticError as error:
        _say(f"numbers left double precision ({error}); take less extreme values")
        return 2
    except OSError as error:
        _say(f"{error.filename or 'a file'}: {error.strerror or error}")
        return 2


def _show_warning(message: Any, *rest: Any, **more: Any) -> None:
    _say(f"warning: {message}")


def _parser() -> argparse.ArgumentParser:
    from meanfield import __version__

    parser = argparse.ArgumentParser(
        prog="meanfield",
        description="Simulate wide two-layer networks as particles, and measure how far their law moves.",
        epilog="exit codes: 0 done, 1 a check failed, 2 bad input, 3 diverged, 130 interrupted (state saved)",
    )
    parser.add_argument("--version", action="version", version=f"meanfield {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_sweep(commands)
    verify = commands.add_parser("verify", help="judge runs theorem by theorem (several, or a directory of runs)")
    verify.add_argument("directories", type=Path, metavar="DIR", nargs="+")
    verify.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    verify.set_defaults(action=_verify)
    report = commands.add_parser("report", help="write DIR/report.html with its figures")
    report.add_argument("directory", type=Path, metavar="DIR")
    report.set_defaults(action=_report)
    _add_sim(commands)
    compare = commands.add_parser("compare", help="say where two runs differ and by how much (exit 1 if numbers do)")
    compare.add_argument("first", type=Path, metavar="DIR")
    compare.add_argument("second", type=Path, metavar="DIR")
    compare.set_defaults(action=_compare)
    backends = commands.add_parser("backends", help="which backends can run here, and how fast")
    backends.set_defaults(action=_backends)
    selftest = commands.add_parser("selftest", help="check the physics against closed forms, a minute at most")
    selftest.set_defaults(action=_selftest)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser("run", help="run a configuration; goes on where an interrupted run stopped")
    run.add_argument("config", type=Path, metavar="CONFIG.toml")
    run.add_argument(
        "--out", type=Path, metavar="DIR", help="run directory (default: runs/<name of the configuration>)"
    )
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. flow.lam=0.1")
    run.add_argument("--backend", metavar="NAME", help="where contractions run (see `meanfield backends`)")
    run.add_argument("--threads", type=int, metavar="N", help="threads over blocks of particles (default: every core)")
    run.add_argument("--quiet", action="store_true", help="print errors alone")
    run.add_argument("--show", action="store_true", help="print the resolved configuration and do nothing")
    run.set_defaults(action=_run)


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser("sweep", help="run every point of the table [sweep]; goes on where it was stopped")
    sweep.add_argument("config", type=Path, metavar="CONFIG.toml")
    sweep.add_argument("--out", type=Path, metavar="DIR", help="default: runs/sweeps/<name of the configuration>")
    sweep.add_argument("--jobs", type=int, default=1, metavar="N", help="points run at a time (default 1)")
    sweep.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. cloud.m=512")
    sweep.add_argument("--backend", metavar="NAME", help="where contractions run")
    sweep.add_argument("--threads", type=int, metavar="N", help="threads of one point (default: the cores / jobs)")
    sweep.add_argument("--quiet", action="store_true", help="print errors alone")
    sweep.set_defaults(action=_sweep)


def _add_sim(commands: Any) -> None:
    sim = commands.add_parser("sim", help="reproduce a published figure or claim (exit 1 if a claim fails)")
    sim.add_argument("name", nargs="?", metavar="NAME", help="which one; --list shows all")
    sim.add_argument("--list", action="store_true", help="name, run time, statement and figure of every simulation")
    sim.add_argument("--smoke", action="store_true", help="a few small points, in seconds")
    sim.add_argument("--plot-only", action="store_true", help="draw and judge the points that are there")
    sim.add_argument("--out", type=Path, metavar="DIR", help="default: runs/sims/NAME, or NAME-smoke")
    sim.add_argument("--jobs", type=int, default=1, metavar="N", help="points built at a time (default 1)")
    sim.set_defaults(action=_sim)


def _run(options: argparse.Namespace) -> int:
    from meanfield import config as configuration

    config = configuration.load(options.config, _overrides(options))
    directory = options.out or Path("runs") / options.config.stem
    if options.show:
        print(configuration.dumps(config), end="")
        return 0
    if config.sweep and not options.quiet:
        _say("the table [sweep] is for `meanfield sweep`; this is a single run")
    return _carry(options, config, directory)


def _overrides(options: argparse.Namespace) -> list[str]:
    """Return what the command line puts in place of what stands in the file."""
    return [*options.set, *([] if options.backend is None else [f"cloud.backend={options.backend}"])]


def _carry(options: argparse.Namespace, config: "RunConfig", directory: Path) -> int:
    ranks = mpi.world()
    with mpi.guarded(ranks):
        if ranks is not None and ranks.rank > 0:
            options.quiet = True
            warnings.simplefilter("ignore", UserWarning)
        return _carry_on(options, config, directory, ranks)


def _carry_on(options: argparse.Namespace, config: "RunConfig", directory: Path, ranks: "Mpi | None") -> int:
    """Carry a run through on one of the ranks that mpirun started, or in a process on its own."""
    from meanfield import backends, experiment, parallel, recovery
    from meanfield.ranks import Alone, on_first

    backends.check_name(config.cloud.backend)
    given = options.threads
    parallel.set_threads(ranks.threads() if given is None and ranks is not None else given)
    if not options.quiet:
        print(printable(_announcement(config, directory)), file=sys.stderr, flush=True)
    if on_first(ranks or Alone(), lambda: recovery.is_finished(directory)):
        return on_first(ranks or Alone(), lambda: _finished(options, config, directory))
    say = None if options.quiet else _say
    quiet = options.quiet
    done = experiment.run(config, directory, quiet=quiet, say=say, communicator=ranks)
    if not options.quiet:
        print("\n".join(done.lines()))
        timings = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in done.metadata["timings"].items())
        print(f"timings: {timings}")
        print(f"report: {directory / 'report.html'}")
    violated = done.metadata.get("violated", [])
    return _complain(violated, directory) if ranks is None or ranks.rank == 0 else int(bool(violated))


def _finished(options: argparse.Namespace, config: "RunConfig", directory: Path) -> int:
    from meanfield import experiment

    experiment.check_claim(config, directory)
    if not (directory / "report.html").exists():
        path, _ = experiment.report(directory)
        print(f"{directory} is finished; the missing {path} was written")
    elif not options.quiet:
        print(f"{directory} is finished; nothing was changed")
    return 0


def _say(text: str) -> None:
    print(f"meanfield: {printable(text)}", file=sys.stderr, flush=True)


def _announcement(config: "RunConfig", directory: Path) -> str:
    shape, flow = config.cloud, config.flow
    length = f"time {flow.time:g}" if flow.time is not None else f"{flow.steps} steps"
    return (
        f"meanfield run: {config.data.source}, {config.network.activation}, alpha = {config.network.alpha}, "
        f"lam = {flow.lam:g}, m = {shape.m}, {shape.replicates} replicates, {length} -> {directory}"
    )


def _complain(violated: Sequence[str], directory: Path) -> int:
    """Say loudly what is violated, and return the exit code."""
    if not violated:
        return 0
    _say(f"ERROR: violated on {directory}: {'; '.join(violated)} (see verify.json)")
    return 1


def _sweep(options: argparse.Namespace) -> int:
    ranks = mpi.world()
    if ranks is None or ranks.size == 1:
        return _sweep_points(options, None)
    from meanfield import backends

    backends.settle(ranks.place)
    with mpi.workers(ranks) as executor:
        return 0 if executor is None else _sweep_points(options, executor)


def _sweep_points(options: argparse.Namespace, executor: "Executor | None") -> int:
    from meanfield import backends, parallel
    from meanfield import config as configuration
    from meanfield.sweep import summary, sweep

    config = configuration.load(options.config, _overrides(options))
    swept = [text for text in options.set if text.partition("=")[0].strip() in config.sweep]
    if swept:
        raise InputError(
            f"--set {swept[0]} came, and the key is swept: type --set sweep.{swept[0].split('=')[0]}=[...]"
        )
    backends.check_name(config.cloud.backend)
    if options.jobs == 1:
        parallel.set_threads(options.threads)
    directory = options.out or Path("runs") / "sweeps" / options.config.stem
    data = sweep(
        config,
        directory,
        executor=executor,
        jobs=options.jobs,
        threads=options.threads,
        quiet=options.quiet,
        say=(lambda text: None) if options.quiet else _say,
    )
    text, code = summary(data)
    if not options.quiet:
        print(f"{text}\n{directory / 'sweep.nc'}")
    return code


def _verify(options: argparse.Namespace) -> int:
    from meanfield.store import plain
    from meanfield.survey import survey

    found = survey(options.directories)
    single = len(options.directories) == 1 and list(found.verifications) == [str(options.directories[0])]
    # One run named itself is a table, and a list in JSON; anything else is a survey.
    verdicts = next(iter(found.verifications.values())) if single else found
    if options.json:
        print(json.dumps(plain(verdicts.records()), indent=2, ensure_ascii=False))
    else:
        print(verdicts.table())
    return max(_complain([v.statement for v in one.violated], Path(name)) for name, one in found.verifications.items())


def _report(options: argparse.Namespace) -> int:
    from meanfield import experiment

    path, verification = experiment.report(options.directory)
    print(path)
    return _complain([v.statement for v in verification.violated], options.directory)


def _sim(options: argparse.Namespace) -> int:
    from meanfield import gallery

    if options.list:
        print(gallery.listing())
        return 0
    if options.name is None:
        raise InputError("which simulation? Type `meanfield sim NAME`; `meanfield sim --list` has all of them")
    directory = options.out or Path("runs") / "sims" / (options.name + ("-smoke" if options.smoke else ""))
    outcome = gallery.run(
        options.name, directory, smoke=options.smoke, plot_only=options.plot_only, jobs=options.jobs, say=_say
    )
    print(outcome.table())
    print("\n".join(f"figure: {path}" for path in outcome.figures if path.suffix == ".png"))
    return 1 if outcome.failed else 0


def _compare(options: argparse.Namespace) -> int:
    from meanfield import experiment

    lines, equal = experiment.compare(options.first, options.second)
    print("\n".join(lines) if lines else "equal: every recorded value and the last clouds, bit for bit")
    return 0 if equal else 1


def _backends(options: argparse.Namespace) -> int:
    from meanfield import selftest

    print(selftest.speeds())
    return 0


def _selftest(options: argparse.Namespace) -> int:
    from meanfield import selftest

    text, passed = selftest.run()
    print(text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
