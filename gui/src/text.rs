//! Everything the window says, in one place, ready to be translated.
//!
//! What the library says (errors, hints, warnings) comes as it is.

#![allow(missing_docs, reason = "a text says itself")]

pub const TITLE: &str = "Scumble";

// Top
pub const TAB_DRAW: &str = "Draw";
pub const TAB_TRAIN: &str = "Train";
pub const MODEL: &str = "Model";
pub const MODEL_BUILT_IN: &str = "mini (built in)";
pub const MODEL_NAME: &str = "Hub id or path";
pub const MODEL_NAME_HINT: &str = "sd15, sdxl, owner/name, …";
pub const MODEL_OPEN: &str = "Open";
pub const MODEL_FOLDER: &str = "Folder…";
pub const MODEL_FILE: &str = "File…";
pub const THEME: &str = "Theme";
pub const THEME_SYSTEM: &str = "As the system";
pub const THEME_LIGHT: &str = "Light";
pub const THEME_DARK: &str = "Dark";
pub const HELP: &str = "Keys";

// A path that is typed
pub const PATH: &str = "Path";
pub const PATH_HINT: &str =
    "This system has no file dialog to show. Type or paste a path, or drop things onto the window.";
pub const PATH_GO: &str = "Use it";
pub const PATH_STYLE: &str = "A style's file (.safetensors)";
pub const PATH_START: &str = "A picture to start from";
pub const PATH_MODEL_FILE: &str = "A model's file (.safetensors)";
pub const PATH_MODEL_FOLDER: &str = "A model's folder";
pub const PATH_SAVE: &str = "Save the picture as";
pub const PATH_EXPORT: &str = "Save the blend as";
pub const PATH_LIBRARY: &str = "A folder of styles";
pub const PATH_TRAIN: &str = "A folder of pictures to train on";

// Generate
pub const PROMPT: &str = "Prompt";
pub const PROMPT_HINT: &str = "cat, flat icon, blue background";
pub const NEGATIVE: &str = "Negative prompt";
pub const NEGATIVE_HINT: &str = "What to keep out";
pub const SAMPLER: &str = "Sampler";
pub const SCHEDULE: &str = "Schedule";
pub const STEPS: &str = "Steps";
pub const GUIDANCE: &str = "Guidance";
pub const WIDTH: &str = "Width";
pub const HEIGHT: &str = "Height";
pub const SEED: &str = "Seed";
pub const DICE: &str = "Dice";
pub const DICE_HINT: &str = "Another seed, and draw";
pub const LOCK_SEED: &str = "Keep";
pub const LOCK_SEED_HINT: &str = "Generate draws the same noise again";
pub const COUNT: &str = "Pictures";
pub const GENERATE: &str = "Generate";
pub const CANCEL: &str = "Cancel";
pub const LIVE: &str = "Draw while I change things";
pub const OWN: &str = "The model's own";

// Start and second pass
pub const START: &str = "Start from";
pub const START_CHOOSE: &str = "Start from a picture…";
pub const START_HINT: &str =
    "Draw over a picture instead of noise. Pictures dropped onto the window do the same.";
pub const START_REMOVE: &str = "Start from noise";
pub const START_THIS: &str = "Use as start";
pub const START_THIS_HINT: &str = "Draw over this picture";
pub const START_DRAWN: &str = "drawn, seed ";
pub const START_LOST: &str = "this picture was drawn over another one, which is not here: it will differ";
pub const START_LOST_HINT: &str = "drop that picture onto the window";
pub const STRENGTH: &str = "Strength";
pub const STRENGTH_BEFORE: &str = "strength ";
pub const STRENGTH_HINT: &str = "How much is drawn anew: 0 keeps the picture as it is, 1 keeps nothing of it. About 0.3 changes the style, 0.75 the content too.";
pub const HIRES: &str = "Second pass (hires)";
pub const HIRES_ON: &str = "Enlarge and draw again";
pub const HIRES_HINT: &str =
    "Draws at the size above, enlarges, and draws that again in part: large pictures keep their composition";
pub const HIRES_SCALE: &str = "Times as large";
pub const HIRES_STRENGTH: &str = "Drawn again";
pub const HIRES_STEPS: &str = "Steps of the second pass";
pub const HIRES_SAME: &str = "the same";
pub const HIRES_NOT: &str = "A picture to start from is enlarged to the size itself";

// Grid
pub const GRID: &str = "Grid…";
pub const GRID_HINT: &str = "Many pictures as one, with labels: weights, steps, seeds or styles side by side";
pub const GRID_TITLE: &str = "A grid of pictures";
pub const GRID_SIDES: [&str; 2] = ["From left to right", "From top to bottom"];
pub const GRID_VALUES: [&str; 2] = ["Values from left to right", "Values from top to bottom"];
pub const GRID_OF: &str = "Grid: ";
pub const GRID_GO: &str = "Draw the grid";

// Queue
pub const QUEUE: &str = "Queue";
pub const QUEUE_RUNS: &str = "now";
pub const QUEUE_WAITS: &str = "waits";

// Canvas
pub const EMPTY_PICTURE: &str = "Your picture appears here";
pub const PICTURE: &str = "Picture";
pub const COMPARE: &str = "Compare";
pub const COMPARE_BASE: &str = "base";
pub const COMPARE_BLEND: &str = "blend";
pub const DIVIDER: &str = "Divider between base and blend";
pub const COPY: &str = "Copy";
pub const SAVE: &str = "Save…";
pub const HISTORY: &str = "History";
pub const HISTORY_EMPTY: &str = "What you draw is kept here. A click brings everything back.";
pub const HISTORY_HINT: &str = "A click brings everything back; right-click or Delete takes it out";
pub const HISTORY_REMOVE: &str = "Take out of the history";
pub const HISTORY_BROKEN_HINT: &str = "the others are there; that file was left where it is";

// Blend
pub const STYLES: &str = "Styles";
pub const ADD_STYLE: &str = "Add…";
pub const LIBRARY: &str = "Library…";
pub const EXPORT: &str = "Export blend…";
pub const NO_STYLES: &str = "No styles: the base model alone. Drop adapter files onto the window.";
pub const WEIGHT: &str = "weight";
pub const WEIGHT_UNET: &str = "picture";
pub const WEIGHT_TEXT: &str = "text";
pub const SPLIT: &str = "Split";
pub const SPLIT_HINT: &str = "One weight for the picture's network, one for the text's";
pub const SOLO: &str = "Solo";
pub const REMOVE: &str = "Remove";
pub const ON: &str = "on";
pub const COVER: &str = "Preview of";
pub const ADD_TRIGGER: &str = "Add to the prompt";
pub const PAD: &str = "Mixing pad";
pub const PAD_HINT: &str =
    "Drag the point, or move it with the arrows: the nearer to a style, the more of it";
pub const METER: &str = "Overcooked?";
pub const METER_NONE: &str = "nothing is changed";
pub const METER_FINE: &str = "within what the styles were made for";
pub const METER_MUCH: &str = "more than the styles were made for";
pub const NORMALIZE: &str = "Keep in bounds";
pub const NORMALIZE_HINT: &str = "Keeps styles that pull the same way from adding up";
pub const BLOCKS: &str = "Blocks";
pub const BLOCKS_HINT: &str = "A factor for each block of the model";
pub const BLOCK: &str = "block";
pub const BLOCKS_WAIT: &str = "They appear when the model is open.";
pub const BLOCKS_KEPT: &str = "Kept for models that have them:";
pub const BLOCKS_BACK: &str = "Double click: 1";
pub const RESET: &str = "Reset";
pub const STEPS_OF: &str = "Steps";
pub const STEPS_OF_HINT: &str = "The weight over the steps of a picture";
pub const STEPS_TEXT_HINT: &str = "The text's weight over the steps";
pub const STEPS_CONSTANT: &str = "Constant";
pub const STEPS_IN: &str = "Fade in";
pub const STEPS_OUT: &str = "Fade out";
pub const STEPS_FIRST: &str = "First half";
pub const STEPS_SECOND: &str = "Second half";
pub const STEPS_CURVE: &str = "curve";
pub const STEPS_CURVE_TEXT: &str = "text curve";
pub const STEPS_HINT: &str =
    "Double-click adds a point, right-click or Delete takes one away. Keys: Insert adds one, arrows move it.";
pub const STEPS_POINT: &str = "point";
pub const STEPS_OF_THE_STEPS: &str = "% of the steps";
pub const STEPS_TIMES: &str = "× the weight";
pub const PLACE: &str = "Where";
pub const PLACE_HINT: &str = "The part of the picture it acts in";
pub const PLACE_EVERYWHERE: &str = "Everywhere";
pub const PLACE_LEFT: &str = "Left";
pub const PLACE_RIGHT: &str = "Right";
pub const PLACE_TOP: &str = "Top";
pub const PLACE_BOTTOM: &str = "Bottom";
pub const PLACE_PAINTED: &str = "Painted";
pub const PAINT: &str = "Paint on the picture";
pub const PAINT_DONE: &str = "Done";
pub const PAINT_BRUSH: &str = "Brush";
pub const PAINT_ERASE: &str = "Erase";
pub const PAINT_SIZE: &str = "size";
pub const PAINT_SOFT: &str = "soft";
pub const PAINT_CLEAR: &str = "Clear";
pub const PAINT_INVERT: &str = "Invert";
pub const PAINT_NOTHING: &str = "Nothing is painted yet: it acts everywhere.";
pub const MASK_OF: &str = "Mask of";

// Library
pub const LIBRARY_TITLE: &str = "Library";
pub const LIBRARY_FOLDER: &str = "Choose a folder…";
pub const LIBRARY_SEARCH: &str = "Search";
pub const LIBRARY_EMPTY: &str = "Choose a folder of adapters; those inside it are looked through too.";
pub const LIBRARY_NOTHING: &str = "Nothing matches.";
pub const ADD: &str = "Add";
pub const CLOSE: &str = "Close";

// Export
pub const EXPORT_TITLE: &str = "Export this blend";
pub const EXPORT_EXACT: &str = "Exact: the ranks add up";
pub const EXPORT_RANK: &str = "Smaller: the nearest of a rank";
pub const RANK: &str = "Rank";
pub const EXPORT_GO: &str = "Choose a file…";
pub const EXPORT_CHANGES: &str = "changes over the steps or with the place: a file cannot hold that";

// Train
pub const TRAIN_FOLDER: &str = "Pictures";
pub const TRAIN_CHOOSE: &str = "Choose a folder…";
pub const TRAIN_EMPTY: &str =
    "Choose a folder of 15 to 200 pictures in the style you want, or drop one here.";
pub const TRAIN_LOOKING: &str = "Looking at the pictures…";
pub const TRAIN_SIZES: &str = "pictures, trained at";
pub const TRAIN_FILE: &str = "its file is";
pub const TRAIN_NAME: &str = "Name of the style";
pub const TRAIN_STEPS: &str = "Steps";
pub const TRAIN_RANK: &str = "Rank";
pub const TRAIN_RATE: &str = "Learning rate";
pub const TRAIN_BATCH: &str = "Pictures at once";
pub const TRAIN_TRIGGER: &str = "Trigger word";
pub const TRAIN_MORE: &str = "More options";
pub const TRAIN_ALL_LAYERS: &str = "Every kind of layer";
pub const TRAIN_ALL_LAYERS_HINT: &str = "Attention alone is enough for large models; small ones need all";
pub const TRAIN_TEXT: &str = "Train the text encoder, too";
pub const TRAIN_FLIP: &str = "Mirror pictures at random";
pub const TRAIN_CHECKPOINTING: &str = "Save memory, compute longer";
pub const TRAIN_SEED: &str = "Seed of the training";
pub const TRAIN_PREVIEW: &str = "Preview every";
pub const TRAIN_PREVIEW_PROMPT: &str = "Preview prompt";
pub const TRAIN_OUT: &str = "Saved as";
pub const TRAIN_START: &str = "Start training";
pub const TRAIN_PAUSE: &str = "Pause";
pub const TRAIN_RESUME: &str = "Resume";
pub const TRAIN_STOP: &str = "Stop and use it";
pub const TRAIN_CAPTION: &str = "Caption of";
pub const TRAIN_LOSS: &str = "Loss";
pub const TRAIN_NO_LOSS: &str = "It is drawn here as it falls.";
pub const TRAIN_PREVIEWS: &str = "Previews";
pub const TRAIN_NOTHING_WRONG: &str = "Nothing to complain about.";
pub const TRAIN_WAITS: &str = "Drawing waits while a style is trained.";

// Closing
pub const CLOSING_TITLE: &str = "A style is being trained";
pub const CLOSING_TEXT: &str =
    "Closing stops it after this step. What was learned is kept, and you can resume it later.";
pub const CLOSING_STOP: &str = "Stop and close";
pub const CLOSING_STAY: &str = "Keep training";

// Problems
pub const COPY_MESSAGE: &str = "Copy message";
pub const DISMISS: &str = "Dismiss";
pub const WENT_WRONG: &str = "That did not work";
pub const NOTE: &str = "Note";
pub const CRASHED: &str = "Scumble made a mistake";
pub const CRASHED_TEXT: &str = "A report was written: version, system, and where in the program it was. Nothing of yours is in it: no prompts, no pictures, no names of files. Put it into an issue, and it can be mended.";
pub const CRASHED_COPY: &str = "Copy report";
pub const CRASHED_REMOVE: &str = "Remove";
pub const CRASHED_LATER: &str = "Not now";

/// `1 picture`, `2 pictures`.
pub fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Keys and what they do.
pub const KEYS: [(&str, &str); 13] = [
    ("Ctrl+Enter", "draw, or start the training"),
    ("Esc", "cancel; close what is open"),
    ("Ctrl+R", "another seed, and draw"),
    ("Ctrl+D", "compare with the base model"),
    ("Ctrl+S", "save the picture"),
    ("Ctrl+Shift+C", "copy the picture"),
    ("Ctrl+O", "add styles from files"),
    ("Ctrl+L", "the library"),
    ("Ctrl+E", "export the blend"),
    ("Ctrl+1  Ctrl+2", "draw, train"),
    ("Tab  arrows", "to the next control; change a slider"),
    ("F1", "this list"),
    ("Ctrl+Q", "close"),
];
