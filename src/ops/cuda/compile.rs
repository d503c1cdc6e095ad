//! Kernels to machine code, by NVRTC, kept on disk: the compiler runs once a card and version.

use std::{
    ffi::{CStr, CString},
    path::PathBuf,
};

use candle_core::cuda_backend::cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::Kernel;
use crate::{
    error::{Error, Result},
    files,
};

/// The code of a kernel's module for a card of `capability`.
///
/// # Errors
/// If NVRTC refuses it.
pub(super) fn compiled(kernel: &Kernel<'_>, capability: usize) -> Result<Vec<u8>> {
    let source = kernel.source(kernel.module.source)?;
    let kept = place(&source, capability);
    if let Some(code) =
        kept.as_ref().and_then(|path| std::fs::read(path).ok()).filter(|code| !code.is_empty())
    {
        return Ok(code);
    }
    let code = compile(kernel, &source, capability)?;
    if let Some(path) = kept {
        // A cache: drawing goes on without it.
        drop(files::write_bytes(&path, &code));
    }
    Ok(code)
}

/// Where the code is kept: its name says everything it depends on.
fn place(source: &str, capability: usize) -> Option<PathBuf> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().ok()?;
    let hash =
        Sha256::new().chain_update(source).chain_update(format!("{capability} {major}.{minor}")).finalize();
    let name: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Some(files::cache_folder().join("kernels").join(format!("{name}.cubin")))
}

fn compile(kernel: &Kernel<'_>, source: &str, capability: usize) -> Result<Vec<u8>> {
    let failed = |what: &str| {
        let name = kernel.module.name;
        Error::invalid(format!(
            "the card's kernels of `{name}` cannot be compiled for sm_{capability}: {what}"
        ))
        .with_hint("is libnvrtc as new as the card? `--device cpu` does without")
    };
    let text = CString::new(source).map_err(|e| failed(&e.to_string()))?;
    let program = Program(result::create_program(&text, None).map_err(|e| failed(&format!("{e:?}")))?);
    let options = [
        format!("--gpu-architecture=sm_{capability}"),
        "--std=c++17".into(),
        "--extra-device-vectorization".into(),
    ];
    // SAFETY: the program lives.
    if let Err(e) = unsafe { result::compile_program(program.0, &options) } {
        // SAFETY: the program lives; the log is a C string.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|c| c as u8).collect();
        let log =
            CStr::from_bytes_until_nul(&log).map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        return Err(failed(&format!("{e:?}\n{log}")));
    }
    let mut size = 0;
    // SAFETY: the program was compiled; writes one integer.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &mut size) }
        .result()
        .map_err(|e| failed(&format!("{e:?}")))?;
    let mut code = vec![0u8; size];
    // SAFETY: the program was compiled, and the buffer is as long as it said.
    unsafe { sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()) }
        .result()
        .map_err(|e| failed(&format!("{e:?}")))?;
    Ok(code)
}

/// Compiles a kernel for every kind of card that takes it, as tests do with all they run.
///
/// # Errors
/// If NVRTC refuses it.
#[cfg(test)]
pub(super) fn check(kernel: &Kernel<'_>) -> Result<()> {
    let source = kernel.source(kernel.module.source)?;
    let all = [75, 80, 86, 89, 90, 100, 120];
    let from = if kernel.module.tensor_cores && kernel.dtype == candle_core::DType::BF16 { 80 } else { 75 };
    all.into_iter().filter(|capability| *capability >= from).try_for_each(|capability| {
        assert!(!compile(kernel, &source, capability)?.is_empty());
        Ok(())
    })
}

/// Freed with this.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram, freed once. A failure would leak some memory.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
