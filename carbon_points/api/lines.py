"""Bytes to lines, in bounded memory: long lines are cut and marked, gzip is opened a little at a time."""

import zlib
from collections.abc import AsyncIterator, Iterator

from carbon_points.api.intake import LINE_MOST
from carbon_points.api.problems import ApiError

UNPACKED_MOST = 2 * 1024**3  # bytes that one body may unpack to
RATIO_MOST, RATIO_FROM = 100, 1024**2  # times its size, once it is more than so many bytes: reports pack 10 to 50 times
_GZIP = 31  # zlib's word for a gzip header and the largest window
_PIECE = 256 * 1024


class Lines:
    """Cuts chunks into numbered lines. One over `LINE_MOST` comes as its first bytes only: too long, and seen so."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        self.number = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        """The whole lines that a chunk completes; blank ones are counted and left out."""
        *whole, rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            self.number += 1
            if self._skipping:  # the end of a line that was already given as too long
                self._skipping = False
            elif line.strip():
                yield self.number, line[: LINE_MOST + 1]
        if self._skipping:
            rest = b""
        elif len(rest) > LINE_MOST:
            yield self.number + 1, rest[: LINE_MOST + 1]
            self._skipping, rest = True, b""
        self._rest = rest

    def end(self) -> Iterator[tuple[int, bytes]]:
        """The last line, where no newline ended it."""
        if self._rest.strip():
            self.number += 1
            yield self.number, self._rest
        self._rest = b""


def encoding_of(header: str) -> str:
    """A Content-Encoding that `unpacked` knows. Raises ApiError."""
    encoding = header.strip().lower() or "identity"
    if encoding not in ("identity", "gzip"):
        raise ApiError("media-type-unsupported", f"Content-Encoding {header[:40]}")
    return encoding


async def unpacked(chunks: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """The body behind its Content-Encoding, a little at a time. Raises ApiError: gzip-invalid, too-large."""
    if encoding == "identity":
        async for chunk in chunks:
            yield chunk
        return
    opener, packed, size = zlib.decompressobj(_GZIP), 0, 0
    async for chunk in chunks:
        packed, rest = packed + len(chunk), chunk
        while rest:
            if opener.eof:  # a gzip stream may be several, one after another
                opener = zlib.decompressobj(_GZIP)
            try:
                piece = opener.decompress(rest, _PIECE)
            except zlib.error as error:
                raise ApiError("gzip-invalid", str(error)) from None
            rest = opener.unused_data if opener.eof else opener.unconsumed_tail
            size += len(piece)
            if size > min(UNPACKED_MOST, max(packed * RATIO_MOST, RATIO_FROM)):
                raise ApiError("too-large", f"{packed} bytes of the body unpack to more than {size}")
            yield piece
    if not opener.eof:
        raise ApiError("gzip-invalid", "the stream ends before its end")
