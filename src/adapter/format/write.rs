//! An [`Adapter`] into a file, or a folder. The same adapter makes the same bytes.

use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

use super::{
    Dialect, NameTable, SaveOptions, comfy, folder, kohya,
    peft::{self, component},
    peft_config,
    peft_write::{self, Layer},
};
use crate::{
    adapter::{Adapter, Delta, Embedding, Metadata, embedding::BUNDLE},
    error::{Error, Result},
    files,
    nn::{LayerPath, Part},
    weights::writer::SafetensorsWriter,
};

pub(crate) fn write(adapter: &Adapter, path: &Path, table: &NameTable, options: &SaveOptions) -> Result<()> {
    let writing = |e: Error| e.context(format!("writing {}", path.display()));
    if adapter.layers.is_empty() {
        return Err(writing(Error::invalid("an adapter without layers cannot be written")));
    }
    if let (Some(embedding), true) = (adapter.embeddings.first(), options.dialect != Dialect::Kohya) {
        let (name, dialect) = (&embedding.name, options.dialect);
        return Err(writing(Error::invalid(format!("{dialect} files cannot hold the embedding `{name}`")))
            .with_hint("write it in kohya's dialect"));
    }
    let layers = layers(adapter, table).map_err(writing)?;
    let tensors = |of: &dyn Fn(&Layer<'_>) -> Result<Vec<Named>>| -> Result<Vec<Named>> {
        tensors(&layers, options.dtype, of).map_err(writing)
    };
    let mut metadata = adapter.metadata.clone();
    metadata.0.remove(peft::CONFIG_KEY);
    if adapter.layers.values().any(|delta| matches!(delta, Delta::Glora(_))) {
        metadata.forget_rank_stabilised();
    }
    match options.dialect {
        Dialect::Peft => write_folders(&layers, path, options.dtype, &metadata),
        Dialect::Diffusers => {
            metadata.set("format", "pt");
            metadata.set(peft::CONFIG_KEY, joined_config(&layers).map_err(writing)?);
            write_file(&tensors(&diffusers_tensors)?, path, metadata)
        }
        Dialect::Kohya => {
            metadata.fill_kohya(adapter, table.lineage());
            let named = |layer: &Layer<'_>| {
                if !kohya::has_words(layer) {
                    return Err(no_spelling("kohya", layer.delta));
                }
                named(layer.delta, &kohya::module_name(layer.path, table)?)
            };
            let mut tensors = tensors(&named)?;
            tensors.extend(adapter.embeddings.iter().flat_map(|embedding| bundled(embedding)));
            write_file(&tensors, path, metadata)
        }
        Dialect::Comfy => {
            let named = |layer: &Layer<'_>| {
                if !comfy::has_words(layer.delta) {
                    return Err(no_spelling("ComfyUI", layer.delta));
                }
                named(layer.delta, &comfy::module_name(layer.path, table)?)
            };
            write_file(&tensors(&named)?, path, metadata)
        }
    }
}

type Named = (String, Tensor);

fn layers<'a>(adapter: &'a Adapter, table: &'a NameTable) -> Result<Vec<Layer<'a>>> {
    let layer = |(path, delta): (&'a LayerPath, &'a Delta)| match table.shape(path) {
        Some(shape) => Ok(Layer { path, delta, shape }),
        None => Err(Error::invalid(format!("{path}: the model has no such layer"))),
    };
    adapter.layers.iter().map(layer).collect()
}

fn tensors(
    layers: &[Layer<'_>],
    dtype: Option<DType>,
    of: &dyn Fn(&Layer<'_>) -> Result<Vec<Named>>,
) -> Result<Vec<Named>> {
    let mut all = Vec::new();
    for layer in layers {
        let located = |e: Error| e.context(layer.path.to_string());
        // Scalars and places are no weights, and stay what they are.
        let delta = match dtype {
            Some(dtype) => layer.delta.map(&mut |t| Ok(t.to_dtype(dtype)?)).map_err(located)?,
            None => layer.delta.clone(),
        };
        for (name, tensor) in of(&Layer { delta: &delta, ..*layer }).map_err(located)? {
            // What was computed for the dialect came out in f32.
            let computed = tensor.dtype() == DType::F32 && !tensor.dims().is_empty();
            let tensor = match dtype.filter(|_| computed) {
                Some(dtype) => tensor.to_dtype(dtype)?,
                None => tensor,
            };
            all.push((name, tensor));
        }
    }
    Ok(all)
}

/// kohya's and LyCORIS' parameters below a module's name.
fn named(delta: &Delta, module: &str) -> Result<Vec<Named>> {
    Ok(delta.tensors()?.into_iter().map(|(suffix, tensor)| (format!("{module}{suffix}"), tensor)).collect())
}

/// A textual inversion as LyCORIS bundles it.
fn bundled(embedding: &Embedding) -> impl Iterator<Item = Named> {
    let key = |vector: &str| format!("{BUNDLE}{}.{vector}", embedding.name);
    embedding.tensors().into_iter().map(move |(vector, tensor)| (key(vector), tensor))
}

fn diffusers_tensors(layer: &Layer<'_>) -> Result<Vec<Named>> {
    if !peft_write::is_lora(layer.delta) {
        return Err(no_spelling("diffusers", layer.delta));
    }
    let module = format!("{}.{}", component(layer.path.part), layer.peft_name());
    let params = peft_write::params(layer)?;
    Ok(params.into_iter().map(|(suffix, tensor)| (format!("{module}{suffix}"), tensor)).collect())
}

fn no_spelling(tool: &str, delta: &Delta) -> Error {
    let error = Error::invalid(format!("{tool} has no spelling for this kind of {}", delta.algorithm()));
    let other = if tool == "kohya" { Dialect::Peft } else { Dialect::Kohya };
    error.with_hint(format!("the {other} dialect may have one"))
}

fn write_file(tensors: &[Named], path: &Path, mut metadata: Metadata) -> Result<()> {
    let writer = SafetensorsWriter::new(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
        .map_err(|e| e.context(format!("writing {}", path.display())))?;
    metadata.set_hash(&writer.data_sha256()?);
    writer.write(path, &metadata.0)
}

/// The layers of each component that has some.
fn by_part<'a>(layers: &'a [Layer<'a>]) -> impl Iterator<Item = (Part, &'a [Layer<'a>])> {
    // They are sorted by component.
    layers.chunk_by(|a, b| a.path.part == b.path.part).map(|layers| (layers[0].path.part, layers))
}

/// diffusers' metadata entry: every component's config in one object.
fn joined_config(layers: &[Layer<'_>]) -> Result<Value> {
    let mut joined = Map::new();
    for (part, layers) in by_part(layers) {
        for (field, value) in peft_config::config(layers)? {
            joined.insert(format!("{}.{field}", component(part)), value);
        }
    }
    Ok(Value::Object(joined))
}

/// A folder a component, each as PEFT's `save_pretrained` makes it.
fn write_folders(layers: &[Layer<'_>], path: &Path, dtype: Option<DType>, metadata: &Metadata) -> Result<()> {
    if path.is_file() {
        return Err(Error::file(path, "is a file, expected a folder to put PEFT's folders into"));
    }
    for (part, layers) in by_part(layers) {
        let writing = |e: Error| e.context(format!("writing {}", path.display()));
        let mut config = peft_config::config(layers).map_err(writing)?;
        for (name, value) in [
            ("auto_mapping", peft_config::base_model(part)),
            ("base_model_name_or_path", Value::Null),
            ("inference_mode", json!(true)),
            ("task_type", Value::Null),
        ] {
            config.insert(name.into(), value);
        }
        let tensors = tensors(layers, dtype, &|layer| {
            let module = format!("{}{}", folder::ROOT, layer.peft_name());
            let params = peft_write::params(layer)?;
            Ok(params.into_iter().map(|(suffix, tensor)| (format!("{module}{suffix}"), tensor)).collect())
        });
        let (tensors, to) = (tensors.map_err(writing)?, path.join(component(part)));
        let mut metadata = metadata.clone();
        metadata.set("format", "pt");
        write_file(&tensors, &to.join(folder::WEIGHTS), metadata)?;
        let text = format!("{:#}\n", Value::Object(config));
        files::write_bytes(to.join(folder::CONFIG), text.as_bytes())?;
    }
    Ok(())
}
