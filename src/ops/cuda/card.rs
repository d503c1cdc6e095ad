//! A card that is there.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::{
    CudaDevice, DType, Device, Shape, Storage, Tensor,
    cuda_backend::{
        CudaStorageSlice, DeviceId,
        cudarc::{
            driver::{
                CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DriverError, LaunchConfig,
                PushKernelArg,
                sys::{CUdevice_attribute, CUfunction_attribute},
            },
            nvrtc::Ptx,
        },
    },
};

use super::{Arg, Card, Kernel, Launch, compile};
use crate::{
    error::{Error, Result},
    ops::function::lock,
};

/// What a block has without asking.
const PLAIN_SHARED_BYTES: usize = 48 << 10;

static CARDS: LazyLock<Mutex<HashMap<DeviceId, Arc<CudaCard>>>> = LazyLock::new(Mutex::default);

/// The card of a device; what it has compiled stays with it.
///
/// # Errors
/// If the driver does not say what the card is.
pub(super) fn of(device: &CudaDevice) -> Result<Arc<dyn Card>> {
    let mut cards = lock(&CARDS);
    if let Some(card) = cards.get(&device.id()) {
        return Ok(Arc::clone(card) as Arc<dyn Card>);
    }
    let card = Arc::new(CudaCard::new(device)?);
    cards.insert(device.id(), Arc::clone(&card));
    Ok(card)
}

struct CudaCard {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    capability: usize,
    processors: usize,
    shared_bytes: usize,
    modules: Mutex<HashMap<ModuleKey, Arc<CudaModule>>>,
    functions: Mutex<HashMap<(ModuleKey, &'static str), Arc<Function>>>,
}

/// What a module was compiled for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ModuleKey {
    name: &'static str,
    dtype: DType,
    constants: Vec<usize>,
}

impl ModuleKey {
    fn of(kernel: &Kernel<'_>) -> Self {
        let constants = kernel.constants.iter().map(|(_, value)| *value).collect();
        Self { name: kernel.module.name, dtype: kernel.dtype, constants }
    }
}

struct Function {
    function: CudaFunction,
    /// What was asked for so far.
    shared_bytes: AtomicUsize,
}

impl CudaCard {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let (major, minor) =
            stream.context().compute_capability().map_err(|e| failed("asking the card what it is", e))?;
        let attribute = |what| {
            let value =
                stream.context().attribute(what).map_err(|e| failed("asking the card what it has", e))?;
            Ok::<_, Error>(usize::try_from(value).unwrap_or(0))
        };
        let processors = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1);
        let shared_bytes =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        Ok(Self {
            device: device.clone(),
            stream,
            capability: (10 * major + minor) as usize,
            processors,
            shared_bytes,
            modules: Mutex::default(),
            functions: Mutex::default(),
        })
    }

    fn function(&self, kernel: &Kernel<'_>) -> Result<Arc<Function>> {
        let key = (ModuleKey::of(kernel), kernel.function);
        if let Some(function) = lock(&self.functions).get(&key) {
            return Ok(Arc::clone(function));
        }
        let module = self.module(kernel, &key.0)?;
        let function = module.load_function(kernel.function).map_err(|e| failed(kernel.function, e))?;
        let function = Arc::new(Function { function, shared_bytes: AtomicUsize::new(PLAIN_SHARED_BYTES) });
        lock(&self.functions).insert(key, Arc::clone(&function));
        Ok(function)
    }

    fn module(&self, kernel: &Kernel<'_>, key: &ModuleKey) -> Result<Arc<CudaModule>> {
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(key) {
            return Ok(Arc::clone(module));
        }
        let code = compile::compiled(kernel, self.capability)?;
        let module = self.stream.context().load_module(Ptx::from_binary(code));
        let module = module.map_err(|e| failed(kernel.module.name, e))?;
        modules.insert(key.clone(), Arc::clone(&module));
        Ok(module)
    }
}

impl Card for CudaCard {
    fn capability(&self) -> usize {
        self.capability
    }

    fn processors(&self) -> usize {
        self.processors
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    fn empty(&self, shape: &Shape, dtype: DType) -> Result<Tensor> {
        // SAFETY: the kernel it is made for writes all of it before anything reads it, on the same stream.
        Ok(unsafe { Tensor::empty(shape, dtype, &Device::Cuda(self.device.clone())) }?)
    }

    fn address(&self, t: &Tensor) -> Result<u64> {
        // All work on a card is on one stream: nothing has to be waited for.
        fn of<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> u64 {
            slice.device_ptr(stream).0
        }
        let (storage, layout) = t.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return Err(Error::invalid("a card's kernel was given a tensor that is elsewhere"));
        };
        let start = match &storage.slice {
            CudaStorageSlice::F32(slice) => of(slice, &self.stream),
            CudaStorageSlice::F16(slice) => of(slice, &self.stream),
            CudaStorageSlice::BF16(slice) => of(slice, &self.stream),
            CudaStorageSlice::I64(slice) => of(slice, &self.stream),
            _ => return Err(Error::invalid(format!("a card's kernel was given {:?}", t.dtype()))),
        };
        Ok(start + (layout.start_offset() * t.dtype().size_in_bytes()) as u64)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let function = self.function(&launch.kernel)?;
        if launch.shared_bytes > function.shared_bytes.fetch_max(launch.shared_bytes, Ordering::Relaxed) {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let asked = function.function.set_attribute(attribute, launch.int(launch.shared_bytes)?);
            asked.map_err(|e| failed(launch.kernel.function, e))?;
        }
        let values: Vec<Value> =
            launch.args.iter().map(|arg| self.value(launch, arg)).collect::<Result<_>>()?;
        let mut builder = self.stream.launch_builder(&function.function);
        for value in &values {
            match value {
                Value::Pointer(address) => builder.arg(address),
                Value::Int(n) => builder.arg(n),
                Value::Float(x) => builder.arg(x),
            };
        }
        let [x, y, z] = launch.grid.map(|n| n as u32);
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (launch.threads as u32, 1, 1),
            shared_mem_bytes: launch.shared_bytes as u32,
        };
        // SAFETY: the arguments are those of the kernel in number and kind, and the grid within its tensors: what the op's
        // launches promise, and what their tests check on the same source.
        unsafe { builder.launch(config) }.map_err(|e| failed(launch.kernel.function, e))?;
        Ok(())
    }
}

/// An argument as the driver takes it.
enum Value {
    Pointer(u64),
    Int(i32),
    Float(f32),
}

impl CudaCard {
    fn value(&self, launch: &Launch<'_>, arg: &Arg<'_>) -> Result<Value> {
        Ok(match arg {
            Arg::Int(n) => Value::Int(launch.int(*n)?),
            Arg::Float(x) => Value::Float(*x as f32),
            Arg::Tensor(t) => {
                launch.contiguous(t)?;
                Value::Pointer(self.address(t)?)
            }
        })
    }
}

fn failed(what: &str, e: DriverError) -> Error {
    Error::invalid(format!("the card failed at {what}: {e:?}"))
}
