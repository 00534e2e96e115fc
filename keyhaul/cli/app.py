"""The command tree: what `keyhaul --help` shows. Each command's work is in its own module."""

from __future__ import annotations

import typer

from keyhaul import __version__
from keyhaul.cli import audit, bench, config, conformance, dashboard, demo, init, operator, sae, testbed
from keyhaul.cli.output import Json, document, say

app = typer.Typer(
    name="keyhaul",
    help="Key delivery across federations of quantum key distribution networks.",
    epilog="All commands: init, serve, status, dashboard, version, demo, bench, config check, testbed up, "
    "testbed down, sae get, sae fetch, sae status, key trace, conformance 014, audit verify. "
    "Exit codes: 0 it worked, 1 it did not, 2 misuse.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
init.register(app)
operator.register(app)
demo.register(app)
dashboard.register(app)
bench.register(app)
app.add_typer(config.app, name="config")
app.add_typer(testbed.app, name="testbed")
app.add_typer(sae.app, name="sae")
app.add_typer(conformance.app, name="conformance")
app.add_typer(audit.app, name="audit")
app.add_typer(operator.keys, name="key")


@app.command()
def version(as_json: Json = False) -> None:
    """Say which release this is."""
    if as_json:
        document({"version": __version__})
    else:
        say(f"keyhaul {__version__}")


def run(words: list[str]) -> int:
    """Run one command line; usage errors are printed here and give 2."""
    try:
        app(args=words, prog_name="keyhaul")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    return 0
