//! `scumble bench`.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Context, setup::hinted};
use crate::{
    bench::{self, Case, Measured, Runs, Subject, Task, peak},
    device::Precision,
    error::{Error, Result},
};

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// sd1, sd2, sdxl, sdxl-refiner (random weights, nothing to download), mini, or a model as `--model` takes it
    #[arg(long, value_name = "MODEL", value_delimiter = ',', default_value = "mini,sd1")]
    pub model: Vec<Subject>,
    /// unet, train, train-checkpointing, vae-decode, vae-encode, text, generate
    #[arg(long, value_name = "TASK", value_delimiter = ',', value_parser = hinted::<Task>, default_value = "unet,train,generate")]
    pub task: Vec<Task>,
    /// Side of the pictures in pixels [default: the model's own]
    #[arg(long, value_name = "PX", value_delimiter = ',')]
    pub size: Vec<usize>,
    /// Pictures at once
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    pub batch: Vec<usize>,
    /// Of the LoRA that is trained
    #[arg(long, default_value_t = 8)]
    pub rank: usize,
    /// f32, f16, bf16 [default: what `--dtype` says]
    #[arg(long, value_name = "DTYPE", value_delimiter = ',', value_parser = hinted::<Precision>)]
    pub precision: Vec<Precision>,
    /// Runs that are timed; the one in the middle is shown
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Runs before them
    #[arg(long, default_value_t = 1)]
    pub warmup: usize,
    /// How far a single network's result is from the same in f32, which takes the memory of both
    #[arg(long)]
    pub error: bool,
}

/// One line of the table, as `--json` prints it.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    model: String,
    task: String,
    size: usize,
    batch: usize,
    /// Of the LoRA, if one is trained.
    rank: Option<usize>,
    dtype: String,
    device: String,
    threads: usize,
    /// The run in the middle, the fastest, and all.
    seconds: f64,
    best_seconds: f64,
    runs: Vec<f64>,
    seconds_per_step: f64,
    processor_seconds: Option<f64>,
    peak_mib: Option<f64>,
    gflop: f64,
    gflops: f64,
    /// Of multiply-adds that never leave the registers, in f32 on the processor.
    percent_of_peak: Option<f64>,
    /// Relative to the same in f32, if that was asked for.
    error: Option<f64>,
}

/// What is measured, in words: a child process is started with them.
#[derive(Debug, Clone)]
struct Wish {
    subject: Subject,
    task: Task,
    size: Option<usize>,
    batch: usize,
    precision: Precision,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let wishes = wishes(args, context);
    if let [only] = wishes.as_slice() {
        let row = measure(only, args, context)?;
        show(&row, context, true);
        return Ok(());
    }
    let mut failed = 0;
    for (i, wish) in wishes.iter().enumerate() {
        context.cancel.check()?;
        context.console.note(&format!("{} of {}: {} {}", i + 1, wishes.len(), wish.subject, wish.task));
        match in_child(wish, args, context) {
            Ok(row) => show(&row, context, i == failed),
            Err(e) if e.is_cancelled() => return Err(e),
            Err(e) => {
                super::report(&e.context(format!("{} {}", wish.subject, wish.task)), &context.console);
                failed += 1;
            }
        }
    }
    if failed > 0 {
        Err(Error::invalid(format!("{failed} of {} could not be measured", wishes.len())))
    } else {
        Ok(())
    }
}

fn wishes(args: &Args, context: &Context) -> Vec<Wish> {
    let default = [context.global.dtype.unwrap_or_default()];
    let precisions = if args.precision.is_empty() { &default[..] } else { &args.precision };
    let sizes: Vec<Option<usize>> =
        if args.size.is_empty() { vec![None] } else { args.size.iter().copied().map(Some).collect() };
    let mut wishes = Vec::new();
    for subject in &args.model {
        for size in &sizes {
            for precision in precisions {
                for batch in &args.batch {
                    wishes.extend(args.task.iter().map(|task| Wish {
                        subject: subject.clone(),
                        task: *task,
                        size: *size,
                        batch: *batch,
                        precision: *precision,
                    }));
                }
            }
        }
    }
    wishes
}

fn measure(wish: &Wish, args: &Args, context: &Context) -> Result<Row> {
    if wish.batch == 0 || args.runs == 0 || args.rank == 0 {
        return Err(Error::invalid("`--batch`, `--runs` and `--rank` must be at least 1, found 0"));
    }
    let device = context.global.device.unwrap_or_default().open()?;
    let dtype = wish.precision.dtype(&device);
    let case = Case {
        subject: wish.subject.clone(),
        task: wish.task,
        size_px: wish.size,
        batch: wish.batch,
        rank: args.rank,
        dtype,
        device: device.clone(),
    };
    let runs = Runs { warmup: args.warmup, counted: args.runs };
    let measured = bench::measure(&case, runs, &context.cancel)?;
    let peak = device.is_cpu().then(peak::gflops);
    let error = if args.error { bench::error(&case, &context.cancel)? } else { None };
    Ok(Row { error, ..row(&case, &measured, peak) })
}

fn row(case: &Case, measured: &Measured, peak: Option<f64>) -> Row {
    let seconds = measured.median_seconds();
    let gflops = measured.gflop / seconds;
    Row {
        model: case.subject.to_string(),
        task: case.task.to_string(),
        size: measured.size_px,
        batch: case.batch,
        rank: matches!(case.task, Task::Train | Task::TrainCheckpointing).then_some(case.rank),
        dtype: case.dtype.as_str().to_owned(),
        device: format!("{:?}", case.device.location()).to_lowercase(),
        threads: rayon::current_num_threads(),
        seconds,
        best_seconds: measured.seconds.iter().copied().fold(f64::INFINITY, f64::min),
        runs: measured.seconds.clone(),
        seconds_per_step: seconds / case.task.steps() as f64,
        processor_seconds: measured.processor_seconds,
        peak_mib: measured.peak_mib,
        gflop: measured.gflop,
        gflops,
        percent_of_peak: peak.map(|peak| 100.0 * gflops / peak),
        error: None,
    }
}

/// In a process of its own, so that its peak of memory is its own.
fn in_child(wish: &Wish, args: &Args, context: &Context) -> Result<Row> {
    let program = std::env::current_exe().map_err(|e| Error::io("scumble", e))?;
    let mut command = Command::new(program);
    command.args(["bench", "--json", "--model", &wish.subject.to_string(), "--task", wish.task.name()]);
    command.args(["--batch", &wish.batch.to_string(), "--precision", &wish.precision.to_string()]);
    command.args(["--runs", &args.runs.to_string(), "--warmup", &args.warmup.to_string()]);
    command.args(["--rank", &args.rank.to_string()]);
    if let Some(size) = wish.size {
        command.args(["--size", &size.to_string()]);
    }
    if let Some(device) = &context.global.device {
        command.args(["--device", &device.to_string()]);
    }
    if context.global.offline {
        command.arg("--offline");
    }
    if args.error {
        command.arg("--error");
    }
    if let Some(threads) = context.global.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    let io = |e| Error::io("scumble bench", e);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = Ended(child.map_err(io)?);
    while child.0.try_wait().map_err(io)?.is_none() {
        context.cancel.check()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    let lines = BufReader::new(child.0.stdout.take().ok_or_else(|| Error::invalid("no output"))?).lines();
    let mut found = Err(Error::invalid("the measurement ended without a result (out of memory?)"));
    for line in lines {
        let line = line.map_err(io)?;
        let said: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(message) = said["message"].as_str().filter(|_| said["event"] == "error") {
            return Err(Error::invalid(message).with_hint(said["hint"].as_str().unwrap_or_default()));
        }
        if said["seconds"].is_number() {
            found = serde_json::from_value(said).map_err(|e| Error::invalid(e.to_string()));
        }
    }
    found
}

/// Ends the child with us.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn show(row: &Row, context: &Context, first: bool) {
    let console = &context.console;
    if console.is_json() {
        // Numbers and strings cannot fail to be written.
        console.data(&serde_json::to_string(row).unwrap_or_default());
        return;
    }
    if first {
        console.data(&format!(
            "{:<14} {:<20} {:>5} {:>5} {:>5} {:>9} {:>9} {:>9} {:>9} {:>6} {:>8}",
            "model", "task", "px", "batch", "dtype", "s", "s/step", "MiB", "GFLOP/s", "% peak", "error"
        ));
    }
    let optional = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.0}"));
    console.data(&format!(
        "{:<14} {:<20} {:>5} {:>5} {:>5} {:>9.3} {:>9.3} {:>9} {:>9.1} {:>6} {:>8}",
        row.model,
        row.task,
        row.size,
        row.batch,
        row.dtype,
        row.seconds,
        row.seconds_per_step,
        optional(row.peak_mib),
        row.gflops,
        optional(row.percent_of_peak),
        row.error.map_or_else(|| "-".to_owned(), |e| format!("{e:.1e}"))
    ));
}
