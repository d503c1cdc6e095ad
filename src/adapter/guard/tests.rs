use candle_core::{DType, Device};

use super::*;
use crate::{
    adapter::{Adapter, LowRank},
    nn::{Adaptable, Linear, Part, adaptable::Visitor},
    random::{Rng, Stream},
    weights::{MemoryStore, Weights},
};

const NAMES: [&str; 2] = ["down_blocks.0.attentions.0.proj_in", "up_blocks.1.attentions.0.proj_out"];

struct Net(Vec<Linear>);

impl Net {
    fn new() -> Result<Self> {
        let linear = |i: usize| {
            let weight = Rng::new(3, Stream::Weights, i as u64).normal((12, 9), &Device::Cpu)?;
            let store = MemoryStore([("weight".to_owned(), weight)].into());
            Linear::load(&Weights::new(Arc::new(store), DType::F32, Device::Cpu), 9, 12, false)
        };
        Ok(Self((0..2).map(linear).collect::<Result<_>>()?))
    }
}

impl Adaptable for Net {
    fn visit(&mut self, path: &LayerPath, f: &mut Visitor<'_>) -> Result<()> {
        self.0.iter_mut().zip(NAMES).try_for_each(|(layer, name)| layer.visit(&path.join(name), f))
    }
}

fn adapter(seed: u64, layers: usize) -> Result<Arc<Adapter>> {
    let delta = |i: usize| {
        let mut rng = Rng::new(seed, Stream::Weights, i as u64);
        let (down, up) = (rng.normal((3, 9), &Device::Cpu)?, rng.normal((12, 3), &Device::Cpu)?);
        let path = LayerPath { part: Part::Unet, name: NAMES[i].into() };
        Ok((path, Delta::LowRank(LowRank { down, up, mid: None, alpha: Some(1.5) })))
    };
    let layers = (0..layers).map(delta).collect::<Result<_>>()?;
    Ok(Arc::new(Adapter { layers, ..Adapter::default() }))
}

#[test]
fn factors_give_the_norms_of_the_full_deltas() -> Result<()> {
    let mut net = Net::new()?;
    let (a, b) = (adapter(1, 2)?, adapter(2, 1)?);
    let strengths = ["1.2".parse::<Strength>()?, "unet=-0.7,te=0".parse()?];
    let blend =
        Blend::new().with("a", a.clone(), strengths[0].clone()).with("b", b.clone(), strengths[1].clone());
    let energies = Energies::of(&blend, &mut Parts::new().with(Part::Unet, &mut net))?;
    let report = energies.report(&strengths);
    let path = |i: usize| LayerPath { part: Part::Unet, name: NAMES[i].into() };
    let full = |adapter: &Adapter, i: usize| adapter.layers[&path(i)].weight(&[12, 9]);
    let sum = ((full(&a, 0)? * 1.2)? + (full(&b, 0)? * -0.7)?)?;
    for (i, expected) in [sum, (full(&a, 1)? * 1.2)?].iter().enumerate() {
        let expected = frobenius(expected)? / frobenius(net.0[i].weight())?;
        let found = report.blocks[i].total;
        assert!(
            (found / expected - 1.0).abs() < 1e-5,
            "{}: {found}, expected {expected}",
            report.blocks[i].block
        );
    }
    assert_eq!((report.blocks[0].block.as_str(), report.blocks[1].block.as_str()), ("down.0", "up.1"));
    assert_eq!(report.blocks[1].each[1], 0.0, "b has nothing there");
    Ok(())
}

#[test]
fn two_of_the_same_are_named_and_normalised() -> Result<()> {
    let mut net = Net::new()?;
    let (a, c) = (adapter(1, 2)?, adapter(5, 2)?);
    let blend = |second: &Arc<Adapter>| {
        Blend::new().with("a", a.clone(), Strength::default()).with("b", second.clone(), Strength::default())
    };
    let twice = blend(&a);
    let energies = Energies::of(&twice, &mut Parts::new().with(Part::Unet, &mut net))?;
    let report = energies.report(&twice.strengths());
    assert_eq!(report.warnings.len(), 3, "both blocks, and the pair: {:?}", report.warnings);
    let text: Vec<String> = report.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        text[0],
        "down.0 changes 2.0 times as much as by its strongest adapter at weight 1 (a 50 %, b 50 %)"
    );
    assert!(text[2].starts_with("a and b pull the same way (cosine 1.00"), "{}", text[2]);

    let calm = energies.normalize(&twice.strengths());
    let report = energies.report(&calm);
    for block in &report.blocks {
        assert!((block.total / block.reach - 1.0).abs() < 1e-5, "as much as one: {block:?}");
    }
    assert!(!report.warnings.iter().any(|w| matches!(w, Warning::TooMuch { .. })));

    // Half of each stays as it is even if they are alike in part; both in full are as strong as one.
    let mixed = blend(&c);
    let energies = Energies::of(&mixed, &mut Parts::new().with(Part::Unet, &mut net))?;
    assert!(energies.report(&mixed.strengths()).is_fine());
    for block in energies.report(&energies.normalize(&mixed.strengths())).blocks {
        assert!(block.total < 1.00001 * block.reach && block.total > 0.9 * block.reach, "{block:?}");
        assert!(
            (block.each[0] / block.each[1] - {
                let plain = &energies.report(&mixed.strengths()).blocks;
                let same = plain.iter().find(|b| b.block == block.block).expect("the same blocks");
                same.each[0] / same.each[1]
            })
            .abs()
                < 1e-6,
            "proportions stay"
        );
    }
    // One alone, however strong, and two that never meet, stay as they are.
    let sides =
        ["1@left".parse::<Strength>()?.on_canvas((8, 8))?, "1@right".parse::<Strength>()?.on_canvas((8, 8))?];
    let energies = Energies::of(&twice, &mut Parts::new().with(Part::Unet, &mut net))?;
    let path = LayerPath { part: Part::Unet, name: NAMES[0].into() };
    assert_eq!(energies.normalize(&sides)[0].at(&path), 1.0);
    assert_eq!(energies.normalize(&[Strength::uniform(2.5), Strength::uniform(0.0)])[0].at(&path), 2.5);
    Ok(())
}
