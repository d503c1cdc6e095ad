//! An [`Adapter`] into a file, or a folder. The same adapter makes the same bytes.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

use super::{
    Dialect, NameTable, SaveOptions, comfy, folder, kohya,
    peft::{self, component},
    peft_config,
    peft_write::{self, Layer},
};
use crate::{
    adapter::{Adapter, Delta, Embedding, Metadata, delta::all_finite, embedding::BUNDLE},
    error::{Error, Result},
    files,
    nn::{LayerPath, Part},
    weights::writer::SafetensorsWriter,
};

pub(crate) fn write(adapter: &Adapter, path: &Path, table: &NameTable, options: &SaveOptions) -> Result<()> {
    let writing = |e: Error| e.context(format!("writing {}", path.display()));
    if options.dialect.is_folder() && path.is_file() {
        return Err(Error::file(path, "is a file, expected a folder to put PEFT's folders into"));
    }
    for file in prepare(adapter, table, options).map_err(writing)? {
        let at = if file.below.as_os_str().is_empty() { path.to_path_buf() } else { path.join(&file.below) };
        file.writer().map_err(writing)?.write(&at, &file.metadata.0)?;
        if let Some(config) = &file.config {
            files::write_bytes(at.with_file_name(folder::CONFIG), config.as_bytes())?;
        }
    }
    Ok(())
}

/// What [`write`] would write: paths below the one it is given, and bytes.
pub(crate) fn to_files(
    adapter: &Adapter,
    table: &NameTable,
    options: &SaveOptions,
) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut all = Vec::new();
    for file in prepare(adapter, table, options)? {
        let config = file.config.as_ref().map(|text| text.clone().into_bytes());
        all.push((file.below.clone(), file.writer()?.to_bytes(&file.metadata.0)?));
        all.extend(config.map(|bytes| (file.below.with_file_name(folder::CONFIG), bytes)));
    }
    Ok(all)
}

/// A safetensors file about to be written.
struct Output {
    /// Below the adapter's path; empty where that is the file.
    below: PathBuf,
    tensors: Vec<Named>,
    metadata: Metadata,
    /// PEFT's, to stand beside it.
    config: Option<String>,
}

impl Output {
    /// # Errors
    /// If a tensor cannot be read.
    fn new(tensors: Vec<Named>, metadata: Metadata) -> Result<Self> {
        let mut file = Self { below: PathBuf::new(), tensors, metadata, config: None };
        let hash = file.writer()?.data_sha256()?;
        file.metadata.set_hash(&hash);
        Ok(file)
    }

    fn writer(&self) -> Result<SafetensorsWriter<'_>> {
        SafetensorsWriter::new(self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
    }
}

fn prepare(adapter: &Adapter, table: &NameTable, options: &SaveOptions) -> Result<Vec<Output>> {
    if adapter.layers.is_empty() {
        return Err(Error::invalid("an adapter without layers cannot be written"));
    }
    if let (Some(embedding), true) = (adapter.embeddings.first(), options.dialect != Dialect::Kohya) {
        let (name, dialect) = (&embedding.name, options.dialect);
        return Err(Error::invalid(format!("{dialect} files cannot hold the embedding `{name}`"))
            .with_hint("write it in kohya's dialect"));
    }
    let layers = layers(adapter, table)?;
    let tensors = |of: &dyn Fn(&Layer<'_>) -> Result<Vec<Named>>| tensors(&layers, options.dtype, of);
    let mut metadata = adapter.metadata.clone();
    metadata.0.remove(peft::CONFIG_KEY);
    if adapter.layers.values().any(|delta| matches!(delta, Delta::Glora(_))) {
        metadata.forget_rank_stabilised();
    }
    let file = match options.dialect {
        Dialect::Peft => return folders(&layers, options.dtype, &metadata),
        Dialect::Diffusers => {
            metadata.set("format", "pt");
            metadata.set(peft::CONFIG_KEY, joined_config(&layers)?);
            Output::new(tensors(&diffusers_tensors)?, metadata)
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
            Output::new(tensors, metadata)
        }
        Dialect::Comfy => {
            let named = |layer: &Layer<'_>| {
                if !comfy::has_words(layer.delta) {
                    return Err(no_spelling("ComfyUI", layer.delta));
                }
                named(layer.delta, &comfy::module_name(layer.path, table)?)
            };
            Output::new(tensors(&named)?, metadata)
        }
    };
    Ok(vec![file?])
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
            // What is computed may overflow, and what is converted too; no reader would take it.
            if tensor.dtype().is_float() && !all_finite(&tensor)? {
                return Err(Error::invalid(format!("`{name}` leaves the range of {:?}", tensor.dtype()))
                    .with_hint(
                        "write it as f32 or bf16, or in kohya's dialect, which keeps factors as they are",
                    ));
            }
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
fn folders(layers: &[Layer<'_>], dtype: Option<DType>, metadata: &Metadata) -> Result<Vec<Output>> {
    let of = |(part, layers): (Part, &[Layer<'_>])| {
        let mut config = peft_config::config(layers)?;
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
        let mut metadata = metadata.clone();
        metadata.set("format", "pt");
        let config = Some(format!("{:#}\n", Value::Object(config)));
        let below = Path::new(component(part)).join(folder::WEIGHTS);
        Ok(Output { below, config, ..Output::new(tensors?, metadata)? })
    };
    by_part(layers).map(of).collect()
}
