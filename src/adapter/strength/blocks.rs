//! Factors on single blocks of the denoising network.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use super::curve::number;
use crate::{
    error::{Error, Result},
    weights::Family,
};

/// A block or several, by a name of ours or of the block-weight extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Block {
    /// `down` (all of them), or `down.0` as diffusers counts.
    Down(Option<usize>),
    /// `mid`.
    Mid,
    /// `up`, or `up.2`.
    Up(Option<usize>),
    /// `in04`: the original network's `input_blocks.4`.
    In(usize),
    /// `out05`: `output_blocks.5`.
    Out(usize),
}

/// Factors by block, and a vector in the order of the block-weight extensions. A name beats the vector, `in04` beats
/// `down.1`, and that beats `down`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Blocks {
    vector: Option<Vec<f64>>,
    named: BTreeMap<Block, f64>,
}

/// The original network's `input_blocks` and `output_blocks` that vectors of a length count, beside BASE in front and
/// MID in the middle (<https://github.com/hako-mikan/sd-webui-lora-block-weight>).
struct Layout {
    inputs: &'static [usize],
    outputs: &'static [usize],
}

const fn layout(inputs: &'static [usize], outputs: &'static [usize]) -> Layout {
    Layout { inputs, outputs }
}

/// SD 1 and 2: the blocks with attention; all blocks.
const SD: [Layout; 2] = [
    layout(&[1, 2, 4, 5, 7, 8], &[3, 4, 5, 6, 7, 8, 9, 10, 11]),
    layout(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
];
/// SDXL, the same.
const SDXL: [Layout; 2] = [
    layout(&[4, 5, 7, 8], &[0, 1, 2, 3, 4, 5]),
    layout(&[0, 1, 2, 3, 4, 5, 6, 7, 8], &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
];
/// Resnets a level of every Stable Diffusion: with the downsampler, three input blocks a level.
const A_LEVEL: usize = 3;
/// Input blocks of the largest network; as many output blocks.
const SLOTS: usize = 12;

fn input(slot: usize) -> Place {
    Place::Input { level: slot.checked_sub(1).map(|after| after / A_LEVEL), slot }
}

fn output(slot: usize) -> Place {
    Place::Output { level: slot / A_LEVEL, slot }
}

impl Layout {
    fn length(&self) -> usize {
        2 + self.inputs.len() + self.outputs.len()
    }

    fn index(&self, place: Place) -> Option<usize> {
        let position = |slots: &[usize], slot| slots.iter().position(|s| *s == slot);
        match place {
            Place::Input { slot, .. } => Some(1 + position(self.inputs, slot)?),
            Place::Mid => Some(1 + self.inputs.len()),
            Place::Output { slot, .. } => Some(2 + self.inputs.len() + position(self.outputs, slot)?),
        }
    }
}

impl Blocks {
    /// True if every factor is 1.
    pub fn is_empty(&self) -> bool {
        self.vector.is_none() && self.named.is_empty()
    }

    /// The factors by block, in the network's order.
    pub fn named(&self) -> impl Iterator<Item = (Block, f64)> {
        self.named.iter().map(|(block, factor)| (*block, *factor))
    }

    /// The same factors with the vector's spelled out by name. BASE is none of the network's: see [`Blocks::base`].
    #[must_use]
    pub fn spelled_out(&self) -> Self {
        let mut named = self.named.clone();
        let sides: [fn(usize) -> Place; 2] = [input, output];
        let places = sides.into_iter().flat_map(|side| (0..SLOTS).map(side)).chain([Place::Mid]);
        for place in places {
            let names = place.names();
            let Some(factor) = self.in_vector(place).filter(|_| !names.iter().any(|n| named.contains_key(n)))
            else {
                continue;
            };
            named.insert(names[0], factor);
        }
        Self { vector: None, named }
    }

    /// Sets one block's factor.
    ///
    /// # Errors
    /// If it is there already.
    pub fn set(&mut self, block: Block, factor: f64) -> Result<()> {
        match self.named.insert(block, factor) {
            None => Ok(()),
            Some(_) => Err(Error::invalid(format!("`{block}` has two weights"))),
        }
    }

    /// Sets the vector: 17 or 26 numbers for SD 1 and 2, 12 or 20 for SDXL.
    ///
    /// # Errors
    /// If it has another length.
    pub fn set_vector(&mut self, vector: Vec<f64>) -> Result<()> {
        if layout_of(vector.len()).is_none() {
            let found = vector.len();
            return Err(Error::invalid(format!("`lbw` takes 12, 17, 20 or 26 numbers, found {found}"))
                .with_hint("BASE, the IN blocks, MID, the OUT blocks; 17 and 26 are for SD 1 and 2, 12 and 20 for SDXL"));
        }
        self.vector = Some(vector);
        Ok(())
    }

    /// The factor on a layer of the denoising network, by its path in diffusers' words. Time embeddings and the last
    /// convolution are in no block: 1.
    pub fn factor(&self, path: &str) -> f64 {
        if self.is_empty() {
            return 1.0;
        }
        let Some(place) = place(path) else { return 1.0 };
        let by_name = place.names().into_iter().find_map(|block| self.named.get(&block));
        by_name.copied().or_else(|| self.in_vector(place)).unwrap_or(1.0)
    }

    /// BASE of the vector: the factor on the text encoders.
    pub fn base(&self) -> f64 {
        self.vector.as_ref().and_then(|v| v.first()).copied().unwrap_or(1.0)
    }

    /// # Errors
    /// If the vector counts another family's blocks.
    pub fn check(&self, family: Family) -> Result<()> {
        let Some(vector) = &self.vector else { return Ok(()) };
        let made_for = |layouts: &[Layout]| layouts.iter().any(|l| l.length() == vector.len());
        let fits = match family {
            Family::Sd1 | Family::Sd2 => made_for(&SD),
            Family::Sdxl => made_for(&SDXL),
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let (length, title) = (vector.len(), family.title());
        Err(Error::invalid(format!("`lbw` with {length} numbers does not fit {title}")).with_hint(
            "17 or 26 are for SD 1 and 2, 12 or 20 for SDXL; names fit every model: `down.0=0.5,mid=1`",
        ))
    }

    /// # Errors
    /// If a factor is on a block that a network with layers of these paths has not.
    pub(crate) fn check_names<'a>(&self, paths: impl IntoIterator<Item = &'a str>) -> Result<()> {
        if self.named.is_empty() {
            return Ok(());
        }
        let there: BTreeSet<Block> = paths.into_iter().filter_map(place).flat_map(Place::names).collect();
        match self.named.keys().find(|block| !there.contains(block)) {
            None => Ok(()),
            Some(block) => Err(Error::invalid(format!("the model has no block `{block}`"))
                .with_hint(format!("its blocks are {}", listed(&there)))),
        }
    }

    /// A block that a vector leaves out gets 0, as in the extensions.
    fn in_vector(&self, place: Place) -> Option<f64> {
        let vector = self.vector.as_ref()?;
        let index = layout_of(vector.len())?.index(place);
        Some(index.and_then(|i| vector.get(i)).copied().unwrap_or(0.0))
    }

    /// The words [`super::Strength`] parses.
    pub(super) fn words(&self) -> Vec<String> {
        let vector = self.vector.as_ref().map(|vector| {
            let numbers: Vec<String> = vector.iter().map(ToString::to_string).collect();
            format!("lbw={}", numbers.join(","))
        });
        let named = self.named.iter().map(|(block, factor)| format!("{block}={factor}"));
        vector.into_iter().chain(named).collect()
    }
}

/// Blocks by number, in both ways of counting.
fn listed(blocks: &BTreeSet<Block>) -> String {
    let all = |wanted: fn(&Block) -> bool| -> Vec<String> {
        blocks.iter().filter(|block| wanted(block)).map(ToString::to_string).collect()
    };
    let ours = all(|block| matches!(block, Block::Down(Some(_)) | Block::Mid | Block::Up(Some(_))));
    let theirs = [all(|block| matches!(block, Block::In(_))), all(|block| matches!(block, Block::Out(_)))];
    let range = |names: &Vec<String>| Some(format!("{} to {}", names.first()?, names.last()?));
    let theirs: Vec<String> = theirs.iter().filter_map(range).collect();
    format!("{}; or {}", ours.join(", "), theirs.join(", "))
}

fn layout_of(length: usize) -> Option<&'static Layout> {
    SD.iter().chain(&SDXL).find(|layout| layout.length() == length)
}

/// Where a layer is, in both ways of counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Input { level: Option<usize>, slot: usize },
    Mid,
    Output { level: usize, slot: usize },
}

impl Place {
    /// From the most to the least special.
    fn names(self) -> [Block; 3] {
        match self {
            Self::Input { level: Some(level), slot } => {
                [Block::In(slot), Block::Down(Some(level)), Block::Down(None)]
            }
            // `conv_in` is in no level.
            Self::Input { level: None, slot } => [Block::In(slot); 3],
            Self::Mid => [Block::Mid; 3],
            Self::Output { level, slot } => [Block::Out(slot), Block::Up(Some(level)), Block::Up(None)],
        }
    }
}

/// The place of a path such as `down_blocks.1.attentions.0.proj_in`.
fn place(path: &str) -> Option<Place> {
    let mut words = path.split('.');
    let mut next = || words.next();
    let first = next()?;
    match first {
        "conv_in" => return Some(Place::Input { level: None, slot: 0 }),
        "mid_block" => return Some(Place::Mid),
        _ => {}
    }
    let level: usize = next()?.parse().ok()?;
    let (kind, position) = (next()?, next()?.parse::<usize>().ok()?);
    let resampler = matches!(kind, "downsamplers" | "upsamplers");
    match first {
        "down_blocks" => {
            let within = if resampler { A_LEVEL - 1 } else { position };
            Some(Place::Input { level: Some(level), slot: 1 + A_LEVEL * level + within })
        }
        // The upsampler is the last output block's.
        "up_blocks" => {
            let within = if resampler { A_LEVEL - 1 } else { position };
            Some(Place::Output { level, slot: A_LEVEL * level + within })
        }
        _ => None,
    }
}

impl FromStr for Block {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let lower = s.trim().to_ascii_lowercase();
        let index = |text: &str| text.parse::<usize>().ok().filter(|_| text.len() < 3);
        let numbered = |prefix| lower.strip_prefix(prefix).and_then(index);
        let block = match lower.as_str() {
            "down" | "in" => Some(Self::Down(None)),
            "mid" => Some(Self::Mid),
            "up" | "out" => Some(Self::Up(None)),
            _ => numbered("down.")
                .map(|i| Self::Down(Some(i)))
                .or_else(|| numbered("up.").map(|i| Self::Up(Some(i))))
                .or_else(|| numbered("in").map(Self::In))
                .or_else(|| numbered("out").map(Self::Out)),
        };
        block.ok_or_else(|| {
            let known = ["unet", "te", "lbw", "down", "down.0", "mid", "up", "up.0", "in04", "out05"];
            Error::unknown("part of an adapter's weight", s.trim(), known)
        })
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down(None) => write!(f, "down"),
            Self::Down(Some(i)) => write!(f, "down.{i}"),
            Self::Mid => write!(f, "mid"),
            Self::Up(None) => write!(f, "up"),
            Self::Up(Some(i)) => write!(f, "up.{i}"),
            Self::In(i) => write!(f, "in{i:02}"),
            Self::Out(i) => write!(f, "out{i:02}"),
        }
    }
}

/// The numbers of a vector.
pub(super) fn vector<'a>(numbers: impl IntoIterator<Item = &'a str>) -> Result<Vec<f64>> {
    numbers.into_iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::names::NameTable;

    /// The parameter names of SD 1 (four levels, attention in the first three) or SDXL (three, in the last two).
    fn names(levels: usize, attention: std::ops::Range<usize>) -> Vec<String> {
        let mut names = vec!["conv_in.weight".to_owned(), "mid_block.attentions.0.norm.weight".into()];
        for level in 0..levels {
            let up = levels - 1 - level;
            for j in 0..3 {
                names.push(format!("up_blocks.{up}.resnets.{j}.conv1.weight"));
                if attention.contains(&level) {
                    names.push(format!("up_blocks.{up}.attentions.{j}.norm.weight"));
                }
            }
            for j in 0..2 {
                names.push(format!("down_blocks.{level}.resnets.{j}.conv1.weight"));
                if attention.contains(&level) {
                    names.push(format!("down_blocks.{level}.attentions.{j}.norm.weight"));
                }
            }
            if level + 1 < levels {
                names.push(format!("down_blocks.{level}.downsamplers.0.conv.weight"));
                names.push(format!("up_blocks.{level}.upsamplers.0.conv.weight"));
            }
        }
        names
    }

    #[test]
    fn slots_are_the_original_networks_blocks() {
        for names in [names(4, 0..3), names(3, 1..3)] {
            let table = NameTable::unet_from_diffusers(names.iter().map(String::as_str));
            for name in &names {
                let ldm = table.to_ldm(name).expect("a name of the model");
                let mut words = ldm.split('.');
                let (side, slot) = (words.next(), words.next().and_then(|s| s.parse::<usize>().ok()));
                let found = match place(name) {
                    Some(Place::Input { slot, .. }) => (Some("input_blocks"), Some(slot)),
                    Some(Place::Output { slot, .. }) => (Some("output_blocks"), Some(slot)),
                    Some(Place::Mid) => (Some("middle_block"), slot),
                    None => (None, None),
                };
                assert_eq!(found, (side, slot), "{name} is {ldm}");
            }
        }
    }

    #[test]
    fn the_most_special_name_wins() -> Result<()> {
        let mut blocks = Blocks::default();
        let vector: Vec<f64> = (0..17).map(f64::from).collect();
        blocks.set_vector(vector)?;
        let q = |block: &str| format!("{block}.attentions.1.transformer_blocks.0.attn1.to_q");
        // BASE 0, IN01 1, IN02 2, IN04 3, IN05 4, IN07 5, IN08 6, MID 7, OUT03 8 …
        assert_eq!(blocks.factor(&q("down_blocks.1")), 4.0);
        assert_eq!(blocks.factor("mid_block.attentions.0.proj_in"), 7.0);
        assert_eq!(blocks.factor("up_blocks.1.attentions.0.proj_in"), 8.0);
        assert_eq!(blocks.factor("up_blocks.3.attentions.2.proj_in"), 16.0);
        assert_eq!(blocks.factor("down_blocks.3.resnets.0.conv1"), 0.0);
        assert_eq!(blocks.factor("time_embedding.linear_1"), 1.0);
        assert_eq!(blocks.base(), 0.0);
        let paths =
            ["conv_in", "mid_block.attentions.0.proj_in", "down_blocks.3.resnets.0.conv1"].map(str::to_owned);
        let paths = paths
            .into_iter()
            .chain((0..4).flat_map(|i| [q(&format!("down_blocks.{i}")), q(&format!("up_blocks.{i}"))]));
        let paths: Vec<String> = paths.collect();
        let same = |blocks: &Blocks| {
            let named = blocks.spelled_out();
            assert!(named.vector.is_none());
            paths.iter().for_each(|path| assert_eq!(named.factor(path), blocks.factor(path), "{path}"));
        };
        same(&blocks);
        blocks.set("down".parse()?, 0.5)?;
        same(&blocks);
        assert_eq!(blocks.factor(&q("down_blocks.1")), 0.5);
        blocks.set("down.1".parse()?, 0.25)?;
        assert_eq!(blocks.factor(&q("down_blocks.1")), 0.25);
        blocks.set("IN05".parse()?, -1.0)?;
        assert_eq!(blocks.factor(&q("down_blocks.1")), -1.0);
        assert_eq!(blocks.factor("down_blocks.1.attentions.0.proj_in"), 0.25);
        same(&blocks);
        assert!(blocks.set(Block::Mid, 1.0).is_ok() && blocks.set(Block::Mid, 1.0).is_err());
        assert!(blocks.check(Family::Sd1).is_ok() && blocks.check(Family::Sdxl).is_err());
        let check = |word: &str, levels| {
            let names = names(levels, 0..levels - 1);
            let mut blocks = Blocks::default();
            blocks.set(word.parse()?, 0.5)?;
            blocks.check_names(names.iter().map(String::as_str))
        };
        for word in ["down", "down.3", "mid", "up.3", "in00", "in11", "out11"] {
            check(word, 4)?;
        }
        check("in08", 3)?;
        for word in ["down.9", "up.3", "in09", "out12"] {
            let error = check(word, 3).expect_err(word);
            assert_eq!(error.to_string(), format!("the model has no block `{word}`"));
            let hint = "its blocks are down.0, down.1, down.2, mid, up.0, up.1, up.2; or in00 to in08, out00 to out08";
            assert_eq!(error.hint(), Some(hint));
        }
        assert!("down.x".parse::<Block>().is_err_and(|e| e.hint().is_some()));
        Ok(())
    }
}
