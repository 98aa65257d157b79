"""Crawl websites, and race mirrors of a file.

Exit codes: 0 all fetched, 1 the output can't be written, 2 wrong usage, 3 finished with failed
pages, 4 limit, deadline or match reached, 130 interrupted by Ctrl-C and 143 by SIGTERM (what was
fetched is kept).
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import anyio
import typer

from examples.scraper import settings as read
from examples.scraper.frontier import start_link
from examples.scraper.resuming import Differs, taken_over
from examples.scraper.settings import HTML_TYPES, USER_AGENT, Format, ScopeName, Settings

INTERRUPTED = {130, 143}
COMMANDS = ("crawl", "resume", "status", "export", "mirror")
STYLES = {"bar": "rich", "lines": "plain"}  # as they were called first

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, help=cast("str", __doc__)
)


def main(args: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code.

    Without the name of a command, `crawl` is meant.
    """
    words = list(sys.argv[1:] if args is None else args)
    if words and words[0] not in COMMANDS and words != ["--help"]:
        words.insert(0, "crawl")
    try:
        app(words, prog_name="python -m examples.scraper")
    except SystemExit as exited:
        return exited.code if isinstance(exited.code, int) else 1
    return 0


def _reading(reader: Callable[[str], Any]) -> Callable[[str | None], Any]:
    """Have typer say what is wrong with an argument, as it does with numbers."""

    def parse(text: str | None) -> Any:
        if not isinstance(text, str):
            return text
        try:
            return reader(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def _start(text: str) -> str:
    return start_link(text)["url"]


Option = typer.Option
Urls = Annotated[
    list[str] | None,
    typer.Argument(metavar="URL...", help="Pages to begin with.", parser=_reading(_start)),
]
Out = Annotated[str, Option("--out", "-o", metavar="FILE", help="File to write, - for stdout.")]
Form = Annotated[Format, Option("--format", "-f", help="How rows are written.")]
Progress = Annotated[
    Literal["auto", "rich", "plain", "json", "none", "bar", "lines"],
    Option(help="What is shown on stderr; auto: rich on a terminal, else plain."),
]
Backend = Annotated[Literal["asyncio", "trio"], Option(help="The event loop.")]
Stats = Annotated[
    Path | None, Option(metavar="FILE", help="Write statistics there in the end, as JSON.")
]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The job.")]
Deadline = Annotated[
    float | None,
    Option(parser=_reading(read.seconds), metavar="TIME", help="End after this: 90s, 10m."),
]
HostRate = Annotated[
    float | None,
    Option(parser=_reading(read.rate), metavar="RATE", help="Requests to one host: 10/s, 100/m."),
]
Insecure = Annotated[bool, Option("--insecure", help="Don't check certificates.")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Log what the runtime does.")]


@app.command()
def crawl(
    context: typer.Context,
    urls: Urls = None,
    *,
    demo: Annotated[bool, Option("--demo", help="Crawl the built-in demo site.")] = False,
    out: Out = "pages.jsonl",
    format: Form = "jsonl",  # noqa: A002 - the flag's name
    max_pages: Annotated[
        int | None, Option(min=1, metavar="N", help="Fetch no more pages than this.")
    ] = None,
    max_depth: Annotated[
        int | None, Option(min=0, metavar="N", help="Links to follow away from the URLs.")
    ] = None,
    max_variants: Annotated[
        int | None,
        Option(min=1, metavar="N", help="Fetch no more queries of one path, as of a calendar."),
    ] = None,
    traps: Annotated[
        bool,
        Option("--traps/--no-traps", help="Leave out paths that repeat themselves, or never end."),
    ] = True,
    deadline: Deadline = None,
    until_match: Annotated[
        str | None,
        Option(
            parser=_reading(read.pattern),
            metavar="REGEX",
            help="End with the first page that has it.",
        ),
    ] = None,
    scope: Annotated[ScopeName, Option(help="How far around the URLs to go.")] = "origin",
    include: Annotated[
        list[str] | None,
        Option(
            parser=_reading(read.pattern), metavar="REGEX", help="Only addresses that match one."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        Option(parser=_reading(read.pattern), metavar="REGEX", help="No addresses that match one."),
    ] = None,
    sitemap: Annotated[
        bool, Option("--sitemap", help="Begin with what sitemaps name, too.")
    ] = False,
    select: Annotated[
        list[str] | None,
        Option(metavar="NAME=CSS", help="Keep the texts of what a selector finds."),
    ] = None,
    text: Annotated[bool, Option("--text", help="Keep the text of pages.")] = False,
    links: Annotated[bool, Option("--links/--no-links", help="Follow links.")] = True,
    concurrency: Annotated[
        int, Option("--concurrency", "-c", min=1, metavar="N", help="Pages at once.")
    ] = 16,
    per_host: Annotated[
        int | None,
        Option(min=1, metavar="N", help="Pages at once from one host; 4, or -c if less."),
    ] = None,
    rate: HostRate = None,
    adaptive: Annotated[
        bool, Option("--adaptive/--no-adaptive", help="Find out what a host can stand.")
    ] = True,
    retries: Annotated[
        int, Option(min=0, metavar="N", help="How often to try again what got no answer.")
    ] = 3,
    patience: Annotated[
        float,
        Option(parser=_reading(read.seconds), metavar="TIME", help="For a host that is down."),
    ] = "2m",  # pyright: ignore[reportArgumentType] - typer parses defaults as well
    connect_timeout: Annotated[
        float, Option(parser=_reading(read.seconds), metavar="TIME", help="To connect.")
    ] = "5",  # pyright: ignore[reportArgumentType] - typer parses defaults as well
    read_timeout: Annotated[
        float, Option(parser=_reading(read.seconds), metavar="TIME", help="Between two chunks.")
    ] = "15",  # pyright: ignore[reportArgumentType] - as above
    timeout: Annotated[
        float, Option(parser=_reading(read.seconds), metavar="TIME", help="For a whole page.")
    ] = "30",  # pyright: ignore[reportArgumentType] - as above
    max_body: Annotated[
        int, Option(parser=_reading(read.size), metavar="SIZE", help="Of a page, unpacked.")
    ] = "5MiB",  # pyright: ignore[reportArgumentType] - as above
    accept: Annotated[
        list[str] | None, Option(metavar="TYPE", help="Content types to read; HTML by default.")
    ] = None,
    ignore_robots: Annotated[
        bool, Option("--ignore-robots", help="Don't ask for robots.txt.")
    ] = False,
    user_agent: Annotated[str, Option(metavar="NAME", help="Who is asking.")] = USER_AGENT,
    allow_private: Annotated[
        bool, Option("--allow-private", help="Follow links to private addresses, too.")
    ] = False,
    insecure: Insecure = False,
    http2: Annotated[bool, Option("--http2", help="Offer HTTP/2; needs httpx[http2].")] = False,
    job: Annotated[
        Path | None, Option(metavar="DIR", help="Keep the job there, to be resumed.")
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Go on with the job, if there is one already.")
    ] = False,
    progress: Progress = "auto",
    stats: Stats = None,
    backend: Backend = "asyncio",
    verbose: Verbose = False,
) -> None:
    """Fetch every page of the given sites once, and write a row for each."""
    if bool(urls) == demo:
        raise typer.BadParameter("give either URLs or --demo")
    if resume and demo:
        raise typer.BadParameter("the demo site is another one each time", param_hint="--resume")
    if resume and job is None:
        raise typer.BadParameter("name what to go on with: --job DIR", param_hint="--resume")
    _check_out(out, format)
    try:
        selectors = dict(map(read.selector, select or ()))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--select") from None
    settings = Settings(
        urls=tuple(urls or ()),
        scope=scope,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        max_pages=max_pages,
        max_depth=max_depth,
        max_variants=max_variants,
        traps=traps,
        sitemap=sitemap,
        links=links,
        deadline=deadline,
        until_match=until_match,
        select=selectors,
        text=text,
        accept=tuple(accept or HTML_TYPES),
        max_body=max_body,
        concurrency=concurrency,
        per_host=min(4, concurrency) if per_host is None else per_host,
        rate=rate,
        adaptive=adaptive,
        robots=not ignore_robots,
        retries=retries,
        patience=patience,
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        timeout=timeout,
        user_agent=user_agent,
        allow_private=allow_private,
        insecure=insecure,
        http2=http2,
        out=out,
        format=format,
    )
    how = _manner(progress, stats, verbose=verbose, trust_env=not demo)
    from examples.scraper.job import Job, NoJob  # noqa: PLC0415 - as in `_work`

    with ExitStack() as stack:
        if demo:
            from examples.scraper.demo_site import serving  # noqa: PLC0415 - loads half of Python

            settings = replace(settings, urls=(_start(stack.enter_context(serving())),))
        try:
            if job is not None and resume and (job / "job.json").exists():
                made = Job.open(job)
                made.settings = taken_over(made.settings, settings, _given(context))
            else:
                path = Path(tempfile.mkdtemp(prefix="scraper-")) if job is None else job
                made = Job.create(path, settings)
        except (NoJob, Differs) as error:
            raise typer.BadParameter(str(error), param_hint="--job") from None
        except OSError as error:
            raise _failure(error) from None
        code = _work(made, how, backend)
    if job is None:
        if code in INTERRUPTED and not demo:
            told = f"to go on: python -m examples.scraper resume {made.path}"
            if progress == "json":  # of which all lines on stderr are
                told = json.dumps({"resume": str(made.path)})
            print(told, file=sys.stderr)
        else:
            shutil.rmtree(made.path, ignore_errors=True)  # nobody has asked for it
    raise typer.Exit(code)


@app.command()
def resume(
    directory: Directory,
    *,
    concurrency: Annotated[
        int | None, Option("--concurrency", "-c", min=1, metavar="N", help="Pages at once.")
    ] = None,
    per_host: Annotated[
        int | None, Option(min=1, metavar="N", help="Pages at once from one host.")
    ] = None,
    rate: HostRate = None,
    deadline: Deadline = None,
    progress: Progress = "auto",
    stats: Stats = None,
    backend: Backend = "asyncio",
    verbose: Verbose = False,
) -> None:
    """Go on with a job, as it was begun."""
    job = _open(directory)
    given: dict[str, Any] = {
        "concurrency": concurrency,
        "per_host": per_host,
        "rate": rate,
        "deadline": deadline,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    # A deadline was for the execution that it was given to.
    job.settings = replace(job.settings, **({"deadline": None} | changes))
    raise typer.Exit(_work(job, _manner(progress, stats, verbose=verbose), backend))


@app.command()
def status(directory: Directory) -> None:
    """Tell how far a job has come, also while it runs."""
    from examples.scraper.status import report  # noqa: PLC0415 - as in `_work`

    anyio.run(report, _open(directory))


@app.command()
def export(
    directory: Directory,
    *,
    format: Form = "jsonl",  # noqa: A002 - the flag's name
    out: Out = "-",
) -> None:
    """Write all rows of a job, also while it runs."""
    from examples.scraper.output import projection  # noqa: PLC0415 - as in `_work`

    _check_out(out, format)
    job = _open(directory)
    try:
        rows = projection(out, format, with_text=job.settings.text)
        rows.complete(job.rows())
        rows.close()
    except BrokenPipeError:
        raise _hung_up() from None
    except OSError as error:
        raise _failure(error) from None


@app.command()
def mirror(
    urls: Annotated[
        list[str],
        typer.Argument(metavar="URL...", help="Where the file is.", parser=_reading(_start)),
    ],
    *,
    sha256: Annotated[
        str | None, Option(metavar="HEX", help="The checksum that the file must have.")
    ] = None,
    out: Annotated[
        Path | None,
        Option("--out", "-o", metavar="FILE", help="By default, as the first URL says."),
    ] = None,
    stagger: Annotated[
        float | None,
        Option(parser=_reading(read.seconds), metavar="TIME", help="From one start to the next."),
    ] = None,
    timeout: Annotated[
        float, Option(parser=_reading(read.seconds), metavar="TIME", help="For each mirror.")
    ] = "1h",  # pyright: ignore[reportArgumentType] - typer parses defaults as well
    allow_private: Annotated[
        bool, Option("--allow-private", help="Follow redirects to private addresses, too.")
    ] = False,
    insecure: Insecure = False,
    backend: Backend = "asyncio",
) -> None:
    """Fetch one file from whichever mirror is the first to give it, whole and right."""
    from examples.scraper.mirror import default_name, fetch_all  # noqa: PLC0415 - as in `_work`

    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise typer.BadParameter("64 hexadecimal digits", param_hint="--sha256")
    settings = Settings(
        urls=tuple(urls),
        concurrency=len(urls),
        timeout=timeout,
        allow_private=allow_private,
        insecure=insecure,
    )
    target = Path(default_name(urls[0])) if out is None else out
    try:
        code = anyio.run(
            partial(fetch_all, settings, target, sha256=sha256, stagger=stagger), backend=backend
        )
    except OSError as error:
        raise _failure(error) from None
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)


def _manner(
    progress: str, stats: Path | None, *, verbose: bool, trust_env: bool = True
) -> Callable[[], Any]:
    if verbose:
        import logging  # noqa: PLC0415 - only who asks for it

        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)

    def make() -> Any:
        from examples.scraper.work import Manner  # noqa: PLC0415 - as in `_work`

        style = cast("Any", STYLES.get(progress, progress))
        return Manner(progress=style, stats=stats, trust_env=trust_env)

    return make


def _given(context: typer.Context) -> set[str]:
    """The parameters that the command line names."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _check_out(out: str, form: Format) -> None:
    if form == "sqlite" and out == "-":
        message = "an SQLite database can't be written to standard output"
        raise typer.BadParameter(message, param_hint="--out")


def _open(directory: Path) -> Any:
    from examples.scraper.job import Job, NoJob  # noqa: PLC0415 - as in `_work`

    try:
        return Job.open(directory)
    except NoJob as error:
        raise typer.BadParameter(str(error), param_hint="DIR") from None


def _work(job: Any, manner: Callable[[], Any], backend: str) -> int:
    from examples.scraper.job import JobBusy  # noqa: PLC0415 - as above
    from examples.scraper.work import work  # noqa: PLC0415 - `--help` needs no HTTP client
    from shoal import RunClaimed  # noqa: PLC0415 - as above

    try:
        return anyio.run(work, job, manner(), backend=backend)
    except BrokenPipeError:  # whoever reads our rows has seen enough
        raise _hung_up() from None
    except (OSError, ValueError, JobBusy, RunClaimed) as error:
        raise _failure(error) from None
    except KeyboardInterrupt:  # before the crawl began, or once too often
        return 130


def _failure(error: Exception) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(1)


def _hung_up() -> typer.Exit:
    # What could not be written is still buffered; it must not fail the exit as well.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return typer.Exit(1)
