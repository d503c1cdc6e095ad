//! How well a file fits a model, from the header alone.

use super::{NameTable, prefix, suffix, suffix::Param};
use crate::weights::reader::SafetensorsFile;

/// How many of a file's keys a model has a layer for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fit {
    /// Keys whose layer exists with a fitting width.
    pub fitting: usize,
    /// Keys whose layer is missing or of another width.
    pub other: usize,
}

impl Fit {
    /// Counts a file's keys against a model's layers.
    pub fn of(file: &SafetensorsFile, table: &NameTable) -> Self {
        let mut fit = Self::default();
        for (key, entry) in &file.header().tensors {
            let found = suffix::split(key).and_then(|(module, param)| {
                let path = table.resolve(&prefix::parse(module)).ok()?;
                let base = table.shape(&path)?;
                Some(match param {
                    Param::Down => entry.shape.get(1) == base.get(1),
                    Param::Up => entry.shape.first() == base.first(),
                    _ => true,
                })
            });
            if found == Some(true) {
                fit.fitting += 1;
            } else {
                fit.other += 1;
            }
        }
        fit
    }
}
