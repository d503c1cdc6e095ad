//! Token ids against transformers' CLIPTokenizer (`tests/golden/prompt/make_golden.py`).

use scumble::prompt::Tokenizer;
use serde_json::Value;

type TestResult = Result<(), Box<dyn std::error::Error>>;

#[test]
fn ids_equal_transformers() -> TestResult {
    let golden = golden()?;
    assert_eq!(check(&Tokenizer::openai()?, &golden["openai"])?, 500);
    Ok(())
}

#[test]
fn ids_of_a_vocabulary_with_holes_equal_transformers() -> TestResult {
    let golden = golden()?;
    let vocab = golden["small_vocab"].to_string();
    let merges: Vec<&str> =
        golden["small_merges"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let merges = format!("#version: 0.2\n{}\n", merges.join("\n"));
    let tokenizer = Tokenizer::from_files(vocab.as_bytes(), merges.as_bytes(), None)?;
    assert_eq!(check(&tokenizer, &golden["small"])?, 125);
    Ok(())
}

#[test]
fn ids_of_the_embedded_model_equal_transformers() -> TestResult {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/sample-data/mini/tokenizer");
    let read = |name: &str| std::fs::read(format!("{folder}/{name}"));
    let config: Value = serde_json::from_slice(&read("tokenizer_config.json")?)?;
    let tokenizer = Tokenizer::from_files(&read("vocab.json")?, &read("merges.txt")?, Some(&config))?;
    assert_eq!(check(&tokenizer, &golden()?["mini"])?, 128);
    Ok(())
}

fn golden() -> Result<Value, serde_json::Error> {
    serde_json::from_str(include_str!("golden/prompt/tokens.json"))
}

/// How many texts were compared; every one that differs is listed.
fn check(tokenizer: &Tokenizer, rows: &Value) -> Result<usize, Box<dyn std::error::Error>> {
    let rows = rows.as_array().ok_or("rows")?;
    let mut wrong = Vec::new();
    for row in rows {
        let text = row["text"].as_str().ok_or("text")?;
        let expected: Vec<u32> = serde_json::from_value(row["ids"].clone())?;
        let found = tokenizer.encode(text)?;
        if found != expected {
            wrong.push(format!("{text:?}\n  expected {expected:?}\n  found    {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    Ok(rows.len())
}
