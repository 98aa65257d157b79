"""Let language models race for the answer: `python -m examples.llm_race ask --demo "Why?"`.

`ask` races for one answer, `batch` for many, and `serve` for clients; `bench` compares strategies,
and `providers` lists the providers. `--demo` needs neither keys nor a network; `--demo --real`
races a real small model on this machine. The answer goes to stdout, all other output to stderr.
"""

import os
import sys
import tomllib
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import anyio

from examples.llm_race.bench import NoPlot
from examples.llm_race.client.config import ConfigError, from_environment, load, providers_of
from examples.llm_race.client.providers import Provider
from examples.llm_race.command.commands import COMMANDS
from examples.llm_race.command.options import Options, parse
from examples.llm_race.demo import local_models
from examples.llm_race.demo import server as demo_server
from shoal import RunClaimed
from shoal.errors import HookFailed


def main(args: Sequence[str] | None = None) -> int:
    options = parse(args)
    try:
        with ExitStack() as stack:
            everybody = contestants(options, stack)
            command = COMMANDS[options.command]
            return anyio.run(partial(command, options, everybody), backend=options.backend)
    except BrokenPipeError:  # the reader of our output has closed its end
        # Output that could not be written is still buffered; it must not fail the exit, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    # the answer could not be written: report that, not the hook that noticed
    except HookFailed as failure:
        print(f"error: {failure.__cause__ or failure}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, local_models.NoModel, NoPlot, RunClaimed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the race began, or a second time
        return 130


def contestants(options: Options, stack: ExitStack) -> list[Provider]:
    """Return the providers; the demo's servers run as long as `stack` lasts."""
    if options.demo:
        demo = local_models if options.real else demo_server
        return providers_of(tomllib.loads(demo.race_toml(stack.enter_context(demo.serving()))))
    usual = Path("race.toml")
    if options.config is not None or usual.exists():
        return load(options.config or usual)
    found = from_environment()
    if not found:
        raise ConfigError(
            "there are no providers: no --config, no race.toml here, and no OPENAI_API_KEY, "
            "ANTHROPIC_API_KEY or GEMINI_API_KEY in the environment; try --demo"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
