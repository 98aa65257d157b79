"""The search: what one child computes, and the fan-outs around it. The end has the application."""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any, Literal, NamedTuple, cast

from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from shoal import Application, State, action, fan_out, first
from shoal.executors import Executor, Processes, Ray
from shoal.stores import Store

Where = Literal["loop", "threads", "processes", "ray"]
Point = dict[str, float]
"""A point of the grid: how many components are kept, and how closely a model follows the data."""

GRID: list[Point] = [
    {"components": components, "closeness": closeness}
    for components, closeness in product((5, 10, 20, 40), (0.01, 0.1, 1.0, 10.0))
]


# -- one child: one model at one point of the grid. It runs wherever the executor is -------------


def prepare() -> None:
    """Keep numpy to one thread: there is a process for each core already."""
    threadpool_limits(1)


@cache  # once in each process, and not sent with each call
def digits() -> tuple[Any, Any]:
    return cast("tuple[Any, Any]", load_digits(return_X_y=True))


MODELS: dict[str, Callable[[float], Any]] = {
    "logistic": lambda closeness: LogisticRegression(C=closeness, max_iter=500),
    "vectors": lambda closeness: SVC(C=closeness),
    "neighbors": lambda closeness: KNeighborsClassifier(max(1, round(5 / (1 + closeness)))),
}


@action(reads=["point"], writes=["model", "score"])
def cross_validate(point: Point, kind: str) -> dict[str, Any]:
    """Score a model on 1,797 pictures of handwritten digits. It only computes."""
    pictures, labels = digits()
    reduced = PCA(int(point["components"]), random_state=0)
    whole = make_pipeline(StandardScaler(), reduced, MODELS[kind](point["closeness"]))
    score = float(cross_val_score(whole, pictures, labels, cv=3).mean())
    return {"model": kind, "score": round(score, 4)}


# -- all of them -----------------------------------------------------------------------------------


def key(point: Point) -> str:
    """Name a point. With the model's name it is the child's key, by which a run is resumed."""
    return f"{point['components']:g} components, closeness {point['closeness']:g}"


def executor_of(where: Where, workers: int | None = None) -> Executor | Literal["loop", "threads"]:
    """Return the executor of that name; nothing else in this program depends on it."""
    if where == "processes":
        return Processes(workers, initializer=prepare)
    if where == "ray":
        return Ray(actors=workers, initializer=prepare)
    prepare()
    return where


def model_search(
    store: Store | None = None,
    *,
    target: float | None = None,
    where: Where = "processes",
    workers: int | None = None,
) -> Application:
    """Make the application. A run needs `points`.

    Without a target it is a map: `scores` has them all, by point and model. With one it is a race:
    `winner` is the first child to reach it. The others are cancelled.
    """
    models = [cross_validate.bind(name=name, kind=name) for name in MODELS]
    if target is None:
        search = fan_out(models, over="points", item="point", key=key, into="scores", take="score")
    else:
        search = fan_out(
            models,
            over="points",
            item="point",
            key=key,
            into="winner",
            take=["score", "model", "point"],
            until=first(accept=lambda result: result["score"] >= target),
        )
    executor = executor_of(where, workers)
    return Application(search, name="model_search", store=store, executor=executor)


class Found(NamedTuple):
    score: float
    model: str
    point: str


def ranking(state: State) -> Sequence[Found]:
    """Return what a run has found, the best first; of a race it is the winner."""
    if "winner" in state:
        winner = state["winner"]
        return [Found(winner["score"], winner["model"], key(winner["point"]))]
    return sorted(
        (
            Found(score, model, point)
            for point, scores in state["scores"].items()
            for model, score in scores.items()
        ),
        reverse=True,
    )
