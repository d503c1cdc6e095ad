//! What an adapter's metadata say to people: what calls the style, which tags it was trained on, and how.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Metadata;

/// What to write in a prompt to call a style.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trigger {
    /// The words, most deliberate first.
    pub words: Vec<String>,
    /// True if the file says so itself; otherwise they are the tags that every caption of a folder had.
    pub stated: bool,
}

/// Entries that state what calls a style.
const TRIGGERS: [&str; 6] = [
    "modelspec.trigger_phrase",
    "ss_trigger_words",
    "ss_trigger_word",
    "ss_trigger",
    "trigger_words",
    "trigger_word",
];
/// More tags than this in every caption are no trigger but one caption for all pictures.
const MOST_IN_EVERY: usize = 8;
/// What Python prints for something that was not set.
const UNSET: [&str; 4] = ["", "None", "null", "{}"];

/// What calls the style: as stated, else the tags that were in every caption.
pub fn trigger(metadata: &Metadata) -> Trigger {
    let mut words: Vec<String> = Vec::new();
    for word in TRIGGERS.iter().filter_map(|key| stated(metadata, key)).flat_map(list) {
        if !words.iter().any(|w| w.eq_ignore_ascii_case(&word)) {
            words.push(word);
        }
    }
    let stated = !words.is_empty();
    Trigger { words: if stated { words } else { in_every_caption(metadata) }, stated }
}

/// How often each tag was in a caption, most often first.
pub fn tags(metadata: &Metadata) -> Vec<(String, u64)> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (tag, count) in frequencies(metadata).into_values().flatten() {
        let sum = counts.entry(tag).or_default();
        *sum = sum.saturating_add(count);
    }
    let mut counts: Vec<(String, u64)> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts
}

/// What the trainer called the style.
pub fn title(metadata: &Metadata) -> Option<&str> {
    stated(metadata, "ss_output_name").or_else(|| stated(metadata, "modelspec.title"))
}

/// The model it was trained on, as its trainer named it.
pub fn base_model(metadata: &Metadata) -> Option<String> {
    let name = ["ss_sd_model_name", "ss_base_model_version", "modelspec.architecture"];
    let name = name.iter().find_map(|key| stated(metadata, key))?;
    let hash = stated(metadata, "ss_new_sd_model_hash").or_else(|| stated(metadata, "ss_sd_model_hash"));
    Some(match hash {
        Some(hash) => format!("{name} ({})", hash.chars().take(10).collect::<String>()),
        None => name.to_string(),
    })
}

/// A line of the recipe, and the entries it comes from: the first that is set.
const RECIPE: [(&str, &[&str]); 20] = [
    ("trainer", &["ss_network_module", "ot_branch", "modelspec.implementation"]),
    ("network arguments", &["ss_network_args"]),
    ("pictures", &["ss_num_train_images"]),
    ("resolution", &["ss_resolution", "modelspec.resolution"]),
    ("steps", &["ss_steps", "ss_max_train_steps"]),
    ("epochs", &["ss_epoch", "ss_num_epochs"]),
    ("batch size", &["ss_total_batch_size", "ss_batch_size_per_device"]),
    ("learning rate", &["ss_learning_rate"]),
    ("UNet's", &["ss_unet_lr"]),
    ("text encoder's", &["ss_text_encoder_lr"]),
    ("schedule", &["ss_lr_scheduler"]),
    ("warm-up steps", &["ss_lr_warmup_steps"]),
    ("optimizer", &["ss_optimizer"]),
    ("loss", &["ss_loss_type"]),
    ("min-SNR gamma", &["ss_min_snr_gamma"]),
    ("noise offset", &["ss_noise_offset"]),
    ("clip skip", &["ss_clip_skip"]),
    ("precision", &["ss_mixed_precision"]),
    ("seed", &["ss_seed"]),
    ("comment", &["ss_training_comment", "modelspec.description"]),
];

/// How it was trained, in the order a trainer would tell it.
pub fn recipe(metadata: &Metadata) -> Vec<(&'static str, &str)> {
    let line = |(label, keys): &(&'static str, &[&str])| {
        Some((*label, keys.iter().find_map(|key| stated(metadata, key))?))
    };
    RECIPE.iter().filter_map(line).collect()
}

fn stated<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a str> {
    metadata.get(key).map(str::trim).filter(|value| !UNSET.contains(value))
}

/// One phrase, or a JSON list of them.
fn list(text: &str) -> Vec<String> {
    let phrases = serde_json::from_str::<Vec<String>>(text).unwrap_or_else(|_| vec![text.to_string()]);
    phrases.iter().map(|p| p.trim().trim_end_matches(',').to_string()).filter(|p| !p.is_empty()).collect()
}

/// Per folder of pictures the tags of its captions. Other people's files: whatever is not of that form is left out.
fn frequencies(metadata: &Metadata) -> BTreeMap<String, BTreeMap<String, u64>> {
    let text = stated(metadata, "ss_tag_frequency").unwrap_or_default();
    let mut folders = match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(folders)) => folders,
        _ => serde_json::Map::new(),
    };
    if folders.is_empty() {
        let text = stated(metadata, "ss_datasets").unwrap_or_default();
        for dataset in serde_json::from_str::<Vec<Value>>(text).unwrap_or_default() {
            let of_dataset = dataset.get("tag_frequency").and_then(Value::as_object);
            folders.extend(of_dataset.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
        }
    }
    let count = |(tag, count): (&String, &Value)| Some((tag.trim().to_string(), count.as_u64()?));
    let tags = |v: &Value| v.as_object().into_iter().flatten().filter_map(count).collect();
    folders.iter().map(|(folder, v)| (folder.clone(), tags(v))).collect()
}

fn in_every_caption(metadata: &Metadata) -> Vec<String> {
    let text = stated(metadata, "ss_dataset_dirs").unwrap_or_default();
    let dirs: Value = serde_json::from_str(text).unwrap_or_default();
    let mut words: Vec<String> = Vec::new();
    for (folder, tags) in frequencies(metadata) {
        let pictures = dirs.get(&folder).and_then(|dir| dir.get("img_count")).and_then(Value::as_u64);
        let Some(pictures) = pictures.filter(|n| *n > 1) else { continue };
        let every: Vec<String> = tags
            .into_iter()
            .filter(|(tag, n)| *n >= pictures && !tag.is_empty())
            .map(|(tag, _)| tag)
            .collect();
        if every.len() <= MOST_IN_EVERY {
            words.extend(every.into_iter().filter(|tag| !words.contains(tag)).collect::<Vec<_>>());
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(entries: &[(&str, &str)]) -> Metadata {
        Metadata(entries.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect())
    }

    #[test]
    fn what_calls_a_style_is_stated_or_was_in_every_caption() {
        let frequency =
            ("ss_tag_frequency", r#"{"10_fox":{"sks fox":12,"snow":3," sitting ":12},"5_x":{"x":1}}"#);
        let dirs = ("ss_dataset_dirs", r#"{"10_fox":{"n_repeats":10,"img_count":12},"5_x":{"img_count":1}}"#);
        let found = trigger(&metadata(&[frequency, dirs]));
        assert_eq!((found.words, found.stated), (vec!["sitting".to_string(), "sks fox".into()], false));
        let phrase = ("modelspec.trigger_phrase", "in the style of sks");
        let words = ("ss_trigger_words", r#"["SKS","in the style of sks "]"#);
        let found = trigger(&metadata(&[frequency, dirs, phrase, words]));
        assert_eq!(
            (found.words, found.stated),
            (vec!["in the style of sks".to_string(), "SKS".into()], true)
        );
        let tags = tags(&metadata(&[frequency]));
        assert_eq!(tags[0], ("sitting".to_string(), 12));
        assert_eq!(tags.len(), 4);
    }

    #[test]
    fn damaged_entries_say_nothing() {
        for text in ["{", "[1]", r#"{"a":1}"#, r#"{"a":{"b":"many","c":-1}}"#] {
            let metadata = metadata(&[("ss_tag_frequency", text), ("ss_dataset_dirs", text)]);
            assert!(tags(&metadata).is_empty() && trigger(&metadata).words.is_empty(), "{text}");
        }
        let unset = metadata(&[("ss_seed", "None"), ("ss_steps", "None"), ("ss_max_train_steps", "400")]);
        assert_eq!(recipe(&unset), [("steps", "400")]);
    }
}
