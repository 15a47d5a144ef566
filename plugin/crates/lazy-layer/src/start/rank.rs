//! In which order what programs need is fetched.

/// Places for what was found from one beginning.
const WIDTH: u64 = 1 << 48;

/// A place in that order, with room before the next one: for all that what stands here needs itself.
///
/// A program runs what it imports one after the other, and each only when all that it imports itself has run: what was found last can be needed first.
/// So each file gives its own room to what it names, part by part; when there is none left, what is found is needed at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rank {
    start: u64,
    width: u64,
}

impl Rank {
    /// All of what is found from the beginning with this number. What somebody reads now is needed before what others named earlier.
    pub(crate) fn of_walk(number: u16) -> Self {
        Self { start: u64::from(u16::MAX.saturating_sub(number)).saturating_mul(WIDTH), width: WIDTH }
    }

    /// That of what is named at this place among so many.
    pub(crate) fn within(self, number: usize, count: usize) -> Self {
        let (number, count) = (number as u64, count as u64);
        let width = self.width.checked_div(count.saturating_add(1)).unwrap_or(0);
        let before = number.min(count.saturating_sub(1)).saturating_add(1).saturating_mul(width);
        Self { start: self.start.saturating_add(before), width }
    }

    /// Less is earlier.
    pub(crate) fn order(self) -> u64 {
        self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_first_comes_with_all_that_it_names() {
        let program = Rank::of_walk(7);
        let [first, second] = [0, 1].map(|number| program.within(number, 2));
        let deep = (0..5).fold(first, |rank, _| rank.within(9, 10));
        assert!(
            program.order() < first.order() && first.order() < deep.order() && deep.order() < second.order()
        );
        assert!(Rank::of_walk(8).within(1, 2).order() < program.order(), "who reads now goes first");
    }

    #[test]
    fn room_ends() {
        let deep = (0..100).fold(Rank::of_walk(0), |rank, _| rank.within(200, 100));
        assert_eq!(deep.within(0, 3), deep);
        assert_eq!(Rank::of_walk(u16::MAX).within(0, 0).order(), WIDTH);
    }
}
