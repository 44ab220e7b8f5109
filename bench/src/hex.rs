//! Hexadecimal text of bytes.

pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn decode(text: &str) -> Result<Vec<u8>, String> {
    let bad = || format!("not hexadecimal: {text:?}");
    let digit = |c: char| c.to_digit(16).ok_or_else(bad);
    let digits: Vec<u32> = text.chars().map(digit).collect::<Result<_, _>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else { return Err(bad()) };
    Ok(pairs.iter().map(|[high, low]| (high << 4 | low) as u8).collect())
}
