#!/usr/bin/env python3
"""Writes the malformed files of this folder. Needs only Python.

Each is a way a file can lie that a reader has to notice; `tests/weights_hostile.rs` says what it must answer.
usage: make_hostile.py   (writes beside itself)
"""
import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent


def raw(name, data):
    assert len(data) <= 2048, name
    (HERE / f"{name}.safetensors").write_bytes(data)


def text(name, header, data=b"", length=None):
    """A file whose header is exactly this text."""
    header = header.encode() if isinstance(header, str) else header
    raw(name, struct.pack("<Q", len(header) if length is None else length) + header + data)


def tensors(name, entries, data=b"", metadata=None):
    header = {} if metadata is None else {"__metadata__": metadata}
    header.update({k: {"dtype": d, "shape": s, "data_offsets": o} for k, (d, s, o) in entries.items()})
    text(name, json.dumps(header), data)


F32 = ("F32", [2], [0, 8])
EIGHT = bytes(8)

# Other formats under our file name.
raw("empty", b"")
raw("short", b"\x01\x02\x03")
raw("zip", b"PK\x03\x04" + bytes(26) + b"archive/data.pkl")
raw("pickle", b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dictq\x01.")
raw("pickle_protocol_4", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.")
raw("tar", b"pickle".ljust(257, b"\0") + b"ustar  \0".ljust(255, b"\0"))
raw("gguf", b"GGUF\x03\x00\x00\x00" + bytes(16))
raw("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(16))
raw("login_page", b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>")
raw("html", b"<HTML><body>502 Bad Gateway</body></HTML>")
raw("json_error", b'{"error":"Unauthorized","message":"login required"}')
raw("json", b'{"weight_map": {}}')
raw("lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 42\n")
raw("gzip", b"\x1f\x8b\x08\x00" + bytes(20))
raw("png", b"\x89PNG\r\n\x1a\n" + bytes(20))
raw("noise", bytes((i * 37 + 11) % 256 for i in range(64)))

# The length.
text("length_zero", b"", length=0)
text("length_one", b"{", length=1)
text("length_bomb", b'{"a":1}', length=2**63)
text("length_above_limit", b'{"a":1}', length=100_000_001)
text("length_above_file", b'{"a":1}', length=640)

# The text.
text("bom", b"\xef\xbb\xbf{}")
text("leading_space", " {}")
text("array", "[]")
text("not_utf8", b'{"\xff\xfe": 1}')
text("not_json", '{"a": }')
text("two_objects", "{} {}")
text("deep", '{"a": ' + "[" * 200 + "]" * 200 + "}")

# Metadata.
text("metadata_nested", '{"__metadata__": {"a": {"b": "c"}}}')
text("metadata_number", '{"__metadata__": {"a": 1}}')
text("metadata_as_tensor", '{"__metadata__": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', EIGHT)
text("metadata_twice", '{"__metadata__": {}, "__metadata__": {}}')
text("metadata_key_twice", '{"__metadata__": {"a": "1", "a": "2"}}')

# Keys.
A = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
text("key_twice", f'{{"a": {A}, "a": {A}}}', EIGHT)
text("key_empty", f'{{"": {A}}}', EIGHT)
text("key_control", f'{{"a\\u0000b": {A}}}', EIGHT)
text("key_long", f'{{"{"k" * 1025}": {A}}}', EIGHT)

# One tensor.
text("field_missing", '{"a": {"dtype": "F32", "shape": [2]}}', EIGHT)
text("field_unknown", '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "code": "x"}}', EIGHT)
text("field_twice", '{"a": {"dtype": "F32", "dtype": "F16", "shape": [2], "data_offsets": [0, 8]}}', EIGHT)
tensors("dtype_lower_case", {"a": ("f32", [2], [0, 8])}, EIGHT)
tensors("dtype_unknown", {"a": ("Q4_K", [2], [0, 8])}, EIGHT)
tensors("dtype_fnuz", {"a": ("F8_E4M3FNUZ", [8], [0, 8])}, EIGHT)
tensors("dtype_f4", {"a": ("F4", [16], [0, 8])}, EIGHT)
tensors("shape_overflow", {"a": ("F32", [2**40, 2**40], [0, 8])}, EIGHT)
tensors("shape_negative", {"a": ("F32", [-2], [0, 8])}, EIGHT)
tensors("shape_float", {"a": ("F32", [2.0], [0, 8])}, EIGHT)
tensors("shape_rank_9", {"a": ("F32", [1] * 8 + [2], [0, 8])}, EIGHT)
tensors("offsets_float", {"a": ("F32", [2], [0, 8.0])}, EIGHT)
tensors("offsets_negative", {"a": ("F32", [2], [-8, 0])}, EIGHT)
tensors("offsets_strings", {"a": ("F32", [2], ["0", "8"])}, EIGHT)
tensors("offsets_one", {"a": ("F32", [2], [8])}, EIGHT)
tensors("offsets_three", {"a": ("F32", [2], [0, 8, 8])}, EIGHT)
tensors("offsets_reversed", {"a": ("F32", [2], [8, 0])}, EIGHT)
tensors("offsets_too_few", {"a": ("F32", [2], [0, 4])}, EIGHT)
tensors("offsets_huge", {"a": ("U8", [2**63], [0, 2**63])}, EIGHT)

# All tensors together.
tensors("hole", {"a": F32, "b": ("F32", [2], [12, 20])}, bytes(20))
tensors("hole_at_start", {"a": ("F32", [2], [4, 12])}, bytes(12))
tensors("overlap", {"a": F32, "b": ("F32", [2], [4, 12])}, bytes(12))
tensors("same_range", {"a": F32, "b": F32}, EIGHT)
tensors("truncated", {"a": F32, "b": ("F32", [2], [8, 16])}, bytes(13))
tensors("trailing", {"a": F32}, bytes(9))
tensors("no_data", {"a": F32})
