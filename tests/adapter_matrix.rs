//! The matrix dialect × algorithm × family: files of the real writers, each merged weight against what the trainer's own
//! layer does with it. `make_matrix.py` and `make_rare.py` (old and seldom writers, the SDXL refiner) made the files.

#![expect(clippy::print_stdout, reason = "the matrix is what this test is for")]

mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use scumble::{
    Error, Result,
    adapter::{
        Adapter, Dialect, LoadOptions, NameTable, Parts, SaveOptions, Survey,
        format::{Fit, folder::open},
    },
    models::UNet2DConditionModel,
    nn::{LayerPath, Part},
    weights::{reader::Entry, record_shapes},
};
use serde_json::Value;
use tables::table;

/// The largest error of any merged weight, relative to the largest weight of its layer.
const TOLERANCE: f64 = 1e-4;
const TOLERANCE_F16: f64 = 2e-3;
/// How many numbers are kept of each row of a merged weight.
const COLUMNS: usize = 2;

/// Where the files are, below `tests/golden/adapter`.
const FOLDERS: [&str; 2] = ["matrix", "rare"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapter").join(name)
}

fn layer(dotted: &str) -> LayerPath {
    let (part, name) = dotted.split_once('.').expect("a component and a path");
    let part = Part::ALL.into_iter().find(|p| p.name() == part).expect("a component");
    LayerPath { part, name: name.into() }
}

/// What the script calls `numbers`: base weights and projections that need not be stored.
fn numbers(name: &str, count: usize) -> Vec<f32> {
    let seed = name.bytes().fold(2_166_136_261u32, |h, byte| (h ^ u32::from(byte)).wrapping_mul(16_777_619));
    let value = |i: usize| {
        let mut x = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed);
        for _ in 0..2 {
            x = (x ^ (x >> 16)).wrapping_mul(73_244_475);
        }
        x ^= x >> 16;
        ((f64::from(x) / 4_294_967_296.0 - 0.5) * 0.6) as f32
    };
    (0..count).map(value).collect()
}

fn base(name: &str, shape: &[usize]) -> Result<Tensor> {
    let tensor = Tensor::from_vec(numbers(name, shape.iter().product()), shape, &Device::Cpu)?;
    let parent = name.rsplit('.').nth(1).unwrap_or_default();
    Ok(if parent.contains("norm") && name.ends_with("weight") { (tensor + 1.0)? } else { tensor })
}

struct Fixture<'a> {
    folder: &'static str,
    name: &'a str,
    facts: &'a Value,
    /// Path, rows, and whether the bias changes.
    layers: Vec<(LayerPath, usize, bool)>,
}

impl Fixture<'_> {
    fn fact(&self, key: &str) -> &str {
        self.facts[key].as_str().expect("a text")
    }

    fn path(&self) -> PathBuf {
        let file = folder(self.folder).join(format!("{}.safetensors", self.name));
        if file.is_file() { file } else { folder(self.folder).join(self.name) }
    }

    fn tolerance(&self) -> f64 {
        if self.facts["half"] == true { TOLERANCE_F16 } else { TOLERANCE }
    }
}

struct Matrix {
    /// By folder.
    index: BTreeMap<&'static str, Value>,
    expected: BTreeMap<String, Vec<f32>>,
    tables: BTreeMap<String, NameTable>,
}

impl Matrix {
    fn load() -> Result<Self> {
        let (mut index, mut expected, mut tables) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for name in FOLDERS {
            let at = folder(name).join("fixtures.json");
            let text = std::fs::read_to_string(&at).map_err(|e| Error::io(&at, e))?;
            let listing: Value = serde_json::from_str(&text).expect("JSON");
            let stored =
                candle_core::safetensors::load(folder(name).join("expected.safetensors"), &Device::Cpu)?;
            for (fixture, values) in &stored {
                expected.insert(fixture.clone(), values.to_vec1()?);
            }
            for (family, configs) in listing["configs"].as_object().expect("families") {
                tables.insert(family.clone(), table(configs)?);
            }
            index.insert(name, listing);
        }
        Ok(Self { index, expected, tables })
    }

    fn fixtures(&self) -> impl Iterator<Item = Fixture<'_>> {
        self.index.iter().flat_map(|(folder, index)| {
            index["fixtures"].as_object().expect("fixtures").iter().map(|(name, facts)| {
                let listing = &index["layers"][facts["layers"].as_u64().expect("a number") as usize];
                let entry = |e: &Value| {
                    let rows = e[1].as_u64().expect("a number") as usize;
                    (layer(e[0].as_str().expect("a path")), rows, e[2] == true)
                };
                let layers = listing.as_array().expect("layers").iter().map(entry).collect();
                Fixture { folder, name, facts, layers }
            })
        })
    }

    fn table(&self, fixture: &Fixture<'_>) -> &NameTable {
        &self.tables[fixture.fact("family")]
    }

    /// The largest error over all layers, each relative to its largest value.
    fn error(&self, fixture: &Fixture<'_>, adapter: &Adapter) -> Result<f64> {
        let (mut rest, mut worst) = (self.expected[fixture.name].as_slice(), 0f64);
        for (path, rows, bias) in &fixture.layers {
            let delta = &adapter.layers[path];
            let shape = self.table(fixture).shape(path).expect("a layer of the model");
            let weight = delta.apply(&base(&format!("{path}.weight"), shape)?, 1.0)?;
            worst = worst.max(compare(&projected(path, &weight)?, &mut rest, rows * COLUMNS));
            let before = base(&format!("{path}.bias"), &[*rows])?;
            let has_bias = !["to_q", "to_k", "to_v"].iter().any(|end| path.name.ends_with(end));
            let after = delta.apply_bias(has_bias.then_some(&before), 1.0)?;
            assert_eq!(after.is_some(), *bias, "{}: the bias of {path}", fixture.name);
            if let Some(after) = after {
                worst = worst.max(compare(&after.to_vec1()?, &mut rest, *rows));
            }
        }
        assert!(rest.is_empty(), "{}", fixture.name);
        Ok(worst)
    }
}

/// W' P, with P of ±1.
fn projected(path: &LayerPath, weight: &Tensor) -> Result<Vec<f32>> {
    let weight = if weight.dims().len() == 1 { weight.unsqueeze(1)? } else { weight.flatten_from(1)? };
    let inputs = weight.dims()[1];
    let signs: Vec<f32> =
        numbers(&format!("{path}.projection"), inputs * COLUMNS).iter().map(|x| x.signum()).collect();
    let signs = Tensor::from_vec(signs, (inputs, COLUMNS), &Device::Cpu)?;
    Ok(weight.matmul(&signs)?.flatten_all()?.to_vec1()?)
}

fn compare(found: &[f32], rest: &mut &[f32], count: usize) -> f64 {
    let (expected, tail) = rest.split_at(count);
    *rest = tail;
    assert_eq!(found.len(), count);
    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    let error = found.iter().zip(expected).fold(0f32, |m, (a, b)| {
        let error = (a - b).abs();
        // NaN must not look like agreement.
        if error.is_nan() { f32::INFINITY } else { m.max(error) }
    });
    f64::from(error / largest)
}

#[test]
fn every_file_does_what_its_trainer_did() -> Result<()> {
    let matrix = Matrix::load()?;
    let mut cells: BTreeMap<(String, String), BTreeMap<String, f64>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for fixture in matrix.fixtures() {
        let row = (
            fixture.fact("dialect").to_string(),
            format!(
                "{}{}",
                fixture.fact("algorithm"),
                if fixture.facts["half"] == true { " f16" } else { "" }
            ),
        );
        let outcome = Adapter::load(fixture.path(), matrix.table(&fixture), &LoadOptions::default())
            .and_then(|adapter| {
                let (found, wanted): (BTreeSet<_>, BTreeSet<_>) =
                    (adapter.layers.keys().collect(), fixture.layers.iter().map(|l| &l.0).collect());
                if found != wanted || adapter.report.coverage() != 1.0 {
                    let other = found.symmetric_difference(&wanted).next();
                    return Err(Error::invalid(format!("other layers: {other:?}")));
                }
                matrix.error(&fixture, &adapter)
            });
        let survey = Survey::of(&open(&fixture.path())?)?;
        let fit = Fit::of(&open(&fixture.path())?, matrix.table(&fixture));
        if fit.other > 0 {
            wrong.push(format!("{}: {fit:?}", fixture.name));
        }
        let incomplete = survey.algorithms().contains_key("incomplete");
        if incomplete || !survey.unknown.is_empty() || survey.modules.len() < fixture.layers.len() {
            wrong.push(format!("{}: surveyed as {:?}", fixture.name, survey.algorithms()));
        }
        let error = outcome.unwrap_or_else(|e| {
            wrong.push(format!("{}: {e}", fixture.name));
            f64::INFINITY
        });
        if error > fixture.tolerance() {
            wrong.push(format!("{}: error {error:.1e}", fixture.name));
        }
        cells.entry(row).or_default().insert(fixture.fact("family").to_string(), error);
    }
    println!("{}", printed(&cells));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    Ok(())
}

fn printed(cells: &BTreeMap<(String, String), BTreeMap<String, f64>>) -> String {
    let families = ["sd1", "sd2", "sdxl", "sdxl-refiner"];
    let mut text = format!(
        "{:<12} {:<20} {:>9} {:>9} {:>9} {:>9}\n",
        "dialect", "algorithm", "sd1 f32", "sd2 bf16", "sdxl f16", "refiner"
    );
    for ((dialect, algorithm), row) in cells {
        let cell = |f: &&str| row.get(*f).map_or("-".into(), |e| format!("{e:.1e}"));
        let row: String = families.iter().map(|f| format!(" {:>9}", cell(f))).collect();
        writeln!(text, "{dialect:<12} {algorithm:<20}{row}").expect("writing to a string");
    }
    text
}

/// What each dialect cannot say, by our names of algorithms.
fn is_refused(dialect: Dialect, algorithm: &str) -> bool {
    let is = |names: &[&str]| names.iter().any(|name| algorithm.starts_with(name));
    match dialect {
        Dialect::Kohya => false,
        Dialect::Comfy => is(&["IA³", "OFTv2"]),
        Dialect::Diffusers => {
            algorithm == "DoRA (input axis)" || !is(&["LoRA", "LoCon", "DoRA"]) || is(&["DoRA over"])
        }
        Dialect::Peft => {
            algorithm == "DoRA (input axis)"
                || is(&["DoRA over", "GLoRA", "OFT", "BOFT", "full", "norm"]) && algorithm != "OFTv2"
        }
    }
}

/// Every tensor by its layer and parameter.
fn all_tensors(adapter: &Adapter) -> Result<BTreeMap<String, Tensor>> {
    let mut all = BTreeMap::new();
    for (path, delta) in &adapter.layers {
        all.extend(delta.tensors()?.into_iter().map(|(suffix, tensor)| (format!("{path}{suffix}"), tensor)));
    }
    Ok(all)
}

fn same_bytes(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) -> Result<bool> {
    let bits = |t: &Tensor| -> Result<Vec<u64>> {
        let values = t.to_dtype(candle_core::DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        Ok(values.into_iter().map(f64::to_bits).collect())
    };
    for ((a_key, a), (b_key, b)) in a.iter().zip(b) {
        let factors = !a_key.ends_with(".alpha") && !a_key.ends_with(".on_input");
        // A 1×1 convolution's factors may be matrices; diffusers and PEFT want the layer's own dimensions.
        if a_key != b_key
            || a.elem_count() != b.elem_count()
            || (factors && a.dtype() != b.dtype())
            || bits(a)? != bits(b)?
        {
            return Ok(false);
        }
    }
    Ok(a.len() == b.len())
}

/// True if PEFT's way to store these needs no arithmetic, and has a place for all of it.
fn every_dialect_keeps(algorithms: &BTreeSet<&str>, fixture: &Fixture<'_>) -> bool {
    algorithms.iter().all(|a| ["LoRA", "DoRA", "LoHa", "LoHa (Tucker)"].contains(a))
        && !fixture.name.ends_with("lora-bias")
}

#[test]
fn conversions_return_what_they_were_given() -> Result<()> {
    let matrix = Matrix::load()?;
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let mut counts: BTreeMap<Dialect, [usize; 3]> = BTreeMap::new();
    for fixture in matrix.fixtures() {
        let table = matrix.table(&fixture);
        let original = Adapter::load(fixture.path(), table, &LoadOptions::default())?;
        let given = all_tensors(&original)?;
        let algorithms: BTreeSet<&str> = original.layers.values().map(|delta| delta.algorithm()).collect();
        for dialect in Dialect::ALL {
            let at = scratch.path().join(format!("{}-{dialect}", fixture.name));
            let count = counts.entry(dialect).or_default();
            let refused = algorithms.iter().any(|a| is_refused(dialect, a));
            if let Err(error) = original.save(&at, table, &SaveOptions { dialect, dtype: None }) {
                let message = error.to_string();
                let named = algorithms.iter().any(|a| message.contains(a.split(' ').next().unwrap_or(a)));
                // Of these there are kinds that only some dialects know.
                let has_kinds =
                    algorithms.iter().any(|a| ["IA³", "OFTv2"].contains(a) || a.starts_with("LoKr"));
                let has_residual = fixture.name.ends_with("sparse") && dialect != Dialect::Kohya;
                let refused = refused || has_kinds || has_residual || algorithms.len() > 1;
                assert!(named && refused, "{}: {message}", fixture.name);
                count[2] += 1;
                continue;
            }
            assert!(!refused, "{} in {dialect}: {algorithms:?}", fixture.name);
            let back = Adapter::load(&at, table, &LoadOptions::default())
                .map_err(|e| e.context(format!("{} from {dialect}", fixture.name)))?;
            assert_eq!(back.report.coverage(), 1.0);
            let error = matrix.error(&fixture, &back)?;
            assert!(error <= fixture.tolerance(), "{} from {dialect}: error {error:.1e}", fixture.name);
            let same = same_bytes(&given, &all_tensors(&back)?)?;
            // Only PEFT's way to store these needs arithmetic, or has no place for a Tucker core or a scalar beside.
            let exact = matches!(dialect, Dialect::Kohya | Dialect::Comfy)
                || every_dialect_keeps(&algorithms, &fixture);
            assert!(same || !exact, "{} from {dialect}: other bytes", fixture.name);
            count[usize::from(!same)] += 1;
        }
    }
    for (dialect, [same, equal, refused]) in counts {
        println!(
            "to {dialect} and back: {same} with the same bytes, {equal} equal within rounding, {refused} refused by name"
        );
    }
    Ok(())
}

/// Along every arrow between so many places: i → j → i for each pair, and on to the next i.
fn tour(dialects: &[Dialect]) -> Vec<Dialect> {
    let mut way = Vec::new();
    for (i, from) in dialects.iter().enumerate() {
        way.push(*from);
        way.extend(dialects[i + 1..].iter().flat_map(|to| [*to, *from]));
    }
    way
}

/// Names, dtypes, sizes and bytes of a file, or of a folder of PEFT's. (Factors of a 1×1 convolution may come as matrices;
/// diffusers and PEFT want the layer's own number of dimensions.)
fn stored(path: &Path) -> Result<(String, Vec<u8>)> {
    let file = open(path)?;
    let entry = |(name, e): (&String, &Entry)| format!("{name} {} {}\n", e.dtype.name(), e.range.len());
    Ok((file.header().tensors.iter().map(entry).collect(), file.data().to_vec()))
}

/// From every dialect to every other and back, and so also by way of a third: whenever a dialect is reached again, the
/// file has the bytes it had the first time.
#[test]
fn every_way_between_dialects_keeps_the_bytes() -> Result<()> {
    let matrix = Matrix::load()?;
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let mut ways: BTreeMap<usize, usize> = BTreeMap::new();
    for fixture in matrix.fixtures() {
        let table = matrix.table(&fixture);
        let mut adapter = Adapter::load(fixture.path(), table, &LoadOptions::default())?;
        let algorithms = adapter.layers.values().map(|delta| delta.algorithm()).collect();
        let keeps = every_dialect_keeps(&algorithms, &fixture);
        let at = |dialect: Dialect| scratch.path().join(format!("{}-{dialect}", fixture.name));
        let save = |adapter: &Adapter, dialect| {
            adapter.save(at(dialect), table, &SaveOptions { dialect, dtype: None })
        };
        let mut first = BTreeMap::new();
        for dialect in
            Dialect::ALL.into_iter().filter(|d| keeps || [Dialect::Kohya, Dialect::Comfy].contains(d))
        {
            if save(&adapter, dialect).is_ok() {
                first.insert(dialect, stored(&at(dialect))?);
            }
        }
        let known: Vec<Dialect> = first.keys().copied().collect();
        for dialect in tour(&known) {
            save(&adapter, dialect)?;
            let (keys, data) = stored(&at(dialect))?;
            assert_eq!(keys, first[&dialect].0, "{}: back in {dialect}", fixture.name);
            assert!(data == first[&dialect].1, "{}: other bytes back in {dialect}", fixture.name);
            adapter = Adapter::load(at(dialect), table, &LoadOptions::default())?;
        }
        *ways.entry(known.len() * known.len().saturating_sub(1)).or_default() += 1;
    }
    for (pairs, count) in ways {
        println!("{count} files along {pairs} ways from dialect to dialect: the same bytes");
    }
    Ok(())
}

/// LyCORIS' rank-stabilised GLoRA stores alpha unscaled and says so in its metadata; what we write is scaled already.
#[test]
fn alphas_are_not_scaled_twice() -> Result<()> {
    let matrix = Matrix::load()?;
    let fixture = matrix.fixtures().find(|f| f.name == "sd1_lycoris-glora").expect("a fixture");
    let (table, scratch) = (matrix.table(&fixture), tempfile::tempdir().expect("a temporary folder"));
    let mut adapter = Adapter::load(fixture.path(), table, &LoadOptions::default())?;
    adapter.metadata.set("ss_network_args", r#"{"algo":"glora","rs_lora":"True"}"#);
    adapter.save(scratch.path().join("a"), table, &SaveOptions::default())?;
    let back = Adapter::load(scratch.path().join("a"), table, &LoadOptions::default())?;
    assert!(same_bytes(&all_tensors(&adapter)?, &all_tensors(&back)?)?);
    assert_eq!(back.metadata.get("ss_network_args"), Some(r#"{"algo":"glora"}"#));
    Ok(())
}

/// kohya's own networks of the real sizes, not only the tiny ones here: each name it gives is the one we write.
#[test]
fn names_of_real_models_are_kohyas() -> Result<()> {
    use scumble::{adapter::format::kohya, models::family::unet_config, weights::Family};
    use sha2::{Digest as _, Sha256};

    let matrix = Matrix::load()?;
    for (name, family) in [("sd1", Family::Sd1), ("sdxl", Family::Sdxl)] {
        let mut table = None;
        record_shapes(|weights| {
            let mut unet = UNet2DConditionModel::load(weights, &unet_config(family))?;
            table = Some(NameTable::of(&mut Parts::new().with(Part::Unet, &mut unet))?);
            Ok(())
        })?;
        let table = table.expect("made above");
        let is_trained = |path: &LayerPath, shape: &[usize]| {
            let blocks = ["attentions", "resnets", "downsamplers", "upsamplers"];
            shape.len() > 1 && path.name.split('.').any(|segment| blocks.contains(&segment))
        };
        let layers = table.layers().filter(|(path, shape)| is_trained(path, shape));
        let mut names: Vec<String> =
            layers.map(|(path, _)| kohya::module_name(path, &table)).collect::<Result<_>>()?;
        names.sort();
        let expected = &matrix.index["matrix"]["kohya_names"][name];
        assert_eq!(names.len() as u64, expected[0].as_u64().expect("a number"), "{name}");
        let hash = format!("{:x}", Sha256::digest(names.join("\n")));
        assert_eq!(Some(hash.as_str()), expected[1].as_str(), "{name}");
    }
    Ok(())
}
