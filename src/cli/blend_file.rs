//! `--blend mix.toml`: adapters and weights in the words of `--lora`.
//!
//! ```toml
//! normalize = true
//!
//! [[adapter]]
//! file = "ink.safetensors"      # from this file's folder; or a name in the library
//! weight = "0..1@0-50%"         # a number, or anything `--lora` takes
//! te = 0.4
//! mask = "left.png"             # from this file's folder
//! blocks = { "down.0" = 0.5, mid = 1 }
//! ```

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::loras::LoraArg;
use crate::{
    adapter::{BlendMode, Strength, strength::Region},
    error::{Error, Result},
    files,
};

/// A mix.
#[derive(Debug, Default)]
pub(super) struct BlendFile {
    pub adapters: Vec<LoraArg>,
    pub normalize: bool,
    pub mode: BlendMode,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mix {
    #[serde(default)]
    normalize: bool,
    mode: Option<String>,
    #[serde(default)]
    adapter: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    file: PathBuf,
    weight: Option<Words>,
    unet: Option<Words>,
    te: Option<Words>,
    mask: Option<PathBuf>,
    outside: Option<PathBuf>,
    lbw: Option<Vec<f64>>,
    #[serde(default)]
    blocks: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Number(f64),
    Text(String),
}

impl BlendFile {
    pub fn read(path: &Path) -> Result<Self> {
        files::walk::expect(path, &["toml"])?;
        let text = files::read_text(path)?;
        let mix: Mix = toml::from_str(&text).map_err(|e| Error::file(path, e.message().to_owned()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let entry = |entry: Entry| {
            let name = entry.file.display().to_string();
            entry.parse(folder).map_err(|e| e.context(name).at(path))
        };
        Ok(Self {
            adapters: mix.adapter.into_iter().map(entry).collect::<Result<_>>()?,
            normalize: mix.normalize,
            mode: mix.mode.as_deref().map(str::parse).transpose()?.unwrap_or_default(),
        })
    }
}

impl Entry {
    fn parse(self, folder: &Path) -> Result<LoraArg> {
        let region = match (self.mask, self.outside) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("has a `mask` and an `outside`, expected one"));
            }
            (Some(file), None) => format!("@{}", Region::mask(folder.join(file), false)),
            (None, Some(file)) => format!("@{}", Region::mask(folder.join(file), true)),
            (None, None) => String::new(),
        };
        let mut items = Vec::new();
        let whole = self.unet.is_none();
        if let Some(weight) = &self.weight {
            items.push(format!("{}{}", weight.text(), if whole { &region } else { "" }));
        } else if whole && !region.is_empty() {
            items.push(format!("1{region}"));
        }
        items.extend(self.unet.map(|unet| format!("unet={}{region}", unet.text())));
        items.extend(self.te.map(|te| format!("te={}", te.text())));
        items.extend(self.blocks.iter().map(|(block, factor)| format!("{block}={factor}")));
        items.extend(self.lbw.map(|lbw| {
            let numbers: Vec<String> = lbw.iter().map(ToString::to_string).collect();
            format!("lbw={}", numbers.join(","))
        }));
        let strength: Strength =
            if items.is_empty() { Strength::default() } else { items.join(",").parse()? };
        let beside = folder.join(&self.file);
        let path = if beside.exists() { beside } else { self.file };
        Ok(LoraArg { path, strength })
    }
}

impl Words {
    fn text(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_words_as_on_the_command_line() -> Result<()> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("mix.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            BlendFile::read(&path)
        };
        let mix = read(
            "normalize = true\nmode = \"live\"\n[[adapter]]\nfile = \"a\"\nweight = 1\n\
             [[adapter]]\nfile = \"b\"\nweight = \"0..1@0-50%\"\nte = 0.4\nblocks = { \"down.0\" = 0.5, mid = 1 }\n\
             [[adapter]]\nfile = \"c\"\nmask = \"left.png\"\n[[adapter]]\nfile = \"d\"\nweight = \"te=0.5,mid=2\"\n\
             [[adapter]]\nfile = \"e\"\nlbw = [1, 0, 0, 0, 1, 1, 1, 0.5, 1, 1, 1, 1]",
        )?;
        assert!(mix.normalize && mix.mode == BlendMode::Live);
        let words: Vec<String> = mix.adapters.iter().map(|a| a.strength.to_string()).collect();
        let mask = dir.path().join("left.png");
        assert_eq!(words[..2], ["1", "unet=0..1@0-50%,te=0.4,down.0=0.5,mid=1"]);
        assert_eq!(words[2], format!("1@mask={}", mask.display()));
        assert_eq!(words[3..], ["unet=1,te=0.5,mid=2", "1,lbw=1,0,0,0,1,1,1,0.5,1,1,1,1"]);
        for wrong in [
            "wieght = 1",
            "[[adapter]]\nweight = 1",
            "[[adapter]]\nfile = \"a\"\nweight = \"x\"",
            "mode = \"both\"",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }
}
