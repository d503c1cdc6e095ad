//! Trains a style from a folder on the embedded model:
//! `cargo run --release --example train -- sample-data/blueprint my-style.safetensors 300`.

use scumble::{
    Result,
    progress::{CancelToken, Event},
    training::{TrainConfig, TrainOutcome, Trainer},
};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let images = args.next().unwrap_or_else(|| "sample-data/blueprint".into());
    let out = args.next().unwrap_or_else(|| "my-style.safetensors".into());
    let steps = args.next().and_then(|n| n.parse().ok()).unwrap_or(300);

    let config = TrainConfig {
        model: "mini".into(),
        images: images.into(),
        out: out.into(),
        steps,
        batch_size: 4,
        rank: 16,
        learning_rate: 1e-3,
        ..TrainConfig::default()
    };
    let mut report = |event: &Event<'_>| {
        if let Event::Loss { step, loss, .. } = event
            && step.is_multiple_of(20)
        {
            tell(&format!("step {step}: loss {loss:.4}"));
        }
    };
    match Trainer::new(config)?.run(&mut report, &CancelToken::default())? {
        TrainOutcome::Finished { adapter, loss } => tell(&format!("{}: loss {loss:.4}", adapter.display())),
        TrainOutcome::Cancelled { checkpoint, .. } => {
            tell(&format!("stopped; go on from {}", checkpoint.display()));
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "an example talks to its user")]
fn tell(line: &str) {
    println!("{line}");
}
