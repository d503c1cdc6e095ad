//! An [`Adapter`] into a file. The same adapter makes the same bytes.

use std::path::Path;

use candle_core::Tensor;

use super::{Dialect, NameTable, SaveOptions, kohya, peft};
use crate::{
    adapter::{Adapter, Delta, LowRank},
    error::{Error, Result},
    nn::LayerPath,
    weights::writer::SafetensorsWriter,
};

pub(crate) fn write(adapter: &Adapter, path: &Path, table: &NameTable, options: &SaveOptions) -> Result<()> {
    let writing = |e: Error| e.context(format!("writing {}", path.display()));
    let tensors = tensors(adapter, table, options).map_err(writing)?;
    let writer = SafetensorsWriter::new(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)));
    let writer = writer.map_err(writing)?;
    let mut metadata = adapter.metadata.clone();
    if options.dialect == Dialect::Diffusers {
        metadata.set("format", "pt");
        metadata.set(peft::CONFIG_KEY, peft::config_text(adapter));
    } else {
        metadata.0.remove(peft::CONFIG_KEY);
    }
    metadata.set_hash(&writer.data_sha256()?);
    writer.write(path, &metadata.0)
}

fn tensors(adapter: &Adapter, table: &NameTable, options: &SaveOptions) -> Result<Vec<(String, Tensor)>> {
    if adapter.layers.is_empty() {
        return Err(Error::invalid("an adapter without layers cannot be written"));
    }
    let mut tensors = Vec::new();
    for (layer, delta) in &adapter.layers {
        named_tensors(layer, delta, table, options, &mut tensors)
            .map_err(|e| e.context(layer.to_string()))?;
    }
    Ok(tensors)
}

fn named_tensors(
    layer: &LayerPath,
    delta: &Delta,
    table: &NameTable,
    options: &SaveOptions,
    out: &mut Vec<(String, Tensor)>,
) -> Result<()> {
    let Some(shape) = table.shape(layer) else {
        return Err(Error::invalid("the model has no such layer"));
    };
    let Delta::LowRank(LowRank { down, up, mid, .. }) = delta;
    let cast = |t: &Tensor| -> Result<Tensor> { Ok(t.to_dtype(options.dtype.unwrap_or(t.dtype()))?) };
    let (down, up) = (cast(down)?, cast(up)?);
    let Delta::LowRank(low_rank) = delta;
    match options.dialect {
        Dialect::Kohya => {
            let module = kohya::module_name(layer, table)?;
            let alpha = low_rank.alpha.unwrap_or(low_rank.rank() as f64);
            let alpha = Tensor::new(alpha, down.device())?.to_dtype(down.dtype())?;
            out.push((format!("{module}.alpha"), alpha));
            for (param, tensor) in
                kohya::PARAMS.iter().zip([Some(down), Some(up), mid.as_ref().map(cast).transpose()?])
            {
                out.extend(tensor.map(|tensor| (format!("{module}{param}"), tensor)));
            }
        }
        Dialect::Diffusers => {
            let module = peft::module_name(layer);
            // PEFT has no core; the same delta as two factors.
            let down = match delta.branch(shape)? {
                Some(branch) if mid.is_some() => branch.down.to_dtype(down.dtype())?,
                _ => down,
            };
            for (param, tensor) in peft::PARAMS.iter().zip([down, up]) {
                out.push((format!("{module}{param}"), tensor));
            }
        }
    }
    Ok(())
}
