"""Picture files as pixels: upright, on white where they are transparent, 8 bits a channel."""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from modules.checks import printable as shown

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SIDE = 1024  # pixels, of what networks are given
MAX_PIXELS = 2**28  # of a picture that is decoded whole
MAX_JPEG_PIXELS = 2**29  # of one that is decoded at an eighth of its width and height
WIDEST = 16  # longer pictures are cut before they are resized, which would make them longer still
SHOWN = 3  # names in one message
RESIZED = "with image_size=64, or as the data set images-64, every image is resized and cropped"

#: What is decoded, whatever a file's name ends in. Pillow would start other programs for some of the rest.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
BITS = (8, 10, 12, 14, 16)  # of a value that is stored in 16
GREY = 128  # what a decoder fills in where a JPEG ends too early
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # of a JPEG's segment or end; the others belong to pixels
#: What stands for pixels of a JPEG, whatever they are, and the marks at which a decoder starts anew between them.
MORE_PIXELS = b"".join(bytes(range(1, 255)) + bytes([0xFF, 0xD0 + number]) for number in range(8)) * 2
#: Of PNG: how a file starts, channels by colour type, and first column and row and steps of interlaced passes.
PNG_START = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
BLOCK = 2**20  # bytes that are unpacked at once
PIXELS_A_ZERO = 16  # of WebP: plain pictures may end in zero bytes, but in fewer than one for so many pixels
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # of TIFF
MIXED = 8  # times the largest value of one picture, in another: of the same depth they would hardly be


class DataError(ValueError):
    """Data that is missing, damaged or of the wrong shape; the message is one line for the user."""


class Unusable(Exception):
    """What is wrong with one picture; read on after its path."""


class TooLarge(Unusable):
    """It would do where pictures are resized."""


class Deep(Exception):
    """A picture of 16 bits a channel, whose brightness cannot be told before all others like it are read.

    Args:
        peak: its largest value.
    """

    def __init__(self, peak: int) -> None:
        super().__init__(peak)
        self.peak = peak


def refuse(
    problems: Sequence[tuple[Path, object]], what: str = "images cannot be used", advice: str | None = None
) -> None:
    """Raise DataError when there are problems: how many, and the first of them.

    Args:
        problems: a path each, and what is wrong there.
        what: of several of them, after their number.
        advice: what to do, for the end.
    """
    if not problems:
        return
    first = "; ".join(f"{shown(path)} {why}" for path, why in problems[:SHOWN])
    count = f"{len(problems)} {what}: " if len(problems) > 1 else ""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise DataError(count + first + more + (f": {advice}" if advice else ""))


def read_pictures(paths: Sequence[Path], size: int | None) -> tuple[list[np.ndarray], str | None]:
    """Read picture files.

    Args:
        paths: the files.
        size: every picture is resized and cropped to so many pixels; None: as it is.

    Returns:
        Pixels of each, uint8 `[H, W]` or `[H, W, 3]`; and what there is to say of the brightness of pictures of 16 bits
        a channel: they are scaled by the bits that the largest value of all needs, as cameras store 12 bits in 16.

    Raises:
        DataError: some cannot be read; it names the first of them, and how many there are.
    """
    found: list[np.ndarray | None] = [None] * len(paths)
    problems, deep = [], {}
    with _of_any_size():
        for number, path in enumerate(paths):
            try:
                found[number] = _pixels(path, size, None)
            except Unusable as why:
                problems.append((path, why))
            except Deep as picture:
                deep[number] = picture.peak
        refuse(problems, advice=RESIZED if any(isinstance(why, TooLarge) for _, why in problems) else None)
        peak = max(deep.values(), default=0)
        bits = next(bits for bits in BITS if peak < 2**bits)
        for number in deep:
            found[number] = _pixels(paths[number], size, 2**bits - 1)
    least = min(deep.values(), default=0)  # of the largest values
    said = f"{len(deep)} pictures of 16 bits a channel have values up to {peak}: they are read as {bits} bits"
    if mixed := least * MIXED <= peak:
        said += f", one that has none above {least} too: are there pictures of different depths?"
    return found, said if deep and (bits < 16 or mixed) else None


@contextmanager
def _of_any_size() -> Iterator[None]:
    """Let Pillow open pictures of any size: those that are too large to decode are refused here, in plain words."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _pixels(path: Path, size: int | None, levels: int | None) -> np.ndarray:
    """Pixels of one file; `levels` is the value of white in pictures of 16 bits a channel.

    Raises:
        Unusable: it cannot be read.
        Deep: it has 16 bits a channel, and `levels` is None.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    try:
        content = path.read_bytes()  # not by its path: of a file Pillow maps pixels that lie as in memory, unturned
        with Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            _check(image, size)
            if size is not None:
                _draft(image, size)
                if image.width * image.height > MAX_PIXELS:
                    raise Unusable(f"is {image.width} x {image.height} pixels, too many to decode: make it smaller")
            _check_whole(content, image, size)
            upright = _in_8_bits(content, image, levels)
            return np.asarray(upright if size is None else _square(upright, size))
    except (Unusable, Deep):
        raise
    except UnidentifiedImageError as error:
        raise Unusable("cannot be read as an image: its content is none of a known kind") from error
    except Exception as error:  # decoders raise whatever the damage leads to
        why = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise Unusable(f"cannot be read as an image: {shown(why)}") from error


def _check(image: "Image", size: int | None) -> None:
    """Raise Unusable when a picture is too large, more than one, or of a kind that would be misread."""
    if size is None and max(image.size) > MAX_SIDE:
        raise TooLarge(f"is {image.width} x {image.height} pixels, more than {MAX_SIDE}")
    if image.width * image.height > MAX_JPEG_PIXELS:
        raise Unusable(f"is {image.width} x {image.height} pixels, too many to decode: make it smaller")
    # Cameras write JPEGs that hold a preview as a second picture (MPO): the first is the photograph.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise Unusable("is animated: one picture a file is needed")
    # Pillow keeps 8 bits of a coloured TIFF's 16, and shows one that counts from white to black as a negative.
    deep = image.format == "TIFF" and 8 < max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) <= 16
    if deep and not (image.mode.startswith("I;16") and image.tag_v2.get(PHOTOMETRIC) != WHITE_IS_ZERO):
        raise Unusable("is a TIFF of 16 bits a channel that would be misread: save it as a PNG")


def _draft(image: "Image", size: int) -> None:
    """Let a JPEG be decoded no larger than needed."""
    image.draft(None, (2 * size, 2 * size))


def _check_whole(content: bytes, image: "Image", size: int | None) -> None:
    """Raise Unusable when a part of a file is lost, and a decoder would make it up without a word.

    A progressive JPEG that ends between two of its scans is taken: it shows all of the picture, with less detail.
    """
    if image.format == "WEBP":
        size_said = 8 + int.from_bytes(content[4:8], "little")
        zeros = 0 if {"exif", "xmp"} & image.info.keys() else len(content) - len(content.rstrip(b"\0"))
        lost = len(content) < size_said or zeros * PIXELS_A_ZERO > image.width * image.height
    elif image.format in ("JPEG", "MPO"):
        end = _end_of_jpeg(content)
        lost = end is None or (_may_be_made_up(image) and _reads_on(content, end, image, size))
    else:  # Pillow refuses what is cut off
        lost = image.format == "PNG" and not _has_all_rows(content)
    if lost:
        raise Unusable("is damaged: its end is lost")


def _has_all_rows(content: bytes) -> bool:
    """Whether a PNG's chunks are whole up to its end, and its pixels as many as it says.

    Raises:
        zlib.error: the pixels cannot be unpacked.
        Unusable: a chunk is damaged.
    """
    at, packed = len(PNG_START), []
    while (kind := content[at + 4 : at + 8]) != b"IEND":
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if end + 4 > len(content):
            return False
        if zlib.crc32(content[at + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise Unusable(f"is damaged: the checksum of its part {shown(kind.decode('latin-1'))} is wrong")
        if kind == b"IDAT":
            packed.append(content[at + 8 : end])
        at = end + 4
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", content, len(PNG_START) + 8)
    missing = 0
    for x, y, step_x, step_y in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -((x - width) // step_x), -((y - height) // step_y)
        missing += rows * (1 + (columns * bits * CHANNELS[colour] + 7) // 8) if columns > 0 else 0
    unpack, rest = zlib.decompressobj(), b"".join(packed)
    while some := unpack.decompress(rest, BLOCK):  # to the end, where a checksum of the pixels is
        missing -= len(some)
        rest = unpack.unconsumed_tail
    return missing <= 0 and unpack.eof


def _end_of_jpeg(content: bytes) -> int | None:
    """Where the first picture of a JPEG is marked to end; None where it is not."""
    at = 2
    while found := MARKER.search(content, at):
        if found[0] == b"\xff\xd9":
            return found.start()
        at = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    return None


def _may_be_made_up(image: "Image") -> bool:
    """Whether the end of a JPEG is worth a second decoding: its last pixel is grey, or finer scans may be missing."""
    last = image.getpixel((image.width - 1, image.height - 1))
    return "progressive" in image.info or all(abs(v - GREY) <= 2 for v in (last if isinstance(last, tuple) else [last]))


def _reads_on(content: bytes, end: int, image: "Image", size: int | None) -> bool:
    """Whether a JPEG's decoder still waits for pixels where the file is marked to end: with more of them it shows more.

    Args:
        content: of the file.
        end: where its end is marked.
        image: what was decoded of it.
        size: what it was decoded for.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content[:end] + MORE_PIXELS + content[end:])) as longer:
        if size is not None:
            _draft(longer, size)
        return longer.tobytes() != image.tobytes()


def _in_8_bits(content: bytes, image: "Image", levels: int | None) -> "Image":
    """The picture upright, in mode L or RGB; what is transparent shows white."""
    from PIL import Image, ImageOps

    if image.mode.startswith("I;16") or (image.format == "PNG" and str(image.tile[0][3]).endswith(";16B")):
        values = _deep_values(content, image)
        if levels is None:
            raise Deep(int(values.max()))
        # Pillow would cut off what exceeds 255.
        return Image.fromarray((values / (levels / 255)).round().astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise Unusable("has 32 bits a channel: save it with 8 or 16")
    grey = re.fullmatch(r"L;([24])", str(image.tile[0][3])) if image.format == "PNG" and image.tile else None
    if grey and "transparency" in image.info:  # Pillow scales the pixels to 8 bits, and not the value that is clear
        image.info["transparency"] *= 255 // (2 ** int(grey[1]) - 1)
    upright = ImageOps.exif_transpose(image)
    mode = "L" if upright.mode in ("1", "L", "LA", "La") else "RGB"
    if upright.has_transparency_data:
        colours = upright.convert("RGBA")
        if colours.getextrema()[3][1] <= 1 and colours.getcolors(1) is None:  # 1 of 255: meant as 1 of 1
            raise Unusable("is transparent all over, with a picture below: save it without transparency")
        upright = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return upright.convert(mode)


def _deep_values(content: bytes, image: "Image") -> np.ndarray:
    """Values of a picture of 16 bits a channel, upright, `[H, W]` or `[H, W, 3]`."""
    from PIL import Image, ImageOps

    if image.format != "PNG":
        return np.asarray(ImageOps.exif_transpose(image))
    import torch
    from torchvision.io import decode_image  # Pillow keeps 8 bits of coloured pictures' 16

    values = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8)).numpy().transpose(1, 2, 0)
    alpha = values.shape[2] in (2, 4)
    if "transparency" in image.info or (alpha and (values[..., -1] < 2**16 - 1).any()):
        raise Unusable("has 16 bits a channel and is transparent: save it with 8, or without transparency")
    values = values[..., :-1] if alpha else values
    image.load()  # which way up may be told after the pixels
    numbers = Image.fromarray(np.arange(values[..., 0].size, dtype=np.int32).reshape(values.shape[:2]))
    numbers.info = image.info
    upright = values.reshape(-1, values.shape[2])[np.asarray(ImageOps.exif_transpose(numbers))]
    return upright[..., 0] if upright.shape[2] == 1 else upright


def _square(image: "Image", size: int) -> "Image":
    """The middle of an image whose shorter side is made `size` pixels long, as torchvision does it."""
    from torchvision.transforms.v2 import functional

    side = min(image.size)
    if max(image.size) > WIDEST * side:
        image = functional.center_crop(image, [min(length, WIDEST * side) for length in (image.height, image.width)])
    return functional.center_crop(functional.resize(image, [size], antialias=True), [size, size])
