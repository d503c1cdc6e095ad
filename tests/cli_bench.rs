//! `scumble bench` as a user runs it.

use assert_cmd::Command;

fn scumble(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("scumble").expect("built");
    command.arg("bench").args(args);
    command
}

#[test]
fn each_row_is_measured_in_a_process_of_its_own() {
    let args =
        ["--model", "mini", "--task", "unet,train", "--size", "32", "--runs", "2", "--rank", "3", "--json"];
    let out = scumble(&args).assert().success().get_output().stdout.clone();
    let rows: Vec<serde_json::Value> = String::from_utf8(out)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(rows.len(), 2);
    for (row, (task, rank)) in rows.iter().zip([("unet", None), ("train", Some(3))]) {
        assert_eq!(row["rank"].as_u64(), rank, "{row}");
        assert_eq!((row["task"].as_str(), row["size"].as_u64()), (Some(task), Some(32)));
        assert_eq!(row["runs"].as_array().map(Vec::len), Some(2));
        assert!(row["gflop"].as_f64().is_some_and(|g| g > 0.0), "{row}");
    }
}

#[test]
fn a_higher_rank_is_more_arithmetic() {
    let gflop = |rank: &str| {
        let args =
            ["--model", "mini", "--task", "train", "--size", "32", "--runs", "1", "--json", "--rank", rank];
        let out = scumble(&args).assert().success().get_output().stdout.clone();
        let row: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        row["gflop"].as_f64().expect("a number")
    };
    assert!(gflop("64") > gflop("1"));
    let none = scumble(&["--model", "mini", "--task", "train", "--rank", "0"]).assert().failure();
    assert!(String::from_utf8_lossy(&none.get_output().stderr).contains("`--rank` must be at least 1"));
}

#[test]
fn a_row_that_fails_says_why_and_the_others_are_measured() {
    let args = ["--model", "mini", "--task", "unet,text", "--size", "32,33", "--runs", "1"];
    let assert = scumble(&args).assert().failure();
    let out = assert.get_output();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(stdout.lines().count(), 3, "a title and two rows: {stdout}");
    assert!(stderr.contains("size 33") && stderr.contains("multiples of"), "{stderr}");
    assert!(stderr.contains("2 of 4 could not be measured"), "{stderr}");
}

#[test]
fn an_unknown_task_is_named_with_the_nearest() {
    let assert = scumble(&["--task", "unett"]).assert().failure();
    assert!(String::from_utf8_lossy(&assert.get_output().stderr).contains("unet"));
}
