//! A file of any dialect into an [`Adapter`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use candle_core::{DType, Tensor};

use super::{
    LoadOptions, NameTable,
    peft::Config,
    prefix,
    suffix::{self, Param},
};
use crate::{
    adapter::{
        Adapter, Delta, LoadReport, LowRank, Metadata, Unmatched,
        report::{Lineage, Reason},
    },
    error::{Error, Result},
    nn::LayerPath,
    weights::reader::SafetensorsFile,
};

/// Unmatched keys for which the most similar layer is looked up.
const NEAREST_LOOKUPS: usize = 20;

/// A parameter as found: its key and its tensor.
type Found = (String, Tensor);

pub(crate) fn read(path: &Path, table: &NameTable, options: &LoadOptions) -> Result<Adapter> {
    let file = SafetensorsFile::read(path)?;
    assemble(&file, table, options).map_err(|e| e.context(path.display().to_string()))
}

fn assemble(file: &SafetensorsFile, table: &NameTable, options: &LoadOptions) -> Result<Adapter> {
    let metadata = Metadata(file.metadata().clone());
    let sorted = Sorted::sort(file, table)?;
    if let (Some(found), Some(wanted)) = (sorted.lineage, table.lineage())
        && found != wanted
    {
        return Err(Error::invalid(format!("this adapter was trained for {found}, the model is {wanted}"))
            .with_hint("choose a model of the adapter's family with `--model`"));
    }
    let config = Config::of(&metadata)?;
    let mut report = sorted.report();
    let mut layers = BTreeMap::new();
    for (path, params) in sorted.groups {
        report.matched += params.len();
        let key = params.values().next().map(|(key, _)| key.clone()).unwrap_or_default();
        let delta = low_rank(&path, params, &config).and_then(|delta| {
            delta.check(table.shape(&path).unwrap_or_default())?;
            Ok(delta)
        });
        let delta = delta.map_err(|e| e.context(format!("`{key}` ({path})")))?;
        note_odd_alpha(&path, &delta, &mut report);
        layers.insert(path, delta);
    }
    report.enforce(options.allow_unmatched)?;
    Ok(Adapter { layers, metadata, report })
}

/// A file's keys by the layer they belong to.
#[derive(Debug, Default)]
struct Sorted {
    groups: BTreeMap<LayerPath, BTreeMap<Param, Found>>,
    unmatched: Vec<Unmatched>,
    dialects: BTreeSet<&'static str>,
    lineage: Option<Lineage>,
}

impl Sorted {
    fn sort(file: &SafetensorsFile, table: &NameTable) -> Result<Self> {
        let mut sorted = Self::default();
        for key in file.names().filter(|key| !prefix::is_bookkeeping(key)) {
            let shape = file.header().tensors.get(key).map_or(&[][..], |entry| &entry.shape);
            match sorted.place(key, shape, table) {
                Ok((path, param)) => sorted.insert(path, param, (key.to_string(), file.tensor(key)?))?,
                Err(reason) => sorted.unmatched.push(Unmatched { key: key.to_string(), reason }),
            }
        }
        Ok(sorted)
    }

    fn place(&mut self, key: &str, shape: &[usize], table: &NameTable) -> Result<(LayerPath, Param), Reason> {
        let (name, param) = suffix::split(key)
            .ok_or_else(|| prefix::foreign(key).map_or(Reason::UnknownParameter, Reason::Foreign))?;
        let module = prefix::parse(name);
        if let Some(what) = prefix::foreign(name) {
            return Err(Reason::Foreign(what));
        }
        let reads_context = module.flat.ends_with("attn2_to_k") || module.flat.ends_with("attn2_to_v");
        if param == Param::Down && reads_context && shape.len() > 1 {
            self.lineage = Some(Lineage::of_cross_attention(shape[1]));
        }
        if let Param::Unsupported(algorithm) = param {
            return Err(Reason::Unsupported(algorithm));
        }
        self.dialects.insert(module.dialect);
        let path = table.resolve(&module).map_err(|reason| match reason {
            Reason::UnknownLayer { .. } if self.unmatched.len() < NEAREST_LOOKUPS => {
                Reason::UnknownLayer { nearest: table.nearest(&module) }
            }
            other => other,
        })?;
        Ok((path, param))
    }

    /// The same parameter may come twice in two spellings, but must then be the same.
    fn insert(&mut self, path: LayerPath, param: Param, found: Found) -> Result<()> {
        let params = self.groups.entry(path).or_default();
        match params.get(&param) {
            Some(first) if !same(&first.1, &found.1)? => Err(Error::invalid(format!(
                "`{}` and `{}` are the same parameter with different values",
                first.0, found.0
            ))),
            _ => {
                params.insert(param, found);
                Ok(())
            }
        }
    }

    fn report(&self) -> LoadReport {
        LoadReport {
            dialect: self.dialects.iter().copied().collect::<Vec<_>>().join(" + "),
            lineage: self.lineage,
            unmatched: self.unmatched.clone(),
            ..LoadReport::default()
        }
    }
}

fn low_rank(path: &LayerPath, mut params: BTreeMap<Param, Found>, config: &Config) -> Result<Delta> {
    let mut take = |param| params.remove(&param).map(|(_, tensor)| tensor);
    let (down, up, mid, alpha) = (take(Param::Down), take(Param::Up), take(Param::Mid), take(Param::Alpha));
    let (down, up) = match (down, up) {
        (Some(down), Some(up)) => (down, up),
        (Some(_), None) => return Err(Error::invalid("the down factor has no up factor")),
        (None, Some(_)) => return Err(Error::invalid("the up factor has no down factor")),
        (None, None) => return Err(Error::invalid("alpha or a core without factors")),
    };
    let alpha = match alpha {
        Some(alpha) => Some(number(&alpha)?),
        None => config.alpha(path, down.dims().first().copied().unwrap_or(0)),
    };
    Ok(Delta::LowRank(LowRank { down, up, mid, alpha }))
}

/// A scalar of any dtype, of shape [] or [1].
fn number(tensor: &Tensor) -> Result<f64> {
    if tensor.elem_count() != 1 {
        return Err(Error::invalid(format!("alpha has shape {:?}, expected one number", tensor.dims())));
    }
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?[0])
}

fn same(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.dims() != b.dims() || a.dtype() != b.dtype() {
        return Ok(false);
    }
    let bits = |t: &Tensor| -> Result<Vec<u64>> {
        Ok(t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?.into_iter().map(f64::to_bits).collect())
    };
    Ok(bits(a)? == bits(b)?)
}

fn note_odd_alpha(path: &LayerPath, delta: &Delta, report: &mut LoadReport) {
    let Delta::LowRank(low_rank) = delta else { return };
    if low_rank.alpha == Some(0.0) {
        report.warnings.push(format!("{path}: alpha is 0, so this layer has no effect"));
    } else if low_rank.scale() < 1e-6 {
        report.warnings.push(format!("{path}: alpha / rank is {:.1e}, almost no effect", low_rank.scale()));
    }
}
