//! The recipe of a picture: everything needed to draw it again, as the `parameters` text the Stable Diffusion web UI
//! writes and every gallery reads.
//!
//! ```text
//! a lighthouse at dusk <lora:my-style:0.8>
//! Negative prompt: blurry
//! Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 7, Size: 512x512, …
//! ```
//!
//! Reading never fails: whatever a tool wrote that is not known here stays in [`Recipe::other`].
//! [`write_png`] and [`read_text`] put the text into picture files and find it there.

mod carrier;
mod names;
mod pairs;

use super::{GenerateRequest, Hires};
use crate::{
    adapter::{BlendMode, Strength},
    error::Result,
    prompt::tags,
};

pub use carrier::{encode_png, read_text, write_png};

/// Keys that carry a prompt which the plain lines cannot (outer spaces, a line that looks like `Negative prompt:`).
const EXACT: &str = "Exact prompt";
const EXACT_NEGATIVE: &str = "Exact negative prompt";
const NEGATIVE: &str = "Negative prompt:";
/// A last line with fewer pairs than this is prompt.
const MINIMUM_PAIRS: usize = 3;
/// Keys of ours that the web UI has no word for.
pub const CFG_RESCALE: &str = "CFG rescale";
/// What weights in prompts did, if not what the web UI does.
pub const EMPHASIS: &str = "Emphasis";
/// The file of the picture it was drawn over.
pub const INIT_IMAGE: &str = "Init image";
/// The first 10 hexadecimal digits of that file's SHA-256.
pub const INIT_IMAGE_HASH: &str = "Init image hash";
/// How adapters were in the network: decides over the last bits.
pub const LORA_MODE: &str = "Lora mode";
/// Set if the sum of the adapters was kept in bounds.
pub const LORA_NORMALIZE: &str = "Lora normalize";

/// Everything needed to draw a picture again. What a foreign file does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recipe {
    /// What to draw, with its weights but without `<lora:…>` tags.
    pub prompt: String,
    /// What to keep out.
    pub negative_prompt: String,
    /// The adapters, in order. Written as tags at the end of the prompt.
    pub loras: Vec<LoraUse>,
    /// The textual inversions that prompts call, but for those adapters bring.
    pub embeddings: Vec<EmbeddingUse>,
    /// Sampling steps.
    pub steps: Option<usize>,
    /// The sampler by this program's name (`dpmpp_2m`) if it has one, else as found.
    pub sampler: Option<String>,
    /// The noise schedule by this program's name (`karras`) if it has one, else as found.
    pub schedule: Option<String>,
    /// Guidance.
    pub cfg_scale: Option<f64>,
    /// The picture's own seed.
    pub seed: Option<u64>,
    /// Width and height in pixels.
    pub size_px: Option<(usize, usize)>,
    /// The checkpoint's name.
    pub model: Option<String>,
    /// The first 10 hexadecimal digits of the checkpoint's SHA-256.
    pub model_hash: Option<String>,
    /// img2img, and the second pass: how much was redrawn, 0 to 1.
    pub denoising_strength: Option<f64>,
    /// Which text encoder layer from the end; 1 or `None` is the last.
    pub clip_skip: Option<usize>,
    /// Fresh noise per step for ancestral samplers.
    pub eta: Option<f64>,
    /// The program that drew it.
    pub version: Option<String>,
    /// Everything else, in order.
    pub other: Vec<(String, String)>,
}

/// An adapter as it was used.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraUse {
    /// A file's stem, or the name its metadata gives.
    pub name: String,
    /// Its weight.
    pub strength: Strength,
    /// The first 12 hexadecimal digits of its content hash.
    pub hash: Option<String>,
}

/// A textual inversion as it was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingUse {
    /// Its word in prompts; read from a recipe, without `,` and `:`.
    pub name: String,
    /// The first 12 hexadecimal digits of its file's SHA-256.
    pub hash: Option<String>,
}

impl EmbeddingUse {
    /// True if a recipe calls a file of this stem so.
    pub fn is_called(&self, stem: &str) -> bool {
        pairs::plain_name(&self.name).to_lowercase() == pairs::plain_name(stem).to_lowercase()
    }
}

impl LoraUse {
    /// The prompt without its tags, and the adapters they call.
    ///
    /// # Errors
    /// When a tag is malformed or its weight is.
    pub fn extract(prompt: &str) -> Result<(String, Vec<Self>)> {
        let (text, found) = tags::extract(prompt)?;
        let used = found.into_iter().map(|tag| {
            let strength = tag.weight.parse::<Strength>();
            let strength = strength.map_err(|e| e.context(format!("prompt: `<lora:{}:…>`", tag.name)))?;
            Ok(Self { name: tag.name, strength, hash: None })
        });
        Ok((text, used.collect::<Result<_>>()?))
    }

    fn to_tag(&self) -> String {
        tags::write(&self.name, &self.strength.tag_arguments())
    }
}

impl Recipe {
    /// What a request says of its pictures. What follows from the model, the adapters and the picture's place in the
    /// batch is the caller's to add.
    pub fn of(request: &GenerateRequest) -> Self {
        let mut other = Vec::new();
        if request.cfg_rescale != 0.0 {
            other.push((CFG_RESCALE.to_owned(), request.cfg_rescale.to_string()));
        }
        if request.emphasis != Default::default() {
            other.push((EMPHASIS.to_owned(), request.emphasis.name().to_owned()));
        }
        other.extend(request.hires.iter().flat_map(Hires::note));
        if let Some(source) = request.init.as_ref().and_then(|init| init.source.as_ref()) {
            let absolute = std::path::absolute(&source.path).unwrap_or_else(|_| source.path.clone());
            other.push((INIT_IMAGE.to_owned(), absolute.display().to_string()));
            other.push((INIT_IMAGE_HASH.to_owned(), source.hash.clone()));
        }
        Self {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative.clone(),
            steps: Some(request.steps),
            sampler: Some(request.sampler.to_string()),
            schedule: Some(request.schedule.to_string()),
            cfg_scale: request.cfg_scale,
            seed: Some(request.seed),
            size_px: request.size_px,
            denoising_strength: request.strength(),
            clip_skip: request.clip_skip,
            eta: request.eta,
            version: Some(this_version()),
            other,
            ..Self::default()
        }
    }

    /// Notes how the adapters were applied.
    pub fn note_mode(&mut self, mode: BlendMode, normalize: bool) {
        self.other.push((LORA_MODE.to_owned(), mode.name().to_owned()));
        if normalize {
            self.other.push((LORA_NORMALIZE.to_owned(), "true".to_owned()));
        }
    }

    /// The value of a key this program has no field for.
    pub fn other(&self, key: &str) -> Option<&str> {
        self.other.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The `parameters` text.
    pub fn to_text(&self) -> String {
        let mut pairs = self.pairs();
        let mut text = self.lines();
        let (prompt, negative) = prompt_lines(&text);
        let (prompt, _) = take_tags(&prompt);
        let few = pairs.len() < MINIMUM_PAIRS;
        if few || prompt != self.prompt {
            pairs.push((EXACT, self.prompt.clone()));
        }
        if few || negative != self.negative_prompt {
            pairs.push((EXACT_NEGATIVE, self.negative_prompt.clone()));
        }
        if few && self.version.is_none() {
            pairs.push(("Version", this_version()));
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text + &pairs::write(&pairs)
    }

    /// Reads the text written by this program, the web UI, or something that imitates it.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        let (prompt_text, last) = text.rsplit_once('\n').unwrap_or(("", text));
        let mut pairs = pairs::parse(last);
        let prompt_text = if pairs.len() < MINIMUM_PAIRS {
            pairs.clear();
            text
        } else {
            prompt_text
        };
        let (prompt, negative_prompt) = prompt_lines(prompt_text);
        let (prompt, loras) = take_tags(&prompt);
        let mut recipe = Self { prompt, negative_prompt, loras, ..Self::default() };
        pairs.into_iter().for_each(|(key, value)| recipe.set(key, value));
        recipe.split_sampler();
        recipe
    }

    /// Prompt and negative prompt as lines.
    fn lines(&self) -> String {
        let prompt = Some(self.prompt.clone()).filter(|p| !p.is_empty());
        let mut parts: Vec<String> =
            prompt.into_iter().chain(self.loras.iter().map(LoraUse::to_tag)).collect();
        if self.prompt.contains(NEGATIVE) {
            // Behind such a line the tags would read as negative prompt.
            parts.rotate_left(1);
        }
        let mut text = parts.join(" ");
        if !self.negative_prompt.is_empty() {
            text.push_str(&format!("\n{NEGATIVE} {}", self.negative_prompt));
        }
        text
    }

    /// Keys and values in the web UI's order.
    fn pairs(&self) -> Vec<(&str, String)> {
        let hashes: Vec<(&str, &str)> =
            self.loras.iter().filter_map(|l| Some((l.name.as_str(), l.hash.as_deref()?))).collect();
        let words: Vec<(&str, &str)> =
            self.embeddings.iter().filter_map(|e| Some((e.name.as_str(), e.hash.as_deref()?))).collect();
        let known = [
            ("Steps", self.steps.map(|v| v.to_string())),
            ("Sampler", self.sampler.as_deref().map(names::sampler_label)),
            ("Schedule type", self.schedule.as_deref().map(names::schedule_label)),
            ("CFG scale", self.cfg_scale.map(|v| v.to_string())),
            ("Seed", self.seed.map(|v| v.to_string())),
            ("Size", self.size_px.map(|(w, h)| format!("{w}x{h}"))),
            ("Model hash", self.model_hash.clone()),
            ("Model", self.model.clone()),
            ("Denoising strength", self.denoising_strength.map(|v| v.to_string())),
            ("Clip skip", self.clip_skip.map(|v| v.to_string())),
            ("Eta", self.eta.map(|v| v.to_string())),
        ];
        let last = [
            ("Lora hashes", Some(pairs::write_hashes(&hashes)).filter(|h| !h.is_empty())),
            ("TI hashes", Some(pairs::write_hashes(&words)).filter(|h| !h.is_empty())),
            ("Version", self.version.clone()),
        ];
        let other = self.other.iter().map(|(k, v)| (k.as_str(), Some(v.clone())));
        known.into_iter().chain(other).chain(last).filter_map(|(k, v)| Some((k, v?))).collect()
    }

    /// Takes one pair in; what cannot be read as its key promises is kept as it is.
    fn set(&mut self, key: String, value: String) {
        let understood = match key.as_str() {
            "Steps" => put(&mut self.steps, value.parse().ok()),
            "Sampler" => put(&mut self.sampler, Some(value.clone())),
            "Schedule type" => put(&mut self.schedule, Some(names::schedule_name(&value))),
            "CFG scale" => put(&mut self.cfg_scale, number(&value)),
            "Seed" => put(&mut self.seed, value.parse().ok()),
            "Size" => put(&mut self.size_px, size(&value)),
            "Model hash" => put(&mut self.model_hash, Some(value.clone())),
            "Model" => put(&mut self.model, Some(value.clone())),
            "Denoising strength" => put(&mut self.denoising_strength, number(&value)),
            "Clip skip" => put(&mut self.clip_skip, value.parse().ok()),
            "Eta" => put(&mut self.eta, number(&value)),
            "Version" => put(&mut self.version, Some(value.clone())),
            "Lora hashes" => self.set_hashes(&value),
            "TI hashes" => self.set_embeddings(&value),
            EXACT => replace(&mut self.prompt, &value),
            EXACT_NEGATIVE => replace(&mut self.negative_prompt, &value),
            _ => false,
        };
        if !understood {
            self.other.push((key, value));
        }
    }

    /// Gives each listed hash to the adapter of that name; false if none has it.
    fn set_hashes(&mut self, list: &str) -> bool {
        let mut used = false;
        for (name, hash) in pairs::parse_hashes(list) {
            let same = |l: &&mut LoraUse| l.hash.is_none() && pairs::plain_name(&l.name) == name;
            if let Some(lora) = self.loras.iter_mut().find(same) {
                lora.hash = Some(hash);
                used = true;
            }
        }
        used
    }

    /// True if the list names some.
    fn set_embeddings(&mut self, list: &str) -> bool {
        let found = pairs::parse_hashes(list).into_iter().filter(|(name, _)| !name.is_empty());
        self.embeddings.extend(found.map(|(name, hash)| EmbeddingUse { name, hash: Some(hash) }));
        !self.embeddings.is_empty()
    }

    /// Older files name the schedule in the sampler: `DPM++ 2M Karras`.
    fn split_sampler(&mut self) {
        let Some(label) = self.sampler.take() else { return };
        let (sampler, schedule) = names::split_label(&label);
        self.sampler = Some(sampler);
        self.schedule = self.schedule.take().or(schedule);
    }
}

/// This program and its version, for [`Recipe::version`].
pub fn this_version() -> String {
    concat!("scumble ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Splits at the first line that starts with `Negative prompt:`.
fn prompt_lines(text: &str) -> (String, String) {
    let (mut prompt, mut negative): (Vec<&str>, Vec<&str>) = Default::default();
    let mut in_negative = false;
    for line in text.trim().split('\n').map(str::trim) {
        let rest = line.strip_prefix(NEGATIVE);
        in_negative |= rest.is_some();
        let part = if in_negative { &mut negative } else { &mut prompt };
        part.push(rest.map_or(line, str::trim));
    }
    (prompt.join("\n"), negative.join("\n"))
}

/// Tags nobody here understands stay in the prompt: a picture's text is shown even if it cannot be repeated.
fn take_tags(prompt: &str) -> (String, Vec<LoraUse>) {
    match LoraUse::extract(prompt) {
        Ok((text, found)) if !found.is_empty() => (text.trim().to_owned(), found),
        _ => (prompt.to_owned(), Vec::new()),
    }
}

fn put<T>(slot: &mut Option<T>, value: Option<T>) -> bool {
    let understood = value.is_some() && slot.is_none();
    if understood {
        *slot = value;
    }
    understood
}

fn replace(slot: &mut String, value: &str) -> bool {
    value.clone_into(slot);
    true
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|v: &f64| v.is_finite())
}

fn size(text: &str) -> Option<(usize, usize)> {
    let (width, height) = text.split_once('x')?;
    Some((width.parse().ok()?, height.parse().ok()?))
}

#[cfg(test)]
mod tests;
