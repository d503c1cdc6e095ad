//! The published models at full size: every parameter our networks ask for has exactly one place in a single file.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
};

use scumble::{
    models::{AutoencoderKl, UNet2DConditionModel, family},
    weights::{Family, names::NameTable},
};
use sha2::{Digest as _, Sha256};

/// How many names, the hash of diffusers' and the hash of LDM's, sorted.
type Golden = BTreeMap<String, (usize, String, String)>;

fn digest(names: &BTreeSet<String>) -> String {
    let joined: Vec<&str> = names.iter().map(String::as_str).collect();
    format!("{:x}", Sha256::digest(joined.join("\n")))
}

fn check(
    table: &NameTable,
    diffusers: &BTreeSet<String>,
    golden: &(usize, String, String),
) -> Result<(), Box<dyn Error>> {
    let found =
        diffusers.iter().map(|name| table.to_ldm(name).ok_or_else(|| format!("{name} has no LDM name")));
    let ldm = found.collect::<Result<BTreeSet<String>, _>>()?;
    assert_eq!((ldm.len(), diffusers.len()), (golden.0, golden.0));
    assert_eq!((digest(diffusers), digest(&ldm)), (golden.1.clone(), golden.2.clone()));
    for name in &ldm {
        let back = table.to_diffusers(name).ok_or_else(|| format!("{name} has no diffusers name"))?;
        assert!(diffusers.contains(&back), "{name} became {back}");
    }
    Ok(())
}

#[test]
fn every_parameter_has_its_place() -> Result<(), Box<dyn Error>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/weights/full-size.json");
    let golden: Golden = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    for family in [Family::Sd1, Family::Sd2, Family::Sdxl, Family::SdxlRefiner] {
        let names: BTreeSet<String> =
            UNet2DConditionModel::parameter_shapes(&family::unet_config(family))?.into_keys().collect();
        let there = NameTable::unet_from_diffusers(names.iter().map(String::as_str));
        check(&there, &names, &golden[family.name()])?;
        // The table a file's own keys give is the same one.
        let ldm: BTreeSet<String> = names.iter().filter_map(|name| there.to_ldm(name)).collect();
        check(&NameTable::unet_from_ldm(ldm.iter().map(String::as_str)), &names, &golden[family.name()])?;
    }
    let names = AutoencoderKl::parameter_shapes(&family::vae_config(Family::Sd1))?.into_keys().collect();
    check(&NameTable::vae(4), &names, &golden["vae"])
}
