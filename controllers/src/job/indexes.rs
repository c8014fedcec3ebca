//! Sets of completion indexes, as text (`1,3-5`) and as sets.

use std::collections::BTreeSet;

/// Reads a set. What cannot be read, or lies at or beyond `completions`, is left out.
pub fn parse(text: Option<&str>, completions: i32) -> BTreeSet<i32> {
    let mut set = BTreeSet::new();
    for part in text.unwrap_or_default().split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            set.extend(first.max(0)..=last.min(completions.saturating_sub(1)));
        }
    }
    set
}

/// Writes a set.
pub fn format(set: &BTreeSet<i32>) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut values = set.iter().copied().peekable();
    while let Some(first) = values.next() {
        let mut last = first;
        while let Some(next) = values.next_if(|n| *n == last + 1) {
            last = next;
        }
        parts.push(match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        });
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_as_kubernetes_writes_it() {
        let set: BTreeSet<i32> = [1, 3, 4, 5, 7, 8].into();
        assert_eq!(format(&set), "1,3-5,7,8");
        assert_eq!(parse(Some("1,3-5,x,7-"), 5), [1, 3, 4].into());
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(set in proptest::collection::btree_set(0..200i32, 0..60)) {
            prop_assert_eq!(parse(Some(&format(&set)), 200), set);
        }
    }
}
