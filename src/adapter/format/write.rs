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
    let cast = |t: &Tensor| -> Result<Tensor> { Ok(t.to_dtype(options.dtype.unwrap_or(t.dtype()))?) };
    let delta = delta.map(&mut |t| cast(t))?;
    match (options.dialect, &delta) {
        (Dialect::Kohya, _) => {
            let module = kohya::module_name(layer, table)?;
            out.extend(
                delta.tensors()?.into_iter().map(|(suffix, tensor)| (format!("{module}{suffix}"), tensor)),
            );
        }
        (Dialect::Diffusers, Delta::LowRank(LowRank { down, up, mid, .. })) => {
            let module = peft::module_name(layer);
            // PEFT has no core; the same delta as two factors.
            let down = match delta.branch(shape)? {
                Some(branch) if mid.is_some() => branch.down.to_dtype(down.dtype())?,
                _ => down.clone(),
            };
            for (param, tensor) in peft::PARAMS.iter().zip([down, up.clone()]) {
                out.push((format!("{module}{param}"), tensor));
            }
        }
        (Dialect::Diffusers, _) => {
            return Err(Error::invalid(format!("diffusers has no spelling for {}", delta.algorithm()))
                .with_hint("write it as kohya's dialect"));
        }
    }
    Ok(())
}
