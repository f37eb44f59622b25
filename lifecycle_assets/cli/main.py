"""The console script `lifecycle`: its commands by name, and the one place where an error becomes a line.

Lives here: the click group, and the boundary that turns what a person can mend into one line and an exit code.
Add here: a command's name and help; the command itself gets a module of its own, found by its name.
Not here: what a command answers.

Commands are imported when they are called: Dagster alone takes longer than `lifecycle --help` should.
Exit codes: 0 is well, 1 a check or the environment says no, 2 the command was called wrongly.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

COMMANDS = {
    "status": "Where each stage of each agent stands.",
    "lineage": "The chain both ways from a trace, model, run, version, alias or session.",
    "history": "Every move of an alias: from, to, when, who, why, on which evidence.",
    "plan": "Declared against actual; changes nothing.",
    "doctor": "What this platform can do, what is missing, and how to mend it.",
    "serve": "Serve what champion names, on the loopback interface.",
    "query": "Read-only SQL over an agent's tables and views.",
    "approve": "Approve the version that waits as challenger, on the evidence it waits on.",
    "reject": "Reject the version that waits as challenger, on the evidence it waits on.",
    "rollback": "Take the champion back to the version before it, and hand that to the runtime.",
    "shadow": "Compare VERSION (a number, or an alias such as challenger) with the champion on recorded requests.",
    "backfill": "What scoring archived days again would take; with --run, doing it.",
    "bundle": "Write a Databricks Asset Bundle with an agent's periodic jobs.",
}
"""Command to its help; the command is the object of that name in the module of that name."""


class Lifecycle(click.Group):
    """A group that imports a command when it is called, and says errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of their use."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"lifecycle_assets.cli.{cmd_name}"), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with their help, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit. Known faults are one line on standard error; anything else keeps its trace."""
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(given, prog_name or "lifecycle", complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("Interrupted.", err=True)
            sys.exit(130)
        except Exception as error:
            said = sentence_and_code(error)
            if said is None:
                raise
            say_error(*said, as_json="--json" in given)
        sys.exit(code if isinstance(code, int) else 0)


def sentence_and_code(error: Exception) -> tuple[str, int] | None:
    """What a person is told of an error and the exit code; None for an error nobody has thought of."""
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "lifecycle"
        return f"{error.format_message()} See {where} --help.", error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    from lifecycle_assets.refused import Refused
    from resources.explain import explain

    on_databricks = os.environ.get("LIFECYCLE_PLATFORM") == "databricks"
    environment = explain(error, "databricks" if on_databricks else "lifecycle")
    if isinstance(error, Refused):
        return str(error), 1 if environment else 2
    return (environment, 1) if environment else None


def say_error(sentence: str, code: int, *, as_json: bool) -> None:
    """Print the sentence and exit."""
    from lifecycle_assets.cli.output import clean

    line = clean(sentence)
    click.echo(line, err=True)
    if as_json:
        click.echo(json.dumps({"error": line}))
    sys.exit(code)


@click.group(cls=Lifecycle)
def main() -> None:
    """The life of a GenAI agent: what was built, what runs, what people said of it."""


if __name__ == "__main__":
    main()
