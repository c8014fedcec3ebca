//! From a [`Profile`] to classic BPF (`Documentation/userspace-api/seccomp_filter.rst`). Pure.

use std::collections::BTreeMap;

use super::{Action, Condition, Operator, Profile, ProfileError, syscalls};
use crate::spec::SeccompProgram;

/// One instruction: code, jump if true, jump if false, operand.
type Code = (u16, u8, u8, u32);

// Opcodes (`linux/bpf_common.h`).
const LD_ABS: u16 = 0x20;
const AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Numbers from here up are the x32 ABI's.
const X32: u32 = 0x4000_0000;
/// The kernel's `BPF_MAXINSNS`.
const MAX: usize = 4096;

fn ret(action: Action) -> Code {
    let value = match action {
        Action::Allow => libc::SECCOMP_RET_ALLOW,
        Action::Errno(n) => libc::SECCOMP_RET_ERRNO | u32::from(n),
        Action::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::Log => libc::SECCOMP_RET_LOG,
        Action::Trap => libc::SECCOMP_RET_TRAP,
        Action::Trace(n) => libc::SECCOMP_RET_TRACE | u32::from(n),
    };
    (RET, 0, 0, value)
}

/// What happens to one system call: conditional actions in order, then one for the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaf {
    cases: Vec<(Vec<Condition>, Action)>,
    otherwise: Action,
}

/// Where a comparison leads: on to the next instruction, to the end of this condition, or out of this rule.
#[derive(Clone, Copy)]
enum To {
    Next,
    Pass,
    Fail,
}

fn condition(c: &Condition) -> Vec<(u16, To, To, u32)> {
    let low = ARGS + 8 * u32::from(c.index);
    let high = low + 4;
    let load = |offset| (LD_ABS, To::Next, To::Next, offset);
    let (v_high, v_low) = ((c.value >> 32) as u32, c.value as u32);
    // Greater (or equal): the high halves decide unless they are equal. Less is its opposite.
    let ordered = |code, pass, fail| {
        vec![
            load(high),
            (JGT, pass, To::Next, v_high),
            (JEQ, To::Next, fail, v_high),
            load(low),
            (code, pass, fail, v_low),
        ]
    };
    match c.operator {
        Operator::Equal => {
            vec![load(high), (JEQ, To::Next, To::Fail, v_high), load(low), (JEQ, To::Pass, To::Fail, v_low)]
        }
        Operator::NotEqual => {
            vec![load(high), (JEQ, To::Next, To::Pass, v_high), load(low), (JEQ, To::Fail, To::Pass, v_low)]
        }
        Operator::Greater => ordered(JGT, To::Pass, To::Fail),
        Operator::GreaterOrEqual => ordered(JGE, To::Pass, To::Fail),
        Operator::Less => ordered(JGE, To::Fail, To::Pass),
        Operator::LessOrEqual => ordered(JGT, To::Fail, To::Pass),
        Operator::MaskedEqual => vec![
            load(high),
            (AND, To::Next, To::Next, v_high),
            (JEQ, To::Next, To::Fail, (c.value_two >> 32) as u32),
            load(low),
            (AND, To::Next, To::Next, v_low),
            (JEQ, To::Pass, To::Fail, c.value_two as u32),
        ],
    }
}

fn leaf(leaf: &Leaf) -> Vec<Code> {
    let mut code = Vec::new();
    for (conditions, action) in &leaf.cases {
        let blocks: Vec<_> = conditions.iter().map(condition).collect();
        let total: usize = blocks.iter().map(Vec::len).sum();
        let mut at = 0;
        for block in blocks {
            let end = at + block.len();
            for (op, jt, jf, k) in block {
                at += 1;
                // Six conditions of six instructions at most: every distance fits a byte.
                let distance = |to| match to {
                    To::Next => 0,
                    To::Pass => (end - at) as u8,
                    To::Fail => (total + 1 - at) as u8,
                };
                code.push((op, distance(jt), distance(jf), k));
            }
        }
        code.push(ret(*action));
    }
    code.push(ret(leaf.otherwise));
    code
}

/// A binary search over `ranges`, which are sorted by first number; the number is in the accumulator.
fn tree(ranges: &[(u32, Leaf)]) -> Vec<Code> {
    if let [(_, only)] = ranges {
        return leaf(only);
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let (low, high) = (tree(left), tree(right));
    let mut code = vec![(JGE, 1, 0, right[0].0), (JA, 0, 0, high.len() as u32)];
    code.extend(high);
    code.extend(low);
    code
}

/// Compiles a profile for x86-64. Calls of other ABIs (32-bit, x32) fail with ENOSYS: their numbers mean other
/// calls, and this machine code has none of them.
///
/// # Errors
/// A condition on an argument that does not exist, or a program longer than the kernel takes.
pub fn compile(profile: &Profile) -> Result<SeccompProgram, ProfileError> {
    let mut leaves: BTreeMap<u32, Leaf> = BTreeMap::new();
    let empty = || Leaf { cases: Vec::new(), otherwise: profile.default };
    let mut unconditional = std::collections::BTreeSet::new();
    for rule in &profile.rules {
        if let Some(c) = rule.conditions.iter().find(|c| c.index > 5) {
            return Err(ProfileError::Index(c.index));
        }
        for number in rule.names.iter().filter_map(|n| syscalls::number(n)) {
            if rule.conditions.is_empty() {
                if unconditional.insert(number) {
                    leaves.entry(number).or_insert_with(empty).otherwise = rule.action;
                }
            } else if !unconditional.contains(&number) {
                let cases = &mut leaves.entry(number).or_insert_with(empty).cases;
                // A condition list longer than the six arguments cannot be needed; cut what would overflow.
                cases.push((rule.conditions.iter().take(6).copied().collect(), rule.action));
            }
        }
    }
    let mut ranges: Vec<(u32, Leaf)> = vec![(0, empty())];
    let mut next = 0;
    for (number, leaf) in leaves {
        if number > next {
            push_range(&mut ranges, next, empty());
        }
        push_range(&mut ranges, number, leaf);
        next = number + 1;
    }
    push_range(&mut ranges, next, empty());
    push_range(&mut ranges, X32, Leaf { cases: Vec::new(), otherwise: Action::Errno(libc::ENOSYS as u16) });

    let mut instructions =
        vec![(LD_ABS, 0, 0, ARCH), (JEQ, 1, 0, AUDIT_ARCH_X86_64), ret(Action::Errno(libc::ENOSYS as u16))];
    instructions.push((LD_ABS, 0, 0, NR));
    instructions.extend(tree(&ranges));
    if instructions.len() > MAX {
        return Err(ProfileError::TooLong(instructions.len()));
    }
    Ok(SeccompProgram { instructions, flags: profile.flags })
}

/// Appends a range, merged into the one before when both do the same.
fn push_range(ranges: &mut Vec<(u32, Leaf)>, start: u32, leaf: Leaf) {
    match ranges.last_mut() {
        Some((first, last)) if *first == start => *last = leaf,
        Some((_, last)) if *last == leaf => {}
        _ => ranges.push((start, leaf)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Rule;
    use super::*;
    use proptest::prelude::*;

    /// Runs classic BPF over a `seccomp_data`.
    fn run(program: &[Code], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
        let load = |offset: u32| match offset {
            NR => nr,
            ARCH => arch,
            o => {
                (args[(o - ARGS) as usize / 8] >> (if (o - ARGS).is_multiple_of(8) { 0 } else { 32 })) as u32
            }
        };
        let (mut pc, mut a) = (0usize, 0u32);
        loop {
            let (code, jt, jf, k) = program[pc];
            pc += 1;
            let jump = |taken| if taken { usize::from(jt) } else { usize::from(jf) };
            match code {
                LD_ABS => a = load(k),
                AND => a &= k,
                JA => pc += k as usize,
                JEQ => pc += jump(a == k),
                JGT => pc += jump(a > k),
                JGE => pc += jump(a >= k),
                RET => return k,
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    fn holds(c: &Condition, args: [u64; 6]) -> bool {
        let a = args[usize::from(c.index)];
        match c.operator {
            Operator::Equal => a == c.value,
            Operator::NotEqual => a != c.value,
            Operator::Less => a < c.value,
            Operator::LessOrEqual => a <= c.value,
            Operator::Greater => a > c.value,
            Operator::GreaterOrEqual => a >= c.value,
            Operator::MaskedEqual => a & c.value == c.value_two,
        }
    }

    /// The rule of the profile, read off directly.
    fn model(p: &Profile, name: &str, args: [u64; 6]) -> Action {
        let of_call: Vec<_> = p.rules.iter().filter(|r| r.names.iter().any(|n| n == name)).collect();
        let unconditional = of_call.iter().position(|r| r.conditions.is_empty());
        let cases = &of_call[..unconditional.unwrap_or(of_call.len())];
        cases
            .iter()
            .find(|r| r.conditions.iter().all(|c| holds(c, args)))
            .map(|r| r.action)
            .or_else(|| unconditional.map(|at| of_call[at].action))
            .unwrap_or(p.default)
    }

    const CALLS: [&str; 6] = ["read", "write", "open", "clone", "socket", "openat2"];

    fn value() -> impl Strategy<Value = u64> {
        prop_oneof![0..4u64, Just(1 << 32), Just((1 << 32) + 1), any::<u64>()]
    }

    fn a_condition() -> impl Strategy<Value = Condition> {
        let operator = prop_oneof![
            Just(Operator::Equal),
            Just(Operator::NotEqual),
            Just(Operator::Less),
            Just(Operator::LessOrEqual),
            Just(Operator::Greater),
            Just(Operator::GreaterOrEqual),
            Just(Operator::MaskedEqual)
        ];
        (0..6u8, operator, value(), value()).prop_map(|(index, operator, value, value_two)| Condition {
            index,
            operator,
            value,
            value_two,
        })
    }

    fn a_rule() -> impl Strategy<Value = Rule> {
        let action = prop_oneof![Just(Action::Allow), Just(Action::Log), (1..99u16).prop_map(Action::Errno)];
        let names = proptest::sample::subsequence(CALLS.to_vec(), 1..4);
        (names, action, proptest::collection::vec(a_condition(), 0..3)).prop_map(
            |(names, action, conditions)| Rule {
                names: names.into_iter().map(str::to_owned).collect(),
                action,
                conditions,
            },
        )
    }

    proptest! {
        #[test]
        fn program_agrees_with_the_profile(
            rules in proptest::collection::vec(a_rule(), 0..8),
            args in proptest::array::uniform6(value()),
        ) {
            let profile = Profile { default: Action::Errno(1), rules, flags: 0 };
            let program = compile(&profile).map_err(|e| TestCaseError::fail(e.to_string()))?.instructions;
            for name in CALLS.iter().chain(&["close", "file_setattr"]) {
                let nr = syscalls::number(name).ok_or_else(|| TestCaseError::fail("name"))?;
                let want = ret(model(&profile, name, args)).3;
                prop_assert_eq!(run(&program, AUDIT_ARCH_X86_64, nr, args), want, "{}", name);
                let enosys = ret(Action::Errno(38)).3;
                prop_assert_eq!(run(&program, AUDIT_ARCH_X86_64, nr | X32, args), enosys);
                prop_assert_eq!(run(&program, 0x4000_0003, nr, args), enosys);
            }
        }
    }

    #[test]
    fn default_profile_is_short_to_run() -> Result<(), ProfileError> {
        let program = compile(&super::super::default::profile(0))?;
        assert!(program.instructions.len() < 700, "{} instructions", program.instructions.len());
        let run = |name: &str, args| {
            run(&program.instructions, AUDIT_ARCH_X86_64, syscalls::number(name).unwrap_or(9999), args)
        };
        let cases = [
            ("read", [0; 6], Action::Allow),
            ("mount", [0; 6], Action::Errno(1)),
            ("clone", [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0], Action::Errno(1)),
            ("clone", [libc::SIGCHLD as u64, 0, 0, 0, 0, 0], Action::Allow),
            ("clone3", [0; 6], Action::Errno(38)),
            ("socket", [40, 0, 0, 0, 0, 0], Action::Errno(1)),
            ("socket", [2, 0, 0, 0, 0, 0], Action::Allow),
            ("personality", [0xffff_ffff, 0, 0, 0, 0, 0], Action::Allow),
            ("personality", [1, 0, 0, 0, 0, 0], Action::Errno(1)),
        ];
        for (name, args, want) in cases {
            assert_eq!(run(name, args), ret(want).3, "{name} {args:?}");
        }
        Ok(())
    }
}
