//! Which of some names was perhaps meant.
//!
//! In:     a name that there is not, names that there are.
//! Out:    the one most like it, if one is like it.
//! Never:  the name itself.

/// Characters of a name that are compared: as long as Postgres keeps one.
const CHARACTERS_MAX: usize = 63;

/// The candidate with the least number of changes, if less than half of the longer name changes.
pub(in crate::rest) fn closest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let name: Vec<char> = name.chars().take(CHARACTERS_MAX + 1).collect();
    if name.len() > CHARACTERS_MAX {
        return None;
    }
    let near = candidates.filter_map(|candidate| {
        let characters: Vec<char> = candidate.chars().take(CHARACTERS_MAX).collect();
        let distance = distance(&name, &characters);
        let is_like = distance > 0 && distance * 2 < name.len().max(characters.len());
        is_like.then_some((distance, candidate))
    });
    // By name among equals, so that the same question has the same answer.
    near.min().map(|(_, candidate)| candidate)
}

/// Levenshtein's: characters inserted, removed or replaced.
fn distance(one: &[char], other: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, character) in one.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, candidate) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(character != candidate);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, expected: Option<&str>) {
        assert_eq!(closest(name, ["directors", "roles", "actors", "doors"].into_iter()), expected);
    }

    #[test]
    fn a_name_with_a_slip_is_recognised() {
        check("role", Some("roles"));
        check("director", Some("directors"));
        check("acotrs", Some("actors"));
    }

    #[test]
    fn the_name_itself_and_other_names_are_not() {
        check("roles", None);
        check("noclosealternative", None);
        check("", None);
        check(&"a".repeat(100_000), None);
    }
}
