"""The ``clif`` command: run a chapter with other parameters, see what there is, get data, read results.

Every command imports what it needs when it is called, so that ``clif --help`` answers at once.
"""

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clif_kit import notebooks
from clif_kit.notebooks import ROOT, BadParameter

RESULTS = ROOT / "book" / "results"
HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings=HELP,
    help="Training-data influence, chapter by chapter: run notebooks with your own parameters, get data, read results.",
    epilog="Start with: [bold]clif list[/], then [bold]clif run 00 -p n_train=100[/]",
)
data_app = typer.Typer(no_args_is_help=True, context_settings=HELP, help="List, fetch and verify data sets.")
app.add_typer(data_app, name="data")


def _console() -> Console:
    """A console on today's stdout; wide when the output goes to a file, so that nothing is cut."""
    wide = None if sys.stdout.isatty() else 160
    return Console(highlight=False, width=wide, soft_wrap=False)


@app.command("run", epilog="Example: [bold]clif run 03_koh_liang -p n_train=300 -p damping=0.001[/]")
def run_command(
    notebook: Annotated[str, typer.Argument(help="Name (03_koh_liang), its beginning (03), or a path.")],
    p: Annotated[
        list[str] | None, typer.Option("-p", "--param", metavar="NAME=VALUE", help="Set a parameter. Repeat as needed.")
    ] = None,
    profile: Annotated[str, typer.Option(help="quick (seconds), book (minutes, real data) or paper.")] = "quick",
    out: Annotated[Path | None, typer.Option(help="Folder for the run.", show_default="below _build/run/")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Check and print the plan; run nothing.")] = False,
) -> None:
    """Run one notebook, from start to end, with other parameters if you like.

    A run with parameters of your own lands in _build/run/custom/ and never touches the book's numbers.

    What a notebook can be told: clif list NOTEBOOK.
    """
    from clif_kit import runs

    path, given = notebooks.find(notebook), runs.split(p or [])
    if dry:
        typer.echo(runs.plan(path, profile, given))
        return
    try:
        target = runs.run(path, profile=profile, given=given, out=out)
    except runs.NotebookFailed as error:
        typer.echo(error)
        raise typer.Exit(1) from None
    typer.echo(f"Result:   {os.path.relpath(target)}\nNotebook: {os.path.relpath(target.with_suffix('.ipynb'))}")


@app.command("list", epilog="Example: [bold]clif list 03[/] shows the parameters of chapter 03 only.")
def list_command(
    notebook: Annotated[str | None, typer.Argument(help="Only this notebook.", show_default="all")] = None,
) -> None:
    """Show the chapters, the parameters of each with what they mean, and what a run costs."""
    console = _console()
    for name in [notebooks.find(notebook).stem] if notebook else notebooks.names():
        path = notebooks.FOLDER / f"{name}.ipynb"
        console.print(f"[bold]{name}[/]  {escape(_title(path))}")
        console.print(f"  {_cost(name)}", style="dim")
        table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
        for one in notebooks.parameters(path).values():
            table.add_row(f"   {one.name}", escape(repr(one.default)), escape(one.comment), style=None)
        console.print(table)


def _title(path: Path) -> str:
    """The first heading of a notebook."""
    lines = (line for cell in notebooks.read(path) for line in cell["source"].splitlines())
    return next((line.lstrip("# ").strip() for line in lines if line.startswith("# ")), "")


def _cost(name: str) -> str:
    """What the published runs of a notebook took."""
    found = []
    for profile in notebooks.PROFILES:
        path = RESULTS / f"{name}.{profile}.json"
        if path.exists():
            result = json.loads(path.read_text("utf-8"))
            found.append(f"{profile}: {result['seconds']:.0f} s, {result['peak_rss_mb']} MB")
    return "; ".join(found) or "not published yet"


@app.command("results", epilog="Example: [bold]clif results 03 --profile book[/]")
def results_command(
    notebook: Annotated[str | None, typer.Argument(help="Only this notebook.", show_default="all")] = None,
    profile: Annotated[str | None, typer.Option(help="Only quick, book or paper.", show_default="all")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Your own runs, not the published ones.")] = False,
) -> None:
    """Show what was measured, with 95 % intervals and what was resampled for them."""
    if profile and profile not in notebooks.PROFILES:
        raise BadParameter(f"unknown profile {profile!r}; there are: {', '.join(notebooks.PROFILES)}")
    names = [notebooks.find(notebook).stem] if notebook else notebooks.names()
    wanted = [(name, one) for name in names for one in notebooks.PROFILES if profile in (None, one)]
    runs = ROOT / "_build" / "run"
    paths = [runs / one / f"{name}.json" if fresh else RESULTS / f"{name}.{one}.json" for name, one in wanted]
    found = [json.loads(path.read_text("utf-8")) for path in paths if path.exists()]
    if not found:
        raise BadParameter("no such results; `make book` and `make publish` make those of the quick profile")
    for result in found:
        _console().print(_metrics_table(result))


def _metrics_table(result: dict) -> Table:
    title = f"{result['notebook']}, {result['profile']} profile ({result['seconds']:.0f} s)"
    table = Table("metric", "value", "95 % interval", "over", "unit", title=title, title_justify="left", box=None)
    for key, metric in sorted(result["metrics"].items()):
        low, high = metric.get("low"), metric.get("high")
        interval = "" if low is None else f"{low:.3g} to {high:.3g}"
        over = f"{metric['n']} {metric['over']}" if "over" in metric else ""
        table.add_row(escape(key), f"{metric['value']:.3g}", interval, escape(over), escape(metric.get("unit", "")))
    return table


@app.command("explain", epilog="Example: [bold]clif explain reviews.csv --label stars --out answer[/]")
def explain_command(
    file: Annotated[Path | None, typer.Argument(help="CSV of labelled texts.", show_default=False)] = None,
    text: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    test: Annotated[
        Path | None, typer.Option(help="CSV of texts to explain.", show_default="some are held out")
    ] = None,
    model: Annotated[str, typer.Option(help="minilm, words (fast), or an encoder's folder or name.")] = "minilm",
    method: Annotated[
        str, typer.Option(help="influence, or tracin_we: a small CNN, 5,000 texts at most.")
    ] = "influence",
    tests: Annotated[int, typer.Option(help="Texts to explain, at most.")] = 20,
    k: Annotated[int, typer.Option("--k", "-k", help="Training texts at either end.")] = 10,
    out: Annotated[Path, typer.Option(help="Folder for the answer; features are kept there, too.")] = Path("explained"),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask when it will take long.")] = False,
    dry: Annotated[bool, typer.Option("--dry", help="Check the file and estimate the time; compute no more.")] = False,
    vectors: Annotated[Path | None, typer.Option(help="Word vectors (word2vec text or .bin), with --words.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Text with a sentence a line, with --words.")] = None,
    words: Annotated[Path | None, typer.Option(help="YAML with the word lists x, y, a, b.")] = None,
) -> None:
    """Explain your own data: which training texts, or which sentences, made the model say that?

    A CSV with texts and labels becomes ranked training texts with the words that carry the score, labels to look at,
    and a check by removal: CSV files and one HTML page. Or: --corpus TEXT --words LISTS, with or without --vectors.
    """
    from clif_kit import own_run, own_tracin
    from clif_kit.own_report import check_folder
    from clif_kit.solvers import NotConverged
    from clif_kit.store import StoreLocked

    if (file is None) == (words is None) or (words is not None and corpus is None):
        raise BadParameter("give a CSV file, or --corpus with --words")
    if method not in ("influence", "tracin_we"):
        raise BadParameter(f"no method {method!r}; there are: influence, tracin_we")

    def go_on(seconds: float) -> bool:
        asks = seconds > 60 and not yes and sys.stdin.isatty()
        return not dry and (not asks or typer.confirm("Go on?"))

    options = {"text": text, "label": label, "test": test, "k": k, "tests": tests, "say": typer.echo}
    try:
        check_folder(out)
        if words is not None:
            written = own_run.explain_words(corpus, words, out, vectors=vectors, k=k, say=typer.echo)
        elif method == "tracin_we":
            written = own_tracin.explain_tracin(file, out, **options, go_on=lambda: not dry)
        else:
            written = own_run.explain_texts(
                file, out, **options, model=model, go_on=go_on, progress=sys.stderr.isatty()
            )
    except OSError as error:
        place = str(error.filename or out)
        fix = "; name another folder with --out" if place.startswith(str(out)) else ""
        raise BadParameter(f"{place}: {error.strerror or error}{fix}") from None
    except (ValueError, NotConverged, StoreLocked) as error:
        raise BadParameter(" ".join(str(error).split())) from None
    for path in written or []:
        typer.echo(f"Written: {path}")


@data_app.command("list", epilog="Then: [bold]clif data fetch NAME[/]")
def data_list() -> None:
    """Show every data set: tier, size, whether it is here, licence."""
    from clif_kit import registry

    table = Table("name", "tier", "size", "here", "licence", "title", box=None)
    for row in registry.list_sets():
        here = "yes" if row["present"] else "no"
        table.add_row(row["name"], row["tier"], row["size"], here, escape(row["licence"]), escape(row["title"]))
    _console().print(table)


def _known(name: str) -> ModuleType:
    """The registry, after a look whether it knows a set or tier of that name."""
    from clif_kit import registry

    try:
        registry.select(name)
    except KeyError as error:
        raise BadParameter(error.args[0]) from None
    return registry


@data_app.command("fetch", epilog="Example: [bold]clif data fetch mnist_t10k[/]")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A set, a tier (real, paper), or all: the whole real tier.")] = "all",
) -> None:
    """Download data sets and check them. What is here already is left alone.

    CLIF_DATA_MIRROR may name a folder or a base address that is looked in first.
    """
    from clif_kit import download

    _known(name)
    files = download.fetch(name, progress=sys.stderr.isatty())
    typer.echo(f"{len(files)} files are here and right.")


@data_app.command("verify")
def data_verify(
    name: Annotated[str, typer.Argument(help="A set, a tier, or all.")] = "all",
) -> None:
    """Compare every file with its sha256. Exit code 1 if one is corrupt, or if a set that you named is missing."""
    rows = _known(name).verify(name)
    wrong = [row for row in rows if row["state"] == "corrupt" or (row["state"] == "missing" and name != "all")]
    messages = dict.fromkeys(row["message"] for row in wrong)
    for message in messages:
        typer.echo(message)
    counts = {state: sum(row["state"] == state for row in rows) for state in ("ok", "missing", "corrupt")}
    typer.echo(", ".join(f"{count} {state}" for state, count in counts.items()))
    if messages:
        raise typer.Exit(1)


def main() -> None:
    """The entry point: what a user did wrong is one line and exit code 2, never a traceback."""
    from clif_kit.registry import DataError

    try:
        app()
    except (BadParameter, DataError) as error:
        print(f"clif: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
