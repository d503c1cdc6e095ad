//! The same tensors under another header's metadata.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use serde_json::{Map, Value, json};

use super::{reader::SafetensorsFile, writer::framed};
use crate::{error::Result, files};

/// Writes `file` with other metadata, atomically; it may go to where it came from. The tensors' bytes, and so the hash
/// over them, stay.
///
/// # Errors
/// If the file cannot be written.
pub fn write(
    file: &SafetensorsFile,
    metadata: &BTreeMap<String, String>,
    out: impl AsRef<Path>,
) -> Result<()> {
    let start = file.header().data_start;
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut tensors: Vec<_> = file.header().tensors.iter().collect();
    tensors.sort_by_key(|(name, entry)| (entry.range.start, entry.range.end, *name));
    for (name, entry) in tensors {
        let range = [entry.range.start - start, entry.range.end - start];
        header.insert(
            name.clone(),
            json!({ "dtype": entry.dtype.name(), "shape": entry.shape, "data_offsets": range }),
        );
    }
    files::write_atomic(out, |out| {
        out.write_all(&framed(&Value::from(header)))?;
        out.write_all(file.data())
    })
}
