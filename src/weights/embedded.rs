//! The model that is part of the program, so that everything can be tried without a download.

use super::{
    checkpoint::Checkpoint,
    tree::{EmbeddedFile, Tree},
};
use crate::error::Result;

/// Its name as a model source.
pub const NAME: &str = "mini";

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../sample-data/mini/", $path)))),*]
    };
}

/// All its files, as diffusers lays them out.
pub static FILES: &[EmbeddedFile] = files![
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// Opens it.
///
/// # Errors
/// If the program was built with a damaged model.
pub fn open() -> Result<Checkpoint> {
    Checkpoint::open_tree(Tree::Embedded { name: NAME, files: FILES }, NAME)
}

/// Bytes it adds to the program.
pub fn size_bytes() -> u64 {
    FILES.iter().map(|(_, bytes)| bytes.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        progress::CancelToken,
        weights::{Component, Family, hashes::HashCache},
    };

    #[test]
    fn it_is_complete() -> Result<()> {
        let checkpoint = open()?;
        assert_eq!((checkpoint.family, checkpoint.origin.as_str()), (Family::Mini, NAME));
        for component in [Component::Unet, Component::Vae, Component::TextEncoder] {
            let files = checkpoint.component(component)?;
            assert!(files.config.is_some(), "{component}");
            let names = files.store.names();
            assert!(!names.is_empty(), "{component}");
            files.store.load(&names[0])?;
        }
        assert!(checkpoint.component(Component::TextEncoder2).is_err());
        assert!(checkpoint.tokenizer_files(false)?.is_some());
        assert!(checkpoint.scheduler_config()?.is_some());
        let cache = HashCache::new("never/written");
        assert_eq!(checkpoint.hash(&cache, &CancelToken::default())?.len(), 10);
        assert!(!std::path::Path::new("never").exists());
        Ok(())
    }
}
