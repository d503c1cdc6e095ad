//! One module's tensors, read as a file: whole ones are applied, incomplete and inconsistent ones refused by key and shape.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use scumble::{
    Result,
    adapter::{Adapter, Delta, LoadOptions, NameTable, SaveOptions, delta::OftSeries},
    nn::{LayerPath, Part},
    random::{Rng, Stream},
    weights::writer::SafetensorsWriter,
};

const LINEAR: &[usize] = &[6, 6];
const CONV: &[usize] = &[6, 4, 3, 3];

fn names() -> NameTable {
    let layer =
        |name: &str, shape: &[usize]| (LayerPath { part: Part::Unet, name: name.into() }, shape.to_vec());
    NameTable::from_shapes(BTreeMap::from([
        layer("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", LINEAR),
        layer("down_blocks.0.resnets.0.conv1", CONV),
        layer("conv_in", &[6, 9, 3, 3]),
    ]))
}

/// Draws tensors one after another.
struct Draw(u64);

impl Draw {
    fn tensor(&mut self, dims: &[usize]) -> Result<Tensor> {
        self.0 += 1;
        Ok((Rng::new(3, Stream::Weights, self.0).normal(dims, &Device::Cpu)? * 0.4)?)
    }
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    let max = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / max
}

const MODULE: &str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";

const CONV_MODULE: &str = "lora_unet_down_blocks_0_resnets_0_conv1";

/// A file of one module, read for the model.
fn load(tensors: &[(&str, Tensor)], metadata: &[(&str, &str)], options: &LoadOptions) -> Result<Adapter> {
    let tensors: Vec<(String, &Tensor)> =
        tensors.iter().map(|(suffix, t)| (format!("{MODULE}{suffix}"), t)).collect();
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
    load_keys(&tensors, &metadata, options)
}

fn load_keys(
    tensors: &[(String, &Tensor)],
    metadata: &BTreeMap<String, String>,
    options: &LoadOptions,
) -> Result<Adapter> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("one.safetensors");
    SafetensorsWriter::new(tensors.iter().map(|(name, t)| (name.as_str(), *t)))?.write(&path, metadata)?;
    Adapter::load(&path, &names(), options)
}

fn only(adapter: &Adapter) -> &Delta {
    adapter.layers.values().next().expect("one layer")
}

#[test]
fn incomplete_and_inconsistent_modules_are_refused() -> Result<()> {
    let mut draw = Draw(300);
    let mut t = |dims: &[usize]| draw.tensor(dims).expect("a tensor");
    let ids = |dims: &[usize]| Tensor::zeros(dims, DType::I64, &Device::Cpu).expect("a tensor");
    let number = |x: f64| Tensor::new(x, &Device::Cpu).expect("a tensor");
    let (down, up) = (t(&[2, 6]), t(&[6, 2]));
    let lora = |more: Vec<(&'static str, Tensor)>| {
        [vec![(".lora_down.weight", down.clone()), (".lora_up.weight", up.clone())], more].concat()
    };
    let cases: Vec<(Vec<(&str, Tensor)>, &str)> = vec![
        (vec![(".hada_w1_a", t(&[6, 2]))], "`.hada_w1_b` is missing"),
        (
            vec![
                (".hada_w1_a", t(&[2, 6])),
                (".hada_w1_b", t(&[2, 6])),
                (".hada_w2_a", t(&[2, 6])),
                (".hada_w2_b", t(&[2, 6])),
                (".hada_t1", t(&[2, 2, 3, 3])),
            ],
            "`.hada_t2` is missing",
        ),
        (
            vec![
                (".hada_w1_a", t(&[6, 2])),
                (".hada_w1_b", t(&[3, 6])),
                (".hada_w2_a", t(&[6, 2])),
                (".hada_w2_b", t(&[2, 6])),
            ],
            "(`.hada_w1_a` [6, 2], `.hada_w1_b` [3, 6]) do not fit the model's weight [6, 6]",
        ),
        (vec![(".lokr_w1", t(&[2, 2]))], "`.lokr_w2` is missing"),
        (vec![(".lokr_w1", t(&[2, 2])), (".lokr_w2_a", t(&[3, 1]))], "`.lokr_w2_b` is missing"),
        (
            vec![(".lokr_w1", t(&[2, 2])), (".lokr_w1_a", t(&[2, 1])), (".lokr_w2", t(&[3, 3]))],
            "`.lokr_w1` is stored both whole and factored",
        ),
        (
            vec![(".lokr_w1", t(&[4, 2])), (".lokr_w2", t(&[2, 3]))],
            "make 8 × 6, the model's weight is [6, 6]",
        ),
        (
            vec![(".lokr_w1", t(&[2, 2])), (".lokr_w2_a", t(&[3, 2])), (".lokr_w2_b", t(&[1, 3]))],
            "the rank is 2 in `.lokr_w2_a` and 1 in `.lokr_w2_b`",
        ),
        (lora(vec![(".hada_w1_a", t(&[6, 2]))]), "two algorithms on one module"),
        (lora(vec![(".diff", t(&[6, 6]))]), "two algorithms on one module"),
        (vec![(".dora_scale", t(&[6, 1]))], "stands alone, without factors"),
        (vec![(".alpha", number(1.0))], "stands alone, without factors"),
        (lora(vec![(".dora_scale", t(&[5, 1]))]), "the DoRA magnitude has shape [5, 1]"),
        (lora(vec![(".rescale", t(&[6, 1]))]), ".rescale` does not belong to LoRA"),
        (lora(vec![(".w_norm", t(&[6]))]), "two algorithms on one module"),
        (vec![(".w_norm", t(&[6]))], "are for normalisations"),
        (lora(vec![(".bias_values", t(&[2]))]), "`.bias_indices` is missing"),
        (lora(vec![(".diff_b", t(&[5]))]), "`.diff_b` has shape [5], expected [6]"),
        (lora(vec![(".alpha", number(f64::INFINITY))]), ".alpha` is inf"),
        (lora(vec![(".scale", number(-3.0))]), "alpha is -6 at rank 2"),
        (lora(vec![(".alpha", number(1e9))]), "alpha is 1000000000 at rank 2"),
        (vec![(".diff", t(&[6, 5]))], "`.diff` has shape [6, 5], the model's weight is [6, 6]"),
        (vec![(".diff", ids(&[6, 6]))], ".diff` is stored as I64, expected floats"),
        (vec![(".diff", t(&[1, 1, 1, 6, 6]))], "expected one to four dimensions"),
        (vec![(".oft_blocks", t(&[2, 3, 2]))], "are not [n, b, b] with n · b = 6"),
        (vec![(".oft_blocks", t(&[2, 2, 2]))], "are not [n, b, b] with n · b = 6"),
        (vec![(".oft_blocks", t(&[1, 2, 3, 3]))], "b even"),
        (vec![(".oft_diag", (t(&[2, 3, 3]) + 5.0)?)], "found a mean of"),
        (vec![(".oft_R.weight", t(&[2, 4]))], "expected [n, b · (b - 1) / 2]"),
        (vec![(".oft_blocks", t(&[2, 3, 3])), (".rescale", t(&[5]))], "`.rescale` has shape [5]"),
        (vec![(".a1.weight", t(&[6, 2])), (".b1.weight", t(&[6, 2]))], "`.a2.weight` is missing"),
        (
            vec![
                (".a1.weight", t(&[6, 2])),
                (".a2.weight", t(&[2, 6])),
                (".b1.weight", t(&[6, 3])),
                (".b2.weight", t(&[2, 6])),
            ],
            "share no rank in either layout",
        ),
        (vec![(".weight", t(&[5])), (".on_input", number(1.0))], "one for each of the inputs"),
        (vec![(".ia3_l", t(&[6]))], "may be for the inputs or the outputs"),
    ];
    for (tensors, expected) in cases {
        let outcome = load(&tensors, &[], &LoadOptions::default());
        let message = outcome.map(|_| ()).expect_err(expected).to_string();
        assert!(message.contains(expected) && message.contains(MODULE), "{expected:?} is not in: {message}");
    }
    Ok(())
}

#[test]
fn alphas_of_every_kind_are_read() -> Result<()> {
    let mut draw = Draw(400);
    let (down, up) = (draw.tensor(&[2, 6])?, draw.tensor(&[6, 2])?);
    let with = |more: Vec<(&'static str, Tensor)>| -> Result<Adapter> {
        let tensors = vec![(".lora_down.weight", down.clone()), (".lora_up.weight", up.clone())];
        load(&[tensors, more].concat(), &[], &LoadOptions::default())
    };
    let one = |dtype| -> Result<Tensor> { Ok(Tensor::new(1f64, &Device::Cpu)?.to_dtype(dtype)?) };
    let plain = with(vec![])?;
    let weight = |a: &Adapter| -> Result<Vec<f32>> { Ok(only(a).weight(&[6, 6])?.flatten_all()?.to_vec1()?) };
    let full: Vec<f32> = weight(&plain)?;
    for dtype in [DType::I64, DType::U8, DType::F16, DType::BF16, DType::F32, DType::F64] {
        for shape in [&[][..], &[1]] {
            let half = weight(&with(vec![(".alpha", one(dtype)?.reshape(shape)?)])?)?;
            let doubled: Vec<f32> = half.iter().map(|x| x * 2.0).collect();
            assert_eq!(doubled, full, "{dtype:?}");
        }
    }
    // A stored scale replaces alpha / r.
    let tripled = with(vec![(".alpha", one(DType::F32)?), (".scale", (one(DType::F32)? * 3.0)?)])?;
    assert!(difference(&weight(&tripled)?, &full.iter().map(|x| x * 3.0).collect::<Vec<_>>()) < 1e-6);
    let nothing = with(vec![(".alpha", (one(DType::F32)? * 0.0)?)])?;
    assert!(weight(&nothing)?.iter().all(|x| *x == 0.0));
    assert!(nothing.report.warnings[0].contains("alpha is 0"));
    Ok(())
}

#[test]
fn a_whole_lokr_warns_and_can_be_overridden() -> Result<()> {
    let mut draw = Draw(500);
    let tensors = [
        (".lokr_w1", draw.tensor(&[2, 2])?),
        (".lokr_w2", draw.tensor(&[3, 3])?),
        (".alpha", Tensor::new(1f32, &Device::Cpu)?),
    ];
    let metadata = [("ss_network_dim", "32")];
    let plain = load(&tensors, &metadata, &LoadOptions::default())?;
    assert!(plain.report.warnings[0].contains("the scale 0.03125 was meant"), "{:?}", plain.report.warnings);
    let options = LoadOptions { whole_lokr_scale: Some(1.0 / 32.0), ..LoadOptions::default() };
    let scaled = load(&tensors, &metadata, &options)?;
    assert!(scaled.report.warnings.is_empty());
    let weight = |a: &Adapter| -> Result<Vec<f32>> { Ok(only(a).weight(&[6, 6])?.flatten_all()?.to_vec1()?) };
    let expected: Vec<f32> = weight(&plain)?.iter().map(|x| x / 32.0).collect();
    assert_eq!(weight(&scaled)?, expected);
    Ok(())
}

#[test]
fn pefts_config_decides_what_the_tensors_leave_open() -> Result<()> {
    let mut draw = Draw(600);
    let config = |fields: &str| format!("{{{fields}}}");
    let read = |tensors: &[(&str, Tensor)], fields: &str| -> Result<Adapter> {
        load(tensors, &[("lora_adapter_metadata", &config(fields))], &LoadOptions::default())
    };
    let skew = [(".oft_R.weight", draw.tensor(&[3, 1])?)];
    for (fields, series) in [
        (r#""unet.use_cayley_neumann": false"#, OftSeries::Exact),
        (r#""unet.num_cayley_neumann_terms": 7"#, OftSeries::Neumann(7)),
    ] {
        let adapter = read(&skew, fields)?;
        assert!(matches!(only(&adapter), Delta::OftV2(oft) if oft.series == series), "{fields}");
    }
    let factors = [(".ia3_l", draw.tensor(&[6])?)];
    let adapter = read(&factors, r#""unet.feedforward_modules": ["to_q"]"#)?;
    assert!(matches!(only(&adapter), Delta::Ia3(ia3) if ia3.on_input));
    let whole = [(".lokr_w1", draw.tensor(&[2, 2])?), (".lokr_w2", draw.tensor(&[3, 3])?)];
    let adapter = read(&whole, r#""unet.alpha": 4, "unet.r": 16"#)?;
    assert!(matches!(only(&adapter), Delta::LoKr(lokr) if lokr.scale() == 0.25));
    let lora = [(".lora_A.weight", draw.tensor(&[4, 6])?), (".lora_B.weight", draw.tensor(&[6, 4])?)];
    let adapter = read(&lora, r#""unet.lora_alpha": 3, "unet.r": 4, "unet.use_rslora": true"#)?;
    assert!(matches!(only(&adapter), Delta::LowRank(l) if l.scale() == 1.5));
    Ok(())
}

#[test]
fn an_oft_alpha_of_0_is_what_its_trainer_means() -> Result<()> {
    let mut draw = Draw(700);
    let (blocks, base) = (draw.tensor(&[2, 3, 3])?, draw.tensor(LINEAR)?);
    let zero = Tensor::new(0f32, &Device::Cpu)?;
    let values = |adapter: &Adapter| -> Result<Vec<f32>> {
        Ok(only(adapter).apply(&base, 1.0)?.flatten_all()?.to_vec1()?)
    };
    let base_values: Vec<f32> = base.flatten_all()?.to_vec1()?;
    let as_of = |prefix: &str| -> Result<Adapter> {
        let module = MODULE.replace("lora_unet_", prefix);
        let tensors = [(format!("{module}.oft_blocks"), &blocks), (format!("{module}.alpha"), &zero)];
        load_keys(&tensors, &BTreeMap::new(), &LoadOptions::default())
    };
    // kohya clamps the rotation to none, LyCORIS does not clamp.
    let (kohya, lycoris) = (as_of("oft_unet_")?, as_of("lora_unet_")?);
    assert!(difference(&values(&kohya)?, &base_values) < 1e-6);
    assert!(difference(&values(&lycoris)?, &base_values) > 0.1);
    // Written in LyCORIS' way, both stay what they are.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("again.safetensors");
    for adapter in [kohya, lycoris] {
        adapter.save(&path, &names(), &SaveOptions::default())?;
        let again = Adapter::load(&path, &names(), &LoadOptions::default())?;
        assert_eq!(values(&again)?, values(&adapter)?);
    }
    Ok(())
}

/// A file's bytes, for number formats that are read but not written.
fn raw(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (suffix, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert(format!("{MODULE}{suffix}"), entry);
        data.extend(bytes);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

fn load_raw(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Result<Adapter> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("raw.safetensors");
    std::fs::write(&path, raw(tensors)).expect("a writable folder");
    Adapter::load(&path, &names(), &LoadOptions::default())
}

#[test]
fn factors_and_settings_of_every_stored_format_are_read() -> Result<()> {
    // 1, -2, 0.5, 4, 0, 1.5 in each.
    let formats: [(&str, Vec<u8>); 6] = [
        ("F8_E4M3", vec![0x38, 0xc0, 0x30, 0x48, 0x00, 0x3c]),
        ("F8_E5M2", vec![0x3c, 0xc0, 0x38, 0x44, 0x00, 0x3e]),
        (
            "F16",
            [0x3c00u16, 0xc000, 0x3800, 0x4400, 0, 0x3e00].iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        (
            "BF16",
            [0x3f80u16, 0xc000, 0x3f00, 0x4080, 0, 0x3fc0].iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        ("F32", [1f32, -2.0, 0.5, 4.0, 0.0, 1.5].iter().flat_map(|x| x.to_le_bytes()).collect()),
        ("F64", [1f64, -2.0, 0.5, 4.0, 0.0, 1.5].iter().flat_map(|x| x.to_le_bytes()).collect()),
    ];
    let values = [1f32, -2.0, 0.5, 4.0, 0.0, 1.5];
    let expected: Vec<f32> = values.iter().flat_map(|up| values.map(|down| 3.0 * up * down)).collect();
    let three: [(&str, Vec<u8>); 4] = [
        ("I64", 3i64.to_le_bytes().to_vec()),
        ("U8", vec![3]),
        ("I8", vec![3]),
        ("U64", 3u64.to_le_bytes().to_vec()),
    ];
    for (i, (down_format, down)) in formats.iter().enumerate() {
        // Two dtypes in one module.
        let (up_format, up) = &formats[(i + 1) % formats.len()];
        let (alpha_format, alpha) = &three[i % three.len()];
        let adapter = load_raw(&[
            (".lora_down.weight", down_format, &[1, 6], down.clone()),
            (".lora_up.weight", up_format, &[6, 1], up.clone()),
            (".alpha", alpha_format, &[], alpha.clone()),
        ])?;
        let found: Vec<f32> = only(&adapter).weight(LINEAR)?.flatten_all()?.to_vec1()?;
        assert_eq!(found, expected, "{down_format} and {up_format}");
    }
    let skew = [0.5f32; 3].iter().flat_map(|x| x.to_le_bytes()).collect();
    for (format, flag) in [("BOOL", vec![1]), ("F32", 1f32.to_le_bytes().to_vec())] {
        let weight = (".oft_R.weight", "F32", &[3, 1][..], Vec::clone(&skew));
        let adapter = load_raw(&[weight, (".oft_R.scaled_oft", format, &[], flag)])?;
        assert!(matches!(only(&adapter), Delta::OftV2(oft) if oft.scaled));
    }
    Ok(())
}

#[test]
fn a_plain_models_adapter_leaves_an_inpainting_models_mask_alone() -> Result<()> {
    let mut draw = Draw(900);
    let (down, up) = (draw.tensor(&[2, 4, 3, 3])?, draw.tensor(&[6, 2, 1, 1])?);
    let key = |suffix: &str| format!("lora_unet_conv_in{suffix}");
    let tensors = [(key(".lora_down.weight"), &down), (key(".lora_up.weight"), &up)];
    let adapter = load_keys(&tensors, &BTreeMap::new(), &LoadOptions::default())?;
    let found = only(&adapter).weight(&[6, 9, 3, 3])?;
    let latents = up.flatten_from(1)?.matmul(&down.flatten_from(1)?)?.reshape((6, 4, 3, 3))?;
    let values = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.flatten_all()?.to_vec1()?) };
    assert!(difference(&values(&found.narrow(1, 0, 4)?)?, &values(&latents)?) < 1e-6);
    assert!(values(&found.narrow(1, 4, 5)?)?.iter().all(|x| *x == 0.0));
    Ok(())
}

#[test]
fn a_rounded_alpha_is_not_written() -> Result<()> {
    let mut draw = Draw(800);
    let half = |t: Tensor| t.to_dtype(DType::F16);
    let (down, up) = (half(draw.tensor(&[2, 6])?)?, half(draw.tensor(&[6, 2])?)?);
    let alpha = Tensor::new(2f32.sqrt(), &Device::Cpu)?;
    let tensors = [(".lora_down.weight", down), (".lora_up.weight", up), (".alpha", alpha)];
    let adapter = load(&tensors, &[], &LoadOptions::default())?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("again.safetensors");
    adapter.save(&path, &names(), &SaveOptions::default())?;
    let again = Adapter::load(&path, &names(), &LoadOptions::default())?;
    assert_eq!(only(&again).alpha(), only(&adapter).alpha());
    Ok(())
}

/// Suffixes that may stand together.
const GROUPS: [&[&str]; 11] = [
    &[".lora_down.weight", ".lora_up.weight"],
    &[".lora_down.weight", ".lora_up.weight", ".lora_mid.weight", ".lora_B.bias"],
    &[".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"],
    &[".lokr_w1", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2"],
    &[".lokr_w1_a", ".lokr_w1_b", ".lokr_w2"],
    &[".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"],
    &[".weight", ".on_input"],
    &[".oft_blocks", ".rescale"],
    &[".oft_R.weight", ".oft_R.scaled_oft"],
    &[".diff", ".diff_b"],
    &[
        ".dora_scale",
        ".lora_magnitude_vector",
        ".alpha",
        ".scale",
        ".bias_indices",
        ".bias_values",
        ".bias_size",
    ],
];

/// A shape that fits, for a layer of six outputs.
fn fitting(suffix: &str, shape: &[usize]) -> Vec<usize> {
    let inputs: usize = shape[1..].iter().product();
    match suffix {
        ".lora_down.weight" | ".b2.weight" => [&[2], &shape[1..]].concat(),
        ".lora_up.weight" | ".hada_w1_a" | ".hada_w2_a" | ".b1.weight" => vec![6, 2],
        ".lora_mid.weight" => vec![2, 2, 3, 3],
        ".hada_w1_b" | ".hada_w2_b" => vec![2, inputs],
        ".lokr_w1" | ".bias_indices" => vec![2, 2],
        ".lokr_w1_a" => vec![2, 1],
        ".lokr_w1_b" => vec![1, 2],
        ".lokr_w2" => [&[3, shape[1] / 2], &shape[2..]].concat(),
        ".lokr_w2_a" => vec![3, 1],
        ".lokr_w2_b" => vec![1, inputs / 2],
        ".a1.weight" => vec![shape[1], 2],
        ".a2.weight" => vec![2, shape[1]],
        ".oft_blocks" => vec![2, 3, 3],
        ".oft_R.weight" => vec![inputs / 2, 1],
        ".diff" => shape.to_vec(),
        ".dora_scale" | ".lora_magnitude_vector" => vec![6, 1],
        ".bias_values" | ".bias_size" => vec![2],
        ".weight" | ".diff_b" | ".rescale" | ".lora_B.bias" => vec![6],
        _ => vec![1],
    }
}

#[test]
fn any_module_is_applied_or_refused() -> Result<()> {
    let names = names();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("any.safetensors");
    let mut rng = Rng::new(77, Stream::Shuffle, 0);
    let mut below = |n: usize| ((rng.unit() * n as f64) as usize).min(n - 1);
    let (mut applied, mut refused) = (0, 0);
    for round in 0..1_500 {
        let (module, shape) = [(MODULE, LINEAR), (CONV_MODULE, CONV)][below(2)];
        let mut tensors = BTreeMap::new();
        for group in [below(10), if below(3) == 0 { below(11) } else { 10 }] {
            for suffix in GROUPS[group] {
                if below(6) == 0 || (group == 10 && below(6) > 0) {
                    continue;
                }
                let mut dims = fitting(suffix, shape);
                if below(12) == 0 {
                    let sizes = [0, 1, 2, 3, 6, 36];
                    dims = (0..below(6)).map(|_| sizes[below(6)]).collect();
                }
                let odd = [DType::F16, DType::BF16, DType::I64, DType::U8];
                let dtype = if below(8) == 0 { odd[below(4)] } else { DType::F32 };
                tensors
                    .insert(format!("{module}{suffix}"), Draw(round).tensor(&dims)?.abs()?.to_dtype(dtype)?);
            }
        }
        let writer = SafetensorsWriter::new(tensors.iter().map(|(name, t)| (name.as_str(), t)))?;
        std::fs::write(&path, writer.to_bytes(&BTreeMap::new())?).expect("a writable folder");
        match Adapter::load(&path, &names, &LoadOptions::default()) {
            Ok(adapter) => {
                let base = Draw(9).tensor(shape)?;
                assert_eq!(only(&adapter).apply(&base, 0.5)?.dims(), shape);
                applied += 1;
            }
            Err(e) => {
                assert!(!e.to_string().is_empty());
                refused += 1;
            }
        }
    }
    assert!(applied > 150 && refused > 500, "{applied} applied, {refused} refused");
    Ok(())
}
