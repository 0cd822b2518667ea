"""The command line: lazily loaded commands, and errors as one line on stderr.

Exit codes: 0 success, 1 a check failed, 2 bad input, 130 interrupted. `--help` must answer in under half a
second, so nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import click

from fqtsim import __version__
from fqtsim.errors import FqtsimError, InputError

#: Command -> (module, what --help says of it).
_COMMANDS = {
    "demo": ("demo", "Train on hypothetical hardware and check it, in under four minutes."),
    "new": ("files", "Write a commented hardware file to start from."),
    "validate": ("files", "Check hardware and recipe files."),
    "explain": ("explain", "Show every product and addition of one output of a GEMM."),
    "train": ("train", "Train a model on described hardware, bit for bit."),
    "eval": ("eval", "Evaluate a checkpoint on described hardware, forward only."),
    "shrink": ("shrink", "Find the narrowest accumulators that still train."),
    "crosscheck": ("crosscheck", "Train the same run on two backends and compare every bit."),
    "verify-run": ("verify_run", "Replay a published run and say equal, or where not."),
    "sweep": ("sweep", "Train a grid of designs and judge each against fp32 and QAT."),
    "report": ("sweep", "Print a sweep's table again and write its page."),
    "analyze": ("analyze", "Measure bias and variance of low-bit gradients, layer by layer."),
    "golden": ("golden", "Make golden vectors, and check a kernel against them."),
    "identify": ("identify", "Find what hardware, or which change of it, produced given outputs."),
    "hardware": ("catalogue", "List or show hardware descriptions."),
    "recipe": ("catalogue", "List or show training recipes."),
    "data": ("data", "Get data sets."),
}


class _LazyGroup(click.Group):
    """A group that knows its commands' names and imports one only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"fqtsim.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="fqtsim")
def cli() -> None:
    """Train real networks, bit for bit, on integer hardware that a YAML file describes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        code = cli.main(args=arguments, prog_name="fqtsim", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return 2
    except InputError as error:
        return _fail(str(error), 2)
    except FqtsimError as error:
        return _fail(str(error), 1)
    except SystemExit:
        # click leaves this way when the reader went away (`fqtsim ... | head`); a shell calls that 128 + SIGPIPE.
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}; check the path and its permissions", 2)
    except KeyboardInterrupt:
        return 130


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {message}" if ":" not in message else message, err=True)
    return code
