//! What differs between two texts, as `diff -u` shows it: the lines that Python's difflib and its copies choose, which
//! is what kube-apiserver prints for fields that may not change.
//!
//! The longest run of equal lines is kept, then the longest on either side of it, and so on. In texts of 200 lines and
//! more a line that makes up over a hundredth of the new text begins no run.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;

/// Lines of context around a change.
const CONTEXT: usize = 3;

/// Texts longer than this are not compared: the search is quadratic in the worst case.
const MAX_LINES: usize = 10_000;

/// The differences, empty when there are none, else ending in a line break.
pub fn unified(old: &str, new: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (old.split('\n').collect(), new.split('\n').collect());
    if a.len().max(b.len()) > MAX_LINES {
        return "(too long to be compared line by line)\n".into();
    }
    let mut out = String::new();
    for group in groups(&changes(&a, &b)) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let range = |start, end| shown(start..end);
        let _ = writeln!(
            out,
            "@@ -{} +{} @@",
            range(first.old.start, last.old.end),
            range(first.new.start, last.new.end)
        );
        for block in group {
            let mut lines = |mark: char, lines: &[&str]| {
                for line in lines {
                    let _ = writeln!(out, "{mark}{line}");
                }
            };
            if block.equal {
                lines(' ', &a[block.old]);
            } else {
                lines('-', &a[block.old]);
                lines('+', &b[block.new]);
            }
        }
    }
    out
}

/// A range as the head of a group names it: first line and number of lines.
fn shown(range: Range<usize>) -> String {
    match range.len() {
        0 => format!("{},0", range.start),
        1 => format!("{}", range.start + 1),
        n => format!("{},{n}", range.start + 1),
    }
}

/// Lines of the old text and what stands for them in the new one.
#[derive(Debug, Clone)]
struct Block {
    equal: bool,
    old: Range<usize>,
    new: Range<usize>,
}

/// The whole of both texts as blocks, in order.
fn changes(a: &[&str], b: &[&str]) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut i, mut j) = (0, 0);
    let mut add = |equal, old: Range<usize>, new: Range<usize>| {
        if !old.is_empty() || !new.is_empty() {
            blocks.push(Block { equal, old, new });
        }
    };
    for run in runs(a, b) {
        add(false, i..run.old, j..run.new);
        add(true, run.old..run.old + run.len, run.new..run.new + run.len);
        (i, j) = (run.old + run.len, run.new + run.len);
    }
    add(false, i..a.len(), j..b.len());
    blocks
}

/// Blocks with changes and at most [`CONTEXT`] equal lines around them.
fn groups(blocks: &[Block]) -> Vec<Vec<Block>> {
    let mut groups = Vec::new();
    let mut group: Vec<Block> = Vec::new();
    for (i, block) in blocks.iter().enumerate() {
        if !block.equal {
            group.push(block.clone());
            continue;
        }
        let len = block.old.len();
        let part = |from: usize, to: usize| Block {
            equal: true,
            old: block.old.start + from..block.old.start + to,
            new: block.new.start + from..block.new.start + to,
        };
        let (first, last) = (i == 0, i + 1 == blocks.len());
        if first {
            group.push(part(len.saturating_sub(CONTEXT), len));
        } else if last {
            group.push(part(0, len.min(CONTEXT)));
        } else if len > 2 * CONTEXT {
            group.push(part(0, CONTEXT));
            groups.push(std::mem::take(&mut group));
            group.push(part(len - CONTEXT, len));
        } else {
            group.push(block.clone());
        }
    }
    groups.push(group);
    groups.retain(|g| g.iter().any(|b| !b.equal));
    groups
}

/// Equal lines, `len` of them from `old` and `new` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    old: usize,
    new: usize,
    len: usize,
}

/// The runs of equal lines that are kept, in order, neighbours joined.
fn runs(a: &[&str], b: &[&str]) -> Vec<Run> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (j, line) in b.iter().enumerate() {
        places.entry(line).or_default().push(j);
    }
    if b.len() >= 200 {
        let popular = b.len() / 100 + 1;
        places.retain(|_, at| at.len() <= popular);
    }
    let mut found = Vec::new();
    let mut todo = vec![(0..a.len(), 0..b.len())];
    while let Some((old, new)) = todo.pop() {
        let run = longest(a, b, &places, &old, &new);
        if run.len > 0 {
            todo.push((old.start..run.old, new.start..run.new));
            todo.push((run.old + run.len..old.end, run.new + run.len..new.end));
            found.push(run);
        }
    }
    found.sort_unstable();
    let mut joined: Vec<Run> = Vec::with_capacity(found.len());
    for run in found {
        match joined.last_mut() {
            Some(last) if last.old + last.len == run.old && last.new + last.len == run.new => {
                last.len += run.len;
            }
            _ => joined.push(run),
        }
    }
    joined
}

/// The longest run within the ranges, the earliest of equals; it grows over lines that begin none.
fn longest(
    a: &[&str],
    b: &[&str],
    places: &HashMap<&str, Vec<usize>>,
    old: &Range<usize>,
    new: &Range<usize>,
) -> Run {
    let mut best = Run { old: old.start, new: new.start, len: 0 };
    // Length of the run that ends at a line of the new text.
    let mut ending: HashMap<usize, usize> = HashMap::new();
    for i in old.clone() {
        let mut next = HashMap::new();
        let at = places.get(a[i]).map_or(&[][..], Vec::as_slice);
        let from = at.partition_point(|j| *j < new.start);
        for &j in at[from..].iter().take_while(|j| **j < new.end) {
            let len = 1 + j.checked_sub(1).and_then(|j| ending.get(&j)).copied().unwrap_or(0);
            next.insert(j, len);
            if len > best.len {
                best = Run { old: i + 1 - len, new: j + 1 - len, len };
            }
        }
        ending = next;
    }
    while best.old > old.start && best.new > new.start && a[best.old - 1] == b[best.new - 1] {
        best = Run { old: best.old - 1, new: best.new - 1, len: best.len + 1 };
    }
    while best.old + best.len < old.end
        && best.new + best.len < new.end
        && a[best.old + best.len] == b[best.new + best.len]
    {
        best.len += 1;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn changes_with_their_context() {
        let old = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk\nm";
        let new = "a\nb\nc\nd\nE\nf\ng\nh\ni\nj\nk\nm\nl";
        assert_eq!(
            unified(old, new),
            "@@ -2,7 +2,7 @@\n b\n c\n d\n-e\n+E\n f\n g\n h\n@@ -10,3 +10,4 @@\n j\n k\n m\n+l\n"
        );
        assert_eq!(unified("a", "a"), "");
        assert_eq!(unified("a", "b"), "@@ -1 +1 @@\n-a\n+b\n");
    }

    proptest! {
        /// What is printed leads from the one text to the other.
        #[test]
        fn a_difference_turns_old_into_new(
            old in prop::collection::vec("[a-c]", 0..40),
            new in prop::collection::vec("[a-c]", 0..40),
        ) {
            let (a, b): (Vec<&str>, Vec<&str>) =
                (old.iter().map(String::as_str).collect(), new.iter().map(String::as_str).collect());
            let mut made: Vec<&str> = Vec::new();
            let mut seen = 0;
            for block in changes(&a, &b) {
                prop_assert_eq!(block.old.start, seen);
                seen = block.old.end;
                prop_assert!(!block.equal || a[block.old.clone()] == b[block.new.clone()]);
                made.extend(if block.equal { &a[block.old] } else { &b[block.new] });
            }
            prop_assert_eq!(seen, a.len());
            prop_assert_eq!(made, b);
        }
    }
}
