//! What a file's metadata says of the machine it was made on, taken out: places on a disk, names of folders.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{Metadata, metadata::CONFIG_KEY};

/// Entries that are nothing but places on the trainer's disk, or settings full of them.
const REMOVED: &[&str] = &[
    "ss_reg_dataset_dirs",
    "ss_datasets",
    "ss_session_id",
    "ss_output_dir",
    "ss_logging_dir",
    "ss_config_file",
    "ot_config",
];
const TAGS: &str = "ss_tag_frequency";
/// Entries with something for each folder of pictures: counts worth keeping under names that are not.
const BY_FOLDER: [&str; 2] = [TAGS, "ss_dataset_dirs"];
/// Keys of a training configuration that are places.
const PLACES: [&str; 3] = ["images", "out", "cache"];
/// Entries that name a model: a file's path, or `owner/name` on a hub, which says nothing of the trainer.
const MODELS: [&str; 3] = ["ss_sd_model_name", "ss_vae_name", "model"];

/// One thing that was taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redaction {
    /// The entry.
    pub key: String,
    /// What is left of its value; `None` if the entry is gone.
    pub left: Option<String>,
}

/// What [`strip_private`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stripped {
    /// By entry.
    pub redactions: Vec<Redaction>,
    /// Captions that are gone because they were a folder's name.
    pub captions: BTreeSet<String>,
}

/// Removes entries that hold places on a disk, gives folders of pictures neutral names, and leaves the last name of
/// every path. What people write on purpose (titles, authors, trigger words) stays.
pub fn strip_private(metadata: &mut Metadata) -> Stripped {
    let before = metadata.clone();
    adopt_tags(metadata);
    let captions = rename_folders(metadata);
    for key in REMOVED {
        metadata.0.remove(*key);
    }
    if let Some(text) = metadata.0.remove(CONFIG_KEY)
        && let Some(config) = without_places(&text)
    {
        metadata.set(CONFIG_KEY, config);
    }
    for (key, value) in &mut metadata.0 {
        let cleaned = match serde_json::from_str::<Value>(value) {
            Ok(mut json @ (Value::Object(_) | Value::Array(_))) => clean(&mut json).then(|| json.to_string()),
            _ if key == CONFIG_KEY => None,
            _ => clean_text(key, value),
        };
        if let Some(cleaned) = cleaned {
            *value = cleaned;
        }
    }
    let keys: BTreeSet<&String> = before.0.keys().chain(metadata.0.keys()).collect();
    let changed = keys.into_iter().filter(|key| before.get(key) != metadata.get(key));
    let redactions =
        changed.map(|key| Redaction { key: key.clone(), left: metadata.get(key).map(String::from) });
    Stripped { redactions: redactions.collect(), captions }
}

/// Some files have their tag counts only inside the entry about their data, which goes.
fn adopt_tags(metadata: &mut Metadata) {
    if metadata.get(TAGS).is_some() {
        return;
    }
    let datasets = metadata.get("ss_datasets").and_then(|text| serde_json::from_str(text).ok());
    let mut tags = Map::new();
    for dataset in datasets.as_ref().and_then(Value::as_array).into_iter().flatten() {
        let counts = dataset.get("tag_frequency").and_then(Value::as_object);
        tags.extend(counts.into_iter().flatten().map(|(folder, tags)| (folder.clone(), tags.clone())));
    }
    if !tags.is_empty() {
        metadata.set(TAGS, Value::Object(tags));
    }
}

/// Returns captions that were a folder's name and are gone with it: pictures without captions are trained with it.
fn rename_folders(metadata: &mut Metadata) -> BTreeSet<String> {
    let read = |key: &str| match serde_json::from_str(metadata.get(key).unwrap_or_default()) {
        Ok(Value::Object(folders)) => Some((key.to_string(), folders)),
        _ => None,
    };
    let entries: Vec<(String, Map<String, Value>)> = BY_FOLDER.iter().filter_map(|key| read(key)).collect();
    // What is not understood may hold anything.
    for key in BY_FOLDER {
        metadata.0.remove(key);
    }
    let names: BTreeSet<String> = entries.iter().flat_map(|(_, folders)| folders.keys().cloned()).collect();
    let digits = names.len().to_string().len();
    let neutral = |i: usize| match names.len() {
        1 => "pictures".to_string(),
        _ => format!("pictures_{:0digits$}", i + 1),
    };
    let renamed: BTreeMap<&String, String> =
        names.iter().enumerate().map(|(i, name)| (name, neutral(i))).collect();
    let mut gone = BTreeSet::new();
    for (key, folders) in entries {
        let mut kept = Map::new();
        for (name, mut value) in folders {
            if let Value::Object(counts) = &mut value {
                let private: Vec<String> = counts
                    .keys()
                    .filter(|tag| names.iter().any(|name| is_name(tag, name)))
                    .cloned()
                    .collect();
                for tag in private {
                    counts.remove(&tag);
                    gone.insert(tag);
                }
            }
            if let Some(neutral) = renamed.get(&name) {
                kept.insert(neutral.clone(), value);
            }
        }
        metadata.set(&key, Value::Object(kept));
    }
    gone
}

/// Is a caption the name of a folder, with or without its repeats (`10_cat`)?
fn is_name(tag: &str, folder: &str) -> bool {
    let plain = |text: &str| text.trim().replace('_', " ").to_lowercase();
    let class =
        folder.split_once('_').filter(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let tag = plain(tag);
    !tag.is_empty() && (tag == plain(folder) || class.is_some_and(|(_, class)| tag == plain(class)))
}

/// A training configuration without its places; `None` if it is not to be read.
fn without_places(text: &str) -> Option<String> {
    let mut config: Value = toml::from_str(text).ok()?;
    let keys = config.as_object_mut()?;
    for key in PLACES {
        keys.shift_remove(key);
    }
    clean(&mut config);
    toml::to_string_pretty(&config).ok()
}

/// True if something was changed.
fn clean(json: &mut Value) -> bool {
    match json {
        Value::String(text) => replace(text, without_paths(text)),
        Value::Array(items) => items.iter_mut().fold(false, |changed, item| clean(item) | changed),
        Value::Object(entries) => {
            let mut changed = false;
            let old = std::mem::take(entries);
            for (key, mut value) in old {
                changed |= match &mut value {
                    Value::String(text) => replace(text, clean_text(&key, text)),
                    other => clean(other),
                };
                let cleaned = without_paths(&key);
                changed |= cleaned.is_some();
                entries.insert(cleaned.unwrap_or(key), value);
            }
            changed
        }
        _ => false,
    }
}

fn replace(text: &mut String, cleaned: Option<String>) -> bool {
    let changed = cleaned.is_some();
    if let Some(cleaned) = cleaned {
        *text = cleaned;
    }
    changed
}

fn clean_text(key: &str, text: &str) -> Option<String> {
    let names_a_model = MODELS.contains(&key) || key.ends_with("name_or_path");
    if names_a_model && is_local(text) {
        return Some(last_name(text).to_string());
    }
    without_paths(text)
}

/// Is the name of a model a path, also a relative one? (`owner/name` is a hub's.)
fn is_local(model: &str) -> bool {
    let deep = model.matches('/').count() > 1 || model.starts_with(['.', '~', '/']);
    let is_file = [".safetensors", ".ckpt", ".pt", ".bin"].iter().any(|ending| model.ends_with(ending));
    !model.contains("://") && (model.contains('\\') || deep || (is_file && model.contains('/')))
}

/// The text with each absolute path cut to its last name; `None` if there is none. A path that begins the text reaches
/// to its end, and one behind a quote to the next, blanks included; others end at a blank, a quote or a comma.
fn without_paths(text: &str) -> Option<String> {
    if let Some(path) = absolute(text)
        && !text.contains(['\n', ',', ';', '"'])
    {
        return Some(last_name(path).to_string());
    }
    let breaks =
        |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '=' | '(' | ')' | '[' | ']');
    let (mut cleaned, mut rest, mut before, mut found) = (String::new(), text, None, false);
    while !rest.is_empty() {
        let quoted = before.filter(|c| matches!(c, '"' | '\'')).and_then(|quote| rest.find(quote));
        let end = match quoted.filter(|_| absolute(rest).is_some()) {
            Some(end) => end,
            None => rest.find(breaks).unwrap_or(rest.len()),
        };
        let (word, behind) = rest.split_at(end);
        match absolute(word) {
            Some(path) => {
                found = true;
                cleaned.push_str(last_name(path));
            }
            None => cleaned.push_str(word),
        }
        before = behind.chars().next();
        cleaned.extend(before);
        rest = &behind[before.map_or(0, char::len_utf8)..];
    }
    found.then_some(cleaned)
}

/// The text if it begins like a path from a root: `/a/b`, `~/a`, `C:\a`, `C:/a`, `\\server\a`, `file:///a`.
fn absolute(text: &str) -> Option<&str> {
    let drive = |t: &str| {
        let b = t.as_bytes();
        b.len() > 3 && b[0].is_ascii_alphabetic() && b[1] == b':' && matches!(b[2], b'\\' | b'/')
    };
    // `//` is what addresses have after `https:`; a single `/` or `/word` is written in sentences.
    let unix = text.strip_prefix('/').is_some_and(|rest| rest.contains('/') && !rest.starts_with('/'));
    let rooted = unix || text.starts_with("~/") || drive(text) || text.starts_with(r"\\");
    (rooted || text.starts_with("file:/")).then_some(text)
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
            ("file:///home/ann/a.png", Some("a.png")),
            (r#"0.8@mask="/home/ann/my masks/m.png",te=0"#, Some(r#"0.8@mask="m.png",te=0"#)),
            ("https://github.com/Stability-AI/generative-models", None),
            ("stable-diffusion-v1/lora", None),
            ("runwayml/stable-diffusion-v1-5", None),
            ("it's red/blue, and/or \"ann's\"", None),
            ("", None),
        ] {
            assert_eq!(without_paths(text).as_deref(), left, "{text}");
        }
        for (model, left) in [
            ("models/ann/v15.safetensors", Some("v15.safetensors")),
            ("ann/v15.ckpt", Some("v15.ckpt")),
            (r"models\ann\v15", Some("v15")),
            ("../ann", Some("ann")),
            ("runwayml/stable-diffusion-v1-5", None),
            ("v15.safetensors", None),
        ] {
            assert_eq!(clean_text("ss_sd_model_name", model).as_deref(), left, "{model}");
        }
    }

    #[test]
    fn nested_values_are_cleaned_and_named() {
        let mut metadata = Metadata::default();
        metadata.set("ss_session_id", "123");
        metadata.set(
            "ss_network_args",
            r#"{"conv_dim": "4", "file": "/home/me/secret/x.json", "n": [1, "C:/a/b"]}"#,
        );
        metadata.set("peft", r#"{"base_model_name_or_path":"me/secret/model"}"#);
        let redactions = strip_private(&mut metadata).redactions;
        assert_eq!(metadata.get("ss_network_args"), Some(r#"{"conv_dim":"4","file":"x.json","n":[1,"b"]}"#));
        assert_eq!(metadata.get("peft"), Some(r#"{"base_model_name_or_path":"model"}"#));
        assert_eq!(
            redactions.iter().map(|r| r.key.as_str()).collect::<Vec<_>>(),
            ["peft", "ss_network_args", "ss_session_id"]
        );
        assert!(strip_private(&mut metadata).redactions.is_empty(), "nothing is left to do");
    }

    #[test]
    fn folders_lose_their_names_and_keep_their_counts() {
        let mut metadata = Metadata::default();
        metadata.set("ss_tag_frequency", r#"{"10_anns cat":{"anns cat":9,"snow":3},"5_Dan":{"a dog":2}}"#);
        metadata.set(
            "ss_dataset_dirs",
            r#"{"10_anns cat":{"n_repeats":10,"img_count":9},"5_Dan":{"n_repeats":5,"img_count":2}}"#,
        );
        metadata
            .set("scumble_config", "model = \"sd15\"\nimages = \"anns\"\nrank = 4\n[dataset]\nlimit = 2\n");
        let stripped = strip_private(&mut metadata);
        assert_eq!(
            metadata.get("ss_tag_frequency"),
            Some(r#"{"pictures_1":{"snow":3},"pictures_2":{"a dog":2}}"#)
        );
        assert_eq!(
            metadata.get("ss_dataset_dirs"),
            Some(
                r#"{"pictures_1":{"n_repeats":10,"img_count":9},"pictures_2":{"n_repeats":5,"img_count":2}}"#
            )
        );
        assert_eq!(
            metadata.get("scumble_config"),
            Some("model = \"sd15\"\nrank = 4\n\n[dataset]\nlimit = 2\n")
        );
        assert_eq!(stripped.captions.iter().collect::<Vec<_>>(), ["anns cat"]);
        // Counts that only the entry about the data has; an entry that is not understood.
        let mut metadata = Metadata::default();
        metadata.set("ss_datasets", r#"[{"subsets":[{"image_dir":"me"}],"tag_frequency":{"me":{"fox":3}}}]"#);
        metadata.set("ss_dataset_dirs", "{'me': 3}");
        strip_private(&mut metadata);
        assert_eq!(
            metadata.0.into_iter().collect::<Vec<_>>(),
            [("ss_tag_frequency".to_string(), r#"{"pictures":{"fox":3}}"#.to_string())]
        );
    }
}
