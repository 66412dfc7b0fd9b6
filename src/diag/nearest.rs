//! Guessing what was meant.

/// The candidate with the fewest edits (insert, remove, replace, swap of neighbours) to `word`; the first of
/// several equals; `None` only without candidates. Cost: product of the lengths, capped at 64 characters.
pub fn nearest<S: AsRef<str>>(word: &str, candidates: impl IntoIterator<Item = S>) -> Option<S> {
    candidates.into_iter().min_by_key(|candidate| distance(word, candidate.as_ref()))
}

/// As [`nearest`], but only if it is near enough to be a slip of the finger.
pub fn near_enough<S: AsRef<str>>(word: &str, candidates: impl IntoIterator<Item = S>) -> Option<S> {
    let found = nearest(word, candidates)?;
    (distance(word, found.as_ref()) <= word.chars().count().min(9) / 3 + 1).then_some(found)
}

/// Optimal string alignment distance.
fn distance(a: &str, b: &str) -> usize {
    let a = a.chars().take(MAX_CHARS).collect::<Vec<_>>();
    let b = b.chars().take(MAX_CHARS).collect::<Vec<_>>();
    let mut before = Vec::<usize>::new();
    let mut last = (0..=b.len()).collect::<Vec<_>>();
    let cell = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX / 2);
    for (i, from) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(last.len());
        row.push(i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = cell(&last, j) + usize::from(from != to);
            let mut best = replaced.min(cell(&last, j + 1) + 1).min(cell(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(to) && b.get(j - 1) == Some(from);
            if swapped {
                best = best.min(cell(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

const MAX_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_strangers_are_not() {
        let keys = ["trust_domain", "data_dir", "entries_dir", "ttl"];
        assert_eq!(near_enough("trust-domain", keys), Some("trust_domain"));
        assert_eq!(near_enough("data_dri", keys), Some("data_dir"));
        assert_eq!(near_enough("tll", keys), Some("ttl"));
        assert_eq!(near_enough("colour", keys), None);
        assert_eq!(nearest("unix:uuid", ["unix:gid", "unix:uid"]), Some("unix:uid"));
        assert_eq!(distance("abcd", "abdc"), 1);
        assert_eq!(distance("", "abc"), 3);
    }
}
