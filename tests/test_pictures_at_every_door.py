"""Import, service, encoder and report agree on what a picture is, and damage beside the pixels costs no picture."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from fake_shop import picture
from PIL import Image

from dataset.contracts import DataError
from dataset.pictures import FORMATS, MEDIA_TYPES, decoded, inspect_picture, media_type, shrink
from encoder.pictures.decode import decode_image
from evaluation.report import data_uri
from retrieval.colours import colours
from serving.questions import Refused, check_image

TAKEN = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
REFUSED = ("TIFF", "AVIF", "ICO", "PPM", "TGA", "PCX", "SGI", "JPEG2000")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def saved(kind="PNG", size=(40, 40), colour=(10, 200, 10), **how):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind, **how)
    return out.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_with(name, body, **how):
    """A PNG with one more chunk behind its header."""
    content = saved(**how)
    return content[:33] + chunk(name, body) + content[33:]


def raises(what, *arguments):
    try:
        what(*arguments)
    except (DataError, Refused):
        return True
    return False


def asked_with(content):
    """What a search does with its picture: look at the header, then leave it to the encoder."""
    check_image(content, 10**7, 10**7)
    decode_image(content, 16)


def refusals(content):
    """Which doors refuse the bytes: all of them or none."""
    return {
        "import": inspect_picture(content).problem is not None,
        "service": raises(asked_with, content),
        "encoder": raises(decode_image, content, 16),
        "baselines": raises(colours, [content]),
        "page": raises(media_type, content),
        "report": data_uri(content) == "",
    }


@pytest.mark.parametrize("kind", TAKEN)
def test_a_format_of_the_list_is_taken_at_every_door(kind):
    content = saved(kind, (300, 200))
    assert not any(refusals(content).values())
    assert np.abs(np.asarray(decoded(content)).reshape(-1, 3).mean(0) - (10, 200, 10)).max() < 3
    assert media_type(content) == MEDIA_TYPES[kind]
    assert Image.open(io.BytesIO(shrink(content))).size == (256, 171)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_format_that_is_not_of_the_list_is_refused_at_every_door(kind):
    assert all(refusals(saved(kind)).values()) and kind not in FORMATS


@pytest.mark.parametrize(
    "content", [b"", b"junk", saved()[:60], saved("JPEG")[:-300], saved("GIF")[:20], EPS]
)
def test_what_cannot_be_decoded_is_refused_at_every_door(content):
    refused = refusals(content)
    refused.pop("page")  # it reads no more than the header, of what an import or the service has let in
    assert all(refused.values())


def test_no_upload_starts_a_program(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    refusals(EPS)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("exif", [b"MM", b"hello world 12", b"", b"MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.parametrize("side", [40, 300])
def test_damaged_exif_costs_a_picture_its_orientation_only(exif, side):
    content = png_with(b"eXIf", exif, size=(side, side))
    assert not any(refusals(content).values())
    assert np.asarray(decoded(content))[side // 2, side // 2].tolist() == [10, 200, 10]
    assert shrink(content)


@pytest.mark.parametrize("clear", [None, 1, 65535])
def test_sixteen_bit_grey_keeps_its_greys_and_lays_its_transparent_grey_over_white(clear):
    side = 64
    ramp = np.linspace(0, 65535, side * side).round().astype(np.uint16).reshape(side, side)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in ramp)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0))
    more = b"" if clear is None else chunk(b"tRNS", struct.pack(">H", clear))
    content = b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    expected = np.where(ramp == (-1 if clear is None else clear), 255, ramp >> 8)
    assert np.array_equal(np.asarray(decoded(content))[..., 0], expected)
    assert np.array_equal(decode_image(content, side)[..., 1], expected)


def test_of_an_animation_the_first_frame_is_read_and_no_other():
    one, last = (saved("GIF", (200, 200), colour) for colour in ((10, 200, 10), (200, 10, 10)))
    start = 13 + 3 * 2 ** ((one[10] & 7) + 1)  # behind the header and its palette
    many = one[:-1] + one[start:-1] * 10_000 + last[start:]
    with Image.open(io.BytesIO(many)) as animation:
        assert animation.is_animated
    began = time.process_time()
    assert not any(refusals(many).values())
    assert np.array_equal(np.asarray(decoded(many)), np.asarray(decoded(one)))
    assert time.process_time() - began < 0.5  # all of its frames take a second, at every door


def test_a_picture_is_served_as_what_it_is():
    assert media_type(picture()) == "image/png" and media_type(saved("WEBP")) == "image/webp"
