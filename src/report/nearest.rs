//! What the operator probably meant.

/// What was probably meant: the known word nearest to this one, if any is near.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |candidate: &&str| edit_distance(&word.to_lowercase(), candidate);
    let best = known.iter().copied().min_by_key(distance)?;
    (distance(&best) <= word.chars().count().max(3) / 3).then_some(best)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words.
fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_what_is_near_and_nothing_else() {
        assert_eq!(nearest("intervall", &["interval", "top"]), Some("interval"));
        assert_eq!(nearest("tpo", &["interval", "top"]), Some("top"));
        assert_eq!(nearest("banana", &["interval", "top"]), None);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
