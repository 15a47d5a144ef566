//! CPython's own serialization (`Python/marshal.c`, format 4), as far as compiled modules need it.

use std::rc::Rc;

use super::compiled::Layout;

/// Values within values.
const MAX_DEPTH: u32 = 100;
/// Set in the type byte of a value that is referred to later.
const FLAG_REF: u8 = 0x80;

/// A value; what imports are not made of is [`Value::Other`].
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    /// Bytes or text.
    Text(&'a [u8]),
    Int(i32),
    Tuple(Rc<[Value<'a>]>),
    Code(Rc<Code<'a>>),
    Other,
}

/// What is of interest of a code object.
#[derive(Clone, Debug)]
pub(super) struct Code<'a> {
    pub(super) bytecode: Value<'a>,
    pub(super) consts: Value<'a>,
    pub(super) names: Value<'a>,
    pub(super) file: Value<'a>,
}

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    layout: Layout,
    refs: Vec<Value<'a>>,
    depth: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], layout: Layout) -> Self {
        Self { bytes, layout, refs: Vec::new(), depth: 0 }
    }

    /// The next value; `None` for what cannot be read, and for the end of a dictionary.
    pub(super) fn value(&mut self) -> Option<Value<'a>> {
        if self.depth >= MAX_DEPTH {
            return None;
        }
        self.depth = self.depth.saturating_add(1);
        let kind = self.byte()?;
        // A place among those that are referred to is taken before what the value is made of.
        let place = (kind & FLAG_REF != 0).then(|| {
            self.refs.push(Value::Other);
            self.refs.len().saturating_sub(1)
        });
        let value = self.of_kind(kind & !FLAG_REF)?;
        if let Some(slot) = place.and_then(|place| self.refs.get_mut(place)) {
            *slot = value.clone();
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
                self.refs.get(place)?.clone()
            }
            b'c' => self.code()?,
            _ => return None,
        })
    }

    fn tuple(&mut self, len: usize) -> Option<Value<'a>> {
        // Each takes a byte at least.
        let mut values = Vec::with_capacity(len.min(self.bytes.len()));
        for _ in 0..len {
            values.push(self.value()?);
        }
        Some(Value::Tuple(values.into()))
    }

    fn code(&mut self) -> Option<Value<'a>> {
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
        Some(Value::Code(Rc::new(Code { bytecode, consts, names, file })))
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
