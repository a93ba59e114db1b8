"""Bytes to lines: every line once, in order, with its number, however the bytes are cut and packed."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon_points.api import lines as of_lines
from carbon_points.api.intake import LINE_MOST
from carbon_points.api.lines import Lines, encoding_of, unpacked
from carbon_points.api.problems import ApiError

KIB = 1024


def read(chunks: Sequence[bytes]) -> list[tuple[int, bytes]]:
    lines = Lines()
    found = [line for chunk in chunks for line in lines.feed(chunk)]
    return found + list(lines.end())


def cut(whole: bytes, at: Sequence[int]) -> list[bytes]:
    """The same bytes in pieces."""
    places = sorted({0, len(whole), *(place % (len(whole) + 1) for place in at)})
    return [whole[first:last] for first, last in pairwise(places)]


def opened(chunks: Sequence[bytes], encoding: str = "gzip") -> bytes:
    async def sent() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def whole() -> bytes:
        return b"".join([piece async for piece in unpacked(sent(), encoding)])

    return asyncio.run(whole())


class TestLines:
    @given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=20))
    def test_where_the_bytes_are_cut_makes_no_difference(self, whole: bytes, at: list[int]) -> None:
        expected = [(n, line) for n, line in enumerate(whole.split(b"\n"), 1) if line.strip()]
        assert read(cut(whole, at)) == expected

    def test_blank_lines_are_counted_and_left_out(self) -> None:
        assert read([b"\n\na\n \t\r\nb\n\n"]) == [(3, b"a"), (5, b"b")]

    def test_a_last_line_needs_no_end(self) -> None:
        assert read([b"a\nb"]) == [(1, b"a"), (2, b"b")]

    @pytest.mark.parametrize("chunk", [1_000, 64 * KIB, 10_000_000])
    @pytest.mark.parametrize("length", [LINE_MOST, LINE_MOST + 1, 5 * LINE_MOST])
    def test_a_line_above_the_limit_comes_cut_and_those_beside_it_whole(self, length: int, chunk: int) -> None:
        whole = b"a\n" + b"x" * length + b"\nb\n"
        found = read(cut(whole, range(0, len(whole), chunk)))
        assert [number for number, _ in found] == [1, 2, 3]
        assert (found[0][1], found[2][1]) == (b"a", b"b")
        assert len(found[1][1]) == min(length, LINE_MOST + 1)

    def test_a_last_line_above_the_limit_comes_once(self) -> None:
        found = read(cut(b"a\n" + b"x" * 10 * LINE_MOST, range(0, 700_000, 1_000)))
        assert [(number, len(line)) for number, line in found] == [(1, 1), (2, LINE_MOST + 1)]

    def test_no_more_than_a_line_is_kept(self) -> None:
        lines = Lines()
        for _ in range(1_000):
            assert sum(len(line) for _, line in lines.feed(b"x" * 64 * KIB)) <= LINE_MOST + 1
            assert len(lines._rest) <= LINE_MOST


class TestUnpacking:
    @given(st.binary(max_size=2_000), st.lists(st.integers(0, 3_000), max_size=20))
    def test_where_a_packed_body_is_cut_makes_no_difference(self, whole: bytes, at: list[int]) -> None:
        assert opened(cut(gzip.compress(whole), at)) == whole

    def test_several_packed_bodies_one_after_another_are_one(self) -> None:
        packed = gzip.compress(b"a\n") + gzip.compress(b"b\n") + gzip.compress(b"") + gzip.compress(b"c")
        for step in (1, 7, 1_000):
            assert opened(cut(packed, range(0, len(packed), step))) == b"a\nb\nc"

    def test_a_plain_body_is_left_alone(self) -> None:
        assert opened([b"a", b"", b"\x1f\x8b"], "identity") == b"a\x1f\x8b"

    @pytest.mark.parametrize("header", ["gzip", "GZIP", " gzip ", "", "identity"])
    def test_an_encoding_is_known_however_it_is_written(self, header: str) -> None:
        assert encoding_of(header) in {"gzip", "identity"}

    @pytest.mark.parametrize("header", ["br", "deflate", "zstd", "gzip, gzip", "x" * 1_000])
    def test_another_encoding_is_refused(self, header: str) -> None:
        with pytest.raises(ApiError) as refused:
            encoding_of(header)
        assert refused.value.code == "media-type-unsupported"
        assert len(refused.value.detail) < 100

    def test_what_ends_early_is_refused(self) -> None:
        packed = gzip.compress(b"some lines\n" * 100)
        for length in (0, 1, 9, 10, len(packed) // 2, len(packed) - 1):
            self.refused([packed[:length]], "gzip-invalid")

    def test_what_is_spoiled_is_refused(self) -> None:
        packed = gzip.compress(bytes(range(256)) * 100)
        spoiled = packed[:20] + bytes([packed[20] ^ 0xFF]) + packed[21:]
        for whole in (spoiled, packed[:-4] + b"\0\0\0\0", b"no gzip", zlib.compress(b"other"), packed + b"garbage"):
            self.refused([whole], "gzip-invalid")

    def test_a_body_that_packs_like_no_report_is_refused_before_it_is_large(self) -> None:
        bomb = gzip.compress(b"\0" * 64 * KIB * KIB, 9)
        self.refused([bomb], "too-large")
        lines = b"".join(b'{"record_id": "%d", "behaviour": "bus"}\n' % n for n in range(100_000))
        assert opened([gzip.compress(lines, 9)]) == lines

    def test_a_body_is_refused_above_the_limit_however_badly_it_packs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(of_lines, "UNPACKED_MOST", 100_000)
        noise = b"".join(b"%d" % (n * n * 7_919 % 1_000_003) for n in range(20_000))
        self.refused(cut(gzip.compress(noise), range(0, 10**6, 1_000)), "too-large")

    def refused(self, chunks: list[bytes], code: str) -> None:
        with pytest.raises(ApiError) as refused:
            opened(chunks)
        assert refused.value.code == code
