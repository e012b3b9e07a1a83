"""Images: broken, cut, none at all, and bombs. All are made here, by Pillow or byte by byte."""

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.bad_inputs.case import Case, Cases, Place


def encoded(form: str, mode: str = "RGB", size: tuple[int, int] = (64, 64), **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *chunks: bytes) -> bytes:
    """A grey PNG that says whatever it likes of its size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def image(what: str, name: str, make: Callable[[], bytes], says: str = "cannot be decoded", through_command: bool = False) -> Case:
    def load(place: Place):
        from tood.data.decoding import decode

        return decode(place.folder / name)

    command = f"predict {{sound}}/detector {{folder}}/{name} --output {{out}}" if through_command else ""
    return Case(what, lambda place: (place.folder / name).write_bytes(make()), load, f"{{folder}}/{name}", says, command)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def damaged(data: bytes, at: int, count: int = 40) -> bytes:
    return data[:at] + bytes((byte ^ 0xA5) for byte in data[at : at + count]) + data[at + count :]


LISTING = b"%!PS\n(w) (w) file closefile quit\n"  # PostScript: another program would run it
CASES: Cases = {
    "image-file-empty": image("an empty file", "x.png", lambda: b"", "not an image"),
    "image-file-text": image("a text by an image's name", "x.jpg", lambda: b"not much of a photograph", "not an image", True),
    "image-file-html": image("a web page by an image's name", "x.png", lambda: b"<html><body>404</body></html>", "not an image"),
    "image-file-svg": image("a drawing, which is a program for others", "x.png", lambda: b"<svg xmlns='x'><script/></svg>", "not an image"),
    "image-file-postscript": image("PostScript by an image's name", "x.png", lambda: LISTING, "not an image"),
    "image-file-pickle": image("a pickle by an image's name", "x.png", lambda: b"\x80\x04cos\nsystem\n.", "not an image"),
    "image-file-zip": image("a ZIP by an image's name", "x.jpg", lambda: b"PK\x03\x04" + b"\0" * 60, "not an image"),
    "image-header-alone-jpeg": image("a JPEG that ends after its mark", "x.jpg", lambda: b"\xff\xd8\xff\xe0", "not an image"),
    "image-cut-jpeg": image("a JPEG cut in the middle", "x.jpg", lambda: cut(encoded("JPEG"), 0.5), through_command=True),
    "image-cut-png": image("a PNG cut in the middle", "x.png", lambda: cut(encoded("PNG"), 0.5)),
    "image-cut-webp": image("a WEBP cut in the middle", "x.webp", lambda: cut(encoded("WEBP"), 0.5), ""),
    "image-cut-tiff": image("a TIFF cut in the middle", "x.tif", lambda: cut(encoded("TIFF"), 0.5), ""),
    "image-cut-bmp": image("a BMP cut in the middle", "x.bmp", lambda: cut(encoded("BMP"), 0.5)),
    "image-cut-ppm": image("a PPM cut in the middle", "x.ppm", lambda: cut(encoded("PPM"), 0.5)),
    "image-cut-gif": image("a GIF cut in the middle", "x.gif", lambda: cut(encoded("GIF", "L"), 0.5)),
    "image-damaged-png": image("a PNG with damaged data", "x.png", lambda: damaged(encoded("PNG"), 60)),
    "image-damaged-header-png": image("a PNG with a damaged header", "x.png", lambda: damaged(encoded("PNG"), 16, 4), ""),
    "image-bomb-declared": image("a PNG that says it is 60,000 pixels square", "x.png", lambda: png(60_000, 60_000, b""), "more than 178 million pixels", True),
    "image-bomb-ppm": image("a PPM that says it is 100,000 pixels square", "x.ppm", lambda: b"P6 100000 100000 255\n\0\0\0", "more than 178 million pixels"),
    "image-bomb-bmp": image("a BMP that says it is a million pixels wide", "x.bmp", lambda: _bmp(1_000_000, 1_000_000), "more than 178 million pixels"),
    "image-bomb-data": image(
        "a PNG of 400 million pixels, it says, whose data unfold to 60 million bytes",
        "x.png",
        lambda: png(20_000, 20_000, _packed_zeros(60)),
        "more than 178 million pixels",
    ),
    "image-bomb-text": image(
        "a PNG whose text unfolds to 70 million bytes",
        "x.png",
        lambda: png(8, 8, zlib.compress(b"\0" * 72), chunk(b"zTXt", b"Comment\0\0" + _packed_zeros(70))),
        "",
    ),
    "image-bomb-profile": image("a PNG that ends after its header", "x.png", lambda: png(64, 64, b"")[:33], ""),
    "image-no-width": image("a PNG without width", "x.png", lambda: png(0, 8, zlib.compress(b"\0" * 8)), ""),
    "image-is-a-directory": Case(
        "a folder by an image's name",
        lambda place: (place.folder / "x.png").mkdir(),
        lambda place: image("", "x.png", bytes).load(place),
        "{folder}/x.png",
        "cannot be decoded",
    ),
    "image-file-missing": Case(
        "no file", lambda place: None, lambda place: image("", "x.png", bytes).load(place), "{folder}/x.png", "no such file"
    ),
    "image-of-another-size": Case(
        "an image that is not as large as its annotations say",
        lambda place: Image.new("RGB", (32, 32)).save(place.folder / "1.png"),
        lambda place: _check_size(place),
        "{folder}/1.png",
        "is 32 pixels wide and 32 high, its annotations say 64 x 64",
    ),
}  # fmt: skip


def _check_size(place: Place):
    import numpy as np

    from tood.data.record import ImageRecord
    from tood.data.transforms import decode_record

    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0))
    return decode_record(ImageRecord(1, place.folder / "1.png", 64, 64, *nothing))


def _bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def _packed_zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(1)
    return b"".join([packer.compress(b"\0" * 2**20) for _ in range(megabytes)]) + packer.flush()
