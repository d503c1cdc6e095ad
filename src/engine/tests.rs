//! The real engine on the embedded model.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::*;
use crate::{
    adapter::Strength,
    device::{DeviceChoice, Precision},
    error::Result,
    pipeline::{
        GenerateRequest,
        grid::{Axis, Grid},
        infotext::Recipe,
    },
    training::TrainConfig,
};

fn start() -> Result<Engine> {
    Engine::start(DeviceChoice::Cpu, Precision::F32, || {})
}

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-data").join(name)
}

fn mix(weights: [f64; 2]) -> Mix {
    let names = ["adapters/blueprint.safetensors", "adapters/riso.safetensors"];
    let lora =
        |(name, weight): (&str, f64)| LoraUse { path: sample(name), strength: Strength::uniform(weight) };
    Mix { model: "mini".into(), loras: names.into_iter().zip(weights).map(lora).collect(), normalize: false }
}

fn request(steps: usize) -> GenerateRequest {
    GenerateRequest {
        steps,
        seed: 7,
        size_px: Some((64, 64)),
        ..GenerateRequest::new("fox, blueprint style")
    }
}

fn draw(weights: [f64; 2], steps: usize, replace: bool) -> Command {
    Command::Draw(Box::new(Draw { mix: mix(weights), request: request(steps), replace }))
}

/// Every event until all of the jobs have ended, and a moment longer.
fn events(engine: &mut Engine, jobs: &[JobId]) -> Vec<Event> {
    let (mut seen, mut left) = (Vec::new(), jobs.to_vec());
    let begun = Instant::now();
    while !left.is_empty() && begun.elapsed() < Duration::from_secs(300) {
        match engine.poll() {
            Some(event) => {
                left.retain(|job| event.ends() != Some(*job));
                seen.push(event);
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    assert!(left.is_empty(), "no end of {left:?} in {seen:?}");
    std::thread::sleep(Duration::from_millis(20));
    seen.extend(std::iter::from_fn(|| engine.poll()));
    seen
}

fn pictures(events: &[Event], of: JobId) -> Vec<&Picture> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::Picture(job, picture) if *job == of => Some(&**picture),
            _ => None,
        })
        .collect()
}

#[test]
fn every_job_ends_once_and_says_why() -> Result<()> {
    let woken = Arc::new(AtomicUsize::new(0));
    let count = woken.clone();
    let mut engine = Engine::start(DeviceChoice::Cpu, Precision::F32, move || {
        count.fetch_add(1, Ordering::Relaxed);
    })?;
    let bad = engine.submit(Command::Load("no such model".into()))?;
    let missing = engine.submit(Command::Describe("nowhere.safetensors".into()))?;
    let waiting = engine.submit(draw([1.0, 0.0], 2, false))?;
    engine.cancel(waiting);
    let seen = events(&mut engine, &[bad, missing, waiting]);
    let ends: BTreeMap<JobId, usize> =
        seen.iter().filter_map(Event::ends).fold(BTreeMap::new(), |mut ends, job| {
            *ends.entry(job).or_default() += 1;
            ends
        });
    assert_eq!(ends, [(bad, 1), (missing, 1), (waiting, 1)].into());
    let hinted =
        |of: JobId| seen.iter().any(|e| matches!(e, Event::Failed { job, hint: Some(_), .. } if *job == of));
    assert!(hinted(bad) && hinted(missing), "{seen:?}");
    assert!(seen.iter().any(|e| matches!(e, Event::Cancelled(job) if *job == waiting)), "{seen:?}");
    assert!(woken.load(Ordering::Relaxed) >= seen.len());
    Ok(())
}

#[test]
fn a_slider_draws_the_same_noise_anew_without_reading_anything() -> Result<()> {
    let mut engine = start()?;
    let first = engine.submit(draw([0.8, 0.0], 3, true))?;
    let seen = events(&mut engine, &[first]);
    let facts = seen.iter().filter(|e| matches!(e, Event::Model(..))).count();
    assert_eq!(facts, 1, "{seen:?}");
    let previews: Vec<u64> = seen
        .iter()
        .filter_map(|e| match e {
            Event::Preview { step, picture, .. } => {
                assert_eq!(picture.dimensions(), (8, 8));
                Some(*step)
            }
            _ => None,
        })
        .collect();
    assert!(previews[0] == 1 && previews.is_sorted_by(|a, b| a < b), "{previews:?}");
    assert!(seen.iter().any(|e| matches!(e, Event::Blend(_, report) if report.names.len() == 2)), "{seen:?}");
    let before = pictures(&seen, first)[0].clone();
    assert_eq!(before.recipe.seed, Some(7));
    assert_eq!(before.recipe.loras.len(), 1, "what is off is in no recipe");

    // Many moves of a slider at once: only the newest counts, and each job ends once.
    let moved: Vec<JobId> =
        (1..=8).map(|i| engine.submit(draw([0.8, f64::from(i) / 8.0], 3, true))).collect::<Result<_>>()?;
    let seen = events(&mut engine, &moved);
    let ended: Vec<JobId> = seen.iter().filter_map(Event::ends).collect();
    assert_eq!(ended.len(), moved.len(), "{seen:?}");
    let newest = moved[7];
    assert!(seen.iter().any(|e| matches!(e, Event::Finished(job) if *job == newest)), "{seen:?}");
    let cancelled = seen.iter().filter(|e| matches!(e, Event::Cancelled(_))).count();
    assert!(cancelled >= 6, "{seen:?}");
    assert!(!seen.iter().any(|e| matches!(e, Event::Model(..))), "opened again: {seen:?}");
    assert_ne!(pictures(&seen, newest)[0].image, before.image);

    let back = engine.submit(draw([0.8, 0.0], 3, true))?;
    let seen = events(&mut engine, &[back]);
    assert_eq!(pictures(&seen, back)[0].image, before.image);
    let base = engine.submit(draw([0.0, 0.0], 3, true))?;
    let seen = events(&mut engine, &[base]);
    assert_ne!(pictures(&seen, base)[0].image, before.image);
    Ok(())
}

#[test]
fn a_grid_is_one_picture_that_grows_and_what_is_there_is_kept() -> Result<()> {
    let mut engine = start()?;
    let asked = |x: Axis, y: Axis| {
        let grid = Grid { x, y: Some(y) };
        Command::Grid(Box::new(DrawGrid { mix: mix([0.5, 0.4]), request: request(3), grid }))
    };
    let weights = |style, values: &[f64]| Axis::Weight { style, values: values.to_vec() };
    let job = engine.submit(asked(weights(0, &[0.0, 0.8]), Axis::Steps(vec![1, 2])))?;
    let single = engine.submit(Command::Draw(Box::new(Draw {
        mix: mix([0.8, 0.4]),
        request: request(2),
        replace: false,
    })))?;
    let seen = events(&mut engine, &[job, single]);
    let steps: Vec<u64> = seen
        .iter()
        .filter_map(|e| match e {
            Event::Progress { job: of, done, total: 4, .. } if *of == job => Some(*done),
            _ => None,
        })
        .collect();
    assert_eq!(steps, [0, 1, 2, 3, 4], "{seen:?}");
    let shown = |e: &&Event| matches!(e, Event::Preview { job: of, .. } if *of == job);
    assert_eq!(seen.iter().filter(shown).count(), 4);
    let grid = pictures(&seen, job)[0];
    assert!(grid.recipe.is_grid() && grid.recipe.loras.len() == 2);
    assert_eq!(grid.recipe.other("X Type"), Some("Weight of blueprint"));
    assert_eq!(grid.recipe.other("Y Values"), Some("1, 2"));
    // The last cell is the picture of its own.
    let alone = &pictures(&seen, single)[0].image;
    let scaled = image::imageops::resize(alone, 192, 192, image::imageops::FilterType::CatmullRom);
    let (w, h) = grid.image.dimensions();
    let last = image::imageops::crop_imm(&grid.image, w - 12 - 192, h - 12 - 192, 192, 192).to_image();
    assert_eq!(last, scaled);

    // A style that a side names is in the recipe, were it off otherwise: the grid can be drawn again.
    let named = Grid { x: weights(1, &[0.0, 0.8]), y: None };
    let off = DrawGrid { mix: mix([0.0, 0.0]), request: request(1), grid: named.clone() };
    let off = engine.submit(Command::Grid(Box::new(off)))?;
    let seen = events(&mut engine, &[off]);
    let recipe = Recipe::parse(&pictures(&seen, off)[0].recipe.to_text());
    let names: Vec<&str> = recipe.loras.iter().map(|lora| lora.name.as_str()).collect();
    assert_eq!(names, ["riso"]);
    let again = Grid { x: weights(0, &[0.0, 0.8]), y: None };
    assert_eq!(Grid::of_recipe(&recipe, &names)?, Some(again));

    // Each style alone; seeds are their own pictures; what makes no sense is said.
    let styles = engine.submit(asked(Axis::Styles(vec![1, 0]), Axis::Seeds(vec![7, 8])))?;
    let bad = [
        engine.submit(asked(weights(2, &[1.0]), Axis::Steps(vec![1])))?,
        engine.submit(asked(weights(1, &[1.0]), Axis::Styles(vec![0])))?,
        engine.submit(asked(weights(1, &[1.0]), Axis::Steps(vec![])))?,
    ];
    let seen = events(&mut engine, &[styles, bad[0], bad[1], bad[2]]);
    assert_eq!(pictures(&seen, styles)[0].recipe.other("X Values"), Some("riso, blueprint"));
    for job in bad {
        assert!(seen.iter().any(|e| matches!(e, Event::Failed { job: of, .. } if *of == job)), "{seen:?}");
    }

    let long = engine.submit(asked(weights(0, &[0.0, 0.5, 1.0]), Axis::Seeds((0..30).collect())))?;
    let mut seen = Vec::new();
    while !seen.iter().any(|e: &Event| matches!(e, Event::Preview { .. }) || e.ends().is_some()) {
        match engine.poll() {
            Some(event) => seen.push(event),
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    engine.cancel(long);
    seen.extend(events(&mut engine, &[long]));
    assert_eq!(pictures(&seen, long).len(), 1, "what is there is kept: {seen:?}");
    assert!(
        seen.iter().any(|e| matches!(e, Event::Warning(_, m) if m.contains("of 90 pictures"))),
        "{seen:?}"
    );
    assert!(seen.iter().any(|e| matches!(e, Event::Cancelled(_))), "{seen:?}");
    Ok(())
}

#[test]
fn training_pauses_goes_on_and_draws_on_the_way() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("style.safetensors");
    let config = TrainConfig {
        images: sample("riso"),
        out: out.clone(),
        steps: 6,
        rank: 2,
        learning_rate: 5e-3,
        gradient_checkpointing: false,
        ..TrainConfig::default()
    };
    let mut engine = start()?;
    let scan = engine.submit(Command::Scan(Box::new(config.clone())))?;
    let seen = events(&mut engine, &[scan]);
    let found = seen.iter().find_map(|e| match e {
        Event::Scanned { report, pictures, .. } => Some((report.images, pictures)),
        _ => None,
    });
    let (images, listed) = found.expect("scanned");
    assert_eq!((images, listed.len()), (24, 24));
    assert!(listed.iter().all(|p| p.captioned && p.tokens > 2 && p.thumbnail.width() == 128));

    let previews = Some(Previews { every: 4, request: request(2) });
    let training = Training { config: config.clone(), previews };
    let job = engine.submit(Command::Train(Box::new(training.clone())))?;
    let mut seen = Vec::new();
    while !seen.iter().any(|e: &Event| matches!(e, Event::Loss { step: 2, .. }) || e.ends() == Some(job)) {
        match engine.poll() {
            Some(event) => seen.push(event),
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    assert!(seen.iter().all(|e| e.ends().is_none()), "{seen:?}");
    engine.cancel(job);
    seen.extend(events(&mut engine, &[job]));
    assert!(seen.iter().any(|e| matches!(e, Event::Adapter { resumable: true, .. })), "{seen:?}");
    assert!(matches!(seen.last(), Some(Event::Cancelled(_))), "{seen:?}");

    let resumed = Training { config: TrainConfig { resume: true, ..config }, ..training };
    let job = engine.submit(Command::Train(Box::new(resumed)))?;
    let seen = events(&mut engine, &[job]);
    assert!(matches!(seen.last(), Some(Event::Finished(_))), "{seen:?}");
    let sampled = seen.iter().filter(|e| matches!(e, Event::Sample { .. })).count();
    assert!(sampled >= 1, "{seen:?}");

    let lora = LoraUse { path: out.clone(), strength: Strength::uniform(0.5) };
    let mix = Mix { loras: vec![lora], ..mix([0.0; 2]) };
    let exported = folder.path().join("half.safetensors");
    let export = Export { mix: mix.clone(), out: exported.clone(), rank: None };
    let onto_itself = Export { out, ..export.clone() };
    let jobs = [
        engine.submit(Command::Export(Box::new(export)))?,
        engine.submit(Command::Describe(exported.clone()))?,
        engine.submit(Command::Library(folder.path().into()))?,
        engine.submit(Command::Export(Box::new(onto_itself)))?,
    ];
    let seen = events(&mut engine, &jobs);
    let exact =
        |e: &Event| matches!(e, Event::Exported { rank: 2, relative_error, .. } if *relative_error < 1e-3);
    assert!(seen.iter().any(exact), "{seen:?}");
    assert!(seen.iter().any(|e| matches!(e, Event::Described { card, .. } if card.ranks == [2])), "{seen:?}");
    assert!(
        seen.iter().any(|e| matches!(e, Event::Library { entries, .. } if entries.len() >= 2)),
        "{seen:?}"
    );
    assert!(seen.iter().any(|e| matches!(e, Event::Failed { job, .. } if *job == jobs[3])), "{seen:?}");
    Ok(())
}
