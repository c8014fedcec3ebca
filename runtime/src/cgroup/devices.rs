//! The device filter of a container as an eBPF program (`BPF_PROG_TYPE_CGROUP_DEVICE`): which device nodes its
//! processes may open or make. The generator is pure; [`attach`] loads what it made.

use std::io;
use std::path::Path;

use crate::spec::DeviceNode;
use crate::sys::bpf::{self, Instruction};

/// One allowed device; `None` matches every number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Block device; else character device.
    pub block: bool,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// Bits of [`MKNOD`], [`READ`], [`WRITE`].
    pub access: u32,
}

/// `BPF_DEVCG_ACC_MKNOD`.
pub const MKNOD: u32 = 1;
/// `BPF_DEVCG_ACC_READ`.
pub const READ: u32 = 2;
/// `BPF_DEVCG_ACC_WRITE`.
pub const WRITE: u32 = 4;

const fn allow(major: u32, minor: Option<u32>) -> Rule {
    Rule { block: false, major: Some(major), minor, access: MKNOD | READ | WRITE }
}

/// What every container may use: making any node (using it is another matter), null, zero, full, random,
/// urandom, tty, console, ptmx and pts (the list of the OCI runtime specification).
pub fn default_rules() -> Vec<Rule> {
    vec![
        Rule { block: false, major: None, minor: None, access: MKNOD },
        Rule { block: true, major: None, minor: None, access: MKNOD },
        allow(1, Some(3)),
        allow(1, Some(5)),
        allow(1, Some(7)),
        allow(1, Some(8)),
        allow(1, Some(9)),
        allow(5, Some(0)),
        allow(5, Some(1)),
        allow(5, Some(2)),
        allow(136, None),
    ]
}

/// The rule that allows a device given to the container.
pub fn rule_for(device: &DeviceNode) -> Rule {
    let access = device.permissions.chars().fold(0, |a, c| {
        a | match c {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => 0,
        }
    });
    Rule { block: device.block, major: Some(device.major), minor: Some(device.minor), access }
}

// eBPF opcodes used below (`linux/bpf_common.h`, `linux/bpf.h`).
const LDX_W: u8 = 0x61;
const MOV32_REG: u8 = 0xbc;
const MOV64_IMM: u8 = 0xb7;
const AND32_IMM: u8 = 0x54;
const RSH32_IMM: u8 = 0x74;
const JNE_IMM: u8 = 0x55;
const JNE_REG: u8 = 0x5d;
const EXIT: u8 = 0x95;

const fn instruction(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: (src << 4) | dst, offset, immediate }
}

/// The program: r2 = kind, r3 = access asked for, r4 = major, r5 = minor, from `struct bpf_cgroup_dev_ctx`;
/// the first rule that covers all of it answers 1, else 0.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut p = vec![
        instruction(LDX_W, 2, 1, 0, 0),
        instruction(MOV32_REG, 3, 2, 0, 0),
        instruction(RSH32_IMM, 3, 0, 0, 16),
        instruction(AND32_IMM, 2, 0, 0, 0xffff),
        instruction(LDX_W, 4, 1, 4, 0),
        instruction(LDX_W, 5, 1, 8, 0),
    ];
    for rule in rules {
        let mut block = vec![(JNE_IMM, 2, 0, if rule.block { 1 } else { 2 })];
        if rule.access != MKNOD | READ | WRITE {
            // (asked & allowed) must be all that is asked.
            block.push((MOV32_REG, 1, 3, 0));
            block.push((AND32_IMM, 1, 0, rule.access as i32));
            block.push((JNE_REG, 1, 3, 0));
        }
        if let Some(major) = rule.major {
            block.push((JNE_IMM, 4, 0, major as i32));
        }
        if let Some(minor) = rule.minor {
            block.push((JNE_IMM, 5, 0, minor as i32));
        }
        let length = block.len() as i16;
        for (at, (code, dst, src, imm)) in block.into_iter().enumerate() {
            // A jump leads past this rule's two closing instructions.
            let jump = matches!(code, JNE_IMM | JNE_REG);
            let offset = if jump { length - at as i16 + 1 } else { 0 };
            p.push(instruction(code, dst, src, offset, imm));
        }
        p.push(instruction(MOV64_IMM, 0, 0, 0, 1));
        p.push(instruction(EXIT, 0, 0, 0, 0));
    }
    p.push(instruction(MOV64_IMM, 0, 0, 0, 0));
    p.push(instruction(EXIT, 0, 0, 0, 0));
    p
}

/// Loads the filter for `rules` and attaches it to the cgroup v2 directory `dir`.
///
/// # Errors
/// What the kernel answered.
pub fn attach(dir: &Path, rules: &[Rule]) -> io::Result<()> {
    let filter = bpf::load_device_filter(&program(rules))?;
    let cgroup = std::fs::File::open(dir)?;
    bpf::attach_device_filter(&cgroup, &filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would; pure reference for the generator.
    fn run(program: &[Instruction], block: bool, access: u32, major: u32, minor: u32) -> bool {
        let context = [(access << 16) | if block { 1 } else { 2 }, major, minor];
        let mut r = [0u64; 11];
        let mut pc = 0usize;
        loop {
            let i = program[pc];
            let (dst, src) = ((i.registers & 15) as usize, (i.registers >> 4) as usize);
            pc += 1;
            match i.code {
                LDX_W => r[dst] = context[i.offset as usize / 4].into(),
                MOV32_REG => r[dst] = r[src] & 0xffff_ffff,
                MOV64_IMM => r[dst] = i.immediate as u64,
                AND32_IMM => r[dst] &= i.immediate as u64,
                RSH32_IMM => r[dst] >>= i.immediate,
                JNE_IMM if r[dst] != i.immediate as u64 => pc += i.offset as usize,
                JNE_REG if r[dst] != r[src] => pc += i.offset as usize,
                JNE_IMM | JNE_REG => {}
                EXIT => return r[0] == 1,
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    #[test]
    fn default_filter_allows_the_usual_nodes_only() {
        let mut rules = default_rules();
        rules.push(Rule { block: true, major: Some(7), minor: Some(0), access: READ });
        let p = program(&rules);
        let cases = [
            (false, READ | WRITE, 1, 3, true),
            (false, READ, 136, 12, true),
            (false, READ, 1, 1, false),
            (true, READ, 254, 0, false),
            (true, MKNOD, 254, 0, true),
            (true, MKNOD | READ, 254, 0, false),
            (true, READ, 7, 0, true),
            (true, READ | WRITE, 7, 0, false),
            (false, READ, 7, 0, false),
        ];
        for (block, access, major, minor, want) in cases {
            assert_eq!(run(&p, block, access, major, minor), want, "{block} {access} {major}:{minor}");
        }
    }
}
