//! The header of a safetensors file: parsed and checked before one tensor byte is touched.
//!
//! The [format](https://github.com/huggingface/safetensors#format): an u64 length `N`, `N` bytes of JSON, then the
//! tensors' bytes without holes. What the reference reader lets pass is refused here too: duplicate keys, which it
//! resolves silently to the last one, and keys nobody could type.

use std::{cell::RefCell, collections::BTreeMap, fmt, ops::Range, path::Path};

use serde::{
    Deserialize, Deserializer as _,
    de::{Error as _, MapAccess, Visitor},
};

use super::dtype::StoredDtype;
use crate::error::{Error, Result};

/// Longest header the reference reader accepts.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_TENSORS: usize = 100_000;
const MAX_KEY_BYTES: usize = 1024;
const MAX_METADATA_VALUE_BYTES: usize = 16 << 20;
const MAX_RANK: usize = 8;

/// What a file says it holds; every claim in it has been checked against the file's length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// The `__metadata__` entry: training record, model specification.
    pub metadata: BTreeMap<String, String>,
    /// Every tensor by its key.
    pub tensors: BTreeMap<String, Entry>,
    /// Where the tensors' bytes begin in the file.
    pub data_start: usize,
}

/// One tensor of a [`Header`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As stored.
    pub dtype: StoredDtype,
    /// Row-major.
    pub shape: Vec<usize>,
    /// Where its bytes are, counted from the start of the file.
    pub range: Range<usize>,
}

impl Header {
    /// Reads the header of a file of which `bytes` is the whole, or at least the beginning up to the header's end;
    /// `file_bytes` is the length of the whole. `path` is for messages.
    ///
    /// # Errors
    /// For every way a header can lie; the message names the key where there is one.
    pub fn parse(path: &Path, bytes: &[u8], file_bytes: u64) -> Result<Self> {
        let header_bytes = checked_length(path, bytes, file_bytes)?;
        let data_start = 8 + header_bytes;
        let text = bytes.get(8..data_start).unwrap_or_default();
        if text.first() != Some(&b'{') {
            return Err(not_safetensors(path, "the header does not start with `{`"));
        }
        let text = std::str::from_utf8(text).map_err(|_| Error::file(path, "the header is not UTF-8"))?;
        let raw = RawHeader::parse(text).map_err(|message| Error::file(path, message))?;

        let data_bytes = file_bytes - data_start as u64;
        check_tiling(path, &raw, data_bytes)?;
        let tensors = raw
            .tensors
            .into_iter()
            .map(|(key, mut entry)| {
                entry.range = entry.range.start + data_start..entry.range.end + data_start;
                (key, entry)
            })
            .collect();
        Ok(Self { metadata: raw.metadata, tensors, data_start })
    }
}

/// The header's length, known to fit into the file: an attacker's 2^63 must not be allocated.
fn checked_length(path: &Path, bytes: &[u8], file_bytes: u64) -> Result<usize> {
    let Some(length) = bytes.first_chunk::<8>() else {
        return Err(not_safetensors(path, &format!("{file_bytes} bytes are too few")));
    };
    let length = u64::from_le_bytes(*length);
    let left = file_bytes.saturating_sub(8);
    if length > MAX_HEADER_BYTES {
        let message = format!("the header claims {length} bytes, at most {MAX_HEADER_BYTES} are allowed");
        return Err(not_safetensors(path, &message));
    }
    if length > left {
        let message = format!("truncated inside the header: got {left} of {length} bytes");
        return Err(Error::file(path, message).with_hint("the download was interrupted; get it again"));
    }
    if length < 2 {
        return Err(not_safetensors(
            path,
            &format!("the header claims {length} bytes, at least 2 are needed"),
        ));
    }
    // Below 100 MB, so it fits every usize.
    Ok(length as usize)
}

fn not_safetensors(path: &Path, reason: &str) -> Error {
    Error::file(path, format!("is not a safetensors file: {reason}"))
}

/// Sorted by offset the tensors must cover the data exactly: no holes, no overlaps, nothing missing, nothing left.
fn check_tiling(path: &Path, raw: &RawHeader, data_bytes: u64) -> Result<()> {
    let mut spans: Vec<(&Range<usize>, &str)> =
        raw.tensors.iter().map(|(key, entry)| (&entry.range, key.as_str())).collect();
    spans.sort_by_key(|(range, _)| (range.start, range.end));
    let mut end = 0;
    for (range, key) in spans {
        if range.start != end {
            let what = if range.start > end { "leaves a hole before it" } else { "overlaps another tensor" };
            let message = format!("tensor `{key}` {what}: it begins at byte {}, expected {end}", range.start);
            return Err(Error::file(path, message));
        }
        end = range.end;
    }
    let end = end as u64;
    if end > data_bytes {
        let message = format!("truncated: got {data_bytes} of {end} bytes of tensors");
        return Err(Error::file(path, message).with_hint("the download was interrupted; get it again"));
    }
    if end < data_bytes {
        return Err(Error::file(path, format!("{} bytes after the last tensor", data_bytes - end)));
    }
    Ok(())
}

/// The JSON as it stands; ranges still count from the start of the data.
#[derive(Debug, Default)]
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Entry>,
}

impl RawHeader {
    fn parse(text: &str) -> Result<Self, String> {
        let visitor = HeaderVisitor { key: RefCell::default() };
        let mut json = serde_json::Deserializer::from_str(text);
        let header = json.deserialize_map(&visitor).and_then(|header| json.end().map(|()| header));
        header.map_err(|e| {
            let key = visitor.key.borrow();
            if key.is_empty() { format!("bad header: {e}") } else { format!("bad header at `{key}`: {e}") }
        })
    }
}

/// Reads the one JSON object key by key, because a map type would lose duplicates.
struct HeaderVisitor {
    /// The key being read, for the message.
    key: RefCell<String>,
}

impl<'de> Visitor<'de> for &HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        let mut has_metadata = false;
        while let Some(key) = map.next_key::<String>()? {
            check_key(&key).map_err(A::Error::custom)?;
            self.key.replace(key.clone());
            if key == "__metadata__" {
                if has_metadata {
                    return Err(A::Error::custom("the key appears twice"));
                }
                has_metadata = true;
                header.metadata = map.next_value::<Metadata>()?.0;
                continue;
            }
            let entry = map.next_value::<RawEntry>()?.check().map_err(A::Error::custom)?;
            if header.tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            if header.tensors.insert(key, entry).is_some() {
                return Err(A::Error::custom("the key appears twice"));
            }
        }
        self.key.take();
        Ok(header)
    }
}

fn check_key(key: &str) -> Result<(), String> {
    if key.is_empty() {
        return Err("a key is empty".into());
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(format!("a key is {} bytes long, at most {MAX_KEY_BYTES} are allowed", key.len()));
    }
    if key.chars().any(char::is_control) {
        return Err(format!("key {key:?} has control characters"));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawEntry {
    fn check(self) -> Result<Entry, String> {
        let dtype = StoredDtype::parse(&self.dtype)?;
        if self.shape.len() > MAX_RANK {
            return Err(format!("{} dimensions, at most {MAX_RANK} are allowed", self.shape.len()));
        }
        // Counted as if no dimension were 0: strides are products of the others, and must not overflow either.
        let bytes = self
            .shape
            .iter()
            .try_fold(dtype.size_bytes() as u64, |n, d| n.checked_mul((*d).max(1)))
            .ok_or_else(|| format!("shape {:?} is larger than any memory", self.shape))?;
        let bytes = if self.shape.contains(&0) { 0 } else { bytes };
        let (begin, end) = self.data_offsets;
        let Some(found) = end.checked_sub(begin) else {
            return Err(format!("data_offsets end before they begin: [{begin}, {end}]"));
        };
        if found != bytes {
            let (shape, name) = (&self.shape, dtype.name());
            return Err(format!("data_offsets span {found} bytes, shape {shape:?} of {name} needs {bytes}"));
        }
        let size = |n: u64| usize::try_from(n).map_err(|_| format!("{n} does not fit this machine"));
        Ok(Entry {
            dtype,
            shape: self.shape.iter().map(|d| size(*d)).collect::<Result<_, _>>()?,
            range: size(begin)?..size(end)?,
        })
    }
}

/// String to string, without duplicates.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MetadataVisitor;
        impl<'de> Visitor<'de> for MetadataVisitor {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut metadata = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if value.len() > MAX_METADATA_VALUE_BYTES {
                        return Err(A::Error::custom(format!("the value of `{key}` is too long")));
                    }
                    if let Some(key) = metadata.insert(key.clone(), value).map(|_| key) {
                        return Err(A::Error::custom(format!("the key `{key}` appears twice")));
                    }
                }
                Ok(Metadata(metadata))
            }
        }
        deserializer.deserialize_map(MetadataVisitor)
    }
}
