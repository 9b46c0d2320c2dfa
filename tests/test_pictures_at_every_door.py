"""Import, service, encoder and report agree on what a picture is, and damage beside the pixels costs no picture."""

import io
import re
import struct
import time
import zlib
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from fake_shop import picture
from PIL import Image

from dataset.checks import _shown_by
from dataset.contracts import DataError
from dataset.importers import import_path
from dataset.pictures import FORMATS, MEDIA_TYPES, decoded, inspect_picture, media_type, shrink
from dataset.tables import Dataset
from encoder.pictures.decode import decode_image
from evaluation.report import data_uri
from feature_repo.ingest.new_items import check_picture
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


@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "ICO", "JPEG2000"])
def test_a_format_that_is_not_opened_is_named_beside_those_that_are(kind):
    """They were called broken; SVG, HEIC and JPEG XL are known by how they begin, too."""
    said = f"{kind.replace('G2', 'G 2')}, which is not opened: JPEG, PNG, WEBP, GIF, BMP are"
    content = saved(kind)
    assert inspect_picture(content).problem == said
    with pytest.raises(Refused) as refused:
        check_image(content, 10**7, 10**7)
    assert refused.value.reason == f"expected a picture, found {said}"
    with pytest.raises(DataError, match=re.escape(said)):
        check_picture(SimpleNamespace(image=content))


def test_a_folder_of_pictures_that_are_not_opened_is_refused_by_its_items(tmp_path):
    """Quarantine and refusal name items of the shop, no hashes; one that has a JPEG, too, is shown by that."""
    (tmp_path / "items.csv").write_text("sku,name\n" + "".join(f"A{n},lamp {n}\n" for n in range(6)))
    (tmp_path / "moon.toml").write_text(
        '[data]\nname = "shop"\n[[items]]\nfiles = ["items.csv"]\nid = "sku"\ntitle = "name"\n'
        '[[images]]\nfiles = ["p/{id}.*"]\n'
    )
    (tmp_path / "p").mkdir()
    for number in range(6):
        (tmp_path / f"p/A{number}.jpg").write_bytes(saved("JPEG", colour=(number, 9, 9)))
    for number in (1, 2):
        (tmp_path / f"p/A{number}.avif").write_bytes(saved("AVIF", colour=(number, 9, 9)))
    (tmp_path / "p/A2.jpg").unlink()
    dataset = Dataset.open(import_path(tmp_path, tmp_path / "made"))
    (entry,) = (
        one for one in dataset.quarantine.to_pylist() if one["table"] == "images" and "format" in one["rule"]
    )
    assert entry["value"].startswith("A2: AVIF, which is not opened") and len(dataset.images) == 5
    for number in range(6):
        (tmp_path / f"p/A{number}.jpg").write_bytes(f"broken {number}".encode())
    with pytest.raises(DataError, match=r"images: .*broken or too large picture A\d: "):
        import_path(tmp_path, tmp_path / "other")


def test_a_refused_picture_is_named_by_the_first_item_that_shows_it_or_else_by_the_query():
    def shown(*rows):
        ids, pictures = zip(*rows, strict=True)
        return SimpleNamespace(column=pa.table({"external_id": ids, "image_id": pictures}).column)

    items = shown(("A1", "p1"), ("A2", None), ("A3", "p2"), ("A4", "p1"))
    queries = shown(("Q1", "p1"), ("Q2", "p3"))
    pictures = pa.chunked_array([["p1", "p2", "p3"], ["p4", None]])
    assert _shown_by(pictures, items, queries).to_pylist() == ["A1", "A3", "Q2", "p4", None]
