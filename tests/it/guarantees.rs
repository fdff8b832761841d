//! `docs/guarantees.md` names every row of the fault matrix, and tests that exist: read from the
//! sources, so that it cannot say what nobody tries.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rows of one node, and those of rights and abuse; what is between is about several nodes.
fn expected() -> Vec<u32> {
    (1..=67).chain(79..=90).collect()
}

/// In front of a reason, in place of tests.
const NOT_TESTABLE: &str = "not testable here: ";

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "node_modules") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names of functions that an attribute makes a test.
fn tests_in(source: &str) -> Vec<String> {
    let (mut found, mut is_test) = (Vec::new(), false);
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ") {
            let name = rest.split(['(', '<']).next().unwrap();
            if std::mem::take(&mut is_test) {
                found.push(name.to_owned());
            }
        }
    }
    found
}

/// A row's number and what its last cell says: names of tests, or else why there are none.
fn row(line: &str) -> Option<(u32, Result<Vec<&str>, &str>)> {
    let cells: Vec<_> = line.strip_prefix("| F")?.strip_suffix(" |")?.split(" | ").collect();
    let [number, fault, happens, tests] = cells[..] else { panic!("four cells: {line}") };
    assert!(!fault.is_empty() && !happens.is_empty(), "{line}");
    let number = number.parse().unwrap_or_else(|_| panic!("a number: {line}"));
    if let Some(reason) = tests.strip_prefix(NOT_TESTABLE) {
        assert!(!reason.is_empty(), "{line}");
        return Some((number, Err(reason)));
    }
    let names: Vec<_> = tests
        .split(' ')
        .map(|name| {
            let name = name.strip_prefix('`').and_then(|name| name.strip_suffix('`'));
            name.unwrap_or_else(|| {
                panic!("names of tests in backticks, or `{NOT_TESTABLE}`: {line}")
            })
        })
        .collect();
    Some((number, Ok(names)))
}

/// The rows that a test's name begins with: 3 and 17 of `f03_f17_what_it_shows`.
fn rows_of(name: &str) -> Vec<u32> {
    let number = |part: &str| {
        let digits = part.strip_prefix('f').filter(|digits| digits.len() == 2)?;
        digits.parse().ok()
    };
    name.split('_').map_while(number).collect()
}

#[test]
fn tables_and_tests_are_read_as_they_are_written() {
    assert_eq!(row("| F07 | a | b | `c_d` `e` |"), Some((7, Ok(vec!["c_d", "e"]))));
    assert_eq!(row("| F08 | a | b | not testable here: no c |"), Some((8, Err("no c"))));
    assert_eq!(row("| row | fault |"), None);
    assert_eq!(rows_of("f16_f17_a_server"), [16, 17]);
    assert!(rows_of("f_list_f03").is_empty());
    let source = "#[tokio::test(flavor = \"x\")]\nasync fn a() {\n}\nfn b() {}\n    #[test]\n    fn c(d in e) {";
    assert_eq!(tests_in(source), ["a", "c"]);
}

#[test]
fn the_table_of_faults_is_whole_and_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for directory in ["src", "tests/it"] {
        sources(&root.join(directory), &mut files);
    }
    let tests: BTreeSet<String> =
        files.iter().flat_map(|file| tests_in(&fs::read_to_string(file).unwrap())).collect();
    assert!(tests.len() > 500, "{}", tests.len());

    let page = fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let rows: Vec<_> = page.lines().filter_map(row).collect();
    let numbers: Vec<u32> = rows.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, expected(), "every row, once, in order");

    let mut wrong = Vec::new();
    let mut named: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (number, shown) in &rows {
        for name in shown.as_deref().unwrap_or_default() {
            named.entry(name).or_default().push(*number);
            if !tests.contains(*name) {
                wrong.push(format!("F{number:02} names {name}, which is no test"));
            }
        }
    }
    for name in &tests {
        for number in rows_of(name) {
            if !named.get(&**name).is_some_and(|rows| rows.contains(&number)) {
                wrong.push(format!("F{number:02} does not name {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "docs/guarantees.md:\n{}", wrong.join("\n"));
}
