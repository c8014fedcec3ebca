//! Resolving a container's user: image `USER`, CRI's runAsUser and friends against the image's own
//! `/etc/passwd` and `/etc/group` (formats: `passwd(5)`, `group(5)`). Pure.

use serde::{Deserialize, Serialize};

/// Who a program should run as, before the image's files are read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRequest {
    /// `user` or `user:group`, names or numbers; empty means root.
    pub user: String,
    /// Primary group that overrides all else.
    pub group: Option<u32>,
    /// Groups to add.
    pub supplemental: Vec<u32>,
    /// Take no groups from the image (CRI's `SupplementalGroupsPolicy.Strict`).
    pub strict: bool,
}

/// Who a program runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Why a user could not be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// A name without an entry in the image's `/etc/passwd`.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// A name without an entry in the image's `/etc/group`.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(PasswdEntry { name, uid, gid, home })
    })
}

fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or("") })
    })
}

/// Resolves `request` with the contents of the image's passwd and group files (empty when absent).
///
/// A number needs no entry; a user known to passwd brings its primary group, its home and the groups it is
/// listed in. An entry found by name wins over the same text read as a number.
///
/// # Errors
/// A name that the files do not know.
pub fn resolve(request: &UserRequest, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user_part, group_part) = match request.user.split_once(':') {
        Some((u, g)) => (u, Some(g).filter(|g| !g.is_empty())),
        None => (request.user.as_str(), None),
    };
    let user_part = if user_part.is_empty() { "0" } else { user_part };
    let number = user_part.parse::<u32>().ok();
    let entry = passwd_entries(passwd)
        .find(|e| e.name == user_part)
        .or_else(|| number.and_then(|n| passwd_entries(passwd).find(|e| e.uid == n)));
    let uid = match (&entry, number) {
        (Some(e), _) => e.uid,
        (None, Some(n)) => n,
        (None, None) => return Err(UserError::UnknownUser(user_part.to_owned())),
    };
    let gid = match (request.group, group_part) {
        (Some(gid), _) => gid,
        (None, Some(name)) => match group_entries(group).find(|e| e.name == name) {
            Some(e) => e.gid,
            None => name.parse().map_err(|_| UserError::UnknownGroup(name.to_owned()))?,
        },
        (None, None) => entry.as_ref().map_or(0, |e| e.gid),
    };
    let mut groups = vec![gid];
    if !request.strict
        && let Some(e) = &entry
    {
        groups.extend(
            group_entries(group).filter(|g| g.members.split(',').any(|m| m.trim() == e.name)).map(|g| g.gid),
        );
    }
    groups.extend(&request.supplemental);
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|g| seen.insert(*g));
    let home = entry.map(|e| e.home).filter(|h| !h.is_empty()).unwrap_or("/").to_owned();
    Ok(User { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# c\nweb:x:1000:2000::/srv:/bin/sh\nbad:x:y:z\n5:x:77:78::/n:\n";
    const GROUP: &str = "root:x:0:\nweb:x:2000:\nlog:x:3000:web,other\nadm:x:3001:other, web\n";

    fn request(user: &str) -> UserRequest {
        UserRequest { user: user.into(), ..UserRequest::default() }
    }

    #[test]
    fn table() {
        type Case = (&'static str, Result<(u32, u32, Vec<u32>, &'static str), UserError>);
        let cases: &[Case] = &[
            ("", Ok((0, 0, vec![0], "/root"))),
            ("web", Ok((1000, 2000, vec![2000, 3000, 3001], "/srv"))),
            ("1000", Ok((1000, 2000, vec![2000, 3000, 3001], "/srv"))),
            ("1000:log", Ok((1000, 3000, vec![3000, 3001], "/srv"))),
            ("4242", Ok((4242, 0, vec![0], "/"))),
            ("4242:9", Ok((4242, 9, vec![9], "/"))),
            ("5", Ok((77, 78, vec![78], "/n"))),
            ("nobody", Err(UserError::UnknownUser("nobody".into()))),
            ("web:staff", Err(UserError::UnknownGroup("staff".into()))),
        ];
        for (user, want) in cases {
            let got = resolve(&request(user), PASSWD, GROUP);
            let want =
                want.clone().map(|(uid, gid, groups, home)| User { uid, gid, groups, home: home.into() });
            assert_eq!(got, want, "user {user:?}");
        }
    }

    #[test]
    fn groups_given_are_added_or_replace() {
        let mut r = request("web");
        r.supplemental = vec![3000, 9];
        assert_eq!(resolve(&r, PASSWD, GROUP).map(|u| u.groups), Ok(vec![2000, 3000, 3001, 9]));
        r.strict = true;
        r.group = Some(8);
        assert_eq!(resolve(&r, PASSWD, GROUP).map(|u| u.groups), Ok(vec![8, 3000, 9]));
    }
}
