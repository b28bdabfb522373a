#!/usr/bin/env python3
"""Several hundred pictures, whole and broken, each with the pixels that Pillow reads: for the test ImagePillow.

    pillow_pictures.py FOLDER [CASES]

Writes FOLDER/list.txt with a line for each picture: its file name, then `pixels WIDTH HEIGHT` (the bytes lie in
FOLDER/<name>.rgb) or `refused`. CASES is a folder of further pictures. Everything follows from a fixed seed. Needs
Pillow alone, in this version: python3 -m venv build/peers && build/peers/bin/pip install pillow==13.0.0
"""

import io
import random
import struct
import sys
import warnings
import zlib
from pathlib import Path

from PIL import Image, ImageFile

SIZES = [(1, 1), (2, 3), (7, 5), (8, 8), (9, 17), (16, 16), (31, 33), (64, 48), (150, 100)]
SIGNATURE = b"\x89PNG\r\n\x1a\n"
rng = random.Random(24)


def photo(mode, width, height):
    """Smooth colours, edges and a little noise, so that every part of a codec has work."""
    def value(x, y, k):
        wave = 127 + 120 * ((x * (k + 1) / max(width, 1) + y * (3 - k) / max(height, 1)) % 1 - 0.5)
        edge = 60 if (x // 5 + y // 7 + k) % 3 == 0 else 0
        return max(0, min(255, int(wave + edge + rng.randrange(-9, 10))))
    bands = []
    for k in range(len(Image.new(mode, (1, 1)).getbands())):
        bands.append(Image.frombytes("L", (width, height),
                                     bytes(value(x, y, k) for y in range(height) for x in range(width))))
    return Image.merge(mode, bands) if len(bands) > 1 else bands[0]


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


# JPEG: segments by their markers, entropy-coded data included in the SOS that it follows.

def segments(jpeg):
    parts, at = [], 2
    while at < len(jpeg):
        marker = jpeg[at + 1]
        if marker == 0xD9:
            parts.append(jpeg[at:at + 2])
            break
        end = at + 2 + struct.unpack(">H", jpeg[at + 2:at + 4])[0]
        if marker == 0xDA:
            while not (jpeg[end] == 0xFF and jpeg[end + 1] not in (0, *range(0xD0, 0xD8))):
                end += 1
        parts.append(jpeg[at:end])
        at = end
    return parts


def joined(parts, between=b""):
    return b"\xff\xd8" + between.join(parts)


def restarts(jpeg):
    return [i for i in range(len(jpeg) - 1) if jpeg[i] == 0xFF and 0xD0 <= jpeg[i + 1] <= 0xD7]


def jpegs():
    for width, height in SIZES:
        picture = photo("RGB", width, height)
        for subsampling in (0, 1, 2):
            for progressive in (False, True):
                options = dict(quality=rng.choice([10, 50, 75, 95, 100]), subsampling=subsampling,
                               progressive=progressive, optimize=rng.random() < 0.5)
                if rng.random() < 0.4:
                    options["restart_marker_blocks"] = rng.choice([1, 2, 5])
                yield f"colour{subsampling}{'p' if progressive else 'b'}", saved(picture, "JPEG", **options)
        yield "grey", saved(photo("L", width, height), "JPEG", quality=80)
        yield "grey_progressive", saved(photo("L", width, height), "JPEG", quality=60, progressive=True)
        yield "rgb_kept", saved(picture, "JPEG", quality=85, keep_rgb=True)
        cmyk = photo("CMYK", width, height)
        for progressive in (False, True):
            data = saved(cmyk, "JPEG", quality=90, progressive=progressive)
            yield "cmyk", data
            yield "cmyk_no_adobe", joined([p for p in segments(data) if p[1] != 0xEE])
            yield "ycck", joined([p[:-1] + b"\x02" if p[1] == 0xEE else p for p in segments(data)])


def broken_jpegs():
    for number, (width, height) in enumerate(SIZES[4:]):
        for progressive in (False, True):
            picture = photo("RGB", width, height)
            plain = saved(picture, "JPEG", quality=80, progressive=progressive, subsampling=number % 3)
            parts = segments(plain)
            yield "ff00_between", joined(parts, b"\xff\x00")
            yield "ff00_before_end", joined(parts[:-1]) + b"\xff\x00" + parts[-1]
            yield "fill_bytes", joined(parts, b"\xff\xff\xff")
            yield "stray_between", joined(parts, b"\x12\x00\x34")
            yield "behind_the_end", plain + bytes(rng.randrange(256) for _ in range(50))
            yield "no_end", plain[:-2]
            yield "zeros_for_end", plain[:-2] + bytes(64)
            yield "text_for_end", plain[:-2] + b"a trailer, where the end marker should be " * 3
            yield "thumbnail", joined([b"\xff\xe1\x00\x08\xff\xd8\xff\xd9\x00\x00"] + parts)
            for part in (0.2, 0.5, 0.8, 0.97):
                yield "cut", plain[:int(len(plain) * part)]
            if not progressive:  # versions of libjpeg-turbo smooth what is missing of a progressive one differently
                yield "cut_with_end", plain[:int(len(plain) * 0.7)] + b"\xff\xd9"
            yield "two_components", joined([p[:9] + b"\x02" + p[10:] if 0xC0 <= p[1] <= 0xC2 else p for p in parts])
            restarting = saved(picture, "JPEG", quality=80, progressive=progressive, restart_marker_blocks=2)
            places = restarts(restarting)
            for place in rng.sample(places, min(4, len(places))):
                stray = bytes(rng.randrange(1, 255) for _ in range(rng.randrange(1, 6)))
                yield "stray_before_restart", restarting[:place] + stray + restarting[place:]
                yield "ff00_before_restart", restarting[:place] + b"\xff\x00" + restarting[place:]
                yield "fill_before_restart", restarting[:place] + b"\xff" + restarting[place:]
            if places:
                data = restarting
                for place in reversed(places):
                    data = data[:place] + b"\x55\xaa" + data[place:]
                yield "stray_before_every_restart", data


# PNG: written here, as Pillow writes neither interlaced pictures nor every filter.

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def paeth(a, b, c):
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return a if pa <= pb and pa <= pc else b if pb <= pc else c


def filtered(rows, pixel_bytes):
    out, before = bytearray(), None
    for row in rows:
        kind = rng.randrange(5)
        up = before if before is not None else bytes(len(row))
        out.append(kind)
        for i, value in enumerate(row):
            left = row[i - pixel_bytes] if i >= pixel_bytes else 0
            corner = up[i - pixel_bytes] if i >= pixel_bytes else 0
            guess = (0, left, up[i], (left + up[i]) // 2, paeth(left, up[i], corner))[kind]
            out.append((value - guess) & 255)
        before = row
    return bytes(out)


def packed(samples, bits):
    """A row of samples, each of `bits`."""
    if bits == 16:
        return b"".join(struct.pack(">H", s) for s in samples)
    if bits == 8:
        return bytes(samples)
    row = bytearray((len(samples) * bits + 7) // 8)
    for i, sample in enumerate(samples):
        row[i * bits // 8] |= sample << (8 - bits - i * bits % 8)
    return bytes(row)


PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(width, height, colour, bits, interlaced, pixels=None, palette=None, extra=(), between=(), idat=None, raw=False):
    """`pixels[y][x]` is a list of samples. `extra` chunks lie before PLTE and IDAT, `between` behind PLTE."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    if pixels is None:
        most = (1 << bits) - 1 if palette is None else min((1 << bits) - 1, len(palette) // 3 - 1)
        pixels = [[[rng.randrange(most + 1) for _ in range(channels)] for _ in range(width)] for _ in range(height)]
    data = b""
    for left, top, step_x, step_y in PASSES if interlaced else [(0, 0, 1, 1)]:
        rows = [packed([s for p in row[left::step_x] for s in p], bits) for row in pixels[top::step_y]]
        if rows and rows[0]:
            data += filtered(rows, max(1, channels * bits // 8))
    packer = zlib.compressobj(6, zlib.DEFLATED, -15) if raw else zlib.compressobj(6)
    stream = packer.compress(data) + packer.flush()
    if idat is not None:
        stream = idat(stream, data)
    out = SIGNATURE + b"".join(extra)
    out += chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced)))
    if palette is not None:
        out += chunk(b"PLTE", palette)
    out += b"".join(between)
    step = max(1, len(stream) // rng.choice([1, 1, 3]))
    for at in range(0, len(stream), step):
        out += chunk(b"IDAT", stream[at:at + step])
    return out + chunk(b"IEND", b"")


def colours(count):
    return bytes(rng.randrange(256) for _ in range(3 * count))


KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (4, 16), (6, 8), (6, 16)]


def pngs():
    for width, height in SIZES[:-1]:
        for colour, bits in KINDS:
            for interlaced in (False, True):
                palette = colours(1 << bits) if colour == 3 else None
                yield f"c{colour}b{bits}{'i' if interlaced else ''}", png(width, height, colour, bits, interlaced,
                                                                         palette=palette)
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA"):
        yield f"pillow_{mode}", saved(photo("RGBA", 40, 30).convert(mode), "PNG")
    yield "transparent_grey", png(20, 20, 0, 8, False, between=[chunk(b"tRNS", b"\0\x10")])
    yield "transparent_colour", png(20, 20, 2, 8, True, between=[chunk(b"tRNS", b"\0\x10\0\x20\0\x30")])
    yield "transparent_palette", png(20, 20, 3, 8, False, palette=colours(256),
                                     between=[chunk(b"tRNS", bytes(range(256)))])
    yield "gamma", png(20, 20, 2, 8, False, extra=(), between=[chunk(b"gAMA", struct.pack(">I", 100000))])
    yield "significant_bits", png(20, 20, 2, 8, False, between=[chunk(b"sBIT", b"\5\6\5")])
    yield "background", png(20, 20, 6, 8, False, between=[chunk(b"bKGD", b"\0\x10\0\x20\0\x30")])


def broken_pngs():
    for bits in (1, 2, 4, 8):
        for interlaced in (False, True):
            for part in (0.2, 0.5, 0.9):
                count = max(1, int((1 << bits) * part))
                pixels = [[[rng.randrange(1 << bits)] for _ in range(33)] for _ in range(21)]
                yield f"short_palette{bits}", png(33, 21, 3, bits, interlaced, pixels=pixels, palette=colours(count))
    for colour in (2, 6):
        yield "cgbi", png(20, 20, colour, 8, False, extra=[chunk(b"CgBI", b"\x50\0\x20\x02")], raw=True)
    whole = png(40, 30, 2, 8, False, palette=None, between=[chunk(b"tEXt", b"Title\0a picture"),
                                                            chunk(b"tIME", b"\x07\xe8\1\1\1\1\1")])
    at = len(SIGNATURE)
    while at < len(whole):
        length = struct.unpack(">I", whole[at:at + 4])[0]
        kind = whole[at + 4:at + 8].decode()
        end = at + 12 + length
        if kind not in ("IDAT", "IEND"):  # Pillow checks neither's CRC; we refuse the first and never reach the second
            yield f"crc_{kind}", whole[:end - 1] + bytes([whole[end - 1] ^ 0x10]) + whole[end:]
            if length > 0:
                yield f"flip_{kind}", whole[:at + 8] + bytes([whole[at + 8] ^ 4]) + whole[at + 9:]
        at = end
    for part in (0.1, 0.3, 0.6, 0.9):
        yield "cut", whole[:int(len(whole) * part)]
    yield "no_end", whole[:-12]
    yield "cut_end", whole[:-6]
    yield "behind_the_end", whole + b"more"
    yield "wrong_adler", png(20, 20, 2, 8, False, idat=lambda stream, _: stream[:-1] + bytes([stream[-1] ^ 1]))
    for width, height in SIZES[:6]:
        for interlaced in (False, True):
            for lacking in (4, 1):
                yield f"no_adler{lacking}", png(width, height, 2, 8, interlaced, idat=lambda stream, _: stream[:-lacking])
    yield "half_the_rows", png(20, 20, 2, 8, False, idat=lambda _, data: zlib.compress(data[:len(data) // 2])[:-4])
    yield "last_row_missing", png(20, 20, 2, 8, False, idat=lambda _, data: zlib.compress(data[:-1])[:-4])
    yield "small_window", png(64, 48, 2, 8, False, idat=lambda stream, _: b"\x18\x19" + stream[2:])
    yield "bad_filter", png(20, 20, 2, 8, False, idat=lambda _, data: zlib.compress(b"\x09" + data[1:]))
    yield "bad_deflate", png(20, 20, 2, 8, False, idat=lambda stream, _: stream[:10] + b"\xff" * 8 + stream[18:])
    yield "more_data", png(20, 20, 2, 8, False, idat=lambda _, data: zlib.compress(data + bytes(5000)))


def os2(bmp):
    """A BMP with a palette behind the oldest header, of 12 bytes."""
    pixels_at, _, width, height, planes, bits = struct.unpack_from("<IIiiHH", bmp, 10)
    palette = b"".join(bmp[at:at + 3] for at in range(54, pixels_at, 4))
    return (b"BM" + struct.pack("<IHHI", 26 + len(palette) + len(bmp) - pixels_at, 0, 0, 26 + len(palette)) +
            struct.pack("<IHHHH", 12, width, height, planes, bits) + palette + bmp[pixels_at:])


def runs(rows, bits, tidy=True):
    """Rows of colours as RLE8 or RLE4. Not tidy: some rows are cut, too long, or reached by a jump."""
    def pixels(colours):
        return bytes(colours) if bits == 8 else packed(colours, 4)
    out = bytearray()
    for number, row in enumerate(rows):
        at = 0
        while at < len(row):
            count = min(len(row) - at, rng.randrange(1, 40))
            part = row[at:at + count]
            kind = rng.randrange(3)
            if not tidy and kind == 0 and rng.random() < 0.2:
                out += bytes([0, 2, min(count, 5), rng.randrange(2)])
                break
            if not tidy and rng.random() < 0.05:
                break
            if kind == 0 and count >= 3:
                out += bytes([0, count]) + pixels(part)
                out += bytes(len(pixels(part)) % 2)
            else:
                pair = (part + part)[:2] if bits == 4 else part[:1]
                length = next((i for i in range(count) if part[i] != pair[i % len(pair)]), count)
                count = length
                if not tidy and rng.random() < 0.1:
                    length = min(255, length + 9)
                out += bytes([length]) + pixels(pair)
            at += count
        if number + 1 < len(rows) or rng.random() < 0.5:
            out += b"\0\0"
    return bytes(out) + b"\0\1"


def dib(width, height, bits, compression, data, palette=b"", header=40, masks=(), colours=0, pixels_at=None):
    """A BMP of any header: `masks` lie in it, or behind one of 40 bytes."""
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(data), 0, 0, colours, 0)
    info += b"".join(struct.pack("<I", mask) for mask in masks)
    info = info.ljust(header, b"\0")
    if pixels_at is None:
        pixels_at = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(palette) + len(data), 0, 0, pixels_at) + info + palette + data


BIT_FIELDS = [(32, m) for m in (
    (0xFF0000, 0xFF00, 0xFF, 0), (0xFF000000, 0xFF0000, 0xFF00, 0), (0xFF000000, 0xFF00, 0xFF, 0),
    (0xFF000000, 0xFF0000, 0xFF00, 0xFF), (0xFF, 0xFF00, 0xFF0000, 0xFF000000), (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    (0xFF000000, 0xFF00, 0xFF, 0xFF0000), (0, 0, 0, 0), (0xFF, 0xFF00, 0xFF0000, 0), (0x3FF00000, 0xFFC00, 0x3FF, 0),
    (0xFF0000, 0xFF00, 0, 0), (0xFF0000, 0xFF0000, 0xFF0000, 0))]
BIT_FIELDS += [(24, (0xFF0000, 0xFF00, 0xFF, 0)), (24, (0xFF, 0xFF00, 0xFF0000, 0))]
BIT_FIELDS += [(16, m) for m in ((0xF800, 0x7E0, 0x1F, 0), (0x7C00, 0x3E0, 0x1F, 0), (0x7C00, 0x3E0, 0x1F, 0x8000),
                                 (0xF00, 0xF0, 0xF, 0xF000), (0x1F, 0x7E0, 0xF800, 0))]


def unusual_bmps():
    for width, height in SIZES:
        for bits in (4, 8):
            rows = [[rng.randrange(1 << bits)] * width if rng.random() < 0.3 else
                    [rng.randrange(1 << bits) if rng.random() < 0.4 else 3 for _ in range(width)] for _ in range(height)]
            palette = bytes(rng.randrange(256) for _ in range(4 << bits))
            compression = {8: 1, 4: 2}[bits]
            for header in (40, 56, 108, 124):
                yield f"bmp_rle{bits}", dib(width, height, bits, compression, runs(rows, bits), palette, header)
            data = runs(rows, bits)
            yield f"bmp_rle{bits}_top_down", dib(width, -height, bits, compression, data, palette)
            yield f"bmp_rle{bits}_short_palette", dib(width, height, bits, compression, data, palette[:40], colours=10)
            for part in (0.2, 0.7):
                yield f"bmp_rle{bits}_cut", dib(width, height, bits, compression, data[:int(len(data) * part)], palette)
            yield f"bmp_rle{bits}_no_end", dib(width, height, bits, compression, data[:-2], palette)
            for _ in range(3):
                yield f"bmp_rle{bits}_untidy", dib(width, height, bits, compression, runs(rows, bits, False), palette)
                yield f"bmp_rle{bits}_noise", dib(width, height, bits, compression,
                                                  bytes(rng.choice([0, 1, 2, 5, 20, 255]) for _ in range(400)), palette)
        for bits, masks in BIT_FIELDS:
            row = (width * bits + 31) // 32 * 4
            data = bytes(rng.randrange(256) for _ in range(row * height))
            yield f"bmp_fields{bits}", dib(width, height, bits, 3, data, masks=masks[:3])
            for header in (52, 56, 64, 108, 124):
                yield f"bmp_fields{bits}_{header}", dib(width, height, bits, 3, data, header=header, masks=masks)
        data = bytes(rng.randrange(256) for _ in range((width * 3 + 3) // 4 * 4 * height))
        for header in (52, 56, 64, 108, 124):
            yield f"bmp_header{header}", dib(width, height, 24, 0, data, header=header)
        yield "bmp_no_place", dib(width, height, 24, 0, data, pixels_at=0)
        rows = bytes(rng.randrange(256) for _ in range((width + 3) // 4 * 4 * height))
        palette = bytes(rng.randrange(256) for _ in range(1024))
        yield "bmp_no_place_palette", dib(width, height, 8, 0, rows, palette, pixels_at=0)
        yield "bmp_place_of_palette", dib(width, height, 8, 0, rows, palette, pixels_at=54)


def bmps():
    for width, height in SIZES:
        picture = photo("RGBA", width, height)
        for mode in ("1", "L", "P", "RGB", "RGBA"):
            data = saved(picture.convert(mode), "BMP")
            yield f"bmp_{mode}", data
            if mode in ("1", "L", "P"):
                yield f"bmp_os2_{mode}", os2(data)
            if mode == "RGB":
                size = struct.pack("<i", -height)
                yield "bmp_top_down", data[:22] + size + data[26:]
            for part in (0.3, 0.9):
                if width > 8:
                    yield "bmp_cut", data[:int(len(data) * part)]
        picture = photo("RGB", width, height).quantize(16)
        yield "bmp_short_palette", saved(picture, "BMP")
        rows = b"".join((b"".join(struct.pack("<H", rng.randrange(1 << 15)) for _ in range(width)) + b"\0\0")[:
                        (width * 2 + 3) // 4 * 4] for _ in range(height))
        yield "bmp_16", (b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) +
                         struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 0, len(rows), 0, 0, 0, 0) + rows)


def cases(folder):
    for path in sorted(folder.glob("*.*")) if folder.is_dir() else []:
        if path.suffix in (".jpg", ".png"):
            yield f"case_{path.stem}", path.read_bytes()


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    lines = []
    sources = [jpegs(), broken_jpegs(), pngs(), broken_pngs(), bmps(), unusual_bmps()]
    if len(sys.argv) == 3:
        sources.append(cases(Path(sys.argv[2])))
    for source in sources:
        for name, data in source:
            name = f"{len(lines):04}-{name}"
            (folder / name).write_bytes(data)
            try:
                with Image.open(io.BytesIO(data)) as image:
                    rgb = image.convert("RGB")
            except (OSError, SyntaxError, ValueError):
                lines.append(f"{name} refused")
                continue
            (folder / f"{name}.rgb").write_bytes(rgb.tobytes())
            lines.append(f"{name} pixels {rgb.width} {rgb.height}")
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} pictures, {sum(line.endswith('refused') for line in lines)} of them refused by Pillow")


if __name__ == "__main__":
    main()
