//! What somebody else owns and an apply would change, and how the answer says so.

use std::collections::BTreeMap;

use super::managers::{Identity, Operation};
use super::path::Element;
use crate::status::{Status, StatusCause, StatusDetails};
use crate::text::quote;

/// One field that another manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub owner: Identity,
    pub path: Vec<Element>,
}

impl Conflict {
    fn shown(&self) -> String {
        self.path.iter().map(Element::to_string).collect()
    }
}

/// The owner as messages name it.
fn name(owner: &Identity) -> String {
    let mut out = quote(&owner.manager);
    if !owner.subresource.is_empty() {
        out.push_str(&format!(" with subresource {}", quote(&owner.subresource)));
    }
    if owner.operation == Operation::Update {
        out.push_str(&format!(" using {}", owner.version));
    }
    out
}

/// 409 with one cause per field.
pub fn status(conflicts: &[Conflict]) -> Status {
    let causes = conflicts.iter().map(|c| StatusCause {
        reason: "FieldManagerConflict".into(),
        message: format!("conflict with {}", name(&c.owner)),
        field: c.shown(),
    });
    let details = StatusDetails { causes: causes.collect(), ..StatusDetails::default() };
    let message = match conflicts {
        [one] => format!("Apply failed with 1 conflict: conflict with {}: {}", name(&one.owner), one.shown()),
        many => {
            let mut by_owner: BTreeMap<&Identity, Vec<String>> = BTreeMap::new();
            for conflict in many {
                by_owner.entry(&conflict.owner).or_default().push(format!("- {}", conflict.shown()));
            }
            let lines: Vec<String> = by_owner
                .into_iter()
                .flat_map(|(owner, paths)| {
                    std::iter::once(format!("conflicts with {}:", name(owner))).chain(paths)
                })
                .collect();
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    Status::failure(409, "Conflict", message).with_details(details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let path = |name: &str| vec![Element::field("data"), Element::field(name)];
        let one = Conflict { owner: Identity::new("one", Operation::Apply, "v1", ""), path: path("a") };
        let two =
            Conflict { owner: Identity::new("two", Operation::Update, "v1", "status"), path: path("b") };
        let got = status(std::slice::from_ref(&one));
        assert_eq!((got.code, got.reason.as_str()), (409, "Conflict"));
        assert_eq!(got.message, "Apply failed with 1 conflict: conflict with \"one\": .data.a");
        let got = status(&[one.clone(), Conflict { path: path("c"), ..one }, two]);
        assert_eq!(
            got.message,
            "Apply failed with 3 conflicts: conflicts with \"one\":\n- .data.a\n- .data.c\nconflicts with \"two\" with \
             subresource \"status\" using v1:\n- .data.b"
        );
        let causes = got.details.expect("details").causes;
        assert_eq!(causes[2].message, "conflict with \"two\" with subresource \"status\" using v1");
        assert_eq!(
            (causes[2].field.as_str(), causes[2].reason.as_str()),
            (".data.b", "FieldManagerConflict")
        );
    }
}
