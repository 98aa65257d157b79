"""Drawings: what they say, and that SVG ones are well laid out."""

from __future__ import annotations

import functools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.fastapi_service.review import reviews
from examples.llm_race import Rules
from examples.llm_race.race.strategies import STRATEGIES, strategy
from examples.scraper.command.mirror import mirror_race
from examples.scraper.crawl import site_crawl
from examples.scraper.frontier.links import Frontier
from examples.scraper.politeness.spacing import Politeness
from examples.scraper.settings import Settings
from shoal import (
    END,
    Action,
    Application,
    Context,
    Each,
    Graph,
    Hedge,
    Limits,
    MapStates,
    ParallelAction,
    Rate,
    Retry,
    State,
    Task,
    action,
    all_,
    fan_out,
    first,
    first_item,
    quorum,
    race,
    when,
)
from shoal._drawing.figure import Figure, Link
from shoal._drawing.layout import Box, laid_out
from shoal._drawing.lettering import label_width
from shoal._drawing.routes import Rect
from shoal._drawing.svg import svg as svg_of
from shoal._graph.picture import figure_of
from shoal._graph.sketch import named_by
from shoal.errors import DefinitionError
from shoal.types import Act
from shoal.watch import draw
from tests.examples.rivals import Rival

DRAWINGS = Path(__file__).parent / "drawings"
"""Drawings as they are: `SHOAL_REDRAW=1 pytest tests/watch/test_draw.py` makes them anew."""


@action(reads=["url"], writes=["page"], retry=Retry(3, on=OSError), timeout=60)
async def fetch(url: str) -> str:
    return url


@action(reads=["page"], writes=["title"])
async def parse(page: str) -> str:
    return page


@action(reads=["title"], writes=["ok"])
async def check(title: str) -> bool:
    return bool(title)


@action(writes=["urls"])
async def plan() -> list[str]:
    return []


@action(reads=["titles"], writes=["report"])
async def report(titles: object) -> str:
    return str(titles)


@action(reads=["report"], writes=["score"])
async def judge(report: str, model: str = "") -> float:
    return 1.0


page = Graph(
    (fetch, parse, when("page")),
    (fetch, END),
    (parse, check),
    (check, fetch, when(lambda ok: not ok)),
    (check, END),
    entry=fetch,
    name="page",
)
titles = fan_out(
    page,
    over="urls",
    item="url",
    key=str,
    into="titles",
    take="title",
    on_error="collect",
    limits=Limits(20) & Limits(rate=Rate(5), by=str),
)
best = race(
    *(judge.bind(name=name) for name in ("small", "large", "the-other-one-5.1")),
    into="best",
    take="score",
    stagger=0.5,
)
whole = Graph(
    (plan, titles),
    (titles, report, when("titles")),
    (titles, plan),
    (report, report, when(report="")),
    (report, best),
    (best, plan, ~when("best") & when("urls")),
    (best, END),
    entry=plan,
    name="whole",
)


def boxes_of(box: Box) -> Iterator[Rect]:
    yield from (one.rect for one in box.inside)
    yield from (rect for rect in (box.start, box.end) if rect is not None)


def overlap(one: Rect, other: Rect) -> bool:
    return (
        min(one.right, other.right) - max(one.x, other.x) > 0.1
        and min(one.bottom, other.bottom) - max(one.y, other.y) > 0.1
    )


def is_at_border(x: float, y: float, rect: Rect) -> bool:
    near_x = min(abs(x - rect.x), abs(x - rect.right)) < 0.1
    near_y = min(abs(y - rect.y), abs(y - rect.bottom)) < 0.1
    within_x = rect.x - 0.1 <= x <= rect.right + 0.1
    within_y = rect.y - 0.1 <= y <= rect.bottom + 0.1
    return (near_x and within_y) or (near_y and within_x)


def passes(line: Any, rect: Rect) -> bool:
    """Return whether a line goes through a box; a curve goes sideways between its two heights."""
    for (x0, y0), (x1, y1) in zip(line.points, line.points[1:], strict=False):
        area = Rect(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0))
        inner = Rect(rect.x + 0.2, rect.y + 0.2, rect.width - 0.4, rect.height - 0.4)
        if (
            area.x < inner.right
            and area.right > inner.x
            and area.y < inner.bottom
            and area.bottom > inner.y
        ):
            return True
    return False


def check_layout(outermost: Box) -> None:
    room = outermost.rect
    for box in outermost.walk():
        rects = [*boxes_of(box)]
        for one, other in combinations(rects, 2):
            assert not overlap(one, other)
        for rect in rects:
            assert rect.x >= box.rect.x - 0.1
            assert rect.y >= box.rect.y - 0.1
            assert rect.right <= box.rect.right + 0.1
            assert rect.bottom <= box.rect.bottom + 0.1
        for line in box.lines:
            for x, y in (line.points[0], line.points[-1]):
                assert any(is_at_border(x, y, rect) for rect in rects)
            for x, y in line.points:
                assert room.x - 0.1 <= x <= room.right + 0.1
                assert room.y - 0.1 <= y <= room.bottom + 0.1
            assert not any(passes(line, rect) for rect in rects)
        labels: list[Rect] = []
        for text in box.texts:
            width = label_width(text.text, 11.0)
            x = text.x - width / 2 if text.anchor == "middle" else text.x
            labels.append(Rect(x, text.y - 7, width, 14))
        for one, other in combinations([*labels, *rects], 2):
            assert not overlap(one, other)


# -- what drawings say --------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["mermaid", "dot", "svg"])
@pytest.mark.parametrize(
    ("name", "drawn"), [("whole", whole), ("best", best), ("reviews", reviews(None))]
)
def test_it_is_drawn_as_it_was(name: str, drawn: Any, language: str):
    ending = {"mermaid": "mmd"}.get(language, language)
    path = DRAWINGS / f"{name}.{ending}"
    text: str = getattr(draw, language)(drawn)
    if "SHOAL_REDRAW" in os.environ:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def said(act: Act) -> list[str]:
    return [*figure_of(act).labels]


def is_late(state: State, outcome: object) -> bool:
    return False


def more(state: State, outcome: object) -> list[str]:
    return []


def tokens(state: State) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("act", "labels"),
    [
        (fan_out(fetch, over="urls", item="url", into="x"), ["over urls"]),
        (
            fan_out(
                fetch,
                over=lambda state: state["urls"][1:],
                reads=["urls"],
                item="url",
                key="id",
                grow=more,
                name="x",
                until=is_late,
                at_most=1000,
                timeout=90,
                on_error="ignore",
            ),
            [
                'over state["urls"][1:] by id',
                "grows by more",
                "until is_late",
                "at most 1,000",
                "timeout 90 s",
                "failures ignored",
            ],
        ),
        (
            fan_out(
                fetch,
                over="urls",
                item="url",
                into="x",
                limits=Limits(8)
                & Limits(rate=Rate(90_000, per=60), cost=tokens)
                & Limits(2, rate=Rate(5, per=10), by=str),
                each=Each(retry=Retry(5, on=OSError), timeout=7200),
            ),
            [
                "over urls",
                "8 at once",
                "90,000/min of tokens",
                "2 at once per str",
                "5/10 s per str",
                "5 attempts each",
                "timeout 2 h each",
            ],
        ),
        (race(plan, fetch, name="x"), ["until first result"]),
        (race(plan, fetch, name="x", accept=bool), ["until first result accepted by bool"]),
        (race(plan, fetch, name="x", until=quorum(2, by=str)), ["until 2 agree by str"]),
        (race(plan, fetch, name="x", until=first_item()), ["until first item"]),
        (race(plan, fetch, name="x", until=first(2)), ["until first 2 results"]),
        (
            race(plan, fetch, into="x", stagger=math.inf),
            ["until first result", "one after another"],
        ),
        (
            race(plan, fetch, into="x", stagger=Hedge(percentile=90)),
            ["until first result", "hedged above p90"],
        ),
        (fan_out([plan, parse], into="x", until=all_(), stagger=2), ["2 s apart"]),
        (fetch, ["3 attempts", "timeout 1 min"]),
    ],
    ids=str,
)
def test_it_says_how_children_run(act: Act, labels: list[str]):
    assert said(act) == labels


def test_conditions_are_on_the_edges_and_the_last_one_is_else():
    figure = figure_of(whole)
    names = [one.name for one in figure.inside]
    assert names == ["plan", "titles", "report", "best"]
    assert figure.links == (
        Link(0, 1, ""),
        Link(1, 2, "titles"),
        Link(1, 0, "else"),
        Link(2, 2, "report=''"),
        Link(2, 3, "else"),
        Link(3, 0, "(not best) and urls"),
        Link(3, None, "else"),
    )


def test_the_entry_comes_first_wherever_it_is_written():
    figure = figure_of(Graph((parse, check, when("title")), (parse, END), (fetch, parse), name="g"))
    assert figure.inside[0].name == "fetch"


def test_a_chain_inside_needs_no_end():
    inner = Graph.chain(fetch, parse, name="inner")
    (one,) = figure_of(
        Application(fan_out(inner, over="urls", item="url", into="x", take="title")).graph
    ).inside
    assert one.links == (Link(0, 1, ""),)
    assert figure_of(inner).links == (Link(0, 1, ""), Link(1, None, ""))


def test_paths_name_steps_as_runs_do():
    figure = figure_of(whole)
    paths = {one.path for box in [laid_out(figure, None)] for one in figures(box)}
    assert ("titles", "page", "fetch") in paths
    assert ("best", "small") in paths


def figures(box: Box) -> Iterator[Figure]:
    yield from (one.figure for one in box.walk())


# -- acts that are chosen at run time -----------------------------------------------------------


@action(reads=["n"], writes=["halves"])
async def descend(n: int, context: Context) -> int:
    async with context.fan_out(name="halves") as group:
        group.start(descend, {"n": n // 2})
        group.start(parse, {"page": ""})
    return n


def test_an_action_that_starts_itself_is_a_reference():
    figure = figure_of(descend)
    assert figure.is_chosen
    assert [(one.name, one.kind) for one in figure.inside] == [
        ("descend", "again"),
        ("parse", "action"),
    ]
    assert "↻ descend" in draw.mermaid(descend)
    assert "↻ descend" in draw.dot(descend)
    assert "↻ descend" in draw.svg(descend)


def test_an_action_that_calls_another_ones_function_starts_nothing():
    @action(reads=["url"], writes=["page"])
    async def both(url: str) -> str:
        return await fetch(url)

    assert figure_of(both).inside == ()


def test_a_graph_whose_fan_out_chooses_the_graph_again():
    tree: list[Graph] = []
    children = fan_out(
        lambda state: tree[0], over="urls", item="url", into="below", reads=[], take="page"
    )
    tree.append(Graph.chain(fetch, children, name="tree"))
    (_, inner) = figure_of(Application(tree[0]).graph).inside
    assert inner.labels[0] == "over urls"
    assert [(one.name, one.kind) for one in inner.inside] == [("tree", "again")]


class Measure(Action):
    reads = ("word",)
    writes = ("length",)

    def __init__(self, then: Act) -> None:
        self.then = then

    async def run(self, word: str, context: Context) -> int:
        async with context.fan_out(name="more") as group:
            group.start(self.then, {})
        return len(word)


class Longest(ParallelAction):
    reads = ("words",)
    writes = ("longest",)

    def tasks(self, state: State, inputs: Any) -> Iterator[Task]:
        yield from (Task(parse, {"page": word}) for word in state["words"])

    def reduce(self, state: State, outcome: Any) -> State:
        return state


class Squares(MapStates):
    reads = ("words",)
    writes = ("longest",)

    def action(self, state: State, inputs: Any) -> Act:
        return page

    def states(self, state: State, inputs: Any) -> Iterator[dict[str, int]]:
        yield {}

    def reduce(self, state: State, outcome: Any) -> State:
        return state


@pytest.mark.parametrize(
    ("act", "kind", "inside"),
    [
        (Measure(fetch), "action", ["fetch"]),
        (Longest(), "fan-out", ["parse"]),
        (Squares(), "fan-out", ["page"]),
    ],
)
def test_classes_show_the_acts_that_their_code_names(act: Act, kind: str, inside: list[str]):
    figure = figure_of(act)
    assert figure.kind == kind
    assert figure.is_chosen
    assert [one.name for one in figure.inside] == inside


class Choosing:
    def __init__(self, act: Act) -> None:
        self.act = act

    def __call__(self, state: State) -> Act:
        return self.act

    def choose(self, state: State) -> Act:
        return self.act


def chosen(act: Act, state: State) -> Act:
    return act


@functools.wraps(chosen)
def inner(*arguments: Any) -> Act:
    raise AssertionError


CHOICES: list[tuple[Callable[[Any], Any], list[str]]] = [
    (Choosing(fetch), ["fetch"]),
    (Choosing(fetch).choose, ["fetch"]),
    (functools.partial(chosen, fetch), ["fetch"]),
    (lambda state: (fetch, parse), ["fetch", "parse"]),
    (lambda state: {"a": fetch}["a"], ["fetch"]),
    (lambda state: [one.bind() for one in (fetch, parse)], ["fetch", "parse"]),
    (lambda state: state["act"], []),
    (max, []),
    (inner, []),
]


@pytest.mark.parametrize(
    ("choice", "names"),
    CHOICES,
    ids=lambda one: getattr(one, "__name__", type(one).__name__) if callable(one) else str(one),
)
def test_acts_are_named_by_code_of_any_kind(choice: Any, names: list[str]):
    found = [one for one in named_by(choice) if isinstance(one, Act)]
    assert [one.name for one in found] == names


def test_an_application_that_is_run_by_hand_is_drawn_in_its_action():
    app = Application(page)

    @action()
    async def crawl() -> None:
        await app.run({"url": ""})

    (inner,) = figure_of(crawl).inside
    assert (inner.name, inner.kind) == ("page", "graph")


def test_deeper_runs_are_left_out():
    act: Act = fetch
    for n in range(6):
        act = Graph.chain(plan, act, name=f"level{n}")
    assert "level2 (2 acts" not in draw.mermaid(act)
    assert "level1<br>2 acts inside" in draw.mermaid(act)
    assert "level0" not in draw.mermaid(act)
    assert "2 acts inside" not in draw.mermaid(act, depth=9)
    assert draw.mermaid(act, depth=0).count("2 acts inside") == 1
    fan = fan_out(fan_out(fetch, over="urls", item="url", into="x"), over="ns", into="y", take="x")
    assert [one.kind for one in figure_of(fan, 1).inside] == ["closed"]


# -- SVG ------------------------------------------------------------------------------------------


def crawl() -> Act:
    settings = Settings(urls=("https://example.org/",), max_pages=500)
    crawler: Any = SimpleNamespace(
        settings=settings,
        politeness=Politeness(lambda: 0.0, rate=2, adaptive=True, robots=True),
        frontier=Frontier(settings, []),
    )
    return site_crawl(crawler)


def real() -> Iterator[Any]:
    yield crawl()
    yield mirror_race(None, 2.0)
    yield reviews(None)
    rivals = [Rival(name).provider() for name in ("small", "large", "other")]
    for name in STRATEGIES:
        yield strategy(rivals, Rules(strategy=name, judge=rivals[0], k=2))
    yield whole
    yield descend


@pytest.mark.parametrize("drawn", [*real()], ids=lambda drawn: getattr(drawn, "name", ""))
def test_real_graphs_are_well_laid_out(drawn: Any):
    act: Act = getattr(drawn, "graph", drawn)
    check_layout(laid_out(figure_of(act), {}))
    check_document(draw.svg(act))


def check_document(text: str) -> None:
    root = ET.fromstring(text)
    names = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{names}svg"
    assert root.get("role") == "img"
    title = root.find(f"{names}title")
    assert title is not None
    assert title.text
    assert not root.findall(f".//{names}script")
    for one in root.iter():
        assert not any("href" in name or "url(" in value for name, value in one.attrib.items())


names = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=30)


@st.composite
def figures_of_any_shape(draw: Any, depth: int = 2) -> Figure:
    """A graph, or children side by side, whose acts are reached from the first one."""
    count = draw(st.integers(1, 7 if depth == 2 else 3))
    inside: list[Figure] = []
    for index in range(count):
        if depth and draw(st.booleans()) and count < 5:
            inside.append(draw(figures_of_any_shape(depth - 1)))
        else:
            labels = draw(st.lists(names, max_size=2))
            inside.append(
                Figure(name=draw(names), kind="action", labels=tuple(labels), path=(str(index),))
            )
    links: list[Link] = []
    label = st.one_of(st.just(""), names)
    if draw(st.booleans()):
        links += [
            Link(draw(st.integers(0, index - 1)), index, draw(label)) for index in range(1, count)
        ]
        for _ in range(draw(st.integers(0, 5))):
            source = draw(st.integers(0, count - 1))
            target = draw(st.one_of(st.none(), st.integers(0, count - 1)))
            if not any(link.source == link.target == source for link in links):
                links.append(Link(source, target, draw(label)))
        if count == 1 and not links:
            links.append(Link(0, None))
    return Figure(
        name=draw(names),
        kind="graph" if links else "fan-out",
        path=() if depth == 2 else ("inner",),
        inside=tuple(inside),
        links=tuple(links),
        is_many=not links and draw(st.booleans()),
    )


@settings(deadline=None, max_examples=60)
@given(figures_of_any_shape())
def test_no_boxes_overlap_and_all_lines_end_at_borders(figure: Figure):
    check_layout(laid_out(figure, None))
    check_document(svg_of(figure))


def test_lines_upwards_go_through_no_label():
    a, b, c, d, e = (fetch.bind(name=name) for name in "abcde")
    tangle = Graph(
        (a, b, when("x")),
        (a, c, when("y")),
        (a, e),
        (b, d),
        (c, d, when("z")),
        (c, a),
        (d, b, when("again")),
        (d, e, when("on")),
        (d, a),
        (e, d, when("back")),
        (e, END),
        entry=a,
    )
    box = laid_out(figure_of(tangle), None)
    check_layout(box)
    for text in box.texts:
        width = label_width(text.text, 11.0)
        x = text.x - width / 2 if text.anchor == "middle" else text.x
        label = Rect(x, text.y - 6, width, 12)
        assert not any(passes(line, label) for line in box.lines if line.shape == "corners")


def test_a_graph_of_a_thousand_acts_is_drawn():
    acts = [fetch.bind(name=f"a{n}") for n in range(1000)]
    assert draw.svg(Graph.chain(*acts)).count('class="box"') == 1000


def test_awkward_names_are_shown_as_they_are():
    awkward = fetch.bind(name='<b>"&#\\`\x00\ud800\n')
    graph = Graph((awkward, END, when(url='"]<>&')), (awkward, awkward), name="x")
    check_document(draw.svg(graph))
    assert "<b>" not in draw.mermaid(graph)
    assert '\\"' in draw.dot(graph)


def test_counts_are_shown_where_they_belong():
    counts = {"titles": {"done": 12431, "failed": 3, "running": 0}, "plan": {}}
    text = draw.svg(whole, {**counts, ("titles", "page", "fetch"): {"running": 20}})
    root = ET.fromstring(text)
    found = {
        group.get("data-step"): [
            one.text for one in group if (one.get("class") or "").startswith("counts")
        ]
        for group in root.iter("{http://www.w3.org/2000/svg}g")
    }
    assert found["titles"] == ["12,431 done · 3 failed"]
    assert found["titles/page/fetch"] == ["20 running"]
    assert found["plan"] == ["none yet"]
    assert found["report"] == []
    assert 'class="bar failed"' in text
    check_layout(laid_out(figure_of(whole), {("titles",): counts["titles"]}))


def test_a_page_may_have_the_style_sheet_once():
    text = draw.svg(whole, styled=False)
    assert "<style>" not in text
    assert draw.style_sheet() in draw.svg(whole)
    assert "prefers-color-scheme: dark" in draw.style_sheet()


def test_notebooks_show_graphs_fan_outs_and_applications():
    for drawn in (whole, titles, Application(whole)):
        shown: Any = drawn
        assert shown._repr_svg_() == draw.svg(drawn)


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz")
@pytest.mark.parametrize("drawn", [*real()], ids=lambda drawn: getattr(drawn, "name", ""))
def test_graphviz_draws_it_without_a_warning(drawn: Any):
    done = subprocess.run(
        ["dot", "-Tsvg"], input=draw.dot(drawn).encode(), capture_output=True, check=True
    )
    assert done.stderr == b""
    assert done.stdout.count(b'class="cluster"') == draw.dot(drawn).count("subgraph")


@pytest.mark.parametrize("drawn", [fetch.function, 1, Longest, object()])
def test_what_cannot_be_drawn_is_refused(drawn: Any):
    with pytest.raises(DefinitionError, match="a drawing takes actions"):
        draw.svg(drawn)
    with pytest.raises(DefinitionError, match="depth of 0 or more, not -1"):
        draw.dot(fetch, depth=-1)


def test_programs_that_draw_nothing_load_nothing_of_it():
    program = (
        "import sys, shoal; from shoal import Application, Graph, fan_out\n"
        "print([name for name in sys.modules if name in "
        "('shoal._drawing.svg', 'shoal._drawing.layout', 'shoal.watch')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_a_fan_out_that_children_execute_themselves_shows_its_counts():
    @action(reads=["page"], writes=["text"])
    async def load(page: str) -> str:
        return page

    pages = fan_out(load, over="book", item="page", into="texts", name="pages")
    books = fan_out(pages, over="books", item="book", take="texts", into="all", name="books")
    # The way down to it: the step and the act of the child, and the child's own step.
    drawing = draw.svg(books, {("books", "pages", "pages"): {"done": 7, "failed": 2}})
    assert "7 done · 2 failed" in drawing
