//! What the reader does with anything but a sound file; malformed files one by one are in `tests/hostile.rs`.

use std::{collections::BTreeMap, error::Error};

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use scumble::weights::{reader::SafetensorsFile, writer::SafetensorsWriter};

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

/// Headers that no small file can have.
#[test]
fn headers_of_absurd_size_are_refused() {
    let framed = |header: String| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let entry = |i: usize| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let many = (0..=100_000).map(entry).collect::<Vec<_>>().join(",");
    let long = "x".repeat((16 << 20) + 1);
    for (header, expected) in [
        (format!("{{{many}}}"), "bad header at `100000`: more than 100000 tensors"),
        (format!(r#"{{"__metadata__":{{"a":"{long}"}}}}"#), "the value of `a` is too long"),
    ] {
        let error = SafetensorsFile::from_bytes("test.safetensors", framed(header)).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
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
