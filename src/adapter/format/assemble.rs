//! The parameters of one module into its delta: which algorithm they are, and whether they are whole.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::{
    LoadOptions, peft,
    suffix::Param::{self, *},
};
use crate::{
    adapter::{
        Delta, LowRank, Metadata,
        delta::{
            Beside, Boft, Dora, Full, Glora, HadamardFactor, Ia3, KroneckerFactor, LoHa, LoKr, MagnitudeAxis,
            Norm, Oft, OftForm, OftSeries, OftV2, Sparse,
        },
    },
    error::{Error, Result},
    nn::{LayerPath, Part},
};

/// A parameter as found: its key and its tensor.
pub(super) type Found = (String, Tensor);

/// What the file and the user say about all modules.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub config: peft::Config,
    pub options: &'a LoadOptions,
    /// LyCORIS' rank-stabilised `GLoRA` stores alpha as given, unlike its other algorithms.
    rank_stabilised_glora: bool,
}

impl<'a> Context<'a> {
    /// # Errors
    /// If the metadata's configs cannot be read.
    pub fn new(metadata: &Metadata, options: &'a LoadOptions) -> Result<Self> {
        let arguments = metadata.get("ss_network_args").and_then(|text| serde_json::from_str(text).ok());
        let arguments: serde_json::Value = arguments.unwrap_or_default();
        let rs_lora = &arguments["rs_lora"];
        let rank_stabilised_glora = rs_lora.as_bool() == Some(true)
            || rs_lora.as_str().is_some_and(|s| s.eq_ignore_ascii_case("true"));
        Ok(Self { config: peft::Config::of(metadata)?, options, rank_stabilised_glora })
    }
}

/// One module's parameters.
#[derive(Debug)]
pub(super) struct Module<'a> {
    pub path: &'a LayerPath,
    /// The base weight's.
    pub shape: &'a [usize],
    pub params: BTreeMap<Param, Found>,
}

/// Makes a module's delta and checks it.
///
/// # Errors
/// If a parameter is missing, two algorithms meet, or something is out of shape.
pub(super) fn delta(mut module: Module<'_>, context: &Context<'_>) -> Result<Delta> {
    for (param, (key, tensor)) in &module.params {
        crate::adapter::delta::check_tensor(key, tensor, param.is_setting())?;
    }
    let shape = module.shape;
    let mut delta = match module.algorithm()? {
        Some(first) => module.main(first, context)?,
        None if module.params.contains_key(&DiffB) => {
            Delta::Full(Full { weight: None, bias: module.take(DiffB) })
        }
        None => {
            let key = module.any_key();
            return Err(Error::invalid(format!("incomplete: `{key}` stands alone, without factors")));
        }
    };
    delta = module.beside(delta)?;
    delta = module.dora(delta)?;
    if let Some((key, _)) = module.params.values().next() {
        return Err(Error::invalid(format!("`{key}` does not belong to {}", delta.algorithm())));
    }
    delta.check_shapes(shape)?;
    Ok(delta)
}

impl Module<'_> {
    fn take(&mut self, param: Param) -> Option<Tensor> {
        self.params.remove(&param).map(|(_, tensor)| tensor)
    }

    fn need(&mut self, param: Param) -> Result<Tensor> {
        self.take(param).ok_or_else(|| {
            Error::invalid(format!("incomplete: `{}` is missing beside `{}`", param.name(), self.any_key()))
        })
    }

    fn any_key(&self) -> &str {
        self.params.values().next().map_or("", |(key, _)| key.as_str())
    }

    fn has(&self, params: &[Param]) -> bool {
        params.iter().any(|param| self.params.contains_key(param))
    }

    /// The first parameter of the one algorithm.
    fn algorithm(&self) -> Result<Option<Param>> {
        let mut first: Option<(Param, &str)> = None;
        for (param, (key, _)) in self.params.iter().filter(|(param, _)| param.algorithm().is_some()) {
            match first {
                None => first = Some((*param, key)),
                Some((other, other_key)) if other.algorithm() != param.algorithm() => {
                    return Err(Error::invalid(format!(
                        "two algorithms on one module: `{other_key}` is {}, `{key}` is {}",
                        other.algorithm().unwrap_or_default(),
                        param.algorithm().unwrap_or_default()
                    )));
                }
                Some(_) => {}
            }
        }
        Ok(first.map(|(param, _)| param))
    }

    fn main(&mut self, first: Param, context: &Context<'_>) -> Result<Delta> {
        match first {
            Down | Up | Mid | UpBias => self.low_rank(context),
            HadaW1A | HadaW1B | HadaW2A | HadaW2B | HadaT1 | HadaT2 => self.loha(context),
            LokrW1 | LokrW1A | LokrW1B | LokrT1 | LokrW2 | LokrW2A | LokrW2B | LokrT2 => self.lokr(context),
            GloraA1 | GloraA2 | GloraB1 | GloraB2 | GloraBm => self.glora(context),
            Ia3Weight | OnInput => self.ia3(),
            Ia3L => self.peft_ia3(context),
            OftBlocks => self.oft(),
            OftDiag => {
                self.take(Alpha);
                let blocks = self.need(OftDiag)?;
                let form = OftForm::of_oft_diag(&blocks)?;
                Ok(Delta::Oft(Oft::new(blocks, form, self.take(Rescale))))
            }
            OftR | ScaledOft => self.oft_v2(context),
            WNorm | BNorm => Ok(Delta::Norm(Norm(Full { weight: self.take(WNorm), bias: self.take(BNorm) }))),
            _ => {
                self.take(Alpha); // OneTrainer writes one beside `diff`; it scales nothing.
                Ok(Delta::Full(Full { weight: self.take(Diff), bias: self.take(DiffB) }))
            }
        }
    }

    /// alpha such that alpha / r is the scale, from the file's tensors or its config.
    fn alpha(&mut self, rank: usize, context: &Context<'_>) -> Result<Option<f64>> {
        let stored = self.params.remove(&Alpha).map(|found| number(&found)).transpose()?;
        let scale = self.params.remove(&Scale).map(|found| number(&found)).transpose()?;
        // A1111 lets a stored scale replace alpha / r.
        Ok(scale.map(|s| s * rank as f64).or(stored).or_else(|| context.config.alpha(self.path, rank)))
    }

    fn low_rank(&mut self, context: &Context<'_>) -> Result<Delta> {
        if !self.has(&[Up]) && self.has(&[Down]) {
            return Err(Error::invalid("incomplete: the down factor has no up factor"));
        }
        if !self.has(&[Down]) && self.has(&[Up]) {
            return Err(Error::invalid("incomplete: the up factor has no down factor"));
        }
        let (down, up, mid) = (self.need(Down)?, self.need(Up)?, self.take(Mid));
        let alpha = self.alpha(first_dim(&down)?, context)?;
        let low_rank = LowRank { down: self.for_inpainting(down)?, up, mid, alpha };
        let bias = match self.take(UpBias) {
            Some(bias) => Some((bias.to_dtype(DType::F32)? * low_rank.scale())?),
            None => return Ok(Delta::LowRank(low_rank)),
        };
        Ok(Delta::Beside(Beside { inner: Box::new(Delta::LowRank(low_rank)), residual: None, bias }))
    }

    /// A model for inpainting reads a mask and a masked picture after the latents: nothing an adapter of the plain model
    /// knows about, so it changes nothing there.
    fn for_inpainting(&self, down: Tensor) -> Result<Tensor> {
        let plain = matches!(down.dims(), [_, 4, ..]) && self.shape.get(1) == Some(&9);
        if plain && self.path.part == Part::Unet && self.path.name == "conv_in" {
            return Ok(down.pad_with_zeros(1, 0, 5)?);
        }
        Ok(down)
    }

    fn loha(&mut self, context: &Context<'_>) -> Result<Delta> {
        if self.has(&[HadaT1]) != self.has(&[HadaT2]) {
            self.need(HadaT1)?;
            self.need(HadaT2)?;
        }
        let first =
            HadamardFactor { a: self.need(HadaW1A)?, b: self.need(HadaW1B)?, core: self.take(HadaT1) };
        let second =
            HadamardFactor { a: self.need(HadaW2A)?, b: self.need(HadaW2B)?, core: self.take(HadaT2) };
        let alpha = self.alpha(first_dim(&first.b)?, context)?;
        Ok(Delta::LoHa(LoHa { first, second, alpha }))
    }

    fn lokr(&mut self, context: &Context<'_>) -> Result<Delta> {
        let first = self.kronecker([LokrW1, LokrW1A, LokrW1B, LokrT1])?;
        let second = self.kronecker([LokrW2, LokrW2A, LokrW2B, LokrT2])?;
        let mut lokr = LoKr { first, second, alpha: None, whole_scale: None };
        match lokr.rank() {
            Some(rank) => lokr.alpha = self.alpha(nonzero(rank)?, context)?,
            None => {
                lokr.alpha = self.params.remove(&Alpha).map(|found| number(&found)).transpose()?;
                let stored = self.params.remove(&Scale).map(|found| number(&found)).transpose()?;
                let stated = stored.or_else(|| context.config.scale(self.path));
                lokr.whole_scale = context.options.whole_lokr_scale.or(stated);
            }
        }
        Ok(Delta::LoKr(lokr))
    }

    fn kronecker(&mut self, [whole, a, b, core]: [Param; 4]) -> Result<KroneckerFactor> {
        if let Some(factor) = self.take(whole) {
            if self.has(&[a, b, core]) {
                return Err(Error::invalid(format!("`{}` is stored both whole and factored", whole.name())));
            }
            return Ok(KroneckerFactor::Whole(factor));
        }
        if !self.has(&[a, b, core]) {
            self.need(whole)?;
        }
        let (a, b) = (self.need(a)?, self.need(b)?);
        Ok(match self.take(core) {
            Some(core) => KroneckerFactor::Tucker { a, b, core },
            None => KroneckerFactor::Product { a, b },
        })
    }

    fn glora(&mut self, context: &Context<'_>) -> Result<Delta> {
        let (a1, a2) = (self.need(GloraA1)?, self.need(GloraA2)?);
        let (b1, b2, core) = (self.need(GloraB1)?, self.need(GloraB2)?, self.take(GloraBm));
        let glora = Glora { a1, a2, b1, b2, core, alpha: None }.of_either_layout(self.shape)?;
        let rank = first_dim(&glora.a2)?;
        let root = if context.rank_stabilised_glora { (rank as f64).sqrt() } else { 1.0 };
        let alpha = self.alpha(rank, context)?.map(|alpha| alpha * root);
        Ok(Delta::Glora(Glora { alpha, ..glora }))
    }

    fn ia3(&mut self) -> Result<Delta> {
        let scale = self.need(Ia3Weight)?;
        let on_input = match self.params.remove(&OnInput) {
            Some(found) => number(&found)? != 0.0,
            None => return Err(Error::invalid("incomplete: `.on_input` is missing")),
        };
        Ok(Delta::Ia3(Ia3 { scale, on_input, scales_bias: false }))
    }

    fn peft_ia3(&mut self, context: &Context<'_>) -> Result<Delta> {
        let factors = self.need(Ia3L)?;
        let (outputs, inputs) = (self.shape[0], self.shape.get(1).copied().unwrap_or(0));
        let length = factors.elem_count();
        let on_input = match (context.config.lists(self.path, "feedforward_modules"), factors.dims()) {
            (_, [rows, 1]) if *rows == outputs && outputs > 1 => false,
            (_, [1, columns]) if *columns == inputs && inputs > 1 => true,
            (Some(feedforward), _) => feedforward,
            (None, _) if length != inputs => false,
            (None, _) if length != outputs => true,
            (None, dims) => {
                return Err(Error::invalid(format!(
                    "IA³ factors of shape {dims:?} may be for the inputs or the outputs of {:?}",
                    self.shape
                ))
                .with_hint("give the folder with PEFT's adapter_config.json, which says so"));
            }
        };
        let scale = (factors.to_dtype(DType::F32)? - 1.0)?;
        Ok(Delta::Ia3(Ia3 { scale, on_input, scales_bias: true }))
    }

    fn oft(&mut self) -> Result<Delta> {
        let kohya = self.params.get(&OftBlocks).is_some_and(|(key, _)| key.starts_with("oft_unet_"));
        let constraint = self.params.remove(&Alpha).map(|found| number(&found)).transpose()?;
        // kohya clamps to 0 there; LyCORIS means no constraint.
        let constraint = constraint.filter(|c| kohya || *c != 0.0);
        let (blocks, rescale) = (self.need(OftBlocks)?, self.take(Rescale));
        if blocks.dims().len() == 4 {
            return Ok(Delta::Boft(Boft { blocks, constraint, rescale }));
        }
        Ok(Delta::Oft(Oft::new(blocks, OftForm::Cayley { constraint }, rescale)))
    }

    fn oft_v2(&mut self, context: &Context<'_>) -> Result<Delta> {
        self.take(Alpha);
        let key = self.any_key().to_string();
        let skew = self.need(OftR)?;
        let scaled = match self.params.remove(&ScaledOft) {
            // OneTrainer writes it only when set, as a tensor of any kind.
            Some((_, flag)) => flag.elem_count() == 0 || number(&(key.clone(), flag))? != 0.0,
            None => false,
        };
        let config = &context.config;
        let peft = key.starts_with("base_model.model.") || config.mentions(self.path.part);
        let number = |name: &str| config.setting(self.path.part, name).and_then(serde_json::Value::as_f64);
        let flag = |name: &str| config.setting(self.path.part, name).and_then(serde_json::Value::as_bool);
        let series = match flag("use_cayley_neumann") {
            Some(false) => OftSeries::Exact,
            _ => OftSeries::Neumann(number("num_cayley_neumann_terms").map_or(5, |terms| terms as usize)),
        };
        let block_limit = flag("coft").unwrap_or(false).then(|| number("eps").unwrap_or(6e-5));
        let opposite = !peft && self.shape.len() == 4;
        Ok(Delta::OftV2(OftV2 { skew, series, scaled, opposite, block_limit }))
    }

    /// A sparse residual and a bias, if there are.
    fn beside(&mut self, delta: Delta) -> Result<Delta> {
        let residual = if self.has(&[BiasIndices, BiasValues, BiasSize]) {
            let (indices, values) = (self.need(BiasIndices)?, self.need(BiasValues)?);
            Some(Sparse { indices, values, size: self.need(BiasSize)? })
        } else {
            None
        };
        let bias = self.take(DiffB);
        if residual.is_none() && bias.is_none() {
            return Ok(delta);
        }
        if bias.is_some() && delta.changes_bias() {
            return Err(Error::invalid("the bias is changed twice, by `.diff_b` and by the algorithm"));
        }
        Ok(Delta::Beside(Beside { inner: Box::new(delta), residual, bias }))
    }

    fn dora(&mut self, delta: Delta) -> Result<Delta> {
        let (lycoris, peft) = (self.take(DoraScale), self.take(MagnitudeVector));
        let (magnitude, is_peft) = match (lycoris, peft) {
            (Some(_), Some(_)) => return Err(Error::invalid("two DoRA magnitudes on one module")),
            (Some(magnitude), None) => (magnitude, false),
            (None, Some(magnitude)) => (magnitude, true),
            (None, None) => return Ok(delta),
        };
        let axis = MagnitudeAxis::of(magnitude.dims(), is_peft, self.shape)?;
        Ok(Delta::Dora(Dora { inner: Box::new(delta), magnitude, axis }))
    }
}

fn first_dim(tensor: &Tensor) -> Result<usize> {
    nonzero(tensor.dims().first().copied().unwrap_or(0))
}

fn nonzero(rank: usize) -> Result<usize> {
    if rank == 0 { Err(Error::invalid("the rank is 0")) } else { Ok(rank) }
}

/// A scalar of any dtype, of shape [] or [1].
fn number((key, tensor): &Found) -> Result<f64> {
    if tensor.elem_count() != 1 {
        return Err(Error::invalid(format!("`{key}` has shape {:?}, expected one number", tensor.dims())));
    }
    let value = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?[0];
    if value.is_finite() { Ok(value) } else { Err(Error::invalid(format!("`{key}` is {value}"))) }
}
