//! A card's memory: kept between steps, and measured.

use candle_core::{
    CudaDevice, Device,
    cuda_backend::cudarc::driver::{DriverError, sys},
};

use crate::error::{Error, Result};

/// Opens a card whose work is all on one stream, whichever thread asks for it: nothing on it has to be waited for.
pub(super) fn open(index: usize) -> candle_core::Result<Device> {
    let device = Device::new_cuda_with_stream(index)?;
    let card = device.as_cuda_device()?;
    // SAFETY: there is the one stream. Memory is given out and taken back in its order.
    unsafe { card.disable_event_tracking() };
    // Without it, what is freed goes back to the system whenever the card is waited for, and is slow to get again.
    // A card without such pools does without.
    drop(set(card, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX));
    Ok(device)
}

/// The most bytes tensors had at a time since the start, or the last [`forget_peak`].
///
/// # Errors
/// If the driver does not say.
pub(super) fn peak_bytes(card: &CudaDevice) -> Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the attribute is 64 bits wide.
    let asked = unsafe {
        sys::cuMemPoolGetAttribute(
            pool(card)?,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
            (&raw mut bytes).cast(),
        )
    };
    asked.result().map_err(failed)?;
    Ok(bytes)
}

/// Starts [`peak_bytes`] anew.
///
/// # Errors
/// If the driver refuses.
pub(super) fn forget_peak(card: &CudaDevice) -> Result<()> {
    set(card, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
}

fn set(card: &CudaDevice, attribute: sys::CUmemPool_attribute, mut value: u64) -> Result<()> {
    // SAFETY: the attributes set here are 64 bits wide.
    unsafe { sys::cuMemPoolSetAttribute(pool(card)?, attribute, (&raw mut value).cast()) }
        .result()
        .map_err(failed)
}

fn pool(card: &CudaDevice) -> Result<sys::CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: writes one handle, of a device that is open.
    let asked =
        unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, card.cuda_stream().context().cu_device()) };
    asked.result().map_err(failed)?;
    Ok(pool)
}

fn failed(e: DriverError) -> Error {
    Error::invalid(format!("the card does not say how much memory is used: {e:?}"))
}
