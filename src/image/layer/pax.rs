//! Extended headers: the `length key=value` records of POSIX pax, with the vendors' keys that images use.
//!
//! The tar crate's own reader of them splits at line ends, which the values of extended attributes may hold.

use super::archive::ArchiveError;
use super::index::Timestamp;
use super::sparse::Extent;

/// Prefix of the records that carry extended attributes. bsdtar writes each a second time under a key of its own,
/// which adds nothing.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What an extended header says about the entry behind it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link_path: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Timestamp>,
    /// Full names and values, sorted by name, each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: PaxSparse,
}

/// The `GNU.sparse.*` records, in which three formats announce themselves.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PaxSparse {
    /// Major and minor of format 1.0; earlier ones say none.
    pub version: (u64, u64),
    /// The true name: the entry's own is a made-up one.
    pub name: Option<Vec<u8>>,
    /// Size of the expanded file.
    pub size: Option<u64>,
    /// The map, where the records hold it (0.0 and 0.1).
    pub map: Option<Vec<Extent>>,
    /// An offset whose length has not come yet (0.0).
    offset: Option<u64>,
}

impl Pax {
    /// Reads the records.
    ///
    /// # Errors
    ///
    /// When a record is cut or a number is none.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, ArchiveError> {
        let mut pax = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or(ArchiveError::PaxRecord)?;
            pax.take(key, value)?;
            bytes = rest;
        }
        // Sorted, and of each name the record that came last.
        pax.xattrs.reverse();
        pax.xattrs.sort_by(|one, other| one.0.cmp(&other.0));
        pax.xattrs.dedup_by(|one, other| one.0 == other.0);
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
        if let Some(name) = key.strip_prefix(XATTR) {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        // An empty value takes back what an earlier record said.
        let text = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = text.map(<[u8]>::to_vec),
            b"linkpath" => self.link_path = text.map(<[u8]>::to_vec),
            b"size" => self.size = text.map(number).transpose()?,
            b"uid" => self.uid = text.map(number).transpose()?,
            b"gid" => self.gid = text.map(number).transpose()?,
            b"mtime" => self.mtime = text.map(time).transpose()?,
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(key, value)?;
                }
            }
        }
        Ok(())
    }
}

impl PaxSparse {
    /// Whether the entry is a sparse file at all.
    pub fn is_present(&self) -> bool {
        self.version != (0, 0) || self.map.is_some()
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
        match key {
            b"major" => self.version.0 = number(value)?,
            b"minor" => self.version.1 = number(value)?,
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"numblocks" => {
                self.map.get_or_insert_default();
            }
            b"offset" => self.offset = Some(number(value)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or(ArchiveError::Sparse)?;
                let length = number(value)?;
                self.map
                    .get_or_insert_default()
                    .push(Extent { offset, length });
            }
            b"map" => self.map = Some(map(value)?),
            _ => {}
        }
        Ok(())
    }
}

/// Splits off one record: its length counts itself, the space and the line end.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(number(&bytes[..space]).ok()?).ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &bytes[length..]))
}

fn map(value: &[u8]) -> Result<Vec<Extent>, ArchiveError> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let mut numbers = value.split(|&byte| byte == b',').map(number);
    let mut extents = Vec::new();
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or(ArchiveError::Sparse)??;
        extents.push(Extent {
            offset: offset?,
            length,
        });
    }
    Ok(extents)
}

/// A decimal number of digits alone.
pub fn number(text: &[u8]) -> Result<u64, ArchiveError> {
    if text.is_empty() {
        return Err(ArchiveError::PaxRecord);
    }
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = char::from(byte)
            .to_digit(10)
            .ok_or(ArchiveError::PaxRecord)?;
        value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(digit)))
            .ok_or(ArchiveError::PaxRecord)
    })
}

/// Seconds with an optional sign and fraction; digits past the nanosecond are cut off.
fn time(text: &[u8]) -> Result<Timestamp, ArchiveError> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let seconds = number(parts.next().unwrap_or_default())?;
    let seconds = i64::try_from(seconds).map_err(|_| ArchiveError::PaxRecord)?;
    let mut nanoseconds = 0;
    let mut weight = 100_000_000;
    for &byte in parts.next().unwrap_or_default() {
        let digit = char::from(byte)
            .to_digit(10)
            .ok_or(ArchiveError::PaxRecord)?;
        nanoseconds += digit * weight;
        weight /= 10;
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => Timestamp {
            seconds,
            nanoseconds,
        },
        (true, 0) => Timestamp {
            seconds: -seconds,
            nanoseconds,
        },
        (true, _) => Timestamp {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length.to_string().len() + rest != length {
            length = length.to_string().len() + rest;
        }
        let mut line = format!("{length} {key}=").into_bytes();
        line.extend_from_slice(value);
        line.push(b'\n');
        line
    }

    #[test]
    fn records_may_hold_anything() {
        let value = b"\n12 path=x\n=\0\xff".repeat(100);
        let mut bytes = line("SCHILY.xattr.user.a", b"b");
        bytes.extend(line("SCHILY.xattr.user.x", b"lost"));
        bytes.extend(line("SCHILY.xattr.user.x", &value));
        bytes.extend(line("path", b"a=b"));
        bytes.extend(line("mtime", b"-1.25"));
        bytes.extend(line("uid", b"4000000000"));
        let pax = Pax::parse(&bytes).unwrap();
        assert_eq!(pax.xattrs[1], (b"user.x".to_vec(), value));
        assert_eq!(pax.path.as_deref(), Some(&b"a=b"[..]));
        assert_eq!(pax.uid, Some(4_000_000_000));
        let mtime = Timestamp {
            seconds: -2,
            nanoseconds: 750_000_000,
        };
        assert_eq!(pax.mtime, Some(mtime));
    }

    #[test]
    fn damaged_records_are_refused() {
        for bytes in [
            &b"x"[..],
            b"4 a=\n",
            b"6 a=b",
            b"0 a=b\n",
            b"99999999999999999999 a=b\n",
            b"18446744073709551615 a=b\n",
            b"6 ab\n\n",
            b"10 uid=-1\n",
            b"17 mtime=1e1000\n",
        ] {
            assert!(Pax::parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn sparse_maps_of_both_old_formats() {
        let mut bytes = line("GNU.sparse.numblocks", b"2");
        for (offset, length) in [("0", "512"), ("8192", "100")] {
            bytes.extend(line("GNU.sparse.offset", offset.as_bytes()));
            bytes.extend(line("GNU.sparse.numbytes", length.as_bytes()));
        }
        let first = Pax::parse(&bytes).unwrap().sparse.map;
        let second = Pax::parse(&line("GNU.sparse.map", b"0,512,8192,100")).unwrap();
        assert_eq!(first, second.sparse.map);
        assert_eq!(
            first.unwrap()[1],
            Extent {
                offset: 8192,
                length: 100
            }
        );
        assert!(Pax::parse(&line("GNU.sparse.map", b"0,512,8192")).is_err());
        assert!(Pax::parse(&line("GNU.sparse.numbytes", b"1")).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, value: Vec<u8>) {
            let _ = Pax::parse(&bytes);
            for key in ["mtime", "size", "GNU.sparse.map", "GNU.sparse.offset", "SCHILY.xattr."] {
                let _ = Pax::parse(&line(key, &value));
            }
        }
    }
}
