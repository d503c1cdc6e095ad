//! Adapters as users name them: `file.safetensors:0.8` on the command line, `<lora:name:0.8>` in prompts.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use super::Context;
use crate::{
    adapter::{Blend, LoadOptions, Strength, metadata::FileHashes},
    error::{Error, Result},
    pipeline::{Pipeline, infotext::LoraUse},
    prompt::tags::LoraTag,
    weights::reader::SafetensorsFile,
};

/// `file[:weight]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LoraArg {
    pub path: PathBuf,
    pub strength: Strength,
}

impl FromStr for LoraArg {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        // A file of that very name wins: names may have colons, and so do Windows' drives.
        if Path::new(s).exists() {
            return Ok(Self { path: s.into(), strength: Strength::default() });
        }
        match s.rsplit_once(':') {
            Some((path, weight)) if !path.is_empty() && !weight.contains(['/', '\\']) => {
                Ok(Self { path: path.into(), strength: weight.parse()? })
            }
            _ => Ok(Self { path: s.into(), strength: Strength::default() }),
        }
    }
}

/// Which adapters to use and where to look for those that are only named.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub files: Vec<LoraArg>,
    pub named: Vec<LoraUse>,
    pub folders: Vec<PathBuf>,
    pub allow_unmatched: bool,
}

/// Loads adapters, blends them into the pipeline and returns what recipes say of them.
pub(super) fn apply(wanted: &Wanted, pipeline: &mut Pipeline, context: &Context) -> Result<Vec<LoraUse>> {
    let mut all = wanted.files.clone();
    for lora in &wanted.named {
        let LoraTag { name, te, unet } = &lora.tag;
        all.push(LoraArg { path: find(name, &wanted.folders)?, strength: Strength::split(*unet, *te) });
    }
    let known: Vec<Option<&str>> = std::iter::repeat_n(None, wanted.files.len())
        .chain(wanted.named.iter().map(|l| l.hash.as_deref()))
        .collect();
    let (mut blend, mut used) = (Blend::new(), Vec::new());
    for (lora, expected) in all.iter().zip(known) {
        let options = LoadOptions { allow_unmatched: wanted.allow_unmatched, ..LoadOptions::default() };
        let adapter = pipeline.load_adapter(&lora.path, &options)?;
        let name = stem(&lora.path);
        let report = &adapter.report;
        let total = report.matched + report.unmatched.len();
        context.console.note(&format!(
            "{name}: {}, {} of {total} keys, weight {}",
            report.dialect, report.matched, lora.strength
        ));
        for warning in report.warnings.iter().cloned().chain(report.unmatched.iter().map(ToString::to_string))
        {
            context.console.note(&format!("warning: {name}: {warning}"));
        }
        let hash = FileHashes::of(&SafetensorsFile::open(&lora.path)?).auto_v3;
        if let Some(expected) = expected.filter(|e| *e != hash) {
            context.console.note(&format!(
                "warning: {} is another file than the recipe names (hash {hash}, expected {expected}): \
                 the picture will differ",
                lora.path.display()
            ));
        }
        let tag =
            LoraTag { name: name.clone(), te: lora.strength.text_encoder(), unet: lora.strength.unet() };
        used.push(LoraUse { tag, hash: Some(hash) });
        blend = blend.with(name, adapter, lora.strength);
    }
    pipeline.set_blend(blend)?;
    Ok(used)
}

/// The file a prompt or a recipe means by a name.
fn find(name: &str, folders: &[PathBuf]) -> Result<PathBuf> {
    let mut seen = Vec::new();
    for folder in folders {
        let exact = folder.join(format!("{name}.safetensors"));
        if exact.is_file() {
            return Ok(exact);
        }
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let files = entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
        seen.extend(files.map(|p| stem(&p)));
    }
    seen.sort();
    let error = Error::unknown("adapter", name, seen.iter().map(String::as_str));
    let hint = error.hint().unwrap_or_default().to_owned();
    let looked: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    Err(error
        .with_hint(format!("{hint}; looked in {}: `--lora-dir` names another folder", looked.join(", "))))
}

pub(super) fn stem(path: &Path) -> String {
    path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_and_without_weight() -> Result<()> {
        let parse = |s: &str| s.parse::<LoraArg>();
        assert_eq!(parse("a.safetensors")?.strength, Strength::default());
        assert_eq!(
            parse("a.safetensors:0.8")?,
            LoraArg { path: "a.safetensors".into(), strength: Strength::uniform(0.8) }
        );
        assert_eq!(parse("a:unet=0.5,te=0")?.strength, Strength::split(0.5, 0.0));
        assert_eq!(parse(r"C:\loras\a.safetensors")?.path, PathBuf::from(r"C:\loras\a.safetensors"));
        assert!(parse("a.safetensors:strong").is_err());
        Ok(())
    }
}
