"""The tree of commands."""

import typer

from mtrec_ray.commands import (
    audit,
    bundle,
    evaluate,
    lake,
    pairs,
    partition,
    quickstart,
    runs,
    search,
    serve,
    store,
    train,
)

app = typer.Typer(
    name="mtrec",
    help="Recommenders for many territories on Ray: less popularity bias, and attributes that users may switch off.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(lake.app, name="lake")
app.add_typer(pairs.app, name="pairs")
app.add_typer(train.app, name="train")
app.add_typer(runs.app, name="runs")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(search.app, name="search")
app.add_typer(partition.app, name="partition")
app.command("audit", cls=audit.HELP)(audit.audit)
app.command("bundle", cls=bundle.HELP)(bundle.bundle)
app.add_typer(store.app, name="store")
app.command("serve", cls=serve.SERVE_HELP)(serve.serve)
app.command("promote", cls=serve.PROMOTE_HELP)(serve.promote)
app.command("rollback")(serve.rollback)
app.command("quickstart", cls=quickstart.HELP)(quickstart.quickstart)
