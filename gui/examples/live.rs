//! How fast a slider is: `cargo run --release -p scumble-gui --example live`.

use std::time::{Duration, Instant};

use scumble::{
    adapter::Strength,
    device::{DeviceChoice, Precision},
    engine::{Command, Draw, Engine, Event, LoraUse, Mix},
    error::Result,
    pipeline::GenerateRequest,
};

const MOVES: u32 = 20;

fn main() -> Result<()> {
    scumble::device::prepare_process();
    let mut engine = Engine::start(DeviceChoice::Cpu, Precision::F32, || {})?;
    let (mut previews, mut pictures) = (Vec::new(), Vec::new());
    for step in 0..=MOVES {
        let (preview, picture) = draw(&mut engine, f64::from(step) / f64::from(MOVES))?;
        // The first opens model and adapters.
        if step > 0 {
            previews.push(preview);
            pictures.push(picture);
        }
    }
    let mut out = std::io::stdout().lock();
    for (what, mut times) in [("first preview", previews), ("20-step picture", pictures)] {
        times.sort();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (median, worst) = (ms(times[times.len() / 2]), ms(times[times.len() - 1]));
        let line = format!("{what}: median {median:.0} ms, slowest of {MOVES} {worst:.0} ms\n");
        std::io::Write::write_all(&mut out, line.as_bytes()).ok();
    }
    Ok(())
}

/// Moves a slider of three styles; answers when the first preview came, and the picture.
fn draw(engine: &mut Engine, weight: f64) -> Result<(Duration, Duration)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-data/adapters");
    let lora = |(name, weight): (&str, f64)| LoraUse {
        path: folder.join(format!("{name}.safetensors")),
        strength: Strength::uniform(weight),
    };
    let loras = [("blueprint", weight), ("stained-glass", 0.5), ("riso", 0.2)].map(lora).to_vec();
    let mix = Mix { model: "mini".into(), loras, normalize: false };
    let request = GenerateRequest { steps: 20, seed: 7, ..GenerateRequest::new("house, blueprint style") };
    let begun = Instant::now();
    let job = engine.submit(Command::Draw(Box::new(Draw { mix, request, replace: true })))?;
    let (mut preview, mut picture) = (None, None);
    loop {
        match engine.poll() {
            Some(Event::Preview { .. }) => drop(preview.get_or_insert(begun.elapsed())),
            Some(Event::Picture(..)) => picture = Some(begun.elapsed()),
            Some(event) if event.ends() == Some(job) => break,
            Some(_) => {}
            None => std::thread::sleep(Duration::from_micros(200)),
        }
    }
    Ok((preview.unwrap_or_default(), picture.unwrap_or_default()))
}
