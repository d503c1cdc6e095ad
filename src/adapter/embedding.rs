//! Textual inversions (<https://arxiv.org/abs/2208.01618>): a word that stands for trained vectors in the text
//! encoder's table, from a file of its own or from inside an adapter's.
//!
//! One text encoder: `emb_params`, `string_to_param.*`, `clip_l`, or a file's only tensor (diffusers names it by its
//! word). SDXL: `clip_l` and `clip_g`. Inside an adapter the same stand behind `bundle_emb.NAME.`. Names are the
//! author's text: they are compared with prompts and shown, never used as paths.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use candle_core::Tensor;
use sha2::{Digest as _, Sha256};

use super::{Blend, Lineage, NameTable, Unmatched, delta::numbers, report::Reason};
use crate::{
    error::{Error, Result},
    files::walk,
    nn::{LayerPath, Part},
    weights::reader::SafetensorsFile,
};

/// Before the names of textual inversions inside an adapter's file.
pub(crate) const BUNDLE: &str = "bundle_emb.";
/// A row of a prompt holds no more, and an embedding is never cut.
const MAX_VECTORS: usize = 75;
/// The largest embedding there can be has a few megabytes.
const MAX_FILE_BYTES: u64 = 16 << 20;
const MAX_NAME_CHARS: usize = 200;

/// A word and the vectors it stands for.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// What prompts call it.
    pub name: String,
    /// The first 12 digits of the file's sha256, as A1111's `TI hashes` has them; `None` if it came inside an adapter.
    pub hash: Option<String>,
    /// For each of the model's text encoders (n, d), in the dtype of the file.
    vectors: BTreeMap<Part, Tensor>,
}

/// The embeddings of an adapter's file.
#[derive(Debug, Default)]
pub(crate) struct Bundle {
    pub embeddings: Vec<Arc<Embedding>>,
    /// Keys that were read.
    pub matched: usize,
    pub unmatched: Vec<Unmatched>,
}

impl Embedding {
    /// Reads a file for the model `table` was made from; its name is the file's.
    ///
    /// # Errors
    /// If the file is malformed, holds something else, or was made for another family.
    pub fn load(path: impl AsRef<Path>, table: &NameTable) -> Result<Self> {
        let path = path.as_ref();
        let file = open(path)?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let found = slots(&file).map_err(|e| e.at(path))?;
        let hash = format!("{:x}", Sha256::digest(file.file_bytes()))[..12].to_string();
        let embedding = fit(name, &file, &found, &widths(table)).map_err(|e| e.at(path))?;
        Ok(Self { hash: Some(hash), ..embedding })
    }

    /// How many places of a prompt it takes.
    pub fn length(&self) -> usize {
        self.vectors.values().next().map_or(0, |v| v.dims()[0])
    }

    /// What one text encoder reads (n, d).
    pub fn vectors(&self, part: Part) -> Option<&Tensor> {
        self.vectors.get(&part)
    }

    /// True if both stand for the same values.
    ///
    /// # Errors
    /// If the device fails.
    pub fn same_vectors(&self, other: &Self) -> Result<bool> {
        let values = |e: &Self| -> Result<Vec<_>> {
            let of = |(part, t): (&Part, &Tensor)| Ok((*part, numbers(t)?));
            e.vectors.iter().map(of).collect()
        };
        Ok(values(self)? == values(other)?)
    }

    /// The tensors by the names they have behind the embedding's in an adapter's file.
    pub(crate) fn tensors(&self) -> Vec<(&'static str, Tensor)> {
        let alone = self.vectors.len() == 1;
        let name = |part| match part {
            Part::TextEncoder if alone => "emb_params",
            Part::TextEncoder2 => "clip_g",
            _ => "clip_l",
        };
        self.vectors.iter().map(|(part, tensor)| (name(*part), tensor.clone())).collect()
    }
}

impl Bundle {
    /// Reads what stands behind `bundle_emb.`; keys that cannot be used are listed.
    ///
    /// # Errors
    /// If an embedding is malformed or was made for another family.
    pub fn read(file: &SafetensorsFile, table: &NameTable) -> Result<Self> {
        let (mut bundle, widths) = (Self::default(), widths(table));
        let mut named: BTreeMap<&str, BTreeMap<Slot, String>> = BTreeMap::new();
        for key in file.names().filter(|key| key.starts_with(BUNDLE)) {
            let (name, vector) = split(key);
            let reason = match Slot::of(vector) {
                _ if widths.is_empty() => Reason::MissingComponent(Part::TextEncoder),
                Ok(slot) => {
                    put(named.entry(name).or_default(), slot, key)?;
                    continue;
                }
                Err(reason) => reason,
            };
            bundle.unmatched.push(Unmatched { key: key.to_string(), reason });
        }
        for (name, found) in named {
            let embedding = fit(name.to_string(), file, &found, &widths);
            let embedding =
                embedding.map_err(|e| e.context(format!("bundled embedding `{}`", name.escape_debug())))?;
            bundle.embeddings.push(Arc::new(embedding));
            bundle.matched += found.len();
        }
        Ok(bundle)
    }
}

/// The embeddings that a blend's adapters bring.
pub(crate) fn of_blend(blend: &Blend) -> Vec<Arc<Embedding>> {
    blend.entries.iter().flat_map(|entry| entry.adapter.embeddings.iter().cloned()).collect()
}

/// How two of one name come about in [`of_blend`].
pub(crate) const CLASH: &str = "brought by two adapters, with different values";

/// `candidates` without repetitions and without those whose name is among `taken`.
///
/// # Errors
/// If two of the same name differ; `clash` says how that came about.
pub(crate) fn distinct(
    candidates: &[Arc<Embedding>],
    taken: &[Arc<Embedding>],
    clash: &str,
) -> Result<Vec<Arc<Embedding>>> {
    let same_name = |a: &Embedding, b: &Embedding| a.name.to_lowercase() == b.name.to_lowercase();
    let mut kept: Vec<Arc<Embedding>> = Vec::new();
    for candidate in candidates.iter().filter(|c| !taken.iter().any(|t| same_name(t, c))) {
        match kept.iter().find(|other| same_name(other, candidate)) {
            None => kept.push(candidate.clone()),
            Some(other) if Arc::ptr_eq(other, candidate) || other.same_vectors(candidate)? => {}
            Some(other) => return Err(Error::invalid(format!("the embedding `{}` is {clash}", other.name))),
        }
    }
    Ok(kept)
}

/// Which text encoder a tensor is for, as far as files say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    /// The only one.
    Only,
    ClipL,
    ClipG,
}

impl Slot {
    fn of(vector: &str) -> Result<Self, Reason> {
        match vector {
            "emb_params" => Ok(Self::Only),
            "clip_l" => Ok(Self::ClipL),
            "clip_g" => Ok(Self::ClipG),
            "clip_l_out" | "clip_g_out" => Err(Reason::Unsupported(OUTPUT)),
            _ if vector.starts_with(PARAMETER) => Ok(Self::Only),
            _ => Err(Reason::UnknownParameter),
        }
    }
}

const PARAMETER: &str = "string_to_param.";
const OUTPUT: &str = "an embedding added behind the text encoder (OneTrainer)";

/// `bundle_emb.NAME.VECTOR` in its two halves. Names may have dots of their own, and so has `string_to_param.*`.
pub(crate) fn split(key: &str) -> (&str, &str) {
    let rest = key.strip_prefix(BUNDLE).unwrap_or(key);
    let nested = rest.find(&format!(".{PARAMETER}")).map(|at| (&rest[..at], &rest[at + 1..]));
    let known = |(_, vector): &(&str, &str)| !matches!(Slot::of(vector), Err(Reason::UnknownParameter));
    nested
        .or_else(|| rest.rsplit_once('.').filter(known))
        .or_else(|| rest.split_once('.'))
        .unwrap_or((rest, ""))
}

/// A file that is small enough to be an embedding.
fn open(path: &Path) -> Result<SafetensorsFile> {
    walk::expect(path, &["safetensors"])?;
    let bytes = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if bytes.is_file() && bytes.len() > MAX_FILE_BYTES {
        let megabytes = bytes.len() >> 20;
        return Err(Error::file(path, format!("has {megabytes} MB, expected an embedding of at most 16"))
            .with_hint("an adapter is given with `--lora`"));
    }
    SafetensorsFile::read(path)
}

/// What a file of its own has for each text encoder.
fn slots(file: &SafetensorsFile) -> Result<BTreeMap<Slot, String>> {
    let keys: Vec<&str> = file.names().collect();
    let mut found = BTreeMap::new();
    for key in &keys {
        match Slot::of(key) {
            Ok(slot) => put(&mut found, slot, key)?,
            // diffusers: the only tensor, named by its word.
            Err(Reason::UnknownParameter) if keys.len() == 1 => put(&mut found, Slot::Only, key)?,
            Err(Reason::UnknownParameter) => {
                let key = key.escape_debug();
                return Err(Error::invalid(format!(
                    "`{key}` is not part of an embedding: expected `emb_params`, `string_to_param.*`, or `clip_l` and `clip_g`"
                ))
                .with_hint("an adapter is given with `--lora`"));
            }
            Err(reason) => return Err(Error::invalid(format!("`{key}`: {reason}"))),
        }
    }
    if found.is_empty() {
        return Err(Error::invalid("the file has no tensors, expected an embedding"));
    }
    Ok(found)
}

fn put(found: &mut BTreeMap<Slot, String>, slot: Slot, key: &str) -> Result<()> {
    match found.insert(slot, key.to_string()) {
        Some(first) => Err(same_encoder(&first, key)),
        None => Ok(()),
    }
}

fn same_encoder(a: &str, b: &str) -> Error {
    let (a, b) = (a.escape_debug(), b.escape_debug());
    Error::invalid(format!("`{a}` and `{b}` are for the same text encoder"))
}

/// The text encoders of a model and their widths.
fn widths(table: &NameTable) -> Vec<(Part, usize)> {
    let width = |part| {
        let path = LayerPath { part, name: "text_model.embeddings.token_embedding".into() };
        Some((part, *table.shape(&path)?.get(1)?))
    };
    [Part::TextEncoder, Part::TextEncoder2].into_iter().filter_map(width).collect()
}

/// Gives each text encoder its tensor.
fn fit(
    name: String,
    file: &SafetensorsFile,
    found: &BTreeMap<Slot, String>,
    widths: &[(Part, usize)],
) -> Result<Embedding> {
    if name.trim().is_empty() || name.chars().count() > MAX_NAME_CHARS || name.chars().any(char::is_control) {
        return Err(Error::invalid(format!("`{}` cannot be a word of a prompt", name.escape_debug())));
    }
    if let (Some(only), Some(other)) = (found.get(&Slot::Only), found.values().nth(1)) {
        return Err(same_encoder(only, other));
    }
    let tensors: BTreeMap<Slot, Tensor> =
        found.iter().map(|(slot, key)| Ok((*slot, read(file, key)?))).collect::<Result<_>>()?;
    let slots: Vec<Slot> = tensors.keys().copied().collect();
    let wanted: &[Slot] = match (widths, slots.as_slice()) {
        ([_], [Slot::Only]) => &[Slot::Only],
        ([(Part::TextEncoder, _)], [Slot::ClipL]) => &[Slot::ClipL],
        // The refiner's only text encoder is SDXL's second.
        ([(Part::TextEncoder2, _)], [.., Slot::ClipG]) => &[Slot::ClipG],
        ([_, _], [Slot::ClipL, Slot::ClipG]) => &[Slot::ClipL, Slot::ClipG],
        _ => &[],
    };
    let pairs: Vec<(Part, usize, &Tensor)> = widths
        .iter()
        .zip(wanted)
        .filter_map(|((part, width), slot)| Some((*part, *width, tensors.get(slot)?)))
        .collect();
    if pairs.is_empty() || pairs.iter().any(|(_, width, tensor)| tensor.dims()[1] != *width) {
        let made: Vec<usize> = tensors.values().map(|t| t.dims()[1]).collect();
        let model: Vec<usize> = widths.iter().map(|(_, width)| *width).collect();
        return Err(Error::invalid(format!(
            "this embedding was made for {}, the model is {}",
            family(&made),
            family(&model)
        ))
        .with_hint(
            "use one that was trained on the model's family, or choose a model of its family with `--model`",
        ));
    }
    if let [(_, _, first), (_, _, second)] = pairs.as_slice()
        && first.dims()[0] != second.dims()[0]
    {
        let (l, g) = (first.dims()[0], second.dims()[0]);
        return Err(Error::invalid(format!("`clip_l` has {l} vectors and `clip_g` {g}: expected as many")));
    }
    let vectors = pairs.into_iter().map(|(part, _, tensor)| (part, tensor.clone())).collect();
    Ok(Embedding { name, hash: None, vectors })
}

/// A family by the widths of its text encoders.
fn family(widths: &[usize]) -> String {
    let lineage = match widths {
        [768] => Lineage::Sd1,
        [1024] => Lineage::Sd2,
        [768, 1280] => Lineage::Sdxl,
        [1280] => Lineage::SdxlRefiner,
        [128] => Lineage::Mini,
        _ => Lineage::Other(0),
    };
    let listed: Vec<String> = widths.iter().map(ToString::to_string).collect();
    format!("{} (text encoder width {})", lineage.name(), listed.join(" + "))
}

/// A checked tensor (n, d).
fn read(file: &SafetensorsFile, key: &str) -> Result<Tensor> {
    let wrong = |what: String| Error::invalid(format!("`{}` {what}", key.escape_debug()));
    let shape = file.header().tensors.get(key).map(|entry| entry.shape.clone()).unwrap_or_default();
    // One vector may come without the first dimension.
    let (n, d) = match shape[..] {
        [d] => (1, d),
        [n, d] => (n, d),
        _ => return Err(wrong(format!("has shape {shape:?}, expected (vectors, width)"))),
    };
    if !(1..=MAX_VECTORS).contains(&n) || d == 0 {
        return Err(wrong(format!(
            "has shape {shape:?}, expected 1 to {MAX_VECTORS} vectors, as a row of a prompt holds"
        )));
    }
    let tensor = file.tensor(key)?;
    if !tensor.dtype().is_float() {
        return Err(wrong(format!("has dtype {:?}, expected floating-point numbers", tensor.dtype())));
    }
    if numbers(&tensor)?.iter().any(|x| !x.is_finite()) {
        return Err(wrong("has values that are NaN or infinite".into()));
    }
    Ok(tensor.reshape((n, d))?)
}

#[cfg(test)]
mod tests;
