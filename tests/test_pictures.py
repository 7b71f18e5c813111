"""Picture files as pixels: transparency, bits, sizes, and files that are none."""

import io
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import every

from modules.data import pictures
from modules.data.pictures import DataError, read_pictures


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_png(path, width, height, bits, colour, rows, before=b"", after=b"", interlaced=0):
    """A PNG made by hand, for what Pillow does not write.

    Args:
        path, width, height: where and how large.
        bits, colour: of a channel; PNG's number for grey (0), grey with alpha (4), RGB (2) or RGB with alpha (6).
        rows: the bytes of each row.
        before, after: more chunks, before and after the pixels.
        interlaced: whether the rows are those of seven passes.
    """
    pack = zlib.compressobj()
    pixels = b"".join(pack.compress(b"\0" + row) for row in rows) + pack.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b""))
    return path


def any_png(values, path, bits=16, **chunks):
    """A PNG of 8 or 16 bits a channel; Pillow writes grey ones of 16 alone."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    rows = (row.astype(f">u{bits // 8}").tobytes() for row in values)
    return write_png(path, values.shape[1], values.shape[0], bits, colour, rows, **chunks)


def huge_png(path, width, height):
    """A small file that says it is a large picture of one colour."""
    return write_png(path, width, height, 8, 0, (bytes(width) for _ in range(height)))


def encoded(pixels, kind, **options):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


def read(path, size=None):
    return read_pictures([path], size)[0][0]


def drawing(mode):
    """A black stroke on nothing: all colours are black, the shape is in the alpha channel."""
    alpha = np.zeros((16, 16), dtype=np.uint8)
    alpha[4:8] = 255
    image = Image.merge("LA", (Image.new("L", (16, 16)), Image.fromarray(alpha)))
    if mode == "P":  # with a transparent entry of its palette
        image = Image.fromarray(np.where(alpha, 0, 1).astype(np.uint8), "P")
        image.putpalette([0, 0, 0] * 256)
        image.info["transparency"] = 1
        return image, alpha
    if mode in ("L", "RGB"):  # with one colour that is transparent
        image = Image.fromarray(np.where(alpha, 0, 9).astype(np.uint8)).convert(mode)
        image.info["transparency"] = 9 if mode == "L" else (9, 9, 9)
        return image, alpha
    return image.convert(mode), alpha


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@every("size", [None, 16])
@every(
    ("mode", "suffix"),
    [("LA", "png"), ("RGBA", "png"), ("P", "png"), ("L", "png"), ("RGB", "png"), ("RGBA", "webp")],
)
def test_what_is_transparent_is_white(tmp_path, mode, suffix, size):
    image, alpha = drawing(mode)
    path = tmp_path / f"drawing.{suffix}"
    options = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    image.save(path, lossless=True, exact=True) if suffix == "webp" else image.save(path, **options)
    pixels = read(path, size)
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    np.testing.assert_array_equal(grey, 255 - alpha)
    assert pixels.ndim == (2 if mode in ("LA", "L") else 3)


def test_half_transparent_is_half_way_to_white_and_opaque_is_as_it_was(tmp_path):
    random = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    random[..., 3] = 255
    Image.fromarray(random).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(read(tmp_path / "opaque.png"), random[..., :3])
    Image.new("RGBA", (16, 16), (0, 0, 0, 128)).save(tmp_path / "half.png")
    assert set(np.unique(read(tmp_path / "half.png"))) == {127}


@every(("bits", "clear"), [(bits, clear) for bits in (1, 2, 4) for clear in range(2**bits)])
def test_a_clear_value_of_a_grey_png_of_few_bits_is_white(tmp_path, bits, clear):
    values = np.arange(16) % 2**bits
    row = np.packbits([int(bit) for value in values for bit in f"{value:0{bits}b}"]).tobytes()
    path = write_png(tmp_path / "a.png", 16, 16, bits, 0, [row] * 16, before=chunk(b"tRNS", struct.pack(">H", clear)))
    expected = np.where(values == clear, 255, values * (255 // (2**bits - 1)))
    np.testing.assert_array_equal(read(path)[0], expected)


def sideways(how, orientation):
    """The chunk in which a PNG says which way up it is."""
    if how == "exif":
        exif = Image.Exif()
        exif[0x0112] = orientation
        return chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    return chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="%d"/>' % orientation)


@every("shape", [(6, 4), (6, 4, 2), (6, 4, 3), (6, 4, 4)])
@every("orientation", range(1, 9))
@every(("how", "where"), [("exif", "before"), ("exif", "after"), ("xmp", "before")])
def test_pictures_of_16_bits_are_turned_upright_as_those_of_8_are(tmp_path, how, where, orientation, shape):
    values = np.random.default_rng(0).integers(0, 256, shape)
    if shape[2:] in [(2,), (4,)]:
        values[..., -1] = 255
    said = {where: sideways(how, orientation)}
    plain = any_png(values, tmp_path / "8.png", bits=8, **said)
    deep = any_png(values * 257, tmp_path / "16.png", **said)
    pixels = read(deep)
    assert pixels.shape[:2] == ((6, 4) if orientation < 5 else (4, 6))
    np.testing.assert_array_equal(pixels, read(plain))


def test_a_tiff_of_16_bits_under_another_name_is_read_right_or_refused(tmp_path):
    """Pillow writes only those that it can read: others are made of these, tag by tag."""
    values = np.linspace(0, 4095, 256).reshape(16, 16).round().astype(np.uint16)
    grey, coloured = encoded(values, "TIFF"), encoded(np.zeros((16, 16, 3), dtype=np.uint8), "TIFF")
    path = tmp_path / "a.png"
    path.write_bytes(grey)
    np.testing.assert_allclose(read(path), values * (255 / 4095), atol=0.51)
    counting_down = [struct.pack("<HHIHH", 262, 3, 1, black, 0) for black in (1, 0)]
    deep = [struct.pack("<HHH", bits, bits, bits) for bits in (8, 16)]
    for content, (before, after) in ((grey, counting_down), (coloured, deep)):
        assert content.count(before) == 1
        path.write_bytes(content.replace(before, after))
        with pytest.raises(DataError, match="is a TIFF of 16 bits a channel that would be misread: save it as a PNG"):
            read(path)


def test_a_picture_that_is_hidden_by_its_transparency_is_refused_and_an_empty_one_is_white(tmp_path):
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "empty.png")
    assert (read(tmp_path / "empty.png") == 255).all()
    pixels[:8, :, :3] = 200
    for alpha in (0, 1, np.arange(16) % 2):  # 1 of 255 is meant as 1 of 1
        pixels[..., 3] = alpha
        Image.fromarray(pixels).save(tmp_path / "a.png")
        with pytest.raises(DataError, match="a.png is transparent all over, with a picture below: save it without"):
            read(tmp_path / "a.png")


@every("channels", [1, 3])
@every(("bits", "peak"), [(8, 255), (10, 1000), (12, 4095), (14, 5000), (16, 50_000)])
def test_values_in_16_bits_are_scaled_by_the_bits_they_need(tmp_path, bits, peak, channels):
    values = np.linspace(0, peak, 256).reshape(16, 16).round().astype(np.uint16)
    dark = values // 2
    if channels == 3:
        values, dark = (np.stack([image, image, image // 2], axis=-1) for image in (values, dark))
    paths = [any_png(values, tmp_path / "a.png"), any_png(dark, tmp_path / "b.png")]
    found, said = read_pictures(paths, None)
    for image, pixels in zip((values, dark), found, strict=True):  # by one scale, so the darker one stays darker
        np.testing.assert_allclose(pixels, image * (255 / (2**bits - 1)), atol=0.51)
    expected = f"2 pictures of 16 bits a channel have values up to {peak}: they are read as {bits} bits"
    assert said == (expected if bits < 16 else None)


def test_pictures_of_different_depths_in_16_bits_are_said(tmp_path):
    image = np.arange(256).reshape(16, 16)
    paths = [any_png(image * 16, tmp_path / "12.png"), any_png(image * 257, tmp_path / "16.png")]
    said = read_pictures(paths, None)[1]
    assert "they are read as 16 bits, one that has none above 4080 too: are there pictures of different depths?" in said


def test_16_bits_that_are_transparent_and_32_are_refused_in_a_line(tmp_path):
    values = np.full((16, 16, 4), 2**16 - 1)
    assert (read(any_png(values, tmp_path / "opaque.png")) == 255).all()
    values[0, 0, 3] = 0
    with pytest.raises(DataError, match="a.png has 16 bits a channel and is transparent: save it with 8"):
        read(any_png(values, tmp_path / "a.png"))
    for mode in ("F", "I"):
        Image.new(mode, (16, 16)).save(tmp_path / "b.png", format="TIFF")
        with pytest.raises(DataError, match="b.png has 32 bits a channel: save it with 8 or 16"):
            read(tmp_path / "b.png")


def test_all_pictures_that_cannot_be_read_are_named_at_once(tmp_path):
    good = tmp_path / "good.png"
    Image.new("RGB", (16, 16)).save(good)
    bad = [tmp_path / f"{number}.png" for number in range(5)]
    for path in bad:
        path.write_bytes(good.read_bytes()[:40])
    with pytest.raises(DataError) as error:
        read_pictures([bad[0], good, *bad[1:]], None)
    said = str(error.value)
    assert said.startswith("5 images cannot be used: ")
    assert all(f"{number}.png cannot be read as an image: " in said for number in range(3))
    assert said.endswith("; and 2 more")
    assert "\n" not in said


@given(
    shape=st.tuples(st.integers(40, 70), st.integers(40, 70), st.just(3)),
    noise=st.integers(1, 200),
    grey=st.booleans(),
    seed=st.integers(0, 2**16),
    size=st.sampled_from([None, 16]),
    options=st.sampled_from([dict(), dict(progressive=True), dict(restart_marker_rows=1), dict(subsampling=0)]),
)
@settings(max_examples=30)
def test_a_jpeg_whose_end_is_lost_is_refused_and_a_whole_one_never_is(shape, noise, grey, seed, size, options):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, noise, shape).astype(np.uint8)
    if grey:  # as a decoder fills in what is lost
        pixels[shape[0] // 2 :] = 128
    whole = encoded(pixels, "JPEG", quality=90, **options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jpg"
        path.write_bytes(whole)
        read(path, size)
        path.write_bytes(whole + bytes(1000))  # which some cameras add
        read(path, size)
        if noise < 20 or grey:  # what is lost may be grey itself
            return
        start = whole.index(b"\xff\xda") + 14
        cut = start + pictures.MARKER.search(whole[start:]).start() * 6 // 10  # within the first scan
        for end in (b"\xff\xd9", b"", bytes(len(whole) - cut)):
            path.write_bytes(whole[:cut] + end)
            with pytest.raises(DataError, match="is damaged|is truncated"):
                read(path, size)


@every("end", [b"", "zeros"])
@every(("kind", "options"), [("PNG", {}), ("WEBP", dict(lossless=True)), ("WEBP", {}), ("GIF", {})])
def test_other_pictures_whose_end_is_lost_are_refused(tmp_path, kind, options, end):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(pixels, kind, **options)
    path = tmp_path / "a.png"
    path.write_bytes(whole)
    read(path)
    cut = len(whole) * 6 // 10
    path.write_bytes(whole[:cut] + (bytes(len(whole) - cut) if end else b""))
    with pytest.raises(DataError, match="is damaged|cannot be read"):
        read(path)


@every(
    ("shape", "options"),
    [
        ((1000, 1000, 3), {}),
        ((64, 64, 3), dict(lossless=True, exif=Image.Exif().tobytes() + bytes(500))),
        ((64, 64, 3), dict(xmp=b"<x/>" + bytes(500))),
    ],
)
def test_a_whole_webp_that_ends_in_zeros_is_read_and_a_cut_one_is_not(tmp_path, shape, options):
    pixels = np.full(shape, 255, dtype=np.uint8)
    pixels[20:40, 20:40] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    whole = encoded(pixels, "WEBP", **options)
    assert whole.endswith(bytes(64))
    path = tmp_path / "a.webp"
    path.write_bytes(whole)
    assert read(path).shape == shape
    path.write_bytes(whole[:-8])
    with pytest.raises(DataError, match="is damaged|cannot be read"):
        read(path)


def png_pixels(content):
    """Where a PNG's packed pixels are; it has them in one chunk."""
    start = content.index(b"IDAT") + 4
    return start, start + int.from_bytes(content[start - 8 : start - 4], "big")


@given(
    shape=st.sampled_from([(20, 24), (20, 24, 2), (20, 24, 3), (20, 24, 4)]),
    bits=st.sampled_from([8, 16]),
    where=st.floats(0, 1, exclude_max=True),
    harm=st.sampled_from(["flip", "flip with a right checksum", "zeros", "no end"]),
)
@settings(max_examples=40)
def test_a_png_is_refused_wherever_it_is_damaged_and_however_many_bits_it_has(shape, bits, where, harm):
    """In one process: the decoder of 16 bits would end it. With a right checksum the bit may be one of no meaning."""
    values = np.random.default_rng(0).integers(0, 2**bits, shape)
    if shape[2:] in [(2,), (4,)]:
        values[..., -1] = 2**bits - 1
    with tempfile.TemporaryDirectory() as folder:
        path = any_png(values, Path(folder) / "a.png", bits)
        pixels = read(path)
        content = bytearray(path.read_bytes())
        start, stop = png_pixels(content)
        at = start + int(where * (stop - start))
        if harm.startswith("flip"):
            content[at] ^= 16
        elif harm == "zeros":
            content[at:] = bytes(len(content) - at)
        else:
            del content[at:]
        if harm == "flip with a right checksum":
            content[stop : stop + 4] = struct.pack(">I", zlib.crc32(content[start - 4 : stop]))
        path.write_bytes(content)
        try:
            found = read(path)
        except DataError as error:
            assert re.search("is damaged|cannot be read", str(error))  # noqa: PT017
        else:
            assert harm == "flip with a right checksum"
            np.testing.assert_array_equal(found, pixels)


@every("bits", [8, 16])
@every("rows", [0, 8, 15])
def test_a_png_that_has_fewer_rows_than_it_says_is_refused(tmp_path, bits, rows):
    row = bytes(range(16)) * (bits // 8)
    path = write_png(tmp_path / "a.png", 16, 16, bits, 0, [row] * rows)
    with pytest.raises(DataError, match="a.png is damaged: its end is lost"):
        read(path)


@every("shape", [(16, 16), (1, 1), (3, 5)])
@every("bits", [1, 2, 4, 8, 16])
def test_a_whole_png_of_any_depth_is_taken_interlaced_too(tmp_path, bits, shape):
    height, width = shape
    rows = [bytes((width * bits + 7) // 8)] * height
    assert read(write_png(tmp_path / "a.png", width, height, bits, 0, rows)).shape == shape
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    sizes = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in passes]
    rows = [bytes((columns * bits + 7) // 8) for columns, count in sizes if columns for _ in range(count)]
    path = write_png(tmp_path / "a.png", width, height, bits, 0, rows, interlaced=1)
    assert read(path).shape == shape
    write_png(path, width, height, bits, 0, rows[:-1], interlaced=1)
    with pytest.raises(DataError, match="a.png is damaged: its end is lost"):
        read(path)


@every("orientation", range(1, 9))
@every("mode", ["L", "I;16", "I;16B", "CMYK", "RGB"])
def test_a_tiff_under_another_name_is_turned_upright_whatever_its_mode(tmp_path, mode, orientation):
    from PIL import ImageOps

    grey = np.random.default_rng(0).integers(0, 256, (6, 4), dtype=np.uint8)
    if mode.startswith("I;16"):
        image = Image.frombytes(mode, (4, 6), (grey.astype(">u2" if mode.endswith("B") else "<u2") * 257).tobytes())
    else:
        image = Image.fromarray(grey).convert(mode)
    path = tmp_path / "a.png"
    image.save(path, "TIFF", tiffinfo={0x0112: orientation})
    plain = Image.fromarray(grey)
    plain.getexif()[0x0112] = orientation
    found = read(path)
    expected = np.asarray(ImageOps.exif_transpose(plain))
    np.testing.assert_array_equal(found if found.ndim == 2 else found[..., 0], expected)


def test_a_name_cannot_write_to_the_terminal(tmp_path):
    path = tmp_path / "a\x1b[31m\nb.png"
    path.write_text("no image")
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).isprintable()


def test_a_large_jpeg_is_read_reduced_and_other_large_pictures_are_refused_in_plain_words(tmp_path, monkeypatch):
    """With limits a thousand times smaller than they are, as such pictures take long to make."""
    monkeypatch.setattr(pictures, "MAX_PIXELS", 2**18)
    monkeypatch.setattr(pictures, "MAX_JPEG_PIXELS", 2**23)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    red = Image.new("RGB", (2000, 2000), "red")
    red.save(tmp_path / "large.jpg"), red.save(tmp_path / "large.png")
    assert (abs(read(tmp_path / "large.jpg", 16).astype(int) - (254, 0, 0)) < 3).all()
    with pytest.raises(DataError, match="large.png is 2000 x 2000 pixels, too many to decode: make it smaller"):
        read(tmp_path / "large.png", 16)
    Image.new("L", (4000, 4000)).save(tmp_path / "larger.jpg")
    with pytest.raises(DataError, match="larger.jpg is 4000 x 4000 pixels, too many to decode: make it smaller"):
        read(tmp_path / "larger.jpg", 16)
    with pytest.raises(DataError, match="large.jpg is 2000 x 2000 pixels, more than 1024: with image_size=64"):
        read(tmp_path / "large.jpg")
    assert Image.MAX_IMAGE_PIXELS == 1000


MEMORY = """
import resource, sys
from pathlib import Path
from modules.data.pictures import read_pictures
read_pictures([Path(sys.argv[1])], 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(read_pictures([Path(path) for path in sys.argv[2:]], 64)[0][0].shape)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is counted in other units")
@pytest.mark.ci
def test_a_long_picture_is_cut_before_it_is_resized(tmp_path):
    small = tmp_path / "small.png"
    Image.new("L", (100, 100)).save(small)
    long = [huge_png(tmp_path / "wide.png", 1_000_000, 1), huge_png(tmp_path / "high.png", 1, 1_000_000)]
    run = [sys.executable, "-c", MEMORY, small, *long]
    shape, megabytes = subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()
    assert shape == "(64, 64)"
    assert int(megabytes) < 200  # resized whole it would be 4,000


@every("shape", [(300, 100), (100, 1600), (77, 31), (64, 64), (20, 400)])
def test_other_pictures_are_resized_and_cropped_as_torchvision_does_it(tmp_path, shape):
    from torchvision.transforms.v2 import functional

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    expected = functional.center_crop(functional.resize(image, [64], antialias=True), [64, 64])
    if max(shape) <= 16 * min(shape):
        np.testing.assert_array_equal(read(tmp_path / "a.png", 64), np.asarray(expected))
    else:  # but for what the edges of the cut do
        np.testing.assert_allclose(read(tmp_path / "a.png", 64), np.asarray(expected), atol=3)


def test_an_image_is_what_its_content_says_whatever_its_name(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(content, "PNG")
    (tmp_path / "a.jpg").write_bytes(content.getvalue())
    assert read(tmp_path / "a.jpg").shape == (16, 16, 3)
