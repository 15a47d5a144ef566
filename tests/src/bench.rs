//! What `scripts/bench.sh` measures with: a slow link, layers of any number of files, a reader with a clock, and the pages that come of it.

pub mod chart;
pub mod files;
pub mod link;
pub mod probe;
pub mod results;
pub mod table;
