"""Batches of messages as bytes in a socket.

A frame is a head, the lengths of its segments, and the segments. The first segment is the pickled
batch. Bytes of ``LARGE`` and more are segments of their own, so they are copied neither into the
pickle nor out of it.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Sequence
from typing import Any, cast, final

from ._messages import Message

LARGE = 1 << 16
"""Copying less than this costs less than a segment."""
_CHUNK = 1 << 18
"""Bytes that are read at once: what a socket's buffer holds."""
_HEAD = struct.Struct("!QI")  # length of everything behind it, number of segments

Piece = bytes | memoryview


def encode(batch: Sequence[Message]) -> list[Piece]:
    """Return the pieces of a frame, to be sent one after the other."""
    if any(type(part) is bytes and len(part) >= LARGE for message in batch for part in message):
        batch = [tuple(map(_apart, message)) for message in batch]
    large: list[pickle.PickleBuffer] = []
    body = pickle.dumps(batch, 5, buffer_callback=large.append)
    if not large:
        return [b"".join((_HEAD.pack(8 + len(body), 1), struct.pack("!Q", len(body)), body))]
    segments: list[Piece] = [memoryview(body), *(buffer.raw() for buffer in large)]
    lengths = struct.pack(f"!{len(segments)}Q", *map(len, segments))
    total = len(lengths) + sum(map(len, segments))
    return [_HEAD.pack(total, len(segments)) + lengths, *segments]


def _apart(part: object) -> object:
    return pickle.PickleBuffer(part) if type(part) is bytes and len(part) >= LARGE else part


def _decode(frame: memoryview, segments: int) -> list[Message]:
    lengths = struct.unpack_from(f"!{segments}Q", frame)
    parts: list[memoryview] = []
    at = 8 * segments
    for length in lengths:
        parts.append(frame[at : at + length])
        at += length
    return pickle.loads(parts[0], buffers=parts[1:])  # noqa: S301 # from a process of ours


@final
class FrameReader:
    """Reads frames from a socket, as far as they have arrived."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # What was read and belongs to no frame yet: at most a head that is not complete, in between
        # two reads.
        self._chunk = bytearray(_CHUNK)
        self._held = 0
        # The frame that is being read; `_filled` bytes of it are there.
        self._frame: bytearray | None = None
        self._segments = 0
        self._filled = 0

    def read(self) -> list[list[Message]] | None:
        """Read once, and return the batches that are complete; None at the end of the stream.

        Raises:
            BlockingIOError: The socket doesn't block, and has nothing.
            OSError: The connection is broken.
        """
        if self._frame is not None:
            count = self._sock.recv_into(memoryview(self._frame)[self._filled :])
            self._filled += count
            batches = [self._whole()] if self._filled == len(self._frame) else []
        else:
            count = self._sock.recv_into(memoryview(self._chunk)[self._held :])
            self._held += count
            batches = self._parse()
        return batches if count else None

    def _parse(self) -> list[list[Message]]:
        batches: list[list[Message]] = []
        chunk, at = memoryview(self._chunk)[: self._held], 0
        while len(chunk) - at >= _HEAD.size:
            length, self._segments = _HEAD.unpack_from(chunk, at)
            at += _HEAD.size
            part = chunk[at : at + length]
            at += len(part)
            self._frame = bytearray(length)
            self._frame[: len(part)] = part
            self._filled = len(part)
            if len(part) < length:
                break
            batches.append(self._whole())
        rest = bytes(chunk[at:])
        self._chunk[: len(rest)] = rest
        self._held = len(rest)
        return batches

    def _whole(self) -> list[Message]:
        frame, self._frame = cast("Any", self._frame), None
        return _decode(memoryview(frame), self._segments)
