"""The source of a parallel action's children: the tasks that its ``tasks`` method yields.

Invariants:
- A task is pulled only when there is room for its child, like an element.
- No two tasks of a step have the same act and key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import final

from shoal._engine.run import Run
from shoal._errors.exceptions import BadKey, BadResult, brief
from shoal._events.identity import Key, plain_key
from shoal._graph.act import Act, bind_where_taken
from shoal._graph.checks import check_reads
from shoal._graph.graph import Graph, as_graph
from shoal._graph.task_classes import ParallelAction, Task
from shoal._state.secrets import without_secrets
from shoal._state.state import EVERY_FIELD, FieldAccess, held, make_state, refuse_awaitable

from .children import narrowed, only_write_reader
from .entries import MakeTemplate, PendingChild
from .recorded import RecordedChildren
from .source import ElementSource

GRAPHS = 64
"""Acts of one step whose graphs are cached.

Most steps use a few acts again and again. A step that makes an act for each task fills the cache,
which keeps those acts alive; then it is emptied.
"""


@final
class TaskElements(ElementSource):
    """The source of a fan-out over tasks."""

    __slots__ = ("_act", "_data", "_graphs", "_keyed", "_make_template", "_parent", "_access")

    def __init__(
        self,
        act: ParallelAction,
        *,
        parent: Run,
        access: FieldAccess,
        data: Mapping[str, object],
        recorded_children: RecordedChildren | None,
        make_template: MakeTemplate,
    ) -> None:
        """Call the ``tasks`` method of ``act``. No task is pulled yet.

        Args:
            act: The parallel action.
            parent: The run whose step it is.
            access: The fields of the parent's state that the act may read and write.
            data: The fields of that state when the step began.
            recorded_children: The children that earlier executions recorded; None if there are
                none.
            make_template: Makes the template of the children of one act.

        Raises:
            BadResult: ``tasks`` returned something that is not iterable.
        """
        # Any field may be set on it: a state made from this one is what a child starts with, and
        # no change of the parent's.
        given = make_state(data, replace(access, writes=EVERY_FIELD))
        # What was bound to the action last, so that it wins over inputs of the run.
        tasks = act.tasks(given, {**parent.config.inputs, **act._bound})
        super().__init__(
            tasks,
            name=act.name,
            at_most=act.at_most,
            given_by="tasks",
            recorded_children=recorded_children,
        )
        self._act = act
        self._parent = parent
        self._access = access
        self._data = data
        self._make_template = make_template
        self._keyed: bool | None = None  # whether tasks have keys; None before the first task
        # By id(act) and the names of the task's own inputs. The act is in the value, so that its id
        # is not used again meanwhile.
        self._graphs: dict[tuple[object, ...], tuple[Act, Graph]] = {}

    def _entries(self, element: object, position: int) -> tuple[PendingChild, ...]:
        if not isinstance(element, Task):
            refuse_awaitable(element, f"tasks of {self.name!r}")
            msg = f"tasks of {self.name!r} yields Tasks, not {brief(element)}"
            raise BadResult(msg)
        graph = self._graph(element.act, element.inputs)
        # Before the state is looked at: an earlier attempt has made this child, and checked all
        # this.
        if element.key is not None and self._keys.has_come_before((graph.name, element.key)):
            return ()
        # Before anything is made of it: from here on secrets in it are known, and are not shown.
        given = self._parent.config.execution.secrets.hold(held(element.state))
        base = narrowed(
            self._data,
            graph,
            given,
            f"the children of {self.name!r} that execute {graph.name!r}",
            "give it to the Task: Task(act, {field: ...})",
        )
        # Against the declaration too, since a field may be in the state and not be the action's to
        # read.
        check_reads(repr(self.name), graph, self._access.reads, given, self._data)
        kind = self._make_template(graph, base, only_write_reader(graph), element.inputs)
        about = element.element
        # Outcomes name what the child works on. Without an element that is its state, less the
        # secrets.
        if about is None:
            shown = without_secrets(given)
            about = element.state if shown is given else shown
        # Last: from here on the key counts as seen. If something above raised, the task must still
        # be new for the next attempt.
        key = self._task_key(element, graph)
        return (PendingChild(key, position, about, kind),)

    def resume(self, former: ElementSource, unfinished: Iterable[Run]) -> None:
        """Continue where the source of an earlier attempt of the step stopped; see the base."""
        # That attempt may have met only tasks that it passed over, and so learned nothing about
        # keys (see test_a_repeated_key_is_refused_after_attempts_that_came_only_to_the_first).
        assert isinstance(former, TaskElements), "a step has one kind of source"
        self._keyed = former._keyed
        super().resume(former, unfinished)

    def _is_keyed(self) -> bool:
        return bool(self._keyed)

    def _hide(self, error: BaseException) -> None:
        self._parent.config.secrets.hide(error)

    def _graph(self, act: Act, given: Collection[str]) -> Graph:
        """Return the act as a graph. Cached by identity: equal acts may have different inputs.

        Args:
            act: A task's act.
            given: Names of the inputs that the task itself gives, nearer than what is bound here.
        """
        key = (id(act), *given)
        known = self._graphs.get(key)
        if known is not None:
            return known[1]
        # Emptied as a whole: the acts that are used again and again are back at once.
        if len(self._graphs) >= GRAPHS:
            self._graphs.clear()
        bound = {name: value for name, value in self._act._bound.items() if name not in given}
        graph = bind_where_taken(as_graph(act, f"tasks of {self.name!r}"), bound)
        self._graphs[key] = (act, graph)
        return graph

    def _task_key(self, task: Task, graph: Graph) -> Key:
        keyed, position = task.key is not None, self._positions.next
        if self._keyed is None:
            # The first task decides for all of them.
            self._keyed = keyed
        if self._keyed != keyed:
            msg = (
                f"tasks of {self.name!r}: some have a key= and some have none, so that a position "
                f"could be taken for a key; give all of them one, or none"
            )
            raise BadKey(msg)
        if task.key is None:
            return position
        key = plain_key(task.key)
        if key is None:
            msg = (
                f"tasks of {self.name!r}: the key of task {position} ({graph.name!r}) is a "
                f"{type(task.key).__name__}; keys are str or int"
            )
            raise BadKey(msg)
        if (graph.name, key) in self._keys.seen:
            msg = (
                f"tasks of {self.name!r}: task {position} has the act {graph.name!r} and the "
                f"key {brief(key)}, which an earlier task has; give it another key=, or its "
                f"act another name: act.bind(name=...)"
            )
            raise BadKey(msg)
        self._keys.seen.add((graph.name, key))
        return key
