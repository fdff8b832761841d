//! How many connections one user has.
//!
//! In:     the subject of each token that a connection's channels are joined with.
//! Out:    a place for the connection, or that the user has them all.
//! Never:  a count that outlives its connection.

use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;

/// The connections of each user of this process.
#[derive(Debug, Default)]
pub(super) struct Users {
    connections: Mutex<HashMap<Arc<str>, usize>>,
}

/// One connection of one user; dropping it gives it back.
#[derive(Debug)]
pub struct UserPlace {
    users: Arc<Users>,
    subject: Arc<str>,
}

impl Users {
    /// Counts one more connection of this user, unless there are `most`.
    pub(super) fn enter(self: &Arc<Self>, subject: &Arc<str>, most: usize) -> Option<UserPlace> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(Arc::clone(subject)).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(UserPlace { users: Arc::clone(self), subject: Arc::clone(subject) })
    }
}

impl UserPlace {
    pub(super) fn is_of(&self, subject: &str) -> bool {
        *self.subject == *subject
    }
}

impl Drop for UserPlace {
    fn drop(&mut self) {
        let mut connections = self.users.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.subject) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_places_and_gets_them_back() {
        let users = Arc::new(Users::default());
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = users.enter(&a, 2).unwrap();
        let _second = users.enter(&a, 2).unwrap();
        assert!(users.enter(&a, 2).is_none());
        assert!(users.enter(&b, 2).is_some());
        drop(first);
        assert!(users.enter(&a, 2).is_some());
        assert_eq!(users.connections.lock().unwrap().len(), 1);
    }
}
