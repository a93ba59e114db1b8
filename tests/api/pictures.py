"""What a scanner reads in a picture: a slow reference, written from ISO/IEC 18004 (version 1, digits) and 15417."""

import re
import struct
import zlib
from collections.abc import Iterator

from barcode.charsets import code128

QUIET, SIDE = 4, 21  # modules
Modules = list[list[bool]]

_FLIPPED = (
    lambda r, c: (r + c) % 2 == 0,
    lambda r, c: r % 2 == 0,
    lambda r, c: c % 3 == 0,
    lambda r, c: (r + c) % 3 == 0,
    lambda r, c: (r // 2 + c // 3) % 2 == 0,
    lambda r, c: r * c % 2 + r * c % 3 == 0,
    lambda r, c: (r * c % 2 + r * c % 3) % 2 == 0,
    lambda r, c: ((r + c) % 2 + r * c % 3) % 2 == 0,
)


def in_qr_svg(picture: bytes) -> str:
    """The digits of a QR code that is drawn as strokes, one module high."""
    [path] = re.findall(r'class="qrline"[^>]* d="([^"]*)"', picture.decode())
    modules = [[False] * SIDE for _ in range(SIDE)]
    x = y = 0.0
    for move, first, second in re.findall(r"([Mmh])(-?[\d.]+)(?: (-?[\d.]+))?", path):
        if move == "M":
            x, y = float(first), float(second)
        elif move == "m":
            x, y = x + float(first), y + float(second)
        else:
            for column in range(int(first)):
                modules[int(y) - QUIET][int(x) + column - QUIET] = True
            x += float(first)
    return _digits(modules)


def in_qr_png(picture: bytes) -> str:
    """The digits of a QR code whose picture has one bit a pixel, and rows as they are or as what changed from above."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth = struct.unpack(">IIB", picture[16:25])
    assert depth == 1
    packed, at = b"", 8
    while at < len(picture):
        [length] = struct.unpack(">I", picture[at : at + 4])
        if picture[at + 4 : at + 8] == b"IDAT":
            packed += picture[at + 8 : at + 8 + length]
        at += 12 + length
    line = 1 + (width + 7) // 8
    unpacked, rows = zlib.decompress(packed), [bytes(line)]
    for at in range(0, line * height, line):
        row, above = unpacked[at : at + line], rows[-1]
        assert row[0] in {0, 2}
        rows.append(row if row[0] == 0 else bytes((a + b) & 255 for a, b in zip(row, above, strict=True)))
    scale = width // (SIDE + 2 * QUIET)
    pixels = [[bool(row[1 + x // 8] >> (7 - x % 8) & 1) for x in range(width)] for row in rows[1:]]
    white = pixels[0][0]
    places = [(QUIET + module) * scale + scale // 2 for module in range(SIDE)]
    return _digits([[pixels[y][x] != white for x in places] for y in places])


def _digits(modules: Modules) -> str:
    around = [(8, c) for c in (0, 1, 2, 3, 4, 5, 7, 8)] + [(r, 8) for r in (7, 5, 4, 3, 2, 1, 0)]
    told = sum(modules[r][c] << 14 - place for place, (r, c) in enumerate(around)) ^ 0b101010000010010
    flipped = _FLIPPED[told >> 10 & 7]
    bits = "".join(str(int(modules[r][c] ^ flipped(r, c))) for r, c in _way())
    assert bits[:4] == "0001", "digits"
    count = int(bits[4:14], 2)
    assert count % 3 == 0
    return "".join(f"{int(bits[at : at + 10], 2):03}" for at in range(14, 14 + count // 3 * 10, 10))


def _way() -> Iterator[tuple[int, int]]:
    """Up and down, two columns at a time from the right, around what is the same in every code."""
    upward = True
    for right in (20, 18, 16, 14, 12, 10, 8, 5, 3, 1):
        for row in range(SIDE - 1, -1, -1) if upward else range(SIDE):
            for column in (right, right - 1):
                corner = (row < 9 and (column < 9 or column > 12)) or (row > 12 and column < 9)
                if not corner and 6 not in (row, column):
                    yield row, column
        upward = not upward


def in_barcode_svg(picture: bytes) -> str:
    """The digits of a Code 128, set C, by the widths of its bars and of what is between them."""
    bars = [
        (float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)mm" [^>]*?width="([\d.]+)mm"', picture.decode())
    ]
    module = min(width for _, width in bars)
    assert bars[0][0] >= 10 * module, "the free space before it"
    begin = bars[0][0]
    line = [False] * round((sum(bars[-1]) - begin) / module)
    for x, width in bars:
        for at in range(round((x - begin) / module), round((x + width - begin) / module)):
            line[at] = True
    bits = "".join(str(int(dark)) for dark in line)
    *read, stop = [bits[at : at + 11] for at in range(0, len(bits) - 2, 11)]
    start, *pairs, check = [code128.CODES.index(one) for one in read]
    assert (start, stop, bits[-2:]) == (105, code128.STOP, "11")
    assert check == (start + sum(place * pair for place, pair in enumerate(pairs, 1))) % 103
    return "".join(f"{pair:02}" for pair in pairs)
