//! What is known of the programs in a layer: see [`crate::start`].

use std::ops::Range;
use std::sync::Arc;

use erofs_image::{Inode, Nid};

use crate::demand::Demand;
use crate::elf;
use crate::layer::Layer;
use crate::python;
use crate::stack::Stack;
use crate::start::{Rank, Step};
use crate::waiting::Wanted;

impl Layer {
    /// Whether this file was not followed before, or was wanted less.
    pub(crate) fn is_news(&self, nid: Nid, demand: Demand) -> bool {
        self.followed.lock().is_news(nid, demand, self.engine.options.max_followed)
    }

    /// Whether the file whose data begin at this byte of the layer file was followed.
    pub(crate) fn is_followed(&self, place: u64) -> bool {
        self.file_at(place).is_some_and(|nid| self.followed.lock().has(nid))
    }

    /// The newest image that the layer is part of.
    pub(crate) fn stack(&self) -> Option<Arc<Stack>> {
        self.stack.lock().clone()
    }

    /// Makes the layer part of an image.
    pub(crate) fn join(&self, stack: &Arc<Stack>) {
        *self.stack.lock() = Some(Arc::clone(stack));
    }

    /// Whether who reads at this byte of the layer file goes on from span to span.
    pub(crate) fn is_passed(&self, place: u64) -> bool {
        let tar = self.tar_of(&(place..place.saturating_add(1)));
        tar.is_some_and(|tar| self.ahead.lock().is_passed(*self.spans.covering(&tar).start()))
    }

    /// The regular file whose data begin at this byte of the layer file.
    pub(crate) fn file_at(&self, place: u64) -> Option<Nid> {
        let tar = self.tar_of(&(place..place.saturating_add(1)))?;
        let rows = self.headers.with_data_in(&tar);
        let header = self.headers.files_in(rows).find_map(|id| self.headers.get(id))?;
        header.nid.map(Nid).filter(|_| header.range.end == tar.start)
    }

    /// Has a part of a file fetched, which is going to be read soon.
    pub(crate) fn fetch_soon(self: &Arc<Self>, inode: &Inode, part: &Range<u64>, demand: Demand, rank: Rank) {
        let Some(file) = &inode.tar_range else { return };
        let place = file.start.saturating_add(part.start)..file.start.saturating_add(part.end).min(file.end);
        let Some(tar) = self.tar_of(&place).filter(|tar| !tar.is_empty() && tar.end <= self.tar_size) else {
            return;
        };
        let header =
            self.headers.of_file(inode.nid.0).map_or(0..0, |header| header.0..header.0.saturating_add(1));
        let wanted = Wanted { place, tar, headers: header };
        let missing = self.needed(&wanted).into_iter().filter(|span| !self.has(*span));
        let missing: Vec<_> = missing.map(|span| (span, demand)).collect();
        if demand == Demand::ReadAhead {
            let new = missing.iter().filter(|(span, _)| !self.engine.is_wanted(self, *span)).count();
            self.ahead.lock().made(new);
        }
        if !missing.is_empty() {
            self.engine.want_in_order(self, &missing, rank);
        }
    }

    /// Goes on with `next` when these bytes of a file are here, on a thread that reads ahead; never if they do not come.
    pub(crate) fn when_here(
        self: &Arc<Self>,
        nid: Nid,
        offset: u64,
        len: u32,
        demand: Demand,
        next: impl FnOnce(&[u8]) -> Step + Send + 'static,
    ) {
        let engine = Arc::clone(&self.engine);
        let reply = Box::new(move |bytes: Result<&[u8], _>| {
            if let Ok(bytes) = bytes {
                engine.step(next(bytes));
            }
        });
        match self.wanted(nid, offset, len) {
            Ok(Some(wanted)) if self.can_serve(&wanted) => self.serve(&wanted, &[], reply),
            Ok(Some(wanted)) => self.wait(wanted, demand, reply),
            Ok(None) | Err(_) => {}
        }
    }
}

/// Whether bytes of a layer may be the beginning of a program.
pub(super) fn looks_like_program(bytes: &[u8]) -> bool {
    elf::is_elf(bytes) || bytes.starts_with(b"#!/") || python::is_compiled(bytes)
}
