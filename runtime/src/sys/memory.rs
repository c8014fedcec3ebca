//! Memory that a process holds and does not need any more.

use std::io;

use super::check;

/// Gives back what start-up needed: free pages of the C library's heap (`malloc_trim(3)`; a Rust allocator of its own
/// gives back by itself), and the pages of the program's own code and constants, of which the kernel maps back those that
/// are still used when they are (`MADV_DONTNEED` of madvise(2)). A process that only waits is then as small as what it does while
/// it waits.
///
/// # Errors
/// When the process's own mappings cannot be read, or what `madvise(2)` answered.
pub fn give_back() -> io::Result<()> {
    // SAFETY: takes no pointer; glibc locks its own arenas.
    unsafe { libc::malloc_trim(0) };
    let program = std::fs::read_link("/proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    for (start, length) in unwritten(&maps, &program.to_string_lossy()) {
        // SAFETY: the range is one mapping of a file, private and without write permission for all its life (what is
        // relocated lies behind the code): its pages are the file's, and come back from it.
        check(unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) }.into())?;
    }
    Ok(())
}

/// Start and length of the mappings of `program` that nothing ever wrote to, in the text of `/proc/PID/maps`
/// (proc_pid_maps(5)): the code, and the constants that linkers place before it. The read-only mapping behind the code
/// is not among them: the loader relocates its pages before it protects them.
fn unwritten(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let mapping = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let (permissions, path) = (fields.next()?, fields.nth(3)?);
        let address = |text| usize::from_str_radix(text, 16).ok();
        let (start, end) = (address(start)?, address(end)?);
        (path == program).then_some((permissions.to_owned(), start, end.checked_sub(start)?))
    };
    let mappings: Vec<_> = maps.lines().filter_map(mapping).collect();
    let behind_code =
        mappings.iter().rposition(|(permissions, ..)| permissions == "r-xp").map_or(0, |at| at + 1);
    let kept = mappings.into_iter().take(behind_code);
    kept.filter(|(permissions, ..)| matches!(permissions.as_str(), "r--p" | "r-xp"))
        .map(|(_, start, length)| (start, length))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_never_written_of_the_program_itself_is_found() {
        let maps = "\
55f3907a1000-55f392172000 r--p 00000000 fe:00 6006375                    /usr/bin/hawser
55f392172000-55f396d2b000 r-xp 019d0000 fe:00 6006375                    /usr/bin/hawser
55f396d2b000-55f39717e000 r--p 06588000 fe:00 6006375                    /usr/bin/hawser
55f39717e000-55f397184000 rw-p 069da000 fe:00 6006375                    /usr/bin/hawser
55f3caebb000-55f3cb1e6000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 r-xp 00000000 fe:00 42                         /usr/lib/libc.so.6
7f0000002000-7f0000003000 rwxp 00000000 00:00 0
not a mapping
";
        let found = unwritten(maps, "/usr/bin/hawser");
        assert_eq!(found, [(0x55f3_907a_1000, 0x19d_1000), (0x55f3_9217_2000, 0x4bb_9000)]);
        assert_eq!(unwritten(maps, "/usr/bin/other"), []);
    }

    #[test]
    fn code_that_does_not_run_is_given_back() {
        let program = std::fs::read_link("/proc/self/exe").expect("exe");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let ranges = unwritten(&maps, &program.to_string_lossy());
        let (start, length) = *ranges.last().expect("the code");
        for page in (start..start + length).step_by(4096) {
            // SAFETY: within a mapping of this process that is readable and never unmapped.
            unsafe { std::ptr::read_volatile(page as *const u8) };
        }
        give_back().expect("given back");
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let own = &smaps[smaps.find(&format!("{start:x}-")).expect("the mapping")..];
        let resident = own.lines().find_map(|line| line.strip_prefix("Rss:")).expect("Rss");
        let resident: usize = resident.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(resident * 1024 < length / 2, "{resident} KiB of {length} bytes are still mapped");
    }
}
