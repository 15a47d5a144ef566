//! CPython's own serialization (`Python/marshal.c`, format 4), as far as compiled modules need it.
//!
//! A file can have values that lie in each other by way of references, as deep as it has bytes. So none owns another: all items of tuples lie side by side, and
//! a tuple is a place among them.

use super::compiled::Layout;

/// Values within values.
const MAX_DEPTH: u32 = 100;
/// Values of one module, each some 70 bytes while it is read. The tables of host names that many programs import have 32 000; generated clients of large
/// services, the largest modules known, 106 000.
const MAX_VALUES: usize = 128 << 10;
/// Set in the type byte of a value that is referred to later.
const FLAG_REF: u8 = 0x80;

/// A value; what imports are not made of is [`Value::Other`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// Bytes or text.
    Text(&'a [u8]),
    Int(i32),
    Tuple(Tuple),
    Other,
}

/// Where the items of a tuple are among those of all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuple {
    start: usize,
    len: usize,
}

/// The code object of a module.
#[derive(Debug)]
pub(super) struct Code<'a> {
    parts: Parts<'a>,
    items: Vec<Value<'a>>,
}

/// What is of interest of a code object.
#[derive(Clone, Copy, Debug)]
struct Parts<'a> {
    bytecode: Value<'a>,
    consts: Value<'a>,
    names: Value<'a>,
    file: Value<'a>,
}

/// What has been read so far.
struct Reader<'a> {
    bytes: &'a [u8],
    layout: Layout,
    refs: Vec<Value<'a>>,
    items: Vec<Value<'a>>,
    /// Those of the tuples that are being read.
    open: Vec<Value<'a>>,
    depth: u32,
    /// So many more values may come.
    left: usize,
}

impl<'a> Code<'a> {
    /// From all bytes of a module behind its header.
    pub(super) fn read(bytes: &'a [u8], layout: Layout) -> Option<Self> {
        let (refs, items, open) = (Vec::new(), Vec::new(), Vec::new());
        let mut reader = Reader { bytes, layout, refs, items, open, depth: 0, left: MAX_VALUES };
        let kind = reader.byte()?;
        if kind & FLAG_REF != 0 {
            reader.refs.push(Value::Other);
        }
        let parts = if kind & !FLAG_REF == b'c' { reader.code()? } else { return None };
        Some(Self { parts, items: reader.items })
    }

    pub(super) fn bytecode(&self) -> &'a [u8] {
        text(self.parts.bytecode).unwrap_or_default()
    }

    /// The path of the source when it was compiled.
    pub(super) fn file(&self) -> Option<&'a [u8]> {
        text(self.parts.file)
    }

    pub(super) fn constant(&self, place: usize) -> Option<Value<'a>> {
        self.items(self.parts.consts).get(place).copied()
    }

    pub(super) fn name(&self, place: usize) -> Option<&'a [u8]> {
        self.items(self.parts.names).get(place).copied().and_then(text)
    }

    /// The texts in a tuple.
    pub(super) fn texts(&self, tuple: Value<'a>) -> impl Iterator<Item = &'a [u8]> {
        self.items(tuple).iter().copied().filter_map(text)
    }

    fn items(&self, value: Value<'a>) -> &[Value<'a>] {
        let Value::Tuple(Tuple { start, len }) = value else { return &[] };
        self.items.get(start..start.saturating_add(len)).unwrap_or_default()
    }
}

fn text(value: Value<'_>) -> Option<&[u8]> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

impl<'a> Reader<'a> {
    /// The next value; `None` for what cannot be read, and for the end of a dictionary.
    fn value(&mut self) -> Option<Value<'a>> {
        if self.depth >= MAX_DEPTH {
            return None;
        }
        self.depth = self.depth.saturating_add(1);
        self.left = self.left.checked_sub(1)?;
        let kind = self.byte()?;
        // A place among those that are referred to is taken before what the value is made of.
        let place = (kind & FLAG_REF != 0).then(|| {
            self.refs.push(Value::Other);
            self.refs.len().saturating_sub(1)
        });
        let value = self.of_kind(kind & !FLAG_REF)?;
        if let Some(slot) = place.and_then(|place| self.refs.get_mut(place)) {
            *slot = value;
        }
        self.depth = self.depth.saturating_sub(1);
        Some(value)
    }

    fn of_kind(&mut self, kind: u8) -> Option<Value<'a>> {
        Some(match kind {
            b'N' | b'F' | b'T' | b'S' | b'.' => Value::Other,
            b'i' => Value::Int(self.int()?),
            b'I' | b'g' => self.skip(8)?,
            b'y' => self.skip(16)?,
            b'f' => {
                let len = self.byte()?;
                self.skip(usize::from(len))?
            }
            b'l' => {
                let digits = usize::try_from(self.int()?.unsigned_abs()).ok()?;
                self.skip(digits.checked_mul(2)?)?
            }
            b'z' | b'Z' => {
                let len = self.byte()?;
                Value::Text(self.take(usize::from(len))?)
            }
            b's' | b'a' | b'A' | b'u' | b't' => {
                let len = self.len()?;
                Value::Text(self.take(len)?)
            }
            b')' => {
                let len = self.byte()?;
                self.tuple(usize::from(len))?
            }
            b'(' => {
                let len = self.len()?;
                self.tuple(len)?
            }
            b'[' | b'<' | b'>' => {
                for _ in 0..self.len()? {
                    self.value()?;
                }
                Value::Other
            }
            // Ended by the key `0`.
            b'{' => {
                while self.bytes.first() != Some(&b'0') {
                    self.value()?;
                    self.value()?;
                }
                self.skip(1)?
            }
            // A slice.
            b':' => {
                for _ in 0..3 {
                    self.value()?;
                }
                Value::Other
            }
            b'r' => {
                let place = self.len()?;
                *self.refs.get(place)?
            }
            // What functions and classes are made of.
            b'c' => {
                self.code()?;
                Value::Other
            }
            _ => return None,
        })
    }

    fn tuple(&mut self, len: usize) -> Option<Value<'a>> {
        let outer = self.open.len();
        for _ in 0..len {
            let value = self.value()?;
            self.open.push(value);
        }
        let start = self.items.len();
        self.items.extend(self.open.drain(outer..));
        Some(Value::Tuple(Tuple { start, len }))
    }

    fn code(&mut self) -> Option<Parts<'a>> {
        self.skip(self.layout.numbers.checked_mul(4)?)?;
        let (bytecode, consts, names) = (self.value()?, self.value()?, self.value()?);
        for _ in 0..self.layout.variables {
            self.value()?;
        }
        let file = self.value()?;
        for _ in 0..self.layout.titles {
            self.value()?;
        }
        self.skip(4)?;
        for _ in 0..self.layout.tables {
            self.value()?;
        }
        Some(Parts { bytecode, consts, names, file })
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.bytes.split_at_checked(len)?;
        self.bytes = left;
        Some(taken)
    }

    fn skip(&mut self, len: usize) -> Option<Value<'a>> {
        self.take(len).map(|_| Value::Other)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn int(&mut self) -> Option<i32> {
        Some(i32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn len(&mut self) -> Option<usize> {
        usize::try_from(self.int()?).ok()
    }
}
