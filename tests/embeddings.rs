//! Textual inversions against diffusers' `load_textual_inversion`: one and three vectors, SD 1's text encoder and
//! SDXL's two. `tests/golden/embeddings/make_golden.py` made the expectations.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use scumble::{
    Result,
    adapter::{Blend, LoadOptions, SaveOptions, Strength},
    pipeline::{Pipeline, text::TextOptions},
    weights::{Checkpoint, writer::SafetensorsWriter},
};

const PROMPTS: [&str; 2] = ["a red house, inkwash on hill, trio", "blurry trio, dark"];
const FAMILIES: [&str; 2] = ["sd1", "sdxl"];

fn golden(folder: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder).join(name)
}

fn pipeline(family: &str) -> Result<Pipeline> {
    Pipeline::load(&Checkpoint::open_folder(golden("pipeline", family), None)?, &Device::Cpu, DType::F32)
}

fn file(family: &str, name: &str) -> PathBuf {
    golden("embeddings", family).join(format!("{name}.safetensors"))
}

fn tensors(path: PathBuf) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(path, &Device::Cpu)?)
}

fn relative(a: &Tensor, b: &Tensor) -> Result<f32> {
    let max = |t: &Tensor| -> Result<f32> { Ok(t.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?) };
    Ok(max(&(a - b)?)? / max(b)?)
}

/// The largest error of both prompts' contexts and summaries.
fn error(family: &str, pipeline: &mut Pipeline) -> Result<f32> {
    let expected = tensors(file(family, "expected"))?;
    let encoded = pipeline.text.encode_pair(PROMPTS[0], PROMPTS[1], TextOptions::default())?;
    let mut worst: f32 = 0.0;
    for (name, found) in ["positive", "negative"].into_iter().zip(&encoded) {
        worst = worst.max(relative(&found.context, &expected[name])?);
        if let (Some(found), Some(expected)) = (&found.pooled, expected.get(&format!("{name}_pooled"))) {
            worst = worst.max(relative(found, expected)?);
        }
    }
    Ok(worst)
}

#[test]
fn prompts_with_embeddings_encode_as_in_diffusers() -> Result<()> {
    for family in FAMILIES {
        let mut pipeline = pipeline(family)?;
        let values = |p: &mut Pipeline| -> Result<Vec<f32>> {
            let [plain, _] = p.text.encode_pair("a red house (on:1.2) hill", "", TextOptions::default())?;
            Ok(plain.context.flatten_all()?.to_vec1()?)
        };
        let (before, without) = (values(&mut pipeline)?, error(family, &mut pipeline)?);
        let known = ["inkwash", "trio"].map(|name| pipeline.load_embedding(file(family, name)));
        pipeline.set_embeddings(known.into_iter().collect::<Result<_>>()?)?;
        let with = error(family, &mut pipeline)?;
        assert!(with < 1e-5 && without > 0.05, "{family}: {with:e}, without the embeddings {without}");
        assert_eq!(values(&mut pipeline)?, before, "{family}: a prompt that calls none must not change");
        let called = pipeline.text.called_in(&["TRIO of cats"])?;
        assert_eq!(called.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["trio"]);
        // Weights apply, and 1,000 words around change nothing about finding it.
        let long = "red house, ".repeat(40) + "(trio:1.3)";
        let rows = pipeline.text.rows(&long)?;
        assert!(pipeline.text.encode(&long, rows, TextOptions::default())?.context.dims()[1] > 77);
        pipeline.set_embeddings(Vec::new())?;
        assert_eq!(error(family, &mut pipeline)?, without);
    }
    Ok(())
}

/// An adapter with the same embeddings inside makes them known while it is in use, at any strength.
#[test]
fn adapters_bring_their_embeddings() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for family in FAMILIES {
        let mut pipeline = pipeline(family)?;
        let mut all = tensors(golden("pipeline", family).join("adapter.safetensors"))?;
        let keys = all.len();
        for name in ["inkwash", "trio"] {
            let own = tensors(file(family, name))?;
            all.extend(
                own.into_iter().map(|(vector, tensor)| (format!("bundle_emb.{name}.{vector}"), tensor)),
            );
        }
        let path = folder.path().join(format!("{family}.safetensors"));
        let sorted: std::collections::BTreeMap<_, _> = all.iter().collect();
        let writer =
            SafetensorsWriter::new(sorted.into_iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
        let metadata = scumble::weights::reader::SafetensorsFile::read(
            golden("pipeline", family).join("adapter.safetensors"),
        )?;
        writer.write(&path, metadata.metadata())?;

        let adapter = pipeline.load_adapter(&path, &LoadOptions::default())?;
        assert_eq!((adapter.report.matched, adapter.report.unmatched.len()), (all.len(), 0));
        assert!(all.len() > keys);
        pipeline.set_blend(Blend::new().with("x", adapter.clone(), Strength::uniform(0.0)))?;
        let found = error(family, &mut pipeline)?;
        assert!(found < 1e-5, "{family}: {found:e}");

        // Written and read back with them.
        let copy = folder.path().join(format!("{family}-copy.safetensors"));
        let table = pipeline.name_table()?;
        adapter.save(&copy, &table, &SaveOptions::default())?;
        let copy = pipeline.load_adapter(&copy, &LoadOptions::default())?;
        assert_eq!(copy.embeddings.len(), 2);
        for (a, b) in adapter.embeddings.iter().zip(&copy.embeddings) {
            assert!(a.name == b.name && a.same_vectors(b)?);
        }
        let diffusers =
            SaveOptions { dialect: scumble::adapter::Dialect::Diffusers, ..SaveOptions::default() };
        assert!(
            adapter.save(folder.path().join("no"), &table, &diffusers).is_err_and(|e| e.hint().is_some())
        );

        // The same by hand changes nothing; another of the same name given by hand wins.
        let by_hand = pipeline.load_embedding(file(family, "inkwash"))?;
        pipeline.set_embeddings(vec![by_hand])?;
        assert_eq!((pipeline.text.embeddings().len(), error(family, &mut pipeline)?), (2, found));
        let mut other = pipeline.load_embedding(file(family, "trio"))?;
        other.name = "Inkwash".into();
        pipeline.set_embeddings(vec![other])?;
        assert_eq!(pipeline.text.called_in(&["inkwash"])?[0].length(), 3);
        pipeline.set_embeddings(Vec::new())?;
        pipeline.set_blend(Blend::new())?;
        assert!(pipeline.text.embeddings().is_empty());
    }
    Ok(())
}

#[test]
fn families_do_not_mix() -> Result<()> {
    let mut pipeline = pipeline("sdxl")?;
    let found = pipeline.load_embedding(file("sd1", "trio")).expect_err("another family");
    let text = found.to_string();
    assert!(
        text.contains("text encoder width 16)") && text.contains("text encoder width 16 + 24)"),
        "{text}"
    );
    assert!(found.hint().is_some());
    Ok(())
}
