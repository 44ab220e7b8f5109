//! Mutations of descriptors and bytes, as from a hostile or broken peer.

use proptest::prelude::*;
use thallus_protocol::layout::{BatchDescriptor, Detail, Extent};

use super::dice::Dice;

/// The descriptor with one to four changes: of lengths, counts, bits or bases, or of the number of nodes or buffers.
pub fn mutate_descriptor(descriptor: BatchDescriptor) -> impl Strategy<Value = BatchDescriptor> {
    (any::<u64>(), 1..5).prop_map(move |(seed, changes)| {
        let (mut dice, mut descriptor) = (Dice::new(seed), descriptor.clone());
        (0..changes).for_each(|_| change(&mut descriptor, &mut dice));
        descriptor
    })
}

/// Changes one to four bytes of a buffer, unless it is empty.
pub fn mutate_bytes(bytes: &mut [u8], dice: &mut Dice) {
    if bytes.is_empty() {
        return;
    }
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        bytes[at] = match dice.below(4) {
            0 => 0xff,
            1 => 0,
            2 => bytes[at] ^ (1 << dice.below(8)),
            _ => dice.number() as u8,
        };
    }
}

fn nudge(number: &mut u64, dice: &mut Dice) {
    *number = match dice.below(6) {
        0 => number.wrapping_add(1),
        1 => number.wrapping_sub(1),
        2 => number.wrapping_add(dice.below(16) as u64),
        3 => 0,
        4 => [u64::MAX, 1 << 63, (1 << 63) - 1, 1 << 31, (1 << 31) - 1, 1 << 32][dice.below(6)],
        _ => dice.number() >> dice.below(64),
    };
}

fn nudge_short(number: &mut u32, dice: &mut Dice) {
    let mut long = (*number).into();
    nudge(&mut long, dice);
    *number = long as u32;
}

fn change(descriptor: &mut BatchDescriptor, dice: &mut Dice) {
    let (nodes, buffers) = (descriptor.nodes.len(), descriptor.buffers.len());
    match dice.below(9) {
        0 => nudge(&mut descriptor.rows, dice),
        1 if buffers > 0 => nudge(&mut descriptor.buffers[dice.below(buffers)], dice),
        2 if buffers > 0 => drop(descriptor.buffers.remove(dice.below(buffers))),
        3 => descriptor.buffers.insert(dice.below(buffers + 1), dice.below(64) as u64),
        4 if nodes > 0 => drop(descriptor.nodes.remove(dice.below(nodes))),
        5 if nodes > 0 => {
            let copy = descriptor.nodes[dice.below(nodes)].clone();
            descriptor.nodes.insert(dice.below(nodes + 1), copy);
        }
        _ if nodes > 0 => {
            let node = &mut descriptor.nodes[dice.below(nodes)];
            match dice.below(4) {
                0 => nudge(&mut node.len, dice),
                1 => nudge(&mut node.nulls, dice),
                2 => node.null_bit = dice.number() as u8 >> dice.below(8),
                _ => change_detail(&mut node.detail, dice),
            }
        }
        _ => nudge(&mut descriptor.rows, dice),
    }
}

fn change_detail(detail: &mut Detail, dice: &mut Dice) {
    match detail {
        Detail::Bits { first } => *first = dice.number() as u8 >> dice.below(8),
        Detail::Base(base) | Detail::Runs { offset: base } => nudge(base, dice),
        Detail::UnionBases(bases) if !bases.is_empty() && !dice.one_in(4) => {
            let at = dice.below(bases.len());
            nudge(&mut bases[at], dice);
        }
        Detail::UnionBases(bases) => bases.push(dice.below(99) as u64),
        Detail::Views(extents) if !extents.is_empty() && !dice.one_in(4) => {
            let at = dice.below(extents.len());
            match dice.below(4) {
                0 => nudge_short(&mut extents[at].buffer, dice),
                1 => extents.swap(at, 0),
                2 => drop(extents.remove(at)),
                _ => nudge_short(&mut extents[at].base, dice),
            }
        }
        Detail::Views(extents) => {
            let at = dice.below(extents.len() + 1);
            extents.insert(at, Extent { buffer: dice.below(4) as u32, base: dice.below(99) as u32 });
        }
        Detail::None if dice.one_in(2) => *detail = Detail::SameValues,
        Detail::None => *detail = Detail::Base(0),
        Detail::SameValues => *detail = Detail::None,
    }
}
