// SPDX-License-Identifier: Apache-2.0
//! Card numbers in text.

/// The shortest and the longest card number (ISO/IEC 7812-1: at most 19 digits).
const LENGTHS: std::ops::RangeInclusive<usize> = 13..=19;

/// Whether the text holds a run of digits, perhaps grouped, in which some card number lies.
pub(crate) fn has_card_number(text: &[u8]) -> bool {
    let mut run = Run::default();
    let mut since_digit = 0_usize;
    for &byte in text {
        match byte {
            b'0'..=b'9' => {
                since_digit = 0;
                if run.push(byte - b'0') {
                    return true;
                }
            }
            // One separator at a time, or two (" - " would be three: prose, not a number).
            b' ' | b'-' | b'.' | b'_' if since_digit < 2 => since_digit += 1,
            _ => run = Run::default(),
        }
    }
    false
}

/// The last digits of a run.
#[derive(Clone, Copy, Default)]
struct Run {
    digits: [u8; 19],
    length: usize,
}

impl Run {
    /// Adds a digit; whether a card number now ends here.
    fn push(&mut self, digit: u8) -> bool {
        self.digits.rotate_left(1);
        if let Some(last) = self.digits.last_mut() {
            *last = digit;
        }
        self.length = self.length.saturating_add(1).min(self.digits.len());
        LENGTHS
            .take_while(|&length| length <= self.length)
            .filter_map(|length| self.digits.get(self.digits.len() - length..))
            .any(|number| begins_like_a_card(number) && passes_luhn(number))
    }
}

/// The issuer ranges that payment cards use, by length: 34, 37 (15); 4 (13, 16, 19); 51–55 and
/// 2221–2720 (16); 30, 36, 38, 39 (14–19); 35 (16–19); 6 (16–19).
fn begins_like_a_card(number: &[u8]) -> bool {
    let first = number.first().copied().unwrap_or_default();
    let second = number.get(1).copied().unwrap_or_default();
    let prefix = number.iter().take(4).fold(0_u16, |sum, &digit| sum * 10 + u16::from(digit));
    match (first, number.len()) {
        (4, 13 | 16 | 19) | (6, 16..=19) => true,
        (5, 16) => matches!(second, 1..=5),
        (2, 16) => (2221..=2720).contains(&prefix),
        (3, 15) if matches!(second, 4 | 7) => true,
        (3, 14..=19) if matches!(second, 0 | 6 | 8 | 9) => true,
        (3, 16..=19) => second == 5,
        _ => false,
    }
}

/// From the right, every second digit doubled, digits of the products added: divisible by ten.
fn passes_luhn(number: &[u8]) -> bool {
    let sum: u16 = number
        .iter()
        .rev()
        .enumerate()
        .map(|(place, &digit)| match (place % 2, u16::from(digit)) {
            (0, digit) => digit,
            (_, digit) if digit > 4 => digit * 2 - 9,
            (_, digit) => digit * 2,
        })
        .sum();
    sum.is_multiple_of(10)
}
