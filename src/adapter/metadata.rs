//! What an adapter's file says of itself: kohya's `ss_*`, Stability's `modelspec.*`, and hashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use sha2::{Digest as _, Sha256};

use super::{Adapter, Delta, Lineage, lineage::Labels};
use crate::weights::{hashes::Digests, reader::SafetensorsFile};

/// The key under which the configuration of a training run stands in its adapter, as TOML.
pub const CONFIG_KEY: &str = "scumble_config";

/// A safetensors header's free entries: text to text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata(pub BTreeMap<String, String>);

impl Metadata {
    /// An entry.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Sets an entry.
    pub fn set(&mut self, key: &str, value: impl fmt::Display) {
        self.0.insert(key.to_string(), value.to_string());
    }

    /// Sets an entry the way Python's `str` prints a bool, as kohya's readers expect.
    pub fn set_bool(&mut self, key: &str, value: bool) {
        self.set(key, if value { "True" } else { "False" });
    }

    /// Adds what kohya's readers expect of every file, where the adapter came without: base model, network, rank, alpha.
    pub(crate) fn fill_kohya(&mut self, adapter: &Adapter, lineage: Option<Lineage>) {
        let kohya = adapter.layers.values().all(|delta| delta.algorithm() == "LoRA");
        let number = |of: &dyn Fn(&Delta) -> Option<f64>, python: &dyn Fn(f64) -> String| {
            let values: BTreeSet<u64> = adapter.layers.values().filter_map(of).map(f64::to_bits).collect();
            match values.into_iter().collect::<Vec<_>>()[..] {
                [] => "None".to_string(),
                [one] => python(f64::from_bits(one)),
                _ => "Dynamic".to_string(),
            }
        };
        let rank = number(&|delta| delta.rank().map(|r| r as f64), &|r| r.to_string());
        let alpha = number(&|delta| delta.alpha().or(delta.rank().map(|r| r as f64)), &python_float);
        let version = lineage.map(|lineage| lineage.labels(false).version);
        for (key, value) in [
            ("ss_v2", lineage.map(|l| if l == Lineage::Sd2 { "True" } else { "False" }.to_string())),
            ("ss_base_model_version", version.map(ToString::to_string)),
            ("ss_network_module", Some(if kohya { "networks.lora" } else { "lycoris.kohya" }.to_string())),
            ("ss_network_dim", Some(rank)),
            ("ss_network_alpha", Some(alpha)),
            ("ss_network_args", Some("{}".to_string())),
        ] {
            if let Some(value) = value {
                self.0.entry(key.to_string()).or_insert(value);
            }
        }
    }

    /// Drops the one training argument that changes how alphas are read (of rank-stabilised `GLoRA`): alphas of what was
    /// read are already what they mean.
    pub(crate) fn forget_rank_stabilised(&mut self) {
        let arguments = self.get("ss_network_args").and_then(|text| serde_json::from_str(text).ok());
        let Some(serde_json::Value::Object(mut arguments)) = arguments else { return };
        if arguments.remove("rs_lora").is_some() {
            self.set("ss_network_args", serde_json::Value::Object(arguments));
        }
    }

    /// Records the hash of the tensor bytes, in the two places readers look.
    pub(crate) fn set_hash(&mut self, sha256: &str) {
        self.set("sshs_model_hash", sha256);
        if self.0.contains_key("modelspec.sai_model_spec") {
            self.set("modelspec.hash_sha256", format!("0x{sha256}"));
        }
    }
}

/// The hashes sharing sites show for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHashes {
    /// The first 10 digits of the whole file's sha256.
    pub auto_v2: String,
    /// The first 12 digits of the tensor bytes' sha256: unchanged when metadata is edited. What `Lora hashes:` of a
    /// picture's recipe holds.
    pub auto_v3: String,
}

impl FileHashes {
    /// Of a checked file, both at once: each reads all of it.
    pub fn of(file: &SafetensorsFile) -> Self {
        let sha256 = |bytes: &[u8]| format!("{:x}", Sha256::digest(bytes));
        let (file, data) = rayon::join(|| sha256(file.file_bytes()), || sha256(file.data()));
        Self::short(&Digests { file, data })
    }

    /// True if `short` is how something calls a file: the first digits, at least eight, of one of its hashes.
    pub fn is_called(digests: &Digests, short: &str) -> bool {
        let short = short.to_ascii_lowercase();
        short.len() >= 8 && (digests.data.starts_with(&short) || digests.file.starts_with(&short))
    }

    /// The short forms that sites and pictures name.
    pub fn short(digests: &Digests) -> Self {
        Self { auto_v2: digests.file[..10].into(), auto_v3: digests.data[..12].into() }
    }
}

/// What a training run writes into its adapter, so that other tools show it and this one can repeat it.
#[derive(Debug, Clone, Default)]
pub struct TrainingRecord {
    /// The style's name; A1111 accepts it in prompts as `<lora:name:1>`.
    pub output_name: String,
    /// The base model's family by the width of its cross-attention.
    pub lineage: Option<Lineage>,
    /// True if the base predicts v.
    pub v_prediction: bool,
    /// The base model as the user named it, and its sha256 if it is one file.
    pub base_model: (String, Option<String>),
    /// Rank and alpha of the linear layers.
    pub rank_alpha: (usize, f64),
    /// Rank and alpha of the convolutions, if trained.
    pub conv_rank_alpha: Option<(usize, f64)>,
    /// Width and height in pixels.
    pub resolution: (usize, usize),
    /// Per image folder, how often each tag occurs: where trigger words are read from.
    pub tag_frequency: BTreeMap<String, BTreeMap<String, usize>>,
    /// Any further `ss_*` entries: learning rates, steps, optimizer, seed.
    pub settings: BTreeMap<String, String>,
    /// When training ended, in seconds since 1970; left out where files must repeat byte for byte.
    pub finished_at: Option<u64>,
    /// What to write in a prompt to call the style.
    pub trigger_phrase: Option<String>,
}

impl TrainingRecord {
    /// The entries for a file.
    pub fn to_metadata(&self) -> Metadata {
        let mut metadata = Metadata::default();
        self.kohya(&mut metadata);
        self.modelspec(&mut metadata);
        metadata
    }

    fn labels(&self) -> Labels {
        self.lineage.unwrap_or(Lineage::Sd1).labels(self.v_prediction)
    }

    fn kohya(&self, m: &mut Metadata) {
        let v2 = self.lineage == Some(Lineage::Sd2);
        m.set_bool("ss_v2", v2);
        m.set("ss_base_model_version", self.labels().version);
        m.set("ss_network_module", "networks.lora");
        m.set("ss_network_dim", self.rank_alpha.0);
        m.set("ss_network_alpha", python_float(self.rank_alpha.1));
        let args = self.conv_rank_alpha.map_or_else(String::new, |(rank, alpha)| {
            format!("\"conv_dim\": \"{rank}\", \"conv_alpha\": \"{}\"", python_float(alpha))
        });
        m.set("ss_network_args", format!("{{{args}}}"));
        m.set("ss_output_name", &self.output_name);
        m.set("ss_sd_model_name", &self.base_model.0);
        if let Some(hash) = &self.base_model.1 {
            m.set("ss_new_sd_model_hash", hash);
        }
        let (width, height) = self.resolution;
        m.set("ss_resolution", format!("({width}, {height})"));
        m.set("ss_tag_frequency", serde_json::json!(self.tag_frequency));
        for (key, value) in &self.settings {
            m.set(key, value);
        }
        if let Some(seconds) = self.finished_at {
            m.set("ss_training_finished_at", python_float(seconds as f64));
        }
    }

    /// <https://github.com/Stability-AI/ModelSpec>
    fn modelspec(&self, m: &mut Metadata) {
        let sdxl = matches!(self.lineage, Some(Lineage::Sdxl | Lineage::SdxlRefiner));
        m.set("modelspec.sai_model_spec", "1.0.1");
        m.set("modelspec.architecture", format!("{}/lora", self.labels().architecture));
        let sgm = "https://github.com/Stability-AI/generative-models";
        m.set("modelspec.implementation", if sdxl { sgm } else { "diffusers" });
        m.set("modelspec.title", &self.output_name);
        m.set("modelspec.resolution", format!("{}x{}", self.resolution.0, self.resolution.1));
        m.set("modelspec.prediction_type", if self.v_prediction { "v" } else { "epsilon" });
        if let Some(seconds) = self.finished_at {
            m.set("modelspec.date", iso_8601(seconds));
        }
        if let Some(phrase) = &self.trigger_phrase {
            m.set("modelspec.trigger_phrase", phrase);
        }
    }
}

/// As Python prints a float: `16.0`.
fn python_float(x: f64) -> String {
    if x.fract() == 0.0 { format!("{x:.1}") } else { x.to_string() }
}

/// UTC. The calendar by Howard Hinnant, <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>.
fn iso_8601(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = year_of_era + z / 146_097 * 400 + u64::from(month <= 2);
    let (h, m, s) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        assert_eq!(iso_8601(0), "1970-01-01T00:00:00Z");
        assert_eq!(iso_8601(1_709_210_096), "2024-02-29T12:34:56Z");
        assert_eq!(iso_8601(1_735_689_599), "2024-12-31T23:59:59Z");
    }

    #[test]
    fn kohyas_minimum_is_written() {
        let record =
            TrainingRecord { rank_alpha: (8, 4.0), conv_rank_alpha: Some((4, 1.0)), ..Default::default() };
        let m = record.to_metadata();
        assert_eq!(m.get("ss_v2"), Some("False"));
        assert_eq!(m.get("ss_network_alpha"), Some("4.0"));
        assert_eq!(m.get("ss_network_args"), Some(r#"{"conv_dim": "4", "conv_alpha": "1.0"}"#));
        assert_eq!(m.get("modelspec.architecture"), Some("stable-diffusion-v1/lora"));
    }
}
