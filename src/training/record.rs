//! What a finished adapter says of its training.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Base, TrainConfig};
use crate::{
    adapter::{Metadata, NameTable, TrainingRecord, metadata::CONFIG_KEY},
    dataset::Dataset,
    diffusion::Prediction,
};

/// Where a run is when it writes its adapter.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Steps finished.
    pub step: u64,
    /// Batches an epoch has.
    pub batches_per_epoch: usize,
}

/// kohya's metadata and the configuration.
pub fn metadata(
    config: &TrainConfig,
    model: &Base,
    dataset: &Dataset,
    table: &NameTable,
    moment: Moment,
) -> Metadata {
    let resolution = dataset.options().buckets.resolution;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs());
    let conv = config.conv_rank.map(|rank| (rank, config.conv_alpha.unwrap_or(rank as f64)));
    let record = TrainingRecord {
        output_name: config.style_name(),
        lineage: table.lineage(),
        v_prediction: model.schedule.prediction == Prediction::VPrediction,
        base_model: (model_name(&model.origin), None),
        rank_alpha: (config.rank, config.alpha.unwrap_or(config.rank as f64)),
        conv_rank_alpha: conv,
        resolution: (resolution.0 as usize, resolution.1 as usize),
        tag_frequency: dataset.tag_frequency(),
        settings: settings(config, dataset, moment),
        finished_at: if config.reproducible { None } else { now },
        trigger_phrase: config.dataset.captions.trigger.clone(),
    };
    let mut metadata = record.to_metadata();
    if let Ok(text) = shareable(config).to_toml() {
        metadata.set(CONFIG_KEY, text);
    }
    metadata
}

/// kohya's `ss_*` beyond the minimum.
fn settings(config: &TrainConfig, dataset: &Dataset, moment: Moment) -> BTreeMap<String, String> {
    let python = |b: bool| if b { "True" } else { "False" }.to_string();
    let number = |x: f64| if x > 0.0 { x.to_string() } else { "None".into() };
    let text_lr = config.learning_rate * config.text_encoder_rate();
    let folders: BTreeMap<&str, serde_json::Value> = dataset
        .folders()
        .iter()
        .map(|f| (f.name.as_str(), serde_json::json!({"n_repeats": f.repeats, "img_count": f.images})))
        .collect();
    let batches = moment.step * config.gradient_accumulation as u64;
    let epochs = batches.div_ceil(moment.batches_per_epoch.max(1) as u64);
    let entries = [
        ("learning_rate", config.learning_rate.to_string()),
        ("unet_lr", config.learning_rate.to_string()),
        ("text_encoder_lr", if config.train_text_encoder { text_lr.to_string() } else { "None".into() }),
        ("lr_scheduler", config.lr_schedule.name().into()),
        ("lr_warmup_steps", config.lr().warmup_steps.to_string()),
        ("optimizer", "AdamW".into()),
        ("max_grad_norm", config.max_grad_norm.to_string()),
        ("min_snr_gamma", number(config.min_snr_gamma)),
        ("noise_offset", number(config.noise_offset)),
        ("clip_skip", config.clip_skip.map_or_else(|| "None".into(), |c| c.to_string())),
        ("seed", config.seed.to_string()),
        ("steps", moment.step.to_string()),
        ("max_train_steps", config.steps.to_string()),
        ("epoch", epochs.to_string()),
        ("num_train_images", dataset.samples_per_epoch().to_string()),
        ("num_batches_per_epoch", moment.batches_per_epoch.to_string()),
        ("total_batch_size", (config.batch_size * config.gradient_accumulation).to_string()),
        ("gradient_accumulation_steps", config.gradient_accumulation.to_string()),
        ("gradient_checkpointing", python(config.gradient_checkpointing)),
        ("cache_latents", python(true)),
        ("enable_bucket", python(dataset.options().buckets.enabled)),
        ("dataset_dirs", serde_json::json!(folders).to_string()),
    ];
    entries.into_iter().map(|(key, value)| (format!("ss_{key}"), value)).collect()
}

/// The configuration without the names of the user's folders: files are shared.
fn shareable(config: &TrainConfig) -> TrainConfig {
    let name = |path: &Path| path.file_name().map(PathBuf::from).unwrap_or_default();
    TrainConfig {
        images: name(&config.images),
        out: name(&config.out),
        cache: None,
        resume: false,
        model: model_name(&config.model),
        ..config.clone()
    }
}

/// Of a model on this disk only the last name, as kohya's trainer has it.
fn model_name(model: &str) -> String {
    match Path::new(model).file_name().filter(|_| Path::new(model).exists()) {
        Some(name) => name.to_string_lossy().into_owned(),
        None => model.to_string(),
    }
}
