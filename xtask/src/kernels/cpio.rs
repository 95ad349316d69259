//! The archive that Linux unpacks into its first root file system: "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Component, Path},
};

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const EXECUTABLE: u32 = 0o100_755;
/// Records begin at multiples of this.
const ALIGNMENT: usize = 4;

/// Writes an archive.
pub(super) struct Archive<W> {
    out: W,
    written: usize,
    entries: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, written: 0, entries: 0, directories: BTreeSet::new() }
    }

    /// Adds a directory and those above it, once.
    pub(super) fn directory(&mut self, path: &Path) -> io::Result<()> {
        let mut name = String::new();
        for part in path.components() {
            let Component::Normal(part) = part else { continue };
            if !name.is_empty() {
                name.push('/');
            }
            name.push_str(&part.to_string_lossy());
            if self.directories.insert(name.clone()) {
                self.entry(&name, DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    /// Adds an executable file, and the directories that it is in.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.named(path, EXECUTABLE, content)
    }

    /// Adds a symbolic link, and the directories that it is in.
    pub(super) fn symlink(&mut self, path: &Path, target: &str) -> io::Result<()> {
        self.named(path, SYMLINK, target.as_bytes())
    }

    fn named(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        let name = path.to_string_lossy();
        self.entry(name.trim_start_matches('/'), mode, content)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::Error::other(format!("{name} is too large")))?;
        self.entries += 1;
        // Inode, mode, owner, group, links, time, size, four device numbers, length of the name with its NUL, check sum.
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(content)?;
        self.align()
    }

    fn align(&mut self) -> io::Result<()> {
        let padding = self.written.next_multiple_of(ALIGNMENT) - self.written;
        self.put(&[0; ALIGNMENT][..padding])
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_as_the_kernel_reads_them() {
        let mut out = Vec::new();
        let mut archive = Archive::new(&mut out);
        archive.file(Path::new("/a/b/init"), b"hello").expect("written");
        archive.symlink(Path::new("/a/b/link"), "init").expect("written");
        archive.finish().expect("written");
        let mut names = Vec::new();
        let mut rest = out.as_slice();
        loop {
            assert_eq!(&rest[..6], b"070701");
            let field = |index: usize| {
                let digits = std::str::from_utf8(&rest[6 + index * 8..14 + index * 8]).expect("digits");
                usize::from_str_radix(digits, 16).expect("a number")
            };
            let (size, name_size) = (field(6), field(11));
            let name = String::from_utf8_lossy(&rest[110..110 + name_size - 1]).into_owned();
            let content = (110 + name_size).next_multiple_of(4);
            names.push((name, field(1), String::from_utf8_lossy(&rest[content..content + size]).into_owned()));
            if names.last().is_some_and(|(name, ..)| name == "TRAILER!!!") {
                break;
            }
            rest = &rest[(content + size).next_multiple_of(4)..];
        }
        let plain: Vec<_> =
            names.iter().map(|(name, mode, content)| (name.as_str(), *mode, content.as_str())).collect();
        assert_eq!(
            plain,
            [
                ("a", 0o040_755, ""),
                ("a/b", 0o040_755, ""),
                ("a/b/init", 0o100_755, "hello"),
                ("a/b/link", 0o120_777, "init"),
                ("TRAILER!!!", 0, ""),
            ]
        );
    }
}
