//! Frames: a little-endian `u32` length and that many bytes of postcard.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

use crate::MAX_FRAME;

/// Bytes of the length in front of each payload.
const HEADER: usize = 4;

/// Why a frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Reading or writing failed; `UnexpectedEof` is an end in the middle of a frame.
    #[error("guest connection failed")]
    Io(#[from] io::Error),
    /// The length is above [`MAX_FRAME`].
    #[error("frame of {0} bytes is above the limit of {MAX_FRAME}")]
    TooLong(u64),
    /// The payload is not one whole message.
    #[error("frame is not a valid message")]
    Malformed(#[source] postcard::Error),
}

/// One message as a frame, ready to be written.
///
/// # Errors
///
/// [`FrameError::TooLong`] when it would not be accepted by the other side.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, FrameError> {
    let mut frame = postcard::to_extend(message, vec![0; HEADER]).map_err(FrameError::Malformed)?;
    let length = frame.len() - HEADER;
    match u32::try_from(length) {
        Ok(prefix) if length <= MAX_FRAME => frame[..HEADER].copy_from_slice(&prefix.to_le_bytes()),
        _ => return Err(FrameError::TooLong(length as u64)),
    }
    Ok(frame)
}

/// Takes one whole frame off the front of `buffer`, for a reader that must not block: `None` until
/// it is all there.
///
/// # Errors
///
/// [`FrameError::TooLong`] as soon as the length is known, [`FrameError::Malformed`] for a payload
/// that is no message or has bytes left over. The connection is of no use afterwards.
pub fn take<M: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<M>, FrameError> {
    let Some(header) = buffer.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = checked_length(*header)?;
    let Some(payload) = buffer.get(HEADER..HEADER + length) else {
        return Ok(None);
    };
    let message = decode(payload)?;
    buffer.drain(..HEADER + length);
    Ok(Some(message))
}

/// Writes one message as a frame.
///
/// # Errors
///
/// As [`encode`], and those of `writer`.
pub fn write<M: Serialize>(writer: &mut impl Write, message: &M) -> Result<(), FrameError> {
    Ok(writer.write_all(&encode(message)?)?)
}

/// Reads one frame; `None` where the other side closed the connection between two frames.
///
/// Memory grows with what arrives, not with what the length promises.
///
/// # Errors
///
/// Those of `reader`, and as [`take`].
pub fn read<M: DeserializeOwned>(reader: &mut impl Read) -> Result<Option<M>, FrameError> {
    let mut header = [0; HEADER];
    let mut filled = 0;
    while filled < HEADER {
        match reader.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let length = checked_length(header)?;
    let mut payload = Vec::new();
    reader.take(length as u64).read_to_end(&mut payload)?;
    if payload.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    decode(&payload).map(Some)
}

fn checked_length(header: [u8; HEADER]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(header);
    match usize::try_from(length) {
        Ok(length) if length <= MAX_FRAME => Ok(length),
        _ => Err(FrameError::TooLong(length.into())),
    }
}

fn decode<M: DeserializeOwned>(payload: &[u8]) -> Result<M, FrameError> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(FrameError::Malformed(
            postcard::Error::DeserializeBadEncoding,
        )),
        Err(error) => Err(FrameError::Malformed(error)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{AgentMessage, HostMessage, ProcessId};

    fn signal() -> HostMessage {
        HostMessage::Signal {
            id: ProcessId(7),
            signal: 15,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut wire = Vec::new();
        write(&mut wire, &signal()).unwrap();
        write(&mut wire, &HostMessage::PowerOff).unwrap();

        let mut reader = wire.as_slice();
        assert_eq!(read(&mut reader).unwrap(), Some(signal()));
        assert_eq!(read(&mut reader).unwrap(), Some(HostMessage::PowerOff));
        assert_eq!(read::<HostMessage>(&mut reader).unwrap(), None);
    }

    #[test]
    fn a_partial_frame_waits_and_a_cut_one_fails() {
        let wire = encode(&signal()).unwrap();
        for cut in 1..wire.len() {
            let mut buffer = wire[..cut].to_vec();
            assert!(matches!(take::<HostMessage>(&mut buffer), Ok(None)));
            let error = read::<HostMessage>(&mut &wire[..cut]).unwrap_err();
            assert!(matches!(error, FrameError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof));
        }
    }

    #[test]
    fn a16_a_length_above_the_limit_is_refused_before_the_payload() {
        let mut wire = u32::MAX.to_le_bytes().to_vec();
        assert!(matches!(
            read::<AgentMessage>(&mut wire.as_slice()),
            Err(FrameError::TooLong(_))
        ));
        assert!(matches!(
            take::<AgentMessage>(&mut wire),
            Err(FrameError::TooLong(_))
        ));
    }

    #[test]
    fn bytes_after_the_message_are_refused() {
        let mut wire = encode(&signal()).unwrap();
        wire.push(0);
        wire[0] += 1;
        assert!(matches!(
            take::<HostMessage>(&mut wire),
            Err(FrameError::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn a16_no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = read::<AgentMessage>(&mut bytes.as_slice());
            let _ = take::<HostMessage>(&mut bytes.clone());
        }
    }
}
