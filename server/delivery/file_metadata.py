"""What an image file carries beside its pixels: a task's parameters, and the mark of generation.

Blocks are inserted into the encoded file; its compressed pixels are not touched, nor encoded again.

Source: PNG specification 11.3.4.5 (iTXt); Exif 2.32, tag 37510 (UserComment); XMP part 3 for where
each format has its packet; the WebP container specification for VP8X; IPTC Photo Metadata Standard
for Digital Source Type and its vocabulary.
"""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import Image

_IPTC_NAMESPACE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
# The packet's byte order mark and identifier are those of every XMP packet.
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{_IPTC_NAMESPACE}" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
).encode()

KEYWORD = "parameters"  # of a PNG's text; the name that tools for generated images look for
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
_UNICODE = b"UNICODE\0"
_MAX_SEGMENT_BYTES = 65533  # of a JPEG's segment, its length field not counted
_EXIF_PREFIX = b"Exif\0\0"
_PNG_HEADER_END = 8 + 4 + 4 + 13 + 4  # the signature, and IHDR with length, type and check
# Flags of VP8X.
_HAS_XMP, _HAS_EXIF, _HAS_ALPHA = 0x04, 0x08, 0x10


def embed(encoded: bytes, parameters: Mapping[str, Any] | None, is_marked: bool) -> bytes:
    """Return a JPG, PNG or WEBP file with parameters as JSON, with the mark, with both or neither.

    In a JPG long texts are shortened to what its one segment holds.
    """
    if parameters is None and not is_marked:
        return encoded
    xmp = XMP if is_marked else None
    if encoded.startswith(b"\x89PNG"):
        return _embed_png(encoded, parameters, xmp)
    if encoded.startswith(b"RIFF"):
        return _embed_webp(encoded, parameters, xmp)
    return _embed_jpeg(encoded, parameters, xmp)


def _embed_png(encoded: bytes, parameters: Mapping[str, Any] | None, xmp: bytes | None) -> bytes:
    chunks = b""
    if parameters is not None:
        chunks += _png_text(KEYWORD, _as_json(parameters).encode())
    if xmp is not None:
        chunks += _png_text("XML:com.adobe.xmp", xmp)
    return encoded[:_PNG_HEADER_END] + chunks + encoded[_PNG_HEADER_END:]


def _png_text(keyword: str, text: bytes) -> bytes:
    """Return an international text chunk: UTF-8, not compressed, without language."""
    body = b"iTXt" + keyword.encode("latin-1") + b"\0\0\0\0\0" + text
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _embed_jpeg(encoded: bytes, parameters: Mapping[str, Any] | None, xmp: bytes | None) -> bytes:
    segments = b""
    if parameters is not None:
        segments += _jpeg_segment(_exif_of(_shortened(parameters)))
    if xmp is not None:
        segments += _jpeg_segment(b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    end = 2  # of SOI, and of JFIF's segment, which readers want first
    if encoded[2:4] == b"\xff\xe0":
        end = 4 + int.from_bytes(encoded[4:6], "big")
    return encoded[:end] + segments + encoded[end:]


def _jpeg_segment(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def _shortened(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters whose longest texts are halved until they fit into a segment."""
    short = dict(parameters)
    while len(_exif_of(short)) > _MAX_SEGMENT_BYTES:
        texts = [name for name, value in short.items() if isinstance(value, str)]
        longest = max(texts, key=lambda name: len(short[name]))
        short[longest] = short[longest][: len(short[longest]) // 2] + "…"
    return short


def _embed_webp(encoded: bytes, parameters: Mapping[str, Any] | None, xmp: bytes | None) -> bytes:
    with Image.open(io.BytesIO(encoded)) as image:  # its header alone
        width_px, height_px = image.size
        has_alpha = image.mode == "RGBA"
    flags = _HAS_ALPHA if has_alpha else 0
    flags |= _HAS_EXIF if parameters is not None else 0
    flags |= _HAS_XMP if xmp is not None else 0
    sides = (width_px - 1).to_bytes(3, "little") + (height_px - 1).to_bytes(3, "little")
    chunks = _riff_chunk(b"VP8X", struct.pack("<I", flags) + sides) + encoded[12:]
    if parameters is not None:
        chunks += _riff_chunk(b"EXIF", _exif_of(parameters).removeprefix(_EXIF_PREFIX))
    if xmp is not None:
        chunks += _riff_chunk(b"XMP ", xmp)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _riff_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _exif_of(parameters: Mapping[str, Any]) -> bytes:
    exif = Image.Exif()
    exif.endian = ">"  # as the text's own order
    comment = _UNICODE + _as_json(parameters).encode("utf-16-be")
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
    return exif.tobytes()


def _as_json(parameters: Mapping[str, Any]) -> str:
    return json.dumps(parameters, ensure_ascii=False)
