//! What each fuzzer does with any bytes; `tests/fuzz_corpus.rs` does the same with the kept ones. A broken promise is a
//! panic.
#![allow(dead_code, reason = "each target uses one of them")]

#[path = "../tests/tables/mod.rs"]
mod tables;

use std::{collections::BTreeMap, sync::OnceLock};

use candle_core::{DType, Device, Tensor};
use scumble::{
    adapter::{Adapter, Dialect, LoadOptions, Metadata, NameTable, SaveOptions, Survey, card, format::Fit},
    weights::{Component, Store, ldm::SingleFile, reader::SafetensorsFile, writer::SafetensorsWriter},
};

/// The header, every tensor, and the file as a checkpoint.
pub fn safetensors_reader(bytes: &[u8]) {
    let Ok(file) = SafetensorsFile::from_bytes("fuzz.safetensors", bytes.to_vec()) else { return };
    safetensors::SafeTensors::deserialize(bytes).expect("the reference reader takes what this one takes");
    let mut tensors = BTreeMap::new();
    let mut total = 0;
    for (name, entry) in &file.header().tensors {
        total += file.tensor_bytes(name).expect("a range inside of the file").len();
        match file.tensor(name) {
            Ok(tensor) => {
                assert_eq!(tensor.dims(), entry.shape.as_slice());
                assert_eq!(tensor.dtype(), entry.dtype.tensor_dtype());
                tensors.insert(name.as_str(), tensor);
            }
            Err(error) => assert!(error.to_string().contains("U64"), "{error}"),
        }
    }
    assert_eq!(total, file.data().len(), "tensors cover the data");
    rewritten(&tensors, file.metadata());
    if let Ok(single) = SingleFile::new(file) {
        for component in [Component::Unet, Component::Vae, Component::TextEncoder, Component::TextEncoder2] {
            let Ok(view) = single.component(component) else { continue };
            for name in view.names() {
                // What is there may still have another shape than its place asks for.
                let (info, loaded) = (view.info(&name), view.load(&name));
                if let (Some(info), Ok(loaded)) = (info, loaded) {
                    assert_eq!(info.shape, *loaded.shape());
                }
            }
        }
    }
}

/// What is written is read back.
fn rewritten(tensors: &BTreeMap<&str, Tensor>, metadata: &BTreeMap<String, String>) {
    let writer = SafetensorsWriter::new(tensors.iter().map(|(name, t)| (*name, t))).expect("known dtypes");
    let bytes = writer.to_bytes(metadata).expect("written");
    let again = SafetensorsFile::from_bytes("again.safetensors", bytes).expect("read back");
    assert_eq!(again.metadata(), metadata);
    for (name, tensor) in tensors {
        let same = again.tensor(name).expect("read back");
        assert_eq!((same.dims(), same.dtype()), (tensor.dims(), tensor.dtype()));
    }
}

/// Survey, card, and for each family: load, apply, write in each dialect, load again.
pub fn adapter_parser(bytes: &[u8]) {
    let Ok(file) = SafetensorsFile::from_bytes("fuzz.safetensors", bytes.to_vec()) else { return };
    let metadata = Metadata(file.metadata().clone());
    let _ = (card::trigger(&metadata), card::tags(&metadata), card::recipe(&metadata));
    let _ = (card::title(&metadata), card::base_model(&metadata));
    if let Ok(survey) = Survey::of(&file) {
        let _ = (survey.blocks(), survey.algorithms(), survey.trained(), survey.family.to_string());
    }
    for table in family_tables() {
        let _ = Fit::of(&file, table);
        let options = LoadOptions { allow_unmatched: true, ..LoadOptions::default() };
        if let Ok(adapter) = Adapter::of(&file, table, &options) {
            applied(&adapter, table);
            handed_on(&adapter, table);
        }
    }
}

/// What was accepted can be applied, if only to numbers that overflow.
fn applied(adapter: &Adapter, table: &NameTable) {
    for (path, delta) in &adapter.layers {
        let shape = table.shape(path).expect("a layer of the model");
        let base = Tensor::ones(shape, DType::F32, &Device::Cpu).expect("a weight");
        let bias = Tensor::ones(shape[0], DType::F32, &Device::Cpu).expect("a bias");
        let weight = delta.apply(&base, 0.7).unwrap_or_else(|e| panic!("{path}: {}: {e}", delta.algorithm()));
        assert_eq!(weight.dims(), shape, "{path}: {}", delta.algorithm());
        let branch = delta.branch(shape).unwrap_or_else(|e| panic!("{path}: {}: {e}", delta.algorithm()));
        assert!(branch.is_none_or(|b| b.up.dims()[0] == shape[0]), "{path}");
        delta.apply_bias(Some(&bias), 0.7).unwrap_or_else(|e| panic!("{path}: bias: {e}"));
    }
}

/// What is written in a dialect that can say it is read again: as many layers, nothing left over.
fn handed_on(adapter: &Adapter, table: &NameTable) {
    for dialect in Dialect::ALL {
        let Ok(files) = adapter.to_files(table, &SaveOptions { dialect, dtype: None }) else { continue };
        if dialect.is_folder() {
            continue;
        }
        for (_, bytes) in files {
            let file = SafetensorsFile::from_bytes("again.safetensors", bytes).expect("a valid file");
            let again = Adapter::of(&file, table, &LoadOptions::default());
            let again = again.unwrap_or_else(|e| panic!("{dialect}: {e}"));
            assert_eq!(again.layers.len(), adapter.layers.len(), "{dialect}");
            assert_eq!(again.embeddings.len(), adapter.embeddings.len(), "{dialect}");
        }
    }
}

/// The layers of SD 1, SD 2 and SDXL with a handful of channels, as the golden adapters have them.
fn family_tables() -> &'static [NameTable] {
    static TABLES: OnceLock<Vec<NameTable>> = OnceLock::new();
    TABLES.get_or_init(|| {
        let index = include_str!("../tests/golden/adapter/matrix/fixtures.json");
        let index: serde_json::Value = serde_json::from_str(index).expect("JSON");
        let families = index["configs"].as_object().expect("families").values();
        families.map(|configs| tables::table(configs).expect("a table")).collect()
    })
}
