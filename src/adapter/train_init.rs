//! A fresh adapter on a model, its factors trainable.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor, Var};

use super::{Adapter, Delta, LowRank, Metadata, Parts, delta::branch_shape, parts};
use crate::{
    error::{Error, Result},
    nn::{Branches, LayerPath, Part},
    random::{Rng, Stream},
};

/// Layers that are trained together or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Group {
    /// q, k, v and out of the UNet's attention: diffusers' default.
    Attention,
    /// The UNet's feed-forward layers. With [`Group::Attention`] and [`Group::Projection`]: kohya's default.
    FeedForward,
    /// `proj_in` and `proj_out` around the UNet's transformer blocks.
    Projection,
    /// Everything in the UNet's resnets and resamplers: what LoCon adds.
    Convolution,
    /// q, k, v and out of the text encoders.
    TextAttention,
    /// The text encoders' feed-forward layers.
    TextMlp,
}

impl Group {
    /// The group a layer belongs to; `None` for layers no trainer touches by default (`conv_in`, `time_embedding`).
    pub fn of(path: &LayerPath) -> Option<Self> {
        let name = path.name.as_str();
        let inside = |segment: &str| name.split('.').any(|s| s == segment);
        match path.part {
            Part::Unet if inside("attn1") || inside("attn2") => Some(Self::Attention),
            Part::Unet if inside("ff") => Some(Self::FeedForward),
            Part::Unet if inside("proj_in") || inside("proj_out") => Some(Self::Projection),
            Part::Unet if inside("resnets") || inside("downsamplers") || inside("upsamplers") => {
                Some(Self::Convolution)
            }
            Part::Unet => None,
            _ if inside("self_attn") => Some(Self::TextAttention),
            _ if inside("mlp") => Some(Self::TextMlp),
            _ => None,
        }
    }
}

/// What to train and how large.
#[derive(Debug, Clone)]
pub struct TrainableSpec {
    /// The layers.
    pub groups: BTreeSet<Group>,
    /// Layers, or what holds them, that no output depends on: they get no factors.
    pub unread: Vec<LayerPath>,
    /// r.
    pub rank: usize,
    /// The branch is scaled by alpha / r.
    pub alpha: f64,
    /// Rank and alpha of convolutions larger than 1×1; `None` takes those above.
    pub conv_rank_alpha: Option<(usize, f64)>,
    /// `lora_down` is drawn from it.
    pub seed: u64,
}

impl Default for TrainableSpec {
    fn default() -> Self {
        Self {
            groups: BTreeSet::from([Group::Attention]),
            unread: Vec::new(),
            rank: 16,
            alpha: 16.0,
            conv_rank_alpha: None,
            seed: 0,
        }
    }
}

/// One layer's factors, f32.
#[derive(Debug)]
pub struct TrainableLayer {
    /// Where it sits.
    pub path: LayerPath,
    /// (r, in) or (r, in, kh, kw).
    pub down: Var,
    /// (out, r).
    pub up: Var,
    /// alpha.
    pub alpha: f64,
    scale: Tensor,
    dtype: DType,
}

/// The trainable factors of an adapter, attached to the model they were made for.
#[derive(Debug)]
pub struct Trainable {
    /// In the order the model visits its layers, which is the same every time.
    pub layers: Vec<TrainableLayer>,
}

impl Trainable {
    /// Draws `down` as kohya and PEFT do (Kaiming-uniform with a = √5, that is uniform within ±1/√fan_in) and sets `up`
    /// to 0, so that the model's output is the base's, bit for bit; then attaches them.
    ///
    /// # Errors
    /// If no layer belongs to the groups, or the rank is 0.
    pub fn new(spec: &TrainableSpec, model: &mut Parts<'_>) -> Result<Self> {
        let (rank, conv_rank) = (spec.rank, spec.conv_rank_alpha.map_or(spec.rank, |(rank, _)| rank));
        if rank == 0 || conv_rank == 0 {
            return Err(Error::invalid("the rank must be at least 1"));
        }
        let mut layers = Vec::new();
        model.visit(&mut |path, slot| {
            if Group::of(path).is_some_and(|group| spec.groups.contains(&group))
                && !spec.unread.iter().any(|unread| path.is_inside(unread))
                && parts::carries_branches(&slot)
            {
                layers.push(TrainableLayer::new(path, parts::weight(&slot), spec, layers.len() as u64)?);
            }
            Ok(())
        })?;
        if layers.is_empty() {
            return Err(Error::invalid("the model has no layer of the kinds to train"));
        }
        let trainable = Self { layers };
        trainable.attach(model)?;
        Ok(trainable)
    }

    /// Puts the factors on the model's layers and removes every other branch. On a model in f32 this is done once; in
    /// another dtype the branches are copies made here, so call it again before every step.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn attach(&self, model: &mut Parts<'_>) -> Result<()> {
        let layers: BTreeMap<&LayerPath, &TrainableLayer> =
            self.layers.iter().map(|l| (&l.path, l)).collect();
        model.visit(&mut |path, slot| {
            let branches = layers.get(path).map(|layer| layer.branches()).transpose()?;
            parts::set_branches(slot, branches);
            Ok(())
        })
    }

    /// Every variable, down before up, in the layers' order.
    pub fn vars(&self) -> Vec<Var> {
        self.layers.iter().flat_map(|l| [l.down.clone(), l.up.clone()]).collect()
    }

    /// The number of trained values.
    pub fn parameter_count(&self) -> usize {
        self.layers.iter().map(|l| l.down.elem_count() + l.up.elem_count()).sum()
    }

    /// A copy of the present values, in the shapes `table`'s model stores its weights in.
    ///
    /// # Errors
    /// If a value cannot be read back.
    pub fn to_adapter(&self, metadata: Metadata) -> Result<Adapter> {
        let layers = self.layers.iter().map(|layer| Ok((layer.path.clone(), layer.delta()?)));
        Ok(Adapter { layers: layers.collect::<Result<_>>()?, metadata, ..Adapter::default() })
    }

    /// Overwrites the values with those of a file: continues a training.
    ///
    /// # Errors
    /// If the file has other layers, ranks or alphas.
    pub fn load(&self, adapter: &Adapter) -> Result<()> {
        for layer in &self.layers {
            let Some(Delta::LowRank(low_rank)) = adapter.layers.get(&layer.path) else {
                return Err(Error::invalid(format!("the adapter to continue has no {}", layer.path)));
            };
            layer.set(low_rank).map_err(|e| e.context(layer.path.to_string()))?;
        }
        if adapter.layers.len() != self.layers.len() {
            return Err(Error::invalid(format!(
                "the adapter to continue has {} layers, expected {}",
                adapter.layers.len(),
                self.layers.len()
            ))
            .with_hint("train the same layers as before"));
        }
        Ok(())
    }
}

impl TrainableLayer {
    fn new(path: &LayerPath, weight: &Tensor, spec: &TrainableSpec, index: u64) -> Result<Self> {
        let shape = weight.dims();
        let spatial = shape[2..].iter().product::<usize>() > 1;
        let (rank, alpha) = match spec.conv_rank_alpha {
            Some(conv) if spatial => conv,
            _ => (spec.rank, spec.alpha),
        };
        let device = weight.device();
        let fan_in: usize = shape[1..].iter().product();
        let bound = 1.0 / (fan_in as f32).sqrt();
        let mut rng = Rng::new(spec.seed, Stream::AdapterInit, index);
        let down = rng.uniform(-bound, bound, branch_shape(rank, shape), device)?;
        Ok(Self {
            path: path.clone(),
            down: Var::from_tensor(&down)?,
            up: Var::zeros((shape[0], rank), DType::F32, device)?,
            alpha,
            scale: Tensor::full((alpha / rank as f64) as f32, rank, device)?.to_dtype(weight.dtype())?,
            dtype: weight.dtype(),
        })
    }

    fn rank(&self) -> usize {
        self.up.dims()[1]
    }

    /// The variables themselves where dtypes agree: an optimizer's step is then seen without attaching again.
    fn branches(&self) -> Result<Branches> {
        Ok(Branches {
            down: self.down.as_tensor().to_dtype(self.dtype)?,
            up: self.up.as_tensor().to_dtype(self.dtype)?,
            scale: self.scale.clone(),
            regional: None,
        })
    }

    fn delta(&self) -> Result<Delta> {
        let copy =
            |var: &Var| -> Result<Tensor> { Ok(var.as_tensor().detach().to_device(&Device::Cpu)?.copy()?) };
        let (down, mut up) = (copy(&self.down)?, copy(&self.up)?);
        if down.dims().len() == 4 {
            up = up.reshape((up.dims()[0], self.rank(), 1, 1))?;
        }
        Ok(Delta::LowRank(LowRank { down, up, mid: None, alpha: Some(self.alpha) }))
    }

    fn set(&self, from: &LowRank) -> Result<()> {
        if from.rank() != self.rank() || from.scale() != self.alpha / self.rank() as f64 || from.mid.is_some()
        {
            return Err(Error::invalid(format!(
                "the adapter to continue has rank {} and scale {}, expected {} and {}",
                from.rank(),
                from.scale(),
                self.rank(),
                self.alpha / self.rank() as f64
            )));
        }
        for (var, tensor) in [(&self.down, &from.down), (&self.up, &from.up)] {
            var.set(&tensor.reshape(var.shape())?.to_dtype(DType::F32)?.to_device(var.device())?)?;
        }
        Ok(())
    }
}
