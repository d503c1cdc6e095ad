//! `scumble generate`.

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde_json::json;

use super::{
    Context, embeddings, grid,
    loras::{self, BlendArgs},
    numbers::{real, whole},
    recipe,
    seed::Seed,
    setup,
};
use crate::{
    adapter::BlendMode,
    diffusion::{Sampler, SigmaSchedule},
    error::{Error, Result},
    files::{self, NewFolder},
    pipeline::{
        GenerateRequest, Generated, Pipeline,
        grid::{Grid, MAX_SIDE},
        hires::MAX_SCALE,
        infotext::{self, Recipe},
        request::{MAX_CFG_SCALE, MAX_CLIP_SKIP, MAX_COUNT, MAX_SIDE_PX, MAX_STEPS},
    },
    progress::Observer,
    prompt::emphasis::Emphasis,
};

/// Options of `generate`. What is left out comes from `--from`'s picture, if there is one, else from the defaults.
#[derive(Debug, Default, ClapArgs)]
pub(super) struct Args {
    /// What to draw: "a (red:1.2) fox, BREAK, snow <lora:my-style:0.8>"
    #[arg(required_unless_present = "from")]
    pub prompt: Option<String>,
    /// What to keep out
    #[arg(long, short, value_name = "PROMPT", alias = "negative-prompt")]
    pub negative: Option<String>,
    /// mini, sd15, sdxl, a hub id (owner/name[@revision]), a diffusers folder, or a .safetensors file [default: mini]
    #[arg(long, short)]
    pub model: Option<String>,
    #[command(flatten)]
    pub blending: BlendArgs,
    /// A word with trained vectors (textual inversion), or a folder of them; prompts call it by the file's name
    #[arg(long, value_name = "FILE|FOLDER")]
    pub embedding: Vec<PathBuf>,
    /// How styles get into the model: auto, live (as branches) or fused (as weights) [default: auto]
    #[arg(long, value_name = "MODE", value_parser = setup::hinted::<BlendMode>)]
    pub lora_mode: Option<BlendMode>,
    /// Denoising steps [default: 25]
    #[arg(long, short, value_parser = whole(1, MAX_STEPS))]
    pub steps: Option<usize>,
    /// ddim, ddpm, euler, euler_a, heun, dpm2, dpmpp_2m, dpmpp_2s_a, dpmpp_sde, dpmpp_2m_sde, unipc, lcm [default: dpmpp_2m]
    #[arg(long, value_name = "NAME", value_parser = setup::hinted::<Sampler>)]
    pub sampler: Option<Sampler>,
    /// normal, karras, exponential, sgm_uniform, simple [default: karras]
    #[arg(long, value_name = "NAME", alias = "schedule", value_parser = setup::hinted::<SigmaSchedule>)]
    pub scheduler: Option<SigmaSchedule>,
    /// How strongly the prompt pulls [default: the model's own: 7, mini 4]
    #[arg(long, value_name = "SCALE", alias = "cfg-scale", allow_hyphen_values = true, value_parser = real(0.0, MAX_CFG_SCALE))]
    pub cfg: Option<f64>,
    /// Pull over-exposed pictures back, 0 to 1 [default: 0]
    #[arg(long, value_name = "SHARE", allow_hyphen_values = true, value_parser = real(0.0, 1.0))]
    pub cfg_rescale: Option<f64>,
    /// The first picture's seed; the next has the next number; -1 is a random one [default: a random one]
    #[arg(long, value_parser = setup::hinted::<Seed>)]
    pub seed: Option<Seed>,
    /// Width and height in pixels [default: what the model was trained on]
    #[arg(long, value_name = "WxH", allow_hyphen_values = true, value_parser = parse_size)]
    pub size: Option<(usize, usize)>,
    /// How many pictures [default: 1]
    #[arg(long, short, value_name = "N", value_parser = whole(1, MAX_COUNT))]
    pub count: Option<usize>,
    /// Pictures drawn together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole(1, usize::MAX))]
    pub batch: usize,
    /// The folder for the pictures
    #[arg(long, short, value_name = "FOLDER", default_value = "out")]
    pub out: PathBuf,
    /// A picture to start from (img2img)
    #[arg(long, value_name = "PICTURE")]
    pub init: Option<PathBuf>,
    /// How much of it is redrawn, 0 to 1 [default: 0.75]
    #[arg(long, value_name = "SHARE", alias = "denoising-strength", allow_hyphen_values = true, value_parser = real(0.0, 1.0))]
    pub strength: Option<f64>,
    /// Draw a second pass on the picture enlarged this many times: large pictures keep their composition
    #[arg(long, value_name = "SCALE", allow_hyphen_values = true, value_parser = real(1.0, MAX_SCALE))]
    pub hires: Option<f64>,
    /// How much of it is drawn again, 0 to 1 [default: 0.5]
    #[arg(long, value_name = "SHARE", allow_hyphen_values = true, value_parser = real(0.0, 1.0))]
    pub hires_strength: Option<f64>,
    /// Its steps, all of which are done, whatever the share [default: as many as the first pass]
    #[arg(long, value_name = "N", value_parser = whole(1, MAX_STEPS))]
    pub hires_steps: Option<usize>,
    /// The text encoder's layer that is read, 1 the last [default: the model's own]
    #[arg(long, value_name = "N", value_parser = whole(1, MAX_CLIP_SKIP))]
    pub clip_skip: Option<usize>,
    /// Fresh noise of stochastic samplers, 0 to 1 [default: the sampler's own]
    #[arg(long, allow_hyphen_values = true, value_parser = real(0.0, 1.0))]
    pub eta: Option<f64>,
    /// What weights in prompts do: original, no_norm, ignore [default: original]
    #[arg(long, value_name = "NAME", value_parser = setup::hinted::<Emphasis>)]
    pub emphasis: Option<Emphasis>,
    /// Draw one picture at N by N weights of the first two styles, from 0 to what is given, as a single labelled picture
    #[arg(long, value_name = "N", value_parser = whole(2, MAX_SIDE))]
    pub grid: Option<usize>,
    /// What changes from left to right in a grid: weight:STYLE=0,0.5,1, weights=…, steps=…, seed=… or style=A,B
    #[arg(long, value_name = "WHAT=VALUES", conflicts_with = "grid")]
    pub grid_x: Option<String>,
    /// What changes from top to bottom
    #[arg(long, value_name = "WHAT=VALUES", requires = "grid_x")]
    pub grid_y: Option<String>,
    /// Repeat a picture, or a grid, by the recipe in its file; further options change single things
    #[arg(long, value_name = "PICTURE")]
    pub from: Option<PathBuf>,
    /// Take adapters by their names even if the recipe's hashes say that they are others
    #[arg(long, requires = "from")]
    pub allow_other_adapters: bool,
}

pub(super) fn run(args: &Args, context: &mut Context) -> Result<()> {
    let mut plan = recipe::plan(args, context)?;
    let found = loras::find(&plan.loras, context)?;
    let grid = grid::wanted(args, &plan, &found)?;
    // Found out now and not after the first picture. A run that fails before it leaves no folder.
    let _folder = NewFolder::make(&args.out)?;
    files::check_writable(&args.out)?;
    let (mut pipeline, model_hash) = setup::open_model(&plan.model, context)?;
    if let (Some(expected), Some(found)) = (&plan.repeats.model_hash, &model_hash)
        && args.model.is_none()
        && expected != found
    {
        context.console.note(&format!(
            "warning: the picture was drawn with another model (hash {expected}, this one has {found}): \
             the result will differ"
        ));
    }
    let words = embeddings::apply(&plan.embeddings, &plan.request, &mut pipeline, context)?;
    let used = loras::apply(&plan.loras, found, &mut pipeline, context)?;
    let size_px = plan.request.size_on(&pipeline)?;
    plan.request.cfg_scale = Some(plan.request.cfg_scale_on(&pipeline));
    if let Some(grid) = grid {
        let fused = pipeline.blend().mode == BlendMode::Fused;
        let mode = if fused { BlendMode::Fused } else { BlendMode::Live };
        let recipe = plan.recipe(plan.request.seed, size_px, (&used, mode), &words, model_hash);
        return draw_grid((&grid, &args.out), &mut pipeline, (&plan.request, recipe), context);
    }
    let mut made = Vec::new();
    let Context { console, cancel, .. } = context;
    // Which mode `auto` has become decides over the last bits.
    let mode = pipeline.settle_blend(&plan.request)?;
    let mut save = |picture: Generated, _: &mut dyn Observer| {
        let recipe = plan.recipe(picture.seed, size_px, (&used, mode), &words, model_hash.clone());
        let file = infotext::encode_png(&picture.image, &recipe)?;
        let path = save_numbered(&args.out, &format!("{}.png", picture.seed), &file)?;
        made.push((path, picture.seed));
        Ok(())
    };
    let outcome = pipeline.generate_each(&plan.request, console, cancel, &mut save);
    console.close();
    // What was finished before an error or Ctrl-C is there and is named.
    for (path, seed) in &made {
        console
            .result(&path.display().to_string(), &json!({ "event": "picture", "path": path, "seed": seed }));
    }
    outcome
}

/// What was drawn before an interruption is kept.
fn draw_grid(
    (grid, out): (&Grid, &Path),
    pipeline: &mut Pipeline,
    (request, mut recipe): (&GenerateRequest, Recipe),
    context: &mut Context,
) -> Result<()> {
    let Context { console, cancel, .. } = context;
    let drawn = pipeline.draw_grid(grid, request, console, cancel, &mut |_| {})?;
    recipe.note_grid(grid, &pipeline.blend().names());
    let file = infotext::encode_png(&drawn.picture, &recipe)?;
    let path = save_numbered(out, &format!("{}-grid.png", request.seed), &file)?;
    console.close();
    let object = json!({ "event": "grid", "path": path, "seed": request.seed, "pictures": drawn.done });
    console.result(&path.display().to_string(), &object);
    if drawn.done < drawn.total {
        console.note(&format!("stopped: {} of {} pictures are in the grid", drawn.done, drawn.total));
        return Err(Error::Cancelled);
    }
    Ok(())
}

/// Writes a picture under the next number. Of two runs into one folder, neither writes over the other's pictures.
fn save_numbered(folder: &Path, ending: &str, file: &[u8]) -> Result<PathBuf> {
    let mut number = next_number(folder);
    loop {
        let path = folder.join(format!("{number:05}-{ending}"));
        if files::write_new(&path, file)? {
            return Ok(path);
        }
        number += 1;
    }
}

/// One above the highest number in use.
fn next_number(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|e| e.file_name().into_string().ok());
    let numbers = names.filter_map(|n| n.split_once('-')?.0.parse::<u32>().ok());
    numbers.max().map_or(1, |n| u64::from(n) + 1)
}

fn parse_size(text: &str) -> Result<(usize, usize)> {
    let side = |s: &str| s.trim().parse::<usize>().ok().filter(|side| (1..=MAX_SIDE_PX).contains(side));
    let (width, height) = text.split_once(['x', 'X', '*', '×']).unwrap_or((text, text));
    match (side(width), side(height)) {
        (Some(width), Some(height)) => Ok((width, height)),
        _ => Err(Error::invalid(format!(
            "expected a size such as 512x512, sides from 1 to {MAX_SIDE_PX}, found `{text}`"
        ))),
    }
}
