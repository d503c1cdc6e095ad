//! The two names every part of a UNet and a VAE goes by: the original (LDM) one and diffusers'.
//!
//! A [`NameTable`] pairs block prefixes, built from the model's own block counts, so that a name is looked up and never
//! rewritten by guesswork. It maps parameters (`….weight`) and module paths alike, in both directions.

use std::collections::{BTreeSet, HashMap};

/// Sub-names inside a block: (LDM, diffusers). Empty: the same in both.
type Leaves = &'static [(&'static str, &'static str)];

const SAME: Leaves = &[];
const UNET_RESNET: Leaves = &[
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];
const VAE_RESNET: Leaves = &[
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
];
const VAE_ATTENTION: Leaves =
    &[("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")];

/// Blocks that every UNet has once.
const UNET_FIXED: &[(&str, &str, Leaves)] = &[
    ("time_embed.0", "time_embedding.linear_1", SAME),
    ("time_embed.2", "time_embedding.linear_2", SAME),
    ("label_emb.0.0", "add_embedding.linear_1", SAME),
    ("label_emb.0.2", "add_embedding.linear_2", SAME),
    ("input_blocks.0.0", "conv_in", SAME),
    ("middle_block.0", "mid_block.resnets.0", UNET_RESNET),
    ("middle_block.1", "mid_block.attentions.0", SAME),
    ("middle_block.2", "mid_block.resnets.1", UNET_RESNET),
    ("out.0", "conv_norm_out", SAME),
    ("out.2", "conv_out", SAME),
];

/// Blocks that every VAE has once.
const VAE_FIXED: &[(&str, &str, Leaves)] = &[
    ("quant_conv", "quant_conv", SAME),
    ("post_quant_conv", "post_quant_conv", SAME),
    ("encoder.conv_in", "encoder.conv_in", SAME),
    ("encoder.norm_out", "encoder.conv_norm_out", SAME),
    ("encoder.conv_out", "encoder.conv_out", SAME),
    ("encoder.mid.block_1", "encoder.mid_block.resnets.0", VAE_RESNET),
    ("encoder.mid.attn_1", "encoder.mid_block.attentions.0", VAE_ATTENTION),
    ("encoder.mid.block_2", "encoder.mid_block.resnets.1", VAE_RESNET),
    ("decoder.conv_in", "decoder.conv_in", SAME),
    ("decoder.norm_out", "decoder.conv_norm_out", SAME),
    ("decoder.conv_out", "decoder.conv_out", SAME),
    ("decoder.mid.block_1", "decoder.mid_block.resnets.0", VAE_RESNET),
    ("decoder.mid.attn_1", "decoder.mid_block.attentions.0", VAE_ATTENTION),
    ("decoder.mid.block_2", "decoder.mid_block.resnets.1", VAE_RESNET),
];

/// More blocks a level than any model has, so that a hostile file cannot make the tables large.
const MAX_BLOCKS: usize = 64;

/// Pairs of block names, searchable from both sides.
#[derive(Debug, Clone, Default)]
pub struct NameTable {
    blocks: Vec<(String, String, Leaves)>,
    by_ldm: HashMap<String, usize>,
    by_diffusers: HashMap<String, usize>,
}

/// How many resnets each level of a UNet has, from the outside in (`down`) and back (`up`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct UnetLevels {
    down: Vec<usize>,
    up: Vec<usize>,
    /// Moves the upsampler of that level from sub-block 1 to sub-block 2.
    up_has_attention: Vec<bool>,
}

impl NameTable {
    /// The table of the UNet that has these LDM parameter names (without `model.diffusion_model.`).
    pub fn unet_from_ldm<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self::unet(&UnetLevels::from_ldm(&names.into_iter().collect()))
    }

    /// The table of the UNet that has these diffusers parameter or module names.
    pub fn unet_from_diffusers<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self::unet(&UnetLevels::from_diffusers(&names.into_iter().collect()))
    }

    /// The table of a VAE of any depth: `levels` resolutions, 4 in every Stable Diffusion.
    pub fn vae(levels: usize) -> Self {
        let levels = levels.min(MAX_BLOCKS);
        let mut table = Self::default();
        table.add_all(VAE_FIXED);
        for i in 0..levels {
            // diffusers counts the decoder's levels in the order they are run, LDM by resolution.
            let up = levels - 1 - i;
            for j in 0..4 {
                let encoder = format!("encoder.down_blocks.{i}.resnets.{j}");
                table.add(format!("encoder.down.{i}.block.{j}"), encoder, VAE_RESNET);
                let decoder = format!("decoder.up_blocks.{i}.resnets.{j}");
                table.add(format!("decoder.up.{up}.block.{j}"), decoder, VAE_RESNET);
            }
            let down = format!("encoder.down_blocks.{i}.downsamplers.0.conv");
            table.add(format!("encoder.down.{i}.downsample.conv"), down, SAME);
            let upsampler = format!("decoder.up_blocks.{i}.upsamplers.0.conv");
            table.add(format!("decoder.up.{up}.upsample.conv"), upsampler, SAME);
        }
        table
    }

    /// diffusers' name of an LDM name; `None` if the model has no such part.
    pub fn to_diffusers(&self, ldm: &str) -> Option<String> {
        translate(ldm, &self.by_ldm, |i| {
            let (_, to, leaves) = &self.blocks[i];
            (to.as_str(), *leaves, |leaf: &(&'static str, &'static str)| *leaf)
        })
    }

    /// The LDM name of a diffusers name; `None` if the model has no such part.
    pub fn to_ldm(&self, diffusers: &str) -> Option<String> {
        translate(diffusers, &self.by_diffusers, |i| {
            let (to, _, leaves) = &self.blocks[i];
            (to.as_str(), *leaves, |leaf: &(&'static str, &'static str)| (leaf.1, leaf.0))
        })
    }

    fn unet(levels: &UnetLevels) -> Self {
        let mut table = Self::default();
        table.add_all(UNET_FIXED);
        let mut n = 1;
        for (i, resnets) in levels.down.iter().enumerate() {
            for j in 0..*resnets {
                table.add(format!("input_blocks.{n}.0"), format!("down_blocks.{i}.resnets.{j}"), UNET_RESNET);
                table.add(format!("input_blocks.{n}.1"), format!("down_blocks.{i}.attentions.{j}"), SAME);
                n += 1;
            }
            table.add(format!("input_blocks.{n}.0.op"), format!("down_blocks.{i}.downsamplers.0.conv"), SAME);
            n += 1;
        }
        n = 0;
        for (i, (resnets, attention)) in levels.up.iter().zip(&levels.up_has_attention).enumerate() {
            for j in 0..*resnets {
                table.add(format!("output_blocks.{n}.0"), format!("up_blocks.{i}.resnets.{j}"), UNET_RESNET);
                if *attention {
                    table.add(format!("output_blocks.{n}.1"), format!("up_blocks.{i}.attentions.{j}"), SAME);
                }
                n += 1;
            }
            let ldm = format!("output_blocks.{}.{}.conv", n.max(1) - 1, 1 + usize::from(*attention));
            table.add(ldm, format!("up_blocks.{i}.upsamplers.0.conv"), SAME);
        }
        table
    }

    fn add_all(&mut self, blocks: &[(&str, &str, Leaves)]) {
        for (ldm, diffusers, leaves) in blocks {
            self.add((*ldm).into(), (*diffusers).into(), leaves);
        }
    }

    fn add(&mut self, ldm: String, diffusers: String, leaves: Leaves) {
        let i = self.blocks.len();
        self.by_ldm.insert(ldm.clone(), i);
        self.by_diffusers.insert(diffusers.clone(), i);
        self.blocks.push((ldm, diffusers, leaves));
    }
}

impl UnetLevels {
    fn from_ldm(names: &BTreeSet<&str>) -> Self {
        let has = |prefix: String| starts_any(names, &prefix);
        let mut levels = Self::default();
        let mut count = 0;
        for n in 1..MAX_BLOCKS {
            if !has(format!("input_blocks.{n}.")) {
                break;
            }
            if has(format!("input_blocks.{n}.0.op.")) {
                levels.down.push(std::mem::take(&mut count));
            } else {
                count += 1;
            }
        }
        levels.down.push(std::mem::take(&mut count));

        let mut attention = false;
        for n in 0..MAX_BLOCKS {
            if !has(format!("output_blocks.{n}.")) {
                break;
            }
            count += 1;
            attention |= has(format!("output_blocks.{n}.1.proj_in."));
            if has(format!("output_blocks.{n}.1.conv.")) || has(format!("output_blocks.{n}.2.conv.")) {
                levels.up.push(std::mem::take(&mut count));
                levels.up_has_attention.push(std::mem::take(&mut attention));
            }
        }
        levels.up.push(count);
        levels.up_has_attention.push(attention);
        levels
    }

    fn from_diffusers(names: &BTreeSet<&str>) -> Self {
        let count = |prefix: &str| {
            (0..MAX_BLOCKS).take_while(|n| starts_any(names, &format!("{prefix}{n}."))).count()
        };
        let resnets = |side: &str| -> Vec<usize> {
            (0..count(&format!("{side}."))).map(|i| count(&format!("{side}.{i}.resnets."))).collect()
        };
        let up = resnets("up_blocks");
        let attention = |i| starts_any(names, &format!("up_blocks.{i}.attentions."));
        Self { down: resnets("down_blocks"), up_has_attention: (0..up.len()).map(attention).collect(), up }
    }
}

fn starts_any(names: &BTreeSet<&str>, prefix: &str) -> bool {
    names.range(prefix..).next().is_some_and(|name| name.starts_with(prefix))
}

/// Finds the longest block prefix that ends at a dot, and puts the other side's prefix and leaf in its place.
fn translate<'a, F>(
    name: &str,
    index: &HashMap<String, usize>,
    block: impl Fn(usize) -> (&'a str, Leaves, F),
) -> Option<String>
where
    F: Fn(&(&'static str, &'static str)) -> (&'static str, &'static str),
{
    let ends = std::iter::once(name.len()).chain(name.rmatch_indices('.').map(|(at, _)| at));
    for end in ends {
        let (prefix, rest) = name.split_at(end);
        let Some(i) = index.get(prefix) else { continue };
        let (to, leaves, oriented) = block(*i);
        if leaves.is_empty() || rest.is_empty() {
            return Some(format!("{to}{rest}"));
        }
        let rest = rest.strip_prefix('.')?;
        return leaves.iter().map(oriented).find_map(|(from, into)| {
            let tail = rest.strip_prefix(from)?;
            (tail.is_empty() || tail.starts_with('.')).then(|| format!("{to}.{into}{tail}"))
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upsampler_moves_when_its_level_has_no_attention() {
        // SDXL base: attention on every upsampled level. SD1: none on the first.
        let with = NameTable::unet_from_diffusers([
            "up_blocks.0.resnets.0.norm1",
            "up_blocks.0.attentions.0.norm",
            "up_blocks.1.resnets.0.norm1",
        ]);
        let upsampler = "up_blocks.0.upsamplers.0.conv.weight";
        assert_eq!(with.to_ldm(upsampler).as_deref(), Some("output_blocks.0.2.conv.weight"));
        let without =
            NameTable::unet_from_diffusers(["up_blocks.0.resnets.0.norm1", "up_blocks.1.resnets.0.norm1"]);
        assert_eq!(without.to_ldm(upsampler).as_deref(), Some("output_blocks.0.1.conv.weight"));
    }

    #[test]
    fn names_the_model_lacks_are_not_made_up() {
        let table = NameTable::vae(4);
        assert_eq!(
            table.to_diffusers("decoder.up.3.block.2.nin_shortcut.bias").as_deref(),
            Some("decoder.up_blocks.0.resnets.2.conv_shortcut.bias")
        );
        assert_eq!(table.to_ldm("decoder.up_blocks.0.resnets.2").as_deref(), Some("decoder.up.3.block.2"));
        assert_eq!(table.to_diffusers("decoder.up.4.block.0.norm1.weight"), None);
        assert_eq!(table.to_diffusers("decoder.up.3.block.0.normal.weight"), None);
        assert_eq!(table.to_diffusers("loss.logvar"), None);
    }
}
