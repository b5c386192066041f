//! Recognises, in the bytes that a client sends, a request that only brokers send to each other.

/// Key of the first of our own APIs; Kafka's are far below.
const PRIVATE_KEYS_FROM: i16 = 32_000;
/// Bytes of a frame up to the end of the key: the length and the key.
const HEAD_BYTES: usize = 6;

/// Follows the frames of one connection.
#[derive(Debug, Default)]
pub(super) struct Sniffer {
    /// The first bytes of a frame, as far as they have come.
    head: Vec<u8>,
    /// Bytes of the current frame that are still to come.
    left: usize,
}

impl Sniffer {
    /// Whether a private request begins in these bytes, which follow on those of the last call.
    pub(super) fn sees_peer(&mut self, mut bytes: &[u8]) -> bool {
        let mut seen = false;
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEAD_BYTES - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if let [a, b, c, d, key @ ..] = &self.head[..]
                && let [e, f] = key
            {
                // What is no frame of Kafka is taken for an endless one.
                let length = usize::try_from(i32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
                seen |= i16::from_be_bytes([*e, *f]) >= PRIVATE_KEYS_FROM;
                self.left = length.saturating_sub(HEAD_BYTES - 4);
                self.head.clear();
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(key: i16, bytes: usize) -> Vec<u8> {
        let mut frame = (bytes as i32 + 2).to_be_bytes().to_vec();
        frame.extend_from_slice(&key.to_be_bytes());
        frame.extend(std::iter::repeat_n(0x7d, bytes));
        frame
    }

    #[test]
    fn finds_private_requests_however_the_bytes_come() {
        let clients = [frame(18, 10), frame(0, 100_000), frame(3, 0)].concat();
        let with_peer = [&clients[..], &frame(32_000, 20)].concat();
        for step in [1, 5, 7, 4096, usize::MAX] {
            let sees = |bytes: &[u8]| {
                let mut sniffer = Sniffer::default();
                let mut seen = false;
                for chunk in bytes.chunks(step.min(bytes.len())) {
                    seen |= sniffer.sees_peer(chunk);
                }
                seen
            };
            assert!(!sees(&clients), "{step}");
            assert!(sees(&with_peer), "{step}");
        }
    }

    #[test]
    fn other_protocols_are_no_peers() {
        let mut sniffer = Sniffer::default();
        assert!(!sniffer.sees_peer(b"GET /x HTTP/1.1\r\nHost: y\r\n\r\n"));
        assert!(!sniffer.sees_peer(&[0xff; 50]));
    }
}
