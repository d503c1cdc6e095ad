//! What is remembered of nodes: links, not values.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use candle_core::{DType, Shape, Tensor, TensorId};

use crate::error::Result;

/// The written backward of a node: gradient of the output, contiguous → one gradient or `None` per input.
pub(super) type Backward = dyn Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync;

/// A node in the backward pass.
pub(super) struct Record {
    /// Nodes are numbered as they are made: inputs have smaller numbers.
    pub number: u64,
    pub source: Source,
    output: OnceLock<TensorId>,
    /// Of this node's output.
    pub views: Mutex<Vec<Arc<Record>>>,
}

/// Where a node's gradient goes.
pub(super) enum Source {
    /// Through a written backward.
    Op { inputs: Vec<Input>, backward: Box<Backward> },
    /// On, in one piece, in another shape.
    View { of: Weak<Record>, shape: Shape },
}

/// What a node remembers of an input: not its values.
pub(super) struct Input {
    pub shape: Shape,
    pub dtype: DType,
    pub origin: Origin,
}

impl Input {
    pub fn of(t: &Tensor) -> Self {
        Self { shape: t.shape().clone(), dtype: t.dtype(), origin: Origin::of(t) }
    }
}

/// Where a tensor comes from.
pub(super) enum Origin {
    /// Nothing that gets a gradient.
    Constant,
    Variable(Tensor),
    /// A node. A view alone does not keep what it is a view of.
    Node {
        record: Arc<Record>,
        _below: Vec<Arc<Record>>,
    },
    /// One of candle's ops.
    Candle(Tensor),
}

impl Origin {
    pub fn of(t: &Tensor) -> Self {
        if !t.track_op() {
            return Self::Constant;
        }
        if t.is_variable() {
            return Self::Variable(t.clone());
        }
        let Some(record) = record_of(t) else { return Self::Candle(t.clone()) };
        let below = std::iter::successors(record.viewed(), |below| below.viewed()).collect();
        Self::Node { record, _below: below }
    }
}

static NODES: AtomicU64 = AtomicU64::new(0);

/// The nodes that live, by their outputs.
static RECORDS: LazyLock<Mutex<HashMap<TensorId, Weak<Record>>>> = LazyLock::new(Mutex::default);

pub(super) fn record_of(t: &Tensor) -> Option<Arc<Record>> {
    lock(&RECORDS).get(&t.id()).and_then(Weak::upgrade)
}

/// A panic elsewhere leaves nothing half done under these locks.
pub(in crate::ops) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Record {
    pub fn new(source: Source) -> Arc<Self> {
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { number, source, output: OnceLock::new(), views: Mutex::default() })
    }

    /// The node this is a view of.
    fn viewed(&self) -> Option<Arc<Self>> {
        match &self.source {
            Source::Op { .. } => None,
            Source::View { of, .. } => of.upgrade(),
        }
    }

    /// From now on this is the tensor's node.
    pub fn stands_for(self: &Arc<Self>, output: &Tensor) {
        lock(&RECORDS).insert(*self.output.get_or_init(|| output.id()), Arc::downgrade(self));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(output) = self.output.get() {
            lock(&RECORDS).remove(output);
        }
    }
}
