//! Tar archives of a container's files: POSIX's interchange format with extended headers (pax), as container
//! engines write and read layers. Holes are told as GNU tar does (sparse format 1.0).

use std::io::{self, BufRead, Read, Write};

use files::stream::Sender;
use protocol::files::{Change, Device, Entry, Extent, Item, Kind, Mtime, Xattr};
use tar::{Builder, EntryType, Header};

use super::FileWorkError;
use crate::image::layer::{
    archive::{Archive, Kind as MemberKind, Member},
    index,
};

/// Holes of fewer bytes together are not worth a map.
const MIN_HOLES: u64 = 64 << 10;

/// Largest number that a header's field of eight octal digits has room for (user and group).
const MAX_ID: u32 = 0o7_777_777;

/// Largest size and time that a header has room for.
const MAX_SIZE: u64 = 0o77_777_777_777;

/// In front of what deletes a name of lower layers (OCI image specification, layer, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";

/// Deletes all that lower layers have in a folder.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// An archive in the making.
pub struct ArchiveWriter<W: Write> {
    builder: Builder<W>,
}

/// Records of an extended header.
#[derive(Default)]
struct Records(Vec<(String, Vec<u8>)>);

impl Records {
    fn push(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.0.push((name.into(), value.into()));
    }
}

impl<W: Write> ArchiveWriter<W> {
    /// Writes to `output`.
    pub fn new(output: W) -> Self {
        Self {
            builder: Builder::new(output),
        }
    }

    /// Adds an entry, with the content that `content` gives next.
    ///
    /// # Errors
    ///
    /// Where the content ends too early, or the output cannot be written.
    pub fn append(&mut self, entry: &Entry, content: &mut impl Read) -> Result<(), FileWorkError> {
        let path = match entry.path.as_slice() {
            b"" => b".",
            path => path,
        };
        self.write(path, entry, content)
            .map_err(FileWorkError::Archive)
    }

    /// Ends the archive.
    ///
    /// # Errors
    ///
    /// Where the output cannot be written.
    pub fn finish(self) -> Result<(), FileWorkError> {
        self.builder
            .into_inner()
            .and_then(|mut output| output.flush())
            .map_err(FileWorkError::Archive)
    }

    fn write(&mut self, path: &[u8], entry: &Entry, content: &mut impl Read) -> io::Result<()> {
        let mut records = Records::default();
        match &entry.kind {
            Kind::Folder { opaque } => {
                let folder = [path, b"/"].concat();
                self.header(&folder, EntryType::Directory, entry, records)?;
                if *opaque {
                    self.header(
                        &[&folder, OPAQUE].concat(),
                        EntryType::Regular,
                        entry,
                        Records::default(),
                    )?;
                }
                Ok(())
            }
            Kind::Whiteout => {
                let split = path
                    .iter()
                    .rposition(|byte| *byte == b'/')
                    .map_or(0, |slash| slash + 1);
                let path = [&path[..split], WHITEOUT, &path[split..]].concat();
                self.header(&path, EntryType::Regular, entry, records)
            }
            Kind::File { size, extents } => {
                let stored = entry.content_bytes();
                if size - stored < MIN_HOLES {
                    let mut filled = Filled::new(content, extents, *size);
                    return self.file(path, entry, records, *size, &mut filled);
                }
                let map = sparse_map(extents);
                records.push("GNU.sparse.major", "1");
                records.push("GNU.sparse.minor", "0");
                records.push("GNU.sparse.name", path);
                records.push("GNU.sparse.realsize", size.to_string());
                let bytes = map.len() as u64 + stored;
                self.file(
                    path,
                    entry,
                    records,
                    bytes,
                    &mut map.as_slice().chain(content.take(stored)),
                )
            }
            Kind::HardLink(target) => {
                link_name(&mut records, target);
                self.linked(path, EntryType::Link, target, entry, records)
            }
            Kind::Symlink(target) => {
                link_name(&mut records, target);
                self.linked(path, EntryType::Symlink, target, entry, records)
            }
            Kind::CharDevice(device) => self.device(path, EntryType::Char, *device, entry),
            Kind::BlockDevice(device) => self.device(path, EntryType::Block, *device, entry),
            Kind::Fifo => self.header(path, EntryType::Fifo, entry, records),
        }
    }

    fn header(
        &mut self,
        path: &[u8],
        kind: EntryType,
        entry: &Entry,
        records: Records,
    ) -> io::Result<()> {
        let header = self.prepare(path, kind, entry, records, 0)?;
        self.append_header(header, &mut io::empty())
    }

    fn linked(
        &mut self,
        path: &[u8],
        kind: EntryType,
        target: &[u8],
        entry: &Entry,
        records: Records,
    ) -> io::Result<()> {
        let mut header = self.prepare(path, kind, entry, records, 0)?;
        let short = &target[..target.len().min(header.as_old().linkname.len())];
        header.as_old_mut().linkname[..short.len()].copy_from_slice(short);
        self.append_header(header, &mut io::empty())
    }

    fn device(
        &mut self,
        path: &[u8],
        kind: EntryType,
        device: Device,
        entry: &Entry,
    ) -> io::Result<()> {
        let mut header = self.prepare(path, kind, entry, Records::default(), 0)?;
        header.set_device_major(device.major)?;
        header.set_device_minor(device.minor)?;
        self.append_header(header, &mut io::empty())
    }

    fn file(
        &mut self,
        path: &[u8],
        entry: &Entry,
        records: Records,
        bytes: u64,
        content: &mut impl Read,
    ) -> io::Result<()> {
        let header = self.prepare(path, EntryType::Regular, entry, records, bytes)?;
        self.append_header(header, content)
    }

    /// Writes what a header has no room for as an extended one, and makes the header.
    fn prepare(
        &mut self,
        path: &[u8],
        kind: EntryType,
        entry: &Entry,
        mut records: Records,
        bytes: u64,
    ) -> io::Result<Header> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(entry.mode.into());
        let room = header.as_old().name.len();
        if path.len() > room || !path.is_ascii() {
            records.push("path", path);
        }
        let short = &path[..path.len().min(room)];
        header.as_old_mut().name[..short.len()].copy_from_slice(short);
        owner(&mut header, &mut records, entry);
        time(&mut header, &mut records, entry.mtime);
        if bytes > MAX_SIZE {
            records.push("size", bytes.to_string());
        }
        header.set_size(bytes.min(MAX_SIZE));
        // A whiteout's or a link's are nobody's.
        if matches!(entry.kind, Kind::Folder { .. } | Kind::File { .. }) {
            for Xattr { name, value } in &entry.xattrs {
                if let Ok(name) = std::str::from_utf8(name)
                    && !name.contains('=')
                {
                    records.push(&format!("SCHILY.xattr.{name}"), value.as_slice());
                }
            }
        }
        if !records.0.is_empty() {
            let records = records.0.iter();
            let records = records.map(|(name, value)| (name.as_str(), value.as_slice()));
            self.builder.append_pax_extensions(records)?;
        }
        Ok(header)
    }

    fn append_header(&mut self, mut header: Header, content: &mut impl Read) -> io::Result<()> {
        header.set_cksum();
        self.builder.append(&header, content)
    }
}

/// Sends what is in an archive, as it is; a hostile one leads nowhere.
///
/// # Errors
///
/// Where it is damaged, or leads out of where it is unpacked.
pub fn send<W: Write>(
    input: &mut impl BufRead,
    sender: &mut Sender<W>,
) -> Result<(), FileWorkError> {
    let mut archive = Archive::new(input);
    while let Some(member) = archive
        .next_member()
        .map_err(FileWorkError::ArchiveMember)?
    {
        let entry = entry_of(member)?;
        let mut left = entry.content_bytes();
        sender.send(&Item::Entry(entry))?;
        while left > 0 {
            let piece = archive
                .content(left)
                .map_err(FileWorkError::ArchiveMember)?;
            left -= piece.len() as u64;
            sender.bytes(piece)?;
        }
    }
    Ok(())
}

fn entry_of(member: Member) -> Result<Entry, FileWorkError> {
    let kind = match member.kind {
        MemberKind::Directory => Kind::Folder { opaque: false },
        MemberKind::File(size) => whole(size),
        MemberKind::Sparse(size, extents) => Kind::File {
            size,
            extents: extents
                .into_iter()
                .filter(|extent| extent.length > 0)
                .map(|extent| Extent {
                    offset: extent.offset,
                    length: extent.length,
                })
                .collect(),
        },
        MemberKind::Symlink(target) => Kind::Symlink(target),
        MemberKind::HardLink(target) => Kind::HardLink(clean(&target)?),
        MemberKind::CharDevice(number) => Kind::CharDevice(device(number)),
        MemberKind::BlockDevice(number) => Kind::BlockDevice(device(number)),
        MemberKind::Fifo => Kind::Fifo,
    };
    let xattrs = member.xattrs.into_iter();
    let entry = Entry {
        path: clean(&member.path)?,
        kind,
        mode: member.mode,
        uid: member.uid,
        gid: member.gid,
        mtime: Mtime {
            seconds: member.mtime.seconds,
            nanoseconds: member.mtime.nanoseconds,
        },
        xattrs: xattrs.map(|(name, value)| Xattr { name, value }).collect(),
        change: Change::Added,
    };
    entry.check().map_err(files::FilesError::from)?;
    Ok(entry)
}

fn whole(size: u64) -> Kind {
    let extents = match size {
        0 => Vec::new(),
        length => vec![Extent { offset: 0, length }],
    };
    Kind::File { size, extents }
}

fn device(number: index::Device) -> Device {
    Device {
        major: number.major,
        minor: number.minor,
    }
}

/// A path without what says nothing.
fn clean(path: &[u8]) -> Result<Vec<u8>, FileWorkError> {
    let names = path.split(|byte| *byte == b'/');
    let names: Vec<&[u8]> = names
        .filter(|name| !name.is_empty() && *name != b".")
        .collect();
    if names.contains(&&b".."[..]) {
        return Err(FileWorkError::ArchivePath(
            String::from_utf8_lossy(path).into(),
        ));
    }
    Ok(names.join(&b'/'))
}

fn link_name(records: &mut Records, target: &[u8]) {
    if target.len() > 100 || !target.is_ascii() {
        records.push("linkpath", target);
    }
}

fn owner(header: &mut Header, records: &mut Records, entry: &Entry) {
    for (name, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if id > MAX_ID {
            records.push(name, id.to_string());
        }
    }
    header.set_uid(entry.uid.min(MAX_ID).into());
    header.set_gid(entry.gid.min(MAX_ID).into());
}

fn time(header: &mut Header, records: &mut Records, mtime: Mtime) {
    let in_range = u64::try_from(mtime.seconds).is_ok_and(|seconds| seconds <= MAX_SIZE);
    if mtime.nanoseconds > 0 || !in_range {
        records.push("mtime", decimal(mtime));
    }
    let seconds = u64::try_from(mtime.seconds).unwrap_or(0);
    header.set_mtime(seconds.min(MAX_SIZE));
}

/// Seconds with all their digits; before 1970 the fraction counts down, as the sign says.
fn decimal(mtime: Mtime) -> String {
    let total = i128::from(mtime.seconds) * 1_000_000_000 + i128::from(mtime.nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let (seconds, fraction) = (total.abs() / 1_000_000_000, total.abs() % 1_000_000_000);
    let text = format!("{sign}{seconds}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The map in front of a sparse file's content: numbers in lines, filled up to whole blocks.
fn sparse_map(extents: &[Extent]) -> Vec<u8> {
    let mut map = format!("{}\n", extents.len()).into_bytes();
    for extent in extents {
        map.extend(format!("{}\n{}\n", extent.offset, extent.length).into_bytes());
    }
    map.resize(map.len().next_multiple_of(512), 0);
    map
}

/// A file's content with its holes filled.
struct Filled<'a, R> {
    content: &'a mut R,
    extents: &'a [Extent],
    at: u64,
    size: u64,
}

impl<'a, R: Read> Filled<'a, R> {
    fn new(content: &'a mut R, extents: &'a [Extent], size: u64) -> Self {
        Self {
            content,
            extents,
            at: 0,
            size,
        }
    }
}

impl<R: Read> Read for Filled<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let next = self
            .extents
            .first()
            .map_or(self.size, |extent| extent.offset);
        let (end, is_hole) = match self.extents.first() {
            Some(extent) if self.at >= next => (extent.offset + extent.length, false),
            _ => (next, true),
        };
        let left = usize::try_from(end - self.at).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let count = if is_hole {
            buffer[..most].fill(0);
            most
        } else {
            self.content.read(&mut buffer[..most])?
        };
        self.at += count as u64;
        if !is_hole && self.at == end {
            self.extents = &self.extents[1..];
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0o4755,
            uid: 3_000_000,
            gid: 7,
            mtime: Mtime {
                seconds: 1_000_000_000,
                nanoseconds: 120_000_000,
            },
            xattrs: Vec::new(),
            change: Change::Added,
        }
    }

    fn file(size: u64, extents: &[(u64, u64)]) -> Kind {
        let extents = extents.iter();
        let extents = extents.map(|&(offset, length)| Extent { offset, length });
        Kind::File {
            size,
            extents: extents.collect(),
        }
    }

    fn example() -> Vec<(Entry, Vec<u8>)> {
        let long = "long/".repeat(40) + "n\u{e4}me";
        let device = Device { major: 8, minor: 1 };
        let mut with_xattr = entry("xattr", file(3, &[(0, 3)]));
        with_xattr.xattrs = vec![Xattr {
            name: b"security.capability".to_vec(),
            value: vec![0, b'=', b'\n', 0xff],
        }];
        let mut old = entry("old", file(0, &[]));
        old.mtime = Mtime {
            seconds: -2,
            nanoseconds: 500_000_000,
        };
        vec![
            (entry("folder", Kind::Folder { opaque: false }), vec![]),
            (entry(&long, file(5, &[(0, 5)])), b"hello".to_vec()),
            (entry("other", Kind::HardLink(long.clone().into())), vec![]),
            (entry("link", Kind::Symlink(long.into())), vec![]),
            (
                entry("sparse", file(1 << 20, &[(0, 3), (1 << 19, 600)])),
                vec![b'x'; 603],
            ),
            (entry("device", Kind::BlockDevice(device)), vec![]),
            (entry("pipe", Kind::Fifo), vec![]),
            (with_xattr, b"abc".to_vec()),
            (old, vec![]),
        ]
    }

    fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut archive = ArchiveWriter::new(&mut bytes);
        for (entry, content) in entries {
            archive.append(entry, &mut content.as_slice()).unwrap();
        }
        archive.finish().unwrap();
        bytes
    }

    #[test]
    fn what_an_archive_is_made_of_is_what_is_read_from_it() {
        let entries = example();
        let archive = archive(&entries);
        let mut stream = Vec::new();
        let mut sender = Sender::new(&mut stream);
        send(&mut archive.as_slice(), &mut sender).unwrap();
        sender.send(&Item::End { left_out: 0 }).unwrap();
        sender.flush().unwrap();
        drop(sender);
        let mut receiver = files::stream::Receiver::new(stream.as_slice());
        for (entry, content) in &entries {
            assert_eq!(&receiver.next_entry().unwrap().unwrap(), entry);
            let mut read = Vec::new();
            receiver.read_to_end(&mut read).unwrap();
            assert_eq!(&read, content);
        }
        assert_eq!(receiver.next_entry().unwrap(), Err(0));
    }

    #[test]
    fn gnu_tar_reads_an_archive() {
        let mut tar = Command::new("tar")
            .args(["-tv", "--numeric-owner", "--full-time", "--xattrs"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let archive = archive(&example());
        tar.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "drwsr-xr-x 3000000/7",
            "2001-09-09 01:46:40.12 folder/",
            "3000000/7 1048576 2001-09-09 01:46:40.12 sparse",
            "8,1 2001",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn deletions_are_whiteouts() {
        let bytes = archive(&[
            (entry("a/gone", Kind::Whiteout), vec![]),
            (entry("top", Kind::Whiteout), vec![]),
            (entry("emptied", Kind::Folder { opaque: true }), vec![]),
        ]);
        let mut archive = tar::Archive::new(bytes.as_slice());
        let paths = archive.entries().unwrap();
        let paths: Vec<_> = paths
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(
            paths,
            ["a/.wh.gone", ".wh.top", "emptied/", "emptied/.wh..wh..opq"]
        );
    }

    #[test]
    fn a23_an_archive_leads_nowhere_but_into_its_target() {
        let sent = |path: &str| {
            let bytes = archive(&[(entry(path, Kind::Fifo), vec![])]);
            let mut stream = Vec::new();
            let mut sender = Sender::new(&mut stream);
            send(&mut bytes.as_slice(), &mut sender)?;
            sender.flush()?;
            drop(sender);
            let mut receiver = files::stream::Receiver::new(stream.as_slice());
            let entry = receiver.next_entry()?.unwrap();
            Ok::<_, FileWorkError>(String::from_utf8(entry.path).unwrap())
        };
        assert_eq!(sent("./a/./b").unwrap(), "a/b");
        assert_eq!(sent("/etc/x").unwrap(), "etc/x");
        for path in ["..", "../x", "a/../../x", "/.."] {
            assert!(
                matches!(sent(path), Err(FileWorkError::ArchivePath(_))),
                "{path}"
            );
        }
    }
}
