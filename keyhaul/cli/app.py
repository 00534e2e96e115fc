"""The command tree: what `keyhaul --help` shows. Each command's work is in its own module."""

from __future__ import annotations

import typer

from keyhaul import __version__
from keyhaul.cli import (
    agent,
    audit,
    backup,
    bench,
    chaos,
    config,
    conformance020,
    dashboard,
    demo,
    doctor,
    init,
    log,
    operator,
    pki,
    reload,
    route,
    sae,
    testbed,
)
from keyhaul.cli.output import Json, document, say

app = typer.Typer(
    name="keyhaul",
    help="Key delivery across federations of quantum key distribution networks.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
init.register(app)
agent.register(app)
operator.register(app)
reload.register(app)
backup.register(app)
demo.register(app)
doctor.register(app)
dashboard.register(app)
bench.register(app)
chaos.register(app)
app.add_typer(config.app, name="config")
app.add_typer(testbed.app, name="testbed")
app.add_typer(sae.app, name="sae")
app.add_typer(conformance020.app, name="conformance")
app.add_typer(audit.app, name="audit")
app.add_typer(pki.app, name="pki")
app.add_typer(operator.keys, name="key")
app.add_typer(log.app, name="log")
app.add_typer(route.app, name="route")


@app.command()
def version(as_json: Json = False) -> None:
    """Say which release this is."""
    if as_json:
        document({"version": __version__})
    else:
        say(f"keyhaul {__version__}")


def _all_commands(group: typer.Typer, above: str = "") -> list[str]:
    """Every command with its group's name in front, for the end of `keyhaul --help`."""
    own = [
        f"{above}{each.name or (each.callback.__name__ if each.callback else '')}"
        for each in group.registered_commands
    ]
    below = [
        _all_commands(each.typer_instance, f"{each.name} ")
        for each in group.registered_groups
        if each.typer_instance
    ]
    return [*own, *(name for names in below for name in names)]


app.info.epilog = (
    f"All commands: {', '.join(sorted(_all_commands(app)))}. Exit codes: 0 it worked, 1 it did not, 2 misuse."
)


def run(words: list[str]) -> int:
    """Run one command line; usage errors are printed here and give 2."""
    try:
        app(args=words, prog_name="keyhaul")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    return 0
