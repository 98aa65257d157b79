"""Gates, the requests made to them, and the wait queues in which requests wait.

A *gate* is the semaphore and the rate meter of one part of a ``Limits``, for one key of it. An
attempt or a child that wants to start makes a *request* to several gates at once. Requests of the
same execution on the same gates share a *wait queue*. It is posted at one gate that is closed to
its first request; the other gates don't know of it.

Invariants:
- A wait queue is posted at one gate, or at none. A gate knows which of those posted at it has the
  next turn: at each gate, the wait queues of a flow are ordered among themselves, and flows among
  those that have something posted there.
- Memory follows use: a gate in its initial state may be dropped, and is made again when needed.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Collection, Hashable
from heapq import heappop, heappush, heapreplace
from itertools import islice
from typing import ClassVar, Protocol, final

from .accounts import Accounts, Payer, Purse, Stake
from .adaptive import Adaptive
from .flows import LAST, Flow, Key, Priority, Turn, Turns
from .headers import REQUESTS, TOKENS, RateHeaders
from .limits import Part
from .lines import InLine, Line
from .meters import ForeignMeter, Meter
from .shared_rates import SharedMeter


@final
class Gate:
    """Semaphore and rate meter of one key of one part of a limit."""

    __slots__ = (
        "_ahead",
        "_by_flow",
        "_posts",
        "adapt",
        "alarm_at",
        "changed_at",
        "is_hold",
        "is_shut",
        "key",
        "line",
        "meter",
        "name",
        "part",
        "paused_until",
        "posted",
        "purse",
        "size",
        "slots",
        "used",
        "users",
    )

    def __init__(
        self,
        size: float | None = None,
        part: Part | None = None,
        key: Hashable = None,
        name: str = "in flight",
    ) -> None:
        """Create a gate with ``size`` free slots (None: unlimited) and the rate of ``part``.

        Args:
            size: The number of slots.
            part: The part of a limit that it belongs to; None: a gate of the engine's own.
            key: The key of the limit.
            name: What people are told a request waits for, at a gate of the engine's own.
        """
        self.resize(size)
        self.name: str = name
        # None: a gate of the engine's own, for workers or children in flight. Replaced, together
        # with `adapt` and `meter`, when the limits of the owner are changed.
        self.part: Part | None = part
        self.key: Hashable = key
        self.meter: Meter | ForeignMeter | SharedMeter | None = (
            None if part is None else part.meter(key)
        )
        # Set by `PartGates` alone, and never replaced.
        self.purse: Purse | None = None
        """The account from which a request is paid, if the part is a budget."""
        self.adapt: Adaptive | None = None if part is None else part.adapt
        # Only of a part with `waiting=`. Made by `PartGates`, and never replaced.
        self.line: Line | None = None
        # Slots taken. May exceed `slots`: after a resize, and when a cancelled attempt reacquires
        # its slots without waiting. Then nothing starts until enough has ended.
        self.used: int = 0
        # Permits and in-flight slots that refer to this gate, whether granted, waiting or
        # suspended. While there are any, the gate must not be dropped: a second gate for the same
        # key would grant its slots twice.
        self.users: int = 0
        self.is_hold: bool = False
        """Whether this gate stops a held execution, and counts nothing."""
        # Set and unset by `PartGates` alone. Attempts under way go on.
        self.is_shut: bool = False
        """Whether it is paused until it is resumed, by a person and not by time."""
        self.paused_until: float = -math.inf
        self.changed_at: float = -math.inf  # when `adapt` last lowered the number of slots
        self.alarm_at: float = math.inf  # set by `GateTimers` alone; inf: no alarm
        self.posted: int = 0  # wait queues posted here; the heaps may hold more
        # Of attempts that reacquire their slots, which go before all others in whatever flow; None
        # until one is posted here, which is rare.
        self._ahead: Posts | None = None
        # Of the outermost flow of all that was posted here; those of flows in it are entries there.
        self._posts: Posts | None = None
        # None until something of a second flow is posted here.
        self._by_flow: dict[Flow, Posts] | None = None

    def resize(self, size: float | None) -> None:
        """Change the number of slots. ``size`` may be fractional; only whole slots are granted."""
        # The fraction is kept because AIMD adds less than a slot at a time.
        self.size: float | None = size
        self.slots: float = math.inf if size is None else int(size)

    def opens_at(self, cost: float, *, paid: bool) -> float:
        """Return when the gate opens to a request of this cost.

        Args:
            cost: Units of the rate.
            paid: Whether the request was charged before, so that it needs only a slot.

        Returns -inf or a past time if the gate is open, inf if the passing of time doesn't open it.
        """
        if self.used >= self.slots:
            return math.inf
        if paid:
            # A pause doesn't hold it back either: its attempt is under way and only wants to go on.
            return -math.inf
        if self.is_shut:
            return math.inf
        opens = self.paused_until
        if self.meter is not None:
            opens = max(opens, self.meter.opens_at(cost))
        if self.purse is not None:
            opens = max(opens, self.purse.account.opens_at(cost))
        return opens

    def turn_from(self, at: float, cost: float) -> float:
        """Return when, from ``at`` on, a request that goes before all others has its turn here.

        As far as that is known: when a pause ends, and when the rate has its next turn. Nobody
        knows when a slot is released.
        """
        opens, meter = self.paused_until, self.meter
        if isinstance(meter, Meter):
            turn = meter.opens_at(cost)
            if self.posted and turn < at and cost == 1.0:
                # Requests that wait use each turn until then, so the turns lie evenly.
                turn += math.ceil((at - turn) / meter.interval) * meter.interval
            opens = max(opens, turn)
        return max(at, opens)

    @property
    def shared(self) -> SharedMeter | None:
        """The meter, if the rate is shared with other processes."""
        return self.meter if isinstance(self.meter, SharedMeter) else None

    @property
    def asks(self) -> bool:
        """Whether all that is missing here is what a backend grants if it is asked."""
        # In this order, since most gates that are shut are out of slots.
        if self.used >= self.slots or self.is_shut:
            return False
        return isinstance(self.meter, SharedMeter) or (
            self.purse is not None and self.purse.account.grant is not None
        )

    @property
    def is_keyed(self) -> bool:
        """Whether this is the gate of one key of many."""
        return self.part is not None and self.part.by is not None

    @property
    def has_cost(self) -> bool:
        """Whether a user's ``cost=`` function says how many units a request takes."""
        return self.part is not None and self.part.cost is not None

    @property
    def unit(self) -> str | None:
        """What its ``cost=`` function counts; None if that isn't said, or there is none."""
        return None if self.part is None else self.part.unit

    def learn(self, said: RateHeaders, now: float) -> bool:
        """Adjust the rate to what a server has said of it; return whether anything concerns it."""
        if self.meter is None:
            return False
        unit = (self.unit or TOKENS) if self.has_cost else REQUESTS
        # Whatever it counts: the server wants to be left alone.
        until = -math.inf if said.retry_after is None else now + said.retry_after
        for left in said.remaining:
            if left.unit.replace("_", "-") != unit.replace("_", "-"):
                continue
            if isinstance(self.meter, Meter):
                self.meter.learn(now, left.units, left.reset_in)
            # What is left of a shared rate is known to its backend alone, and a window opens as a
            # whole: then nothing starts until it does.
            is_bucket = isinstance(self.meter, Meter) and not left.is_window
            if left.units < 1 and left.reset_in is not None and not is_bucket:
                until = max(until, now + left.reset_in)
        self.paused_until = max(self.paused_until, until)
        return True

    def is_new(self, now: float) -> bool:
        """Return whether a new gate would behave the same, so that this one can be dropped."""
        return (
            self.users == 0
            and self.paused_until <= now
            and not self.is_shut
            and (self.meter is None or self.meter.is_full(now))
        )

    def post(self, wait_queue: WaitQueue) -> None:
        """Post ``wait_queue``, which is posted nowhere, at this gate."""
        wait_queue.gate = self
        wait_queue.version += 1
        self.posted += 1
        posts, flow = self._posts, wait_queue.flow
        if not wait_queue.is_behind:
            posts = self._ahead = self._ahead or Posts(flow)
        elif flow.parent is not None or (posts is not None and posts.flow is not flow):
            posts = self._posts_of(flow)
        elif posts is None:
            posts = self._posts = Posts(flow)
        request, arrival = next(iter(wait_queue.requests.items()))
        key = wait_queue.is_behind, wait_queue.is_new, request.due, arrival
        heappush(posts.entries, (key, wait_queue.version, wait_queue))

    def _posts_of(self, flow: Flow) -> Posts:
        """Return the wait queues of a flow here, entered among those of the flows around it."""
        if self._by_flow is None:
            self._by_flow = {}
            if self._posts is not None:
                self._by_flow[self._posts.flow] = self._posts
        before = self._posts
        posts, top = self._enter(flow, self._by_flow)
        if before is not None and before is not top and not before.is_entered:
            # It was the outermost one: a flow around it was made since.
            top = self._enter(before.flow, self._by_flow)[1]
        self._posts = top
        return posts

    def _enter(self, flow: Flow, by_flow: dict[Flow, Posts]) -> tuple[Posts, Posts]:
        """Return the posts of a flow, and the outermost ones around them."""
        posts = by_flow.get(flow)
        if posts is None:
            posts = by_flow[flow] = Posts(flow)
        if flow.parent is None:
            return posts, posts
        around, top = self._enter(flow.parent, by_flow)
        if not posts.is_entered:
            posts.is_entered = True
            heappush(around.entries, (flow.key(), 0, posts))
        return posts, top

    def unpost(self, wait_queue: WaitQueue) -> None:
        """Remove ``wait_queue`` from this gate."""
        wait_queue.gate = None
        wait_queue.version += 1  # makes its entry in the heap stale
        self.posted -= 1

    def first(self) -> WaitQueue | None:
        """Return the wait queue with the next turn; None if none is posted here."""
        found, posts = None, self._posts
        if self._ahead is not None:
            found = self._first(self._ahead)
        elif posts is not None:
            # Usually there is one flow. No flow has a version, so none is taken for a wait queue.
            entries = posts.entries
            while entries:
                _, version, one = entries[0]
                if one.version == version and one.gate is self:
                    return one  # pyright: ignore[reportReturnType]
                if one.version is None:
                    break
                heappop(entries)
        if found is None and posts is not None:
            found = self._first(posts)
        return found

    def _first(self, posts: Posts) -> WaitQueue | None:
        entries = posts.entries
        while entries:
            key, version, one = entries[0]
            if isinstance(one, WaitQueue):
                if one.gate is self and one.version == version:
                    return one
            else:
                now = one.flow.key()
                if now != key:
                    # The flow had turns since, and is due later: turns only grow, so an entry that
                    # is too early surfaces in time to be put right.
                    heapreplace(entries, (now, 0, one))
                    continue
                found = self._first(one)
                if found is not None:
                    return found
                one.is_entered = False
                assert self._by_flow is not None, "there are several flows"
                del self._by_flow[one.flow]
            heappop(entries)
        return None

    def rivals(self) -> list[tuple[Flow, Key]]:
        """Return the flows around the first wait queue, each with the position of the next one.

        That is the next member of the flow around it that has something posted here. The position
        may be too early, never too late. Flows that are alone here are left out.
        """
        found: list[tuple[Flow, Key]] = []
        first, posts = self.first(), self._posts
        # Attempts that reacquire their slots are before all others, whatever turns these have.
        if self._by_flow is None or first is None or not first.is_behind:
            return found
        while posts is not None and isinstance(inner := posts.entries[0][2], Posts):
            # One of the two is the smallest after the first: that is what a heap is.
            others = [entry[0] for entry in posts.entries[1:3]]
            if others:
                found.append((inner.flow, min(others)))
            posts = inner
        return found

    def first_turn(self) -> Turn:
        """Return the turn of the first wait queue; if there is none, a turn after all others."""
        wait_queue = self.first()
        return LAST if wait_queue is None else wait_queue.turn()

    def wait_queues(self) -> list[WaitQueue]:
        """Return the wait queues posted here, the first one first and the rest in no order."""
        first = self.first()
        if first is None:
            return []
        found, left = [first], [posts for posts in (self._ahead, self._posts) if posts is not None]
        while left:
            for _, version, one in left.pop().entries:
                if not isinstance(one, WaitQueue):
                    left.append(one)
                elif one.gate is self and one.version == version and one is not first:
                    found.append(one)
        return found

    def waiting(self) -> int:
        """Return the number of requests that wait here."""
        return sum(len(wait_queue.requests) for wait_queue in self.wait_queues())

    def costs(self, most: int) -> list[float]:
        """Return the costs of requests that wait here for the rate and for which slots are free.

        Args:
            most: The most requests to look at.
        """
        found: list[float] = []
        for wait_queue in self.wait_queues():
            # Units for requests that no slot could take would lapse unused: see
            # test_nothing_is_asked_for_that_slots_could_not_use.
            looked_at = islice(wait_queue.requests, min(wait_queue.first().room, most - len(found)))
            found += [one.cost(one.needed.index(self)) for one in looked_at if not one.paid]
        return found

    def __repr__(self) -> str:
        size = "" if self.size is None else f" {self.used}/{self.size:g}"
        rate = "" if self.meter is None else " rated"
        return f"<Gate{size}{rate}, {self.posted} wait queues>"


@final
class Posts:
    """The wait queues of one flow that are posted at one gate, and the flows in it that have some.

    ``entries`` is a heap. A wait queue that is moved, or whose first request changes, leaves its
    old entry behind, with a version that no longer matches, and a flow that had a turn has an entry
    that is too early. ``Gate.first`` drops or mends them when they surface.
    """

    __slots__ = ("entries", "flow", "is_entered")
    version: ClassVar[None] = None
    gate: ClassVar[None] = None

    def __init__(self, flow: Flow) -> None:
        self.flow: Flow = flow
        self.entries: list[tuple[Key, int, WaitQueue | Posts]] = []
        self.is_entered: bool = False
        """Whether it is an entry in the posts of the flow around, at the same gate."""


class FairShare(InLine, Turns, Protocol):
    """The fair share of one execution: an execution takes turns with others, not each child.

    All attributes are set by the scheduler alone, but for ``priority`` and ``owner``.
    """

    priority: Priority
    """The class in which it takes turns."""
    owner: str
    """Whose run it is; empty if it has no owner."""
    costs: Costs | None
    """What was charged to it at limits with ``cost=``; None: nothing yet."""
    held_at: Gate | None
    """The gate at which its requests wait while the execution is held; None: it isn't."""

    @property
    def accounts(self) -> Accounts | None:
        """The accounts of its budgets; None: it has none of its own."""
        ...


@final
class Costs:
    """What was charged at limits with ``cost=``, by the part of the limit."""

    __slots__ = ("_by_part",)

    def __init__(self) -> None:
        # By the id of a part, since parts may be equal; with the part, so that the id stays its.
        self._by_part: dict[int, tuple[Part, float]] = {}

    def add(self, part: Part, cost: float) -> None:
        """Count a charge, or with a negative cost a refund."""
        _, before = self._by_part.get(id(part), (part, 0.0))
        self._by_part[id(part)] = part, before + cost

    def of(self, part: Part) -> float:
        """Return what was charged at a part."""
        return self._by_part.get(id(part), (part, 0.0))[1]

    def replace(self, old: Part, new: Part) -> None:
        """Count on under ``new``, which has replaced ``old``."""
        if id(old) in self._by_part and old is not new:
            _, before = self._by_part.pop(id(old))
            self.add(new, before)

    def all(self) -> Collection[tuple[Part, float]]:
        """Return what was charged at each part."""
        return list(self._by_part.values())


class Acquired:
    """Slots and units of several gates that are acquired and released together."""

    __slots__ = ("costs", "needed", "since", "stakes", "taken_at")

    def __init__(self, needed: tuple[Gate, ...], costs: tuple[float, ...] | None) -> None:
        """Describe what is needed; nothing is acquired yet.

        Args:
            needed: The gates, each once.
            costs: The units that each of them charges; None: 1 each.
        """
        self.needed: tuple[Gate, ...] = needed
        self.costs: tuple[float, ...] | None = costs
        self.stakes: tuple[Stake, ...] = ()  # what it costs at budgets, once it is granted
        self.since: float | None = None  # when it was granted; only set where a gate has `adapt`
        self.taken_at: float = -math.inf  # when it was charged; only set where a gate has a rate


class PermitRequest(Acquired):
    """A request for several gates: granted all of them at once, or waiting for them."""

    __slots__ = ("due", "flow", "granted", "is_returning", "paid", "unit", "wait_queue")

    def __init__(
        self,
        needed: tuple[Gate, ...],
        costs: tuple[float, ...] | None = None,
        unit: FairShare | None = None,
        flow: Flow | None = None,
    ) -> None:
        """Create a request that is neither granted nor waiting.

        Args:
            needed: The gates, each once.
            costs: The units that each of them charges; None: 1 each.
            unit: The execution that takes turns for it; None: requests go by arrival.
            flow: Where that takes turns; None: where everything without a priority or share does.
        """
        super().__init__(needed, costs)
        self.flow: Flow | None = flow
        self.unit: FairShare | None = unit
        # Whether a run waits for another attempt. Such a request goes before those of children that
        # have not started, and of first attempts.
        self.is_returning: bool = False
        self.due: float = 0.0  # the round of its turn; set when it joins a wait queue
        # Whether its rates are charged. Once set it stays: a permit that is released and
        # reacquired while children run pays once. Only `AttemptPermit.cancel` clears it, with a
        # refund.
        self.paid: bool = False
        self.granted: bool = False  # never together with `wait_queue`
        self.wait_queue: WaitQueue | None = None  # where it waits

    def count_as_granted(self, taken_at: float) -> None:
        """Note that all of it was taken past the scheduler, and charged at that time."""
        self.granted = self.paid = True
        self.taken_at = taken_at

    def cost(self, at: int) -> float:
        """Return the units that the gate at this index charges."""
        return 1.0 if self.costs is None else self.costs[at]

    def cost_at(self, gate: Gate) -> float:
        """Return the units that a gate charges at which it waits."""
        # The gate of a held execution is none of those that are needed, and charges nothing.
        is_hold = self.unit is not None and gate.is_hold
        return 0.0 if is_hold else self.cost(self.needed.index(gate))

    @property
    def payer(self) -> Payer | None:
        """The permits of the run that makes the request, if it belongs to one."""
        return None

    @property
    def room(self) -> int:
        """How many requests like this one would find a slot at every gate they need."""
        room = min(gate.slots - gate.used for gate in self.needed)
        return int(max(0.0, min(room, sys.maxsize)))

    @property
    def is_gone(self) -> bool:
        """Whether the task that waits for this request was cancelled and has not run since."""
        return False

    # The scheduler calls these as the request moves on.

    def include_slot(self) -> bool:
        """Add the child's in-flight slot to a request that must wait; return whether it has one."""
        return False

    def suspend_slot(self) -> None:
        """Release the child's in-flight slot, after the request has joined a wait queue."""

    def on_granted(self, since: float | None) -> None:
        """Called when the request is granted and charged for the first time."""
        self.since = since

    def wake(self) -> None:
        """Called when the request has left its wait queue."""

    def refuse(self, error: Exception) -> None:
        """Called instead of ``wake`` when the request was removed because it can't be granted."""


@final
class WaitQueue:
    """Waiting requests of one unit on the same gates, in order of arrival."""

    __slots__ = ("requests", "flow", "gate", "is_behind", "is_new", "key", "version")

    def __init__(self, key: Hashable, flow: Flow, *, is_behind: bool, is_new: bool) -> None:
        """Create an empty wait queue.

        Args:
            key: What its requests have in common.
            flow: Where they take turns.
            is_behind: Whether it is served after those that are not.
            is_new: Whether its requests are for first attempts. Others of the flow go before these.
        """
        self.key: Hashable = key
        # None of these is changed: a request that needs other gates joins another wait queue.
        self.flow: Flow = flow
        self.is_behind: bool = is_behind
        self.is_new: bool = is_new
        # Requests and their arrival numbers; never empty while it is posted. A plain dict would
        # scan over the entries deleted at its front each time the first one is looked up.
        self.requests: OrderedDict[PermitRequest, int] = OrderedDict()
        self.gate: Gate | None = None  # where it is posted
        self.version: int = 0  # changes with every post and unpost

    def first(self) -> PermitRequest:
        """Return the first request."""
        return next(iter(self.requests))

    def turn(self) -> Turn:
        """Return the turn of the first request, to be compared with those of other wait queues."""
        request, arrival = next(iter(self.requests.items()))
        key = self.is_behind, self.is_new, request.due, arrival
        flow = self.flow
        return (key,) if flow.parent is None or not self.is_behind else (*flow.path(), key)

    def __repr__(self) -> str:
        return f"<WaitQueue of {len(self.requests)} at {self.gate}>"
