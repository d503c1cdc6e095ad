//! A style of the blend: a file, and how strongly it acts where and when.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// A style of the blend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Style {
    /// Its file.
    pub path: PathBuf,
    /// In the denoising network; everywhere if not split.
    pub weight: f64,
    /// In the text encoders, if split.
    pub text_weight: Option<f64>,
    /// Takes part.
    pub on: bool,
    /// Only those with this take part, if there are any.
    pub solo: bool,
    /// Factors on blocks as a weight's words name them (`down.0`, `mid`, `in04`), and `te`. What is not named is 1.
    #[serde(default)]
    pub blocks: BTreeMap<String, f64>,
    /// What the weight is multiplied by over the steps, if it changes; the text encoders' too, if not split.
    #[serde(default)]
    pub steps: Option<Knots>,
    /// The same of the text encoders' own weight.
    #[serde(default)]
    pub text_steps: Option<Knots>,
    /// Where in the picture it acts.
    #[serde(default)]
    pub place: Place,
}

/// Percent of the steps, not falling, and a value; straight lines between. Two at one place are a jump.
pub type Knots = Vec<(f64, f64)>;

/// Where in the picture a style acts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Place {
    /// All over it.
    #[default]
    Everywhere,
    /// A half.
    Left,
    /// A half.
    Right,
    /// A half.
    Top,
    /// A half.
    Bottom,
    /// Where a mask is white.
    Painted {
        /// The mask's file. Until there is one, the style acts everywhere.
        mask: Option<PathBuf>,
        /// Where it is black instead.
        outside: bool,
    },
}

impl Style {
    /// A style at a weight.
    pub fn new(path: impl Into<PathBuf>, weight: f64) -> Self {
        Self {
            path: path.into(),
            weight,
            text_weight: None,
            on: true,
            solo: false,
            blocks: BTreeMap::new(),
            steps: None,
            text_steps: None,
            place: Place::Everywhere,
        }
    }

    /// What it is called: the file's name.
    pub fn name(&self) -> String {
        stem(&self.path)
    }

    /// The factor on a block: its own, or that of all on its side.
    pub fn factor(&self, block: &str) -> f64 {
        let side = block.split_once('.').map_or(block, |(side, _)| side);
        self.blocks.get(block).or_else(|| self.blocks.get(side)).copied().unwrap_or(1.0)
    }

    /// Sets the factor on a block. 1 is not kept, unless all on its side have another.
    pub fn set_factor(&mut self, block: &str, factor: f64) {
        self.blocks.remove(block);
        if self.factor(block) != factor {
            self.blocks.insert(block.to_owned(), factor);
        }
    }
}

/// A file's name without its ending.
pub fn stem(path: &Path) -> String {
    path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What eframe keeps, of one entry.
    struct Kept(String);

    impl eframe::Storage for Kept {
        fn get_string(&self, _: &str) -> Option<String> {
            Some(self.0.clone())
        }
        fn set_string(&mut self, _: &str, value: String) {
            self.0 = value;
        }
        fn remove_string(&mut self, _: &str) {}
        fn flush(&mut self) {}
    }

    #[test]
    fn settings_from_before_and_all_of_a_style_are_remembered() {
        let old = r#"(styles:Some([(path:"a.safetensors",weight:0.5,text_weight:None,on:true,solo:false)]))"#;
        let mut kept = Kept(old.into());
        let settings: super::super::Settings = eframe::get_value(&kept, "settings").expect("settings");
        assert_eq!(settings.styles, Some(vec![Style::new("a.safetensors", 0.5)]));
        let style = Style {
            text_weight: Some(0.25),
            blocks: [("down.0".to_owned(), 0.5)].into(),
            steps: Some(vec![(0.0, 0.0), (100.0, 1.0)]),
            place: Place::Painted { mask: Some("mask.png".into()), outside: true },
            ..Style::new("b.safetensors", -1.0)
        };
        eframe::set_value(&mut kept, "style", &style);
        assert_eq!(eframe::get_value::<Style>(&kept, "style"), Some(style));
    }
}
