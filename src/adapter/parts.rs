//! The components of a model, as adapters see them.

use candle_core::Tensor;

use crate::{
    error::Result,
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

/// The base weight of a layer that can carry branches.
pub(crate) fn weight<'s>(slot: &'s Slot<'_>) -> Option<&'s Tensor> {
    match slot {
        Slot::Linear(layer) => Some(layer.weight()),
        Slot::Conv2d(layer) => Some(layer.weight()),
        Slot::Norm(_) | Slot::Embedding(_) => None,
    }
}

/// Attaches branches to such a layer, or removes them.
pub(crate) fn set_branches(slot: Slot<'_>, branches: Option<Branches>) {
    match slot {
        Slot::Linear(layer) => layer.set_branches(branches),
        Slot::Conv2d(layer) => layer.set_branches(branches),
        Slot::Norm(_) | Slot::Embedding(_) => {}
    }
}

/// Replaces the weight of such a layer, or brings the base back.
pub(crate) fn set_fused(slot: Slot<'_>, weight: Option<Tensor>) {
    match slot {
        Slot::Linear(layer) => layer.set_fused(weight),
        Slot::Conv2d(layer) => layer.set_fused(weight),
        Slot::Norm(_) | Slot::Embedding(_) => {}
    }
}

impl std::fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(part, _)| part)).finish()
    }
}
