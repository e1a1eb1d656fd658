"""How a cache of samples lies in its file. Nothing is read or written here.

    header      one page: what file this is, and of which dataset
    index       8 bytes a sample: where its record begins; 0: there is none
    records     one behind the other, in the order in which they were kept

A record is a head, the form of the sample (`sample_forms`), the bytes of its parts, and a trailer. Head and trailer
have the same random number, and the head a checksum of itself and the form. So bytes that were cut off and overwritten
since, or never reached the disk before the machine went down, are not taken for a record: either its end is not there,
or it is another record's. A torn middle, which only a machine that goes down leaves, is found by the checksum of the
body.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from shmloader.batches.dtypes import ALL

HEADER_BYTES = 4096
WORD = struct.Struct("<Q")

_VERSION = 2  # of the layout, and of the names that forms are pickled by
_MAGIC = b"shmcache"
_HEADER = struct.Struct("<8sIIQ8s32s")  # magic, version, dtypes, length, key, fingerprint
_CRC = struct.Struct("<I")

_HEAD = struct.Struct("<8sQ8sQII")  # key, index, number, bytes of the parts, bytes of the form, checksum of the body
HEAD_BYTES = _HEAD.size + _CRC.size
_TRAILER = struct.Struct("<8s8s")  # key, number
TRAILER_BYTES = _TRAILER.size

# Packed samples have dtypes by their number, which is another one in a torch with more dtypes.
_DTYPES = zlib.crc32(repr(ALL).encode())

Buffers = Sequence[Any]


class Header(NamedTuple):
    """What a file says of itself.

    Attributes:
        length: how many samples the dataset has.
        fingerprint: 32 bytes that are others for another dataset.
        key: 8 random bytes, which each record repeats.
    """

    length: int
    fingerprint: bytes
    key: bytes

    @property
    def data_start(self) -> int:
        """Where records begin."""
        return HEADER_BYTES + WORD.size * self.length

    def word_offset(self, index: int) -> int:
        """Returns where the index has the word of a sample."""
        return HEADER_BYTES + WORD.size * index

    def packed(self) -> bytes:
        """Returns the header as it is written."""
        fields = _HEADER.pack(_MAGIC, _VERSION, _DTYPES, self.length, self.key, self.fingerprint)
        return (fields + _CRC.pack(zlib.crc32(fields))).ljust(HEADER_BYTES, b"\0")


def new_header(length: int, fingerprint: bytes) -> Header:
    """Returns the header of a new file."""
    return Header(length, fingerprint, secrets.token_bytes(8))


def read_header(data: bytes, length: int, fingerprint: bytes) -> Header:
    """Returns the header of a file that is there, if it is the cache of a dataset.

    Args:
        data: the file's first bytes.
        length: how many samples the dataset has.
        fingerprint: the dataset's.

    Raises:
        ValueError: it is something else; the text goes behind the file's name.
    """
    if data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("is not a CachedDataset's file")
    if len(data) < HEADER_BYTES:
        raise ValueError("was cut short in its header")
    _, version, dtypes, its_length, key, its_fingerprint = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise ValueError(f"has format {version} of CachedDataset's files, and this release reads format {_VERSION}")
    if _CRC.unpack_from(data, _HEADER.size)[0] != zlib.crc32(data[: _HEADER.size]):
        raise ValueError("has a damaged header")
    if dtypes != _DTYPES:
        raise ValueError("was written with a torch that has other dtypes")
    if its_length != length:
        raise ValueError(f"is the cache of another dataset: of {its_length} samples, and this one has {length}")
    if its_fingerprint != fingerprint:
        raise ValueError("is the cache of another dataset: of other classes, or with another fingerprint")
    return Header(length, fingerprint, key)


class Record(NamedTuple):
    """A record that was found.

    Attributes:
        offset: where it begins.
        nbytes: bytes of its parts.
        form: the form of the sample.
        number: 8 bytes that its trailer repeats.
        body_crc: checksum of the parts, or 0 where none was made.
    """

    offset: int
    nbytes: int
    form: bytes
    number: bytes
    body_crc: int

    @property
    def parts_offset(self) -> int:
        """Where its parts begin."""
        return self.offset + HEAD_BYTES + len(self.form)


class NewRecord(NamedTuple):
    """A record that is to be written.

    Attributes:
        buffers: what is written, in this order.
        nbytes: how many bytes that is.
    """

    buffers: list[Any]
    nbytes: int


def new_record(header: Header, index: int, form: bytes, parts: Buffers, has_checksum: bool) -> NewRecord:
    """Returns the record of a sample.

    Args:
        header: the file's.
        index: the sample's.
        form: the sample's form.
        parts: C-contiguous buffers.
        has_checksum: whether the record may be read after the machine has gone down.
    """
    number = secrets.token_bytes(8)
    nbytes = sum(memoryview(part).nbytes for part in parts)
    fields = _HEAD.pack(header.key, index, number, nbytes, len(form), checksum(parts) if has_checksum else 0)
    head = fields + _CRC.pack(zlib.crc32(form, zlib.crc32(fields))) + form
    trailer = _TRAILER.pack(header.key, number)
    return NewRecord([head, *parts, trailer], len(head) + nbytes + len(trailer))


def form_bytes(header: Header, data: bytes) -> int | None:
    """Returns how long the form behind a head is, or None if it is no head of this file."""
    if len(data) < HEAD_BYTES:
        return None
    key, _, _, _, its_form, _ = _HEAD.unpack_from(data)
    return int(its_form) if key == header.key else None


def read_head(header: Header, index: int, offset: int, data: bytes) -> Record | None:
    """Returns the record of a sample, or None if its head and form are not whole, or another sample's.

    Args:
        header: the file's.
        index: the sample's.
        offset: where the record begins.
        data: its first bytes, with the whole form.
    """
    length = form_bytes(header, data)
    if length is None or len(data) < HEAD_BYTES + length:
        return None
    _, its_index, number, nbytes, _, body_crc = _HEAD.unpack_from(data)
    form = data[HEAD_BYTES : HEAD_BYTES + length]
    if its_index != index or _CRC.unpack_from(data, _HEAD.size)[0] != zlib.crc32(form, zlib.crc32(data[: _HEAD.size])):
        return None
    return Record(offset, nbytes, form, number, body_crc)


def whole_record(memory: memoryview, index: int, offset: int) -> Record | None:
    """Returns the record of a sample that is whole, since nothing changes what was written; None: another sample's.

    Args:
        memory: of the whole file.
        index: the sample's.
        offset: where the record begins.
    """
    _, its_index, number, nbytes, length, body_crc = _HEAD.unpack_from(memory, offset)
    if its_index != index:
        return None
    start = offset + HEAD_BYTES
    return Record(offset, nbytes, bytes(memory[start : start + length]), number, body_crc)


def has_form_and_size_of(like: Record, memory: Any, offset: int) -> bool:
    """Whether the record at ``offset``, which is whole, has parts of the same kinds and sizes as another one."""
    _, _, _, nbytes, length, _ = _HEAD.unpack_from(memory, offset)
    if (nbytes, length) != (like.nbytes, len(like.form)):
        return False
    return bytes(memory[offset + HEAD_BYTES : offset + HEAD_BYTES + length]) == like.form


def is_like(header: Header, index: int, like: Record, head: bytearray, trailer: bytearray) -> bool:
    """Whether what was read as a record with the form and size of another one is that of a sample, and whole."""
    key, its_index, number, nbytes, length, _ = _HEAD.unpack_from(head)
    if (key, its_index, nbytes, length) != (header.key, index, like.nbytes, len(like.form)):
        return False
    return head.endswith(like.form) and _TRAILER.unpack(trailer) == (key, number)


def is_end_of(header: Header, record: Record, trailer: bytearray) -> bool:
    """Whether a trailer is that of a record."""
    return _TRAILER.unpack(trailer) == (header.key, record.number)


def checksum(parts: Buffers) -> int:
    """Returns the checksum of a body."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc
