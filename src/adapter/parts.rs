//! The components of a model, as adapters see them.

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    nn::{Adaptable, Branches, LayerPath, Part, Slot, adaptable::Visitor},
};

/// A model's components, borrowed together for one operation of an adapter.
#[derive(Default)]
pub struct Parts<'a>(Vec<(Part, &'a mut dyn Adaptable)>);

impl<'a> Parts<'a> {
    /// No components.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a component.
    #[must_use]
    pub fn with(mut self, part: Part, component: &'a mut dyn Adaptable) -> Self {
        self.0.push((part, component));
        self
    }

    /// Calls `f` for every layer of every component, in a fixed order.
    ///
    /// # Errors
    /// Whatever `f` returns; visiting stops there.
    pub fn visit(&mut self, f: &mut Visitor<'_>) -> Result<()> {
        self.0.iter_mut().try_for_each(|(part, component)| component.visit(&LayerPath::root(*part), f))
    }
}

/// The pristine weight of a layer: its matrix or kernel, a normalisation's scale, an embedding's table.
pub(crate) fn weight<'s>(slot: &'s Slot<'_>) -> &'s Tensor {
    match slot {
        Slot::Linear(layer) => layer.weight(),
        Slot::Conv2d(layer) => layer.weight(),
        Slot::Norm(norm) => norm.weight(),
        Slot::Embedding(table) => table.weight(),
    }
}

/// The pristine bias of a layer, a normalisation's shift.
pub(crate) fn bias<'s>(slot: &'s Slot<'_>) -> Option<&'s Tensor> {
    match slot {
        Slot::Linear(layer) => layer.bias(),
        Slot::Conv2d(layer) => layer.bias(),
        Slot::Norm(norm) => Some(norm.bias()),
        Slot::Embedding(_) => None,
    }
}

/// True for layers that can carry branches.
pub(crate) fn carries_branches(slot: &Slot<'_>) -> bool {
    matches!(slot, Slot::Linear(_) | Slot::Conv2d(_))
}

/// Attaches branches to such a layer, or removes them.
pub(crate) fn set_branches(slot: Slot<'_>, branches: Option<Branches>) {
    match slot {
        Slot::Linear(layer) => layer.set_branches(branches),
        Slot::Conv2d(layer) => layer.set_branches(branches),
        Slot::Norm(_) | Slot::Embedding(_) => {}
    }
}

/// What stands in a layer's base weight's and base bias' place; `None` means the base.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fused {
    pub weight: Option<Tensor>,
    pub bias: Option<Tensor>,
}

/// Replaces a layer's weight and bias, or brings the base back.
///
/// # Errors
/// If the layer cannot have a bias.
pub(crate) fn set_fused(slot: Slot<'_>, fused: Fused) -> Result<()> {
    let Fused { weight, bias } = fused;
    match slot {
        Slot::Linear(layer) => {
            layer.set_fused(weight);
            layer.set_fused_bias(bias);
        }
        Slot::Conv2d(layer) => {
            layer.set_fused(weight);
            layer.set_fused_bias(bias);
        }
        Slot::Norm(norm) => {
            let changed = weight.is_some() || bias.is_some();
            let pair = (
                weight.unwrap_or_else(|| norm.weight().clone()),
                bias.unwrap_or_else(|| norm.bias().clone()),
            );
            norm.set_fused(changed.then_some(pair));
        }
        Slot::Embedding(table) => {
            if bias.is_some() {
                return Err(Error::invalid("a bias for an embedding, which has none"));
            }
            table.set_fused(weight);
        }
    }
    Ok(())
}

impl std::fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(part, _)| part)).finish()
    }
}
