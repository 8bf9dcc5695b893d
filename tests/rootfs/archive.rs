//! Tar archives with anything in them.

use tar::{Builder, EntryType, Header};

/// Times before 1970 and past 2038 are among those that must survive.
pub const TIME: i64 = 1_700_000_000;

/// An archive under construction. Every entry takes the attributes set last.
pub struct Archive {
    builder: Builder<Vec<u8>>,
    pub mode: u32,
    pub owner: (u64, u64),
    records: Vec<(String, Vec<u8>)>,
}

impl Archive {
    pub fn new() -> Self {
        Self {
            builder: Builder::new(Vec::new()),
            mode: 0o644,
            owner: (0, 0),
            records: Vec::new(),
        }
    }

    /// Adds a record of an extended header to the next entry.
    pub fn record(&mut self, key: &str, value: impl AsRef<[u8]>) -> &mut Self {
        self.records.push((key.into(), value.as_ref().to_vec()));
        self
    }

    pub fn mode(&mut self, mode: u32) -> &mut Self {
        self.mode = mode;
        self
    }

    pub fn folder(&mut self, path: impl AsRef<[u8]>) -> &mut Self {
        let mode = std::mem::replace(&mut self.mode, 0o644);
        self.mode = if mode == 0o644 { 0o755 } else { mode };
        self.add(EntryType::Directory, path.as_ref(), b"", b"")
    }

    pub fn file(&mut self, path: impl AsRef<[u8]>, content: &[u8]) -> &mut Self {
        self.add(EntryType::Regular, path.as_ref(), b"", content)
    }

    pub fn symlink(&mut self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> &mut Self {
        self.add(EntryType::Symlink, path.as_ref(), target.as_ref(), b"")
    }

    pub fn hard_link(&mut self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> &mut Self {
        self.add(EntryType::Link, path.as_ref(), target.as_ref(), b"")
    }

    pub fn fifo(&mut self, path: impl AsRef<[u8]>) -> &mut Self {
        self.add(EntryType::Fifo, path.as_ref(), b"", b"")
    }

    pub fn device(&mut self, kind: EntryType, path: &str, major: u32, minor: u32) -> &mut Self {
        let mut header = self.header(kind);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.append(header, path.as_bytes(), b"", b"")
    }

    pub fn finish(&mut self) -> Vec<u8> {
        let builder = std::mem::replace(&mut self.builder, Builder::new(Vec::new()));
        builder.into_inner().unwrap()
    }

    fn add(&mut self, kind: EntryType, path: &[u8], target: &[u8], content: &[u8]) -> &mut Self {
        let header = self.header(kind);
        self.append(header, path, target, content)
    }

    fn header(&mut self, kind: EntryType) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(std::mem::replace(&mut self.mode, 0o644));
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(TIME as u64);
        header
    }

    /// Names go to an extended header when they do not fit, so that no builder looks into them.
    fn append(
        &mut self,
        mut header: Header,
        path: &[u8],
        target: &[u8],
        content: &[u8],
    ) -> &mut Self {
        let mut records = std::mem::take(&mut self.records);
        let fields = header.as_ustar_mut().unwrap();
        for (field, name, key) in [
            (&mut fields.name, path, "path"),
            (&mut fields.linkname, target, "linkpath"),
        ] {
            match field.get_mut(..name.len()) {
                Some(room) => room.copy_from_slice(name),
                None => records.push((key.into(), name.to_vec())),
            }
        }
        if !records.is_empty() {
            let records = records
                .iter()
                .map(|(key, value)| (key.as_str(), &value[..]));
            self.builder.append_pax_extensions(records).unwrap();
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.builder.append(&header, content).unwrap();
        self
    }
}
