//! diffusers folders: what is read, and what is refused with which words.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use scumble::weights::{
    Checkpoint, Component, Family, ModelSource, OpenOptions, diffusers::DiffusersModel,
    writer::SafetensorsWriter,
};
use serde_json::{Value, json};
use tempfile::TempDir;

type Done = Result<(), Box<dyn Error>>;
/// Something done to a complete model, and what is then said.
type Damage<'a> = (&'a dyn Fn(&Folder) -> Done, &'a str);

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const INDEX: &str = "unet/diffusion_pytorch_model.safetensors.index.json";

struct Folder(TempDir);

impl Folder {
    /// A complete model with one tensor a component.
    fn new() -> Result<Self, Box<dyn Error>> {
        let folder = Self(tempfile::tempdir()?);
        folder.json("model_index.json", &index())?;
        folder.json("unet/config.json", &json!({ "cross_attention_dim": 1024, "in_channels": 9 }))?;
        folder.json("scheduler/scheduler_config.json", &json!({ "rescale_betas_zero_snr": true }))?;
        folder.weights(UNET, &[("conv_in.weight", 1)])?;
        folder.weights("vae/diffusion_pytorch_model.safetensors", &[("decoder.conv_in.weight", 1)])?;
        folder.weights("text_encoder/model.safetensors", &[("encoder.layers.0.layer_norm1.weight", 1)])?;
        Ok(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Done {
        if let Some(folder) = self.path(name).parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(fs::write(self.path(name), bytes)?)
    }

    fn json(&self, name: &str, value: &Value) -> Done {
        self.write(name, value.to_string())
    }

    /// Tensors of so many floats.
    fn weights(&self, name: &str, tensors: &[(&str, usize)]) -> Done {
        self.write(name, weights(tensors)?)
    }

    fn remove(&self, name: &str) -> Done {
        Ok(fs::remove_file(self.path(name))?)
    }

    fn open(&self) -> scumble::Result<Checkpoint> {
        Checkpoint::open_folder(self.0.path(), None)
    }

    /// The message and hint with which the UNet is refused.
    fn refusal(&self) -> String {
        match self.open().and_then(|checkpoint| checkpoint.component(Component::Unet)) {
            Ok(_) => "accepted".into(),
            Err(error) => format!("{error} hint: {}", error.hint().unwrap_or_default()),
        }
    }
}

fn index() -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    })
}

fn weights(tensors: &[(&str, usize)]) -> Result<Vec<u8>, Box<dyn Error>> {
    let tensors: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(name, n)| Ok((*name, Tensor::ones(*n, DType::F32, &Device::Cpu)?)))
        .collect::<candle_core::Result<_>>()?;
    Ok(SafetensorsWriter::new(tensors.iter().map(|(n, t)| (*n, t)))?.to_bytes(&BTreeMap::new())?)
}

#[test]
fn a_folder_is_read_whole() -> Done {
    let folder = Folder::new()?;
    let path = folder.0.path().to_str().ok_or("not UTF-8")?;
    let model = ModelSource::parse(path)?.open(&OpenOptions::default(), &mut (), &Default::default())?;
    assert_eq!((model.family, model.in_channels()), (Family::Sd2, 9));
    assert_eq!(model.prediction().zero_terminal_snr, Some(true));
    assert_eq!(model.tokenizer_files(false)?, None);
    // Newer versions of transformers leave the `text_model.` level out.
    let text = model.component(Component::TextEncoder)?.store;
    assert_eq!(text.names(), ["text_model.encoder.layers.0.layer_norm1.weight"]);
    assert!(text.load("text_model.encoder.layers.0.layer_norm1.weight").is_ok());
    let error = model.component(Component::TextEncoder2).expect_err("SD2 has one text encoder").to_string();
    assert!(error.contains("a Stable Diffusion 2.x model has no `text_encoder_2`"), "{error}");
    Ok(())
}

#[test]
fn tokenizers_come_in_two_forms() -> Done {
    let folder = Folder::new()?;
    let fast =
        json!({ "model": { "type": "BPE", "vocab": { "a": 0, "b": 1 }, "merges": [["a", "b"], "b a"] } });
    folder.json("tokenizer/tokenizer.json", &fast)?;
    let files = folder.open()?.tokenizer_files(false)?.ok_or("no tokenizer")?;
    assert_eq!(String::from_utf8(files.merges)?, "#version: 0.2\na b\nb a\n");
    assert_eq!(serde_json::from_slice::<Value>(&files.vocab)?, json!({ "a": 0, "b": 1 }));
    folder.write("tokenizer/vocab.json", "{}")?;
    let error = folder.open()?.tokenizer_files(false).expect_err("half a tokenizer").to_string();
    assert!(error.contains("merges.txt: is missing"), "{error}");
    folder.write("tokenizer/merges.txt", "x")?;
    assert_eq!(folder.open()?.tokenizer_files(false)?.ok_or("no tokenizer")?.merges, b"x");
    Ok(())
}

#[test]
fn the_full_files_are_preferred_and_a_variant_can_be_asked_for() -> Done {
    let folder = Folder::new()?;
    folder.weights("unet/diffusion_pytorch_model.fp16.safetensors", &[("half", 1)])?;
    let names = |variant| -> Result<Vec<String>, Box<dyn Error>> {
        Ok(DiffusersModel::open(folder.0.path(), variant)?.store(Component::Unet)?.names())
    };
    assert_eq!(names(None)?, ["conv_in.weight"]);
    assert_eq!(names(Some("fp16"))?, ["half"]);
    folder.remove(UNET)?;
    assert_eq!(names(None)?, ["half"]);
    Ok(())
}

#[test]
fn shards_are_joined_and_checked() -> Done {
    let folder = Folder::new()?;
    folder.remove(UNET)?;
    let (first, second) = ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors");
    folder.weights(&format!("unet/{first}"), &[("a", 1), ("b", 2)])?;
    folder.weights(&format!("unet/{second}"), &[("c", 3)])?;
    let map = json!({ "a": first, "b": first, "c": second });
    let write = |map: &Value, size: u64| {
        folder.json(INDEX, &json!({ "metadata": { "total_size": size }, "weight_map": map }))
    };
    write(&map, 24)?;
    assert_eq!(folder.open()?.component(Component::Unet)?.store.names(), ["a", "b", "c"]);

    write(&map, 25)?;
    assert!(
        folder.refusal().contains("says the tensors have 25 bytes in total, found 24"),
        "{}",
        folder.refusal()
    );
    let cases = [
        (
            json!({ "a": first, "b": first, "c": first }),
            "tensor `c` is not in `m-00001-of-00002.safetensors`",
        ),
        (json!({ "a": first, "c": second }), "tensor `b` is in a shard but not in the index"),
        (json!({ "a": first, "b": first, "c": second, "d": second }), "tensor `d` is not in"),
        (
            json!({ "a": first, "b": first, "c": "m-00003-of-00002.safetensors" }),
            "is missing, and the index names it",
        ),
        (
            json!({ "a": "../text_encoder/model.safetensors" }),
            "expected a `.safetensors` file beside the index",
        ),
        (json!({ "a": "/etc/passwd" }), "expected a `.safetensors` file beside the index"),
        (json!({ "a": "C:\\m.safetensors" }), "expected a `.safetensors` file beside the index"),
        (json!({ "a": "m.bin" }), "expected a `.safetensors` file beside the index"),
        (json!({ "a": "a\u{0}.safetensors" }), "expected a `.safetensors` file beside the index"),
        (json!(["a"]), "is not an index of safetensors files"),
    ];
    for (map, message) in cases {
        write(&map, 24)?;
        assert!(folder.refusal().contains(message), "{}\nexpected {message}", folder.refusal());
    }
    folder.weights(&format!("unet/{second}"), &[("c", 3), ("a", 1)])?;
    write(&map, 28)?;
    assert!(folder.refusal().contains("tensor `a` is in "), "{}", folder.refusal());
    Ok(())
}

#[test]
fn what_is_no_model_says_what_it_is() -> Done {
    let change = |edit: &dyn Fn(&mut Value)| {
        let mut index = index();
        edit(&mut index);
        index
    };
    let cases: &[Damage<'_>] = &[
        (&|f| f.remove("model_index.json"), "there is no `model_index.json`"),
        (&|f| f.write("model_index.json", "{"), "model_index.json: is not valid JSON"),
        (
            &|f| f.json("model_index.json", &change(&|i| i["_class_name"] = json!("FluxPipeline"))),
            "is a FluxPipeline; Stable Diffusion 1, 2 and XL pipelines are supported",
        ),
        (
            &|f| f.json("model_index.json", &change(&|i| i["_class_name"] = json!(["my_code", "Mine"]))),
            "asks for Python code of its own, which is not run",
        ),
        (
            &|f| f.json("model_index.json", &change(&|i| i["unet"][1] = json!("UNet3DConditionModel"))),
            "`unet` is a \"UNet3DConditionModel\", expected UNet2DConditionModel",
        ),
        (
            &|f| f.json("model_index.json", &change(&|i| i["unet"] = json!([null, null]))),
            "the model lacks its `unet`",
        ),
        (&|f| f.remove("unet/config.json"), "unet/config.json: is missing"),
        (
            &|f| f.json("unet/config.json", &json!({ "block_out_channels": [320, 1_099_511_627_776_u64] })),
            "`block_out_channels` is 1099511627776, at most 16384 is believed",
        ),
        (&|f| f.json("unet/config.json", &json!({ "layers_per_block": 5000 })), "`layers_per_block` is 5000"),
        (
            &|f| {
                f.remove(UNET)?;
                f.write("unet/diffusion_pytorch_model.bin", "PK\x03\x04")
            },
            "has only pickled weights (`.bin`), expected `.safetensors` hint: loading a pickle can run any code",
        ),
        (&|f| f.remove(UNET), "has no `diffusion_pytorch_model.safetensors`"),
        (&|f| f.write(UNET, "version https://git-lfs.github.com/spec/v1"), "is a Git LFS pointer"),
    ];
    for (damage, message) in cases {
        let folder = Folder::new()?;
        damage(&folder)?;
        assert!(folder.refusal().contains(message), "{}\nexpected {message}", folder.refusal());
    }
    Ok(())
}

#[cfg(unix)]
#[test]
fn links_may_lead_into_the_cache_and_nowhere_else() -> Done {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir()?;
    let secret = outside.path().join("secret.safetensors");
    fs::write(&secret, weights(&[("a", 1)])?)?;

    let folder = Folder::new()?;
    folder.remove(UNET)?;
    symlink(&secret, folder.path(UNET))?;
    assert!(folder.refusal().contains("leads out of the model's folder"), "{}", folder.refusal());
    folder.remove(UNET)?;
    symlink("/no/such/file", folder.path(UNET))?;
    assert!(folder.refusal().contains("No such file"), "{}", folder.refusal());

    // The same files as a snapshot of the Hugging Face cache.
    let cache = tempfile::tempdir()?;
    let snapshot = cache.path().join("models--a--b/snapshots/0123");
    copy_as_links(folder.0.path(), &snapshot, &cache.path().join("models--a--b/blobs"))?;
    fs::write(cache.path().join("models--a--b/blobs/unet"), weights(&[("conv_in.weight", 1)])?)?;
    let unet = snapshot.join(UNET);
    symlink("../../../blobs/unet", &unet)?;
    let open = || Checkpoint::open_folder(&snapshot, None)?.component(Component::Unet);
    assert_eq!(open()?.store.names(), ["conv_in.weight"]);
    fs::remove_file(&unet)?;
    symlink(&secret, &unet)?;
    assert!(open().expect_err("outside the cache").to_string().contains("leads out of"));
    Ok(())
}

#[cfg(unix)]
fn copy_as_links(from: &Path, to: &Path, blobs: &Path) -> Done {
    fs::create_dir_all(blobs)?;
    for name in ["model_index.json", "unet/config.json"] {
        let blob = blobs.join(name.replace('/', "-"));
        fs::copy(from.join(name), &blob)?;
        let pointer = to.join(name);
        fs::create_dir_all(pointer.parent().ok_or("no parent")?)?;
        std::os::unix::fs::symlink(blob, pointer)?;
    }
    Ok(())
}
