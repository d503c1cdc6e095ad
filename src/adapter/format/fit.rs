//! How well a file fits a model, from the header alone.

use std::collections::BTreeMap;

use super::{
    NameTable, prefix,
    suffix::{self, Param},
};
use crate::weights::reader::{Entry, SafetensorsFile};

/// How many of a file's keys a model has a layer for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fit {
    /// Keys whose layer exists with a fitting size.
    pub fitting: usize,
    /// Keys whose layer is missing or of another size.
    pub other: usize,
}

impl Fit {
    /// Counts a file's keys against a model's layers.
    pub fn of(file: &SafetensorsFile, table: &NameTable) -> Self {
        let (mut fit, tensors) = (Self::default(), &file.header().tensors);
        for (key, entry) in tensors {
            let found =
                suffix::split_among(key, |key| tensors.contains_key(key)).and_then(|(module, param)| {
                    let path = table.resolve(&prefix::parse(module)).ok()?;
                    Some(fits(param, &entry.shape, table.shape(&path)?, &Siblings { tensors, module }))
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

/// A module's other parameters.
struct Siblings<'a> {
    tensors: &'a BTreeMap<String, Entry>,
    module: &'a str,
}

impl Siblings<'_> {
    fn shape(&self, suffix: &str) -> Option<&[usize]> {
        self.tensors.get(&format!("{}{suffix}", self.module)).map(|entry| entry.shape.as_slice())
    }

    /// Rows and columns of the first or second Kronecker factor.
    fn factor(&self, n: usize) -> Option<(usize, usize)> {
        if let Some([rows, columns, ..]) = self.shape(&format!(".lokr_w{n}")) {
            return Some((*rows, *columns));
        }
        let (a, b) = (self.shape(&format!(".lokr_w{n}_a"))?, self.shape(&format!(".lokr_w{n}_b"))?);
        // Beside a Tucker core the first is stored transposed.
        let rows = a.get(usize::from(self.shape(&format!(".lokr_t{n}")).is_some()))?;
        Some((*rows, b.iter().skip(1).product()))
    }
}

/// True if a parameter may be of a layer with a weight of shape `base`. What tells nothing fits.
fn fits(param: Param, shape: &[usize], base: &[usize], beside: &Siblings<'_>) -> bool {
    let (outputs, inputs) = (base.first().copied().unwrap_or(0), base.get(1).copied());
    let (count, all) = (shape.iter().product::<usize>(), base.iter().product::<usize>());
    let reads = |width: usize| inputs.is_some_and(|inputs| width == inputs || width * outputs == all);
    match param {
        Param::Down => shape.get(1).copied() == inputs,
        Param::Up => shape.first() == Some(&outputs),
        // Beside Tucker cores these are stored transposed.
        Param::HadaW1A | Param::HadaW2A => shape.contains(&outputs),
        Param::HadaW1B | Param::HadaW2B => reads(shape.iter().skip(1).product()),
        Param::LokrW1 | Param::LokrW2 | Param::LokrW1A | Param::LokrW1B | Param::LokrW2A | Param::LokrW2B => {
            match (beside.factor(1), beside.factor(2)) {
                (Some(a), Some(b)) => a.0 * b.0 == outputs && reads(a.1 * b.1),
                _ => true,
            }
        }
        // Of either layout.
        Param::GloraA1 | Param::GloraA2 => inputs.is_some_and(|inputs| shape.contains(&inputs)),
        Param::OftBlocks | Param::OftDiag => shape.iter().rev().skip(1).take(2).product::<usize>() == outputs,
        Param::Diff => count == all,
        Param::DiffB | Param::WNorm | Param::BNorm => count == outputs,
        Param::DoraScale | Param::MagnitudeVector | Param::Ia3Weight | Param::Ia3L => {
            count == outputs || Some(count) == inputs
        }
        _ => true,
    }
}
