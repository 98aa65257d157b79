"""Crawl websites, and race mirrors of a file.

Exit codes: 0 all fetched, 1 the output can't be written, 2 wrong usage, 3 finished with failed
pages, 4 limit, deadline or match reached, 130 interrupted by Ctrl-C and 143 by SIGTERM (pages
that were fetched are kept).
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
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import anyio
import typer

from examples.scraper import settings as read
from examples.scraper.command.resuming import Differs, taken_over
from examples.scraper.frontier.links import start_link
from examples.scraper.settings import HTML_TYPES, USER_AGENT, Format, ScopeName, Settings

if TYPE_CHECKING:  # at run time it would import the parser, which `--help` doesn't need
    from examples.scraper.spider import Spider

INTERRUPTED = {130, 143}
COMMANDS = ("crawl", "resume", "status", "export", "mirror")
STYLES = {"bar": "rich", "lines": "plain"}  # their former names, still accepted

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, help=cast("str", __doc__)
)


def main(args: Sequence[str] | None = None, spider: "Spider | None" = None) -> int:
    """Run the command line, and return the exit code.

    The default command is `crawl`. With a `spider`, it makes the rows of the output.
    """
    words = list(sys.argv[1:] if args is None else args)
    if words and words[0] not in COMMANDS and words != ["--help"]:
        words.insert(0, "crawl")
    try:
        app(words, prog_name="python -m examples.scraper", obj=spider)
    except SystemExit as exited:
        return exited.code if isinstance(exited.code, int) else 1
    return 0


def _reading(reader: Callable[[str], Any]) -> Callable[[str | None], Any]:
    """Make typer report an invalid argument, as it does for numbers."""

    def parse(text: str | None) -> Any:
        if not isinstance(text, str):
            return text
        try:
            return reader(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def _header(text: str) -> str:
    return ": ".join(read.header(text))


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
    Option(help="Display on stderr; auto: rich on a terminal, else plain."),
]
Backend = Annotated[Literal["asyncio", "trio"], Option(help="The event loop.")]
Stats = Annotated[
    Path | None, Option(metavar="FILE", help="Write statistics to this file at the end, as JSON.")
]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The job's folder.")]
Deadline = Annotated[
    float | None,
    Option(parser=_reading(read.seconds), metavar="TIME", help="Stop after this time: 90s, 10m."),
]
HostRate = Annotated[
    float | None,
    Option(
        parser=_reading(read.rate), metavar="RATE", help="Most requests to one host: 10/s, 100/m."
    ),
]
MaxPages = Annotated[int | None, Option(min=1, metavar="N", help="Fetch no more pages than this.")]
Insecure = Annotated[bool, Option("--insecure", help="Don't check certificates.")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Log the runtime's messages.")]


@app.command()
def crawl(
    context: typer.Context,
    urls: Urls = None,
    *,
    demo: Annotated[bool, Option("--demo", help="Crawl the built-in demo site.")] = False,
    out: Out = "pages.jsonl",
    format: Form = "jsonl",  # noqa: A002 - the flag's name
    max_pages: MaxPages = None,
    max_depth: Annotated[
        int | None,
        Option(min=0, metavar="N", help="Follow at most this many links in a row from the URLs."),
    ] = None,
    max_variants: Annotated[
        int | None,
        Option(
            min=1,
            metavar="N",
            help="Fetch at most this many queries of one path, such as a calendar's.",
        ),
    ] = None,
    traps: Annotated[
        bool,
        Option("--traps/--no-traps", help="Skip paths that repeat themselves or look endless."),
    ] = True,
    deadline: Deadline = None,
    until_match: Annotated[
        str | None,
        Option(
            parser=_reading(read.pattern),
            metavar="REGEX",
            help="Stop at the first page that matches.",
        ),
    ] = None,
    scope: Annotated[
        ScopeName, Option(help="The part of the web around the URLs to crawl.")
    ] = "origin",
    include: Annotated[
        list[str] | None,
        Option(
            parser=_reading(read.pattern),
            metavar="REGEX",
            help="Only URLs that match one of these.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        Option(
            parser=_reading(read.pattern), metavar="REGEX", help="No URLs that match one of these."
        ),
    ] = None,
    sitemap: Annotated[
        bool, Option("--sitemap", help="Also start from the URLs in sitemaps.")
    ] = False,
    select: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=CSS[@ATTRIBUTE]",
            help="Keep the text of the elements that a selector finds, or an attribute.",
        ),
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
        bool,
        Option("--adaptive/--no-adaptive", help="Learn from a host's refusals how fast to ask it."),
    ] = True,
    retries: Annotated[
        int, Option(min=0, metavar="N", help="Retries of a page that got no answer.")
    ] = 3,
    patience: Annotated[
        float,
        Option(
            parser=_reading(read.seconds),
            metavar="TIME",
            help="How long to wait for a host that is down.",
        ),
    ] = "2m",  # pyright: ignore[reportArgumentType] - typer parses defaults as well
    connect_timeout: Annotated[
        float, Option(parser=_reading(read.seconds), metavar="TIME", help="To connect.")
    ] = "5",  # pyright: ignore[reportArgumentType] - typer parses defaults as well
    read_timeout: Annotated[
        float,
        Option(parser=_reading(read.seconds), metavar="TIME", help="Timeout between two chunks."),
    ] = "15",  # pyright: ignore[reportArgumentType] - as above
    timeout: Annotated[
        float,
        Option(parser=_reading(read.seconds), metavar="TIME", help="Timeout of a whole page."),
    ] = "30",  # pyright: ignore[reportArgumentType] - as above
    max_body: Annotated[
        int,
        Option(
            parser=_reading(read.size),
            metavar="SIZE",
            help="Largest size of a page after decompression.",
        ),
    ] = "5MiB",  # pyright: ignore[reportArgumentType] - as above
    accept: Annotated[
        list[str] | None, Option(metavar="TYPE", help="Content types to read; HTML by default.")
    ] = None,
    ignore_robots: Annotated[bool, Option("--ignore-robots", help="Ignore robots.txt.")] = False,
    user_agent: Annotated[str, Option(metavar="NAME", help="The User-Agent header.")] = USER_AGENT,
    allow_private: Annotated[
        bool, Option("--allow-private", help="Follow links to private addresses, too.")
    ] = False,
    insecure: Insecure = False,
    http2: Annotated[bool, Option("--http2", help="Offer HTTP/2; needs httpx[http2].")] = False,
    header: Annotated[
        list[str] | None,
        Option(
            parser=_reading(_header),
            metavar="'NAME: VALUE'",
            help="Send a header to the hosts of the URLs; $NAME in it is a variable.",
        ),
    ] = None,
    auth_env: Annotated[
        str | None,
        Option(metavar="NAME", help="The variable with USER:PASSWORD for the hosts of the URLs."),
    ] = None,
    proxy: Annotated[
        str | None, Option(metavar="URL", help="Use a proxy; by default, those of the environment.")
    ] = None,
    job: Annotated[
        Path | None,
        Option(metavar="DIR", help="Keep the job in this folder, so that it can be resumed."),
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Resume the job if it exists already.")
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
        raise typer.BadParameter(
            "the demo site has a different address each time, so it can't be resumed",
            param_hint="--resume",
        )
    if resume and job is None:
        raise typer.BadParameter(
            "--resume needs the job's folder: --job DIR", param_hint="--resume"
        )
    _check_out(out, format)
    try:
        selectors = dict(map(read.selector, select or ()))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--select") from None
    spider = _spider(context)
    settings = Settings(
        urls=tuple(urls or ()),
        spider=None if spider is None else spider.name,
        columns=() if spider is None else spider.columns,
        headers=dict(map(read.header, header or ())),
        auth_env=auth_env,
        proxy=proxy,
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
    _check_columns(settings)
    how = _manner(progress, stats, verbose=verbose, trust_env=not demo)
    from examples.scraper.command.job import Job, NoJob  # noqa: PLC0415 - as in `_work`

    with ExitStack() as stack:
        if demo:
            from examples.scraper.demo_site import serving  # noqa: PLC0415 - imports many modules

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
        code = _work(made, how, backend, spider)
    if job is None:
        if code in INTERRUPTED and not demo:
            told = f"to resume: python -m examples.scraper resume {made.path}"
            if progress == "json":  # all lines on stderr are JSON
                told = json.dumps({"resume": str(made.path)})
            print(told, file=sys.stderr)
        else:
            shutil.rmtree(made.path, ignore_errors=True)  # the option was not given
    raise typer.Exit(code)


@app.command()
def resume(
    context: typer.Context,
    directory: Directory,
    *,
    concurrency: Annotated[
        int | None, Option("--concurrency", "-c", min=1, metavar="N", help="Pages at once.")
    ] = None,
    per_host: Annotated[
        int | None, Option(min=1, metavar="N", help="Pages at once from one host.")
    ] = None,
    rate: HostRate = None,
    max_pages: MaxPages = None,
    deadline: Deadline = None,
    progress: Progress = "auto",
    stats: Stats = None,
    backend: Backend = "asyncio",
    verbose: Verbose = False,
) -> None:
    """Resume a job with its settings."""
    job = _open(directory)
    given: dict[str, Any] = {
        "concurrency": concurrency,
        "per_host": per_host,
        "rate": rate,
        "max_pages": max_pages,
        "deadline": deadline,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    # A deadline applies only to the execution that it was given for.
    job.settings = replace(job.settings, **({"deadline": None} | changes))
    how = _manner(progress, stats, verbose=verbose)
    raise typer.Exit(_work(job, how, backend, _spider(context)))


@app.command()
def status(directory: Directory) -> None:
    """Print the progress of a job, also while it runs."""
    from examples.scraper.command.status import report  # noqa: PLC0415 - as in `_work`

    anyio.run(report, _open(directory))


@app.command()
def export(
    directory: Directory,
    *,
    format: Form = "jsonl",  # noqa: A002 - the flag's name
    out: Out = "-",
) -> None:
    """Write all rows of a job, also while it runs."""
    from examples.scraper.output.files import projection  # noqa: PLC0415 - as in `_work`
    from examples.scraper.output.rows import columns_of, lines_of  # noqa: PLC0415 - as in `_work`

    _check_out(out, format)
    job = _open(directory)
    _check_columns(replace(job.settings, format=format))
    try:
        rows = projection(out, format, columns=columns_of(job.settings))
        rows.complete(lines_of(job.rows(), job.settings))
        rows.close()
    except BrokenPipeError:
        raise _hung_up() from None
    except OSError as error:
        raise _failure(error) from None


@app.command()
def mirror(
    urls: Annotated[
        list[str],
        typer.Argument(metavar="URL...", help="The mirrors of the file.", parser=_reading(_start)),
    ],
    *,
    sha256: Annotated[
        str | None, Option(metavar="HEX", help="The expected checksum of the file.")
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The file to write; by default, named like the first URL's.",
        ),
    ] = None,
    stagger: Annotated[
        float | None,
        Option(
            parser=_reading(read.seconds),
            metavar="TIME",
            help="Time between the starts of two mirrors.",
        ),
    ] = None,
    timeout: Annotated[
        float, Option(parser=_reading(read.seconds), metavar="TIME", help="Timeout of each mirror.")
    ] = "1h",  # pyright: ignore[reportArgumentType] - typer parses defaults as well
    allow_private: Annotated[
        bool, Option("--allow-private", help="Follow redirects to private addresses, too.")
    ] = False,
    insecure: Insecure = False,
    backend: Backend = "asyncio",
) -> None:
    """Race mirrors of one file; the first complete and correct download wins."""
    from examples.scraper.command.mirror import default_name, fetch_all  # noqa: PLC0415 - as in `_work`

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
        import logging  # noqa: PLC0415 - only needed with this option

        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)

    def make() -> Any:
        from examples.scraper.command.work import Manner  # noqa: PLC0415 - as in `_work`

        style = cast("Any", STYLES.get(progress, progress))
        return Manner(progress=style, stats=stats, trust_env=trust_env)

    return make


def _given(context: typer.Context) -> set[str]:
    """Return the parameters that were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _spider(context: typer.Context) -> "Spider | None":
    """The spider whose program has called `main`, if one has."""
    return cast("Spider | None", context.obj)


def _check_columns(settings: Settings) -> None:
    if settings.spider is not None and settings.format != "jsonl" and not settings.columns:
        message = f"{settings.format} needs the names of the columns: Spider(..., columns=[...])"
        raise typer.BadParameter(message, param_hint="--format")


def _check_out(out: str, form: Format) -> None:
    if form == "sqlite" and out == "-":
        message = "an SQLite database can't be written to standard output"
        raise typer.BadParameter(message, param_hint="--out")


def _open(directory: Path) -> Any:
    from examples.scraper.command.job import Job, NoJob  # noqa: PLC0415 - as in `_work`

    try:
        return Job.open(directory)
    except NoJob as error:
        raise typer.BadParameter(str(error), param_hint="DIR") from None


def _work(job: Any, manner: Callable[[], Any], backend: str, spider: "Spider | None") -> int:
    from examples.scraper.command.job import JobBusy  # noqa: PLC0415 - as above
    from examples.scraper.command.work import work  # noqa: PLC0415 - `--help` needs no HTTP client
    from shoal import RunClaimed  # noqa: PLC0415 - as above

    name = None if spider is None else spider.name
    if job.settings.spider != name:
        raise _failure(
            ValueError(
                f"the job was begun by {_program(job.settings.spider)}, and can't be resumed by "
                f"{_program(name)}"
            )
        )
    parse = None if spider is None else spider.parse
    if spider is not None:
        job.settings = replace(job.settings, columns=spider.columns)  # as its program has them now
        _check_columns(job.settings)
    try:
        return anyio.run(work, job, manner(), parse, backend=backend)
    except BrokenPipeError:  # the reader of our rows has closed its end
        raise _hung_up() from None
    except (OSError, ValueError, JobBusy, RunClaimed) as error:
        raise _failure(error) from None
    except KeyboardInterrupt:  # before the crawl began, or a repeated Ctrl-C
        return 130


def _program(spider: str | None) -> str:
    return "the scraper without a parser" if spider is None else f"the spider {spider!r}"


def _failure(error: Exception) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(1)


def _hung_up() -> typer.Exit:
    # Rows that could not be written are still buffered; they must not fail the exit, too.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return typer.Exit(1)
