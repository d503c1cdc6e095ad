//! The shapes a network asks for, found by loading it from nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Shape, Tensor};

use super::{Store, TensorInfo, Weights};
use crate::error::{Error, Result};

/// Runs `load` with weights that exist in whatever shape is asked for and take no memory, and returns what it asked for.
///
/// # Errors
/// Whatever `load` returns.
pub fn record_shapes(load: impl FnOnce(&Weights) -> Result<()>) -> Result<BTreeMap<String, Shape>> {
    let recorder = Arc::new(Recorder::default());
    load(&Weights::new(recorder.clone(), DType::F32, Device::Cpu))?;
    let shapes = recorder.0.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(shapes.clone())
}

#[derive(Debug, Default)]
struct Recorder(Mutex<BTreeMap<String, Shape>>);

impl Recorder {
    fn shape(&self, name: &str) -> Option<Shape> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

impl Store for Recorder {
    fn expect(&self, name: &str, shape: &Shape) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_string(), shape.clone());
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.shape(name).map(|shape| TensorInfo { dtype: DType::F32, shape })
    }

    /// One zero, seen as the whole tensor.
    fn load(&self, name: &str) -> Result<Tensor> {
        let shape =
            self.shape(name).ok_or_else(|| Error::invalid(format!("nobody asked for `{name}` yet")))?;
        Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)?)
    }

    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    fn origin(&self) -> String {
        "shape recorder".into()
    }
}
