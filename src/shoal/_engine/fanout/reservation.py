"""The reservation of a fan-out with ``ahead=0``: what the next child needs, before it is pulled.

An element of an iterable is pulled once its child has all that it needs to start, and the child
gets it. The request waits in its turn as a child would; asking again whenever the limits open would
lose to all that waits at the gates.

An async source may take any time to give an element, so nothing is held meanwhile: what was granted
is given back at once, and says that a child could start now.

Invariants:
- At most one child's needs are reserved, and at most one child's are asked for and not reserved.
- A permit that no child takes over is given back in full, rates included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

from shoal._engine.config import RunConfig
from shoal._engine.run import Run
from shoal._limits.permits import AttemptPermit, HeldPermits, InFlight
from shoal._limits.refusals import overload
from shoal._limits.scheduler import FairScheduler

from .ahead import ReadAhead
from .entries import ChildSource
from .start_requests import StartRequests


class _Reserved(NamedTuple):
    """What the next child needs to start."""

    kind: RunConfig
    """What it was requested for."""
    permits: HeldPermits
    """The permits of the child to come, with its slot in flight."""
    permit: AttemptPermit
    """The permit of its first attempt, which includes that slot."""


@final
class Reservation:
    """What the next child of a source needs to start, requested before its element is pulled."""

    __slots__ = (
        "_ahead",
        "_asked",
        "_in_flight",
        "_on_refused",
        "_on_room",
        "_requests",
        "_reserved",
        "_scheduler",
        "_source",
    )

    def __init__(
        self,
        source: ChildSource,
        ahead: ReadAhead,
        requests: StartRequests,
        in_flight: InFlight,
        scheduler: FairScheduler,
        *,
        on_room: Callable[[], None],
        on_refused: Callable[[Exception], None],
    ) -> None:
        """Begin with nothing requested.

        Args:
            source: Knows what its children have in common.
            ahead: Knows what each of them needs.
            requests: Requests that.
            in_flight: The group's places.
            scheduler: Grants them.
            on_room: Called when the next element may be pulled.
            on_refused: Called with the reason why its child can never start.
        """
        self._source = source
        self._ahead = ahead
        self._requests = requests
        self._in_flight = in_flight
        self._scheduler = scheduler
        # The one is for the next child of an iterable, which gets it; the other says when an async
        # source may pull, and is given back then.
        self._reserved: _Reserved | None = None
        self._asked: _Reserved | None = None
        # Both replaced in `close` alone.
        self._on_room = on_room
        self._on_refused = on_refused

    @property
    def is_made(self) -> bool:
        """Whether the next child's needs were requested, and are granted or waited for."""
        return self._reserved is not None

    @property
    def is_granted(self) -> bool:
        """Whether they are granted: the next child may start as soon as its element is pulled."""
        return self._reserved is not None and self._reserved.permit.granted

    def make(self) -> bool:
        """Request what the next child needs to start; return whether its element may be pulled.

        If not, ``on_room`` is called once it may. If only the element says what its child needs,
        nothing is reserved, and it may be pulled.
        """
        self._reserved = self._request()
        return self._reserved is None or self._reserved.permit.granted

    def take_for(self, child: Run) -> HeldPermits | None:
        """Hand out what was granted for ``child``; None: nothing was, or it needs something else.

        Then it is given back.
        """
        reserved = self._reserved
        if reserved is None:
            return None
        if child.config.entry is not reserved.kind.entry or not child.begins_anew:
            # It continues, for instance, or has another act.
            self.give_back()
            return None
        self._reserved = None
        return reserved.permits

    def give_back(self) -> None:
        """Give back what was requested, as there is no next child now."""
        reserved, self._reserved = self._reserved, None
        if reserved is not None:
            self._return(reserved)

    def could_start(self) -> bool:
        """Whether a child could start now; if not, ``on_room`` is called once it could.

        Nothing is held then.
        """
        asked = self._asked
        if asked is None:
            asked = self._asked = self._request()
        if asked is None:
            return True
        if not asked.permit.granted:
            return False
        self._asked = None
        self._return(asked)
        return True

    def close(self) -> None:
        """Give back all that was requested; the group has ended."""
        self.give_back()
        asked, self._asked = self._asked, None
        if asked is not None:
            self._return(asked)
        # Breaks a cycle: these are methods of the group and its scope, which refer to this.
        self._on_room = self._on_refused = _ignore

    def _request(self) -> _Reserved | None:
        """Request what a child needs to start; None: only its element says that."""
        kind = self._source.kind
        found = None if kind is None else self._ahead.gates(kind)
        # Its shares of limits depend on its state.
        if kind is None or found is None or self._scheduler.has_shares:
            return None
        gates, needed = found
        if not (gates or needed):
            return None  # a place is all that it needs
        permits, permit = self._requests.for_any(kind, gates, needed, self._on_granted)
        reserved = _Reserved(kind, permits, permit)
        scheduler = self._scheduler
        is_bounded = scheduler.bounds_waiting and not permit.granted
        if is_bounded and overload(permit, scheduler.clock) is not None:
            # More wait than may: the child is refused, which is known only by its element.
            self._return(reserved)
            return None
        return reserved

    def _on_granted(self) -> None:
        for one in (self._reserved, self._asked):
            if one is not None and one.permit.refusal is not None:
                self._on_refused(one.permit.refusal)
                return
        self._on_room()

    def _return(self, reserved: _Reserved) -> None:
        reserved.permits.first_permit = None
        reserved.permit.cancel()
        self._in_flight.release(reserved.permits, refunds=True)

    def __repr__(self) -> str:
        state = "granted" if self.is_granted else "requested" if self.is_made else "not made"
        return f"<Reservation, {state}>"


def _ignore(_what: object = None) -> None:
    """Replace the callbacks of a group that has ended."""
