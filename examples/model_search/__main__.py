"""Search for a model of handwritten digits. Started again, the command continues where it was."""

import argparse
import hashlib
import json
import sys

import anyio

from examples.model_search.search import GRID, model_search, ranking
from shoal import NobodyAccepted, SQLiteStore
from shoal.errors import DefinitionError


async def search(options: argparse.Namespace) -> None:
    # The same grid and target are the same run, in whichever process and on whichever executor.
    asked = json.dumps([GRID, options.target]).encode()
    run_id = f"digits-{hashlib.sha256(asked).hexdigest()[:8]}"
    app = model_search(
        SQLiteStore(options.database),
        target=options.target,
        where=options.executor,
        workers=options.workers,
    )
    result = await app.run({"points": GRID}, id=run_id, progress=True)
    for score, model, point in ranking(result.state)[:5]:
        print(f"{score:.4f}  {model:<10} {point}")


parser = argparse.ArgumentParser(prog="python -m examples.model_search", description=__doc__)
parser.add_argument(
    "--executor", choices=["loop", "threads", "processes", "ray"], default="processes"
)
parser.add_argument("--workers", type=int, help="processes or actors; default: one for each core")
parser.add_argument("--target", type=float, help="stop at the first model with such a score")
parser.add_argument("--database", default="model_search.db")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        anyio.run(search, options)
    except NobodyAccepted:
        sys.exit(f"error: no model has reached {options.target}")
    except DefinitionError as error:  # Ray is not installed, for example
        sys.exit(f"error: {error}")
