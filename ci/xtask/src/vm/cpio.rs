//! The archive that a kernel unpacks as its first file system ("newc" cpio).

/// An archive being written, in memory.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const DEVICE: u32 = 0o020_000;

impl Writer {
    /// A folder; its parents must have been added before.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, &[], (0, 0));
    }

    /// A file that can be read, and run when `mode` says so.
    pub fn file(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entry(name, FILE | mode, contents, (0, 0));
    }

    /// A symbolic link.
    pub fn link(&mut self, name: &str, target: &str) {
        self.entry(name, LINK | 0o777, target.as_bytes(), (0, 0));
    }

    /// A character device.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, DEVICE | 0o600, &[], (major, minor));
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8], device: (u32, u32)) {
        self.entries += 1;
        let size = u32::try_from(contents.len()).expect("a file in an initrd is below 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a name is short");
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device of the file system,
        // device of the entry, length of the name, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_has_the_known_bytes() {
        let mut writer = Writer::default();
        writer.file("a", 0o755, b"hello");
        let bytes = writer.finish();
        let header = "070701000000010000\
                      81ED000000000000000000000001000000000000000500000000000000000000000000000000\
                      0000000200000000a\0hello\0\0\0";
        assert_eq!(String::from_utf8_lossy(&bytes[..header.len()]), header);
        assert_eq!(&bytes[header.len()..][..6], b"070701");
        assert!(bytes.len().is_multiple_of(4));
    }

    #[test]
    fn another_program_reads_it_back() {
        let Some(_) = crate::run::find_program("busybox") else { return };
        let mut writer = Writer::default();
        writer.directory("bin");
        writer.file("bin/tool", 0o755, b"#!/bin/sh\necho hi\n");
        writer.file("bin/empty", 0o644, b"");
        writer.link("bin/sh", "tool");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("archive"), writer.finish()).unwrap();
        let script = "busybox cpio -i -d < archive 2>/dev/null && bin/tool && readlink bin/sh";
        let out = std::process::Command::new("sh").args(["-c", script]).current_dir(dir.path()).output();
        assert_eq!(String::from_utf8_lossy(&out.unwrap().stdout), "hi\ntool\n");
        assert_eq!(std::fs::read(dir.path().join("bin/empty")).unwrap(), b"");
    }
}
