use proptest::prelude::*;

use super::*;

const COMPRESSING: [Codec; 4] = [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
const MIB: usize = 1 << 20;

/// Bytes that compress, but not to nothing.
fn text(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * i / 7 % 11) as u8 ^ (i >> 12) as u8)
        .collect()
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn lz4_frame(info: FrameInfo, input: &[u8]) -> Vec<u8> {
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(input).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn ids_are_kafkas() {
    for id in 0..=4 {
        assert_eq!(Codec::from_id(id).unwrap().id(), id);
    }
    assert_eq!((5..=255).find_map(Codec::from_id), None);
}

#[test]
fn what_is_compressed_comes_back_and_the_cap_is_exact() {
    for codec in COMPRESSING.into_iter().chain([Codec::None]) {
        for len in [1, 100, 32 * 1024, 64 * 1024, 200_000, 3 * MIB] {
            let input = text(len);
            let compressed = codec.compress(&input).unwrap();
            assert!(
                codec.decompress(&compressed, len).unwrap() == input,
                "{codec:?} {len}"
            );
            assert_eq!(
                codec.decompress(&compressed, len - 1),
                Err(DecompressError::TooLarge),
                "{codec:?} {len}"
            );
            assert!(
                codec.decompress(&compressed, usize::MAX).unwrap() == input,
                "{codec:?} {len}"
            );
        }
        let empty = codec.compress(&[]).unwrap();
        assert_eq!(codec.decompress(&empty, 0), Ok(Vec::new()), "{codec:?}");
    }
}

#[test]
fn bombs_stop_at_the_cap() {
    let zeros = vec![0; 16 * MIB];
    for codec in COMPRESSING {
        let one = codec.compress(&zeros).unwrap();
        assert_eq!(
            codec.decompress(&one, MIB),
            Err(DecompressError::TooLarge),
            "{codec:?}"
        );
        // 1 MiB of compressed bytes that would become up to 10 GiB.
        let piece: &[u8] = if codec == Codec::Lz4 {
            &one[7..one.len() - 4]
        } else {
            &one
        };
        let mut bomb = if codec == Codec::Lz4 {
            one[..7].to_vec()
        } else {
            Vec::new()
        };
        while bomb.len() < MIB {
            bomb.extend_from_slice(piece);
        }
        assert_eq!(
            codec.decompress(&bomb, MIB),
            Err(DecompressError::TooLarge),
            "{codec:?}"
        );
        assert_eq!(
            codec.decompress(&bomb, 0),
            Err(DecompressError::TooLarge),
            "{codec:?}"
        );
    }
}

#[test]
fn declared_lengths_are_not_believed() {
    // A raw snappy block that declares 1 GiB.
    let snappy = [0x80, 0x80, 0x80, 0x80, 0x04, 0x00, 0x61];
    assert_eq!(
        Codec::Snappy.decompress(&snappy, usize::MAX),
        Err(DecompressError::Damaged)
    );
    // A zstd frame, single segment, that declares 2^40 bytes and holds one raw block of one byte.
    let zstd = [
        0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 1, 0, 0, 0x09, 0, 0, 0x61,
    ];
    assert_eq!(
        Codec::Zstd.decompress(&zstd, usize::MAX),
        Err(DecompressError::Damaged)
    );
    // An LZ4 frame with blocks of up to 4 MiB, of which one declares 4 MiB and has one byte.
    let lz4 = [
        0x04, 0x22, 0x4d, 0x18, 0x60, 0x70, 0x73, 0x00, 0x00, 0x40, 0x00, 0x10,
    ];
    assert_eq!(
        Codec::Lz4.decompress(&lz4, usize::MAX),
        Err(DecompressError::Damaged)
    );
    // A length of 4 GiB - 1 in the snappy-java framing.
    let mut framed = snappy_java(b"a").unwrap();
    framed.extend_from_slice(&[0xff; 4]);
    assert_eq!(
        Codec::Snappy.decompress(&framed, usize::MAX),
        Err(DecompressError::Damaged)
    );
}

#[test]
fn a_zstd_window_of_128_mib_is_only_a_number() {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    encoder
        .set_parameter(zstd_safe::CParameter::WindowLog(27))
        .unwrap();
    encoder.write_all(b"small").unwrap();
    assert_eq!(
        Codec::Zstd.decompress(&encoder.finish().unwrap(), 5),
        Ok(b"small".to_vec())
    );
}

#[test]
fn snappy_raw_and_joined_streams() {
    let input = text(100_000);
    let raw = snap::raw::Encoder::new().compress_vec(&input).unwrap();
    assert!(Codec::Snappy.decompress(&raw, MIB).unwrap() == input);
    let framed = Codec::Snappy.compress(&input).unwrap();
    assert!(framed.starts_with(b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01"));
    let joined = [framed.clone(), framed.clone()].concat();
    assert!(Codec::Snappy.decompress(&joined, MIB).unwrap() == [input.clone(), input].concat());
    for cut in [framed.len() - 1, 17, 12] {
        assert_eq!(
            Codec::Snappy.decompress(&framed[..cut], MIB),
            Err(DecompressError::Damaged),
            "{cut}"
        );
    }
}

#[test]
fn gzip_members_and_what_follows_them() {
    let (one, two) = (
        Codec::Gzip.compress(b"one").unwrap(),
        Codec::Gzip.compress(b"two").unwrap(),
    );
    let joined = [one.clone(), two, b"no member".to_vec()].concat();
    assert_eq!(Codec::Gzip.decompress(&joined, 6), Ok(b"onetwo".to_vec()));
    assert_eq!(Codec::Gzip.decompress(&joined, 5), Err(DecompressError::TooLarge));
    assert_eq!(
        Codec::Gzip.decompress(&one.repeat(65), MIB),
        Err(DecompressError::Damaged)
    );
}

#[test]
fn lz4_frames_with_every_option() {
    let input = text(300_000);
    for mode in [BlockMode::Independent, BlockMode::Linked] {
        for size in [
            BlockSize::Max64KB,
            BlockSize::Max256KB,
            BlockSize::Max1MB,
            BlockSize::Max4MB,
        ] {
            for checks in [false, true] {
                let info = FrameInfo::new()
                    .block_mode(mode)
                    .block_size(size)
                    .block_checksums(checks)
                    .content_checksum(checks)
                    .content_size(checks.then_some(input.len() as u64));
                let frame = lz4_frame(info, &input);
                assert!(
                    Codec::Lz4.decompress(&frame, input.len()).unwrap() == input,
                    "{mode:?} {size:?}"
                );
                assert_eq!(
                    Codec::Lz4.decompress(&frame, input.len() - 1),
                    Err(DecompressError::TooLarge)
                );
            }
        }
    }
    // A linked block refers to what lies up to 64 KiB before it.
    let words: Vec<u8> = noise(10_000)
        .iter()
        .flat_map(|word| format!("{word} ").into_bytes())
        .collect();
    let repeated = words.repeat(8);
    let frame = |mode| {
        lz4_frame(
            FrameInfo::new().block_mode(mode).block_size(BlockSize::Max64KB),
            &repeated,
        )
    };
    let linked = frame(BlockMode::Linked);
    assert!(
        linked.len() < frame(BlockMode::Independent).len(),
        "blocks refer to earlier ones"
    );
    assert!(Codec::Lz4.decompress(&linked, repeated.len()).unwrap() == repeated);
    // Bytes that do not compress are stored.
    let noise = noise(70_000);
    let stored = Codec::Lz4.compress(&noise).unwrap();
    assert!(stored.len() > noise.len());
    assert!(Codec::Lz4.decompress(&stored, noise.len()).unwrap() == noise);
    assert_eq!(
        Codec::Lz4.decompress(&stored, noise.len() - 1),
        Err(DecompressError::TooLarge)
    );
}

#[test]
fn every_truncation_is_an_error() {
    let input = text(500);
    for codec in COMPRESSING {
        let compressed = codec.compress(&input).unwrap();
        for len in 0..compressed.len() {
            let cut = codec.decompress(&compressed[..len], MIB);
            // The snappy-java framing has no end mark: cut after its header it is a stream of nothing.
            if codec == Codec::Snappy && len == SNAPPY_JAVA_HEADER_LEN {
                assert_eq!(cut, Ok(Vec::new()));
            } else {
                assert_eq!(cut, Err(DecompressError::Damaged), "{codec:?} {len}");
            }
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_pass_the_cap(
        codec in proptest::sample::select(&COMPRESSING[..]),
        input in proptest::collection::vec(any::<u8>(), 0..300),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        genuine: bool,
        cap in 0_usize..2000,
    ) {
        let mut bytes = if genuine { codec.compress(&input.repeat(5)).unwrap() } else { input };
        for (at, xor) in flips {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= xor;
            }
        }
        if let Ok(out) = codec.decompress(&bytes, cap) {
            prop_assert!(out.len() <= cap);
        }
    }
}
