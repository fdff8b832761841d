//! The fuzz targets without a fuzzer: each runs on its corpus and on mutations of it, the same ones
//! every time. `fuzz/README.md` says how to run them for longer, and for real.
//!
//! `WALCAST_FUZZ_SECONDS` makes each target run so long, with another seed each time;
//! `WALCAST_FUZZ_SEED` names one.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is a crate of its own in `fuzz`")]
mod targets;

/// Mutations of each input of a corpus, when nobody says for how long. All targets together take a
/// few seconds.
const MUTATIONS: usize = 150;

/// No test may take longer, whatever the machine is busy with.
const SECONDS_MAX: Duration = Duration::from_secs(2);

/// Bytes of an input.
const INPUT_BYTES_MAX: usize = 4096;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The inputs in the tree, in the order of their names.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = fuzz().join("corpus").join(target);
    let mut files: Vec<_> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let is_seed =
        |file: &PathBuf| file.extension().is_some_and(|kind| kind == "txt" || kind == "bin");
    files.iter().filter(|file| is_seed(file)).map(|file| fs::read(file).unwrap()).collect()
}

/// The words of a dictionary: one a line, between quotes, `\xNN` a byte.
fn words(target: &str) -> Vec<Vec<u8>> {
    let text = fs::read_to_string(fuzz().join(format!("{target}.dict"))).unwrap();
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| word(line).unwrap_or_else(|| panic!("{target}.dict: {line}"))).collect()
}

fn word(line: &str) -> Option<Vec<u8>> {
    let (_, quoted) = line.split_once('"')?;
    let mut rest = quoted.strip_suffix('"')?.bytes();
    let mut word = Vec::new();
    while let Some(byte) = rest.next() {
        word.push(match byte {
            b'\\' => match rest.next()? {
                b'x' => {
                    let digits = [rest.next()?, rest.next()?];
                    u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                }
                other @ (b'\\' | b'"') => other,
                _ => return None,
            },
            b'"' => return None,
            other => other,
        });
    }
    Some(word)
}

/// Changes an input in one to eight places.
fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[Vec<u8>], rng: &mut SmallRng) {
    for _ in 0..rng.random_range(1..=8) {
        let at = rng.random_range(0..=input.len());
        let end = rng.random_range(at..=input.len().min(at + 16));
        match rng.random_range(0..9) {
            0 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
            1 if at < input.len() => input[at] = rng.random(),
            2 if at < input.len() => {
                // A length that is nearly another.
                let by = rng.random_range(1..=4);
                let grow = rng.random();
                let byte = input[at];
                input[at] = if grow { byte.wrapping_add(by) } else { byte.wrapping_sub(by) };
            }
            3 => drop(input.drain(at..end)),
            4 => {
                let part = input[at..end].to_vec();
                input.splice(at..at, part);
            }
            5 => input.truncate(at),
            6 => {
                let byte = [rng.random()];
                input.splice(at..at, byte);
            }
            7 => {
                let other = corpus.choose(rng).unwrap();
                let from = rng.random_range(0..=other.len());
                let to = rng.random_range(from..=other.len().min(from + 64));
                input.splice(at..end, other[from..to].iter().copied());
            }
            _ => {
                if let Some(word) = words.choose(rng) {
                    input.splice(at..end, word.iter().copied());
                }
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

/// The input that failed is printed; kept in the corpus it is tried by every test from then on.
fn run(check: targets::Check, input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input))) {
        eprintln!("the input: b\"{}\"", input.escape_ascii());
        resume_unwind(panic);
    }
}

fn drive(target: &str) {
    let (_, check) = *targets::TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let (corpus, words) = (corpus(target), words(target));
    assert!(corpus.len() >= 3 && words.len() >= 5, "{target}");
    for input in &corpus {
        run(check, input);
    }
    let setting = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seconds = setting("WALCAST_FUZZ_SECONDS");
    let seed = setting("WALCAST_FUZZ_SEED").unwrap_or_else(|| match seconds {
        None => 1,
        Some(_) => SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs(),
    });
    let deadline = seconds.map_or(SECONDS_MAX, Duration::from_secs);
    let mut rng = SmallRng::seed_from_u64(seed);
    let (began, mut runs) = (Instant::now(), 0_u64);
    'all: for round in 0.. {
        if seconds.is_none() && round == MUTATIONS {
            break;
        }
        for input in &corpus {
            let mut input = input.clone();
            mutate(&mut input, &corpus, &words, &mut rng);
            run(check, &input);
            runs += 1;
            if began.elapsed() >= deadline {
                break 'all;
            }
        }
    }
    println!("{target}: {runs} runs, seed {seed}");
}

/// One test a target.
macro_rules! targets {
    ($($target:ident)+) => {
        const TESTED: &[&str] = &[$(stringify!($target)),+];
        $(#[test]
        fn $target() {
            drive(stringify!($target));
        })+
    };
}

targets! {
    broadcast_batch cursor events filter framing jwt origin pgoutput phoenix rest_body rest_headers rest_query
    socketio topic values
}

#[test]
fn every_target_is_tested_and_has_a_file() {
    let names: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, TESTED);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let mut files: Vec<_> = fs::read_dir(fuzz().join("fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    // It shares what it checks with a test of its own, `rest_statement.rs`.
    let names: Vec<&str> = files.iter().map(String::as_str).collect();
    let own: Vec<&str> = names.iter().copied().filter(|name| *name != "rest_statement").collect();
    assert_eq!(own, TESTED);
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
