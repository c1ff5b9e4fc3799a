//! What somebody probably meant who wrote something else.

/// What to advise instead of `given`: the nearest of `known`, or all of them.
pub fn suggestion(list: &str, given: &str, known: &[&str]) -> String {
    let lower = given.to_lowercase();
    let nearest = known.iter().map(|name| (edit_distance(&lower, name), name)).min();
    let all = format!("{list} {}", known.join(", "));
    match nearest {
        Some((distance, name)) if distance <= 1 + name.len() / 4 => format!("did you mean {name}? {all}"),
        _ => all,
    }
}

/// Letters to insert, remove, replace or swap with their neighbour to make `a` into `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    // Names are short; what is far longer than any of them is far from all of them.
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, distance) in
            [("", "", 0), ("ram", "rma", 1), ("size", "sise", 1), ("", "abc", 3), ("fil", "file", 1)]
        {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }
}
