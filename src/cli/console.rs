//! What the user sees while work is done: bars on a terminal, a few plain lines in a pipe, JSON lines on request.
//! Results go to standard output, everything else to standard error.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::progress::{Event, Observer, Stage};

/// Time between plain lines.
const PLAIN_PAUSE: Duration = Duration::from_secs(20);
/// Warnings of one run that are shown; the rest are counted.
const WARNINGS_SHOWN: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Bars,
    Plain,
    Json,
    Quiet,
}

/// The [`Observer`] of the command line.
pub(super) struct Console {
    mode: Mode,
    bar: Option<(Stage, ProgressBar)>,
    loss: String,
    last_line: Instant,
    warnings: usize,
}

impl Console {
    pub fn new(json: bool, quiet: bool) -> Self {
        let mode = match (json, quiet) {
            (true, _) => Mode::Json,
            (_, true) => Mode::Quiet,
            _ if std::io::stderr().is_terminal() => Mode::Bars,
            _ => Mode::Plain,
        };
        Self { mode, bar: None, loss: String::new(), last_line: Instant::now(), warnings: 0 }
    }

    pub fn is_json(&self) -> bool {
        self.mode == Mode::Json
    }

    /// A result: one line on standard output. A closed pipe is the reader's choice.
    pub fn data(&self, line: &str) {
        let print = || writeln!(std::io::stdout(), "{line}").ok();
        match &self.bar {
            Some((_, bar)) => bar.suspend(print),
            None => print(),
        };
    }

    /// A result for people; with `--json`, the same as an object.
    pub fn result(&self, text: &str, object: &serde_json::Value) {
        if self.is_json() {
            self.data(&object.to_string());
        } else {
            self.data(text);
        }
    }

    /// Something worth knowing: a line on standard error.
    pub fn note(&self, line: &str) {
        if matches!(self.mode, Mode::Json | Mode::Quiet) {
            return;
        }
        let print = || writeln!(std::io::stderr(), "{line}").ok();
        match &self.bar {
            Some((_, bar)) => bar.suspend(print),
            None => print(),
        };
    }

    /// Takes the bar away and says how many warnings were not shown.
    pub fn close(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
        if self.warnings > WARNINGS_SHOWN {
            self.note(&format!("warning: {} more like these", self.warnings - WARNINGS_SHOWN));
        }
        self.warnings = 0;
    }

    fn warn(&mut self, message: &str) {
        self.warnings += 1;
        if self.warnings <= WARNINGS_SHOWN {
            self.note(&format!("warning: {message}"));
        }
    }

    fn start(&mut self, stage: Stage, total: u64) {
        self.loss.clear();
        match self.mode {
            Mode::Bars => {
                let bar = ProgressBar::new(total).with_style(style(stage, total)).with_message(name(stage));
                bar.enable_steady_tick(Duration::from_millis(250));
                self.bar = Some((stage, bar));
            }
            Mode::Plain if total > 1 => {
                self.note(&format!("{}: {}", name(stage), amount(stage, total)));
                self.last_line = Instant::now();
            }
            _ => {}
        }
    }

    fn advance(&mut self, stage: Stage, done: u64, total: u64) {
        match &self.bar {
            Some((shown, bar)) if *shown == stage => {
                bar.set_length(total);
                bar.set_position(done);
            }
            _ if self.mode == Mode::Plain && self.last_line.elapsed() > PLAIN_PAUSE => {
                let (done, total) = (amount(stage, done), amount(stage, total));
                self.note(&format!("{}: {done} of {total}{}", name(stage), self.loss));
                self.last_line = Instant::now();
            }
            _ => {}
        }
    }

    fn finish(&mut self, stage: Stage) {
        if self.bar.as_ref().is_some_and(|(shown, _)| *shown == stage)
            && let Some((_, bar)) = self.bar.take()
        {
            bar.finish_and_clear();
            if matches!(stage, Stage::Download | Stage::Cache | Stage::Train | Stage::Sample | Stage::Layers)
            {
                let elapsed = bar.elapsed().as_secs_f64();
                self.note(&format!("{}: done in {elapsed:.1} s{}", name(stage), self.loss));
            }
        }
    }
}

impl Observer for Console {
    fn observe(&mut self, event: &Event<'_>) {
        if self.is_json() {
            if let Some(line) = as_json(event) {
                self.data(&line.to_string());
            }
            return;
        }
        match *event {
            Event::Started { stage, total } => self.start(stage, total),
            Event::Advanced { stage, done, total } => self.advance(stage, done, total),
            Event::Finished { stage } => self.finish(stage),
            Event::Loss { loss, learning_rate, .. } => {
                self.loss = format!(" · loss {loss:.4} · lr {learning_rate:.1e}");
                if let Some((_, bar)) = &self.bar {
                    bar.set_message(format!("{}{}", name(Stage::Train), self.loss));
                }
            }
            Event::Warning { message } => self.warn(message),
            // Subcommands say themselves what they made.
            Event::Saved { .. } | Event::Preview { .. } => {}
        }
    }
}

fn as_json(event: &Event<'_>) -> Option<serde_json::Value> {
    Some(match *event {
        Event::Started { stage, total } => json!({ "event": "started", "stage": key(stage), "total": total }),
        Event::Advanced { stage, done, total } => {
            json!({ "event": "advanced", "stage": key(stage), "done": done, "total": total })
        }
        Event::Finished { stage } => json!({ "event": "finished", "stage": key(stage) }),
        Event::Loss { step, loss, learning_rate } => {
            json!({ "event": "loss", "step": step, "loss": loss, "learning_rate": learning_rate })
        }
        Event::Saved { path } => json!({ "event": "saved", "path": path }),
        Event::Warning { message } => json!({ "event": "warning", "message": message }),
        Event::Preview { .. } => return None,
    })
}

fn style(stage: Stage, total: u64) -> ProgressStyle {
    let template = match stage {
        Stage::Download => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        _ if total <= 1 => "{spinner} {msg} {elapsed}",
        _ => "{msg} {wide_bar} {pos}/{len} {per_sec} {eta}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn amount(stage: Stage, n: u64) -> String {
    if stage == Stage::Download { format!("{:.1} MB", n as f64 / 1e6) } else { n.to_string() }
}

/// For people.
fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Download => "downloading",
        Stage::Load => "loading the model",
        Stage::Scan => "reading pictures",
        Stage::Cache => "encoding pictures",
        Stage::Train => "training",
        Stage::Sample => "drawing",
        Stage::Decode => "decoding",
        Stage::Layers => "computing layers",
        Stage::Adapters => "reading adapters",
        Stage::Save => "saving",
    }
}

/// For programs.
fn key(stage: Stage) -> &'static str {
    match stage {
        Stage::Download => "download",
        Stage::Load => "load",
        Stage::Scan => "scan",
        Stage::Cache => "cache",
        Stage::Train => "train",
        Stage::Sample => "sample",
        Stage::Decode => "decode",
        Stage::Layers => "layers",
        Stage::Adapters => "adapters",
        Stage::Save => "save",
    }
}
