//! Adapters as users name them: `file.safetensors:0.8` on the command line, `<lora:name:0.8>` in prompts, blend files.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

pub(super) use super::folders::stem;
use super::{Context, adapter_files::LoadArgs, blend_file::BlendFile, folders::Shelves};
use crate::{
    adapter::{Blend, BlendMode, Strength, format::folder, guard, metadata::FileHashes},
    engine,
    error::{Error, Result},
    files,
    pipeline::{Pipeline, infotext::LoraUse},
    weights::hashes::HashCache,
};

/// The SHA-256 of no bytes.
const OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// More adapters than this are not looked through for overlap unasked: it takes time.
const GUARDED: usize = 4;

/// `file[:weight]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LoraArg {
    /// A file, or a name to look for in the library's folders.
    pub path: PathBuf,
    pub strength: Strength,
}

impl FromStr for LoraArg {
    type Err = Error;

    /// A file of that very name wins, then the longest part in front of a colon that is a file: names may have colons,
    /// and so do Windows' drives. If there is no such file, the colon behind `.safetensors` counts, else the first that
    /// is not a drive's.
    fn from_str(s: &str) -> Result<Self> {
        let file = |path: &str| Path::new(path).is_file();
        if s.is_empty() {
            return Err(Error::invalid("expected an adapter's file"));
        }
        if Path::new(s).exists() {
            return Ok(Self { path: s.into(), strength: Strength::default() });
        }
        let colons: Vec<usize> = s.match_indices(':').map(|(i, _)| i).collect();
        let is_drive = |i: usize| i == 1 && s[i + 1..].starts_with(['\\', '/']);
        let existing = colons.iter().copied().rev().find(|i| file(&s[..*i]));
        let named = || colons.iter().copied().find(|i| s[..*i].ends_with(".safetensors"));
        let first = || colons.iter().copied().find(|i| *i > 0 && !is_drive(*i));
        match existing.or_else(named).or_else(first) {
            None => Ok(Self { path: s.into(), strength: Strength::default() }),
            Some(at) => Ok(Self { path: s[..at].into(), strength: s[at + 1..].parse()? }),
        }
    }
}

/// Options of every command that blends.
#[derive(Debug, Default, Clone, clap::Args)]
pub(super) struct BlendArgs {
    /// A style and its weight, as often as you like: my-style.safetensors:0.8, :unet=0.8,te=0.4, :0..1@0-50%, :0.8@mask=left.png, :1,down.0=0.5 (docs/blending.md)
    #[arg(long, short, value_name = "FILE[:WEIGHT]", value_parser = super::setup::hinted::<LoraArg>)]
    pub lora: Vec<LoraArg>,
    /// A file of styles and weights (TOML)
    #[arg(long, value_name = "FILE")]
    pub blend: Option<PathBuf>,
    /// Where styles that are only named lie, as often as you like
    #[arg(long, value_name = "FOLDER")]
    pub lora_dir: Vec<PathBuf>,
    #[command(flatten)]
    pub loading: LoadArgs,
    /// Keep styles that pull the same way from adding up
    #[arg(long)]
    pub normalize: bool,
}

impl BlendArgs {
    /// True if some adapter is named.
    pub fn names_any(&self) -> bool {
        !self.lora.is_empty() || self.blend.is_some()
    }

    /// What is wanted, with the adapters some text names.
    pub fn wanted(&self, named: Vec<LoraUse>) -> Result<Wanted> {
        let file = self.blend.as_deref().map(BlendFile::read).transpose()?.unwrap_or_default();
        let mut folders = self.lora_dir.clone();
        folders.extend([PathBuf::from("."), PathBuf::from("loras")]);
        Ok(Wanted {
            files: [&self.lora[..], &file.adapters].concat(),
            named,
            folders,
            other_adapters: false,
            loading: self.loading,
            normalize: self.normalize || file.normalize,
            mode: file.mode,
        })
    }
}

/// Which adapters to use and where to look for those that are only named.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub files: Vec<LoraArg>,
    pub named: Vec<LoraUse>,
    pub folders: Vec<PathBuf>,
    /// Allows files of other content than a recipe says, by their names.
    pub other_adapters: bool,
    pub loading: LoadArgs,
    pub normalize: bool,
    pub mode: BlendMode,
}

impl Wanted {
    /// What the adapters were called, in order.
    pub fn names(&self) -> Vec<String> {
        let named = self.named.iter().map(|lora| lora.name.clone());
        self.files.iter().map(|lora| stem(&lora.path)).chain(named).collect()
    }
}

/// The files that are meant, before any model is opened.
pub(super) fn find(wanted: &Wanted, context: &Context) -> Result<Vec<LoraArg>> {
    let cache = files::cache_folder();
    let shelves = Shelves { folders: &wanted.folders, cache: Some(&cache), cancel: &context.cancel };
    let mut found = Vec::new();
    for LoraArg { path, strength } in &wanted.files {
        found.push(LoraArg { path: shelves.file_or_named(path)?, strength: strength.clone() });
    }
    for lora in &wanted.named {
        let path = match lora.hash.as_deref().filter(|hash| is_hash(hash)) {
            Some(hash) => of_recipe((&lora.name, hash), wanted, shelves, context)?,
            None => shelves.find(&lora.name)?,
        };
        found.push(LoraArg { path, strength: lora.strength.clone() });
    }
    Ok(found)
}

/// The file a recipe means: what it holds counts, not what it is called.
fn of_recipe(
    (name, hash): (&str, &str),
    wanted: &Wanted,
    shelves: Shelves<'_>,
    context: &Context,
) -> Result<PathBuf> {
    if let Some(path) = shelves.named_with_hash(name, hash)? {
        return Ok(path);
    }
    let note = |text: String| context.console.note(&text);
    note(format!("looking for the recipe's `{name}` by its hash {hash}"));
    if let Some(path) = shelves.any_with_hash(hash)? {
        note(format!("`{name}` is {} here", path.display()));
        return Ok(path);
    }
    let path = shelves.find(name)?;
    let message = format!("is another file than the recipe's `{name}`, whose hash is {hash}");
    if wanted.other_adapters {
        note(format!("warning: {} {message}: the picture will differ", path.display()));
        return Ok(path);
    }
    Err(Error::file(path, message).with_hint(
        "`--lora-dir` names a folder with the right one; `--allow-other-adapters` draws with this one",
    ))
}

/// False for what no file can have: some programs write the hash of nothing where they know none.
fn is_hash(text: &str) -> bool {
    let digits = text.len() >= 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
    digits && !OF_NOTHING.starts_with(&text.to_ascii_lowercase())
}

/// Loads adapters, blends them into the pipeline and returns what recipes say of them.
pub(super) fn apply(
    wanted: &Wanted,
    found: Vec<LoraArg>,
    pipeline: &mut Pipeline,
    context: &Context,
) -> Result<Vec<LoraUse>> {
    let (blend, used) = load(wanted, found, pipeline, context)?;
    let guarded = blend.entries.len() <= GUARDED;
    let may_be_much = blend.entries.len() > 1
        || blend.entries.iter().any(|e| e.strength.at_peak().unet().peak().abs() > guard::LIMIT);
    pipeline.set_blend(blend)?;
    if guarded && may_be_much {
        for warning in pipeline.blend_report()?.warnings {
            context.console.note(&format!("warning: {warning}"));
        }
    }
    Ok(used)
}

/// Loads adapters without applying them.
pub(super) fn load(
    wanted: &Wanted,
    found: Vec<LoraArg>,
    pipeline: &mut Pipeline,
    context: &Context,
) -> Result<(Blend, Vec<LoraUse>)> {
    let mut blend = Blend { mode: wanted.mode, normalize: wanted.normalize, ..Blend::new() };
    let (mut used, table) = (Vec::new(), pipeline.name_table()?);
    for (index, LoraArg { path, mut strength }) in found.into_iter().enumerate() {
        let repeated =
            index.checked_sub(wanted.files.len()).and_then(|at| wanted.named.get(at)?.hash.as_ref());
        match strength.check_blocks(&table).map_err(|e| e.context(format!("the weight of `{}`", stem(&path))))
        {
            // The viewer keeps factors on blocks that only other models have.
            Err(e) if repeated.is_some() => context.console.note(&format!("warning: {e}")),
            checked => checked?,
        }
        let adapter = pipeline.load_adapter(&path, &wanted.loading.options())?;
        let name = stem(&path);
        let report = &adapter.report;
        let total = report.matched + report.unmatched.len();
        context.console.note(&format!(
            "{name}: {}, {} of {total} keys, weight {strength}",
            report.dialect, report.matched
        ));
        for warning in report.warnings.iter().cloned().chain(report.unmatched.iter().map(ToString::to_string))
        {
            context.console.note(&format!("warning: {name}: {warning}"));
        }
        let file = folder::map(&path)?;
        let hash = FileHashes::short(&HashCache::from_env().digests(&file, &context.cancel)?).auto_v3;
        strength.read_mask(&mut engine::read_mask)?;
        used.push(LoraUse { name: name.clone(), strength: strength.clone(), hash: Some(hash) });
        blend = blend.with(name, adapter, strength);
    }
    Ok((blend, used))
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
        let both = parse(r#"C:\loras\a.safetensors:0.8@mask="D:\masks\m.png""#)?;
        assert_eq!(both.path, PathBuf::from(r"C:\loras\a.safetensors"));
        assert_eq!(both.strength.region().and_then(|r| r.file()), Some(Path::new(r"D:\masks\m.png")));
        assert_eq!(parse("a.safetensors:0.8@mask=masks/m.png")?.path, PathBuf::from("a.safetensors"));
        assert!(parse("a.safetensors:strong").is_err());
        assert!(parse("").is_err());
        Ok(())
    }

    #[test]
    fn existing_files_win_over_weights() -> Result<()> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let name = |name: &str| folder.path().join(name).display().to_string();
        for file in ["x", "x:0.5", "x:0.5:2"] {
            std::fs::write(name(file), b"").expect("a file");
        }
        for (text, path, weight) in [
            ("x:0.5", "x:0.5", 1.0),
            ("x:0.5:0.3", "x:0.5", 0.3),
            ("x:0.7", "x", 0.7),
            ("x:0.5:2:4", "x:0.5:2", 4.0),
        ] {
            let found = name(text).parse::<LoraArg>()?;
            assert_eq!(
                (found.path.display().to_string(), found.strength),
                (name(path), Strength::uniform(weight))
            );
        }
        Ok(())
    }
}
