//! Malformed files: each is refused with its own message, and none can make the reader panic.

use std::{collections::BTreeMap, error::Error, path::PathBuf};

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use scumble::weights::{reader::SafetensorsFile, writer::SafetensorsWriter};

/// File name without its ending, what the message must say, and what the hint must say.
const CASES: &[(&str, &str, &str)] = &[
    ("empty", "is empty", "get it again"),
    ("short", "is 3 bytes long", "get it again"),
    ("zip", "is a zip archive", "can run any code"),
    ("pickle", "is a Python pickle", "can run any code"),
    ("pickle_protocol_4", "is a Python pickle", "can run any code"),
    ("tar", "is a tar archive", "can run any code"),
    ("gguf", "is a GGUF file", ".safetensors"),
    ("hdf5", "is an HDF5 (Keras) file", ".safetensors"),
    ("login_page", "is a web page", "log in"),
    ("html", "is a web page", "log in"),
    ("json_error", "is an error message from a web site", "log in"),
    ("json", "is a JSON text", ".safetensors"),
    ("lfs_pointer", "is a Git LFS pointer", "git lfs pull"),
    ("gzip", "is a gzip archive", "unpack"),
    ("png", "is a PNG picture", ".safetensors"),
    ("noise", "not a safetensors file: the header claims", ""),
    ("length_zero", "the header claims 0 bytes, at least 2 are needed", ""),
    ("length_one", "the header claims 1 bytes, at least 2 are needed", ""),
    ("length_bomb", "the header claims 9223372036854775808 bytes, at most 100000000", ""),
    ("length_above_limit", "the header claims 100000001 bytes, at most 100000000", ""),
    ("length_above_file", "truncated inside the header: got 7 of 640 bytes", "get it again"),
    ("bom", "the header does not start with `{`", ""),
    ("leading_space", "the header does not start with `{`", ""),
    ("array", "the header does not start with `{`", ""),
    ("not_utf8", "the header is not UTF-8", ""),
    ("not_json", "bad header at `a`: expected value", ""),
    ("two_objects", "bad header: trailing characters", ""),
    ("deep", "bad header at `a`: invalid type", ""),
    ("metadata_nested", "bad header at `__metadata__`: invalid type: map, expected a string", ""),
    ("metadata_number", "bad header at `__metadata__`: invalid type: integer `1`, expected a string", ""),
    ("metadata_as_tensor", "bad header at `__metadata__`: invalid type: sequence, expected a string", ""),
    ("metadata_twice", "bad header at `__metadata__`: the key appears twice", ""),
    ("metadata_key_twice", "bad header at `__metadata__`: the key `a` appears twice", ""),
    ("key_twice", "bad header at `a`: the key appears twice", ""),
    ("key_empty", "a key is empty", ""),
    ("key_control", "key \"a\\0b\" has control characters", ""),
    ("key_long", "a key is 1025 bytes long, at most 1024", ""),
    ("field_missing", "bad header at `a`: missing field `data_offsets`", ""),
    ("field_unknown", "bad header at `a`: unknown field `code`", ""),
    ("field_twice", "bad header at `a`: duplicate field `dtype`", ""),
    ("dtype_lower_case", "bad header at `a`: dtype `f32` is not one of the format's", ""),
    ("dtype_unknown", "bad header at `a`: dtype `Q4_K` is not one of the format's", ""),
    ("dtype_fnuz", "bad header at `a`: dtype F8_E4M3FNUZ is not supported", ""),
    ("dtype_f4", "bad header at `a`: dtype F4 is not supported", ""),
    (
        "shape_overflow",
        "bad header at `a`: shape [1099511627776, 1099511627776] is larger than any memory",
        "",
    ),
    ("shape_negative", "bad header at `a`: invalid value: integer `-2`", ""),
    ("shape_float", "bad header at `a`: invalid type: floating point `2.0`", ""),
    ("shape_rank_9", "bad header at `a`: 9 dimensions, at most 8", ""),
    ("offsets_float", "bad header at `a`: invalid type: floating point `8.0`", ""),
    ("offsets_negative", "bad header at `a`: invalid value: integer `-8`", ""),
    ("offsets_strings", "bad header at `a`: invalid type: string \"0\"", ""),
    ("offsets_one", "bad header at `a`: invalid length 1", ""),
    ("offsets_three", "bad header at `a`: trailing characters", ""),
    ("offsets_reversed", "bad header at `a`: data_offsets end before they begin: [8, 0]", ""),
    ("offsets_too_few", "bad header at `a`: data_offsets span 4 bytes, shape [2] of F32 needs 8", ""),
    ("offsets_huge", "truncated: got 8 of 9223372036854775808 bytes", "get it again"),
    ("hole", "tensor `b` leaves a hole before it: it begins at byte 12, expected 8", ""),
    ("hole_at_start", "tensor `a` leaves a hole before it: it begins at byte 4, expected 0", ""),
    ("overlap", "tensor `b` overlaps another tensor: it begins at byte 4, expected 8", ""),
    ("same_range", "tensor `b` overlaps another tensor: it begins at byte 0, expected 8", ""),
    ("truncated", "truncated: got 13 of 16 bytes of tensors", "get it again"),
    ("trailing", "1 bytes after the last tensor", ""),
    ("no_data", "truncated: got 0 of 8 bytes of tensors", "get it again"),
];

#[test]
fn every_malformed_file_is_refused_with_its_message() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/hostile");
    let mut wrong = Vec::new();
    for (name, message, hint) in CASES {
        let path = folder.join(format!("{name}.safetensors"));
        for opened in [SafetensorsFile::open(&path), SafetensorsFile::read(&path)] {
            let Err(error) = opened else {
                wrong.push(format!("{name} was accepted"));
                continue;
            };
            let text = error.to_string();
            let names_the_file = text.starts_with(&path.display().to_string());
            if !(names_the_file && text.contains(message) && error.hint().unwrap_or_default().contains(hint))
            {
                wrong.push(format!("{name}: {text}\n  hint: {:?}\n  expected: {message}", error.hint()));
            }
        }
    }
    let files = std::fs::read_dir(&folder)?
        .flatten()
        .filter(|e| e.path().extension().is_some_and(|e| e == "safetensors"));
    assert_eq!(files.count(), CASES.len(), "a file has no line in the table");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn folders_and_pipes_are_no_weights() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    for opened in [SafetensorsFile::open(folder.path()), SafetensorsFile::read(folder.path())] {
        assert!(opened.expect_err("a folder").to_string().contains("is a folder"));
    }
    #[cfg(unix)]
    {
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status()?.success());
        assert!(SafetensorsFile::open(&pipe).expect_err("a pipe").to_string().contains("not a regular file"));
    }
    assert!(SafetensorsFile::open(folder.path().join("none")).is_err());
    Ok(())
}

fn valid() -> Vec<u8> {
    let make = || -> Result<Vec<u8>, Box<dyn Error>> {
        let a = Tensor::arange(0f32, 6., &Device::Cpu)?.reshape((2, 3))?;
        let b = a.to_dtype(DType::F16)?;
        let metadata = BTreeMap::from([("ss_network_dim".to_string(), "4".to_string())]);
        Ok(SafetensorsWriter::new([("a.weight", &a), ("b.weight", &b)])?.to_bytes(&metadata)?)
    };
    make().unwrap_or_default()
}

/// Opens, and where that works reads everything: whatever the bytes are, the answer is a value or an error.
fn exercise(bytes: Vec<u8>) -> Result<(), TestCaseError> {
    let Ok(file) = SafetensorsFile::from_bytes("test.safetensors", bytes) else { return Ok(()) };
    let names: Vec<String> = file.names().map(String::from).collect();
    for name in names {
        let tensor = file.tensor(&name).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(tensor.dims(), file.header().tensors[&name].shape.as_slice());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = valid();
        prop_assert!(bytes.len() > 100);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        exercise(bytes)?;
    }

    #[test]
    fn cut_and_lengthened_files_are_refused(keep in any::<prop::sample::Index>(), extra in prop::collection::vec(any::<u8>(), 0..9)) {
        let whole = valid();
        let mut bytes = whole[..keep.index(whole.len())].to_vec();
        bytes.extend(extra);
        if bytes != whole && bytes.len() != whole.len() {
            prop_assert!(SafetensorsFile::from_bytes("test.safetensors", bytes).is_err());
        }
    }

    #[test]
    fn any_header_is_survived(header in "\\PC{0,60}", data in prop::collection::vec(any::<u8>(), 0..16)) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        exercise(bytes)?;
    }
}
