#!/usr/bin/env python3
"""Writes the malformed files of this folder and what must be said of them. Needs only Python.

Each is a way a file can lie, break or be something else. `manifest.json` has a line for each: the rule it breaks, how it
is opened, and what the error must contain; `tests/hostile.rs` opens them all.
usage: make_hostile.py           (writes beside itself)
       make_hostile.py --check   (exit code 1 if a committed file is not what this script writes)
"""
import json
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).parent
LIMIT = 2048

seeds = {}
manifest = []


def seed(name, files, opens, rule, says, **more):
    """`files` is one file's bytes, or a folder's by relative path. `says` is None for what must be accepted."""
    folder = isinstance(files, dict)
    for path, data in files.items() if folder else [("", files)]:
        at = f"{name}/{path}" if folder else name
        assert len(data) <= LIMIT and at not in seeds, at
        seeds[at] = data
    says = [says] if isinstance(says, str) else says
    manifest.append({"seed": name, "opens": opens, "rule": rule, "says": says} | more)


# Anything as a safetensors file.

RULE = ""


def raw(name, data, says, hint=None):
    seed(f"file/{name}.safetensors", data, "file", RULE, says, **({"hint": hint} if hint else {}))


def framed(header, data=b"", length=None):
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def text(name, header, says, data=b"", length=None, hint=None):
    """A file whose header is exactly this text."""
    raw(name, framed(header, data, length), says, hint)


def tensors(name, entries, data, says, hint=None):
    text(name, json.dumps({k: {"dtype": d, "shape": s, "data_offsets": o} for k, (d, s, o) in entries.items()}), says,
         data, hint=hint)


F32 = ("F32", [2], [0, 8])
EIGHT = bytes(8)
AGAIN, PICKLE = "get it again", "can run any code"

RULE = "6.1 first bytes: another format"
raw("empty", b"", "is empty", AGAIN)
raw("short", b"\x01\x02\x03", "is 3 bytes long", AGAIN)
raw("seven", bytes(7), "is 7 bytes long", AGAIN)
raw("zip", b"PK\x03\x04" + bytes(26) + b"archive/data.pkl", "is a zip archive", PICKLE)
raw("pickle", b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dictq\x01.", "is a Python pickle", PICKLE)
raw("pickle_protocol_3", b"\x80\x03}q\x00X\x0a\x00\x00\x00state_dictq\x01.", "is a Python pickle", PICKLE)
raw("pickle_protocol_4", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.", "is a Python pickle", PICKLE)
raw("pickle_protocol_5", b"\x80\x05\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.", "is a Python pickle", PICKLE)
raw("tar", b"pickle".ljust(257, b"\0") + b"ustar  \0".ljust(255, b"\0"), "is a tar archive", PICKLE)
raw("gguf", b"GGUF\x03\x00\x00\x00" + bytes(16), "is a GGUF file", ".safetensors")
raw("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(16), "is an HDF5 (Keras) file", ".safetensors")
raw("login_page", b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "is a web page", "log in")
raw("html", b"<HTML><body>502 Bad Gateway</body></HTML>", "is a web page", "log in")
raw("json_error", b'{"error":"Unauthorized","message":"login required"}', "is an error message from a web site",
    "log in")
raw("json", b'{"weight_map": {}}', "is a JSON text", ".safetensors")
raw("lfs_pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 42\n",
    "is a Git LFS pointer", "git lfs pull")
raw("gzip", b"\x1f\x8b\x08\x00" + bytes(20), "is a gzip archive", "unpack")
raw("png", b"\x89PNG\r\n\x1a\n" + bytes(20), "is a PNG picture", ".safetensors")
raw("noise", bytes((i * 37 + 11) % 256 for i in range(64)), "not a safetensors file: the header claims")

RULE = "6.2 the header's length"
text("length_zero", b"", "the header claims 0 bytes, at least 2 are needed", length=0)
text("length_one", b"{", "the header claims 1 bytes, at least 2 are needed", length=1)
text("length_seven", b'{"a":1}', "bad header at `a`: invalid type: integer `1`")
text("length_bomb", b'{"a":1}', "the header claims 9223372036854775808 bytes, at most 100000000", length=2**63)
text("length_above_limit", b'{"a":1}', "the header claims 100000001 bytes, at most 100000000", length=100_000_001)
text("length_above_file", b'{"a":1}', "truncated inside the header: got 7 of 640 bytes", length=640, hint=AGAIN)

RULE = "6.2 the header is one JSON object in UTF-8"
text("bom", b"\xef\xbb\xbf{}", "the header does not start with `{`")
text("leading_space", " {}", "the header does not start with `{`")
text("array", "[]", "the header does not start with `{`")
text("not_utf8", b'{"\xff\xfe": 1}', "the header is not UTF-8")
text("not_json", '{"a": }', "bad header at `a`: expected value")
text("two_objects", "{} {}", "bad header: trailing characters")
text("deep", '{"a": ' + "[" * 200 + "]" * 200 + "}", "bad header at `a`: invalid type")
text("no_tensors", "{}", None)
text("trailing_spaces", "{}      ", None)

RULE = "6.2 metadata is an object of strings"
text("metadata_nested", '{"__metadata__": {"a": {"b": "c"}}}',
     "bad header at `__metadata__`: invalid type: map, expected a string")
text("metadata_number", '{"__metadata__": {"a": 1}}',
     "bad header at `__metadata__`: invalid type: integer `1`, expected a string")
text("metadata_as_tensor", '{"__metadata__": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
     "bad header at `__metadata__`: invalid type: sequence, expected a string", EIGHT)
text("metadata_twice", '{"__metadata__": {}, "__metadata__": {}}',
     "bad header at `__metadata__`: the key appears twice")
text("metadata_key_twice", '{"__metadata__": {"a": "1", "a": "2"}}',
     "bad header at `__metadata__`: the key `a` appears twice")

RULE = "6.2 keys"
A = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
text("key_twice", f'{{"a": {A}, "a": {A}}}', "bad header at `a`: the key appears twice", EIGHT)
text("key_empty", f'{{"": {A}}}', "a key is empty", EIGHT)
text("key_control", f'{{"a\\u0000b": {A}}}', 'key "a\\0b" has control characters', EIGHT)
text("key_long", f'{{"{"k" * 1025}": {A}}}', "a key is 1025 bytes long, at most 1024", EIGHT)

RULE = "6.2 a tensor is dtype, shape and data_offsets"
text("field_missing", '{"a": {"dtype": "F32", "shape": [2]}}', "bad header at `a`: missing field `data_offsets`", EIGHT)
text("field_unknown", '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "code": "x"}}',
     "bad header at `a`: unknown field `code`", EIGHT)
text("field_twice", '{"a": {"dtype": "F32", "dtype": "F16", "shape": [2], "data_offsets": [0, 8]}}',
     "bad header at `a`: duplicate field `dtype`", EIGHT)
tensors("dtype_lower_case", {"a": ("f32", [2], [0, 8])}, EIGHT,
        "bad header at `a`: dtype `f32` is not one of the format's")
tensors("dtype_unknown", {"a": ("Q4_K", [2], [0, 8])}, EIGHT,
        "bad header at `a`: dtype `Q4_K` is not one of the format's")
tensors("dtype_fnuz", {"a": ("F8_E4M3FNUZ", [8], [0, 8])}, EIGHT,
        "bad header at `a`: dtype F8_E4M3FNUZ is not supported")
tensors("dtype_e8m0", {"a": ("F8_E8M0", [8], [0, 8])}, EIGHT, "bad header at `a`: dtype F8_E8M0 is not supported")
tensors("dtype_f6", {"a": ("F6_E2M3", [8], [0, 6])}, bytes(6), "bad header at `a`: dtype F6_E2M3 is not supported")
tensors("dtype_f4", {"a": ("F4", [16], [0, 8])}, EIGHT, "bad header at `a`: dtype F4 is not supported")
tensors("dtype_c64", {"a": ("C64", [1], [0, 8])}, EIGHT, "bad header at `a`: dtype C64 is not supported")
tensors("shape_overflow", {"a": ("F32", [2**40, 2**40], [0, 8])}, EIGHT,
        "bad header at `a`: shape [1099511627776, 1099511627776] is larger than any memory")
tensors("shape_overflow_behind_zero", {"a": ("F32", [0, 2**40, 2**40], [0, 0])}, b"",
        "bad header at `a`: shape [0, 1099511627776, 1099511627776] is larger than any memory")
tensors("shape_negative", {"a": ("F32", [-2], [0, 8])}, EIGHT, "bad header at `a`: invalid value: integer `-2`")
tensors("shape_float", {"a": ("F32", [2.0], [0, 8])}, EIGHT, "bad header at `a`: invalid type: floating point `2.0`")
tensors("shape_rank_9", {"a": ("F32", [1] * 8 + [2], [0, 8])}, EIGHT, "bad header at `a`: 9 dimensions, at most 8")
tensors("shape_empty_and_rank_0", {"a": ("F32", [0, 3], [0, 0]), "b": ("F32", [], [0, 4])}, bytes(4), None)
tensors("offsets_float", {"a": ("F32", [2], [0, 8.0])}, EIGHT, "bad header at `a`: invalid type: floating point `8.0`")
tensors("offsets_negative", {"a": ("F32", [2], [-8, 0])}, EIGHT, "bad header at `a`: invalid value: integer `-8`")
tensors("offsets_strings", {"a": ("F32", [2], ["0", "8"])}, EIGHT, 'bad header at `a`: invalid type: string "0"')
tensors("offsets_one", {"a": ("F32", [2], [8])}, EIGHT, "bad header at `a`: invalid length 1")
tensors("offsets_three", {"a": ("F32", [2], [0, 8, 8])}, EIGHT, "bad header at `a`: trailing characters")
tensors("offsets_reversed", {"a": ("F32", [2], [8, 0])}, EIGHT,
        "bad header at `a`: data_offsets end before they begin: [8, 0]")
tensors("offsets_too_few", {"a": ("F32", [2], [0, 4])}, EIGHT,
        "bad header at `a`: data_offsets span 4 bytes, shape [2] of F32 needs 8")
tensors("offsets_huge", {"a": ("U8", [2**63], [0, 2**63])}, EIGHT, "truncated: got 8 of 9223372036854775808 bytes",
        AGAIN)

RULE = "6.2 the tensors tile the data"
tensors("hole", {"a": F32, "b": ("F32", [2], [12, 20])}, bytes(20),
        "tensor `b` leaves a hole before it: it begins at byte 12, expected 8")
tensors("hole_at_start", {"a": ("F32", [2], [4, 12])}, bytes(12),
        "tensor `a` leaves a hole before it: it begins at byte 4, expected 0")
tensors("overlap", {"a": F32, "b": ("F32", [2], [4, 12])}, bytes(12),
        "tensor `b` overlaps another tensor: it begins at byte 4, expected 8")
tensors("same_range", {"a": F32, "b": F32}, EIGHT,
        "tensor `b` overlaps another tensor: it begins at byte 0, expected 8")
tensors("truncated", {"a": F32, "b": ("F32", [2], [8, 16])}, bytes(13), "truncated: got 13 of 16 bytes of tensors",
        AGAIN)
tensors("trailing", {"a": F32}, bytes(9), "1 bytes after the last tensor")
tensors("no_data", {"a": F32}, b"", "truncated: got 0 of 8 bytes of tensors", AGAIN)


# Adapters for the small SD 1 model of tests/golden/pipeline/sd1.

SIZES = {"F64": 8, "F32": 4, "F16": 2, "I64": 8, "U8": 1, "F8_E4M3": 1}
ONES = {"F64": struct.pack("<d", 0.5), "F32": struct.pack("<f", 0.5), "F16": b"\x00\x38", "I64": struct.pack("<q", 1),
        "U8": b"\x01", "F8_E4M3": b"\x30"}


def t(shape, dtype="F32", first=None, every=None):
    """A tensor of halves; `first` or `every` is another f32."""
    count = 1
    for d in shape:
        count *= d
    value = ONES[dtype] if every is None else struct.pack("<f", every)
    data = value * count
    return dtype, shape, data if first is None else struct.pack("<f", first) + data[4:]


def saved(entries, metadata=None):
    header, data = {} if metadata is None else {"__metadata__": metadata}, b""
    for key, (dtype, shape, values) in entries.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    return framed(json.dumps(header), data)


def adapter(name, entries, says, metadata=None, module=None, **more):
    """A file of one module's parameters by suffix, or of whole keys where `module` is empty."""
    module = QUERY if module is None else module
    entries = {module + suffix: tensor for suffix, tensor in entries.items()}
    says = says if says is None or module == "" else [*([says] if isinstance(says, str) else says), module]
    seed(f"adapter/{name}.safetensors", saved(entries, metadata), "adapter", RULE, says, **more)


BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
QUERY, KEY, CONV, NORM = BLOCK + "attn1_to_q", BLOCK + "attn2_to_k", "lora_unet_down_blocks_0_resnets_0_conv1", BLOCK + "norm1"
DOWN, UP = {".lora_down.weight": t([2, 8])}, {".lora_up.weight": t([8, 2])}
LORA = DOWN | UP


def scalar(x, dtype="F32"):
    return dtype, [], struct.pack("<q", x) if dtype == "I64" else struct.pack("<f", x)


RULE = "6.3 incomplete module"
adapter("down_alone", DOWN, "incomplete: the down factor has no up factor")
adapter("up_alone", UP, "incomplete: the up factor has no down factor")
adapter("loha_half", {".hada_w1_a": t([8, 2])}, "`.hada_w1_b` is missing")
LOHA = {".hada_w1_a": t([2, 8]), ".hada_w1_b": t([2, 8]), ".hada_w2_a": t([2, 8]), ".hada_w2_b": t([2, 8])}
adapter("loha_one_core", LOHA | {".hada_t1": t([2, 2, 3, 3])}, "`.hada_t2` is missing", module=CONV)
adapter("lokr_half", {".lokr_w1": t([2, 2])}, "`.lokr_w2` is missing")
adapter("lokr_factor_half", {".lokr_w1": t([2, 2]), ".lokr_w2_a": t([4, 1])}, "`.lokr_w2_b` is missing")
adapter("glora_half", {".a1.weight": t([8, 2]), ".b1.weight": t([8, 2])}, "`.a2.weight` is missing")
adapter("dora_alone", {".dora_scale": t([8, 1])}, "stands alone, without factors")
adapter("alpha_alone", {".alpha": scalar(1.0)}, "stands alone, without factors")
adapter("ia3_half", {".on_input": scalar(1.0)}, "incomplete: `.weight` is missing")

RULE = "6.3 ranks that differ"
adapter("rank_mismatch", {".lora_down.weight": t([3, 8])} | UP,
        "the rank is 3 in the down factor and 2 in the up factor ([3, 8], [8, 2])")
adapter("mid_rank", {".lora_down.weight": t([2, 8, 1, 1]), ".lora_up.weight": t([8, 2, 1, 1]),
                     ".lora_mid.weight": t([2, 1, 3, 3])},
        "the core has shape [2, 1, 3, 3], expected [2, 2, kh, kw]", module=CONV)
adapter("mid_kernel", {".lora_down.weight": t([2, 8, 1, 1]), ".lora_up.weight": t([8, 2, 1, 1]),
                       ".lora_mid.weight": t([2, 2, 1, 9])},
        "the factors (up [8, 2, 1, 1], mid [2, 2, 1, 9], down [2, 8, 1, 1]) do not fit the model's weight [8, 8, 3, 3]",
        module=CONV)
adapter("loha_ranks", {".hada_w1_a": t([8, 2]), ".hada_w1_b": t([3, 8]), ".hada_w2_a": t([8, 2]),
                       ".hada_w2_b": t([2, 8])},
        "(`.hada_w1_a` [8, 2], `.hada_w1_b` [3, 8]) do not fit the model's weight [8, 8]")
adapter("lokr_ranks", {".lokr_w1": t([2, 2]), ".lokr_w2_a": t([4, 2]), ".lokr_w2_b": t([1, 4])},
        "the rank is 2 in `.lokr_w2_a` and 1 in `.lokr_w2_b`")

RULE = "6.3 not the base weight's shape"
adapter("other_inputs", {".lora_down.weight": t([2, 9])} | UP,
        "the factors (up [8, 2], down [2, 9]) do not fit the model's weight [8, 8]")
adapter("other_outputs", DOWN | {".lora_up.weight": t([9, 2])},
        "the factors (up [9, 2], down [2, 8]) do not fit the model's weight [8, 8]")
adapter("never_broadcast", {".lora_down.weight": t([2, 1])} | UP, "do not fit the model's weight [8, 8]")
adapter("other_kernel", {".lora_down.weight": t([2, 8, 1, 9]), ".lora_up.weight": t([8, 2, 1, 1])},
        "do not fit the model's weight [8, 8, 3, 3]", module=CONV)
for model, width, title in [("sd1", 768, "SD 1.x"), ("sd2", 1024, "SD 2.x"), ("refiner", 1280, "the SDXL refiner")]:
    adapter(f"family_{model}", {KEY + ".lora_down.weight": t([1, width], "F8_E4M3"), KEY + ".lora_up.weight": t([8, 1])},
            f"this adapter was trained for {title} (cross-attention {width}), the model is another model "
            "(cross-attention 16)", module="", allow_unmatched=True)
adapter("diff_shape", {".diff": t([8, 9])}, "`.diff` has shape [8, 9], the model's weight is [8, 8]")
adapter("diff_b_shape", LORA | {".diff_b": t([9])}, "`.diff_b` has shape [9], expected [8]")
adapter("dora_length", LORA | {".dora_scale": t([5, 1])}, "the DoRA magnitude has shape [5, 1]")
adapter("norm_on_matrix", {".w_norm": t([8])}, "are for normalisations")
adapter("lora_on_norm", LORA, "for a normalisation, whose weight is [8]", module=NORM)
adapter("residual_outside", LORA | {".bias_indices": ("I64", [2, 1], struct.pack("<2q", 8, 0)), ".bias_values": t([1]),
                                    ".bias_size": ("I64", [2], struct.pack("<2q", 8, 8))},
        "`.bias_indices` names place (8, 0), the weight is 8 by 8")
adapter("residual_wraps", LORA | {".bias_indices": ("I64", [2, 1], struct.pack("<2q", 2**61, 0)),
                                  ".bias_values": t([1]), ".bias_size": ("I64", [2], struct.pack("<2q", 8, 8))},
        "`.bias_indices` names place (2305843009213693952, 0), the weight is 8 by 8")
adapter("residual_size", LORA | {".bias_indices": ("I64", [2, 1], bytes(16)), ".bias_values": t([1]),
                                 ".bias_size": ("I64", [2], struct.pack("<2q", 2**40, 2**40))},
        "`.bias_size` is [1099511627776, 1099511627776], expected [8, 8]")

RULE = "6.3 rank 0, empty tensors, more than four dimensions"
adapter("rank_0", {".lora_down.weight": t([0, 8]), ".lora_up.weight": t([8, 0])},
        "has shape [0, 8], expected one to four dimensions, none of them 0")
adapter("empty_diff", {".diff": t([0])}, "has shape [0], expected one to four dimensions, none of them 0")
adapter("five_dimensions", {".lora_down.weight": t([2, 8, 1, 1, 1])} | UP,
        "has shape [2, 8, 1, 1, 1], expected one to four dimensions")
adapter("scalar_factor", {".diff": t([])}, "has shape [], expected one to four dimensions")

RULE = "6.3 NaN, infinity, alphas that are no scale"
adapter("nan", {".lora_down.weight": t([2, 8], first=float("nan"))} | UP, "holds NaN or infinity")
adapter("infinity", DOWN | {".lora_up.weight": t([8, 2], first=float("inf"))}, "holds NaN or infinity")
adapter("alpha_nan", LORA | {".alpha": scalar(float("nan"))}, ".alpha` is NaN")
adapter("alpha_infinite", LORA | {".alpha": scalar(float("inf"))}, ".alpha` is inf")
adapter("alpha_negative", LORA | {".alpha": scalar(-2.0)},
        "alpha is -2 at rank 2, expected a number from 0 to 10000 times the rank")
adapter("scale_negative", LORA | {".scale": scalar(-3.0)}, "alpha is -6 at rank 2")
adapter("alpha_three", LORA | {".alpha": t([3])}, ".alpha` has shape [3], expected one number")
adapter("alpha_empty", LORA | {".alpha": t([0])}, ".alpha` has shape [0], expected one number")
adapter("alpha_huge", LORA | {".alpha": scalar(2e9)}, "alpha is 2000000000 at rank 2")
adapter("alpha_tiny", LORA | {".alpha": scalar(1e-9)}, None, warns="almost no effect")
adapter("alpha_zero", LORA | {".alpha": scalar(0.0)}, None, warns="alpha is 0")
adapter("f16_overflow", {".lora_down.weight": t([2, 8], every=1e3), ".lora_up.weight": t([8, 2], every=1e3)},
        "overflows F16 in unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", fused="f16")
manifest[-1]["says"].remove(QUERY)

RULE = "6.3 dtypes of factors"
adapter("integer_factor", {".lora_down.weight": t([2, 8], "I64")} | UP, "is stored as I64, expected floats")
adapter("packed_factor", {".lora_down.weight": t([2, 8], "U8")} | UP, "is stored as U8, expected floats")
adapter("mixed_dtypes", {".lora_down.weight": t([2, 8], "F64"), ".lora_up.weight": t([8, 2], "F16"),
                         ".alpha": scalar(1, "I64")}, None)

RULE = "6.3 what matches nothing is listed"
adapter("unknown_suffix", LORA | {".surprise": t([2])}, ["1 of 3 keys were not applied", "the key ends in no known parameter"])
adapter("unknown_suffix_allowed", LORA | {".surprise": t([2])}, None, allow_unmatched=True)
adapter("unknown_layer", {QUERY + s: v for s, v in LORA.items()} | {QUERY + "x.alpha": scalar(1.0)},
        [f"`{QUERY}x.alpha`", "the nearest is `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`"], module="")
adapter("unknown_prefix", {"elsewhere." + QUERY + s: v for s, v in LORA.items()}, "nothing in this file fits the model",
        module="", allow_unmatched=True)
adapter("second_text_encoder", {"lora_te2_text_model_encoder_layers_0_mlp_fc1" + s: v for s, v in LORA.items()},
        "the model has no second text encoder", module="")
adapter("nothing_matches", {"lora_unet_input_blocks_99_9_proj_in" + s: v for s, v in LORA.items()},
        ["nothing in this file fits the model", "lora_unet_input_blocks_99_9_proj_in.lora_down.weight"], module="",
        allow_unmatched=True)
adapter("no_keys", {}, "this file holds no tensors of an adapter", module="", allow_unmatched=True)
for name, key, what in [
    ("flux", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "Flux"),
    ("transformer", "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "a transformer model (SD3, Flux)"),
    ("sd3", "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "SD3"),
    ("t5", "lora_te3_encoder_block_0.lora_down.weight", "a T5 text encoder (SD3)"),
    ("cascade", "lora_prior_unet_down_blocks_0.lora_down.weight", "Stable Cascade"),
    ("cloneofsimo", "unet:0:up", "cloneofsimo's lora"),
    ("controlnet", "control_model.input_blocks.0.0.weight", "a ControlNet"),
    ("lllite", "lllite_unet_input_blocks_4_1_attn1_to_k.down.0.weight", "a ControlNet-LLLite"),
    ("ip_adapter", "image_proj.proj.weight", "an IP-Adapter"),
    ("checkpoint", "first_stage_model.decoder.conv_in.weight", "a whole checkpoint"),
    ("embedding", "emb_params", "a textual inversion"),
]:
    adapter(f"foreign_{name}", {key: t([2, 2])}, ["this is no adapter for Stable Diffusion", what, key], module="",
            allow_unmatched=True)
for name, suffix, what in [
    ("reshape", ".reshape_weight", "a padded weight (Flux) is not supported"),
    ("lora_embedding", ".lora_embedding_A", "LoRA on embeddings is not supported"),
    ("modules_to_save", ".modules_to_save.default.weight", "PEFT's modules_to_save"),
]:
    adapter(f"unsupported_{name}", LORA | {suffix: t([2])}, what)

RULE = "6.3 one parameter under two keys"
TWIN = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
WHOLE = {QUERY + s: v for s, v in LORA.items()}
adapter("twice_different", WHOLE | {TWIN + ".lora_A.weight": t([2, 8], every=1.0)},
        ["are the same parameter with different values", QUERY, TWIN], module="")
adapter("twice_the_same", WHOLE | {TWIN + ".lora_A.weight": t([2, 8])}, None, module="")
adapter("alpha_twice", WHOLE | {QUERY + ".alpha": scalar(1.0), TWIN + ".alpha": scalar(2.0)},
        "are the same parameter with different values", module="")

RULE = "6.3 two algorithms on one module"
adapter("lora_and_loha", LORA | {".hada_w1_a": t([8, 2])}, ["two algorithms on one module", "LoRA", "LoHa"])
adapter("lora_and_full", LORA | {".diff": t([8, 8])}, "two algorithms on one module")
adapter("lokr_twice", {".lokr_w1": t([2, 2]), ".lokr_w1_a": t([2, 1]), ".lokr_w2": t([4, 4])},
        "`.lokr_w1` is stored both whole and factored")
adapter("two_magnitudes", LORA | {".dora_scale": t([8, 1]), ".lora_magnitude_vector": t([8])},
        "two DoRA magnitudes on one module")
adapter("dora_over_oft", {".oft_blocks": t([2, 4, 4]), ".dora_scale": t([8, 1])}, "a DoRA magnitude over OFT")

RULE = "6.3 factors that do not make the weight"
adapter("lokr_outputs", {".lokr_w1": t([4, 2]), ".lokr_w2": t([4, 4])}, "make 16 × 8, the model's weight is [8, 8]")
adapter("lokr_inputs", {".lokr_w1": t([2, 4]), ".lokr_w2": t([4, 4])}, "make 8 × 16, the model's weight is [8, 8]")
adapter("lokr_scale", {".lokr_w1": t([2, 2]), ".lokr_w2": t([4, 4])},
        "the scale is 1e300, expected a number from 0 to 10000",
        metadata={"lora_adapter_metadata": '{"unet.alpha": 1e300, "unet.r": 1}'})
adapter("lokr_whole_alpha", {".lokr_w1": t([2, 2]), ".lokr_w2": t([4, 4]),
                             ".alpha": ("F64", [], struct.pack("<d", 1e300))}, None)
adapter("oft_outputs", {".oft_blocks": t([3, 4, 4])}, "are not [n, b, b] with n · b = 8")
adapter("oft_not_square", {".oft_blocks": t([2, 4, 3])}, "are not [n, b, b] with n · b = 8")
adapter("boft_odd", {".oft_blocks": t([1, 2, 3, 3])}, "with b even, n · b = 8")
adapter("boft_too_far", {".oft_blocks": t([5, 4, 2, 2])}, "a multiple of b · 2^(m-1)")
adapter("oft_diag_unclear", {".oft_diag": t([2, 4, 4], every=5.0)}, "found a mean of 5.00")
adapter("oft_diag_flat", {".oft_diag": t([1, 1200, 1], "F8_E4M3")}, "expected square blocks [n, b, b]")
adapter("oft_v2_triangle", {".oft_R.weight": t([2, 4])}, "expected [n, b · (b - 1) / 2]")
adapter("oft_v2_terms", {".oft_R.weight": t([2, 6])}, "`num_cayley_neumann_terms` is 1000000000000, expected at most 64",
        metadata={"lora_adapter_metadata": '{"unet.num_cayley_neumann_terms": 1000000000000}'})
adapter("glora_ranks", {".a1.weight": t([8, 2]), ".a2.weight": t([2, 8]), ".b1.weight": t([8, 3]),
                        ".b2.weight": t([2, 8])}, "share no rank in either layout")
adapter("ia3_length", {".weight": t([5]), ".on_input": scalar(1.0)}, "are not one for each of the inputs")
adapter("rescale_length", {".oft_blocks": t([2, 4, 4]), ".rescale": t([5])}, "`.rescale` has shape [5]")

RULE = "6.3 names used as paths"
adapter("key_is_a_path", WHOLE | {"../../../../etc/passwd.alpha": scalar(1.0)}, "`../../../../etc/passwd.alpha`", module="")
adapter("bundle_is_a_path", WHOLE | {"bundle_emb.../../evil.emb_params": t([1, 16])}, None, module="")
adapter("bundle_width", WHOLE | {"bundle_emb.word.emb_params": t([1, 17])},
        ["bundled embedding `word`", "text encoder width 17"], module="")
adapter("bundle_empty_name", WHOLE | {"bundle_emb. .emb_params": t([1, 16])}, "cannot be a word of a prompt", module="")
adapter("bundle_twice", WHOLE | {"bundle_emb.word.emb_params": t([1, 16]), "bundle_emb.word.clip_l": t([1, 16])},
        "are for the same text encoder", module="")

RULE = "1.4 the config beside the factors"
for name, config, says in [
    ("not_json", "{", "metadata `lora_adapter_metadata` is not JSON"),
    ("array", "[]", "metadata `lora_adapter_metadata` must be an object, found []"),
    ("regex", '{"unet.alpha_pattern": {"(to_q|to_k)": 4}}', "has the regular expression `(to_q|to_k)`"),
    ("deep", "[" * 400, "is not JSON: recursion limit exceeded"),
]:
    adapter(f"config_{name}", WHOLE, says, metadata={"lora_adapter_metadata": config}, module="")


def peft(name, files, says):
    seed(f"adapter/{name}", files, "adapter", RULE, says)


RULE = "6.3 PEFT's folders"
CONFIG = b'{"peft_type": "LORA", "r": 2, "lora_alpha": 2}'
PEFT = saved({"base_model.model." + TWIN.removeprefix("unet.") + s: v
              for s, v in [(".lora_A.weight", t([2, 8])), (".lora_B.weight", t([8, 2]))]})
peft("peft_whole", {"adapter_config.json": CONFIG, "adapter_model.safetensors": PEFT}, None)
peft("peft_pickle", {"adapter_config.json": CONFIG, "adapter_model.bin": b"PK\x03\x04"},
     "holds its weights as a pickle, expected safetensors")
peft("peft_no_weights", {"adapter_config.json": CONFIG}, "adapter_model.safetensors: No such file")
peft("peft_config_not_json", {"adapter_config.json": b"{", "adapter_model.safetensors": PEFT},
     "adapter_config.json: is not JSON")
peft("peft_config_array", {"adapter_config.json": b"[]", "adapter_model.safetensors": PEFT},
     "adapter_config.json: holds no JSON object")
peft("peft_no_config", {"adapter_model.safetensors": PEFT}, "holds no adapter: there is neither `adapter_config.json`")


# Models: tests/golden/pipeline/sd1 with some of its files replaced or removed.

UNET = "unet/diffusion_pytorch_model"
INDEX = f"{UNET}.safetensors.index.json"
MODEL = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel", "attention_head_dim": 4, "block_out_channels": [8, 16],
    "cross_attention_dim": 16, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 1,
    "norm_num_groups": 4, "sample_size": 16, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}


def model(name, files, says, remove=()):
    files = {path: json.dumps(data).encode() if isinstance(data, (dict, list)) else data for path, data in files.items()}
    seed(f"model/{name}", files, "model", RULE, says, remove=list(remove))


def sharded(name, weight_map, says, total=24, shards=None):
    files = {f"unet/{shard}.safetensors": saved({k: t([n]) for k, n in held.items()})
             for shard, held in (shards or {"m-1": {"a": 1, "b": 2}, "m-2": {"c": 3}}).items()}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    model(name, files | {INDEX: index}, says, [f"{UNET}.safetensors"])


ONE, TWO = "m-1.safetensors", "m-2.safetensors"
BESIDE = "expected a `.safetensors` file beside the index"
RULE = "6.3 diffusers folder: the index of shards"
sharded("shard_missing", {"a": ONE, "b": ONE, "c": "m-3.safetensors"}, ["m-3.safetensors: is missing", "the index names it"])
sharded("shard_above", {"a": "../text_encoder/model.safetensors"}, BESIDE)
sharded("shard_absolute", {"a": "/etc/passwd.safetensors"}, BESIDE)
sharded("shard_drive", {"a": "C:m.safetensors"}, BESIDE)
sharded("shard_backslash", {"a": "..\\m.safetensors"}, BESIDE)
sharded("shard_nul", {"a": "a\0.safetensors"}, BESIDE)
sharded("shard_dots", {"a": ".."}, BESIDE)
sharded("shard_pickle", {"a": "m.bin"}, BESIDE)
sharded("shard_elsewhere", {"a": ONE, "b": ONE, "c": ONE}, "tensor `c` is not in `m-1.safetensors`, where the index puts it")
sharded("shard_unlisted", {"a": ONE, "c": TWO}, "tensor `b` is in a shard but not in the index")
sharded("shard_absent", {"a": ONE, "b": ONE, "c": TWO, "d": TWO}, "tensor `d` is not in `m-2.safetensors`")
sharded("shard_twice", {"a": ONE, "b": ONE, "c": TWO}, "tensor `a` is in ", 28,
        {"m-1": {"a": 1, "b": 2}, "m-2": {"a": 1, "c": 3}})
sharded("shard_total", {"a": ONE, "b": ONE, "c": TWO}, "says the tensors have 25 bytes in total, found 24", 25)
model("shard_not_an_index", {INDEX: ["a"]}, "is not an index of safetensors files", [f"{UNET}.safetensors"])

RULE = "6.3 diffusers folder: which weights"
STUB = {f"{UNET}.bin": b"PK\x03\x04"}
model("only_pickle", STUB, "has only pickled weights (`.bin`), expected `.safetensors`", [f"{UNET}.safetensors"])
model("pickle_renamed", {f"{UNET}.safetensors": b"PK\x03\x04"}, "is a zip archive")
model("no_weights", {}, "has no `diffusion_pytorch_model.safetensors`", [f"{UNET}.safetensors"])
model("variant_beside", {f"{UNET}.fp16.safetensors": saved({"half": t([1])})}, None)

RULE = "6.3 model_index.json"
model("no_index", {}, "there is no `model_index.json`", ["model_index.json"])
model("index_not_json", {"model_index.json": b"{"}, "model_index.json: is not valid JSON")
model("other_pipeline", {"model_index.json": MODEL | {"_class_name": "FluxPipeline"}}, "is a FluxPipeline")
model("custom_python", {"model_index.json": MODEL | {"_class_name": ["my_code", "Mine"]}},
      "asks for Python code of its own, which is not run")
model("other_unet", {"model_index.json": MODEL | {"unet": ["diffusers", "UNet3DConditionModel"]}},
      '`unet` is a "UNet3DConditionModel", expected UNet2DConditionModel')
model("other_vae", {"model_index.json": MODEL | {"vae": ["diffusers", "AutoencoderTiny"]}},
      '`vae` is a "AutoencoderTiny", expected AutoencoderKL')
model("custom_unet", {"model_index.json": MODEL | {"unet": ["my_code", "MyUNet"]}}, '`unet` is a "MyUNet"')
model("no_unet", {"model_index.json": MODEL | {"unet": [None, None]}}, "the model lacks its `unet`")

RULE = "6.3 config.json"
model("no_config", {}, "unet/config.json: is missing", ["unet/config.json"])
model("config_not_json", {"unet/config.json": b"{"}, "config.json: is not valid JSON")
model("channels", {"unet/config.json": UNET_CONFIG | {"block_out_channels": [16385, 16]}},
      "`block_out_channels` is 16385, at most 16384 is believed")
model("channels_absurd", {"unet/config.json": UNET_CONFIG | {"block_out_channels": [8, 2**63]}},
      "`block_out_channels` is 9223372036854775808, at most 16384 is believed")
model("layers", {"unet/config.json": UNET_CONFIG | {"layers_per_block": 1025}}, "`layers_per_block` is 1025, at most 1024")
model("channels_zero", {"unet/config.json": UNET_CONFIG | {"block_out_channels": [0, 16]}},
      "tensor `time_embedding.linear_1.weight` has shape [32, 8], expected [0, 0]")
model("channels_negative", {"unet/config.json": UNET_CONFIG | {"block_out_channels": [-8, 16]}},
      "UNet config: invalid value: integer `-8`")
model("no_blocks", {"unet/config.json": UNET_CONFIG | {"block_out_channels": []}}, "block_out_channels")
model("groups_zero", {"unet/config.json": UNET_CONFIG | {"norm_num_groups": 0}}, "0 groups (`norm_num_groups`)")
model("groups_that_do_not_divide", {"unet/config.json": UNET_CONFIG | {"norm_num_groups": 3}},
      "3 groups (`norm_num_groups`) do not divide 8 channels")
model("heads_zero", {"unet/config.json": UNET_CONFIG | {"attention_head_dim": 0}}, "0 attention heads do not divide 8 channels")
model("not_the_tensors", {"unet/config.json": UNET_CONFIG | {"block_out_channels": [16, 16]}},
      "tensor `time_embedding.linear_1.weight` has shape [32, 8], expected [64, 16]")
model("tensors_missing", {"unet/config.json": UNET_CONFIG | {"layers_per_block": 2}}, ["is missing", "resnets.1"])
model("config_as_it_is", {"unet/config.json": UNET_CONFIG}, None)

seeds["manifest.json"] = ("[\n" + ",\n".join(" " + json.dumps(line, ensure_ascii=False) for line in manifest) + "\n]\n").encode()


def committed():
    return {p.relative_to(HERE).as_posix(): p for p in HERE.rglob("*") if p.is_file() and p.suffix != ".py"}


def main():
    there = committed()
    if "--check" in sys.argv[1:]:
        stale = sorted(name for name in seeds | there
                       if name not in seeds or name not in there or there[name].read_bytes() != seeds[name])
        print("\n".join(stale) if stale else f"{len(manifest)} seeds are as written")
        sys.exit(1 if stale else 0)
    for name in sorted(there.keys() - seeds.keys()):
        there[name].unlink()
    for name, data in seeds.items():
        (HERE / name).parent.mkdir(parents=True, exist_ok=True)
        (HERE / name).write_bytes(data)


main()
