//! From the members of an archive to the two files of a layer.

use std::fs::File;
use std::io::BufWriter;

use super::archive::{Archive, ArchiveError, Kind, Member};
use super::index::{Change, Content, Entry, Inode, Xattr};
use super::name::{self, Meaning, NameError, shown};
use super::sparse::{self, Extent};
use super::{Created, LayerError, LayerLimits, LayerSummary, data, index, pipe};
use crate::image::digest::Digest;

/// Largest file whose content is kept in the index, and from there in the metadata of a root file system: less than
/// a quarter of the block that it would take in `data`.
const INLINE_MAX: u64 = 1024;
/// Namespaces of extended attributes that Linux file systems have. The system namespace holds ACLs alone.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// With these an image would steer the overlay that the guest mounts above it.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// Most bytes that the names and values of one file's extended attributes take; EROFS ends at four times that.
const MAX_XATTRS: usize = 64 << 10;

/// Reads an archive to its end and writes `data` and `index`, both on disk when this returns.
///
/// # Errors
///
/// See [`super::convert`].
pub fn store(
    input: pipe::Reader,
    diff_id: &Digest,
    limits: &LayerLimits,
    data: &Created,
    index: &Created,
) -> Result<LayerSummary, LayerError> {
    let output = |created: &Created| {
        created
            .file
            .try_clone()
            .map_err(|error| created.failed(error))
    };
    let entries = index::Writer::new(BufWriter::with_capacity(256 << 10, output(index)?));
    let mut store = Store {
        limits,
        index_file: index,
        data_file: data,
        index: entries.map_err(|error| index.failed(error))?,
        data: data::Writer::new(output(data)?),
        tables: 0,
    };
    let mut archive = Archive::new(input);
    let mut last = String::from("its start");
    loop {
        let damaged = |source| LayerError::Archive {
            behind: last.clone(),
            source,
        };
        let Some(member) = archive.next_member().map_err(damaged)? else {
            break;
        };
        last = shown(&member.path);
        store.member(&member, &mut archive)?;
    }
    let (actual, archive_bytes) = archive.into_inner().drain();
    if actual != *diff_id {
        return Err(LayerError::DiffId {
            expected: Box::new(*diff_id),
            actual: Box::new(actual),
        });
    }
    store.finish(archive_bytes)
}

struct Store<'a> {
    limits: &'a LayerLimits,
    index_file: &'a Created,
    data_file: &'a Created,
    index: index::Writer<BufWriter<File>>,
    data: data::Writer,
    /// Bytes that the tables of sparse files will take in the metadata, which the index does not show.
    tables: u64,
}

impl Store<'_> {
    fn member(
        &mut self,
        member: &Member,
        archive: &mut Archive<pipe::Reader>,
    ) -> Result<(), LayerError> {
        let refused = |source| LayerError::Entry {
            entry: shown(&member.path),
            source,
        };
        let path = name::clean(&member.path).map_err(refused)?;
        match name::meaning(&path).map_err(refused)? {
            Meaning::Bookkeeping => return Ok(()),
            Meaning::Whiteout(path) => return self.change(&path, Change::Whiteout),
            Meaning::Opaque(path) => return self.change(&path, Change::Opaque),
            Meaning::Entry => {}
        }
        if path.is_empty() && !matches!(member.kind, Kind::Directory) {
            return Err(refused(NameError::Root));
        }
        let mut small = Vec::new();
        let content = match &member.kind {
            Kind::HardLink(target) => {
                let target = name::clean(target).map_err(refused)?;
                if target.is_empty() {
                    return Err(refused(NameError::EmptyTarget));
                }
                return self.change(&path, Change::HardLink(&target));
            }
            // This is how overlayfs itself spells a whiteout, so that is what it would be to the guest.
            Kind::CharDevice(device) if (device.major, device.minor) == (0, 0) => {
                return self.change(&path, Change::Whiteout);
            }
            Kind::Symlink(target) => {
                name::check_target(target).map_err(refused)?;
                Content::Symlink(target)
            }
            Kind::Directory => Content::Directory,
            Kind::Fifo => Content::Fifo,
            Kind::CharDevice(device) => Content::CharDevice(*device),
            Kind::BlockDevice(device) => Content::BlockDevice(*device),
            Kind::File(size) if *size <= INLINE_MAX => {
                while (small.len() as u64) < *size {
                    let left = *size - small.len() as u64;
                    let piece = archive
                        .content(left)
                        .map_err(|error| damaged(member, error))?;
                    small.extend_from_slice(piece);
                }
                Content::Inline(&small)
            }
            Kind::File(size) => self.file(*size, member, archive)?,
            Kind::Sparse(size, map) => self.sparse_file(*size, map, member, archive)?,
        };
        let inode = Inode {
            mode: member.mode,
            uid: member.uid,
            gid: member.gid,
            mtime: member.mtime,
            xattrs: xattrs(member)?,
            content,
        };
        self.change(&path, Change::Inode(inode))
    }

    fn file(
        &mut self,
        size: u64,
        member: &Member,
        archive: &mut Archive<pipe::Reader>,
    ) -> Result<Content<'static>, LayerError> {
        let block = self.data.next_block();
        self.check_data(block.saturating_add(size.div_ceil(sparse::BLOCK)))?;
        self.copy(block * sparse::BLOCK, size, member, archive)?;
        // The check above keeps blocks under 2^32.
        let block = block as u32;
        Ok(Content::Extent { block, size })
    }

    fn sparse_file(
        &mut self,
        size: u64,
        map: &[Extent],
        member: &Member,
        archive: &mut Archive<pipe::Reader>,
    ) -> Result<Content<'static>, LayerError> {
        let chunks = sparse::lay_out(map, size, self.data.next_block())
            .map_err(|error| damaged(member, error))?;
        self.check_data(chunks.end)?;
        self.tables += 4 * chunks.count;
        for extent in map {
            if let Some(position) = chunks.position(extent.offset) {
                self.copy(position, extent.length, member, archive)?;
            }
        }
        self.advance(chunks.end * sparse::BLOCK)?;
        Ok(Content::Sparse {
            size,
            chunk_bits: chunks.bits,
            runs: chunks.runs,
        })
    }

    /// Copies content to a position in `data` that is not before what was written last.
    fn copy(
        &mut self,
        position: u64,
        mut length: u64,
        member: &Member,
        archive: &mut Archive<pipe::Reader>,
    ) -> Result<(), LayerError> {
        self.advance(position)?;
        while length > 0 {
            let piece = archive
                .content(length)
                .map_err(|error| damaged(member, error))?;
            length -= piece.len() as u64;
            self.data
                .write(piece)
                .map_err(|error| self.data_file.failed(error))?;
        }
        Ok(())
    }

    fn advance(&mut self, position: u64) -> Result<(), LayerError> {
        self.data
            .advance(position)
            .map_err(|error| self.data_file.failed(error))
    }

    /// Refuses data that would end behind the budget or behind what 32 bits of block number reach.
    fn check_data(&self, end: u64) -> Result<(), LayerError> {
        let most = self.limits.bytes.min(u64::from(u32::MAX) * sparse::BLOCK);
        if end > most / sparse::BLOCK {
            return Err(LayerError::TooLarge(most));
        }
        Ok(())
    }

    fn change(&mut self, path: &[u8], change: Change<'_>) -> Result<(), LayerError> {
        let entry = Entry { path, change };
        self.index
            .add(&entry)
            .map_err(|error| self.index_file.failed(error))?;
        let (bytes, entries) = self.index.size();
        if entries > self.limits.entries {
            return Err(LayerError::TooManyEntries(self.limits.entries));
        }
        if bytes + self.tables > self.limits.index_bytes {
            return Err(LayerError::IndexTooLarge(self.limits.index_bytes));
        }
        Ok(())
    }

    fn finish(self, archive_bytes: u64) -> Result<LayerSummary, LayerError> {
        let blocks = self.data.next_block();
        let (index_bytes, entries) = self.index.size();
        self.data
            .finish(blocks)
            .map_err(|error| self.data_file.failed(error))?;
        let finished = self
            .index
            .finish(blocks)
            .and_then(|index| index.get_ref().sync_all());
        finished.map_err(|error| self.index_file.failed(error))?;
        Ok(LayerSummary {
            archive_bytes,
            data_bytes: blocks * sparse::BLOCK,
            index_bytes,
            entries,
        })
    }
}

fn damaged(member: &Member, source: ArchiveError) -> LayerError {
    LayerError::Archive {
        behind: shown(&member.path),
        source,
    }
}

/// The extended attributes that the guest's file system can have and may have.
fn xattrs(member: &Member) -> Result<Vec<Xattr<'_>>, LayerError> {
    let allowed = |name: &[u8]| {
        let known = NAMESPACES
            .iter()
            .any(|space| name.len() > space.len() && name.starts_with(space));
        let steering = OVERLAY.iter().any(|prefix| name.starts_with(prefix));
        (known && !steering && !name.contains(&0)) || ACLS.contains(&name)
    };
    let mut kept = Vec::new();
    let mut bytes = 0;
    for (name, value) in &member.xattrs {
        if !allowed(name) {
            continue;
        }
        bytes += name.len() + value.len();
        if name.len() > 255 || bytes > MAX_XATTRS {
            return Err(LayerError::Xattrs(shown(&member.path)));
        }
        kept.push((&name[..], &value[..]));
    }
    Ok(kept)
}
