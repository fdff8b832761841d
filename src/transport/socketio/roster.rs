//! Who is there, by user: several connections of one are one.
//!
//! In:     connections of users that come and go.
//! Out:    whether they are the user's first or last; who is there, as JSON.
//! Never:  more users in one place than it may have; a user's own idea of who he is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

/// Lists of users, by names of their own.
#[derive(Debug, Default)]
pub(super) struct Rosters(Mutex<HashMap<Box<str>, Roster>>);

#[derive(Debug, Default)]
struct Roster {
    made: u64,
    users: HashMap<Box<str>, User>,
}

#[derive(Debug)]
struct User {
    /// Grows with each that comes.
    number: u64,
    connections: usize,
    /// JSON.
    shown: Arc<str>,
}

/// There are as many users as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Rosters {
    fn all(&self) -> MutexGuard<'_, HashMap<Box<str>, Roster>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more connection of a user, who is shown as this from now on; whether it is his first.
    ///
    /// # Errors
    /// He is not there, and `capacity` others are.
    pub(super) fn enter(
        &self,
        list: &str,
        user: &str,
        shown: Arc<str>,
        capacity: Option<usize>,
    ) -> Result<bool, Full> {
        let mut all = self.all();
        let roster = all.entry(list.into()).or_default();
        if let Some(known) = roster.users.get_mut(user) {
            known.connections += 1;
            known.shown = shown;
            return Ok(false);
        }
        if capacity.is_some_and(|capacity| roster.users.len() >= capacity) {
            return Err(Full);
        }
        roster.made += 1;
        let number = roster.made;
        roster.users.insert(user.into(), User { number, connections: 1, shown });
        Ok(true)
    }

    /// One connection less; whether it was the user's last.
    pub(super) fn leave(&self, list: &str, user: &str) -> bool {
        let mut all = self.all();
        let Some(roster) = all.get_mut(list) else { return false };
        let Some(known) = roster.users.get_mut(user) else { return false };
        known.connections -= 1;
        if known.connections > 0 {
            return false;
        }
        roster.users.remove(user);
        if roster.users.is_empty() {
            all.remove(list);
        }
        true
    }

    /// Shows a user as something else; whether he is there.
    pub(super) fn show(&self, list: &str, user: &str, shown: Arc<str>) -> bool {
        let mut all = self.all();
        let known = all.get_mut(list).and_then(|roster| roster.users.get_mut(user));
        known.map(|known| known.shown = shown).is_some()
    }

    /// Whoever is there, in the order in which they came: a JSON array.
    pub(super) fn users(&self, list: &str) -> String {
        let shown = {
            let all = self.all();
            let users = all.get(list).into_iter().flat_map(|roster| roster.users.values());
            let mut users: Vec<_> =
                users.map(|user| (user.number, Arc::clone(&user.shown))).collect();
            users.sort_unstable_by_key(|(number, _)| *number);
            users
        };
        let shown: Vec<&str> = shown.iter().map(|(_, shown)| &**shown).collect();
        format!("[{}]", shown.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_comes_with_the_first_connection_and_leaves_with_the_last() {
        let rosters = Rosters::default();
        let enter = |user: &str| rosters.enter("map", user, format!("\"{user}\"").into(), None);
        assert_eq!(enter("a"), Ok(true));
        assert_eq!(enter("b"), Ok(true));
        assert_eq!(enter("b"), Ok(false));
        assert_eq!(rosters.users("map"), r#"["a","b"]"#);
        assert!(!rosters.leave("map", "b"));
        assert!(rosters.leave("map", "b"));
        assert!(!rosters.leave("map", "b"));
        assert!(!rosters.leave("other", "a"));
        assert!(rosters.show("map", "a", "1".into()));
        assert!(!rosters.show("map", "b", "1".into()));
        assert_eq!(rosters.users("map"), "[1]");
        assert!(rosters.leave("map", "a"));
        assert!(rosters.all().is_empty());
        assert_eq!(rosters.users("map"), "[]");
    }

    #[test]
    fn a_full_place_takes_those_who_are_there() {
        let rosters = Rosters::default();
        let enter = |user: &str| rosters.enter("map", user, "1".into(), Some(1));
        assert_eq!(enter("a"), Ok(true));
        assert_eq!(enter("b"), Err(Full));
        assert_eq!(enter("a"), Ok(false));
        assert!(!rosters.leave("map", "a"));
        assert_eq!(enter("b"), Err(Full));
        assert!(rosters.leave("map", "a"));
        assert_eq!(enter("b"), Ok(true));
    }
}
