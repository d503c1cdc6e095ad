//! A file of any dialect into an [`Adapter`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::{
    LoadOptions, NameTable,
    assemble::{self, Context, Found, Module},
    folder,
    prefix::{self, Component},
    suffix::{self, Param},
};
use crate::{
    adapter::{
        Adapter, Delta, Lineage, LoadReport, Metadata, Survey, Unmatched,
        delta::OTHER_FAMILY,
        embedding::{BUNDLE, Bundle},
        report::Reason,
        survey::SurveyedModule,
    },
    error::{Error, Result},
    nn::{LayerPath, Part},
    weights::reader::SafetensorsFile,
};

/// Unmatched keys for which the most similar layer is looked up: as many as a message lists.
const NEAREST_LOOKUPS: usize = 5;

pub(crate) fn read(path: &Path, table: &NameTable, options: &LoadOptions) -> Result<Adapter> {
    read_opened(&folder::open(path)?, table, options).map_err(|e| e.at(path))
}

/// What of a file would be applied, however little that is: only a damaged file is refused.
pub(crate) fn report(path: &Path, table: &NameTable) -> Result<LoadReport> {
    let file = folder::open(path)?;
    let sorted = Sorted::sort(&file, table, &Survey::of(&file)?)?;
    let mut report = sorted.report();
    // Of a file whose embeddings are refused nothing is applied, which loading it says.
    let bundle = Bundle::read(&file, table).unwrap_or_default();
    report.matched = sorted.groups.values().map(BTreeMap::len).sum::<usize>() + bundle.matched;
    report.unmatched.extend(bundle.unmatched);
    Ok(report)
}

/// [`read`], of an opened file; errors do not name it.
pub(crate) fn read_opened(
    file: &SafetensorsFile,
    table: &NameTable,
    options: &LoadOptions,
) -> Result<Adapter> {
    let metadata = Metadata(file.metadata().clone());
    let survey = Survey::of(file)?;
    let sorted = Sorted::sort(file, table, &survey)?;
    if let (Some(found), Some(wanted)) = (sorted.lineage, table.lineage())
        && found != wanted
    {
        return Err(Error::invalid(format!("this adapter was trained for {found}, the model is {wanted}"))
            .with_hint(OTHER_FAMILY));
    }
    let context = Context::new(&metadata, options)?;
    let mut report = sorted.report();
    report.matched = sorted.groups.values().map(BTreeMap::len).sum();
    let bundle = Bundle::read(file, table)?;
    report.matched += bundle.matched;
    report.unmatched.extend(bundle.unmatched);
    // Every number is looked at, which takes a while in large files; failures are reported in order all the same.
    let deltas: Vec<Result<(LayerPath, Delta)>> = sorted
        .groups
        .into_par_iter()
        .map(|(path, params)| {
            let key = params.values().next().map(|(key, _)| key.clone()).unwrap_or_default();
            let module = Module { path: &path, shape: table.shape(&path).unwrap_or_default(), params };
            let delta = assemble::delta(module, &context);
            let delta = delta.map_err(|e| e.context(format!("`{key}` ({path})")))?;
            Ok((path, delta))
        })
        .collect();
    let layers: BTreeMap<LayerPath, Delta> = deltas.into_iter().collect::<Result<_>>()?;
    report.lineage = report.lineage.or(survey.family.lineage);
    report.warnings.extend(survey.warnings);
    report.warnings.extend(oddities(&layers, &metadata));
    report.enforce(options.allow_unmatched)?;
    Ok(Adapter { layers, embeddings: bundle.embeddings, metadata, report })
}

/// A file's keys by the layer they belong to.
#[derive(Debug, Default)]
struct Sorted {
    groups: BTreeMap<LayerPath, BTreeMap<Param, Found>>,
    unmatched: Vec<Unmatched>,
    dialects: BTreeSet<&'static str>,
    lineage: Option<Lineage>,
    /// What names of a text encoder's layers mean where the component is not said.
    unsaid_is_second: bool,
    /// Keys that speak of the only text encoder of a model that has two.
    meant_for_one_encoder: usize,
}

impl Sorted {
    fn sort(file: &SafetensorsFile, table: &NameTable, survey: &Survey) -> Result<Self> {
        let unsaid_is_second = survey.modules.iter().any(|module| is_of_second(module, table));
        let mut sorted = Self { unsaid_is_second, ..Self::default() };
        let apart = |key: &&str| prefix::is_bookkeeping(key) || key.starts_with(BUNDLE);
        for key in file.names().filter(|key| !apart(key)) {
            match sorted.place(key, file, table) {
                Ok((path, param)) => sorted.insert(path, param, (key.to_string(), file.tensor(key)?))?,
                Err(reason) => sorted.unmatched.push(Unmatched { key: key.to_string(), reason }),
            }
        }
        Ok(sorted)
    }

    fn place(
        &mut self,
        key: &str,
        file: &SafetensorsFile,
        table: &NameTable,
    ) -> Result<(LayerPath, Param), Reason> {
        let keys = &file.header().tensors;
        let (name, param) = suffix::split_among(key, |key| keys.contains_key(key))
            .ok_or_else(|| prefix::foreign(key).map_or(Reason::UnknownParameter, Reason::Foreign))?;
        let mut module = prefix::parse(name);
        if module.component == Component::Unsaid && self.unsaid_is_second && prefix::is_text(&module.flat) {
            module.component = Component::TextEncoder2;
        }
        if let Some(what) = prefix::foreign(name) {
            return Err(Reason::Foreign(what));
        }
        let reads_context = module.flat.ends_with("attn2_to_k") || module.flat.ends_with("attn2_to_v");
        // In these, the second dimension is the layer's input.
        let tells = reads_context && matches!(param, Param::Down | Param::HadaW1B | Param::Diff);
        if let Some(width) = keys.get(key).and_then(|entry| entry.shape.get(1)).filter(|_| tells) {
            self.lineage = Some(Lineage::of_cross_attention(*width));
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
        if module.component == Component::OnlyTextEncoder
            && path.part == Part::TextEncoder
            && table.has_second_text_encoder()
        {
            self.meant_for_one_encoder += 1;
        }
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
        let one_encoder = || {
            format!(
                "{} keys name the only text encoder (`lora_te_`) and the model has two: they were applied to the first",
                self.meant_for_one_encoder
            )
        };
        LoadReport {
            warnings: (self.meant_for_one_encoder > 0).then(one_encoder).into_iter().collect(),
            dialect: self.dialects.iter().copied().collect::<Vec<_>>().join(" + "),
            lineage: self.lineage,
            unmatched: self.unmatched.clone(),
            ..LoadReport::default()
        }
    }
}

/// SDXL's text encoders have layers of the same names; their widths and numbers of layers differ.
fn is_of_second(module: &SurveyedModule, table: &NameTable) -> bool {
    let of = |component: Component| {
        let spelled = prefix::Module { component, ..prefix::parse(&module.name) };
        let path = table.resolve(&spelled).ok()?;
        let width = table.shape(&path)?.get(1).copied();
        Some(module.reads.is_none() || module.reads == width)
    };
    module.component == Component::Unsaid
        && prefix::is_text(&module.flat)
        && of(Component::TextEncoder) != Some(true)
        && of(Component::TextEncoder2) == Some(true)
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

/// What is legal but rarely meant.
fn oddities(layers: &BTreeMap<LayerPath, Delta>, metadata: &Metadata) -> Vec<String> {
    let dim = metadata.get("ss_network_dim").and_then(|dim| dim.parse::<f64>().ok());
    let mut found: BTreeMap<String, Vec<&LayerPath>> = BTreeMap::new();
    for (path, delta) in layers {
        if let Some(oddity) = oddity(delta, dim) {
            found.entry(oddity).or_default().push(path);
        }
    }
    found
        .into_iter()
        .map(|(oddity, paths)| match paths[..] {
            [only] => format!("{only}: {oddity}"),
            _ => format!("{} and {} more layers: {oddity}", paths[0], paths.len() - 1),
        })
        .collect()
}

fn oddity(delta: &Delta, dim: Option<f64>) -> Option<String> {
    match delta {
        Delta::Dora(dora) => return oddity(&dora.inner, dim),
        Delta::Beside(beside) => return oddity(&beside.inner, dim),
        Delta::LoKr(lokr) if lokr.rank().is_none() => {
            let (alpha, dim) = (lokr.alpha?, dim?);
            return (alpha != dim && lokr.whole_scale.is_none()).then(|| {
                format!(
                    "both Kronecker factors are whole, so alpha {alpha} at ss_network_dim {dim} is ignored, as its \
                     trainer does; if the style is far too strong, the scale {} was meant",
                    alpha / dim
                )
            });
        }
        _ => {}
    }
    let (alpha, rank) = (delta.alpha()?, delta.rank()?);
    if alpha == 0.0 {
        return Some("alpha is 0, so there is no effect".into());
    }
    let scale = alpha / rank as f64;
    (scale < 1e-6).then(|| format!("alpha / rank is {scale:.1e}, almost no effect"))
}
