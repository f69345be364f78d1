// SPDX-License-Identifier: Apache-2.0
//! Components written byte by byte: what no toolchain makes. The suite across crates uses them too.

/// A component that imports an instance `wasi:clocks/wall-clock@0.2.0` with nothing in it.
pub(crate) fn wasi_component() -> Vec<u8> {
    let name = b"wasi:clocks/wall-clock@0.2.0";
    let length = u8::try_from(name.len()).expect("a short name");
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    // Type section: one instance type without declarations.
    bytes.extend([0x07, 0x03, 0x01, 0x42, 0x00]);
    // Import section: one import, a plain name, of an instance of type 0.
    bytes.extend([0x0a, length + 5, 0x01, 0x00, length]);
    bytes.extend(name);
    bytes.extend([0x05, 0x00]);
    bytes
}

/// A component that exports what a filter must, around a core module with so many functions of so
/// many steps each. A step is six bytes, and nothing that a compiler could leave out.
pub(crate) fn laborious_component(functions: u32, steps: usize) -> Vec<u8> {
    let mut component = b"\0asm\x0d\0\x01\0".to_vec();
    section(&mut component, 1, &laborious_module(functions, steps));
    // Two exports, each of core module 0, without a description.
    let mut exports = vec![2];
    for name in ["on-request", "on-response"] {
        exports.extend([0, u8::try_from(name.len()).expect("a short name")]);
        exports.extend(name.as_bytes());
        exports.extend([0x00, 0x11, 0x00, 0x00]);
    }
    section(&mut component, 11, &exports);
    component
}

fn laborious_module(functions: u32, steps: usize) -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    // One type: from an i64 to an i64.
    section(&mut module, 1, &[1, 0x60, 1, 0x7e, 1, 0x7e]);
    let mut types = leb(functions);
    types.extend((0..functions).map(|_| 0));
    section(&mut module, 3, &types);
    // x = (x * parameter) ^ 42, again and again.
    let mut body = vec![0, 0x20, 0];
    body.extend([0x20, 0, 0x7e, 0x42, 42, 0x85].repeat(steps));
    body.push(0x0b);
    let mut code = leb(functions);
    for _ in 0..functions {
        code.extend(leb(u32::try_from(body.len()).expect("a short function")));
        code.extend(&body);
    }
    section(&mut module, 10, &code);
    module
}

fn section(to: &mut Vec<u8>, id: u8, content: &[u8]) {
    to.push(id);
    to.extend(leb(u32::try_from(content.len()).expect("a short section")));
    to.extend(content);
}

/// A number as WebAssembly writes it: seven bits a byte, the lowest first.
fn leb(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).expect("seven bits") | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).expect("seven bits"));
    bytes
}
