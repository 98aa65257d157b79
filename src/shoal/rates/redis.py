"""A backend that keeps shared rates on a Redis or Valkey server. Needs the extra ``redis``.

Invariants:
- The server's clock is the only one. A request is one script, which nothing interrupts; all
  requests of a call take one round trip.
- The server deletes a key soon after its last turn: an idle key is as good as an unknown one.
- A call ends by itself: it waits for the server at most twice ``timeout``, once to connect and
  once for the answer. It is never repeated, because the first one may have been carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, cast, final

from anyio import CapacityLimiter, to_thread

from shoal._errors.arguments import is_positive
from shoal._errors.exceptions import DefinitionError, kind_of
from shoal._limits.shared_budgets import BudgetReply, BudgetRequest
from shoal._limits.shared_rates import AHEAD, RateReply, RateRequest

try:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ModuleNotFoundError as _missing:
    _msg = f"shoal.rates.redis needs {_missing.name}: pip install 'shoal[redis]'"
    raise ModuleNotFoundError(_msg, name=_missing.name) from None

__all__ = ["RedisRates"]

Request = TypeVar("Request")
Reply = TypeVar("Reply")

SCRIPT = """
-- shoal.rates.reckon(), step by step; the tests compare the two.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local ahead, slack = tonumber(ARGV[1]), tonumber(ARGV[2])
local interval, burst = tonumber(ARGV[3]), tonumber(ARGV[4])
local extra, returns = tonumber(ARGV[5]), tonumber(ARGV[6])
local kept = redis.call('HMGET', KEYS[1], 'tat', 'last')
local tat = kept[1] and tonumber(kept[1]) or -math.huge
local last = kept[2] and tonumber(kept[2]) or -math.huge
local at = 7
for _ = 1, returns do
  local turn, units = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  tat = tat - math.max(0, units * interval - math.max(0, last - turn))
  at = at + 2
end
if extra > 0 then tat, last = math.max(tat, now), math.max(last, now) end
tat = tat + extra * interval
local turns, again_in = {}, 0
for index = at, #ARGV do
  local cost = tonumber(ARGV[index])
  local turn = math.max(now, tat + (cost - burst) * interval)
  if turn > now + ahead then
    again_in = turn - now - ahead
    break
  end
  tat = math.max(tat, turn + slack) + cost * interval
  last = math.max(last, turn)
  turns[#turns + 1] = string.format('%.17g', turn)
end
local ends = math.max(tat, last)
if ends > now then
  local exact = '%.17g'
  redis.call('HSET', KEYS[1], 'tat', exact:format(tat), 'last', exact:format(last))
  redis.call('PEXPIRE', KEYS[1], math.ceil((ends - now) * 1000) + 100)
else
  redis.call('DEL', KEYS[1])
end
return {string.format('%.17g', now), string.format('%.17g', again_in), turns}
"""


SPENDING = """
-- shoal.rates.reckon_budget(), step by step; the tests compare the two.
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local amount, per = tonumber(ARGV[1]), tonumber(ARGV[2])
local returned, window = tonumber(ARGV[3]), ARGV[4]
local kept = redis.call('HMGET', KEYS[1], 'used', 'since')
local used = kept[1] and tonumber(kept[1]) or 0
local exact = '%.17g'
local since = kept[2] and tonumber(kept[2]) or now
if per > 0 and now >= since + per then used, since = 0, now end
if window ~= '' and tonumber(window) == since then used = math.max(0, used - returned) end
local granted = 0
for index = 5, #ARGV do
  local cost = tonumber(ARGV[index])
  if used + cost > amount + 1e-9 * math.max(1, amount) then break end
  used = used + cost
  granted = granted + 1
end
redis.call('HSET', KEYS[1], 'used', exact:format(used), 'since', exact:format(since))
if per > 0 then redis.call('PEXPIRE', KEYS[1], math.ceil((since + per - now) * 1000) + 100) end
return {exact:format(since), exact:format(used), granted}
"""


@final
class RedisRates:
    """Keeps shared rates on a Redis or Valkey server, for all processes that reach it.

    Each batch of starts costs one round trip, in a worker thread of its own. The server need not
    write to disk: after a restart it has forgotten the last turns, which lets one more burst
    through. Close this object when it is no longer needed.

    Args:
        server: The server's address, such as ``"redis://localhost:6379/0"``, or your own client, a
            ``redis.Redis`` that may be used in threads. Give the client a ``socket_timeout``, and
            ``retry=None``: it must not repeat commands.
        prefix: The beginning of the names of all keys on the server.
        timeout: Seconds for connecting, and for each answer. Ignored for your own client.

    Raises:
        DefinitionError: ``server`` is neither an address nor such a client.

    Examples:
        >>> from shoal import Limits, Rate, SharedRate
        >>> rates = RedisRates("redis://localhost")
        >>> openai = SharedRate(Rate(100, per=1.0, burst=10), "openai", rates)
        >>> limits = Limits(rate=openai)
        >>> rates.close()
    """

    def __init__(
        self, server: str | Redis, *, prefix: str = "shoal:rate:", timeout: float = 2.0
    ) -> None:
        """Prepare the client; the first request connects."""
        if not is_positive(timeout):
            msg = f"RedisRates(timeout=...) takes a number of seconds above 0, not {timeout!r}"
            raise DefinitionError(msg)
        self._owns = isinstance(server, str)
        if isinstance(server, str):
            # A repeated script would count its requests twice.
            never = Retry(NoBackoff(), 0)
            server = cast("Any", Redis).from_url(
                server, socket_timeout=timeout, socket_connect_timeout=timeout, retry=never
            )
        if not isinstance(server, Redis):
            msg = (
                f"RedisRates(server) takes an address, such as 'redis://localhost', or a "
                f"redis.Redis, not {kind_of(server)}; one of redis.asyncio works on asyncio only"
            )
            raise DefinitionError(msg)
        self._client: Any = server
        self._prefix = prefix

    async def settle(self, requests: Sequence[RateRequest]) -> Sequence[RateReply]:
        """Apply requests in order, in one round trip; see ``RateBackend``.

        A cancellation leaves the call behind in its thread, where it ends by itself.

        Raises:
            redis.RedisError: The server can't be reached, or doesn't answer.
        """
        return await self._call(self._settle, requests)

    def _settle(self, requests: Sequence[RateRequest]) -> list[RateReply]:
        pipeline = self._client.pipeline(transaction=False)
        for request in requests:
            # EVAL and not EVALSHA: a server that was restarted doesn't know the hash, and the
            # script is as short as an exchange about that would be.
            returns = [number for returned in request.returns for number in returned]
            pipeline.eval(
                SCRIPT,
                1,
                self._prefix + request.key,
                *(AHEAD, request.slack, request.interval, request.burst),
                *(request.extra, len(request.returns), *returns, *request.costs),
            )
        return [
            RateReply(
                now=float(now), turns=tuple(float(turn) for turn in turns), again_in=float(again_in)
            )
            for now, again_in, turns in pipeline.execute()
        ]

    async def spend(self, requests: Sequence[BudgetRequest]) -> Sequence[BudgetReply]:
        """Apply requests of budgets in order, in one round trip; see ``BudgetBackend``.

        A budget must survive a restart of the server, so that should write to disk: without
        ``per=`` its key never expires.

        Raises:
            redis.RedisError: The server can't be reached, or doesn't answer.
        """
        return await self._call(self._spend, requests)

    def _spend(self, requests: Sequence[BudgetRequest]) -> list[BudgetReply]:
        pipeline = self._client.pipeline(transaction=False)
        for request in requests:
            # Windows are compared as numbers: 17 digits give the same float again.
            since = "" if request.since is None else f"{request.since:.17g}"
            pipeline.eval(
                SPENDING,
                1,
                f"{self._prefix}budget:{request.key}",
                *(request.amount, request.per or 0, request.returned, since, *request.costs),
            )
        return [
            BudgetReply(since=float(since), used=float(used), granted=int(granted))
            for since, used, granted in pipeline.execute()
        ]

    async def _call(
        self, carry_out: Callable[[Sequence[Request]], list[Reply]], requests: Sequence[Request]
    ) -> list[Reply]:
        # A limiter of its own: anyio's default one could be used up by threads that wait for rates.
        return await to_thread.run_sync(
            carry_out, requests, abandon_on_cancel=True, limiter=CapacityLimiter(1)
        )

    def close(self) -> None:
        """Close the connections, but not those of your own client. It may be used again."""
        if self._owns:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        where = self._client.connection_pool.connection_kwargs
        if "path" in where:
            return f"RedisRates('unix://{where['path']}')"
        return f"RedisRates('redis://{where.get('host', '?')}:{where.get('port', '?')}')"
