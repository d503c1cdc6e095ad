//! Kernels on the processor, for tests: the same launches, the same source, compiled by the C++ compiler that is there.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{OsString, c_void},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, LazyLock, Mutex},
};

use candle_core::{CpuStorage, DType, Device, Shape, Storage, Tensor};
use libloading::{Library, Symbol};
use tempfile::TempDir;

use super::{Arg, Card, Kernel, Launch};
use crate::{
    error::{Error, Result},
    ops::function::lock,
};

/// An emulated card. Threads run forwards, backwards or shuffled.
pub(crate) struct Emulator {
    order: i32,
    capability: usize,
}

/// One whose threads run in order 0, 1 or 2. None without a compiler; nor where the processor's own kernels are what is tested
/// (`SCUMBLE_SIMD`): to these it does not matter.
pub(crate) fn emulator(order: i32, capability: usize) -> Option<Emulator> {
    (std::env::var_os("SCUMBLE_SIMD").is_none() && is_possible()).then_some(Emulator { order, capability })
}

/// Whether there is a C++ compiler, which every emulation needs. Where `SCUMBLE_KERNEL_TEST=required`, as in CI, there has to
/// be one.
fn is_possible() -> bool {
    static COMPILER: LazyLock<bool> = LazyLock::new(|| {
        Command::new(compiler()).arg("--version").output().is_ok_and(|o| o.status.success())
    });
    let required = std::env::var_os("SCUMBLE_KERNEL_TEST").is_some_and(|value| value == "required");
    assert!(*COMPILER || !required, "no C++ compiler {:?}, which tests of kernels need", compiler());
    *COMPILER
}

fn compiler() -> OsString {
    std::env::var_os("CXX").unwrap_or_else(|| "c++".into())
}

thread_local! {
    static IN_ITS_PLACE: RefCell<Option<Arc<Emulator>>> = const { RefCell::new(None) };
}

/// Runs `f` with an emulated card in the place of the processor, on this thread: whole networks as they run on a card. `None`
/// without a compiler.
pub(crate) fn on_a_card<R>(f: impl FnOnce() -> R) -> Option<R> {
    let before = IN_ITS_PLACE.replace(Some(Arc::new(emulator(0, 80)?)));
    let result = f();
    IN_ITS_PLACE.set(before);
    Some(result)
}

/// What [`on_a_card`] put there.
pub(super) fn in_its_place() -> Option<Arc<dyn Card>> {
    IN_ITS_PLACE.with_borrow(|emulator| emulator.clone().map(|emulator| emulator as Arc<dyn Card>))
}

/// The function the emulator makes of a kernel (`EXPORT` in `emulator.h`).
type Run = unsafe extern "C" fn(*const u32, usize, *mut *mut c_void, *const usize, i32, i32) -> i32;

impl Card for Emulator {
    fn capability(&self) -> usize {
        self.capability
    }

    fn processors(&self) -> usize {
        4
    }

    fn shared_bytes(&self) -> usize {
        if self.capability < 80 { 64 << 10 } else { 99 << 10 }
    }

    fn empty(&self, shape: &Shape, dtype: DType) -> Result<Tensor> {
        // What a kernel forgets to write is seen.
        Ok(Tensor::full(f32::NAN, shape, &Device::Cpu)?.to_dtype(dtype)?)
    }

    fn address(&self, t: &Tensor) -> Result<u64> {
        address(t)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        assert!(launch.shared_bytes <= self.shared_bytes(), "{} bytes of shared memory", launch.shared_bytes);
        let library = library(&launch.kernel)?;
        let mut values: Vec<[u8; 8]> = Vec::new();
        let mut sizes = Vec::new();
        for arg in launch.args {
            let (value, size) = match arg {
                Arg::Int(n) => (u64::from(launch.int(*n)? as u32), 4),
                Arg::Float(x) => (u64::from((*x as f32).to_bits()), 4),
                Arg::Tensor(t) => {
                    launch.contiguous(t)?;
                    (address(t)?, 8)
                }
            };
            values.push(value.to_ne_bytes());
            sizes.push(size);
        }
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|v| v.as_mut_ptr().cast()).collect();
        let [x, y, z] = launch.grid.map(|n| n as u32);
        let shape = [x, y, z, launch.threads as u32];
        let name = format!("run_{}", launch.kernel.function);
        // SAFETY: EXPORT makes functions of this type. It checks number and sizes of the arguments.
        let result = unsafe {
            let run: Symbol<'_, Run> =
                library.get(name.as_bytes()).map_err(|e| Error::invalid(e.to_string()))?;
            run(
                shape.as_ptr(),
                launch.shared_bytes,
                pointers.as_mut_ptr(),
                sizes.as_ptr(),
                sizes.len() as i32,
                self.order,
            )
        };
        match result {
            0 => Ok(()),
            1 => Err(Error::invalid(format!(
                "`{name}` takes another number of arguments than {}",
                sizes.len()
            ))),
            2 => Err(Error::invalid(format!("`{name}` takes other arguments than {:?}", launch.args))),
            3 => Err(Error::invalid(format!("threads of `{name}` wait for each other for ever"))),
            _ => Err(Error::invalid(format!("`{name}` wrote beyond its shared memory"))),
        }
    }
}

/// Where a tensor's numbers lie.
fn address(t: &Tensor) -> Result<u64> {
    let (storage, layout) = t.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { return Err(Error::invalid("not on the processor")) };
    let start = match storage {
        CpuStorage::F32(v) => v.as_ptr() as u64,
        CpuStorage::F16(v) => v.as_ptr() as u64,
        CpuStorage::BF16(v) => v.as_ptr() as u64,
        CpuStorage::U8(v) => v.as_ptr() as u64,
        CpuStorage::I64(v) => v.as_ptr() as u64,
        _ => return Err(Error::invalid("not floats")),
    };
    Ok(start + (layout.start_offset() * t.dtype().size_in_bytes()) as u64)
}

static LIBRARIES: LazyLock<Mutex<HashMap<String, Arc<Library>>>> = LazyLock::new(Mutex::default);

/// A module compiled for the processor; once.
fn library(kernel: &Kernel<'_>) -> Result<Arc<Library>> {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    let body = std::fs::read_to_string(ops.join(kernel.module.name).join("kernel.cu"));
    // From the tree where it is there: a kernel can be worked on without building the tests again.
    let body = body.unwrap_or_else(|_| kernel.module.source.to_string());
    let source = kernel.source(&body)?;
    let mut libraries = lock(&LIBRARIES);
    if let Some(library) = libraries.get(&source) {
        return Ok(Arc::clone(library));
    }
    #[cfg(feature = "cuda")]
    super::compile::check(kernel)?;
    let folder = TempDir::new().expect("a folder");
    let built = build(&source, &ops.join("cuda"), folder.path());
    // SAFETY: nothing runs when it is loaded.
    let library = Arc::new(unsafe { Library::new(built) }.expect("a library"));
    libraries.insert(source, Arc::clone(&library));
    Ok(library)
}

fn build(source: &str, include: &Path, folder: &Path) -> PathBuf {
    let (text, library) = (folder.join("kernel.cpp"), folder.join("kernel.so"));
    std::fs::write(&text, source).expect("a file");
    let output = Command::new(compiler())
        .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-DSCUMBLE_EMULATED", "-Wno-unknown-pragmas", "-I"])
        .args([include, &text, Path::new("-o"), &library])
        .output();
    let output = output.expect("a compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}
