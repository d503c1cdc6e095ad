//! Merging and resizing: exact where it says so, nearest where it says so, and PEFT's numbers where methods are PEFT's.
//! `tests/golden/merge/make_golden.py` made the expectations.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use scumble::{
    Result,
    adapter::{
        Adapter, Blend, Delta, LowRank, NameTable, Strength,
        delta::{Dora, HadamardFactor, LoHa, MagnitudeAxis},
        fuse::fused_weight,
        layers::Progress,
        merge::{self, MajoritySign, MergeOptions, Method},
        resize::{self, Cut},
        truncate::{RankLimit, RankRule, total_error},
    },
    nn::{LayerPath, Part},
    progress::CancelToken,
    random::{Rng, Stream},
    weights::reader::SafetensorsFile,
};

const LAYERS: [(&str, &[usize]); 3] = [
    ("down_blocks.0.attn1.to_q", &[10, 12]),
    ("down_blocks.0.conv1", &[6, 4, 3, 3]),
    ("down_blocks.0.proj_in", &[8, 6, 1, 1]),
];

/// Adapters with their weights.
type Entries<'a> = &'a [(&'a str, f64)];

fn path(name: &str) -> LayerPath {
    LayerPath { part: Part::Unet, name: name.into() }
}

fn table() -> NameTable {
    NameTable::from_shapes(LAYERS.iter().map(|(name, shape)| (path(name), shape.to_vec())).collect())
}

fn golden() -> Result<SafetensorsFile> {
    SafetensorsFile::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/merge/peft.safetensors"))
}

fn adapter(file: &SafetensorsFile, name: &str) -> Result<Arc<Adapter>> {
    let alpha = f64::from(file.tensor(&format!("{name}.alpha"))?.to_scalar::<f32>()?);
    let mut layers = BTreeMap::new();
    for (layer, _) in LAYERS {
        let down = file.tensor(&format!("{name}.{layer}.A"))?;
        let up = file.tensor(&format!("{name}.{layer}.B"))?;
        layers.insert(path(layer), Delta::LowRank(LowRank { down, up, mid: None, alpha: Some(alpha) }));
    }
    Ok(Arc::new(Adapter { layers, ..Adapter::default() }))
}

fn blend(file: &SafetensorsFile, entries: &[(&str, f64)]) -> Result<Blend> {
    entries.iter().try_fold(Blend::new(), |blend, (name, weight)| {
        Ok(blend.with(*name, adapter(file, name)?, Strength::uniform(*weight)))
    })
}

fn merged(blend: &Blend, options: &MergeOptions) -> Result<Cut> {
    let cancel = CancelToken::default();
    merge::merge(blend, &table(), options, &mut Progress { observer: &mut (), cancel: &cancel })
}

fn resized(adapter: &Adapter, limit: &RankLimit) -> Result<Cut> {
    let cancel = CancelToken::default();
    resize::resize(adapter, &table(), limit, &mut Progress { observer: &mut (), cancel: &cancel })
}

fn norm(tensor: &Tensor) -> Result<f64> {
    Ok(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt())
}

/// ‖a − b‖ / ‖b‖.
fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(norm(&(a - b)?)? / norm(b)?)
}

fn weight_of(adapter: &Adapter, layer: usize) -> Result<Tensor> {
    let (name, shape) = LAYERS[layer];
    adapter.layers[&path(name)].weight(shape)
}

#[test]
fn methods_give_pefts_numbers() -> Result<()> {
    let file = golden()?;
    let options = |method, rank, density, majority| MergeOptions {
        method,
        rank,
        density,
        majority,
        ..MergeOptions::default()
    };
    let (total, frequency) = (MajoritySign::Total, MajoritySign::Frequency);
    let three = [("a", 0.7), ("b", -0.5), ("c", 1.5)];
    let cases: [(&str, Entries<'_>, MergeOptions); 8] = [
        ("cat", &three, options(Method::Cat, None, 0.5, total)),
        ("linear", &[("a", 0.7), ("b", -0.5)], options(Method::Linear, None, 0.5, total)),
        ("svd", &three, options(Method::Svd, Some(3), 0.5, total)),
        ("ties", &[("a", 0.7), ("b", 0.5)], options(Method::Ties, None, 0.4, total)),
        ("ties_frequency", &[("a", 0.7), ("b", 0.5)], options(Method::Ties, None, 0.6, frequency)),
        ("ties_svd", &[("a", 0.7), ("b", 0.5), ("c", -1.0)], options(Method::TiesSvd, Some(4), 0.5, total)),
        ("magnitude_prune", &[("a", 0.7), ("b", -0.5)], options(Method::MagnitudePrune, None, 0.3, total)),
        (
            "magnitude_prune_svd",
            &[("a", 1.0), ("c", 0.5)],
            options(Method::MagnitudePruneSvd, Some(3), 0.7, total),
        ),
    ];
    for (case, entries, options) in cases {
        let cut = merged(&blend(&file, entries)?, &options)?;
        for (i, (layer, shape)) in LAYERS.iter().enumerate() {
            let ours = weight_of(&cut.adapter, i)?;
            let theirs = match file.tensor(&format!("{case}.{layer}.delta")) {
                Ok(delta) => delta.reshape(*shape)?,
                Err(_) => {
                    let down = file.tensor(&format!("{case}.{layer}.A"))?;
                    let up = file.tensor(&format!("{case}.{layer}.B"))?;
                    up.flatten_from(1)?.matmul(&down.flatten_from(1)?)?.reshape(*shape)?
                }
            };
            let error = distance(&ours, &theirs)?;
            assert!(error < 1e-5, "{case}, {layer}: {error:.1e}");
        }
    }
    Ok(())
}

#[test]
fn concatenation_is_the_blend() -> Result<()> {
    let file = golden()?;
    let blend = blend(&file, &[("a", 0.7), ("b", -0.5), ("c", 1.5)])?;
    let cut = merged(&blend, &MergeOptions::default())?;
    assert_eq!(total_error(&cut.losses), 0.0);
    for (i, (layer, shape)) in LAYERS.iter().enumerate() {
        assert_eq!(cut.adapter.layers[&path(layer)].rank(), Some(10));
        let zero = Tensor::zeros(*shape, DType::F32, &Device::Cpu)?;
        let live = fused_weight(&blend, &path(layer), &zero)?.expect("the blend has this layer");
        let error = distance(&weight_of(&cut.adapter, i)?, &live)?;
        assert!(error < 1e-6, "{layer}: {error:.1e}");
    }
    assert_eq!(cut.adapter.metadata.get("ss_network_dim"), Some("10"));
    Ok(())
}

#[test]
fn what_is_said_to_be_lost_is_lost() -> Result<()> {
    let file = golden()?;
    let a = adapter(&file, "a")?;
    for (cut, exact) in [
        (resized(&a, &RankLimit::fixed(2))?, a.clone()),
        (
            merged(
                &blend(&file, &[("a", 1.0)])?,
                &MergeOptions { method: Method::Svd, rank: Some(2), ..MergeOptions::default() },
            )?,
            a.clone(),
        ),
    ] {
        let (mut lost, mut all) = (0.0, 0.0);
        for (i, loss) in cut.losses.iter().enumerate() {
            let (kept, whole) = (weight_of(&cut.adapter, i)?, weight_of(&exact, i)?);
            let error = norm(&(&kept - &whole)?)?;
            assert!(
                (error - loss.error).abs() < 1e-4 * loss.norm,
                "{}: {error}, said {}",
                loss.layer,
                loss.error
            );
            assert!((norm(&whole)? - loss.norm).abs() < 1e-4 * loss.norm);
            assert_eq!(loss.ranks, (4, 2));
            (lost, all) = (lost + error.powi(2), all + loss.norm.powi(2));
        }
        assert!((total_error(&cut.losses) - (lost / all).sqrt()).abs() < 1e-4);
        // The scale stays, so alpha follows the rank.
        assert_eq!(cut.adapter.metadata.get("ss_network_dim"), Some("2"));
    }
    Ok(())
}

#[test]
fn resizing_twice_is_resizing_once() -> Result<()> {
    let a = adapter(&golden()?, "a")?;
    let fro = RankLimit { rule: RankRule::Frobenius(0.9), ..RankLimit::fixed(usize::MAX) };
    for limit in [RankLimit::fixed(2), RankLimit::fixed(99), fro] {
        let once = resized(&a, &limit)?;
        let again = RankLimit { rule: RankRule::Fixed, ..limit };
        let twice = resized(&once.adapter, &again)?;
        assert!(total_error(&twice.losses) < 1e-6);
        for (i, (layer, _)) in LAYERS.iter().enumerate() {
            assert!(distance(&weight_of(&twice.adapter, i)?, &weight_of(&once.adapter, i)?)? < 1e-6);
            let (before, after) = (&a.layers[&path(layer)], &once.adapter.layers[&path(layer)]);
            let scale = |d: &Delta| d.alpha().unwrap_or_default() / d.rank().unwrap_or_default() as f64;
            assert!((scale(before) - scale(after)).abs() < 1e-9, "the scale stays");
        }
    }
    Ok(())
}

/// A product of two rank-2 matrices, value by value: a matrix of rank 4.
fn hadamard(layer: usize) -> Result<Delta> {
    let shape = LAYERS[layer].1;
    let inner = shape[1..].iter().product::<usize>();
    let mut rng = Rng::new(9, Stream::Weights, layer as u64);
    let mut factor = || -> Result<HadamardFactor> {
        let (a, b) = (rng.normal((shape[0], 2), &Device::Cpu)?, rng.normal((2, inner), &Device::Cpu)?);
        Ok(HadamardFactor { a, b, core: None })
    };
    Ok(Delta::LoHa(LoHa { first: factor()?, second: factor()?, alpha: Some(1.0) }))
}

#[test]
fn other_algorithms_are_merged_by_their_singular_values_or_refused() -> Result<()> {
    let mut blend = blend(&golden()?, &[("a", 0.5)])?;
    let layers = (0..LAYERS.len()).map(|i| Ok((path(LAYERS[i].0), hadamard(i)?))).collect::<Result<_>>()?;
    let loha = Arc::new(Adapter { layers, ..Adapter::default() });
    blend = blend.with("loha", loha.clone(), Strength::uniform(-0.7));
    for (method, message) in [(Method::Cat, "LoHa has no two factors"), (Method::Svd, "LoHa has no rank")] {
        let error = merged(&blend, &MergeOptions { method, ..MergeOptions::default() });
        let error = error.expect_err("LoHa needs a rank");
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hint().is_some_and(|h| h.contains("--rank")));
    }
    // Rank 4 and rank 4 make rank 8 at most.
    let options = MergeOptions { method: Method::Svd, rank: Some(8), ..MergeOptions::default() };
    let cut = merged(&blend, &options)?;
    assert!(total_error(&cut.losses) < 1e-5, "{}", total_error(&cut.losses));
    for (i, (layer, shape)) in LAYERS.iter().enumerate() {
        let zero = Tensor::zeros(*shape, DType::F32, &Device::Cpu)?;
        let live = fused_weight(&blend, &path(layer), &zero)?.expect("the blend has this layer");
        assert!(distance(&weight_of(&cut.adapter, i)?, &live)? < 1e-5, "{layer}");
    }
    // resize leaves it alone and says so.
    let cut = resized(&loha, &RankLimit::fixed(1))?;
    assert_eq!((cut.losses.len(), cut.kept.len(), cut.kept[0].1), (0, LAYERS.len(), "LoHa"));

    let (name, shape) = LAYERS[0];
    let magnitude = Tensor::ones(shape[0], DType::F32, &Device::Cpu)?;
    let dora = Dora { inner: Box::new(hadamard(0)?), magnitude, axis: MagnitudeAxis::Output };
    let adapter = Adapter { layers: BTreeMap::from([(path(name), Delta::Dora(dora))]), ..Adapter::default() };
    let blend = Blend::new().with("dora", Arc::new(adapter), Strength::default());
    let error = merged(&blend, &options).expect_err("DoRA depends on the base");
    assert!(error.to_string().contains("adapter `dora` has DoRA over LoHa on unet.down_blocks.0"), "{error}");
    assert!(error.hint().is_some_and(|h| h.contains("scumble bake")));
    Ok(())
}

#[test]
fn what_cannot_be_merged_is_named() -> Result<()> {
    let file = golden()?;
    let error = |entries: &[(&str, f64)], options: MergeOptions| -> Result<String> {
        let error = merged(&blend(&file, entries)?, &options).expect_err("must be refused");
        Ok(format!("{error} | {}", error.hint().unwrap_or_default()))
    };
    let method = |method| MergeOptions { method, ..MergeOptions::default() };
    let ranks = error(&[("a", 1.0), ("c", 1.0)], method(Method::Linear))?;
    assert!(ranks.contains("[4, 2]") && ranks.contains("`cat`"), "{ranks}");
    let rank = error(&[("a", 1.0)], MergeOptions { rank: Some(2), ..method(Method::Ties) })?;
    assert!(rank.contains("takes no rank") && rank.contains("_svd"), "{rank}");
    assert!(error(&[("a", 0.0)], method(Method::Cat))?.contains("all weights are 0"));
    assert!(error(&[("a", 1.0)], MergeOptions { density: 0.0, ..method(Method::Ties) })?.contains("density"));
    assert!("tiess".parse::<Method>().is_err_and(|e| e.hint().is_some_and(|h| h.contains("`ties`"))));
    assert_eq!("dare-ties".parse::<Method>()?, Method::DareTies);
    Ok(())
}
