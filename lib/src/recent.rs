//! What a sandbox has found out lately.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Entries that are kept at most.
pub(crate) const REMEMBERED: usize = 256;

/// The latest findings, by what they are about.
pub(crate) struct Recent<K, V = ()>(Mutex<VecDeque<(K, V)>>);

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PartialEq, V: Clone> Recent<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.lock().iter().find(|(known, _)| known == key).map(|(_, value)| value.clone())
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn remember(&self, key: K, value: V) {
        let mut recent = self.lock();
        if !recent.iter().any(|(known, _)| *known == key) {
            recent.push_front((key, value));
            recent.truncate(REMEMBERED);
        }
    }

    pub(crate) fn forget(&self, key: &K) {
        self.lock().retain(|(known, _)| known != key);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(K, V)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered() {
        let recent = Recent::default();
        for number in 0..=REMEMBERED {
            recent.remember(number, number.to_string());
        }
        assert_eq!((recent.get(&0), recent.get(&1)), (None, Some("1".to_owned())));
        assert_eq!(recent.lock().len(), REMEMBERED);
        recent.forget(&1);
        assert!(!recent.contains(&1) && recent.contains(&2));
    }
}
