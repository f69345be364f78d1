// SPDX-License-Identifier: Apache-2.0
use super::*;
use postern_common::files::pack::{Part, Unpacker};
use std::os::unix::fs::MetadataExt as _;

/// What goes out for a file, and its digest.
fn sent(file: &mut File, size: u64, is_sparse: bool) -> (Vec<Bytes>, Option<Digest>) {
    let (to, mut from) = mpsc::channel(1000);
    let mut out = Outgoing::new(to);
    let digest = out.content(file, size, is_sparse).expect("somebody reads");
    out.flush(true).expect("somebody reads");
    drop(out);
    (std::iter::from_fn(|| from.blocking_recv()).collect(), digest)
}

/// What comes of it on the other side.
fn received(parts: Vec<Bytes>, to: &File) -> (Option<Digest>, (u64, Digest)) {
    let mut head = BytesMut::new();
    postern_common::files::pack::put_head(&mut head, &"", true).expect("JSON");
    let (mut unpacker, mut incoming, mut end) =
        (Unpacker::default(), Incoming::new(to, 0, Hash::new()), None);
    for bytes in std::iter::once(head.freeze()).chain(parts) {
        unpacker.feed(bytes);
        while let Some(part) = unpacker.part().expect("is a pack") {
            match part {
                Part::Head { .. } => {}
                Part::Data(bytes) => incoming.data(&bytes).expect("writes"),
                Part::Hole(length) => incoming.hole(length),
                Part::End(digest) => end = digest,
            }
        }
    }
    (end, incoming.end().expect("ends"))
}

fn file_of(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().expect("a file");
    file.write_all_at(bytes, 0).expect("writes");
    file
}

#[test]
fn a_file_arrives_as_it_was_with_the_digest_that_it_has() {
    for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7] {
        let bytes: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).expect("fits")).collect();
        let mut file = file_of(&bytes);
        let (parts, digest) = sent(&mut file, length as u64, false);
        let to = tempfile::tempfile().expect("a file");
        let (told, (size, computed)) = received(parts, &to);
        assert_eq!((told, size), (digest, length as u64));
        assert_eq!(digest, Some(computed));
        assert_eq!(super::digest(&mut file, length as u64), digest);
        let mut found = vec![0; length];
        to.read_exact_at(&mut found, 0).expect("reads");
        assert_eq!(found, bytes);
    }
}

#[test]
fn holes_stay_holes_and_count_as_zeros() {
    let (length, hole) = (64_u64 << 20, 32_u64 << 20);
    let mut file = tempfile::tempfile().expect("a file");
    file.set_len(length).expect("sets");
    file.write_all_at(b"middle", hole).expect("writes");
    let (parts, digest) = sent(&mut file, length, true);
    assert!(parts.iter().map(Bytes::len).sum::<usize>() < 1 << 20, "holes were sent");
    let to = tempfile::tempfile().expect("a file");
    let (_, (size, computed)) = received(parts, &to);
    assert_eq!((size, Some(computed)), (length, digest));
    assert!(to.metadata().expect("is there").blocks() * 512 < 1 << 20);
    // The same as of a file without holes.
    let (_, plain) = sent(&mut file, length, false);
    assert_eq!(plain, digest);
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_broken_off_not_padded() {
    let mut file = file_of(b"short");
    let (parts, digest) = sent(&mut file, 1000, false);
    assert_eq!(digest, None);
    let to = tempfile::tempfile().expect("a file");
    assert_eq!(received(parts, &to).0, None);
    assert_eq!(super::digest(&mut file, 1000), None);
}

#[test]
fn what_turned_out_not_to_count_is_taken_back() {
    let (to, mut from) = mpsc::channel(10);
    let mut out = Outgoing::new(to);
    assert!(out.content(&mut file_of(b"abc"), 3, false).expect("somebody reads").is_some());
    out.take_back_end();
    out.flush(true).expect("somebody reads");
    drop(out);
    let parts = std::iter::from_fn(|| from.blocking_recv()).collect();
    assert_eq!(received(parts, &tempfile::tempfile().expect("a file")).0, None);
}
