"""Look into runs: pages of their children, tallies, and when their ends were saved.

Invariants:
- No query decodes a value of a user.
- A page costs what it returns, if an index has its order. The orders "position" and "slowest" have
  none, because an index costs every run more than the rare page of that order: the children are
  read once, in the order in which they are stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import islice
from math import inf
from typing import Any, Literal, NamedTuple, final

from shoal._events.identity import Key, RunPath
from shoal.stores._codec.codec import Codec
from shoal.stores._protocol import ChildStatus, RunSummary
from shoal.stores._row_order import (
    BOUNDLESS,
    ENDED,
    STATUSES,
    UNENDED,
    UNTIMED,
    Place,
    Standing,
    cursor_of,
    page,
    place_of,
    row_of,
)
from shoal.stores._watching import Bin, EntryKind, Order, Row, RowPage, StepTally, StoredEntry

from . import browsing as _browsing
from .children import children_where
from .dialect import Connection, Dialect
from .error_texts import error_in_short, kind_of
from .rows import History
from .unpacking import outlived

_ENDED_AT = (
    "coalesce(runs.ended_at, (SELECT at FROM saves WHERE saves.run = runs.parent "
    "AND number >= applied ORDER BY number LIMIT 1))"
)
# In an order that an index has. Without it PostgreSQL may read the whole table to find none: most
# rows have one parent, that of a large run, so it expects to find one soon.
_BELOW = (
    "SELECT below.id FROM runs AS below WHERE below.parent = {} "
    "ORDER BY below.place, below.key LIMIT 1"
)
_ROW = (
    "SELECT runs.id, step, visit, act, {key}, coalesce(position, 0), coalesce(status, 'running'), "
    f"applied, coalesce(used, 1), coalesce(attempts, 1), coalesce(elapsed, 0.0), {_ENDED_AT}, "
    "coalesce(reason, ''), winner_act, winner_key, error, coalesce(failed_step, ''), "
    f"({_BELOW.format('runs.id')}) IS NOT NULL "
    "FROM runs JOIN places ON places.id = place WHERE "
)
_STANDING = (
    "SELECT runs.id, coalesce(position, 0), coalesce(status, 'running'), applied, "
    f"coalesce(elapsed, 0.0), {_ENDED_AT} FROM runs"
)
_LAST = "ended_at DESC, runs.id DESC"
_OF_STEP = " AND place IN (SELECT id FROM places WHERE step = ?)"

FEW = 5_000
"""Children of a step up to this number are sorted here; the database looks for more of them along
its indices."""
FOUND = 1_000
"""Children that a search by key finds at most."""
SEARCHED = 2_000_000
"""Keys that a search looks at: some 0.3 s."""
SPAWNED = 1_000
"""Runs started by an action that are listed."""
_AT_ONCE = 500
"""Rows that one query names."""


@final
class _Some(NamedTuple):
    """The children of a run that a page is made of."""

    run: int
    statuses: tuple[ChildStatus, ...]
    step: str | None

    @property
    def of_step(self) -> str:
        """SQL: a condition for the step."""
        return "" if self.step is None else _OF_STEP

    @property
    def values(self) -> tuple[object, ...]:
        """The values for that condition."""
        return () if self.step is None else (self.step,)


@final
class Inspector:
    """Answers what watchers ask about runs, within the transaction of a reader."""

    def __init__(
        self,
        sql: Connection,
        dialect: Dialect,
        codec: Codec,
        decided_visits: Callable[[int], set[tuple[str, int]]],
    ) -> None:
        """Read with ``sql``.

        Args:
            sql: The connection.
            dialect: How the database writes keys.
            codec: Encodes keys.
            decided_visits: Returns the steps and visits of a run in which a race was decided.
        """
        self._sql = sql
        self._dialect = dialect
        self._codec = codec
        self._decided_visits = decided_visits

    def _find(self, path: RunPath) -> int | None:
        return _browsing.find(self._sql, self._dialect, path)

    # -- rows -----------------------------------------------------------------------------------

    def row(self, path: RunPath) -> Row | None:
        """Return one run."""
        run = self._find(path)
        if run is None:
            return None
        if path.parent is not None:
            return next(iter(self._rows(path.parent, [run])))._replace(path=path)
        summary = _browsing.summary(self._sql, self._dialect, path.id)
        if summary is None:
            return None
        has_children = self._sql.execute(_BELOW.format("?"), (run,))
        return row_of(path, summary, has_children=has_children.fetchone() is not None)

    def _rows(self, parent: RunPath, ids: Sequence[int]) -> list[Row]:
        """Return rows of children of one parent, in the order of their ids in ``ids``."""
        found = dict[int, Row]()
        query, of = _ROW.format(key=self._dialect.key), self._row_of
        for at in range(0, len(ids), _AT_ONCE):
            some = ids[at : at + _AT_ONCE]
            holes = ", ".join("?" * len(some))
            for run, *rest in self._sql.execute(f"{query}runs.id IN ({holes})", some):
                found[run] = of(parent, rest)
        return [found[run] for run in ids if run in found]

    def _row_of(self, parent: RunPath, row: Sequence[Any]) -> Row:
        step, visit, act, key, position, status, applied, used, attempts, elapsed, *more = row
        ended_at, reason, winner_act, winner_key, error, failed_step, has_children = more
        key_of = self._dialect.key_of
        packed: Mapping[str, Any] | None = None if error is None else json.loads(error)
        winner = None
        if winner_act is not None and winner_key is not None:
            won = key_of(winner_key)
            winner = RunPath(parent=parent, step=step, visit=visit, act=winner_act, key=won)
        return Row(
            path=RunPath(parent=parent, step=step, visit=visit, act=act, key=key_of(key)),
            status=status,
            position=position,
            began_at=None if ended_at is None else ended_at - elapsed,
            ended_at=ended_at,
            elapsed=elapsed,
            attempts=attempts,
            used=bool(used),
            reason=reason,
            winner=winner,
            error_type="" if packed is None else kind_of(packed),
            error="" if packed is None else error_in_short(packed),
            failed_step=failed_step,
            has_children=bool(has_children),
            applied=applied,
        )

    # -- pages ----------------------------------------------------------------------------------

    def rows(
        self,
        path: RunPath,
        *,
        step: str | None,
        status: ChildStatus | None,
        key: str | None,
        order: Order,
        after: str | None,
        limit: int,
    ) -> RowPage:
        """Return a page of a run's children."""
        run, start = self._find(path), place_of(after, order)
        if run is None or limit < 1:
            return RowPage((), None)
        some = _Some(run, STATUSES if status is None else (status,), step)
        few, left_out = self._few(some, key)
        if few is not None:
            standings = [one for one in self._standings(few) if one.status in some.statuses]
            taken, more = page(standings, order, start, limit)
        else:
            # One more than a page has: if there is one, there is a next page.
            found = self._in_order(some, order, start, limit + 1)
            taken = found[:limit]
            more = cursor_of(taken[-1].place(order)) if len(found) > limit else None
        return RowPage(self._rows(path, [one.id for one in taken]), more, left_out)

    def _few(self, some: _Some, key: str | None) -> tuple[list[int] | None, str]:
        """Return the ids of the children with that step and key; None if there are many.

        Also returns what is left out.
        """
        left_out = ""
        if key is not None:
            found = [run for run, _ in islice(self._searched(some, key), FOUND + 1)]
            if len(found) > FOUND:
                left_out = f"all but the first {FOUND:,} children whose key contains it"
            else:
                last = self._sql.execute(
                    "SELECT 1 FROM runs WHERE parent = ? LIMIT 1 OFFSET ?", (some.run, SEARCHED)
                ).fetchone()
                if last is not None:
                    left_out = f"all but {SEARCHED:,} keys"
            return found[:FOUND], left_out
        if some.step is None:
            return None, ""
        # The index by place and key: it has the children of the step, however few of all they are.
        found = self._sql.execute(
            f"SELECT id FROM runs WHERE parent = ?{some.of_step} LIMIT ?",
            (some.run, *some.values, FEW + 1),
        ).fetchall()
        return (None if len(found) > FEW else [run for (run,) in found]), ""

    def _searched(self, some: _Some, key: str) -> Iterable[tuple[int, object]]:
        where = f"{self._dialect.contains}{'' if some.step is None else some.of_step}"
        return self._sql.execute(
            "SELECT id, key FROM (SELECT id, key, place FROM runs WHERE parent = ? LIMIT ?) "
            f"AS searched WHERE {where} LIMIT ?",
            (some.run, SEARCHED, key, *some.values, FOUND + 1),
        )

    def _standings(self, ids: Sequence[int]) -> list[Standing]:
        found: list[Standing] = []
        for at in range(0, len(ids), _AT_ONCE):
            run_ids = ids[at : at + _AT_ONCE]
            found += self._select(f"runs.id IN ({', '.join('?' * len(run_ids))})", *run_ids)
        return found

    def _select(self, where: str, *values: object, how: str = "") -> list[Standing]:
        found = self._sql.execute(f"{_STANDING}{how} WHERE {where}", values)
        return [Standing(*row) for row in found]

    def _in_order(
        self, some: _Some, order: Order, start: Place | None, limit: int
    ) -> list[Standing]:
        match order:
            case "failed first":
                return self._failed_first(some, start, limit)
            case "ended last":
                return self._ended_last(some, start, limit)
            case "position":
                return self._stored(some, "coalesce(position, 0)", start, limit)
            case _:
                return self._stored(some, "-coalesce(elapsed, 0.0)", start, limit)

    def _failed_first(self, some: _Some, start: Place | None, limit: int) -> list[Standing]:
        rank, applied, last = start or (-1, 0, 0)
        found: list[Standing] = []
        for status in some.statuses:
            at = STATUSES.index(status)
            where, values = _with_status(some, status)
            if at < rank:
                continue
            if at > rank or not applied:  # those that no update applied come first
                found += self._select(
                    f"{where} AND applied IS NULL AND runs.id > ?{some.of_step} "
                    "ORDER BY runs.id LIMIT ?",
                    *(*values, last if at == rank else 0, *some.values, limit - len(found)),
                )
            if len(found) < limit:
                found += self._select(
                    f"{where} AND applied > ?{some.of_step} ORDER BY applied NULLS FIRST LIMIT ?",
                    *(*values, applied if at == rank else 0, *some.values, limit - len(found)),
                )
            if len(found) >= limit:
                break
        return found

    def _ended_last(self, some: _Some, start: Place | None, limit: int) -> list[Standing]:
        """Merge the children by their ends: those that updates applied, and the others."""
        streams: list[list[tuple[Place, Standing]]] = []
        for status in some.statuses:
            where, values = _with_status(some, status)
            for condition, order, bounds in self._streams(some.run, status, start):
                found = self._select(
                    f"{where} AND {condition}{some.of_step} ORDER BY {order} LIMIT ?",
                    *(*values, *bounds, *some.values, limit),
                )
                # Sorted, because the clock may have been set back meanwhile.
                streams.append(sorted((one.place("ended last"), one) for one in found))
        merged = (one for place, one in merge(*streams) if start is None or place > start)
        return list(islice(merged, limit))

    def _streams(
        self, run: int, status: ChildStatus, start: Place | None
    ) -> Iterator[tuple[str, str, tuple[float, ...]]]:
        """Yield how to find children with a status that come after a place in "ended last".

        Yields conditions and orders, which an index has, and the values of the conditions.
        """
        group, ended, applied, last = start or (ENDED, -BOUNDLESS, -BOUNDLESS, -BOUNDLESS)
        if status == "running":
            below = -last if group == UNENDED else BOUNDLESS
            yield "applied IS NULL AND runs.id < ?", "runs.id DESC", (below,)
            return
        if group == UNENDED:
            return
        yield "applied < ?", "applied DESC NULLS LAST", (self._upto(run, group, ended, applied),)
        if group == ENDED and applied:
            yield "ended_at IS NOT NULL AND ended_at <= ?", _LAST, (-ended,)
        elif group == ENDED:
            condition = "ended_at IS NOT NULL AND (ended_at < ? OR (ended_at = ? AND runs.id < ?))"
            yield condition, _LAST, (-ended, -ended, -last)
        below = -last if group == UNTIMED and not applied else BOUNDLESS
        yield "applied IS NULL AND ended_at IS NULL AND runs.id < ?", "runs.id DESC", (below,)

    def _upto(self, run: int, group: float, ended: float, applied: float) -> float:
        """Return the number below which the updates are that applied the children to come."""
        if applied:
            return -applied
        if group == UNTIMED:  # those that an update applied have come before
            return 0
        (number,) = self._sql.execute(
            "SELECT coalesce(max(number), 0) FROM saves WHERE run = ? AND (at IS NULL OR at < ?)",
            (run, -ended),
        ).fetchone()
        return number + 1

    def _stored(self, some: _Some, place: str, start: Place | None, limit: int) -> list[Standing]:
        """Return children in the order of an expression, for which there is no index."""
        where, values = "parent = ?", list[Any]([some.run])
        if len(some.statuses) == 1:
            where, status_values = _with_status(some, some.statuses[0])
            values = list(status_values)
        count, first, last = self._sql.execute(
            f"SELECT count(*), min(id), max(id) FROM runs WHERE {where}", values
        ).fetchone()
        how = ""
        if count > FEW and 3 * count > last - first:
            # They are most of what is stored between the first and the last: reading that in its
            # own order is several times as fast as looking each of them up.
            how = self._dialect.unindexed
            where = f"runs.id BETWEEN ? AND ? AND {where}"
            values = [first, last, *values]
        where += some.of_step
        values += some.values
        if start is not None:
            where += f" AND ({place} > ? OR ({place} = ? AND id > ?))"
            values += [start[0], start[0], start[1]]
        ids = self._sql.execute(
            f"SELECT id FROM runs{how} WHERE {where} ORDER BY {place}, id LIMIT ?", (*values, limit)
        ).fetchall()
        by_id = {one.id: one for one in self._standings([run for (run,) in ids])}
        return [by_id[run] for (run,) in ids]

    # -- histories ------------------------------------------------------------------------------

    def entries(
        self, path: RunPath, kinds: Collection[EntryKind] | None, from_number: int, limit: int
    ) -> tuple[list[StoredEntry], int | None]:
        """Return a part of a run's history, and the number from which the next part goes on."""
        run = self._find(path)
        if run is None or (kinds is not None and not kinds):
            return [], None
        entries, last = self._own_entries(run, kinds, from_number, max(limit, 1))
        if kinds is None or "update" in kinds:
            applied, last = self._applied(run, path, from_number, max(limit, 1), last)
            entries += applied
            if path.parent is not None:
                entries += self._last_of(run, from_number)
        entries = [one for one in entries if one.number <= last]
        entries.sort(key=lambda one: (one.number, one.kind != "update"))
        if len(entries) > limit > 0:
            # Each source has returned as many as were asked for: all together are too many.
            last = min(last, entries[limit - 1].number)
            entries = [one for one in entries if one.number <= last]
            return entries, int(last) + 1
        return entries, None if last == inf else int(last) + 1

    def _own_entries(
        self, run: int, kinds: Collection[EntryKind] | None, from_number: int, limit: int
    ) -> tuple[list[StoredEntry], float]:
        """Return entries of ``history``, and the last number whose entries are complete."""
        where = "run = ? AND number >= ?"
        values: list[Any] = [run, from_number]
        if kinds is not None and {*kinds} == {"asked", "answered"}:
            where += " AND kind IN ('asked', 'answered')"  # as the index says it
        elif kinds is not None and {*kinds} == {"steered"}:
            where += " AND kind = 'steered'"  # as above
        elif kinds is not None:
            where += f" AND kind IN ({', '.join('?' * len(kinds))})"
            values += kinds
        order = "ORDER BY number, kind <> 'update', id"
        select = f"SELECT number, kind, step, data, at FROM history WHERE {where}"
        found = self._sql.execute(f"{select} {order} LIMIT ?", (*values, limit + 1)).fetchall()
        last = inf
        if len(found) > limit:
            last = found[-1][0] - 1
            if last < found[0][0]:  # one number has more entries than a part
                last = found[0][0]
                found = self._sql.execute(f"{select} AND number = ? {order}", (*values, last))
        return [StoredEntry(*row) for row in found], last

    def _applied(
        self, run: int, path: RunPath, from_number: int, limit: int, last: float
    ) -> tuple[list[StoredEntry], float]:
        """Return updates that are in the rows of the children that they applied."""
        some, found = _Some(run, STATUSES, None), list[Standing]()
        for status in STATUSES:
            where, values = _with_status(some, status)
            upto = BOUNDLESS if last == inf else int(last)
            of_status = self._select(
                f"{where} AND applied >= ? AND applied <= ? ORDER BY applied NULLS FIRST LIMIT ?",
                *(*values, max(from_number, 0), upto, limit + 1),
            )
            if len(of_status) > limit:
                last = min(last, (of_status[limit].applied or 0) - 1)
            found += of_status
        found = [one for one in found if (one.applied or 0) <= last]
        found.sort(key=lambda one: one.applied or 0)
        if len(found) > limit:
            last = min(last, (found[limit].applied or 0) - 1)
            found = found[:limit]
        ids = [one.id for one in found]
        entries: list[StoredEntry] = []
        changes = {run: change for run, of_parent, change in self._outlived(ids) if of_parent}
        for one, row in zip(found, self._rows(path, ids), strict=True):
            change = changes[one.id]
            entries.append(
                StoredEntry(change.number, "update", change.step, change.data, one.ended_at, row)
            )
        return entries, last

    def _last_of(self, run: int, from_number: int) -> list[StoredEntry]:
        """Return the last update of a child, if it was saved with the child's end."""
        (ended,) = self._standings([run])
        return [
            StoredEntry(own.number, "update", own.step, own.data, ended.ended_at)
            for _, of_parent, own in self._outlived([run])
            if not of_parent and own.number >= from_number
        ]

    def _outlived(self, ids: Sequence[int]) -> Iterator[tuple[int, bool, History]]:
        """Yield the updates that are in rows of children, as ``history`` would have them."""
        for at in range(0, len(ids), _AT_ONCE):
            some = ids[at : at + _AT_ONCE]
            where = f"runs.id IN ({', '.join('?' * len(some))})"
            numbers = self._sql.execute(f"SELECT id FROM runs WHERE {where} ORDER BY id", some)
            children = children_where(self._sql, self._dialect, f"{where} ORDER BY runs.id", *some)
            for (run,), child in zip(numbers.fetchall(), children, strict=True):
                for of_parent, entry in outlived(child, self._codec):
                    yield run, of_parent, entry

    # -- many children at once ------------------------------------------------------------------

    def tallies(self, path: RunPath) -> list[StepTally]:
        """Count a run's children by step, visit, act and status."""
        run = self._find(path)
        if run is None:
            return []
        by_status = _browsing.counts(self._sql, run)
        # (With GROUP BY +place, SQLite doesn't go through all children place by place.)
        # The children of the most frequent status are what remains of each place: they needn't be
        # looked at. (Of cancelled ones it matters whether they have lost a race.)
        frequent: list[ChildStatus] = [one for one in by_status if one != "cancelled"]
        rest = max(frequent, key=lambda status: by_status[status], default=None)
        counts: dict[int, dict[ChildStatus, int]] = {}
        lost: dict[int, int] = {}
        for status in by_status:
            if status == rest:
                continue
            where, values = _with_status(_Some(run, (), None), status)
            losers = "count(winner_act)" if status == "cancelled" else "0"
            for place, count, losing in self._sql.execute(
                f"SELECT +place, count(*), {losers} FROM runs WHERE {where} GROUP BY +place", values
            ):
                counts.setdefault(place, {})[status] = count
                lost[place] = lost.get(place, 0) + losing
        found = self._sql.execute(
            "SELECT counted.*, step, visit, act FROM (SELECT place, count(*), min(id) FROM runs "
            "WHERE parent = ? GROUP BY place) AS counted JOIN places ON places.id = place",
            (run,),
        ).fetchall()
        decided = self._decided_visits(run) if by_status.get("failed") else ()
        first_of: dict[str, int] = {}
        tallies: list[tuple[int, int, StepTally]] = []
        for place, count, first, step, visit, act in found:
            of = counts.get(place, {})
            left = count - sum(of.values())
            if rest is not None and left:
                of[rest] = left
            losers = lost.get(place, 0)
            if (step, visit) in decided:
                losers += of.get("failed", 0)
            first_of[step] = min(first, first_of.get(step, first))
            ordered: dict[ChildStatus, int] = {
                status: of[status] for status in STATUSES if status in of
            }
            tallies.append((visit, first, StepTally(step, visit, act, ordered, losers)))
        tallies.sort(key=lambda one: (first_of[one[2].step], one[0], one[1]))
        return [tally for _, _, tally in tallies]

    def failed_rows(self, path: RunPath, limit: int) -> list[Row]:
        """Return the failed children of a run, without those that have lost a race."""
        run = self._find(path)
        if run is None:
            return []
        decided = self._decided_visits(run)
        found = self._sql.execute(
            "SELECT runs.id, step, visit FROM runs JOIN places ON places.id = place "
            "WHERE parent = ? AND status = 'failed' ORDER BY applied NULLS FIRST, runs.id",
            (run,),
        )
        ids = (child for child, step, visit in found if (step, visit) not in decided)
        return self._rows(path, list(islice(ids, limit)))

    def times(self, path: RunPath, after: int, limit: int) -> list[tuple[int, float]]:
        """Return when a run's updates were saved."""
        run = self._find(path)
        if run is None:
            return []
        each = (
            "SELECT * FROM (SELECT number, at FROM {} WHERE run = ? AND number > ? "
            "AND at IS NOT NULL ORDER BY number LIMIT ?) AS {}"
        )
        found = self._sql.execute(
            f"SELECT number, min(at) FROM ({each.format('saves', 'ours')} UNION ALL "
            f"{each.format('history', 'theirs')}) AS noted GROUP BY number ORDER BY number LIMIT ?",
            (run, after, limit, run, after, limit, limit),
        )
        return [(number, at) for number, at in found]

    def timeline(self, path: RunPath, bins: int) -> list[Bin]:
        """Return when the ends of a run's children were saved."""
        run = self._find(path)
        if run is None or bins < 1:
            return []
        spans = [
            self._sql.execute(
                "SELECT min(at), max(at) FROM saves WHERE run = ? AND at IS NOT NULL", (run,)
            ).fetchone()
        ]
        statuses: list[ChildStatus] = [status for status in STATUSES if status != "running"]
        spans += [
            self._sql.execute(
                "SELECT min(ended_at), max(ended_at) FROM runs "
                "WHERE parent = ? AND status = ? AND ended_at IS NOT NULL",
                (run, status),
            ).fetchone()
            for status in statuses
        ]
        known = [span for span in spans if span[0] is not None]
        if not known:
            return []
        begins, ends = min(span[0] for span in known), max(span[1] for span in known)
        width = (ends - begins) / bins
        if width <= 0.0:
            bins, width = 1, 1.0
        counts: list[dict[ChildStatus, int]] = [{} for _ in range(bins)]
        for bin_, status, count in self._ends(run, statuses, begins, width, bins):
            of = counts[bin_]
            of[status] = of.get(status, 0) + count
        return [
            Bin(
                begins + at * width,
                ends if at == bins - 1 else begins + (at + 1) * width,
                {status: of[status] for status in STATUSES if status in of},
            )
            for at, of in enumerate(counts)
        ]

    def _ends(
        self, run: int, statuses: Sequence[ChildStatus], begins: float, width: float, bins: int
    ) -> Iterable[tuple[int, ChildStatus, int]]:
        """Count ends by bin and status, those that updates applied and the others."""
        whole = self._dialect.whole
        last_of = dict[int, int]()
        for bin_, number in self._sql.execute(
            f"SELECT {whole.format('(at - ?) / ?')} AS bin, max(number) FROM saves "
            "WHERE run = ? AND at IS NOT NULL GROUP BY 1",
            (begins, width, run),
        ):
            within = min(max(int(bin_), 0), bins - 1)
            last_of[within] = max(number, last_of.get(within, 0))
        # An update without a time is one of an earlier layout, and left out.
        (low,) = self._sql.execute(
            "SELECT coalesce(max(number), 0) FROM saves WHERE run = ? AND at IS NULL", (run,)
        ).fetchone()
        ranges: list[int] = []
        for bin_, high in sorted(last_of.items()):
            if high > low:
                ranges += (bin_, low, high)
                low = high
        for status in statuses:
            if ranges:
                rows = ", ".join(["(?, ?, ?)"] * (len(ranges) // 3))
                for bin_, count in self._sql.execute(
                    f"WITH bins(bin, low, high) AS (VALUES {rows}) SELECT bin, "
                    "(SELECT count(*) FROM runs WHERE parent = ? AND status = ? "
                    "AND applied > low AND applied <= high) FROM bins",
                    (*ranges, run, status),
                ):
                    if count:
                        yield bin_, status, count
            for bin_, count in self._sql.execute(
                f"SELECT {whole.format('(ended_at - ?) / ?')} AS bin, count(*) FROM runs "
                "WHERE parent = ? AND status = ? AND ended_at IS NOT NULL GROUP BY 1",
                (begins, width, run, status),
            ):
                yield min(max(int(bin_), 0), bins - 1), status, count

    # -- one run --------------------------------------------------------------------------------

    def text(
        self, path: RunPath, what: Literal["element", "value", "error", "first"]
    ) -> str | None:
        """Return a value of a run as its stored JSON."""
        run = self._find(path)
        if run is None or (what == "first") != (path.parent is None):
            return None
        query = f"SELECT {what} FROM runs WHERE id = ?"
        if what == "first":
            query = "SELECT first FROM roots WHERE run = ?"
        found = self._sql.execute(query, (run,)).fetchone()
        return None if found is None else found[0]

    def children_of_key(self, path: RunPath, step: str, key: Key) -> list[Row]:
        """Return the children of one key in all visits and acts of a step."""
        run = self._find(path)
        if run is None:
            return []
        found = self._sql.execute(
            "SELECT runs.id FROM places CROSS JOIN runs WHERE place = places.id "
            "AND step = ? AND parent = ? AND key = ? ORDER BY visit, runs.id",
            (step, run, self._dialect.index_of(key)),
        )
        return self._rows(path, [child for (child,) in found])

    def spawned(self, path: RunPath) -> list[RunSummary]:
        """Return the root runs that an action of a run has started."""
        spawner = self._dialect.index_of(path.id)
        return _browsing.spawned(self._sql, self._dialect, spawner, SPAWNED)


def _with_status(some: _Some, status: ChildStatus) -> tuple[str, tuple[object, ...]]:
    """Return an SQL condition for the children with a status, and its values."""
    if status == "running":
        return "parent = ? AND status IS NULL", (some.run,)
    return "parent = ? AND status = ?", (some.run, status)
