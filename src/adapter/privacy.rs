//! What a file's metadata says of the machine it was made on, taken out.

use serde_json::Value;

use super::Metadata;

/// Entries that are nothing but places on the trainer's disk, or settings full of them.
const REMOVED: &[&str] = &[
    "ss_dataset_dirs",
    "ss_reg_dataset_dirs",
    "ss_datasets",
    "ss_session_id",
    "ss_output_dir",
    "ss_logging_dir",
    "ss_config_file",
    "ot_config",
];

/// One thing that was taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redaction {
    /// The entry.
    pub key: String,
    /// What is left of its value; `None` if the entry is gone.
    pub left: Option<String>,
}

/// Removes entries that hold places on a disk; in all others, leaves the last name of every absolute path.
pub fn strip_private(metadata: &mut Metadata) -> Vec<Redaction> {
    let mut redactions = Vec::new();
    for key in REMOVED {
        if metadata.0.remove(*key).is_some() {
            redactions.push(Redaction { key: (*key).to_string(), left: None });
        }
    }
    for (key, value) in &mut metadata.0 {
        let cleaned = match serde_json::from_str::<Value>(value) {
            Ok(mut json @ (Value::Object(_) | Value::Array(_))) => clean(&mut json).then(|| json.to_string()),
            _ => without_paths(value),
        };
        if let Some(cleaned) = cleaned {
            value.clone_from(&cleaned);
            redactions.push(Redaction { key: key.clone(), left: Some(cleaned) });
        }
    }
    redactions
}

/// True if something was changed.
fn clean(json: &mut Value) -> bool {
    match json {
        Value::String(text) => match without_paths(text) {
            Some(cleaned) => {
                *text = cleaned;
                true
            }
            None => false,
        },
        Value::Array(items) => items.iter_mut().fold(false, |changed, item| clean(item) | changed),
        Value::Object(entries) => {
            let mut changed = false;
            let old = std::mem::take(entries);
            for (key, mut value) in old {
                changed |= clean(&mut value);
                let cleaned = without_paths(&key);
                changed |= cleaned.is_some();
                entries.insert(cleaned.unwrap_or(key), value);
            }
            changed
        }
        _ => false,
    }
}

/// The text with each absolute path cut to its last name; `None` if there is none. A path that begins the text reaches
/// to its end, blanks included; one inside ends at a blank, a quote or a comma.
fn without_paths(text: &str) -> Option<String> {
    if let Some(path) = absolute(text)
        && !text.contains(['\n', ',', ';'])
    {
        return Some(last_name(path).to_string());
    }
    let breaks =
        |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '=' | '(' | ')' | '[' | ']');
    let mut found = false;
    let pieces = text.split_inclusive(breaks).map(|piece| {
        let (word, end) = match piece.char_indices().next_back() {
            Some((at, c)) if breaks(c) => piece.split_at(at),
            _ => (piece, ""),
        };
        match absolute(word) {
            Some(path) => {
                found = true;
                format!("{}{end}", last_name(path))
            }
            None => piece.to_string(),
        }
    });
    let cleaned: String = pieces.collect();
    found.then_some(cleaned)
}

/// The text if it begins like a path from a root: `/a/b`, `~/a`, `C:\a`, `C:/a`, `\\server\a`.
fn absolute(text: &str) -> Option<&str> {
    let drive = |t: &str| {
        let b = t.as_bytes();
        b.len() > 3 && b[0].is_ascii_alphabetic() && b[1] == b':' && matches!(b[2], b'\\' | b'/')
    };
    // `//` is what addresses have after `https:`; a single `/` or `/word` is written in sentences.
    let unix = text.strip_prefix('/').is_some_and(|rest| rest.contains('/') && !rest.starts_with('/'));
    (unix || text.starts_with("~/") || drive(text) || text.starts_with(r"\\")).then_some(text)
}

fn last_name(path: &str) -> &str {
    path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_go_and_words_stay() {
        for (text, left) in [
            ("/home/ann/models/v1-5 pruned.safetensors", Some("v1-5 pruned.safetensors")),
            (r"D:\My Models\sd\v15.ckpt", Some("v15.ckpt")),
            ("--out=/mnt/x/y --lr 1e-4", Some("--out=y --lr 1e-4")),
            (r"\\nas\share\a.safetensors", Some("a.safetensors")),
            ("~/loras/a", Some("a")),
            ("https://github.com/Stability-AI/generative-models", None),
            ("stable-diffusion-v1/lora", None),
            ("runwayml/stable-diffusion-v1-5", None),
            ("red/blue, and/or", None),
            ("", None),
        ] {
            assert_eq!(without_paths(text).as_deref(), left, "{text}");
        }
    }

    #[test]
    fn nested_values_are_cleaned_and_named() {
        let mut metadata = Metadata::default();
        metadata.set("ss_dataset_dirs", r#"{"/data/me": {"n_repeats": 1}}"#);
        metadata.set(
            "ss_network_args",
            r#"{"conv_dim": "4", "file": "/home/me/secret/x.json", "n": [1, "C:/a/b"]}"#,
        );
        metadata.set("ss_tag_frequency", r#"{"10_cat": {"a cat": 3}}"#);
        let before = metadata.get("ss_tag_frequency").map(String::from);
        let redactions = strip_private(&mut metadata);
        assert_eq!(metadata.get("ss_dataset_dirs"), None);
        assert_eq!(metadata.get("ss_network_args"), Some(r#"{"conv_dim":"4","file":"x.json","n":[1,"b"]}"#));
        assert_eq!(metadata.get("ss_tag_frequency").map(String::from), before);
        assert_eq!(
            redactions.iter().map(|r| r.key.as_str()).collect::<Vec<_>>(),
            ["ss_dataset_dirs", "ss_network_args"]
        );
    }
}
