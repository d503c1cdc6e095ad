//! Deltas in PEFT's words: which of its kinds they are, and their parameters by its names. diffusers uses them for `LoRA`.

use candle_core::{DType, Tensor};

use crate::{
    adapter::{
        Delta,
        delta::{Beside, Dora, LoKr, MagnitudeAxis, OftV2},
    },
    error::{Error, Result},
    nn::{LayerPath, Part},
};

/// A layer's delta and its base weight's shape.
pub(super) struct Layer<'a> {
    pub path: &'a LayerPath,
    pub delta: &'a Delta,
    pub shape: &'a [usize],
}

impl Layer<'_> {
    /// The name today's transformers give it: they left the outer module's name away in the first text encoder, and
    /// PEFT looks for exactly this. Older ones find their layers by the ends of names.
    pub fn peft_name(&self) -> &str {
        let name = self.path.name.as_str();
        match self.path.part {
            Part::TextEncoder => name.strip_prefix("text_model.").unwrap_or(name),
            Part::Unet | Part::TextEncoder2 => name,
        }
    }

    /// True where Stable Diffusion's networks have none.
    pub fn has_no_bias(&self) -> bool {
        ["to_q", "to_k", "to_v"].iter().any(|end| self.path.name.ends_with(end))
    }
}

/// A parameter by its suffix.
type Stored = (&'static str, Tensor);

pub(super) const LORA: &str = "LORA";
pub(super) const LOHA: &str = "LOHA";
pub(super) const LOKR: &str = "LOKR";
pub(super) const IA3: &str = "IA3";
const OFT: &str = "OFT";

pub(super) fn kind(delta: &Delta) -> Result<&'static str> {
    match delta {
        Delta::LowRank(_) => Ok(LORA),
        Delta::Dora(Dora { inner, axis: MagnitudeAxis::Output, .. })
            if matches!(**inner, Delta::LowRank(_)) =>
        {
            Ok(LORA)
        }
        Delta::Beside(Beside { inner, residual: None, .. }) if matches!(**inner, Delta::LowRank(_)) => {
            Ok(LORA)
        }
        Delta::LoHa(_) => Ok(LOHA),
        Delta::LoKr(_) => Ok(LOKR),
        Delta::Ia3(_) => Ok(IA3),
        Delta::OftV2(OftV2 { opposite: false, .. }) => Ok(OFT),
        other => Err(Error::invalid(format!("PEFT has no spelling for {}", other.algorithm()))
            .with_hint("write it in kohya's dialect")),
    }
}

/// True for deltas that diffusers' pipelines load.
pub(super) fn is_lora(delta: &Delta) -> bool {
    kind(delta).is_ok_and(|kind| kind == LORA)
}

/// A layer's parameters by PEFT's names.
///
/// # Errors
/// If PEFT has none for the algorithm.
pub(super) fn params(layer: &Layer<'_>) -> Result<Vec<Stored>> {
    kind(layer.delta)?;
    let shape = layer.shape;
    match layer.delta {
        Delta::LowRank(low_rank) => {
            // PEFT has no core; the same delta as two factors. What is computed here stays in f32: rounding it to the
            // factors' dtype would change the delta.
            let down = match layer.delta.branch(shape)? {
                Some(branch) if low_rank.mid.is_some() => branch.down,
                _ => low_rank.down.clone(),
            };
            // PEFT wants the layer's own number of dimensions; other files are less strict.
            let rank = low_rank.rank();
            let down_dims = [&[rank], &shape[1..]].concat();
            let up_dims = [&[shape[0], rank], &vec![1; shape.len().saturating_sub(2)][..]].concat();
            let up = low_rank.up.reshape(up_dims)?;
            Ok(vec![(".lora_A.weight", down.reshape(down_dims)?), (".lora_B.weight", up)])
        }
        Delta::Dora(dora) => {
            let mut all = params(&Layer { delta: &dora.inner, ..*layer })?;
            let count = dora.magnitude.elem_count();
            let is_conv = shape.len() == 4;
            let dims = if is_conv { vec![1, count, 1, 1] } else { vec![count] };
            all.push((".lora_magnitude_vector", dora.magnitude.reshape(dims)?));
            Ok(all)
        }
        Delta::Beside(beside) => {
            let mut all = params(&Layer { delta: &beside.inner, ..*layer })?;
            let scale = match &*beside.inner {
                Delta::LowRank(low_rank) if low_rank.scale() != 0.0 => low_rank.scale(),
                _ => return Err(Error::invalid("a bias beside factors without effect")),
            };
            if let Some(bias) = &beside.bias {
                all.push((".lora_B.bias", (bias.to_dtype(DType::F32)? / scale)?));
            }
            Ok(all)
        }
        Delta::Ia3(ia3) => {
            // PEFT's scales what leaves the layer, its bias too.
            if !(ia3.on_input || ia3.scales_bias || layer.has_no_bias()) {
                return Err(Error::invalid("PEFT has no spelling for IA³ that leaves the bias alone"));
            }
            let mut dims = vec![1; shape.len()];
            let along = usize::from(ia3.on_input || shape.len() == 4);
            dims[along] = ia3.scale.elem_count();
            let factors = (ia3.scale.to_dtype(DType::F32)? + 1.0)?;
            Ok(vec![(".ia3_l", factors.reshape(dims)?)])
        }
        Delta::OftV2(oft) => {
            let columns = oft.skew.dims().get(1).copied().unwrap_or(0) as f64;
            let block = f64::midpoint(1.0, (1.0 + 8.0 * columns).sqrt());
            let skew = match oft.scaled {
                true => (oft.skew.to_dtype(DType::F32)? * (0.5 / (block - 1.0).sqrt()))?,
                false => oft.skew.clone(),
            };
            Ok(vec![(".oft_R.weight", skew)])
        }
        Delta::LoKr(lokr) => {
            // The config has its scale, see `peft_config`.
            let plain = Delta::LoKr(LoKr { whole_scale: None, ..lokr.clone() });
            Ok(plain.tensors()?.into_iter().filter(|(suffix, _)| *suffix != ".alpha").collect())
        }
        other => Ok(other.tensors()?.into_iter().filter(|(suffix, _)| *suffix != ".alpha").collect()),
    }
}
