//! A bound on what is remembered of subjects that have gone silent. A round is one tick; rounds begin with 1.

/// The last round that is to be forgotten, so that the `kept` most recent of `last_seen` stay. 0 where all may stay.
pub(crate) fn forget_until(mut last_seen: Vec<u64>, kept: usize) -> u64 {
    if last_seen.len() <= kept {
        return 0;
    }
    let (_, &mut latest, _) = last_seen.select_nth_unstable_by(kept, |a, b| b.cmp(a));
    latest
}

#[cfg(test)]
mod tests {
    use super::forget_until;

    #[test]
    fn the_most_recent_stay() {
        assert_eq!(forget_until(vec![5, 1, 9], 3), 0);
        assert_eq!(forget_until(vec![5, 1, 9], 2), 1);
        assert_eq!(forget_until(vec![5, 1, 9], 0), 9);
    }
}
