//! What lasts as long as the window.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use image::RgbImage;
use scumble::{
    adapter::{guard::BlendReport, library::Card, library::Entry},
    dataset::doctor::Report,
    engine::{JobId, ModelFacts, ScannedPicture},
    pipeline::{InitSource, infotext::Recipe},
    progress::Stage,
};

use super::Painting;
use crate::logic::Dialog;

/// What lasts as long as the window.
#[derive(Debug, Default)]
pub struct Session {
    /// What the engine was asked and has not ended.
    pub jobs: BTreeMap<JobId, Job>,
    /// The one whose turn it is.
    pub running: Option<JobId>,
    /// What has become of those that are over.
    pub tally: Tally,
    /// The model in memory.
    pub model: Option<Box<ModelFacts>>,
    /// What is typed to be opened.
    pub model_name: String,
    /// The picture in the middle.
    pub canvas: Canvas,
    /// Newest last.
    pub history: Vec<Shot>,
    /// The picture to start from.
    pub start: Option<Start>,
    /// A picture that was dropped for its recipe, and might be started from.
    pub offer: Option<PathBuf>,
    /// The number of the next picture.
    pub next_shot: u64,
    /// The seed that was last drawn with.
    pub drawn_seed: Option<u64>,
    /// What the blend does to the model.
    pub report: Option<Box<BlendReport>>,
    /// What adapters' files say of themselves.
    pub cards: BTreeMap<PathBuf, Box<Card>>,
    /// What adapters look like, by their files, with the picture's number; `None` where there is no picture, or none yet.
    pub covers: BTreeMap<PathBuf, Option<(u64, Arc<RgbImage>)>>,
    /// Parts of cards that are unfolded.
    pub unfolded: BTreeSet<(PathBuf, Part)>,
    /// The mask that is being painted.
    pub painting: Option<Painting>,
    /// The newest writing of a style's mask.
    pub masks: BTreeMap<PathBuf, u64>,
    /// What went wrong, and what is to be known.
    pub problems: Vec<Problem>,
    /// Reports of what must not happen, of this run and earlier ones, the newest first.
    pub crashes: Vec<CrashReport>,
    /// What is being done.
    pub progress: Option<Progress>,
    /// Resident memory after the last job.
    pub memory_bytes: Option<u64>,
    /// How long the last picture took.
    pub last_secs: Option<f64>,
    /// Seconds a step took a pixel, of the last pictures.
    pub paces: Vec<f64>,
    /// The job that opened the model, and when it had, in seconds since the program's start.
    pub opened: Option<(JobId, f64)>,
    /// A path that is typed because the system has no dialog.
    pub typing: Option<Typing>,
    /// What the names of the history's files begin with; none are written without it.
    pub keeping: Option<PathBuf>,
    /// The seeds of a picture that is about to be asked for.
    pub seeds: Option<Seeds>,
    /// Windows above the panels.
    pub open: Open,
    /// The library.
    pub library: LibraryView,
    /// The grid to draw.
    pub grid: GridForm,
    /// The training.
    pub training: TrainView,
    /// Adapters seen anywhere, by name: recipes call them so.
    pub known: BTreeMap<String, PathBuf>,
    /// True once the user has said to stop the training and close.
    pub closing: bool,
}

/// Jobs counted: those submitted are those under way and those that ended, once each.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Asked for.
    pub submitted: u64,
    /// Went well.
    pub finished: u64,
    /// Were stopped, or gave way to a newer one.
    pub cancelled: u64,
    /// Did not go well.
    pub failed: u64,
    /// Ends of jobs that were not under way: always 0.
    pub strays: u64,
}

/// A job the engine has not ended.
#[derive(Debug, Clone)]
pub struct Job {
    /// Why it was submitted.
    pub purpose: Purpose,
    /// What it is, for people.
    pub title: String,
    /// What its pictures start from.
    pub start: Option<Start>,
    /// When it was asked for, in seconds since the program's start.
    pub at: f64,
    /// What its seed took the place of, until there is a picture.
    pub seeds: Option<Seeds>,
}

/// A seed, and what was there before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeds {
    /// The seed.
    pub own: u64,
    /// The one in the field.
    pub field: u64,
    /// The one that had last been drawn with.
    pub drawn: Option<u64>,
}

/// A picture to start from.
#[derive(Debug, Clone)]
pub struct Start {
    /// For its texture.
    pub id: u64,
    /// What it is called.
    pub name: String,
    /// As it was found.
    pub pixels: Arc<RgbImage>,
    /// Its file, if it has one.
    pub source: Option<InitSource>,
}

/// Why a job was submitted.
#[derive(Debug, Clone, PartialEq)]
pub enum Purpose {
    /// To have a model.
    Load,
    /// Pictures the user asked for.
    Draw,
    /// A picture that follows a change.
    Live,
    /// Many pictures as one.
    Grid,
    /// The picture without styles, for comparing.
    Base(String),
    /// A style.
    Train,
    /// What a folder of pictures holds.
    Scan,
    /// What a folder of adapters holds.
    Library,
    /// What an adapter says.
    Describe(PathBuf),
    /// The blend as a file.
    Export,
}

/// The picture in the middle.
#[derive(Debug, Default)]
pub struct Canvas {
    /// The finished picture.
    pub shot: Option<Shot>,
    /// Of the picture being drawn, its number changing with every step.
    pub preview: Option<(u64, Arc<RgbImage>)>,
    /// The same without styles: what it belongs to, and itself.
    pub base: Option<(String, Shot)>,
    /// Base and blend side by side.
    pub compare: bool,
    /// Where the divider is, 0 to 1.
    pub divider: Option<f32>,
}

/// A finished picture.
#[derive(Debug, Clone)]
pub struct Shot {
    /// Its own.
    pub id: u64,
    /// As drawn.
    pub image: Arc<RgbImage>,
    /// How.
    pub recipe: Arc<Recipe>,
    /// What it started from.
    pub start: Option<Start>,
    /// It followed a change: the next such picture takes its place in the history, unless it was looked at.
    pub live: bool,
    /// When it was finished, in seconds since the program's start; 0 if that was in an earlier run.
    pub at: f64,
    /// Its file among those that are kept.
    pub file: Option<PathBuf>,
}

/// A path that is typed because the system has no dialog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Typing {
    /// What it is for.
    pub dialog: Dialog,
    /// As typed so far.
    pub path: String,
}

/// What a card unfolds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Factors on blocks.
    Blocks,
    /// The weight over the steps.
    Steps,
    /// Where in the picture.
    Place,
}

/// Something to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// False for what is only to be known.
    pub is_error: bool,
}

/// A report of a mistake of this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashReport {
    /// Its file.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// The job.
    pub job: JobId,
    /// What is being done.
    pub stage: Stage,
    /// Steps done.
    pub done: u64,
    /// Steps in all.
    pub total: u64,
}

/// Which windows are open above the panels.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// The list of keys.
    pub help: bool,
    /// The library.
    pub library: bool,
    /// Exporting.
    pub export: bool,
    /// What a grid is to show.
    pub grid: bool,
    /// The question before closing.
    pub closing: bool,
}

/// The library window.
#[derive(Debug, Default)]
pub struct LibraryView {
    /// What is searched for.
    pub search: String,
    /// The folder that was looked through.
    pub folder: PathBuf,
    /// Its adapters.
    pub entries: Vec<Entry>,
    /// The rank to export to.
    pub export_rank: Option<usize>,
}

/// The grid window: what changes from left to right, and from top to bottom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GridForm {
    /// From left to right, from top to bottom.
    pub sides: [GridSide; 2],
}

/// A side of a grid.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GridSide {
    /// What changes.
    pub varies: Varies,
    /// Its values as they are typed, with commas.
    pub values: String,
}

/// What changes along a side of a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Varies {
    /// Nothing: one row.
    #[default]
    Nothing,
    /// The weight of one style, by its place in the blend.
    Weight(usize),
    /// All weights at once.
    Weights,
    /// Denoising steps.
    Steps,
    /// The seed.
    Seed,
    /// One style at a time.
    Style,
}

/// The training under way, or the last one.
#[derive(Debug, Default)]
pub struct TrainView {
    /// What the scan said.
    pub report: Option<Box<Report>>,
    /// The pictures with their captions.
    pub pictures: Vec<TrainPicture>,
    /// Where it is.
    pub run: Run,
    /// Step and smoothed loss.
    pub losses: Vec<[f64; 2]>,
    /// Step and picture, oldest first.
    pub samples: Vec<(u64, Shot)>,
    /// Seconds since the program's start and steps done when the first step of this run was.
    pub pace: Option<(f64, u64)>,
    /// Seconds since the program's start, and steps done, now.
    pub now: (f64, u64),
    /// The adapter's file.
    pub out: Option<PathBuf>,
    /// Pausing, not stopping, was asked for.
    pub pausing: bool,
    /// The folder of pictures was there when it was last looked for.
    pub is_there: bool,
}

/// A picture of the training's folder.
#[derive(Debug, Clone)]
pub struct TrainPicture {
    /// As scanned.
    pub scanned: Arc<ScannedPicture>,
    /// The caption as it stands in the field.
    pub caption: String,
    /// For its texture.
    pub id: u64,
}

/// Where a training is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Run {
    /// There is none.
    #[default]
    Idle,
    /// Under way.
    Running,
    /// Stopped, to go on later.
    Paused,
    /// At its end.
    Done,
}

impl Session {
    /// True if a job of that kind runs or waits.
    pub fn has(&self, fits: impl Fn(&Purpose) -> bool) -> bool {
        self.jobs.values().any(|job| fits(&job.purpose))
    }

    /// True while something is drawn.
    pub fn is_drawing(&self) -> bool {
        self.has(|p| matches!(p, Purpose::Draw | Purpose::Live | Purpose::Grid))
    }

    /// True while a style is trained.
    pub fn is_training(&self) -> bool {
        self.has(|p| *p == Purpose::Train)
    }

    /// Tells something, once.
    pub fn tell(&mut self, message: impl Into<String>, hint: Option<String>, is_error: bool) {
        let problem = Problem { message: message.into(), hint, is_error };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}
