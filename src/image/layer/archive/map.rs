//! The maps of sparse files that stand in or behind a header.

use std::io::BufRead;

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{Archive, ArchiveError, BLOCK, header};
use crate::image::layer::pax;
use crate::image::layer::sparse::{self, Extent};

impl<R: BufRead> Archive<R> {
    /// The map of the old GNU format: four pieces in the header, more in blocks behind it.
    pub(super) fn gnu_map(&mut self, first: &Header) -> Result<(u64, Vec<Extent>), ArchiveError> {
        let first = first.as_gnu().ok_or(ArchiveError::Sparse)?;
        let size = header::field(first.real_size(), "real size")?;
        let mut map = Vec::new();
        add_pieces(&mut map, &first.sparse)?;
        let mut extended = first.is_extended();
        while extended {
            let mut more = GnuExtSparseHeader::new();
            more.as_mut_bytes().copy_from_slice(&self.block()?);
            add_pieces(&mut map, more.sparse())?;
            extended = more.is_extended();
        }
        Ok((size, map))
    }

    /// The map of format 1.0: decimal lines in front of the content, padded to a block.
    pub(super) fn leading_map(&mut self) -> Result<Vec<Extent>, ArchiveError> {
        let mut numbers = Vec::new();
        let mut wanted = 1;
        let mut line = Vec::new();
        while numbers.len() < wanted {
            self.content = self
                .content
                .checked_sub(BLOCK as u64)
                .ok_or(ArchiveError::Sparse)?;
            for byte in self.block()? {
                if numbers.len() == wanted {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    continue;
                }
                numbers.push(pax::number(&line).map_err(|_| ArchiveError::Sparse)?);
                line.clear();
                if numbers.len() == 1 {
                    let pieces = usize::try_from(numbers[0]).unwrap_or(usize::MAX);
                    if pieces > sparse::MAX_EXTENTS {
                        return Err(ArchiveError::SparseMapSize);
                    }
                    wanted += 2 * pieces;
                }
            }
            if line.len() > 20 {
                return Err(ArchiveError::Sparse);
            }
        }
        let extent = |pair: &[u64]| Extent {
            offset: pair[0],
            length: pair[1],
        };
        Ok(numbers[1..].chunks_exact(2).map(extent).collect())
    }
}

fn add_pieces(map: &mut Vec<Extent>, pieces: &[GnuSparseHeader]) -> Result<(), ArchiveError> {
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        if map.len() == sparse::MAX_EXTENTS {
            return Err(ArchiveError::SparseMapSize);
        }
        map.push(Extent {
            offset: header::field(piece.offset(), "piece")?,
            length: header::field(piece.length(), "piece")?,
        });
    }
    Ok(())
}
