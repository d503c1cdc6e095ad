//! What the comparisons with Python share: weights computed from their names, golden files, errors.
//! `tests/golden/models/make_golden.py` is the other side.

#![allow(dead_code, reason = "each test uses some of it")]

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    path::PathBuf,
    sync::Arc,
};

use candle_core::{DType, Device, Shape, Tensor};
use scumble::{
    Error, Result,
    models::{
        AddedConditions, AutoencoderKl, ClipTextConfig, ClipTextModel, UNet2DConditionModel, UNetConfig,
        UNetInput, VaeConfig,
    },
    ops::checkpoint::Tape,
    weights::{Store, TensorInfo, Weights},
};
use serde_json::Value;

/// Numbers in [-1, 1) from a name; `uniform` in `make_golden.py`.
pub fn uniform(name: &str, count: usize) -> impl Iterator<Item = f64> {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (1..=count as u64).map(move |i| {
        let mut z = hash.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f64 / f64::from(1 << 23) - 1.0
    })
}

pub fn values(name: &str, shape: &Shape, scale: f64) -> Result<Tensor> {
    let numbers: Vec<f32> = uniform(name, shape.elem_count()).map(|u| (u * scale) as f32).collect();
    Ok(Tensor::from_vec(numbers, shape, &Device::Cpu)?)
}

/// Weights computed from their names; `weight` in `make_golden.py`.
#[derive(Debug)]
struct HashStore(BTreeMap<String, Shape>);

impl Store for HashStore {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.0.get(name).map(|shape| TensorInfo { dtype: DType::F32, shape: shape.clone() })
    }

    fn load(&self, name: &str) -> Result<Tensor> {
        let shape = self.0.get(name).ok_or_else(|| Error::invalid(format!("no tensor `{name}`")))?;
        let dims = shape.dims();
        if dims.len() > 1 {
            let fan_in: usize = dims[1..].iter().product();
            return values(name, shape, (3.0 / fan_in as f64).sqrt());
        }
        let (centre, scale) = if name.ends_with(".weight") { (1.0, 0.1) } else { (0.0, 0.1) };
        let numbers: Vec<f32> =
            uniform(name, shape.elem_count()).map(|u| (centre + scale * u) as f32).collect();
        Ok(Tensor::from_vec(numbers, shape, &Device::Cpu)?)
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn origin(&self) -> String {
        "hashed weights".into()
    }
}

/// The weights of a network in `dtype`, after checking that it has exactly the tensors the Python network has.
pub fn hashed(shapes: BTreeMap<String, Shape>, digest: &Value, dtype: DType) -> Weights {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    for (name, shape) in &shapes {
        let dims: Vec<String> = shape.dims().iter().map(ToString::to_string).collect();
        hash.update(format!("{name} {}\n", dims.join("x")));
    }
    let hex = hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    assert_eq!(Some(hex.as_str()), digest.as_str(), "other tensors than the reference: {:#?}", shapes.keys());
    Weights::new(Arc::new(HashStore(shapes)), dtype, Device::Cpu)
}

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models")
}

pub fn index(kind: &str, name: &str) -> Value {
    let text = std::fs::read_to_string(folder().join("index.json")).unwrap();
    let index: Value = serde_json::from_str(&text).unwrap();
    index[kind][name].clone()
}

pub struct Golden(pub HashMap<String, Tensor>);

impl Golden {
    pub fn read(name: &str) -> Result<Self> {
        let path = folder().join(format!("{name}.safetensors"));
        Ok(Self(candle_core::safetensors::load(path, &Device::Cpu)?))
    }

    pub fn get(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("no `{name}` in the golden file"))
    }

    pub fn count(&self, prefix: &str) -> usize {
        self.0.keys().filter(|key| key.starts_with(prefix)).count()
    }
}

/// Largest error over largest value.
pub fn error(found: &Tensor, expected: &Tensor) -> Result<f64> {
    assert_eq!(found.dims(), expected.dims());
    let largest =
        |t: &Tensor| -> Result<f64> { Ok(f64::from(t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?)) };
    Ok(largest(&(found - expected)?)? / largest(expected)?)
}

#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    let error = error(found, expected).unwrap();
    println!("{what}: {error:.1e}");
    assert!(error <= tolerance, "{what}: {error:.1e} > {tolerance:.0e}");
}

pub fn bits(t: &Tensor) -> Vec<u32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// The UNet of a golden case.
pub fn load_unet(name: &str, dtype: DType) -> Result<(UNet2DConditionModel, Golden)> {
    let case = index("unet", name);
    let config = UNetConfig::from_json(&case["config"])?;
    let weights = hashed(UNet2DConditionModel::parameter_shapes(&config)?, &case["digest"], dtype);
    Ok((UNet2DConditionModel::load(&weights, &config)?, Golden::read(name)?))
}

/// The UNet's answer to a golden case, whose text may come from elsewhere.
pub fn run_unet(
    model: &UNet2DConditionModel,
    golden: &Golden,
    context: &Tensor,
    tape: Option<&Tape>,
) -> Result<Tensor> {
    let added = golden
        .0
        .get("pooled")
        .map(|pooled| AddedConditions { pooled: pooled.clone(), time_ids: golden.get("time_ids").clone() });
    let guidance = golden.0.get("guidance");
    let input = UNetInput::new(golden.get("sample"), golden.get("timesteps"), context);
    model.forward(&UNetInput { added, guidance, tape, ..input })
}

/// The text encoder of a golden case and its weights.
pub fn load_clip(name: &str, dtype: DType) -> Result<(ClipTextModel, Golden, Weights)> {
    let case = index("clip", name);
    let config = ClipTextConfig::from_json(&case["config"])?;
    let weights = hashed(ClipTextModel::parameter_shapes(&config)?, &case["digest"], dtype);
    Ok((ClipTextModel::load(&weights, &config)?, Golden::read(name)?, weights))
}

/// The autoencoder of a golden case and its weights.
pub fn load_vae(name: &str, dtype: DType) -> Result<(AutoencoderKl, Golden, Weights)> {
    let case = index("vae", name);
    let config = VaeConfig::from_json(&case["config"])?;
    let weights = hashed(AutoencoderKl::parameter_shapes(&config)?, &case["digest"], dtype);
    Ok((AutoencoderKl::load(&weights, &config)?, Golden::read(name)?, weights))
}
