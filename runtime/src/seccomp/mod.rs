//! Seccomp filters: the runtime's default profile, profiles in the JSON form that Docker and the OCI runtime
//! specification share, and the compiler from a profile to classic BPF. Pure: a shim installs the result.
//!
//! The compiler sorts the calls into ranges and searches them as a binary tree, so a system call costs some
//! ten instructions however long the list is.

pub mod compile;
pub mod default;
pub mod syscalls;

use serde::Deserialize;

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It goes through.
    Allow,
    /// It fails with this errno.
    Errno(u16),
    /// The thread is killed.
    KillThread,
    /// The process is killed.
    KillProcess,
    /// It goes through and is logged.
    Log,
    /// SIGSYS.
    Trap,
    /// A tracer is told, with this number.
    Trace(u16),
}

/// A profile: what to do with each call, and with all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// For calls without a rule that matches.
    pub default: Action,
    /// Rules; of those for one call the first that matches wins.
    pub rules: Vec<Rule>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Call names; unknown ones are skipped.
    pub names: Vec<String>,
    /// What to do.
    pub action: Action,
    /// All must hold.
    pub conditions: Vec<Condition>,
}

/// A comparison of one argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Argument, 0 to 5.
    pub index: u8,
    /// How.
    pub operator: Operator,
    /// With what; for [`Operator::MaskedEqual`] the mask.
    pub value: u64,
    /// What the masked argument must be.
    pub value_two: u64,
}

/// Comparisons, unsigned, 64 bits wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `(argument & value) == value_two`
    MaskedEqual,
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not the JSON we know.
    #[error("seccomp profile: {0}")]
    Json(#[from] serde_json::Error),
    /// A word we do not know.
    #[error("seccomp profile: unknown {what} {word:?}")]
    Unknown {
        /// Kind of word.
        what: &'static str,
        /// The word.
        word: String,
    },
    /// An argument index above 5.
    #[error("seccomp profile: argument index {0} is above 5")]
    Index(u8),
    /// More instructions than the kernel takes.
    #[error("seccomp profile: {0} instructions are more than the kernel takes")]
    TooLong(usize),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonProfile {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<JsonRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonRule {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<JsonArg>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonArg {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

fn action(word: &str, errno: Option<u16>) -> Result<Action, ProfileError> {
    let errno = errno.unwrap_or(libc::EPERM as u16);
    Ok(match word {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_TRACE" => Action::Trace(errno),
        other => return Err(ProfileError::Unknown { what: "action", word: other.to_owned() }),
    })
}

impl Profile {
    /// Reads a profile file.
    ///
    /// # Errors
    /// [`ProfileError`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, ProfileError> {
        let json: JsonProfile = serde_json::from_slice(bytes)?;
        let mut flags = 0;
        for flag in &json.flags {
            flags |= match flag.as_str() {
                "SECCOMP_FILTER_FLAG_LOG" => libc::SECCOMP_FILTER_FLAG_LOG as u32,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
                // Our programs have one thread when the filter is installed.
                "SECCOMP_FILTER_FLAG_TSYNC" => 0,
                other => return Err(ProfileError::Unknown { what: "flag", word: other.to_owned() }),
            };
        }
        let rules = json.syscalls.into_iter().map(rule).collect::<Result<_, _>>()?;
        Ok(Self { default: action(&json.default_action, json.default_errno_ret)?, rules, flags })
    }
}

fn rule(json: JsonRule) -> Result<Rule, ProfileError> {
    let conditions = json.args.unwrap_or_default().into_iter().map(|a| {
        if a.index > 5 {
            return Err(ProfileError::Index(a.index));
        }
        let operator = match a.op.as_str() {
            "SCMP_CMP_EQ" => Operator::Equal,
            "SCMP_CMP_NE" => Operator::NotEqual,
            "SCMP_CMP_LT" => Operator::Less,
            "SCMP_CMP_LE" => Operator::LessOrEqual,
            "SCMP_CMP_GT" => Operator::Greater,
            "SCMP_CMP_GE" => Operator::GreaterOrEqual,
            "SCMP_CMP_MASKED_EQ" => Operator::MaskedEqual,
            other => return Err(ProfileError::Unknown { what: "operator", word: other.to_owned() }),
        };
        Ok(Condition { index: a.index, operator, value: a.value, value_two: a.value_two })
    });
    Ok(Rule {
        names: json.names,
        action: action(&json.action, json.errno_ret)?,
        conditions: conditions.collect::<Result<_, _>>()?,
    })
}
