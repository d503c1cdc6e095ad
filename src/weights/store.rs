//! Named tensors behind one interface, whatever file layout they came from.

use std::{collections::BTreeMap, fmt, sync::Arc};

use candle_core::{DType, Device, Shape, Tensor};

use crate::{
    error::{Error, Result},
    random::{Rng, Stream},
};

/// What a file's header says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// As stored.
    pub dtype: DType,
    /// As stored.
    pub shape: Shape,
}

/// Named tensors of one component, in diffusers' names.
pub trait Store: fmt::Debug + Send + Sync {
    /// Told of every tensor a network asks for, before it is looked up; only [`record_shapes`](super::record_shapes)
    /// listens.
    fn expect(&self, _name: &str, _shape: &Shape) {}
    /// The header entry of a tensor, without reading it.
    fn info(&self, name: &str) -> Option<TensorInfo>;
    /// Reads a tensor to the CPU in its stored dtype.
    ///
    /// # Errors
    /// If there is none of that name or the file cannot be read.
    fn load(&self, name: &str) -> Result<Tensor>;
    /// Every name, sorted.
    fn names(&self) -> Vec<String>;
    /// What to call this store in messages: a path, usually.
    fn origin(&self) -> String;
}

/// A cursor into a [`Store`]: a prefix, and the dtype and device tensors are wanted in.
#[derive(Debug, Clone)]
pub struct Weights {
    store: Arc<dyn Store>,
    prefix: String,
    dtype: DType,
    device: Device,
}

impl Weights {
    /// A cursor at the root.
    pub fn new(store: Arc<dyn Store>, dtype: DType, device: Device) -> Self {
        Self { store, prefix: String::new(), dtype, device }
    }

    /// Goes down one name: `weights.pp("down_blocks").pp(0)`.
    #[must_use]
    pub fn pp(&self, name: impl fmt::Display) -> Self {
        let prefix =
            if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Self { prefix, ..self.clone() }
    }

    /// The dtype tensors are converted to.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device tensors are moved to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// True if the store has `prefix.name`.
    pub fn contains(&self, name: &str) -> bool {
        self.store.info(&self.key(name)).is_some()
    }

    /// Loads `prefix.name`, converted and moved. Shapes may differ by trailing dimensions of 1 (a linear layer stored
    /// as a 1×1 convolution and the reverse).
    ///
    /// # Errors
    /// If it is missing or has another shape; the message names key and origin.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> Result<Tensor> {
        let shape = shape.into();
        let key = self.key(name);
        self.store.expect(&key, &shape);
        let Some(info) = self.store.info(&key) else {
            return Err(Error::invalid(format!("{}: tensor `{key}` is missing", self.store.origin())));
        };
        let squeezed = |s: &Shape| -> Vec<usize> {
            let mut dims = s.dims().to_vec();
            while dims.len() > 1 && dims.last() == Some(&1) {
                dims.pop();
            }
            dims
        };
        if squeezed(&info.shape) != squeezed(&shape) {
            return Err(Error::invalid(format!(
                "{}: tensor `{key}` has shape {:?}, expected {:?}",
                self.store.origin(),
                info.shape.dims(),
                shape.dims()
            )));
        }
        let mut tensor = self.store.load(&key)?;
        if tensor.shape() != &shape {
            tensor = tensor.reshape(shape)?;
        }
        Ok(tensor.to_device(&self.device)?.to_dtype(self.dtype)?)
    }

    fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}

/// Tensors held in memory: tests, and components made by the program itself.
#[derive(Debug, Default)]
pub struct MemoryStore(pub BTreeMap<String, Tensor>);

impl Store for MemoryStore {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.0.get(name).map(|t| TensorInfo { dtype: t.dtype(), shape: t.shape().clone() })
    }

    fn load(&self, name: &str) -> Result<Tensor> {
        self.0.get(name).cloned().ok_or_else(|| Error::invalid(format!("no tensor `{name}` in memory")))
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn origin(&self) -> String {
        "memory".into()
    }
}

/// Random tensors of given shapes, made when asked for: full-size networks without a download.
///
/// Norms are 1, biases 0, and other weights keep the size of what passes through them.
#[derive(Debug)]
pub struct RandomStore {
    shapes: BTreeMap<String, Shape>,
    pool: Vec<f32>,
}

/// How many random numbers there are; a prime, so that rows of a matrix do not begin alike.
const POOL: usize = 1_000_003;

impl RandomStore {
    /// The same numbers for the same seed, from another one on in each tensor: drawing thousands of millions would take
    /// minutes.
    ///
    /// # Errors
    /// If there is no room.
    pub fn new(shapes: BTreeMap<String, Shape>, seed: u64) -> Result<Self> {
        let pool = Rng::new(seed, Stream::Weights, 0).normal(POOL, &Device::Cpu)?.to_vec1()?;
        Ok(Self { shapes, pool })
    }
}

impl Store for RandomStore {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.shapes.get(name).map(|s| TensorInfo { dtype: DType::F32, shape: s.clone() })
    }

    fn load(&self, name: &str) -> Result<Tensor> {
        let place = self.shapes.keys().position(|key| key == name);
        let (Some(shape), Some(place)) = (self.shapes.get(name), place) else {
            return Err(Error::invalid(format!("no tensor `{name}` in this model")));
        };
        if shape.rank() == 1 {
            let fill = f32::from(u8::from(name.ends_with("weight")));
            return Ok(Tensor::full(fill, shape.clone(), &Device::Cpu)?);
        }
        let fan_in: usize = shape.dims().iter().skip(1).product::<usize>().max(1);
        let scale = 1.0 / (fan_in as f32).sqrt();
        let numbers = self.pool.iter().cycle().skip(place * 7919 % POOL).take(shape.elem_count());
        Ok(Tensor::from_vec(numbers.map(|x| x * scale).collect::<Vec<_>>(), shape.clone(), &Device::Cpu)?)
    }

    fn names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn origin(&self) -> String {
        "random weights".into()
    }
}
