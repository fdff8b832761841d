//! One direction of imports: a module uses only modules above it in `src/lib.rs`.
//!
//! Read from the sources: every `crate::name` in code (not in comments, strings or tests).

use std::fs;
use std::path::{Path, PathBuf};

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules that `source` names, each with the number of its line. `tests` modules at the end
/// of a file may use what they like.
fn uses(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let code = source.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    for (line, text) in (1..).zip(code.lines()) {
        let text = text.split("//").next().unwrap_or_default();
        for part in text.split("crate::").skip(1) {
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            let name: String = part.chars().take_while(|c| is_name(*c)).collect();
            // A group would hide names from this test.
            assert!(
                !name.is_empty(),
                "line {line}: write one `use crate::module` a module: {text}"
            );
            found.push((line, name));
        }
    }
    found
}

#[test]
fn the_reader_of_imports_sees_them() {
    let source = "//! crate::a\nuse crate::b::{C, d};\nfn f() -> crate::e::F {} // crate::g\n\n\
                  #[cfg(test)]\nmod tests {\nuse crate::h;";
    assert_eq!(uses(source), [(2, "b".to_owned()), (3, "e".to_owned())]);
}

#[test]
fn a_module_uses_only_modules_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let order: Vec<String> = fs::read_to_string(root.join("lib.rs"))
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';').map(str::to_owned))
        .collect();
    assert!(order.len() > 10, "{order:?}");
    let place = |name: &str| order.iter().position(|known| known == name);
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        let first = inside.iter().next().unwrap().to_str().unwrap();
        // `main.rs`, `commands` and `lib.rs` stand below everything.
        let Some(own) = place(first.trim_end_matches(".rs")) else { continue };
        for (line, name) in uses(&fs::read_to_string(&file).unwrap()) {
            let used = place(&name);
            if used.is_none_or(|used| used > own) {
                wrong.push(format!("{}:{line} uses {name}", inside.display()));
            }
        }
    }
    assert_eq!(wrong, [""; 0], "these modules use what is not above them in src/lib.rs");
}
