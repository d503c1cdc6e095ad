//! From a request to pictures with their recipe.
pub mod infotext;
